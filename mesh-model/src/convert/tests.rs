use serde_json::json;

use super::*;
use crate::object::{PodObject, TargetPort, Word};
use crate::policy::{Action, AuthorizationPolicy, Condition, MtlsMode, PeerAuthentication, Scope, StringMatch};
use crate::settings::{MeshSettings, OutboundTraffic, SameNode, UnknownPods};

/// Field and message of each error.
fn errors(converted: &Converted) -> Vec<(String, &str)> {
    let errors = converted.findings.iter().filter(|finding| finding.severity == Severity::Error);
    errors.map(|finding| (finding.field.to_string(), finding.message.as_str())).collect()
}

fn policy(metadata: Value, spec: Value) -> (Arc<AuthorizationPolicy>, Converted) {
    let converted = convert(&json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": metadata, "spec": spec,
    }));
    let Reading::Good(Object::AuthorizationPolicy(policy)) = &converted.reading else { panic!("{converted:?}") };
    (policy.clone(), converted)
}

fn rules(rules: Value) -> (Arc<AuthorizationPolicy>, Converted) {
    policy(json!({"name": "p", "namespace": "shop"}), json!({ "rules": rules }))
}

fn pod(object: Value) -> (Arc<PodObject>, Converted) {
    let converted = convert(&object);
    let (Reading::Good(Object::Pod(pod)) | Reading::Cautious(Object::Pod(pod))) = &converted.reading else { panic!("{converted:?}") };
    (pod.clone(), converted)
}

fn peer(spec: Value) -> (Arc<PeerAuthentication>, Converted) {
    let converted = convert(&json!({
        "apiVersion": "security.istio.io/v1beta1", "kind": "PeerAuthentication", "metadata": {"name": "p", "namespace": "shop"}, "spec": spec,
    }));
    let Reading::Good(Object::PeerAuthentication(peer)) = &converted.reading else { panic!("{converted:?}") };
    (peer.clone(), converted)
}

fn mesh(spec: Value) -> (Arc<MeshSettings>, bool, Converted) {
    let object = json!({"apiVersion": "nodemesh.dev/v1alpha1", "kind": "Mesh", "metadata": {"name": "default"}, "spec": spec});
    let converted = convert(&object);
    match &converted.reading {
        Reading::Good(Object::Mesh { settings, .. }) => (settings.clone(), true, converted),
        Reading::Cautious(Object::Mesh { settings, .. }) => (settings.clone(), false, converted),
        _ => panic!("{converted:?}"),
    }
}

