//! `RequestMirror`: how many copies arrive, by the count of the server that gets them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mesh_lab::ask::Asked;

use super::case::{Case, get, request};
use super::stage::{CONSISTENT, PRODUCER, ask, fresh, hold, parents, route};
use crate::e2e::bed::Bed;

const RULES: &str = "
    - matches: [{path: {value: /all}}]
      filters: [{type: RequestMirror, requestMirror: {backendRef: {name: shadow, port: 80}}}]
      backendRefs: [{name: v1, port: 80}]
    - matches: [{path: {value: /two}}]
      filters:
        - {type: RequestMirror, requestMirror: {backendRef: {name: shadow, port: 80}}}
        - {type: RequestMirror, requestMirror: {backendRef: {name: v3, port: 80}}}
      backendRefs: [{name: v1, port: 80}]
    - matches: [{path: {value: /none}}]
      filters: [{type: RequestMirror, requestMirror: {backendRef: {name: shadow, port: 80}, percent: 0}}]
      backendRefs: [{name: v1, port: 80}]
    - matches: [{path: {value: /half}}]
      filters: [{type: RequestMirror, requestMirror: {backendRef: {name: shadow, port: 80}, percent: 50}}]
      backendRefs: [{name: v1, port: 80}]
    - matches: [{path: {value: /quarter}}]
      filters: [{type: RequestMirror, requestMirror: {backendRef: {name: shadow, port: 80}, fraction: {numerator: 1, denominator: 4}}}]
      backendRefs: [{name: v1, port: 80}]
    - matches: [{path: {value: /lost}}]
      filters: [{type: RequestMirror, requestMirror: {backendRef: {name: missing, port: 80}}}]
      backendRefs: [{name: v1, port: 80}]
    - matches: [{path: {value: /backend}}]
      backendRefs:
        - {name: v1, port: 80, filters: [{type: RequestMirror, requestMirror: {backendRef: {name: shadow, port: 80}}}]}
    - matches: [{path: {value: /slow}}]
      filters: [{type: RequestMirror, requestMirror: {backendRef: {name: shadow, port: 80}}}]
      backendRefs: [{name: v1, port: 80}]
";

/// Requests of a path, the server that gets copies, and how many it must have had: at least and at most. Of shares three standard
/// deviations more or less.
const COPIES: &[(&str, u32, &str, u64, u64)] = &[
    ("all", 20, "shadow", 20, 20),
    ("two", 20, "shadow", 20, 20),
    ("two", 0, "v3", 20, 20),
    ("none", 50, "shadow", 0, 0),
    ("half", 200, "shadow", 79, 121),
    ("quarter", 200, "shadow", 32, 68),
    ("backend", 20, "shadow", 20, 20),
];

fn cases() -> Vec<Case> {
    vec![
        get("the answer is the server's", "mirrors/all/x").times(20).by("v1"),
        get("two copies", "mirrors/two/x").times(20).by("v1"),
        get("no copy", "mirrors/none/x").times(20).by("v1"),
        get("half of them", "mirrors/half/x").times(20).by("v1"),
        get("a quarter of them", "mirrors/quarter/x").times(20).by("v1"),
        get("a copy that leads nowhere is none", "mirrors/lost/x").times(20).by("v1"),
        get("of a backend", "mirrors/backend/x").times(20).by("v1"),
        get("a copy's answer is nobody's", "mirrors/all/x?status=418&only=shadow").by("v1"),
        get("nobody waits for a copy", "mirrors/slow/x?delay=4900&only=shadow").by("v1"),
        request("a body goes to both", "POST", "mirrors/all/x").sending("0123456789").by("v1"),
    ]
}

pub fn mirrors(bed: &mut Bed) -> Result<String> {
    let held = hold(bed, &(parents(&["mirrors"]) + &route("mirrors", RULES)), &cases())?;
    let run = fresh();
    let requests: Vec<Asked> =
        COPIES.iter().map(|(path, times, ..)| get("", format!("mirrors/{path}/{run}")).times(*times).asked).collect();
    ask(PRODUCER, &requests)?;
    let counts: Vec<Asked> = COPIES.iter().map(|(path, _, to, ..)| get("", format!("{to}/?about=/{path}/{run}")).asked).collect();
    let start = Instant::now();
    loop {
        let answers = ask(PRODUCER, &counts)?;
        let seen: Vec<u64> = answers
            .iter()
            .map(|answers| answers.first().and_then(|answer| answer.seen()).map(|seen| seen.about).context("no count"))
            .collect::<Result<_>>()?;
        let wrong: Vec<String> = COPIES
            .iter()
            .zip(&seen)
            .filter(|((.., least, most), seen)| !(least..=most).contains(seen))
            .map(|((path, _, to, least, most), seen)| format!("/{path}: expected {least} to {most} copies at {to}, seen {seen}"))
            .collect();
        if wrong.is_empty() {
            return Ok(format!("{held}; copies: {seen:?}"));
        }
        if start.elapsed() > CONSISTENT {
            bail!("{}", wrong.join("\n"));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}
