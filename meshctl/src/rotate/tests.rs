use super::*;

fn certificate(root: &str, trusted: &[&str]) -> Certificate {
    Certificate {
        identity: "spiffe://cluster.local/ns/shop/sa/web".into(),
        state: "ready".into(),
        not_after: Some(1),
        failures: 0,
        last_error: None,
        root: Some(root.into()),
        trusted: trusted.iter().map(|root| (*root).to_owned()).collect(),
    }
}

fn node(name: &str, certificates: Vec<Certificate>) -> Report {
    Report { node: name.into(), pod: format!("agent-{name}"), version: Some("1".into()), certificates, ..Report::default() }
}

fn why(reports: &[Report], step: Step) -> Vec<String> {
    let state = State { old: Some("old".into()), new: Some("new".into()), ..State::default() };
    behind(reports, |certificate| not_ready(certificate, step, &state)).into_iter().map(|behind| behind.why).collect()
}

#[test]
fn the_new_root_signs_only_once_every_agent_knows_it() {
    let reports = [node("n1", vec![certificate("old", &["old", "new"])]), node("n2", vec![certificate("old", &["old"])])];
    assert_eq!(why(&reports, Step::Activate), ["node n2: spiffe://cluster.local/ns/shop/sa/web does not know the new root yet"]);
    assert_eq!(why(&reports[..1], Step::Activate), [""; 0]);
}

#[test]
fn the_old_root_goes_only_once_nothing_is_below_it() {
    let reports = [node("n1", vec![certificate("new", &["new", "old"])]), node("n2", vec![certificate("old", &["new", "old"])])];
    assert_eq!(why(&reports, Step::Revoke), ["node n2: spiffe://cluster.local/ns/shop/sa/web is not below the new root yet"]);
    assert_eq!(why(&reports[..1], Step::Revoke), [""; 0]);
}

#[test]
fn a_root_that_nobody_knows_of_is_not_the_new_one() {
    let unknown = Certificate { root: None, ..certificate("new", &["new"]) };
    assert_eq!(why(&[node("n1", vec![unknown])], Step::Revoke).len(), 1);
    assert_eq!(why(&[node("n1", vec![certificate("third", &["new"])])], Step::Revoke).len(), 1);
    assert!(not_ready(&certificate("new", &["new"]), Step::Revoke, &State::default()).is_some(), "mesh-control has not said which");
}

#[test]
fn an_agent_that_does_not_answer_or_has_no_certificate_holds_it_up() {
    let silent = Report { node: "n3".into(), awaited: Some("CrashLoopBackOff".into()), ..Report::default() };
    let pending = Certificate { state: "pending".into(), last_error: Some("refused".into()), ..certificate("old", &["new"]) };
    let reports = [silent, node("n4", vec![pending])];
    let expected = [
        "node n3: its agent does not answer: CrashLoopBackOff; if the node is lost, go on with --without n3",
        "node n4: spiffe://cluster.local/ns/shop/sa/web has no certificate: refused",
    ];
    assert_eq!(why(&reports, Step::Activate), expected);
    assert_eq!(why(&reports, Step::Revoke), expected);
}

#[test]
fn an_answer_is_read_as_mesh_control_writes_it() {
    let text =
        r#"{"request":"a","refused":"why","retryAfter":7,"state":{"phase":"prepared","since":5,"request":"b","old":"00","new":"11"}}"#;
    let answer: Answer = serde_json::from_str(text).unwrap();
    assert_eq!((answer.retry_after, answer.state.phase, answer.state.phase.next()), (Some(7), Phase::Prepared, Step::Activate));
    assert_eq!(
        describe(&answer.state, 65),
        "prepared: a new root is trusted beside the old one, which signs\nsince 1m\nold root sha256:00\nnew root sha256:11\nnext: meshctl certs rotate activate\n"
    );
}