#[test]
fn every_field_of_a_policy_is_read() {
    let all = json!([{
        "from": [{"source": {
            "principals": ["cluster.local/ns/a/sa/b", "spiffe://x/*"], "notPrincipals": ["*/sa/c"], "requestPrincipals": ["*"],
            "notRequestPrincipals": ["i/s"], "namespaces": ["a*"], "notNamespaces": ["b"], "serviceAccounts": ["web", "other/db"],
            "notServiceAccounts": ["x"], "trustDomains": ["t"], "notTrustDomains": ["u"], "ipBlocks": ["10.1.2.3/8", "fd00::1", "::ffff:10.0.0.0/104"],
            "notIpBlocks": ["10.0.0.1"], "remoteIpBlocks": ["1.2.3.4"], "notRemoteIpBlocks": ["::/0"],
        }}],
        "to": [{"operation": {
            "hosts": ["a.example"], "notHosts": ["*"], "ports": ["80"], "notPorts": ["81"], "methods": ["GET"], "notMethods": ["POST"],
            "paths": ["/a/{*}"], "notPaths": ["/b/{**}"],
        }}],
        "when": [
            {"key": "source.ip", "values": ["10.0.0.0/8"]}, {"key": "source.namespace", "notValues": ["a"]},
            {"key": "source.principal", "values": ["*"]}, {"key": "source.serviceAccount", "values": ["web"]},
            {"key": "source.trustDomain", "values": ["t"]}, {"key": "destination.ip", "values": ["10.0.0.1"]},
            {"key": "destination.port", "values": ["80"], "notValues": ["81"]}, {"key": "request.headers[x-a]", "values": ["1"]},
            {"key": "request.auth.claims[iss]", "values": ["1"]}, {"key": "connection.sni", "values": ["s"]},
            {"key": "remote.ip", "values": ["1.2.3.4"]},
        ],
    }]);
    let (policy, converted) = rules(all);
    assert_eq!(converted.findings, [], "nothing to complain about");
    let rule = &policy.rules[0];
    let source = &rule.from[0];
    assert_eq!(source.principals[1], StringMatch::Prefix("x/".into()), "spiffe:// may be written");
    let accounts: Vec<_> = source.service_accounts.iter().map(ToString::to_string).collect();
    assert_eq!(accounts, ["shop/web", "other/db"], "a bare name is of the policy's namespace");
    let blocks: Vec<_> = source.ip_blocks.iter().map(ToString::to_string).collect();
    assert_eq!(blocks, ["10.0.0.0/8", "fd00::1/128", "10.0.0.0/8"]);
    assert_eq!((source.not_trust_domains.len(), source.not_remote_ip_blocks.len(), source.not_request_principals.len()), (1, 1, 1));
    assert!(source.needs_http() && rule.to[0].needs_http());
    assert_eq!((rule.to[0].ports.as_slice(), rule.to[0].not_ports.as_slice()), (&[80][..], &[81][..]));
    assert_eq!(rule.when.len(), 11);
    assert_eq!(rule.when.iter().filter(|c| matches!(c, Condition::Http { .. })).count(), 4);
}

#[test]
fn what_is_not_understood_denies_and_says_where() {
    for (rule, field) in [
        (json!({"from": [{"source": {"ipBlocks": ["10.0.0.0/33"]}}]}), "spec.rules[0].from[0].source.ipBlocks[0]"),
        (json!({"from": [{"source": {"principals": ["a*b"]}}]}), "spec.rules[0].from[0].source.principals[0]"),
        (json!({"from": [{"source": {"namespaces": [""]}}]}), "spec.rules[0].from[0].source.namespaces[0]"),
        (json!({"from": [{"source": {"serviceAccounts": ["a/*"]}}]}), "spec.rules[0].from[0].source.serviceAccounts[0]"),
        (json!({"from": [{"source": {"color": ["red"], "namespaces": ["a"]}}]}), "spec.rules[0].from[0].source.color"),
        (json!({"from": [{"source": {}}]}), "spec.rules[0].from[0].source"),
        (json!({"from": [{}]}), "spec.rules[0].from[0].source"),
        (json!({"to": [{"operation": {"ports": ["http"]}}]}), "spec.rules[0].to[0].operation.ports[0]"),
        (json!({"to": [{"operation": {"ports": ["0"]}}]}), "spec.rules[0].to[0].operation.ports[0]"),
        (json!({"to": [{"operation": {"ports": [80]}}]}), "spec.rules[0].to[0].operation.ports[0]"),
        (json!({"when": [{"key": "source.mood", "values": ["good"]}]}), "spec.rules[0].when[0].key"),
        (json!({"when": [{"key": "source.ip"}]}), "spec.rules[0].when[0]"),
        (json!({"when": [{"key": "request.headers[]", "values": ["x"]}]}), "spec.rules[0].when[0].key"),
        (json!({"unless": []}), "spec.rules[0].unless"),
        (json!(null), "spec.rules[0]"),
    ] {
        let (policy, converted) = rules(json!([rule]));
        assert!(policy.refused.is_some(), "{rule}");
        assert_eq!(policy.scope, Scope::Namespace);
        let [(at, message)] = &errors(&converted)[..] else { panic!("{rule}: {converted:?}") };
        assert_eq!(at, field, "{rule}");
        assert!(message.contains("denies everything"), "{message}");
    }
}

