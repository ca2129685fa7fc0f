use std::path::Path;

use super::*;
use crate::document::parse_documents;

fn policy(name: &str, created: &str, targets: &[&str], percent: u32) -> String {
    let targets: Vec<String> = targets.iter().map(|target| format!("{{group: '', kind: Service, name: {target}}}")).collect();
    format!(
        "---\napiVersion: gateway.networking.x-k8s.io/v1alpha1\nkind: XBackendTrafficPolicy\n\
         metadata: {{name: {name}, namespace: shop, creationTimestamp: '{created}'}}\n\
         spec: {{targetRefs: [{}], retryConstraint: {{budget: {{percent: {percent}}}}}}}\n",
        targets.join(", ")
    )
}

fn after(policies: &[String], previous: Option<&Snapshot>) -> Snapshot {
    let services = ["web", "cart"].map(|name| {
        format!("---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{clusterIP: 10.96.0.{}, ports: [{{port: 80}}]}}\n", name.len())
    });
    let parsed = parse_documents(Path::new("mesh.yaml"), &[services.concat(), policies.concat()].concat());
    Snapshot::build(&parsed.documents, parsed.problems, previous)
}

fn service(name: &str) -> NamespacedName {
    NamespacedName { namespace: "shop".into(), name: name.into() }
}

fn percent(snapshot: &Snapshot, name: &str) -> Option<u32> {
    snapshot.retry_budget(&service(name)).map(|budget| budget.percent)
}

const OLD: &str = "2026-01-01T00:00:00Z";
const NEW: &str = "2026-02-01T00:00:00Z";

#[test]
fn of_two_for_a_service_the_older_counts_and_the_other_is_told() {
    let snapshot = after(&[policy("a", NEW, &["web", "cart"], 50), policy("b", OLD, &["web"], 10)], None);
    assert_eq!((percent(&snapshot, "web"), percent(&snapshot, "cart")), (Some(10), Some(50)));
    let said: Vec<_> =
        snapshot.backend_statuses().iter().map(|s| (s.policy.name.to_string(), s.target, s.accepted.status, s.accepted.reason)).collect();
    let wanted = [("a".to_owned(), 0, false, "Conflicted"), ("a".to_owned(), 1, true, "Accepted"), ("b".to_owned(), 0, true, "Accepted")];
    assert_eq!(said, wanted);
    let problems: Vec<String> = snapshot.problems().iter().map(ToString::to_string).collect();
    assert!(problems.len() == 1 && problems[0].contains("spec.targetRefs[0]") && problems[0].contains("shop/b"), "{problems:?}");
    // Of the same age the name decides.
    let snapshot = after(&[policy("b", OLD, &["web"], 10), policy("a", OLD, &["web"], 50)], None);
    assert_eq!(percent(&snapshot, "web"), Some(50));
    // One that names a Service twice is in no conflict with itself.
    let snapshot = after(&[policy("a", OLD, &["web", "web"], 50)], None);
    assert!(snapshot.backend_statuses().iter().all(|status| status.accepted.status) && snapshot.problems().is_empty());
}

#[test]
fn a_target_that_is_not_there_is_told() {
    let snapshot = after(&[policy("a", OLD, &["web", "nobody"], 50)], None);
    let said: Vec<_> = snapshot.backend_statuses().iter().map(|s| (s.target, s.accepted.reason)).collect();
    assert_eq!(said, [(0, "Accepted"), (1, "TargetNotFound")]);
    assert_eq!(snapshot.problems().len(), 1);
}

#[test]
fn what_says_the_same_is_the_same() {
    let first = after(&[policy("a", OLD, &["web"], 50)], None);
    let second = after(&[policy("a", OLD, &["web"], 50)], Some(&first));
    assert!(Arc::ptr_eq(first.backend_policy(&service("web")).unwrap(), second.backend_policy(&service("web")).unwrap()));
    assert!(!second.is_routed(&service("web"), 80), "a budget alone asks for nothing that the kernel cannot do");
    let third = after(&[], Some(&second));
    assert_eq!((percent(&third, "web"), third.backend_statuses().len()), (None, 0));
    let session = policy("a", OLD, &["web"], 50).replace("retryConstraint", "sessionPersistence: {type: Cookie}, retryConstraint");
    assert!(after(&[session], None).is_routed(&service("web"), 80));
}
