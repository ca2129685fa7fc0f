use super::*;

#[test]
fn a_number_is_kept_and_never_given_again() {
    let mut n = Numbers::new(base(7));
    let (a, b) = (n.number(&"a"), n.number(&"b"));
    assert!(a != b && a > ROOM);
    assert_eq!(n.number(&"a"), a);
    assert_eq!(n.key(b), Some(&"b"));
    n.retain(|k| *k != "a");
    assert_eq!((n.key(a), n.get(&"a")), (None, None));
    assert!(n.number(&"a") > b);
}

#[test]
fn bases_leave_room() {
    for random in [0, 1, 4093, 4094, u32::MAX] {
        let b = base(random);
        assert!(b >= ROOM && b.checked_add(ROOM).is_some());
    }
}
