use super::*;

fn set(namespace: &str) -> IdentityMatch {
    IdentityMatch::new(vec![vec![IdentityPattern::Namespace(namespace.parse().unwrap())]], vec![])
}

#[test]
fn equal_sets_have_one_number_while_somebody_holds_them() {
    let mut interner = SetInterner::default();
    let (a, held) = interner.intern(set("a"));
    let (b, _) = interner.intern(set("b"));
    assert_ne!(a, b);
    assert_eq!(interner.intern(set("a")).0, a);
    assert_eq!(interner.sweep(), [b]);
    assert_eq!(interner.intern(set("a")).0, a);
    assert_ne!(interner.intern(set("b")).0, a);
    drop(held);
    let mut gone = interner.sweep();
    gone.sort();
    assert_eq!(gone.len(), 2);
    assert_eq!(interner.iter().count(), 0);
}

#[test]
fn all_lists_must_match_and_none_of_the_others() {
    let namespaces = |list: &[&str]| list.iter().map(|n| IdentityPattern::Namespace(n.parse().unwrap())).collect::<Vec<_>>();
    let set = IdentityMatch::new(vec![namespaces(&["a*", "b"]), namespaces(&["*x", "b"])], namespaces(&["aax"]));
    let is_in = |ns: &str| set.matches(&Identity::new(Default::default(), ns, "s").unwrap());
    assert!(is_in("ax") && is_in("b") && !is_in("a") && !is_in("x") && !is_in("aax"));
}
