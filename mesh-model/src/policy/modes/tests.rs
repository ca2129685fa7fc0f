use super::*;
use MtlsMode::{Disable, Permissive, Strict};

fn peer(name: &str, selector: &[(&str, &str)], mode: Option<MtlsMode>) -> PeerAuthentication {
    PeerAuthentication {
        name: NamespacedName { namespace: "shop".into(), name: name.into() },
        created: None,
        selector: selector.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
        mode,
        ports: BTreeMap::new(),
        refused: None,
    }
}

fn modes(mesh: Vec<PeerAuthentication>, namespace: Vec<PeerAuthentication>) -> MtlsModes {
    let shared = |list: Vec<PeerAuthentication>| list.into_iter().map(Arc::new).collect::<Vec<_>>();
    let labels = [("app".to_string(), "web".to_string())].into();
    MtlsModes::of(&shared(mesh), &shared(namespace), &labels, Permissive)
}

const WEB: &[(&str, &str)] = &[("app", "web")];

#[test]
fn narrower_levels_win_and_unset_inherits() {
    assert_eq!(modes(vec![], vec![]).on(80).mode, Permissive);
    assert_eq!(modes(vec![peer("m", &[], Some(Strict))], vec![]).on(80).mode, Strict);
    assert_eq!(modes(vec![peer("m", &[], Some(Strict))], vec![peer("n", &[], Some(Disable))]).on(80).mode, Disable);
    assert_eq!(modes(vec![peer("m", &[], Some(Strict))], vec![peer("n", &[], None)]).on(80).mode, Strict);
    let all = modes(vec![peer("m", &[], Some(Permissive))], vec![peer("n", &[], Some(Disable)), peer("w", WEB, Some(Strict))]);
    assert_eq!(all.on(80).mode, Strict);
    assert_eq!(&*all.on(80).by.as_ref().unwrap().name, "w");
    let other = modes(vec![], vec![peer("w", &[("app", "db")], Some(Strict))]);
    assert_eq!(other.on(80), &PortMode { mode: Permissive, by: None });
}

#[test]
fn ports_have_modes_of_their_own() {
    let mut web = peer("w", WEB, Some(Strict));
    web.ports = [(8080, Some(Disable)), (9090, None)].into();
    let modes = modes(vec![], vec![web]);
    assert_eq!([80, 8080, 9090].map(|port| modes.on(port).mode), [Strict, Disable, Strict]);
}

#[test]
fn of_several_the_oldest_counts_then_the_first_by_name() {
    let aged = |name, created, mode| PeerAuthentication { created, ..peer(name, WEB, Some(mode)) };
    assert_eq!(modes(vec![], vec![aged("a", Some(20), Disable), aged("b", Some(10), Strict)]).on(1).mode, Strict);
    assert_eq!(modes(vec![], vec![aged("b", None, Strict), aged("a", None, Disable)]).on(1).mode, Disable);
    assert_eq!(modes(vec![], vec![aged("a", None, Disable), aged("b", Some(10), Strict)]).on(1).mode, Strict);
}

#[test]
fn one_not_understood_is_strict_whatever_a_narrower_one_says() {
    let refused = PeerAuthentication { refused: Some("why".into()), ..peer("r", &[], None) };
    let mut web = peer("w", WEB, Some(Disable));
    web.ports = [(8080, Some(Disable))].into();
    let modes = modes(vec![], vec![web, refused]);
    assert_eq!([80, 8080].map(|port| modes.on(port).mode), [Strict, Strict]);
    assert_eq!(&*modes.on(80).by.as_ref().unwrap().name, "r");
}

#[test]
fn a_selector_of_the_root_namespace_reaches_no_other_namespace() {
    assert_eq!(modes(vec![peer("m", WEB, Some(Disable))], vec![]).on(80).by, None);
}
