//! DestinationRules: who is sent requests, who is left out, and what is refused.

use super::*;

#[test]
fn the_breaker_of_an_unchanged_istio_manifest_is_seen_to_trip_eject_and_let_back_in() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/samples/istio/destination-rule.yaml");
    let mut rule: Value = serde_yaml_ng::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    rule["metadata"]["namespace"] = json!("shop");
    rule["spec"]["host"] = json!("breaker");
    // A shorter time, or a test would last as long.
    rule["spec"]["trafficPolicy"]["outlierDetection"]["baseEjectionTime"] = json!("8s");
    rule["spec"]["trafficPolicy"]["outlierDetection"]["maxEjectionPercent"] = json!(50);
    HTTP.apply("rule-breaker", &[rule]);
    let client = HTTP.pod("client");
    let get = |path: &str| client.curl(&[&url("breaker", path)]).unwrap();
    // Both serve.
    let names = |count: usize| (0..count).map(|_| get("/").seen().name).collect::<Vec<_>>();
    wait_until("both endpoints serve", LIMIT, || {
        let names = names(8);
        names.contains(&"v1".to_owned()) && names.contains(&"v2".to_owned())
    })
    .unwrap();
    // Five gateway errors in a row of one of them; those of the other are kept apart by its good answers.
    let ejected = || HTTP.sum("n1", "nodemesh_cluster_endpoints", &[("cluster", "shop/breaker:80"), ("state", "ejected")]) > 0.0;
    wait_until("one is ejected, and gets nothing as long as it is", LIMIT, || {
        if !ejected() {
            get("/bad?status=503");
            return false;
        }
        let after = names(6);
        // On a busy machine its time may have been over before the last of them.
        if !ejected() {
            return false;
        }
        assert!(after.iter().all(|name| *name == after[0]), "{after:?}");
        true
    })
    .unwrap();
    assert!(HTTP.agent("n1").log().contains("an endpoint is left out"), "it is said");
    assert!(HTTP.sum("n1", "nodemesh_endpoint_ejections_total", &[("reason", "consecutive_gateway_failure")]) >= 1.0);
    wait_until("both serve again", LIMIT, || {
        let names = names(8);
        names.contains(&"v1".to_owned()) && names.contains(&"v2".to_owned())
    })
    .unwrap();
    HTTP.withdraw("rule-breaker");
}
