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

#[test]
fn a_base_leads_to_no_number_in_use() {
    let taken = HashSet::from([block(base(7)), block(base(8) + 3), block(base(4093))]);
    assert_eq!(base_beside(6, &taken), base(6));
    assert_eq!(base_beside(7, &taken), base(9));
    assert_eq!(base_beside(4093, &taken), base(0), "round to the first");
    let all = (0..=u32::MAX / ROOM).collect();
    assert_eq!(base_beside(7, &all), base(7));
}