#[test]
fn custom_denies_and_audit_never_does() {
    let of = |action: &str| policy(json!({"name": "p"}), json!({ "action": action })).0;
    assert!(of("CUSTOM").refused.is_some());
    assert!(of("allow").refused.is_some());
    assert_eq!((of("DENY").action, of("AUDIT").action, of("ALLOW").action), (Action::Deny, Action::Audit, Action::Allow));
    let bad_audit = policy(json!({"name": "p"}), json!({"action": "AUDIT", "rules": [{"x": 1}]})).0;
    assert_eq!(bad_audit.action, Action::Audit);
}

#[test]
fn a_scope_that_cannot_be_read_is_the_whole_namespace() {
    let of = |spec: Value| policy(json!({"name": "p"}), spec);
    for (spec, field) in [
        (json!({"selector": {"matchLabels": {"a": "b"}, "matchExpressions": []}}), "spec.selector.matchExpressions"),
        (json!({"selector": {"matchLabels": {"a": 1}}}), "spec.selector.matchLabels.a"),
        (json!({"targetRefs": [{"kind": "Gateway", "group": "gateway.networking.k8s.io", "name": "g"}]}), "spec.targetRefs[0]"),
        (json!({"targetRefs": [{"kind": "Service", "name": "g", "namespace": "other"}]}), "spec.targetRefs[0].namespace"),
        (json!({"targetRefs": [{"kind": "Service"}]}), "spec.targetRefs[0].name"),
        (json!({"targetRefs": {"kind": "Service"}}), "spec.targetRefs"),
        (json!({"selector": {"matchLabels": {"a": "b"}}, "targetRef": {"kind": "Service", "name": "s"}}), "spec.selector"),
    ] {
        let (policy, converted) = of(spec.clone());
        assert_eq!((policy.scope.clone(), policy.refused.is_some()), (Scope::Namespace, true), "{spec}");
        assert_eq!(errors(&converted).iter().map(|(at, _)| at.as_str()).collect::<Vec<_>>(), [field], "{spec}");
    }
    let (policy, converted) =
        of(json!({"targetRefs": [{"kind": "Service", "name": "b"}], "targetRef": {"group": "core", "kind": "Service", "name": "a"}}));
    assert_eq!(policy.scope, Scope::Services(vec!["a".into(), "b".into()]), "{converted:?}");
}

#[test]
fn a_bad_policy_keeps_the_scope_that_can_be_read() {
    let (policy, _) = policy(json!({"name": "p"}), json!({"selector": {"matchLabels": {"a": "b"}}, "rules": "none"}));
    assert!(policy.refused.is_some());
    assert_eq!(policy.scope, Scope::Selector([("a".to_string(), "b".to_string())].into()));
}

#[test]
fn a_policy_whose_place_cannot_be_read_is_kept() {
    let (policy, converted) = policy(json!({"namespace": ["x"]}), json!({}));
    assert_eq!((&*policy.name.namespace, &*policy.name.name), ("", ""));
    assert!(policy.refused.is_some());
    let fields: Vec<_> = errors(&converted).into_iter().map(|(at, _)| at).collect();
    assert_eq!(fields, ["metadata.name", "metadata.namespace", "metadata.namespace"]);
}

#[test]
fn dry_run_is_said_by_either_annotation_and_only_clearly() {
    let of = |annotations: Value| policy(json!({"name": "p", "annotations": annotations}), json!({})).0;
    assert!(of(json!({"istio.io/dry-run": "true"})).dry_run);
    assert!(of(json!({"nodemesh.dev/dry-run": "true"})).dry_run);
    assert!(!of(json!({"istio.io/dry-run": "false"})).dry_run);
    assert!(!of(json!({"istio.io/dry-run": "yes"})).dry_run);
    assert!(!of(json!({"istio.io/dry-run": true})).dry_run);
}

