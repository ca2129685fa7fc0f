use super::*;

const ALL: [Stage; 3] = [Stage::Queued, Stage::Dialling, Stage::Sent];

fn deadlines(rule: Option<u64>, client: Option<u64>) -> Deadlines {
    let start = Instant::now();
    let at = |millis: Option<u64>| millis.map(|millis| start + Duration::from_millis(millis));
    Deadlines { rule: at(rule), client: at(client) }
}

#[test]
fn an_endpoint_is_blamed_for_the_rules_deadline_once_it_owes_something() {
    for (rule, client) in [(Some(5), None), (Some(5), Some(6)), (Some(5), Some(5))] {
        let blamed = |whole: bool| ALL.map(|stage| deadlines(rule, client).passed(stage, whole).is_some());
        assert_eq!(blamed(true), [false, true, true], "not for a wait of our own");
        assert_eq!(blamed(false), [false, true, false], "nor for a client that sends slowly");
    }
}

#[test]
fn an_endpoint_is_never_blamed_for_a_deadline_of_the_client() {
    for (rule, client) in [(None, Some(0)), (Some(5), Some(0)), (Some(5), Some(4))] {
        for stage in ALL {
            assert_eq!(deadlines(rule, client).passed(stage, true), None, "{rule:?} {client:?} {stage:?}");
        }
    }
}

#[test]
fn the_time_for_an_attempt_is_the_rules() {
    let began = Instant::now();
    let later = |millis: u64| Some(began + Duration::from_millis(millis));
    let of = |rule, client, timeout: Option<u64>| Deadlines { rule, client }.of_attempt(began, timeout.map(Duration::from_millis));
    assert_eq!(of(None, later(9), Some(3)), Deadlines { rule: later(3), client: later(9) });
    assert_eq!(of(None, later(9), Some(3)).first(), later(3));
    assert_eq!(of(later(2), None, Some(3)).first(), later(2));
    assert_eq!(of(None, later(9), None), Deadlines { rule: None, client: later(9) });
    assert_eq!(of(None, None, None).first(), None);
}

#[test]
fn what_only_waited_is_not_said_to_have_been_asked() {
    let name = |outcome: &Outcome| (outcome.meaning().name, outcome.http_status().as_u16(), outcome.grpc_status());
    let told = ALL.map(|stage| name(&stage.timed_out()));
    assert_eq!(told, [("request_queue_timeout", 504, 4), ("request_timeout", 504, 4), ("request_timeout", 504, 4)]);
    for stage in ALL {
        assert_eq!(too_late(stage.timed_out()), stage.timed_out());
    }
    assert_eq!(too_late(Outcome::NoEndpoint), Stage::Sent.timed_out(), "its time is over whatever the last attempt met");
}
