use super::*;

#[test]
fn a_selector_wants_all_its_labels() {
    let labels = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect::<BTreeMap<_, _>>();
    let pod = labels(&[("app", "web"), ("tier", "front")]);
    assert!(selects(&labels(&[]), &pod));
    assert!(selects(&labels(&[("app", "web")]), &pod));
    assert!(!selects(&labels(&[("app", "web"), ("tier", "back")]), &pod));
    assert!(!selects(&labels(&[("zone", "")]), &pod));
}
