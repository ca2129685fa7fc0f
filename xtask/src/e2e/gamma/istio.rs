//! VirtualService with a DestinationRule's subsets, and faults.

use anyhow::Result;

use super::case::{Want, call, get};
use super::stage::{hold, parents, route};
use crate::e2e::bed::Bed;

const SUBSETS: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  subsets:
    - {name: one, labels: {app: v1}}
    - {name: two, labels: {app: v2}}
    - {name: none, labels: {app: nobody}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
    - {name: user, match: [{headers: {end-user: {exact: jason}}}], route: [{destination: {host: reviews, subset: two}}]}
    - {match: [{uri: {prefix: /shares}}], route: [{destination: {host: reviews, subset: one}, weight: 75}, {destination: {host: reviews, subset: two}, weight: 25}]}
    - {match: [{uri: {exact: /moved}}], redirect: {uri: /new, authority: other.example, redirectCode: 302}}
    - {match: [{uri: {prefix: /tea}}], directResponse: {status: 418, body: {string: short and stout}}}
    - {match: [{uri: {prefix: /old/}}], rewrite: {uri: /new/, authority: inner.example}, route: [{destination: {host: reviews, subset: one}}]}
    - {match: [{uri: {prefix: /slow}}], timeout: 300ms, route: [{destination: {host: reviews, subset: one}}]}
    - {match: [{uri: {prefix: /again}}], retries: {attempts: 2, retryOn: 5xx}, route: [{destination: {host: reviews, subset: one}}]}
    - {match: [{uri: {regex: '/r[0-9]+'}, withoutHeaders: {x-not: {exact: '1'}}}], route: [{destination: {host: v3}}]}
    - {match: [{uri: {prefix: /any}, method: {exact: PUT}}, {queryParams: {go: {exact: three}}}], route: [{destination: {host: v3}}]}
    - {match: [{uri: {prefix: /labelled}, sourceLabels: {app: client}}], route: [{destination: {host: v3}}]}
    - {match: [{uri: {prefix: /labelled}}], route: [{destination: {host: reviews, subset: two}}]}
    - {match: [{uri: {prefix: /empty}}], route: [{destination: {host: reviews, subset: none}}]}
    - {match: [{uri: {prefix: /unknown}}], route: [{destination: {host: reviews, subset: three}}]}
    - match: [{uri: {prefix: /headers}}]
      headers: {request: {set: {x-set: new}, remove: [x-gone]}, response: {add: {x-answer: new}}}
      route: [{destination: {host: reviews, subset: one}}]
    - {match: [{uri: {prefix: /}}], route: [{destination: {host: reviews, subset: one}}]}
    - {match: [{uri: {prefix: /}}], route: [{destination: {host: reviews, subset: two}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: both}
spec:
  hosts: [both]
  http: [{route: [{destination: {host: v1}}]}]
---
";

const GATEWAY_API: &str = "    - {backendRefs: [{name: v2, port: 80}]}";

pub fn subsets(bed: &mut Bed) -> Result<String> {
    let cases = [
        get("a subset by a header", "reviews/").with("end-user", "jason").by("v2"),
        get("the first rule that matches", "reviews/").by("v1"),
        get("by the Service's whole name", "reviews.e2e-routes.svc.cluster.local/").by("v1"),
        get("3 to 1", "reviews/shares").times(80).wants(Want::Shares(&[("v1", 75), ("v2", 25)])),
        get("a redirection", "reviews/moved").redirected(302, "http://other.example/new"),
        get("an answer of its own", "reviews/tea").refused(418),
        get("a prefix and the host are rewritten", "reviews/old/a?b")
            .by("v1")
            .wants(Want::Target("/new/a?b".into()))
            .wants(Want::Host("inner.example")),
        get("a timeout", "reviews/slow?delay=900").refused(504).wants(Want::AtLeast(300)),
        get("retries", "reviews/again?fails=2&with=500&key=vs{run}").by("v1"),
        get("more failures than retries", "reviews/again?fails=3&with=500&key=vt{run}").status(500),
        get("a pattern and no header", "reviews/r42").by("v3"),
        get("a pattern, and the header", "reviews/r42").with("x-not", "1").by("v1"),
        get("another match of the rule", "reviews/x?go=three").by("v3"),
        get("labels of the client", "reviews/labelled").by("v3"),
        get("a subset without endpoints", "reviews/empty").refused(503),
        get("a subset that nobody defines", "reviews/unknown").wants(Want::ByNobody),
        get("headers", "reviews/headers")
            .with("x-gone", "1")
            .by("v1")
            .wants(Want::Seen("x-set", "new"))
            .wants(Want::NotSeen("x-gone"))
            .header("x-answer", "new"),
        get("a route of the Gateway API goes before a VirtualService", "both/").by("v2"),
        get("but on its own port alone", "both:8080/").by("v1"),
    ];
    hold(bed, &(parents(&["reviews", "both"]) + SUBSETS + &route("both", GATEWAY_API)), &cases)
}

const FAULTS: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: faults}
spec:
  hosts: [faults]
  http:
    - match: [{headers: {abort: {exact: all}}}]
      fault: {abort: {httpStatus: 418, percentage: {value: 100}}}
      route: [{destination: {host: v1}}]
    - match: [{headers: {abort: {exact: none}}}]
      fault: {abort: {httpStatus: 418, percentage: {value: 0}}}
      route: [{destination: {host: v1}}]
    - match: [{headers: {abort: {exact: grpc}}}]
      fault: {abort: {grpcStatus: RESOURCE_EXHAUSTED, percentage: {value: 100}}}
      route: [{destination: {host: v1}}]
    - match: [{headers: {delay: {exact: all}}}]
      fault: {delay: {fixedDelay: 400ms, percentage: {value: 100}}}
      route: [{destination: {host: v1}}]
    - match: [{headers: {delay: {exact: both}}}]
      fault: {delay: {fixedDelay: 300ms, percentage: {value: 100}}, abort: {httpStatus: 503, percentage: {value: 100}}}
      route: [{destination: {host: v1}}]
    - route: [{destination: {host: v2}}]
---
";

pub fn faults(bed: &mut Bed) -> Result<String> {
    let cases = [
        get("an error for each", "faults/").with("abort", "all").times(10).refused(418),
        get("an error for none", "faults/").with("abort", "none").times(10).by("v1"),
        call("an error of gRPC", "faults/x.Y/Z").with("abort", "grpc").wants(Want::Grpc(8)).wants(Want::ByNobody),
        get("a delay", "faults/").with("delay", "all").by("v1").wants(Want::AtLeast(400)),
        get("a delay and then an error", "faults/").with("delay", "both").refused(503).wants(Want::AtLeast(300)),
        get("whoever is not meant", "faults/").times(10).by("v2"),
    ];
    hold(bed, &(parents(&["faults"]) + FAULTS), &cases)
}
