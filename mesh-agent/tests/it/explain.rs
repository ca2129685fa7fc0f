//! What the page `/explain` says is what then happens: the same policy, rule and way as in the access log.

use std::sync::LazyLock;

use mesh_lab::PodSpec;
use mesh_lab::manifests::{authorization_policy, service};
use serde_json::{Value, json};

use crate::world::*;

/// Two servers, one on the client's node and one on the other.
static EXPLAINED: LazyLock<Cluster> = LazyLock::new(|| {
    let ground = ground(
        "explain",
        &[
            ("n1", PodSpec::new("shop", "client").label("app", "client")),
            ("n1", PodSpec::new("shop", "near").label("app", "near")),
            ("n2", PodSpec::new("shop", "far").label("app", "far")),
            ("n2", PodSpec::new(OUTSIDE, "stranger").label("app", "stranger")),
        ],
    );
    ground.put(
        "services",
        &[
            service("shop", "near", &["10.98.0.1", "fd00:98::1"], "near", &[("http", 80, 8080)]),
            service("shop", "far", &["10.98.0.2", "fd00:98::2"], "far", &[("http", 80, 8080)]),
        ],
    );
    let cluster = ground.start();
    for name in ["near", "far"] {
        // It ends with the world.
        std::mem::forget(cluster.pod(name).serve_http(name, 8080).expect("a server"));
    }
    cluster
});

/// The answer of a node's agent.
fn explained(node: &str, query: &str) -> Value {
    EXPLAINED.admin(node, &format!("/explain?{query}"))
}

/// The steps of the one endpoint of an answer, by where they are.
fn step(answer: &Value, at: &str) -> Value {
    let steps = answer["backends"][0]["endpoints"][0]["steps"].as_array().unwrap_or_else(|| panic!("no endpoint in {answer:#}"));
    steps.iter().find(|step| step["at"] == at).unwrap_or_else(|| panic!("nothing at {at} in {answer:#}")).clone()
}

/// `namespace/name` of a step's object.
fn object(step: &Value) -> String {
    format!("{}/{}", text(&step["object"], "namespace"), text(&step["object"], "name"))
}

#[test]
fn a_denied_request_is_denied_by_the_policy_that_the_page_named() {
    let rules = json!([{ "to": [{ "operation": { "paths": ["/secret*"] } }] }]);
    let policies: Vec<Value> =
        ["near", "far"].iter().map(|app| authorization_policy("shop", &format!("no-{app}"), &[("app", app)], "DENY", &rules)).collect();
    EXPLAINED.apply("policies", &policies);
    let client = EXPLAINED.pod("client");
    for (server, node, ip, way) in [("near", "n1", "10.98.0.1", "mutualTlsWithinNode"), ("far", "n2", "10.98.0.2", "mutualTls")] {
        // Every agent knows the whole mesh.
        for asked in ["n1", "n2"] {
            let answer = explained(asked, &format!("from=shop/client&to=shop/{server}&method=GET&path=/x/../secrets"));
            assert_eq!(text(&answer, "verdict"), "denied", "{answer:#}");
            assert_eq!(answer["backends"][0]["endpoints"][0]["encryption"], way, "{answer:#}");
            let policy = step(&answer, "policy");
            let url = format!("http://{ip}/x/../secrets?by={asked}");
            assert_eq!(client.curl(&["--path-as-is", &url]).unwrap().status, 403);
            let line =
                EXPLAINED.access(node, &[("direction", "inbound"), ("status", "403"), ("destination_workload", &format!("shop/{server}"))]);
            assert_eq!(object(&policy), text(&line, "policy"), "{line} {answer:#}");
            assert!(text(&policy, "reason").starts_with(text(&line, "reason")), "{line} {policy:#}");
            let open = explained(asked, &format!("from=shop/client&to=shop/{server}&path=/open"));
            assert_eq!(text(&open, "verdict"), "allowed", "{open:#}");
            assert_eq!(client.curl(&[&format!("http://{ip}/open")]).unwrap().status, 200);
        }
    }
    // Who is not in the mesh is judged alike, as nobody.
    let answer = explained("n1", "from=outside/stranger&to=shop/far&path=/secrets");
    assert_eq!((text(&answer, "verdict"), object(&step(&answer, "policy")).as_str()), ("denied", "shop/no-far"), "{answer:#}");
    assert_eq!(answer["backends"][0]["endpoints"][0]["encryption"], "plaintext", "{answer:#}");
    let url = format!("http://{}/secrets", at(&EXPLAINED.pod("far"), 8080));
    assert_eq!(EXPLAINED.pod("stranger").curl(&[&url]).unwrap().status, 403);
    EXPLAINED.withdraw("policies");
}

#[test]
fn the_page_tells_what_is_wrong_with_a_question() {
    let ask = |query: &str| EXPLAINED.agent("n1").admin(&format!("/explain?{query}")).unwrap();
    let unknown = ask("from=shop/cleint&to=shop/far");
    assert_eq!(unknown.status, 404, "{}", unknown.body);
    assert!(unknown.body.contains("shop/client"), "{}", unknown.body);
    for wrong in ["", "from=shop/client", "from=shop/client&to=shop/far&path=x", "from=shop/client&to=shop/far&colour=red"] {
        assert_eq!(ask(wrong).status, 400, "{wrong}");
    }
}
