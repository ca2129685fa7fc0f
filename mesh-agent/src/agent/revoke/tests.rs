use std::path::Path;

use mesh_common::addr::{Addr, Port};
use mesh_model::document::parse_documents;
use mesh_model::policy::SetInterner;
use mesh_model::snapshot::Snapshot;

use super::*;
use crate::outcome::DenyReason;

const MESH: &str = "apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop}
spec: {serviceAccountName: client}
status: {podIP: 10.0.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: server, namespace: shop, labels: {app: server}}
status: {podIP: 10.0.0.2}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {nodemesh.dev/mesh: enabled}}
";

fn parties(policies: &str) -> Parties {
    let parsed = parse_documents(Path::new("mesh.yaml"), &format!("{MESH}{policies}"));
    let snapshot = Snapshot::build(&parsed.documents, parsed.problems, None);
    let netns = Arc::new(NetNs::current().unwrap());
    let party = |address: &str| {
        let address: IpAddr = address.parse().unwrap();
        let workload = snapshot.workload_at(address).unwrap();
        let policy = Arc::new(WorkloadPolicy::of(&snapshot, workload, &mut SetInterner::default()));
        (address, Arc::new(Party { identity: workload.identity.clone(), netns: netns.clone(), policy, ready: true }))
    };
    Parties { meshed: HashMap::from([party("10.0.0.1"), party("10.0.0.2")]), outside: HashSet::new() }
}

fn key() -> FlowKey {
    FlowKey {
        source: Addr::v4([10, 0, 0, 1]),
        destination: Addr::v4([10, 0, 0, 2]),
        source_port: Port::new(40_000),
        destination_port: Port::new(80),
    }
}

fn policy(name: &str, action: &str, from: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{selector: {{matchLabels: {{app: server}}}}, action: {action}, rules: [{{from: [{{source: {{{from}}}}}]}}]}}\n"
    )
}

#[test]
fn what_policy_says_now_is_the_reason() {
    let name = |name: &str| Some(mesh_model::service::NamespacedName { namespace: "shop".into(), name: name.into() });
    let clients = "principals: [cluster.local/ns/shop/sa/client]";
    let cases = [
        (policy("closed", "DENY", clients), DenyReason::DenyPolicy, name("closed")),
        (policy("others", "ALLOW", "principals: [cluster.local/ns/shop/sa/other]"), DenyReason::NoAllowPolicy, None),
        (policy("odd", "ALLOW", "unheardOf: [x]"), DenyReason::InvalidPolicy, name("odd")),
    ];
    for (policies, reason, policy) in cases {
        assert_eq!(allowed(KIND_DIRECT, &key(), &parties(&policies)), Err(Outcome::PolicyRevoked { reason, policy }), "{policies}");
    }
    assert_eq!(allowed(KIND_DIRECT, &key(), &parties("")), Ok(()));
    assert_eq!(allowed(KIND_PLAINTEXT, &key(), &parties("")), Ok(()));
    let strict = "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: strict, namespace: shop}\nspec: {mtls: {mode: STRICT}}\n";
    assert_eq!(allowed(KIND_DIRECT, &key(), &parties(strict)), Ok(()));
    assert_eq!(allowed(KIND_PLAINTEXT, &key(), &parties(strict)), Err(Outcome::MtlsRequired { policy: name("strict") }));
    assert_eq!(allowed(KIND_DIRECT, &key(), &parties(&policy("clients", "ALLOW", clients))), Ok(()));
}

#[test]
fn a_pod_that_left_or_waits_is_the_reason() {
    let (client, server): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
    for (address, side) in [(client, Side::Client), (server, Side::Server)] {
        let mut all = parties("");
        let there = all.meshed.remove(&address).unwrap();
        assert_eq!(allowed(KIND_DIRECT, &key(), &all), Err(Outcome::PodGone { side }));
        let waits = Party { identity: there.identity.clone(), netns: there.netns.clone(), policy: there.policy.clone(), ready: false };
        all.meshed.insert(address, Arc::new(waits));
        assert!(matches!(allowed(KIND_DIRECT, &key(), &all), Err(Outcome::PodHeld { side: held, .. }) if held == side));
    }
}
