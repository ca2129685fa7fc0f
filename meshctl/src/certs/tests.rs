use super::*;

#[test]
fn the_table_says_until_when() {
    let certificate = |identity: &str, state: &str, not_after, last_error: Option<&str>| Certificate {
        identity: identity.into(),
        state: state.into(),
        not_after,
        failures: last_error.iter().count() as u32,
        last_error: last_error.map(str::to_owned),
        root: None,
        trusted: Vec::new(),
    };
    let reports = [Report {
        node: "n1".into(),
        certificates: vec![
            certificate("spiffe://cluster.local/ns/shop/sa/web", "ready", Some(1_000 + 7_500), None),
            certificate("spiffe://cluster.local/ns/shop/sa/db", "pending", None, Some("refused")),
        ],
        ..Report::default()
    }];
    let expected = "\
NODE  IDENTITY                               STATE    EXPIRES IN  FAILURES  LAST ERROR
n1    spiffe://cluster.local/ns/shop/sa/db   pending  -           1         refused
n1    spiffe://cluster.local/ns/shop/sa/web  ready    2h05m       0
";
    assert_eq!(render(&all(&reports), 1_000, false), expected);
    assert_eq!(render(&[], 0, false), "no certificates: no pod is in the mesh\n");
}

#[test]
fn spans_have_two_units() {
    assert_eq!([0, 59, 61, 3_600, 90_000].map(span), ["0s", "59s", "1m", "1h00m", "1d1h"]);
}
