//! `retry` of a rule. A server fails a key's first requests, so that its answer tells how many there were.

use anyhow::Result;

use super::case::{Case, Want, get, request};
use super::stage::{hold, parents, route};
use crate::e2e::bed::Bed;

const RULES: &str = "
    - matches: [{path: {value: /twice}}]
      retry: {codes: [500, 502, 503, 504], attempts: 2, backoff: 10ms}
      backendRefs: [{name: v1, port: 80}]
    - matches: [{path: {value: /teapot}}]
      retry: {codes: [418], attempts: 1, backoff: 10ms}
      backendRefs: [{name: v2, port: 80}]
    - matches: [{path: {value: /bounded}}]
      retry: {codes: [503], attempts: 5, backoff: 10ms}
      timeouts: {request: 500ms}
      backendRefs: [{name: v1, port: 80}]
    - matches: [{path: {value: /each}}]
      retry: {codes: [504], attempts: 2, backoff: 10ms}
      timeouts: {request: 3s, backendRequest: 200ms}
      backendRefs: [{name: v1, port: 80}]
    - matches: [{path: {value: /slowly}}]
      retry: {codes: [503], attempts: 2, backoff: 200ms}
      backendRefs: [{name: v1, port: 80}]
    - matches: [{path: {value: /deaf}}]
      retry: {attempts: 2, backoff: 10ms}
      backendRefs: [{name: deaf, port: 80}]
    - matches: [{path: {value: /broken}}]
      retry: {attempts: 2, backoff: 10ms}
      backendRefs: [{name: v1, port: 80}]
    - matches: [{path: {value: /never}}]
      backendRefs: [{name: v1, port: 80}]
";

fn cases() -> Vec<Case> {
    vec![
        get("one failure", "retries/twice?fails=1&with=500&key=a{run}").by("v1"),
        get("two failures", "retries/twice?fails=2&with=502&key=b{run}").by("v1"),
        get("more failures than attempts", "retries/twice?fails=3&with=503&key=c{run}").status(503),
        get("the answer after it: three requests were counted", "retries/never?fails=3&key=c{run}").by("v1"),
        get("the last answer is passed on", "retries/twice?fails=9&with=500&key=d{run}").status(500),
        request("a body goes with each attempt", "POST", "retries/twice?fails=2&with=504&key=e{run}")
            .sending("0123456789")
            .by("v1")
            .wants(Want::Body(10)),
        get("a code that is not listed", "retries/twice?fails=1&with=501&key=f{run}").status(501),
        get("a client's mistake is listed", "retries/teapot?fails=1&with=418&key=g{run}").by("v2"),
        get("not listed there", "retries/teapot?fails=1&with=503&key=h{run}").status(503),
        get("nobody asked", "retries/never?fails=1&with=503&key=i{run}").status(503),
        get("all attempts together take too long", "retries/bounded?delay=250&fails=9&with=503&key=j{run}")
            .refused(504)
            .wants(Want::AtLeast(500)),
        get("every attempt takes too long", "retries/each?delay=600").refused(504).wants(Want::AtLeast(600)),
        get("a backoff is waited for", "retries/slowly?fails=2&with=503&key=k{run}").by("v1").wants(Want::AtLeast(400)),
        get("a server that refuses connections", "retries/deaf").refused(503),
        get("a server that breaks off each time", "retries/broken?break=1").refused(503),
    ]
}

pub fn retries(bed: &mut Bed) -> Result<String> {
    hold(bed, &(parents(&["retries"]) + &route("retries", RULES)), &cases())
}