#[test]
fn rules_absent_empty_and_open_differ() {
    assert!(policy(json!({"name": "p"}), json!({})).0.rules.is_empty());
    assert!(policy(json!({"name": "p"}), json!(null)).0.rules.is_empty());
    assert_eq!(rules(json!([{}])).0.rules.len(), 1);
    assert!(rules(json!([{}])).0.refused.is_none());
}

#[test]
fn peer_authentication_is_read_or_strict() {
    let (peer_, converted) = peer(
        json!({"selector": {"matchLabels": {"app": "web"}}, "mtls": {"mode": "STRICT"}, "portLevelMtls": {"8080": {"mode": "DISABLE"}, "9090": {"mode": "UNSET"}}}),
    );
    assert_eq!(converted.findings, []);
    assert_eq!((peer_.mode, &peer_.ports), (Some(MtlsMode::Strict), &[(8080, Some(MtlsMode::Disable)), (9090, None)].into()));
    for (spec, field) in [
        (json!({"mtls": {"mode": "strict"}}), "spec.mtls.mode"),
        (json!({"mtls": {"modus": "STRICT"}}), "spec.mtls.modus"),
        (json!({"mtls": "STRICT"}), "spec.mtls"),
        (json!({"portLevelMtls": {"8080": {"mode": "DISABLE"}}}), "spec.portLevelMtls"),
        (json!({"selector": {"matchLabels": {"a": "b"}}, "portLevelMtls": {"http": {"mode": "DISABLE"}}}), "spec.portLevelMtls.http"),
        (json!({"selector": {"labels": {"a": "b"}}, "mtls": {"mode": "DISABLE"}}), "spec.selector.labels"),
    ] {
        let (peer, converted) = peer(spec.clone());
        assert!(peer.refused.is_some(), "{spec}");
        assert_eq!(errors(&converted)[0].0, field, "{spec}");
    }
}

#[test]
fn mesh_settings_are_read_and_mistakes_are_strict() {
    let (settings, good, converted) = mesh(json!({
        "trustDomain": "prod.example", "rootNamespace": "root", "mtls": {"mode": "STRICT"}, "sameNode": "encrypt",
        "excludedPorts": [22], "excludedCidrs": ["169.254.0.0/16"], "unknownPods": "pass",
        "outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"},
    }));
    assert!(good, "{converted:?}");
    assert_eq!((settings.trust_domain.as_str(), &*settings.root_namespace), ("prod.example", "root"));
    assert_eq!((settings.mtls, settings.same_node, settings.unknown_pods), (MtlsMode::Strict, SameNode::Encrypt, UnknownPods::Pass));
    assert_eq!((settings.excluded_ports.len(), settings.excluded_cidrs.len()), (1, 1));
    assert_eq!(settings.outbound_traffic, OutboundTraffic::RegistryOnly);
    let (settings, good, converted) =
        mesh(json!({"trustDomain": "prod.example", "mtls": {"mode": "?"}, "sameNode": "?", "excludedPorts": [22, 0]}));
    assert!(!good);
    assert_eq!((settings.trust_domain.as_str(), settings.mtls, settings.same_node), ("prod.example", MtlsMode::Strict, SameNode::Encrypt));
    assert!(settings.excluded_ports.is_empty());
    assert_eq!(errors(&converted).len(), 3);
    for (policy, expected) in [
        (json!({}), OutboundTraffic::AllowAny),
        (json!({"mode": "ALLOW_ANY"}), OutboundTraffic::AllowAny),
        (json!({"mode": "registry"}), OutboundTraffic::RegistryOnly),
        (json!("REGISTRY_ONLY"), OutboundTraffic::RegistryOnly),
    ] {
        assert_eq!(mesh(json!({"outboundTrafficPolicy": policy.clone()})).0.outbound_traffic, expected, "{policy}");
    }
    let (_, good, converted) = mesh(json!({"drainTime": "5s"}));
    assert!(good && converted.findings.len() == 1, "a field that is not done is said");
}

