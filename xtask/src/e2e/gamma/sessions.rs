//! `sessionPersistence`: who was answered by a server is answered by it again.

use anyhow::Result;

use super::case::{Case, Want, get};
use super::stage::{hold, parents, route};
use crate::e2e::bed::Bed;

const RULES: &str = "
    - matches: [{path: {value: /cookie}}]
      sessionPersistence: {type: Cookie, sessionName: stay}
      backendRefs: [{name: sessions, port: 80}]
    - matches: [{path: {value: /header}}]
      sessionPersistence: {type: Header, sessionName: X-Stay}
      backendRefs: [{name: sessions, port: 80}]
    - matches: [{path: {value: /weighted}}]
      sessionPersistence: {type: Header, sessionName: X-Weighted}
      backendRefs: [{name: v1, port: 80}, {name: v2, port: 80}, {name: v3, port: 80}]
    - matches: [{path: {value: /drained}}]
      sessionPersistence: {type: Header, sessionName: X-Weighted}
      backendRefs: [{name: v1, port: 80, weight: 0}, {name: v2, port: 80, weight: 0}, {name: v3, port: 80, weight: 0}]
";

fn cases() -> Vec<Case> {
    vec![
        get("without a cookie anybody", "sessions/cookie").times(40).wants(Want::Among(&["v1", "v2", "v3"])),
        get("with the cookie the same", "sessions/cookie").carrying("set-cookie", "cookie").times(20).status(200).wants(Want::AsBefore),
        get("a cookie of nobody's is not heeded", "sessions/cookie").with("cookie", "stay=bm9ib2R5").status(200),
        get("without a header anybody", "sessions/header").times(40).wants(Want::Among(&["v1", "v2", "v3"])),
        get("with the header the same", "sessions/header").carrying("x-stay", "x-stay").times(20).status(200).wants(Want::AsBefore),
        get("over several backends anybody", "sessions/weighted").times(40).wants(Want::Among(&["v1", "v2", "v3"])),
        get("over several backends the same", "sessions/weighted")
            .carrying("x-weighted", "x-weighted")
            .times(20)
            .status(200)
            .wants(Want::AsBefore),
        get("a session outlives its backend's weight", "sessions/drained")
            .carrying("x-weighted", "x-weighted")
            .status(200)
            .wants(Want::AsBefore),
        get("nobody new comes to it", "sessions/drained").refused(500),
    ]
}

pub fn sessions(bed: &mut Bed) -> Result<String> {
    hold(bed, &(parents(&["sessions"]) + &route("sessions", RULES)), &cases())
}
