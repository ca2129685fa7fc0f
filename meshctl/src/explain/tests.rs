use serde_json::{Value, json};

use super::*;

fn answer() -> Value {
    let policy = json!({ "kind": "AuthorizationPolicy", "namespace": "shop", "name": "no-orders" });
    let endpoint = |address: &str, pod: &str| {
        json!({ "address": address, "pod": pod, "node": "n2", "encryption": "mutualTls", "verdict": "denied", "steps": [
            { "at": "encryption", "verdict": "allowed", "reason": "by mutual TLS: to the agent of node n2" },
            { "at": "policy", "verdict": "denied", "object": policy, "reason": "denied by policy", "mend": "look at the policy" },
        ] })
    };
    json!({
        "configVersion": 7,
        "verdict": "denied",
        "summary": "denied by\u{1b} policy",
        "source": { "kind": "Pod", "name": "shop/client", "node": "n1" },
        "destination": { "kind": "Service", "name": "shop/web", "port": 80 },
        "request": { "method": "GET", "path": "/orders", "host": "web.shop" },
        "steps": [{
            "at": "route",
            "verdict": "allowed",
            "object": { "kind": "HTTPRoute", "namespace": "shop", "name": "web", "rule": 1, "ruleName": "orders" },
            "reason": "the first that matches",
        }],
        "backends": [{
            "target": "Service shop/web-v1:80",
            "weight": 9,
            "percent": 90.0,
            "verdict": "denied",
            "steps": [],
            "endpoints": [endpoint("10.0.2.1:8080", "shop/web1"), endpoint("10.0.2.2:8080", "shop/web2")],
        }],
    })
}

#[test]
fn a_line_a_step_in_the_order_of_the_way() {
    let explanation = Explanation::deserialize(answer()).unwrap();
    let expected = "\
DENIED: denied by  policy
Pod shop/client (n1) → Service shop/web:80, GET /orders (host web.shop)
  ok      route      HTTPRoute shop/web rule 1 (orders): the first that matches
  to Service shop/web-v1:80, weight 9: 90 %
    at 10.0.2.1:8080 shop/web1 on n2
    at 10.0.2.2:8080 shop/web2 on n2
      ok      encryption by mutual TLS: to the agent of node n2
      DENIED  policy     AuthorizationPolicy shop/no-orders: denied by policy
                         → look at the policy
";
    assert_eq!(render(&explanation, false), expected);
    assert!(render(&explanation, true).contains("\u{1b}[31mDENIED\u{1b}[0m  policy"));
}

#[test]
fn the_question_is_spelt_so_that_nothing_in_it_is_lost() {
    let arguments = Arguments {
        source: "shop/client".into(),
        destination: "shop/web".into(),
        port: Some(80),
        method: Some("GET".into()),
        path: Some("/a b?c=d&e=%20".into()),
        header: vec!["x: 1".into(), "y:2".into()],
        sni: None,
    };
    let expected =
        "/explain?from=shop%2Fclient&to=shop%2Fweb&port=80&method=GET&path=%2Fa+b%3Fc%3Dd%26e%3D%2520&header=x%3A+1&header=y%3A2";
    assert_eq!(arguments.page(), expected);
}
