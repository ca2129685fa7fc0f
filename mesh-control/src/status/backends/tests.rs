use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use mesh_model::document::parse_documents;

use super::*;

const SERVICE: &str =
    "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}\n";

fn policy(name: &str, created: &str, targets: &Value, percent: i64) -> Value {
    json!({
        "apiVersion": "gateway.networking.x-k8s.io/v1alpha1",
        "kind": "XBackendTrafficPolicy",
        "metadata": { "name": name, "namespace": "shop", "generation": 3, "resourceVersion": "17", "creationTimestamp": created },
        "spec": { "targetRefs": targets, "retryConstraint": { "budget": { "percent": percent } } },
    })
}

fn to(names: &[&str]) -> Value {
    names.iter().map(|name| json!({ "group": "", "kind": "Service", "name": name })).collect()
}

fn snapshot(policies: &[&Value]) -> Snapshot {
    let text: String = policies.iter().map(|policy| format!("---\n{policy}\n")).collect();
    let parsed = parse_documents(Path::new("mesh.yaml"), &format!("{SERVICE}{text}"));
    Snapshot::build(&parsed.documents, parsed.problems, None)
}

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

/// Service, status and reason of each entry of a patch.
fn entries(patch: &Value) -> Vec<(String, String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let of = |entry: &Value| {
        let condition = &entry["conditions"][0];
        (text(&entry["ancestorRef"]["name"]), text(&condition["status"]), text(&condition["reason"]))
    };
    patch["status"]["ancestors"].as_array().unwrap().iter().map(of).collect()
}

#[test]
fn each_service_has_an_entry_and_what_says_so_already_is_left_alone() {
    let mut object = policy("a", "2026-01-01T00:00:00Z", &to(&["web", "gone"]), 20);
    let said = said(&object, &snapshot(&[&object])).unwrap();
    let first = patch(&object, &said, now()).unwrap();
    let words = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned());
    assert_eq!(entries(&first), [words("web", "True", "Accepted"), words("gone", "False", "TargetNotFound")]);
    let entry = &first["status"]["ancestors"][0];
    assert_eq!(entry["ancestorRef"], json!({ "group": "", "kind": "Service", "namespace": "shop", "name": "web" }));
    assert_eq!((&entry["controllerName"], &entry["conditions"][0]["observedGeneration"]), (&json!(CONTROLLER_NAME), &json!(3)));
    assert_eq!(first["metadata"]["resourceVersion"], "17");

    let others = json!({ "ancestorRef": { "kind": "Gateway", "name": "g" }, "controllerName": "example.com/other", "conditions": [] });
    let mut ancestors = first["status"]["ancestors"].as_array().unwrap().clone();
    ancestors.insert(0, others.clone());
    object["status"] = json!({ "ancestors": ancestors });
    assert_eq!(patch(&object, &said, now() + Duration::from_secs(60)), None);
    // No target is ours any more.
    let second = patch(&object, &[], now()).unwrap();
    assert_eq!(second["status"]["ancestors"], json!([others]));
}

#[test]
fn conflicts_mistakes_and_states_not_followed_yet() {
    let older = policy("b", "2026-01-01T00:00:00Z", &to(&["web"]), 20);
    let newer = policy("a", "2026-02-01T00:00:00Z", &to(&["web"]), 50);
    let both = snapshot(&[&older, &newer]);
    let reason = |object: &Value| said(object, &both).unwrap().into_iter().map(|(_, accepted)| accepted.reason).collect::<Vec<_>>();
    assert_eq!((reason(&older), reason(&newer)), (vec!["Accepted"], vec!["Conflicted"]));

    let mut next = older.clone();
    next["metadata"]["generation"] = json!(4);
    assert_eq!(said(&next, &both), None, "the mesh has not seen it");
    next["spec"]["retryConstraint"]["budget"]["percent"] = json!(200);
    let told = said(&next, &both).unwrap();
    assert!(told.len() == 1 && told[0].1.reason == "Invalid" && told[0].1.message.contains("percent"), "{told:?}");

    let mut warned = older.clone();
    warned["spec"]["retryConstraint"]["burst"] = json!(1);
    let told = said(&warned, &snapshot(&[&warned])).unwrap();
    assert!(told[0].1.status && told[0].1.message.contains("spec.retryConstraint.burst"), "{told:?}");
    let foreign = policy("c", "2026-01-01T00:00:00Z", &json!([{ "group": "x.example", "kind": "Thing", "name": "web" }]), 20);
    assert_eq!(said(&foreign, &both), Some(vec![]));
}
