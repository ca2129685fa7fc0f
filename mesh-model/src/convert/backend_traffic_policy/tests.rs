use serde_json::json;

use super::*;
use crate::convert::convert as convert_object;
use crate::route::SessionBy;

fn read(spec: Value) -> (Reading, Vec<(String, String)>) {
    let metadata = json!({ "namespace": "shop", "name": "web", "generation": 7, "creationTimestamp": "2026-01-01T00:00:00Z" });
    let object = json!({
        "apiVersion": "gateway.networking.x-k8s.io/v1alpha1", "kind": "XBackendTrafficPolicy", "metadata": metadata, "spec": spec,
    });
    let converted = convert_object(&object);
    (converted.reading, converted.findings.into_iter().map(|finding| (finding.field.to_string(), finding.message)).collect())
}

fn good(spec: Value) -> (Arc<BackendTrafficPolicy>, Vec<(String, String)>) {
    let (reading, found) = read(spec);
    let Reading::Good(Object::BackendTrafficPolicy(policy)) = reading else { panic!("{reading:?} {found:?}") };
    (policy, found)
}

fn to_web() -> Value {
    json!([{ "group": "", "kind": "Service", "name": "web" }])
}

#[test]
fn budgets_with_the_standards_defaults() {
    let seconds = Duration::from_secs;
    for (constraint, wanted) in [
        (json!({}), (20, seconds(10), 10, seconds(1))),
        (json!({ "budget": {} }), (20, seconds(10), 10, seconds(1))),
        (json!({ "budget": { "percent": 0 }, "minRetryRate": { "count": 0 } }), (0, seconds(10), 0, seconds(1))),
        (
            json!({ "budget": { "percent": 50, "interval": "1m" }, "minRetryRate": { "count": 3, "interval": "500ms" } }),
            (50, seconds(60), 3, Duration::from_millis(500)),
        ),
    ] {
        let (policy, found) = good(json!({ "targetRefs": to_web(), "retryConstraint": constraint }));
        let budget = policy.retry_budget.clone().unwrap();
        assert_eq!((budget.percent, budget.interval, budget.minimum, budget.minimum_interval), wanted, "{constraint}");
        assert_eq!((found, policy.session.is_none(), policy.generation), (vec![], true, Some(7)));
        assert_eq!((policy.targets.as_slice(), policy.created), (&[(0, "web".into())][..], Some(1_767_225_600)));
    }
}

#[test]
fn sessions_as_routes_have_them() {
    let session = json!({ "type": "Header", "sessionName": "x-shop" });
    let (policy, found) = good(json!({ "targetRefs": to_web(), "sessionPersistence": session }));
    assert_eq!((&policy.session.clone().unwrap().by, found), (&SessionBy::Header("x-shop".into()), vec![]));
    let (reading, found) = read(json!({ "targetRefs": to_web(), "sessionPersistence": { "absoluteTimeout": "1 day" } }));
    assert!(matches!(reading, Reading::Unreadable) && found[0].0 == "spec.sessionPersistence.absoluteTimeout", "{found:?}");
    assert!(found[0].1.contains("stays in force"), "{found:?}");
}

#[test]
fn targets_of_other_controllers_are_theirs() {
    let backend = json!({ "group": "gateway.networking.x-k8s.io", "kind": "XBackend", "name": "away" });
    assert_eq!(read(json!({ "targetRefs": [backend], "retryConstraint": {} })), (Reading::Foreign, vec![]));
    let both = json!([backend, { "group": "", "kind": "Service", "name": "web" }]);
    assert_eq!(good(json!({ "targetRefs": both, "retryConstraint": {} })).0.targets, [(1, "web".into())]);
}

#[test]
fn a_mistake_is_named_and_changes_nothing() {
    for (spec, field, words) in [
        (
            json!({ "targetRefs": to_web(), "retryConstraint": { "budget": { "percent": 101 } } }),
            "spec.retryConstraint.budget.percent",
            "0 to 100",
        ),
        (
            json!({ "targetRefs": to_web(), "retryConstraint": { "budget": { "interval": "0s" } } }),
            "spec.retryConstraint.budget.interval",
            "from 1s",
        ),
        (
            json!({ "targetRefs": to_web(), "retryConstraint": { "budget": { "interval": "2h" } } }),
            "spec.retryConstraint.budget.interval",
            "to 1h",
        ),
        (
            json!({ "targetRefs": to_web(), "retryConstraint": { "budget": { "interval": "1.5s" } } }),
            "spec.retryConstraint.budget.interval",
            "duration",
        ),
        (
            json!({ "targetRefs": to_web(), "retryConstraint": { "minRetryRate": { "count": -1 } } }),
            "spec.retryConstraint.minRetryRate.count",
            "whole",
        ),
        (
            json!({ "targetRefs": to_web(), "retryConstraint": { "minRetryRate": { "interval": "1ms" } } }),
            "spec.retryConstraint.minRetryRate.interval",
            "10ms",
        ),
        (json!({ "targetRefs": [{ "kind": "Service" }] }), "spec.targetRefs[0].name", "missing"),
        (json!({ "targetRefs": [{ "group": "apps", "kind": "Service", "name": "web" }] }), "spec.targetRefs[0].group", "has none"),
        (json!({ "targetRefs": to_web(), "retryConstraint": 5 }), "spec.retryConstraint", "mapping"),
        (json!({ "targetRefs": "web" }), "spec.targetRefs", "list"),
    ] {
        let (reading, found) = read(spec.clone());
        assert!(matches!(reading, Reading::Unreadable), "{spec}: {reading:?}");
        assert!(found.iter().any(|(at, message)| at == field && message.contains(words)), "{spec}: {found:?}");
    }
    for (spec, field) in [
        (json!({ "targetRefs": to_web() }), "spec"),
        (json!({ "targetRefs": to_web(), "retryConstraint": { "burst": 1 } }), "spec.retryConstraint.burst"),
        (json!({ "targetRefs": to_web(), "retry": {}, "retryConstraint": {} }), "spec.retry"),
    ] {
        let (_, found) = good(spec.clone());
        assert_eq!(found.iter().map(|(at, _)| at.as_str()).collect::<Vec<_>>(), [field], "{spec}");
    }
}