#[test]
fn a_pod_is_read_with_its_names() {
    let (pod, converted) = pod(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "web-5d4f8-x", "namespace": "shop", "uid": "u1",
            "labels": {"app": "web", "version": "v2", "pod-template-hash": "5d4f8", "nodemesh.dev/mesh": "enabled"},
            "annotations": {"nodemesh.dev/netns": "/run/netns/web"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d4f8", "uid": "r", "controller": true}],
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {"nodeName": "n1", "serviceAccountName": "web", "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}, {"name": "dns", "containerPort": 53, "protocol": "UDP"}]}]},
        "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]},
    }));
    assert_eq!(converted.findings, []);
    assert_eq!((&*pod.canonical.workload, &*pod.canonical.service, &*pod.canonical.revision), ("web", "web", "v2"));
    assert_eq!((pod.addresses.len(), pod.mesh, pod.ready), (2, Word::Enabled, true));
    assert_eq!(pod.netns.as_deref(), Some(Path::new("/run/netns/web")));
    assert_eq!(pod.ports, [("http".to_string(), 8080)].into());
    assert_eq!(pod.created, Some(1_767_225_600));
}

use std::path::Path;

#[test]
fn a_pod_without_particulars_has_defaults() {
    let (pod, _) = pod(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": []}}));
    assert_eq!((&*pod.uid.0, &*pod.service_account, &*pod.name.namespace), ("default/a", "default", "default"));
    assert_eq!((pod.mesh, pod.ready, pod.finished), (Word::Unsaid, true, false));
    assert_eq!((&*pod.canonical.workload, &*pod.canonical.revision), ("a", "latest"));
}

#[test]
fn a_pod_that_is_half_understood_is_kept_with_what_is_known() {
    let (pod, converted) = pod(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "a", "labels": {"nodemesh.dev/mesh": "enabled"}, "annotations": {"nodemesh.dev/netns": "/run/netns/a"}},
        "spec": {"nodeName": "n1", "containers": "none"}, "status": {"podIP": "10.0.0.1"},
    }));
    assert!(matches!(converted.reading, Reading::Cautious(_)));
    assert!(pod.refused.as_ref().unwrap().contains("spec.containers"));
    assert_eq!((pod.mesh, &*pod.node, pod.addresses.len(), pod.netns.is_some()), (Word::Enabled, "n1", 1, true));
}

#[test]
fn the_mesh_label_is_clear_or_reported() {
    let of =
        |label: Value| pod(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "labels": {"nodemesh.dev/mesh": label}}}));
    let (pod, converted) = of(json!("enabeld"));
    assert_eq!(pod.mesh, Word::Nonsense);
    assert_eq!(converted.findings[0].field.to_string(), "metadata.labels[\"nodemesh.dev/mesh\"]");
    assert_eq!(of(json!(true)).0.mesh, Word::Nonsense);
    use Word::{Disabled, Enabled, Nonsense, Unsaid};
    for (pod, namespace, enrolled) in [
        (Unsaid, Unsaid, false),
        (Unsaid, Enabled, true),
        (Unsaid, Disabled, false),
        (Unsaid, Nonsense, true),
        (Enabled, Disabled, true),
        (Disabled, Enabled, false),
        (Nonsense, Enabled, true),
        (Nonsense, Disabled, false),
        (Nonsense, Unsaid, true),
    ] {
        assert_eq!(Word::enrolled(pod, namespace), enrolled, "{pod:?} {namespace:?}");
    }
}

#[test]
fn a_misspelt_label_of_ours_is_reported() {
    let (_, converted) = pod(
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "labels": {"nodemesh.dev/mehs": "enabled", "app": "web"}}}),
    );
    let fields: Vec<_> = converted.findings.iter().map(|finding| finding.field.to_string()).collect();
    assert_eq!(fields, ["metadata.labels[\"nodemesh.dev/mehs\"]"]);
}

