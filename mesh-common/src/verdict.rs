//! The decision, in one place: the kernel's connect hook and the agent run exactly this code.
//!
//! Order (Istio's AuthorizationPolicy): any DENY row → deny; no ALLOW policy → allow; any ALLOW row → allow; else deny.
//! The walk is a fold over ops with a few words of state, so that the kernel's verifier sees one bounded loop.

use crate::addr::Addr;
use crate::policy::*;

/// Outcome of [`Walk::finish`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decision {
    /// Whether the connection may go on.
    pub allowed: bool,
    /// Number of the deciding policy: the DENY or ALLOW policy that matched, 0 for none.
    pub policy: u32,
    /// Number of a dry-run policy whose enforcement would have changed the outcome to a denial, 0 for none;
    /// [`NO_POLICY`] where the absence of a match among the dry-run ALLOW policies would.
    pub dry_run: u32,
}

/// [`Decision::dry_run`]: denied by no ALLOW matching, so that no single policy can be named.
pub const NO_POLICY: u32 = u32::MAX;

/// State of an evaluation.
#[derive(Clone, Copy)]
pub struct Walk {
    row: bool,
    clause: bool,
    deny: u32,
    allow: u32,
    dry_deny: u32,
    dry_allow: u32,
}

impl Default for Walk {
    fn default() -> Self {
        Self::new()
    }
}

impl Walk {
    /// The state before the first op.
    #[inline(always)]
    pub const fn new() -> Self {
        Walk { row: true, clause: false, deny: 0, allow: 0, dry_deny: 0, dry_allow: 0 }
    }

    /// Takes one op. `in_set(S)` answers whether the source's identity is in set S; it is asked only of identified sources.
    #[inline(always)]
    pub fn step(&mut self, op: &Op, facts: &Facts, in_set: impl FnOnce(u32) -> bool) {
        let hit = match op.atom {
            ATOM_TRUE => true,
            ATOM_IDENTITY => facts.identified != 0 && in_set(op.arg),
            ATOM_SOURCE_CIDR => contains(&op.addr, op.prefix, &facts.source),
            ATOM_DESTINATION_CIDR => contains(&op.addr, op.prefix, &facts.destination),
            ATOM_PORT => facts.port == op.arg,
            // ATOM_FALSE, and an atom from a future that this code does not know: in a DENY row it must match.
            ATOM_FALSE => false,
            _ => op.flags & OP_DENY != 0,
        };
        self.clause |= hit;
        if op.flags & OP_END_CLAUSE == 0 {
            return;
        }
        self.row &= self.clause != (op.flags & OP_NEGATE != 0);
        self.clause = false;
        if op.flags & OP_END_ROW == 0 {
            return;
        }
        if self.row {
            let slot = match (op.flags & OP_DENY != 0, op.flags & OP_DRY_RUN != 0) {
                (true, false) => &mut self.deny,
                (false, false) => &mut self.allow,
                (true, true) => &mut self.dry_deny,
                (false, true) => &mut self.dry_allow,
            };
            if *slot == 0 {
                *slot = op.policy;
            }
        }
        self.row = true;
    }

    /// The decision after the last op.
    #[inline(always)]
    pub fn finish(self, flags: u32) -> Decision {
        let has_allow = flags & HEADER_HAS_ALLOW != 0;
        let (allowed, policy) = if self.deny != 0 {
            (false, self.deny)
        } else if self.allow != 0 {
            (true, self.allow)
        } else {
            (!has_allow, 0)
        };
        let dry_run = if !allowed {
            0
        } else if self.dry_deny != 0 {
            self.dry_deny
        } else if flags & HEADER_HAS_DRY_ALLOW != 0 && self.dry_allow == 0 && self.allow == 0 {
            NO_POLICY
        } else {
            0
        };
        Decision { allowed, policy, dry_run }
    }
}

/// Evaluates a program of any length; `in_set` as in [`Walk::step`].
pub fn decide(header: &Header, ops: &[Op], facts: &Facts, in_set: impl Fn(u32) -> bool) -> Decision {
    let mut walk = Walk::new();
    for op in ops.iter().take(header.len as usize) {
        walk.step(op, facts, &in_set);
    }
    walk.finish(header.flags)
}

/// Whether `range`/`prefix` (over 128 mapped bits) contains `addr`.
#[inline(always)]
pub fn contains(range: &Addr, prefix: u8, addr: &Addr) -> bool {
    let (r, a) = (range.to_be_v6(), addr.to_be_v6());
    let mut same = true;
    let mut left = prefix as u32;
    let mut i = 0;
    while i < 4 {
        let bits = if left > 32 { 32 } else { left };
        let mask = if bits == 0 { 0 } else { (u32::MAX << (32 - bits)).to_be() };
        // Index by a constant-bounded counter; the arrays have four elements.
        let (x, y) = match i {
            0 => (r[0], a[0]),
            1 => (r[1], a[1]),
            2 => (r[2], a[2]),
            _ => (r[3], a[3]),
        };
        same &= (x ^ y) & mask == 0;
        left -= bits;
        i += 1;
    }
    same
}
