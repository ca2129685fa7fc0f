//! The verdict of the kernel and the agent: programs of rows, clauses and atoms decide as the same rows written as nested lists, and no
//! op, however broken, panics.
#![no_main]

use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use mesh_common::addr::Addr;
use mesh_common::policy::*;
use mesh_common::verdict::{Decision, NO_POLICY, decide};

#[derive(Arbitrary, Debug)]
struct Atom {
    kind: u8,
    arg: u8,
    address: [u8; 4],
    prefix: u8,
}

#[derive(Arbitrary, Debug)]
struct Row {
    clauses: Vec<(bool, Vec<Atom>)>,
    deny: bool,
    dry_run: bool,
    policy: u8,
}

#[derive(Arbitrary, Debug)]
struct Case {
    rows: Vec<Row>,
    has_allow: bool,
    has_dry_allow: bool,
    source: [u8; 4],
    destination: [u8; 4],
    port: u8,
    identified: bool,
    /// The sets that the source is in, a bit each.
    sets: u64,
    /// Ops as they come.
    broken: Vec<Broken>,
}

#[derive(Arbitrary, Debug)]
struct Broken {
    atom: u8,
    flags: u8,
    arg: u32,
    policy: u32,
    addr: [u8; 16],
    mask: [u8; 16],
}

/// Whether the first bits of two addresses are the same, one by one; the mapped IPv4 addresses have 96 bits before theirs.
fn within(range: [u8; 4], prefix: u8, address: [u8; 4]) -> bool {
    let bit = |bytes: [u8; 4], at: u8| u32::from_be_bytes(bytes) >> (31 - u32::from(at)) & 1;
    (0..prefix.min(128).saturating_sub(96)).all(|at| bit(range, at) == bit(address, at))
}

impl Case {
    fn holds(&self, atom: &Atom, deny: bool) -> bool {
        match atom.kind {
            ATOM_TRUE => true,
            ATOM_FALSE => false,
            ATOM_IDENTITY => self.identified && self.sets >> (atom.arg % 64) & 1 == 1,
            ATOM_SOURCE_CIDR => within(atom.address, atom.prefix, self.source),
            ATOM_DESTINATION_CIDR => within(atom.address, atom.prefix, self.destination),
            ATOM_PORT => atom.arg == self.port,
            _ => deny,
        }
    }

    fn model(&self) -> Decision {
        let matches = |row: &Row| {
            let mut clauses = row.clauses.iter().filter(|(_, atoms)| !atoms.is_empty());
            clauses.all(|(negated, atoms)| atoms.iter().any(|atom| self.holds(atom, row.deny)) != *negated)
        };
        let first = |deny: bool, dry_run: bool| {
            let mut rows = self.rows.iter().filter(|row| row.deny == deny && row.dry_run == dry_run && row.is_written());
            rows.find(|row| matches(row)).map(|row| u32::from(row.policy))
        };
        let (deny, allow) = (first(true, false), first(false, false));
        let allowed = deny.is_none() && (allow.is_some() || !self.has_allow);
        let dry_run = match (allowed, first(true, true)) {
            (false, _) => 0,
            (true, Some(policy)) => policy,
            (true, None) if self.has_dry_allow && allow.is_none() && first(false, true).is_none() => NO_POLICY,
            (true, None) => 0,
        };
        Decision { allowed, policy: deny.or(allow).unwrap_or(0), dry_run }
    }

    fn ops(&self) -> Vec<Op> {
        let mut ops: Vec<Op> = Vec::new();
        for row in &self.rows {
            let row_flags = if row.deny { OP_DENY } else { 0 } | if row.dry_run { OP_DRY_RUN } else { 0 };
            let begun = ops.len();
            for (negated, atoms) in row.clauses.iter().filter(|(_, atoms)| !atoms.is_empty()) {
                ops.extend(atoms.iter().map(|atom| Op {
                    atom: atom.kind,
                    flags: row_flags,
                    arg: u32::from(if atom.kind == ATOM_IDENTITY { atom.arg % 64 } else { atom.arg }),
                    policy: u32::from(row.policy),
                    addr: Addr::v4(atom.address),
                    mask: Addr::mask(atom.prefix.min(128)),
                    ..Op::default()
                }));
                if let Some(last) = ops.last_mut() {
                    last.flags |= OP_END_CLAUSE | if *negated { OP_NEGATE } else { 0 };
                }
            }
            if let Some(last) = ops.get_mut(begun..).and_then(<[Op]>::last_mut) {
                last.flags |= OP_END_ROW;
            }
        }
        ops
    }
}

impl Row {
    /// A row without an atom is no op, and so says nothing.
    fn is_written(&self) -> bool {
        self.clauses.iter().any(|(_, atoms)| !atoms.is_empty())
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(case) = Case::arbitrary_take_rest(Unstructured::new(bytes)) else { return };
    let facts = Facts {
        source: Addr::v4(case.source),
        destination: Addr::v4(case.destination),
        port: u32::from(case.port),
        identified: u32::from(case.identified),
    };
    let in_set = |set: u32| case.sets >> (set % 64) & 1 == 1;
    let flags = if case.has_allow { HEADER_HAS_ALLOW } else { 0 } | if case.has_dry_allow { HEADER_HAS_DRY_ALLOW } else { 0 };
    let run = |ops: &[Op]| decide(&Header { len: u32::try_from(ops.len()).unwrap_or(u32::MAX), flags, zero: 0 }, ops, &facts, in_set);
    let mut ops = case.ops();
    assert_eq!(run(&ops), case.model(), "{case:?}");
    let broken = case.broken.iter().map(|broken| Op {
        atom: broken.atom,
        flags: broken.flags,
        arg: broken.arg,
        policy: broken.policy,
        addr: Addr(broken.addr),
        mask: Addr(broken.mask),
        ..Op::default()
    });
    ops.extend(broken);
    let decision = run(&ops);
    // What is allowed without a row's word is so only where no ALLOW policy is in force.
    assert!(!decision.allowed || !case.has_allow || ops.iter().any(|op| op.flags & OP_END_ROW != 0), "{case:?}");
});
