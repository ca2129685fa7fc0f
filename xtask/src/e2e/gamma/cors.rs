//! The CORS filter: preflights, and what the answers of a server get.

use anyhow::Result;

use super::case::{Case, Want, get, request};
use super::stage::{hold, parents, route};
use crate::e2e::bed::Bed;

const RULES: &str = "
    - matches: [{path: {value: /exact}}]
      filters:
        - type: CORS
          cors:
            allowOrigins: ['https://www.foo.example', 'http://*.bar.example']
            allowCredentials: true
            allowMethods: [GET, OPTIONS]
            allowHeaders: [x-header-1, x-header-2]
            exposeHeaders: [x-header-3, x-header-4]
            maxAge: 3600
      backendRefs: [{name: v1, port: 80}]
    - matches: [{path: {value: /any}}]
      filters: [{type: CORS, cors: {allowOrigins: ['*'], allowMethods: ['*'], allowHeaders: ['*']}}]
      backendRefs: [{name: v2, port: 80}]
    - matches: [{path: {value: /none}}]
      backendRefs: [{name: v3, port: 80}]
";

const FOO: &str = "https://www.foo.example";

fn preflight(why: &'static str, at: &str, origin: &str, method: &str) -> Case {
    request(why, "OPTIONS", at).with("origin", origin).with("access-control-request-method", method)
}

fn cases() -> Vec<Case> {
    let no = "access-control-allow-origin";
    vec![
        preflight("an origin that is allowed", "cors/exact", FOO, "GET")
            .with("access-control-request-headers", "x-header-1")
            .refused(200)
            .header("access-control-allow-origin", FOO)
            .header("access-control-allow-credentials", "true")
            .header("access-control-allow-methods", "GET, OPTIONS")
            .header("access-control-allow-headers", "x-header-1, x-header-2")
            .header("access-control-max-age", "3600"),
        preflight("an origin by its domain", "cors/exact", "http://www.a.bar.example", "GET")
            .refused(200)
            .header(no, "http://www.a.bar.example"),
        preflight("the domain itself is not below it", "cors/exact", "http://bar.example", "GET").refused(200).wants(Want::NoHeader(no)),
        preflight("another scheme", "cors/exact", "https://www.bar.example", "GET").refused(200).wants(Want::NoHeader(no)),
        preflight("another port", "cors/exact", "https://www.foo.example:8443", "GET").refused(200).wants(Want::NoHeader(no)),
        preflight("an origin that only begins alike", "cors/exact", "https://www.foo.example.evil.example", "GET")
            .refused(200)
            .wants(Want::NoHeader(no)),
        get("the request itself", "cors/exact")
            .with("origin", FOO)
            .by("v1")
            .header(no, FOO)
            .header("access-control-allow-credentials", "true")
            .header("access-control-expose-headers", "x-header-3, x-header-4"),
        get("the request of another origin", "cors/exact").with("origin", "https://evil.example").by("v1").wants(Want::NoHeader(no)),
        get("no origin, no headers", "cors/exact").by("v1").wants(Want::NoHeader(no)),
        request("OPTIONS that ask for nothing are the server's", "OPTIONS", "cors/exact").with("origin", FOO).by("v1").header(no, FOO),
        preflight("any method and header", "cors/any", "https://x.example", "PATCH")
            .with("access-control-request-headers", "x-anything")
            .refused(200)
            .header("access-control-allow-methods", "PATCH")
            .header("access-control-allow-headers", "x-anything")
            .header("access-control-max-age", "5")
            .wants(Want::NoHeader("access-control-allow-credentials")),
        preflight("without the filter the server answers", "cors/none", FOO, "GET").by("v3").wants(Want::NoHeader(no)),
    ]
}

pub fn cors(bed: &mut Bed) -> Result<String> {
    hold(bed, &(parents(&["cors"]) + &route("cors", RULES)), &cases())
}
