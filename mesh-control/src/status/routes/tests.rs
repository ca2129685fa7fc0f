use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use mesh_model::document::parse_documents;

use super::*;

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn ok(kind: &'static str, reason: &'static str) -> (&'static str, ConditionStatus) {
    (kind, ConditionStatus { status: true, reason, message: "fine".into() })
}

fn well(parent: usize) -> Said {
    Said { parent, conditions: vec![ok("Accepted", "Accepted"), ok("ResolvedRefs", "ResolvedRefs")] }
}

fn service(name: &str) -> Value {
    json!({ "group": "", "kind": "Service", "name": name })
}

fn route(parents: &[Value], status: Value) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": { "name": "r", "namespace": "shop", "generation": 3, "resourceVersion": "7" },
        "spec": { "parentRefs": parents, "rules": [{ "backendRefs": [{ "name": "gone", "port": 80 }] }] },
        "status": status,
    })
}

fn applied(object: &Value, patch: &Value) -> Value {
    let mut object = object.clone();
    object["status"] = patch["status"].clone();
    object
}

/// The mesh with a Service `shop/web` and the objects.
fn mesh(objects: &[&Value]) -> Snapshot {
    let web = json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web", "namespace": "shop" },
        "spec": { "clusterIP": "10.96.0.1", "ports": [{ "port": 80 }] } });
    let text: Vec<String> = objects.iter().copied().chain([&web]).map(ToString::to_string).collect();
    let parsed = parse_documents(Path::new("mesh.yaml"), &text.join("\n---\n"));
    Snapshot::build(&parsed.documents, parsed.problems, None)
}

#[test]
fn a_parent_is_told_once() {
    let object = route(&[json!({ "name": "gateway" }), service("web")], Value::Null);
    let first = patch(&object, &[well(1)], now()).unwrap();
    assert_eq!(first["metadata"], json!({ "resourceVersion": "7" }));
    let since = "2027-01-15T08:00:00Z";
    let condition = |kind: &str| json!({ "type": kind, "status": "True", "reason": kind, "message": "fine", "lastTransitionTime": since, "observedGeneration": 3 });
    assert_eq!(
        first["status"]["parents"],
        json!([{ "parentRef": service("web"), "controllerName": "nodemesh.dev/mesh",
            "conditions": [condition("Accepted"), condition("ResolvedRefs")] }])
    );
    assert_eq!(patch(&applied(&object, &first), &[well(1)], now() + Duration::from_secs(9)), None);
}

#[test]
fn a_change_has_its_time_and_what_lasts_keeps_its_own() {
    let object = route(&[service("web")], Value::Null);
    let mut told = applied(&object, &patch(&object, &[well(0)], now()).unwrap());
    told["metadata"]["generation"] = json!(4);
    let mut worse = well(0);
    worse.conditions[1].1 = ConditionStatus { status: false, reason: "BackendNotFound", message: "gone".into() };
    let again = patch(&told, &[worse], now() + Duration::from_secs(60)).unwrap();
    let conditions = &again["status"]["parents"][0]["conditions"];
    assert_eq!(conditions[0]["lastTransitionTime"], "2027-01-15T08:00:00Z");
    assert_eq!((&conditions[1]["lastTransitionTime"], &conditions[1]["status"]), (&json!("2027-01-15T08:01:00Z"), &json!("False")));
    assert!(conditions.as_array().unwrap().iter().all(|one| one["observedGeneration"] == 4));
}

#[test]
fn entries_of_others_stay_and_stale_ones_of_ours_go() {
    let theirs = json!({ "parentRef": service("web"), "controllerName": "example.com/other", "conditions": [] });
    let stale = json!({ "parentRef": service("old"), "controllerName": CONTROLLER_NAME, "conditions": [] });
    let object = route(&[service("web")], json!({ "parents": [stale, theirs] }));
    let parents = patch(&object, &[well(0)], now()).unwrap()["status"]["parents"].clone();
    assert_eq!((parents.as_array().unwrap().len(), &parents[0], &parents[1]["parentRef"]), (2, &theirs, &service("web")));
    // Nothing is ours any more.
    assert_eq!(patch(&object, &[], now()).unwrap()["status"]["parents"], json!([theirs]));
    assert_eq!(patch(&route(&[], json!({ "parents": [theirs] })), &[], now()), None);
}

#[test]
fn a_status_has_no_more_entries_than_it_may() {
    let theirs: Vec<Value> = (0..31).map(|i| json!({ "parentRef": service(&format!("s{i}")), "controllerName": "x/y" })).collect();
    let object = route(&[service("a"), service("b")], json!({ "parents": theirs }));
    let first = patch(&object, &[well(0), well(1)], now()).unwrap();
    assert_eq!(first["status"]["parents"].as_array().unwrap().len(), 32);
    assert_eq!(patch(&applied(&object, &first), &[well(0), well(1)], now()), None, "it is not written again and again");
}

#[test]
fn what_the_mesh_made_of_a_route_is_said_of_that_state_alone() {
    let entry = json!({ "group": "networking.istio.io", "kind": "ServiceEntry", "name": "none" });
    let object = route(&[service("web"), json!({ "name": "gateway" }), service("nobody"), entry], Value::Null);
    let other = {
        let mut other = object.clone();
        other["metadata"]["name"] = json!("q");
        other
    };
    let mesh = mesh(&[&other, &object]);
    let told = said(&object, &mesh).unwrap();
    let reasons: Vec<_> = told.iter().map(|one| (one.parent, one.conditions.iter().map(|(_, c)| c.reason).collect::<Vec<_>>())).collect();
    let nobody = vec!["NoMatchingParent", "BackendNotFound"];
    assert_eq!(reasons, [(0, vec!["Accepted", "BackendNotFound"]), (2, nobody.clone()), (3, nobody)]);
    let mut later = object.clone();
    later["metadata"]["generation"] = json!(4);
    assert_eq!(said(&later, &mesh), None, "the mesh has not followed yet");
}

#[test]
fn a_route_that_cannot_be_read_is_told_so() {
    let mut object = route(&[service("web"), json!({ "name": "gateway" })], Value::Null);
    object["spec"]["rules"] = json!("none");
    let [told] = &said(&object, &mesh(&[])).unwrap()[..] else { panic!() };
    let (kind, condition) = &told.conditions[0];
    assert_eq!((told.parent, *kind, condition.status, condition.reason), (0, "Accepted", false, "UnsupportedValue"));
    assert!(condition.message.starts_with("spec.rules: "), "{condition:?}");
}

#[test]
fn a_route_for_gateways_alone_has_nothing_of_ours() {
    // Without a group it is one of the Gateway API's, of which none is a ServiceEntry.
    let object = route(&[json!({ "name": "gateway" }), json!({ "kind": "ServiceEntry", "name": "e" })], Value::Null);
    assert_eq!(said(&object, &mesh(&[])), Some(Vec::new()));
}
