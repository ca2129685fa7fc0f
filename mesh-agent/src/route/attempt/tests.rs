use super::*;
use crate::outcome::ConnectFailure;

#[test]
fn of_a_dial_that_many_waited_for_only_who_dialled_tells() {
    let refused = || Outcome::ConnectFailed { failure: ConnectFailure::Refused, detail: "refused".into() };
    let dialled = Failed::to_connect(refused(), Some(Observation::LocalFailure));
    let waited = Failed::from(Unready::Failed(refused()));
    assert_eq!((dialled.failure, waited.failure), (Some(Failure::Connect), Some(Failure::Connect)), "both may try elsewhere");
    assert!(dialled.observation.is_some() && waited.observation.is_none());
    assert!(!waited.stale);
}

#[test]
fn too_many_who_wait_are_refused_as_such_whatever_they_wait_for() {
    let failed = Failed::from(Unready::Overflow);
    assert!(matches!(failed.outcome, Outcome::Request(RequestFailure::Overflow { bound: "http1MaxPendingRequests" })));
    assert!(failed.failure.is_none() && failed.observation.is_none(), "another server is no help, and this one is not to blame");
}