#[test]
fn a_service_is_read() {
    let service = |spec: Value| convert(&json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": spec}));
    let converted = service(json!({
        "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::96"], "selector": {"app": "web"},
        "ports": [{"port": 80, "name": "http", "targetPort": "http", "appProtocol": "http"}, {"port": 53, "protocol": "UDP"}, {"port": 81}, {"port": 82, "targetPort": "8082"}],
    }));
    let Reading::Good(Object::Service(read)) = &converted.reading else { panic!("{converted:?}") };
    assert_eq!(read.addresses.len(), 2);
    let targets: Vec<_> = read.ports.iter().map(|port| (port.port, port.target.clone())).collect();
    assert_eq!(targets, [(80, TargetPort::Name("http".into())), (81, TargetPort::Number(81)), (82, TargetPort::Number(8082))]);
    assert_eq!(service(json!({"type": "ExternalName", "externalName": "x"})).reading, Reading::Foreign);
    assert_eq!(service(json!({"clusterIP": "10.96.0.1", "ports": [{"port": 70000}]})).reading, Reading::Unreadable);
    let headless = service(json!({"clusterIP": "None", "ports": [{"port": 80}]}));
    assert!(matches!(&headless.reading, Reading::Good(Object::Service(s)) if s.addresses.is_empty()) && headless.findings.is_empty());
}

#[test]
fn an_api_servers_pod_names_no_network_namespace() {
    let object = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "namespace": "shop", "uid": "u", "annotations": {NETNS_ANNOTATION: "/proc/1/ns/net"}},
        "spec": {"containers": []},
    });
    let converted = convert_from(&object, Provenance::ApiServer);
    let Reading::Good(Object::Pod(pod)) = &converted.reading else { panic!("{converted:?}") };
    assert_eq!(pod.netns, None);
    assert_eq!(converted.findings.len(), 1, "{converted:?}");
    let Reading::Good(Object::Pod(pod)) = convert(&object).reading else { panic!() };
    assert!(pod.netns.is_some());
}

#[test]
fn fields_of_a_newer_kubernetes_are_no_misspellings() {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "shop", "novel": 1},
        "spec": {"containers": [], "novel": 1}, "status": {"novel": 1},
    });
    assert_eq!(convert_from(&pod, Provenance::ApiServer).findings, []);
    assert_eq!(convert(&pod).findings.len(), 3);
    // A policy's field decides who may talk to whom, whoever hands it over.
    let policy = json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "p", "namespace": "shop", "novel": 1}, "spec": {"novel": 1},
    });
    let converted = convert_from(&policy, Provenance::ApiServer);
    assert_eq!(errors(&converted).len(), 1, "{converted:?}");
    assert_eq!(converted.findings.len(), 1, "{converted:?}");
}

#[test]
fn an_api_servers_policy_without_a_namespace_counts_for_the_whole_mesh() {
    let policy = json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": "p"}, "spec": {}});
    let converted = convert_from(&policy, Provenance::ApiServer);
    let Reading::Good(Object::AuthorizationPolicy(read)) = &converted.reading else { panic!("{converted:?}") };
    assert!(read.refused.is_some() && read.name.namespace.is_empty(), "{read:?}");
}

fn tokens(spec: Value) -> (Arc<crate::policy::RequestAuthentication>, Converted) {
    let converted = convert(&json!({
        "apiVersion": "security.istio.io/v1", "kind": "RequestAuthentication", "metadata": {"name": "p", "namespace": "shop"}, "spec": spec,
    }));
    let Reading::Good(Object::RequestAuthentication(value)) = &converted.reading else { panic!("{converted:?}") };
    (value.clone(), converted)
}

