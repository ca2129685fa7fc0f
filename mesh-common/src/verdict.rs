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
///
/// Everything is a word, and a step after the match itself has no branches: to the kernel's verifier, which follows every branch of every
/// turn of the loop, the state is then one unknown word a field instead of one case for each combination.
#[derive(Clone, Copy)]
pub struct Walk {
    /// 1 while every clause of the row so far held.
    row: u32,
    /// 1 once an atom of the clause matched.
    clause: u32,
    /// A bit for each kind of row (index: `OP_DENY`, `OP_DRY_RUN`) that matched.
    found: u32,
    /// The first policy that matched, by that index.
    first: [u32; 4],
}

const ALLOW: usize = 0;
const DENY: usize = 1;
const DRY_ALLOW: usize = 2;
const DRY_DENY: usize = 3;

impl Walk {
    /// The state before the first op. `zero` is [`Header::zero`]: a nought that the verifier does not know to be one.
    #[inline(always)]
    pub const fn new(zero: u32) -> Self {
        Walk { row: zero ^ 1, clause: zero, found: zero, first: [zero; 4] }
    }

    /// Takes one op. `in_set(S)` answers whether the source's identity is in set S; for a source without one the answer does not count.
    #[inline(always)]
    pub fn step(&mut self, op: &Op, facts: &Facts, in_set: impl FnOnce(u32) -> bool) {
        let flags = op.flags as u32;
        let hit = match op.atom {
            ATOM_TRUE => 1,
            ATOM_IDENTITY => facts.identified & in_set(op.arg) as u32,
            ATOM_SOURCE_CIDR => contains(&op.addr, &op.mask, &facts.source) as u32,
            ATOM_DESTINATION_CIDR => contains(&op.addr, &op.mask, &facts.destination) as u32,
            ATOM_PORT => (facts.port == op.arg) as u32,
            // HTTP fields of an ALLOW rule, or an atom that this code does not know: in a DENY row it must match.
            ATOM_FALSE => 0,
            _ => (flags >> DENY_SHIFT) & 1,
        };
        let negate = flags & OP_NEGATE as u32;
        let end_clause = (flags >> END_CLAUSE_SHIFT) & 1;
        let end_row = (flags >> END_ROW_SHIFT) & 1;
        self.clause |= hit;
        self.row &= (self.clause ^ negate) | (end_clause ^ 1);
        self.clause &= end_clause ^ 1;
        let kind = 1u32 << ((flags >> DENY_SHIFT) & 3);
        let new = kind & 0u32.wrapping_sub(self.row & end_row) & !self.found;
        self.found |= new;
        self.first[ALLOW] |= op.policy & 0u32.wrapping_sub((new >> ALLOW) & 1);
        self.first[DENY] |= op.policy & 0u32.wrapping_sub((new >> DENY) & 1);
        self.first[DRY_ALLOW] |= op.policy & 0u32.wrapping_sub((new >> DRY_ALLOW) & 1);
        self.first[DRY_DENY] |= op.policy & 0u32.wrapping_sub((new >> DRY_DENY) & 1);
        self.row |= end_row;
    }

    /// The decision after the last op.
    #[inline(always)]
    pub fn finish(self, flags: u32) -> Decision {
        let found = |kind: usize| self.found & (1 << kind) != 0;
        let has_allow = flags & HEADER_HAS_ALLOW != 0;
        let (allowed, policy) = if found(DENY) {
            (false, self.first[DENY])
        } else if found(ALLOW) {
            (true, self.first[ALLOW])
        } else {
            (!has_allow, 0)
        };
        let dry_run = if !allowed {
            0
        } else if found(DRY_DENY) {
            self.first[DRY_DENY]
        } else if flags & HEADER_HAS_DRY_ALLOW != 0 && !found(DRY_ALLOW) && !found(ALLOW) {
            NO_POLICY
        } else {
            0
        };
        Decision { allowed, policy, dry_run }
    }
}

const END_CLAUSE_SHIFT: u32 = OP_END_CLAUSE.trailing_zeros();
const END_ROW_SHIFT: u32 = OP_END_ROW.trailing_zeros();
const DENY_SHIFT: u32 = OP_DENY.trailing_zeros();
const _: () = assert!(OP_NEGATE == 1 && OP_DRY_RUN == OP_DENY << 1);

/// Evaluates a program of any length; `in_set` as in [`Walk::step`].
pub fn decide(header: &Header, ops: &[Op], facts: &Facts, in_set: impl Fn(u32) -> bool) -> Decision {
    let mut walk = Walk::new(header.zero);
    for op in ops.iter().take(header.len as usize) {
        walk.step(op, facts, &in_set);
    }
    walk.finish(header.flags)
}

/// Whether the range `addr` under `mask` contains `other`. No branches: see [`Op::mask`].
#[inline(always)]
pub fn contains(addr: &Addr, mask: &Addr, other: &Addr) -> bool {
    let ([a, b, c, d], [e, f, g, h], [i, j, k, l]) = (addr.to_be_v6(), mask.to_be_v6(), other.to_be_v6());
    ((a ^ i) & e) | ((b ^ j) & f) | ((c ^ k) & g) | ((d ^ l) & h) == 0
}
