use mesh_lab::ask::Answered;
use mesh_lab::peer::HttpSeen;

use super::judge;
use crate::e2e::gamma::case::{Case, Want, get};

fn by(name: &str) -> Answered {
    let seen = HttpSeen {
        name: name.into(),
        method: "GET".into(),
        target: "/a".into(),
        host: "h".into(),
        version: "HTTP/1.1".into(),
        headers: vec![("x".into(), "1".into()), ("x".into(), "2".into())],
        trailers: Vec::new(),
        body: 0,
        total: 1,
        about: 0,
    };
    Answered { status: 200, body: serde_json::to_string(&seen).unwrap(), ..Answered::default() }
}

fn holds(case: Case, answers: Vec<Answered>) -> bool {
    judge(&[case], &[answers]).is_empty()
}

#[test]
fn each_want_can_be_met_and_missed() {
    let located = Answered { status: 302, headers: vec![("location".into(), "http://a/".into())], ..Answered::default() };
    for (want, good, bad) in [
        (Want::Status(200), by("v1"), located.clone()),
        (Want::By("v1"), by("v1"), by("v2")),
        (Want::ByNobody, located.clone(), by("v1")),
        (Want::Header("location", "http://a/".into()), located.clone(), by("v1")),
        (Want::NoHeader("location"), by("v1"), located.clone()),
        (Want::Target("/a".into()), by("v1"), located.clone()),
        (Want::Host("h"), by("v1"), located.clone()),
        (Want::Seen("x", "1,2"), by("v1"), located.clone()),
        (Want::NotSeen("y"), by("v1"), located.clone()),
        (Want::Body(0), by("v1"), located.clone()),
        (Want::Version("HTTP/1.1"), by("v1"), located.clone()),
        (Want::AtLeast(0), by("v1"), by("v1")),
    ] {
        assert!(holds(get("w", "h/a").wants(want.clone()), vec![good]), "{want:?}");
        // No answer at all meets only that nobody answered.
        let missed = !holds(get("w", "h/a").wants(want.clone()), vec![bad]);
        assert_eq!(missed, !matches!(want, Want::NotSeen(_) | Want::AtLeast(0)), "{want:?}");
    }
    assert!(!holds(get("w", "h/a").wants(Want::NotSeen("x")), vec![by("v1")]));
    assert!(!holds(get("w", "h/a").wants(Want::AtLeast(5)), vec![by("v1")]));
    assert!(!holds(get("w", "h/a"), Vec::new()), "no answer is no success");
}

#[test]
fn shares_may_be_off_a_little_and_none_is_none() {
    let answers = |v1: usize, v2: usize| [vec![by("v1"); v1], vec![by("v2"); v2]].concat();
    let shares = |wanted| get("w", "h/a").wants(Want::Shares(wanted));
    assert!(holds(shares(&[("v1", 70), ("v2", 30)]), answers(74, 26)));
    assert!(!holds(shares(&[("v1", 70), ("v2", 30)]), answers(76, 24)));
    assert!(!holds(shares(&[("v1", 100), ("v2", 0)]), answers(99, 1)));
    assert!(!holds(shares(&[("v1", 96)]), answers(96, 4)), "a server of which nobody spoke");
    assert!(holds(get("w", "h/a").wants(Want::Among(&["v1", "v2"])), answers(1, 9)));
    assert!(!holds(get("w", "h/a").wants(Want::Among(&["v1", "v2"])), answers(0, 9)));
}

#[test]
fn the_same_server_is_the_one_before() {
    let cases = [get("w", "h/a"), get("w", "h/a").wants(Want::AsBefore)];
    assert_eq!(judge(&cases, &[vec![by("v1")], vec![by("v1"), by("v1")]]), Vec::<String>::new());
    let wrong = judge(&cases, &[vec![by("v1")], vec![by("v1"), by("v2")]]);
    assert!(wrong[0].contains("number 2 of 2") && wrong[0].contains("GET http://h/a"), "{wrong:?}");
    assert_eq!(judge(&cases, &[vec![by("v1")]]).len(), 1);
}
