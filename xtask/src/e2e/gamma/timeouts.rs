//! `timeouts` of a rule.

use anyhow::Result;

use super::case::{Case, Want, get};
use super::stage::{hold, parents, route};
use crate::e2e::bed::Bed;

const RULES: &str = "
    - {matches: [{path: {value: /request}}], timeouts: {request: 300ms}, backendRefs: [{name: v1, port: 80}]}
    - {matches: [{path: {value: /attempt}}], timeouts: {request: 3s, backendRequest: 300ms}, backendRefs: [{name: v2, port: 80}]}
    - {matches: [{path: {value: /alone}}], timeouts: {backendRequest: 300ms}, backendRefs: [{name: v2, port: 80}]}
    - {matches: [{path: {value: /off}}], timeouts: {request: 0s, backendRequest: 0s}, backendRefs: [{name: v1, port: 80}]}
    - {matches: [{path: {value: /none}}], backendRefs: [{name: v1, port: 80}]}
";

fn cases() -> Vec<Case> {
    vec![
        get("in time", "timeouts/request").by("v1"),
        get("a request takes too long", "timeouts/request?delay=900").refused(504).wants(Want::AtLeast(300)),
        get("an attempt takes too long", "timeouts/attempt?delay=900").refused(504).wants(Want::AtLeast(300)),
        get("an attempt takes too long, with no other bound", "timeouts/alone?delay=900").refused(504),
        get("an attempt in time", "timeouts/alone?delay=50").by("v2"),
        get("0s is no bound", "timeouts/off?delay=600").by("v1").wants(Want::AtLeast(600)),
        get("nothing said is no bound", "timeouts/none?delay=600").by("v1").wants(Want::AtLeast(600)),
    ]
}

pub fn timeouts(bed: &mut Bed) -> Result<String> {
    hold(bed, &(parents(&["timeouts"]) + &route("timeouts", RULES)), &cases())
}
