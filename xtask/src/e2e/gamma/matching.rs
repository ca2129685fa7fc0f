//! Which rule a request has (`HTTPRouteRule.matches`), within a route and over several.

use std::time::Duration;

use anyhow::Result;

use super::case::{Case, Want, get, request};
use super::stage::{PRODUCER, hold, holds, parents, route, route_to, set};
use crate::e2e::bed::{Bed, apply};

const PATHS: &str = "
    - {matches: [{path: {type: Exact, value: /exact}}], backendRefs: [{name: v1, port: 80}]}
    - {matches: [{path: {type: PathPrefix, value: /exact}}], backendRefs: [{name: v2, port: 80}]}
    - {matches: [{path: {type: PathPrefix, value: /a}}], backendRefs: [{name: v1, port: 80}]}
    - {matches: [{path: {type: PathPrefix, value: /a/b}}], backendRefs: [{name: v2, port: 80}]}
    - {matches: [{path: {type: PathPrefix, value: /a/b/c/}}], backendRefs: [{name: v3, port: 80}]}
    - {matches: [{path: {type: PathPrefix, value: /re}}], backendRefs: [{name: v1, port: 80}]}
    - {matches: [{path: {type: RegularExpression, value: '/re/[0-9]+'}}], backendRefs: [{name: v3, port: 80}]}
    - {matches: [{path: {type: Exact, value: /or/one}}, {path: {type: Exact, value: /or/two}}], backendRefs: [{name: v2, port: 80}]}
    - {matches: [{path: {type: PathPrefix, value: /twice}}], backendRefs: [{name: v1, port: 80}]}
    - {matches: [{path: {type: PathPrefix, value: /twice}}], backendRefs: [{name: v2, port: 80}]}
";

const METHODS: &str = "
    - {matches: [{path: {value: /m}}], backendRefs: [{name: v1, port: 80}]}
    - {matches: [{path: {value: /m}, method: POST}], backendRefs: [{name: v2, port: 80}]}
    - {matches: [{path: {value: /mh}, method: GET}], backendRefs: [{name: v1, port: 80}]}
    - {matches: [{path: {value: /mh}, headers: [{name: X-One, value: '1'}, {name: X-Two, value: '2'}]}], backendRefs: [{name: v2, port: 80}]}
    - {matches: [{path: {value: /lp/longer}}], backendRefs: [{name: v1, port: 80}]}
    - {matches: [{path: {value: /lp}, method: GET, headers: [{name: X-One, value: '1'}]}], backendRefs: [{name: v2, port: 80}]}
";

const HEADERS: &str = "
    - {matches: [{headers: [{name: Version, value: one}]}], backendRefs: [{name: v1, port: 80}]}
    - {matches: [{headers: [{name: version, value: one}, {name: color, value: blue}]}], backendRefs: [{name: v2, port: 80}]}
    - {matches: [{headers: [{name: build, type: RegularExpression, value: 'v[0-9]+'}]}], backendRefs: [{name: v3, port: 80}]}
    - {matches: [{headers: [{name: either, value: a}]}, {headers: [{name: either, value: b}]}], backendRefs: [{name: v3, port: 80}]}
    - {matches: [{headers: [{name: list, value: 'a,b'}]}], backendRefs: [{name: v1, port: 80}]}
";

const QUERIES: &str = "
    - {matches: [{queryParams: [{name: animal, value: whale}]}], backendRefs: [{name: v1, port: 80}]}
    - {matches: [{queryParams: [{name: animal, value: dolphin}]}], backendRefs: [{name: v2, port: 80}]}
    - {matches: [{queryParams: [{name: animal, value: dolphin}, {name: color, value: blue}]}], backendRefs: [{name: v3, port: 80}]}
    - {matches: [{queryParams: [{name: number, type: RegularExpression, value: '[0-9]+'}]}], backendRefs: [{name: v3, port: 80}]}
    - {matches: [{headers: [{name: x-one, value: '1'}]}], backendRefs: [{name: v1, port: 80}]}
    - {matches: [{queryParams: [{name: p, value: '1'}, {name: q, value: '2'}]}], backendRefs: [{name: v2, port: 80}]}
    - {matches: [{path: {value: /deep}}], backendRefs: [{name: v1, port: 80}]}
