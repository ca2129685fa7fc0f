//! mTLS modes → rows of the program of [`mesh_common::policy`], so that one walk says whether a client without an identity may connect.

use mesh_common::policy::{ATOM_PORT, ATOM_TRUE, OP_DENY, OP_END_CLAUSE, OP_END_ROW, OP_NEGATE, Op};

use crate::policy::{MtlsMode, MtlsModes};

/// At most one row, which denies where STRICT demands mTLS. It belongs to policy number 0: who demands it is in the modes.
pub fn strict_row(modes: &MtlsModes) -> Vec<Op> {
    let strict = modes.all.mode == MtlsMode::Strict;
    // The ports that are not as all others.
    let others = modes.ports.iter().filter(|(_, port)| (port.mode == MtlsMode::Strict) != strict);
    let mut row: Vec<Op> = others.map(|(port, _)| Op { atom: ATOM_PORT, arg: u32::from(*port), flags: OP_DENY, ..Op::default() }).collect();
    match (strict, row.last_mut()) {
        (_, Some(last)) => last.flags |= OP_END_CLAUSE | OP_END_ROW | if strict { OP_NEGATE } else { 0 },
        (true, None) => row.push(Op { atom: ATOM_TRUE, flags: OP_DENY | OP_END_CLAUSE | OP_END_ROW, ..Op::default() }),
        (false, None) => {}
    }
    row
}

#[cfg(test)]
mod tests;
