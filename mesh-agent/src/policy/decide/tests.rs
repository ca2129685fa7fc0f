use std::path::Path;

use mesh_model::document::parse_documents;

use super::*;

const POD: &str = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: shop, labels: {app: web}}\nstatus: {podIP: 10.0.0.1}\n";

fn object(kind: &str, name: &str, spec: &str) -> String {
    format!("---\napiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n")
}

/// What is in force for the pod beside these objects.
pub(crate) fn in_force(objects: &[String]) -> WorkloadPolicy {
    let parsed = parse_documents(Path::new("mesh.yaml"), &(POD.to_string() + &objects.concat()));
    let snapshot = Snapshot::build(&parsed.documents, parsed.problems, None);
    let workload = snapshot.workloads().next().unwrap().clone();
    WorkloadPolicy::of(&snapshot, &workload, &mut SetInterner::default())
}

pub(crate) fn authorization(name: &str, spec: &str) -> String {
    object("AuthorizationPolicy", name, spec)
}

pub(crate) fn peer(service_account: Option<&str>) -> Peer {
    let identity = service_account.map(|name| format!("spiffe://cluster.local/ns/shop/sa/{name}").parse().unwrap());
    Peer { identity, address: ClientAddr("10.0.0.9:40000".parse().unwrap()) }
}

pub(crate) fn server(port: u16) -> ServerAddr {
    ServerAddr(format!("10.0.0.1:{port}").parse().unwrap())
}

fn denial(policy: &WorkloadPolicy, peer: &Peer, port: u16, transport: Transport) -> Denial {
    decide(policy, peer, server(port), transport).unwrap_err()
}

#[test]
fn strict_refuses_plaintext_and_names_who_says_so() {
    let strict = in_force(&[object("PeerAuthentication", "default", "{mtls: {mode: STRICT}}")]);
    let denied = denial(&strict, &peer(None), 80, Transport::Plaintext);
    assert_eq!((denied.reason.clone(), denied.policy.clone().unwrap().to_string()), (DenialReason::MtlsRequired, "shop/default".into()));
    assert_eq!(denied.to_string(), "plaintext is refused: PeerAuthentication shop/default demands mTLS (STRICT) on this port");
    assert!(decide(&strict, &peer(Some("a")), server(80), Transport::Tunnel).is_ok());
    assert!(decide(&strict, &peer(None), server(80), Transport::HostProbe).is_ok());
    let one_port = in_force(&[object(
        "PeerAuthentication",
        "web",
        "{selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: PERMISSIVE}}}",
    )]);
    assert!(decide(&one_port, &peer(None), server(8080), Transport::Plaintext).is_ok());
    assert_eq!(denial(&one_port, &peer(None), 80, Transport::Plaintext).reason, DenialReason::MtlsRequired);
}

#[test]
fn policies_decide_by_identity_and_only_a_proven_one() {
    let only_alice = in_force(&[authorization("alice", "{rules: [{from: [{source: {serviceAccounts: [alice]}}]}]}")]);
    let permit = decide(&only_alice, &peer(Some("alice")), server(80), Transport::Tunnel).unwrap();
    assert_eq!(permit.policy().unwrap().to_string(), "shop/alice");
    let denied = denial(&only_alice, &peer(Some("bob")), 80, Transport::Tunnel);
    assert_eq!((denied.reason, denied.policy), (DenialReason::NoAllowPolicy, None));
    assert_eq!(denial(&only_alice, &peer(Some("alice")), 80, Transport::Plaintext).reason, DenialReason::NoAllowPolicy);
    assert_eq!(denial(&only_alice, &peer(None), 80, Transport::Tunnel).reason, DenialReason::NoIdentity);
    assert!(decide(&only_alice, &peer(None), server(80), Transport::HostProbe).is_ok());
}

#[test]
fn a_denial_names_its_policy() {
    let policy = in_force(&[authorization("no-bob", "{action: DENY, rules: [{from: [{source: {serviceAccounts: [bob]}}]}]}")]);
    let denied = denial(&policy, &peer(Some("bob")), 80, Transport::Tunnel);
    assert_eq!(denied.to_string(), "AuthorizationPolicy shop/no-bob denies it");
    let broken = in_force(&[authorization("broken", "{action: CUSTOM}")]);
    let denied = denial(&broken, &peer(Some("bob")), 80, Transport::Tunnel);
    assert_eq!((denied.reason.clone(), denied.policy.clone().unwrap().to_string()), (DenialReason::InvalidPolicy, "shop/broken".into()));
}

#[test]
fn a_client_address_written_as_ipv6_is_the_ipv4_one() {
    let policy = in_force(&[authorization("net", "{rules: [{from: [{source: {ipBlocks: [10.0.0.9]}}]}]}")]);
    let mapped = Peer { identity: None, address: ClientAddr("[::ffff:10.0.0.9]:1".parse().unwrap()) };
    assert!(decide(&policy, &mapped, server(80), Transport::Plaintext).is_ok());
}

#[test]
fn missing_rules_refuse_all_but_probes() {
    let missing = WorkloadPolicy::missing("its policies");
    for transport in [Transport::Tunnel, Transport::Plaintext] {
        let denied = denial(&missing, &peer(Some("a")), 80, transport);
        assert_eq!(denied.to_string(), "the workload's rules are not there yet: waiting for its policies");
    }
    assert!(decide(&missing, &peer(None), server(80), Transport::HostProbe).is_ok());
}

#[test]
fn dry_run_and_audit_are_noted_in_the_permit() {
    let dry = |spec: &str| authorization("dry", spec).replace("{name: dry,", "{name: dry, annotations: {istio.io/dry-run: 'true'},");
    let decided = |objects: &[String]| decide(&in_force(objects), &peer(Some("a")), server(80), Transport::Tunnel).unwrap();
    let permit = decided(&[dry("{action: DENY, rules: [{}]}"), authorization("audit", "{action: AUDIT, rules: [{}]}")]);
    assert_eq!(permit.dry_run().unwrap().to_string(), "AuthorizationPolicy shop/dry (in dry run) would deny it");
    assert_eq!(permit.audited().unwrap().to_string(), "shop/audit");
    assert_eq!(decided(&[dry("{}")]).dry_run(), Some(&DryRun::NotAllowed));
    let plain = decided(&[]);
    assert_eq!((plain.policy(), plain.dry_run(), plain.audited()), (None, None, None));
}