";

/// A host that nobody asks for: names are a Gateway's matter.
const NAMED: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: named}
spec:
  parentRefs: [{group: '', kind: Service, name: named}]
  hostnames: [elsewhere.example]
  rules:
    - {name: of-all, matches: [{path: {value: /here}}], backendRefs: [{name: v2, port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: section}
spec:
  parentRefs: [{group: '', kind: Service, name: section, sectionName: http-alt}]
  rules:
    - {backendRefs: [{name: v3, port: 80}]}
---
";

fn paths() -> Vec<Case> {
    vec![
        get("an exact path goes before a prefix", "paths/exact").by("v1"),
        get("an exact path ends where it ends", "paths/exact/").by("v2"),
        get("a query is no part of a path", "paths/exact?x=/a").by("v1").wants(Want::Target("/exact?x=/a".into())),
        get("a prefix", "paths/a").by("v1"),
        get("a prefix and a slash", "paths/a/").by("v1"),
        get("a prefix is of whole segments", "paths/ab").refused(404),
        get("paths have cases", "paths/A").refused(404),
        get("the longer prefix", "paths/a/b").by("v2"),
        get("the longer prefix and a slash", "paths/a/b/").by("v2"),
        get("no longer prefix than segments are alike", "paths/a/bc").by("v1"),
        get("the slash at a prefix's end says nothing", "paths/a/b/c").by("v3"),
        get("below a prefix with a slash", "paths/a/b/c/d").by("v3"),
        get("beside a prefix with a slash", "paths/a/b/cd").by("v2"),
        get("a pattern goes before a prefix", "paths/re/42").by("v3"),
        get("a pattern is for the whole path", "paths/re/42/x").by("v1"),
        get("what the pattern is not for", "paths/re/x").by("v1"),
        get("the first of two matches", "paths/or/one").by("v2"),
        get("the second of two matches", "paths/or/two").by("v2"),
        get("neither of two matches", "paths/or/three").refused(404),
        get("of equal rules the first", "paths/twice").by("v1"),
        get("nothing is for it", "paths/").refused(404),
        get("by HTTP/2 too", "paths/a/b/c").http2().by("v3"),
        get("nothing is for it, by HTTP/2", "paths/ab").http2().refused(404),
        get("another host's name changes nothing", "paths/a/b").with("host", "other.example").by("v2").wants(Want::Host("other.example")),
        get("a port that the route does not name", "paths:8080/ab").times(30).wants(Want::Among(&["v1", "v2", "v3"])),
        get("hostnames are not looked at", "named/here").by("v2"),
        get("hostnames are not looked at, on every port", "named:8080/here").by("v2"),
        get("a route without a port is for every port", "named:8080/there").refused(404),
        get("a port by its name", "section:8080/").by("v3"),
        get("another port than the named one", "section/").times(30).wants(Want::Among(&["v1", "v2", "v3"])),
        get("a Service without a route", "unrouted/").times(30).wants(Want::Among(&["v1", "v2", "v3"])),
    ]
}

fn conditions() -> Vec<Case> {
    vec![
        get("no method is any method", "methods/m").by("v1"),
        request("a method", "POST", "methods/m").sending("x").by("v2").wants(Want::Body(1)),
        request("a method counts more than headers", "GET", "methods/mh").with("x-one", "1").with("x-two", "2").by("v1"),
        request("headers, where the method is another", "PUT", "methods/mh").with("x-one", "1").with("x-two", "2").by("v2"),
        get("a longer path counts more than method and headers", "methods/lp/longer").with("x-one", "1").by("v1"),
        get("the shorter path", "methods/lp/other").with("x-one", "1").by("v2"),
        get("a header", "headers/").with("version", "one").by("v1"),
        get("names of headers have no cases", "headers/").with("VERSION", "one").by("v1"),
        get("values of headers have", "headers/").with("version", "One").refused(404),
        get("more headers count more", "headers/").with("version", "one").with("color", "blue").by("v2"),
        get("all of a match's headers are asked for", "headers/").with("color", "blue").refused(404),
        get("a header by a pattern", "headers/").with("build", "v12").by("v3"),
        get("a pattern is for the whole value", "headers/").with("build", "v12-rc1").refused(404),
        get("another match of the rule", "headers/").with("either", "b").by("v3"),
        get("lines of one header are one value", "headers/").with("list", "a").with("list", "b").by("v1"),
        get("no header", "headers/").refused(404),
        get("a parameter", "queries/?animal=whale").by("v1"),
        get("a parameter among others, on any path", "queries/x?max=1&animal=dolphin&y").by("v2"),
        get("more parameters count more", "queries/?color=blue&animal=dolphin").by("v3"),
        get("values of parameters have cases", "queries/?animal=Whale").refused(404),
        get("names of parameters have cases", "queries/?Animal=whale").refused(404),
        get("of a repeated parameter the first counts", "queries/?animal=whale&animal=dolphin").by("v1"),
        get("a value may be encoded", "queries/?animal=wh%61le").by("v1").wants(Want::Target("/?animal=wh%61le".into())),
        get("a parameter by a pattern", "queries/?number=7").by("v3"),
        get("a parameter that the pattern is not for", "queries/?number=7a").refused(404),
        get("a header counts more than two parameters", "queries/?p=1&q=2").with("x-one", "1").by("v1"),
        get("two parameters", "queries/?p=1&q=2").by("v2"),
        get("one of two parameters", "queries/?p=1").refused(404),
        get("a longer path counts more than parameters", "queries/deep?p=1&q=2").by("v1"),
    ]
}

pub fn matching(bed: &mut Bed) -> Result<String> {
    let objects = parents(&["paths", "methods", "headers", "queries", "named", "section", "unrouted"])
        + &route("paths", PATHS)
        + &route("methods", METHODS)
        + &route("headers", HEADERS)
        + &route("queries", QUERIES)
        + NAMED;
    let cases = [paths(), conditions()].concat();
    hold(bed, &objects, &cases)
}

/// The Service that several routes are for.
const SEVERAL: &str = "name: several, port: 80";

pub fn precedence(bed: &mut Bed) -> Result<String> {
    set(bed)?;
    let all = |backend: &str| format!("    - {{matches: [{{path: {{value: /age}}}}], backendRefs: [{{name: {backend}, port: 80}}]}}\n");
    let older = parents(&["several"]) + &route_to("z-older", SEVERAL, &all("v1"));
    apply(PRODUCER, &older)?;
    // Ages have whole seconds.
    std::thread::sleep(Duration::from_millis(1100));
    let younger = all("v2")
        + "    - {matches: [{path: {value: /age/longer}}], backendRefs: [{name: v3, port: 80}]}\n"
        + "    - {matches: [{path: {value: /age}, headers: [{name: x-one, value: '1'}]}], backendRefs: [{name: v2, port: 80}]}\n"
        + "    - {matches: [{path: {value: /name}}], backendRefs: [{name: v3, port: 80}]}\n";
    let named_alike = "    - {matches: [{path: {value: /name}}], backendRefs: [{name: v2, port: 80}]}\n";
    // The first by name is made first, so that it goes before the other even where they are not of one second.
    apply(PRODUCER, &(route_to("a-younger", SEVERAL, &younger) + &route_to("b-younger", SEVERAL, named_alike)))?;
    let cases = [
        get("of equal matches the older route's", "several/age").by("v1"),
        get("a longer path goes before an older route", "several/age/longer").by("v3"),
        get("a header goes before an older route", "several/age").with("x-one", "1").by("v2"),
        get("of equal age the first by name", "several/name").by("v3"),
        get("rules of none of them", "several/other").refused(404),
    ];
    let before = holds(PRODUCER, &cases)?;
    crate::cluster::ask(&["-n", PRODUCER, "delete", "httproute", "z-older"])?;
    let after =
        [get("the older route is gone", "several/age").by("v2"), get("what the younger one has besides", "several/age/longer").by("v3")];
    holds(PRODUCER, &after)?;
    crate::cluster::ask(&["-n", PRODUCER, "delete", "httproute", "a-younger", "b-younger"])?;
    let none = [get("without a route the Service itself", "several/other").times(30).wants(Want::Among(&["v1", "v2", "v3"]))];
    holds(PRODUCER, &none)?;
    Ok(before)
}
