use std::time::{Duration, UNIX_EPOCH};

use super::*;

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

#[test]
fn features_are_sorted_and_said_once() {
    assert!(FEATURES.is_sorted() && FEATURES.len() <= 64);
    let mut object = object();
    object["metadata"]["generation"] = json!(1);
    object["metadata"]["resourceVersion"] = json!("5");
    object["status"] = json!({ "conditions": [
        { "type": "Accepted", "status": "Unknown", "reason": "Pending", "lastTransitionTime": "1970-01-01T00:00:00Z" },
        { "type": "Programmed", "status": "Unknown" },
    ] });
    assert!(is_ours(&object));
    let patch_ = patch(&object, "mesh-control (Lease a/b)", now()).unwrap();
    assert_eq!((&patch_["metadata"], patch_.get("spec")), (&json!({ "resourceVersion": "5" }), None));
    let conditions = &patch_["status"]["conditions"];
    assert_eq!(
        (&conditions[0]["type"], &conditions[1]["reason"], &conditions[1]["status"]),
        (&json!("Programmed"), &json!("Accepted"), &json!("True"))
    );
    assert_eq!(conditions[1]["message"], "claimed by mesh-control (Lease a/b)");
    assert_eq!((&conditions[1]["observedGeneration"], &conditions[1]["lastTransitionTime"]), (&json!(1), &json!("2027-01-15T08:00:00Z")));
    assert_eq!(patch_["status"]["supportedFeatures"][0], json!({ "name": "GRPCRoute" }));
    object["status"] = patch_["status"].clone();
    assert_eq!(patch(&object, "mesh-control (Lease a/b)", now() + Duration::from_secs(9)), None);
}

#[test]
fn parameters_are_refused() {
    let mut object = object();
    object["spec"]["parametersRef"] = json!({ "kind": "ConfigMap", "name": "x" });
    let condition = &patch(&object, "x", now()).unwrap()["status"]["conditions"][0];
    assert_eq!((&condition["status"], &condition["reason"]), (&json!("False"), &json!("InvalidParameters")));
}

#[test]
fn another_controllers_mesh_is_not_ours() {
    let mut object = object();
    object["spec"]["controllerName"] = json!("example.com/mesh");
    assert!(!is_ours(&object));
}