#[test]
fn every_field_of_a_request_authentication_is_read() {
    use crate::policy::request_authentication::KeySource;
    let (value, converted) = tokens(json!({"selector": {"matchLabels": {"app": "web"}}, "jwtRules": [
        {"issuer": "https://i", "audiences": ["a"], "jwksUri": "https://i/keys", "fromHeaders": [{"name": "X-Token", "prefix": "JWT "}],
         "fromParams": ["t"], "fromCookies": ["c"], "forwardOriginalToken": true, "outputPayloadToHeader": "X-Payload",
         "outputClaimToHeaders": [{"header": "X-Sub", "claim": "sub"}], "timeout": "1m1.5s"},
        {"issuer": "j", "jwks": "{\"keys\": [{}]}"},
        {"issuer": "https://k"},
    ]}));
    assert_eq!(converted.findings, [], "{converted:?}");
    assert_eq!(value.refused, None);
    let [full, inline, discovered] = &value.rules[..] else { panic!("{value:?}") };
    assert_eq!((&*full.from_headers[0].name, &*full.from_headers[0].prefix, full.default_places()), ("x-token", "JWT ", false));
    assert_eq!(full.keys, KeySource::Uri("https://i/keys".into()));
    assert_eq!(full.output_payload_header.as_deref(), Some("x-payload"));
    assert_eq!((&*full.output_claims[0].header, full.forward_original), ("x-sub", true));
    assert_eq!(full.timeout, Some(std::time::Duration::from_millis(61_500)));
    assert!(matches!(inline.keys, KeySource::Inline(_)) && inline.default_places() && !inline.forward_original);
    assert_eq!(discovered.keys, KeySource::Discovery);
}

#[test]
fn a_request_authentication_that_is_not_understood_believes_nobody() {
    for (rule, field) in [
        (json!({"jwksUri": "https://i"}), "spec.jwtRules[0].issuer"),
        (json!({"issuer": "i"}), "spec.jwtRules[0]"),
        (json!({"issuer": "i", "jwks": "keys"}), "spec.jwtRules[0].jwks"),
        (json!({"issuer": "i", "jwks": "{\"keys\": []}"}), "spec.jwtRules[0].jwks"),
        (json!({"issuer": "i", "jwks": "{\"keys\": [{}]}", "jwksUri": "https://i"}), "spec.jwtRules[0].jwks"),
        (json!({"issuer": "i", "jwksUri": "file:///etc"}), "spec.jwtRules[0].jwksUri"),
        (json!({"issuer": "i", "jwksUri": "https://me:secret@i/keys"}), "spec.jwtRules[0].jwksUri"),
        (json!({"issuer": "https://i?tenant=a"}), "spec.jwtRules[0]"),
        (json!({"issuer": "https://i", "audiences": [""]}), "spec.jwtRules[0].audiences[0]"),
        (json!({"issuer": "https://i", "fromHeaders": [{"name": "a b"}]}), "spec.jwtRules[0].fromHeaders[0].name"),
        (json!({"issuer": "https://i", "timeout": "5"}), "spec.jwtRules[0].timeout"),
        (json!({"issuer": "https://i", "audience": ["a"]}), "spec.jwtRules[0].audience"),
    ] {
        let (value, converted) = tokens(json!({ "jwtRules": [rule] }));
        assert!(value.refused.is_some(), "{rule}");
        let [(at, message)] = &errors(&converted)[..] else { panic!("{rule}: {converted:?}") };
        assert_eq!(at, field, "{rule}");
        assert!(message.contains("refuse every request with a token"), "{message}");
        assert!(!message.contains("secret"), "{message}");
    }
}

#[test]
fn keys_that_are_asked_for_without_tls_are_noted() {
    let (value, converted) = tokens(json!({ "jwtRules": [{"issuer": "i", "jwksUri": "http://i/keys"}, {"issuer": "http://j/"}] }));
    assert_eq!(value.refused, None);
    let notes: Vec<_> = converted.findings.iter().map(|finding| (finding.severity, finding.field.to_string())).collect();
    assert_eq!(notes, [(Severity::Info, "spec.jwtRules[0].jwksUri".into()), (Severity::Info, "spec.jwtRules[1].issuer".into())]);
}
