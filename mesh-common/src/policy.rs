//! A workload's authorization policies, compiled to a list that the kernel can walk.
//!
//! A program is a disjunction of *rows*; a row is a conjunction of *clauses*; a clause is a (possibly negated) disjunction of atoms.
//! Rows of DENY policies and of ALLOW policies stand in one list, each row's last op names its action and policy. Patterns over the
//! source's identity are folded into numbered *identity sets* by user space: in the kernel a set is a list of numbers, in the agent
//! the patterns themselves; both answer the same question, "is this identity in set S?".

use crate::addr::Addr;
use crate::names::MAX_OPS;

/// Matches everything.
pub const ATOM_TRUE: u8 = 0;
/// Matches nothing (HTTP fields of an ALLOW rule on a TCP connection; anything not understood in an ALLOW rule).
pub const ATOM_FALSE: u8 = 1;
/// The source has an identity and it is in set [`Op::arg`].
pub const ATOM_IDENTITY: u8 = 2;
/// The source address is in the range [`Op::addr`] under [`Op::mask`].
pub const ATOM_SOURCE_CIDR: u8 = 3;
/// The destination address is in the range.
pub const ATOM_DESTINATION_CIDR: u8 = 4;
/// The destination port is [`Op::arg`].
pub const ATOM_PORT: u8 = 5;

/// [`Op::flags`]: the clause's result is inverted (on the clause's last op).
pub const OP_NEGATE: u8 = 1;
/// Last atom of its clause.
pub const OP_END_CLAUSE: u8 = 1 << 1;
/// Last atom of its row.
pub const OP_END_ROW: u8 = 1 << 2;
/// The row belongs to a DENY policy (else ALLOW); on the row's last op.
pub const OP_DENY: u8 = 1 << 3;
/// The row belongs to a policy in dry run; on the row's last op.
pub const OP_DRY_RUN: u8 = 1 << 4;

/// One atom, 44 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Op {
    /// One of `ATOM_*`.
    pub atom: u8,
    /// `OP_*` bits.
    pub flags: u8,
    /// Zero.
    pub pad: [u8; 2],
    /// Set, or port.
    pub arg: u32,
    /// Number of the policy that the row belongs to, for the log; on the row's last op.
    pub policy: u32,
    /// A range's address.
    pub addr: Addr,
    /// A range's mask over the mapped 128 bits ([`Addr::mask`]); spelt out, because a loop over a prefix length would make the kernel's
    /// verifier walk every length.
    pub mask: Addr,
}

/// [`Header::flags`]: at least one enforced ALLOW policy applies, so what no row allows is denied.
pub const HEADER_HAS_ALLOW: u32 = 1;
/// At least one ALLOW policy in dry run applies.
pub const HEADER_HAS_DRY_ALLOW: u32 = 1 << 1;

/// What stands before the ops.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Header {
    /// Number of ops in force.
    pub len: u32,
    /// `HEADER_*` bits.
    pub flags: u32,
    /// Zero; see [`crate::verdict::Walk`].
    pub zero: u32,
}

/// Value of `POLICIES`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Program {
    /// Length and flags.
    pub header: Header,
    /// The first [`Header::len`] count.
    pub ops: [Op; MAX_OPS],
}

/// Key of `IDENTITY_SETS`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Member {
    /// The set.
    pub set: u32,
    /// Node-local number of an identity.
    pub identity: u32,
}

/// The facts of a connection that L4 policy can see.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Facts {
    /// The client's address.
    pub source: Addr,
    /// The server's (pod) address.
    pub destination: Addr,
    /// The server's port, host order.
    pub port: u32,
    /// Whether the source has an identity: 1 or 0.
    pub identified: u32,
}

/// What a test or `explain` asks the kernel's copy of the verdict.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Question {
    /// The facts.
    pub facts: Facts,
    /// Key in `POLICIES`.
    pub program: u32,
    /// Source identity number, 0 for none.
    pub identity: u32,
}

/// The kernel's answer, written behind the [`Question`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Answer {
    /// 1 or 0; [`Answer::NO_PROGRAM`] where the program does not exist.
    pub allowed: u32,
    /// [`crate::verdict::Decision::policy`].
    pub policy: u32,
    /// [`crate::verdict::Decision::dry_run`].
    pub dry_run: u32,
}

impl Answer {
    /// [`Answer::allowed`]: nothing was judged.
    pub const NO_PROGRAM: u32 = 2;
}
