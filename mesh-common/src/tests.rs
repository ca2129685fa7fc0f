use crate::addr::{Addr, Endpoint};
use crate::policy::*;
use crate::verdict::*;

fn op(atom: u8, flags: u8, arg: u32, policy: u32) -> Op {
    Op { atom, flags, arg, policy, ..Op::default() }
}

const LAST: u8 = OP_END_CLAUSE | OP_END_ROW;

fn run(flags: u32, ops: &[Op], facts: &Facts, sets: &[u32]) -> Decision {
    decide(&Header { len: ops.len() as u32, flags, zero: 0 }, ops, facts, |s| sets.contains(&s))
}

#[test]
fn addresses_round_trip() {
    let a = Addr::v4([10, 1, 2, 3]);
    assert!(a.is_v4() && Addr::from_be_v4(a.to_be_v4()) == a && Addr::from_be_v6(a.to_be_v6()) == a);
    assert!(Addr::v4([127, 9, 9, 9]).is_loopback() && !a.is_loopback());
    let mut one = [0; 16];
    one[15] = 1;
    assert!(Addr(one).is_loopback() && Addr([0; 16]).is_unspecified() && Addr::v4([0; 4]).is_unspecified());
    assert_eq!(Endpoint::new(a, 15008).port.0, [0x3a, 0xa0]);
}

#[test]
fn no_policy_allows_and_an_empty_allow_denies() {
    let f = Facts::default();
    assert!(run(0, &[], &f, &[]).allowed);
    assert!(!run(HEADER_HAS_ALLOW, &[], &f, &[]).allowed);
}

#[test]
fn deny_wins_over_allow_and_names_itself() {
    let f = Facts { identified: 1, ..Facts::default() };
    let ops = [op(ATOM_TRUE, LAST, 0, 1), op(ATOM_IDENTITY, LAST | OP_DENY, 7, 2)];
    assert_eq!(run(HEADER_HAS_ALLOW, &ops, &f, &[]).policy, 1);
    let d = run(HEADER_HAS_ALLOW, &ops, &f, &[7]);
    assert_eq!((d.allowed, d.policy), (false, 2));
}

#[test]
fn an_absent_identity_matches_no_set_and_every_negation() {
    let f = Facts::default();
    let positive = [op(ATOM_IDENTITY, LAST, 7, 1)];
    let negative = [op(ATOM_IDENTITY, LAST | OP_NEGATE, 7, 1)];
    assert!(!run(HEADER_HAS_ALLOW, &positive, &f, &[7]).allowed);
    assert!(run(HEADER_HAS_ALLOW, &negative, &f, &[7]).allowed);
}

#[test]
fn clauses_are_anded_and_atoms_ored() {
    let ops = [
        op(ATOM_PORT, 0, 80, 0),
        op(ATOM_PORT, OP_END_CLAUSE, 443, 0),
        Op { mask: Addr::mask(96 + 8), addr: Addr::v4([10, 0, 0, 0]), ..op(ATOM_SOURCE_CIDR, LAST, 0, 3) },
    ];
    let f = |port, ip| Facts { port, source: Addr::v4(ip), ..Facts::default() };
    assert!(run(HEADER_HAS_ALLOW, &ops, &f(443, [10, 9, 9, 9]), &[]).allowed);
    assert!(!run(HEADER_HAS_ALLOW, &ops, &f(443, [11, 9, 9, 9]), &[]).allowed);
    assert!(!run(HEADER_HAS_ALLOW, &ops, &f(81, [10, 9, 9, 9]), &[]).allowed);
}

#[test]
fn dry_run_never_changes_the_outcome_but_is_named() {
    let f = Facts::default();
    let d = run(0, &[op(ATOM_TRUE, LAST | OP_DENY | OP_DRY_RUN, 0, 5)], &f, &[]);
    assert_eq!((d.allowed, d.dry_run), (true, 5));
    let d = run(HEADER_HAS_DRY_ALLOW, &[op(ATOM_FALSE, LAST | OP_DRY_RUN, 0, 6)], &f, &[]);
    assert_eq!((d.allowed, d.dry_run), (true, NO_POLICY));
}

#[test]
fn an_unknown_atom_denies() {
    let f = Facts::default();
    assert!(!run(0, &[op(200, LAST | OP_DENY, 0, 9)], &f, &[]).allowed);
    assert!(!run(HEADER_HAS_ALLOW, &[op(200, LAST, 0, 9)], &f, &[]).allowed);
}

proptest::proptest! {
    #[test]
    fn ranges_agree_with_arithmetic(range: u128, addr: u128, prefix in 0u8..=128) {
        let mask = if prefix == 0 { 0 } else { u128::MAX << (128 - prefix) };
        let want = (range & mask) == (addr & mask);
        let close = (range & mask) | (addr & !mask);
        assert_eq!(contains(&Addr(range.to_be_bytes()), &Addr::mask(prefix), &Addr(addr.to_be_bytes())), want);
        assert!(contains(&Addr(range.to_be_bytes()), &Addr::mask(prefix), &Addr(close.to_be_bytes())));
    }
}
