use std::path::Path;

use super::*;
use crate::document::parse_documents;
use crate::snapshot::Snapshot;

#[test]
fn everything_that_a_scope_says_must_hold() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: client, namespace: shop, labels: {app: client}}\nspec: {nodeName: n1, containers: []}\n";
    let parsed = parse_documents(Path::new("mesh.yaml"), text);
    let snapshot = Snapshot::build(&parsed.documents, parsed.problems, None);
    let client = snapshot.workloads().next().unwrap();
    let all = ConnectionScope {
        destinations: vec!["10.96.0.0/24".parse().unwrap(), "fd00::/64".parse().unwrap()],
        source_labels: BTreeMap::from([("app".into(), "client".into())]),
        source_namespace: Some("shop".into()),
    };
    let holds = |scope: &ConnectionScope, dialled: &str| scope.holds(client, dialled.parse().unwrap());
    assert!(holds(&ConnectionScope::default(), "10.0.0.1"));
    assert!(holds(&all, "10.96.0.7") && holds(&all, "fd00::7"));
    assert!(!holds(&all, "10.97.0.7") && !holds(&all, "fd01::7"));
    assert!(!holds(&ConnectionScope { source_namespace: Some("away".into()), ..all.clone() }, "10.96.0.7"));
    let labels = BTreeMap::from([("app".into(), "client".into()), ("version".into(), "2".into())]);
    assert!(!holds(&ConnectionScope { source_labels: labels, ..all }, "10.96.0.7"));
}
