//! Header modifiers of rules and of backends.

use anyhow::Result;

use super::case::{Case, Want, get};
use super::stage::{hold, parents, route};
use crate::e2e::bed::Bed;

const RULES: &str = "
    - matches: [{path: {value: /set}}]
      filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Set, value: new}]}}]
      backendRefs: [{name: v1, port: 80}]
    - matches: [{path: {value: /add}}]
      filters: [{type: RequestHeaderModifier, requestHeaderModifier: {add: [{name: X-Add, value: new}]}}]
      backendRefs: [{name: v1, port: 80}]
    - matches: [{path: {value: /remove}}]
      filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [X-Gone]}}]
      backendRefs: [{name: v1, port: 80}]
    - matches: [{path: {value: /many}}]
      filters:
        - type: RequestHeaderModifier
          requestHeaderModifier:
            set: [{name: X-Set-1, value: s1}, {name: X-Set-2, value: s2}]
            add: [{name: X-Add-1, value: a1}, {name: X-Add-2, value: a2}]
            remove: [X-Gone-1, x-gone-2]
      backendRefs: [{name: v1, port: 80}]
    - matches: [{path: {value: /response}}]
      filters:
        - type: ResponseHeaderModifier
          responseHeaderModifier:
            set: [{name: X-Served-By, value: the mesh}, {name: X-Set, value: new}]
            add: [{name: X-Add, value: new}]
            remove: [Content-Length-None]
      backendRefs: [{name: v1, port: 80}]
    - matches: [{path: {value: /taken}}]
      filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {remove: [x-served-by]}}]
      backendRefs: [{name: v1, port: 80}]
    - matches: [{path: {value: /backend}}]
      backendRefs:
        - name: v2
          port: 80
          filters:
            - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-backend, value: v2}]}}
            - {type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: x-backend, value: v2}]}}
    - matches: [{path: {value: /each}}]
      backendRefs:
        - name: v1
          port: 80
          filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-each, value: one}]}}]
        - name: v2
          port: 80
          weight: 0
          filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-each, value: two}]}}]
    - matches: [{path: {value: /both}}]
      filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-both, value: rule}], add: [{name: x-list, value: rule}]}}]
      backendRefs:
        - name: v3
          port: 80
          filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-both, value: backend}], add: [{name: x-list, value: backend}]}}]
    - matches: [{path: {value: /unknown}}]
      filters: [{type: ExtensionRef, extensionRef: {group: x.example, kind: Thing, name: a}}]
      backendRefs: [{name: v1, port: 80}]
";

fn cases() -> Vec<Case> {
    vec![
        get("set where it was not", "filters/set").by("v1").wants(Want::Seen("x-set", "new")),
        get("set over what was", "filters/set").with("x-set", "old").by("v1").wants(Want::Seen("x-set", "new")),
        get("set over two lines, by any case", "filters/set")
            .with("X-SET", "a")
            .with("x-set", "b")
            .by("v1")
            .wants(Want::Seen("x-set", "new")),
        get("set, and others stay", "filters/set").with("x-other", "1").by("v1").wants(Want::Seen("x-other", "1")),
        get("add where it was not", "filters/add").by("v1").wants(Want::Seen("x-add", "new")),
        get("add to what was", "filters/add").with("x-add", "old").by("v1").wants(Want::Seen("x-add", "old,new")),
        get("remove", "filters/remove").with("x-gone", "1").by("v1").wants(Want::NotSeen("x-gone")),
        get("remove what is not there", "filters/remove").with("x-other", "1").by("v1").wants(Want::Seen("x-other", "1")),
        get("many at once", "filters/many")
            .with("x-set-1", "old")
            .with("x-add-1", "old")
            .with("x-gone-1", "1")
            .with("X-Gone-2", "1")
            .with("x-other", "1")
            .by("v1")
            .wants(Want::Seen("x-set-1", "s1"))
            .wants(Want::Seen("x-set-2", "s2"))
            .wants(Want::Seen("x-add-1", "old,a1"))
            .wants(Want::Seen("x-add-2", "a2"))
            .wants(Want::NotSeen("x-gone-1"))
            .wants(Want::NotSeen("x-gone-2"))
            .wants(Want::Seen("x-other", "1")),
        get("many at once by HTTP/2", "filters/many")
            .http2()
            .with("x-gone-1", "1")
            .by("v1")
            .wants(Want::Seen("x-set-1", "s1"))
            .wants(Want::NotSeen("x-gone-1")),
        get("of the answer", "filters/response").by("v1").header("x-served-by", "the mesh").header("x-set", "new").header("x-add", "new"),
        get("taken from the answer", "filters/taken").by("v1").wants(Want::NoHeader("x-served-by")),
        get("the server's own header elsewhere", "filters/set").by("v1").header("x-served-by", "v1"),
        get("of a backend", "filters/backend").by("v2").wants(Want::Seen("x-backend", "v2")).header("x-backend", "v2"),
        get("of the backend that was chosen", "filters/each").by("v1").header("x-each", "one"),
        get("of the rule and then of the backend", "filters/both")
            .by("v3")
            .wants(Want::Seen("x-both", "backend"))
            .wants(Want::Seen("x-list", "rule,backend")),
        get("a filter that nobody knows is not left out", "filters/unknown").refused(500),
    ]
}

pub fn filters(bed: &mut Bed) -> Result<String> {
    hold(bed, &(parents(&["filters"]) + &route("filters", RULES)), &cases())
}
