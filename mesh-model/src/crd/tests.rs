use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::convert::{Reading, convert};
use crate::limit::{LimitBy, LimitScope};
use crate::object::Object;
use crate::policy::{MtlsMode, Scope};
use crate::settings::{OutboundTraffic, SameNode, UnknownPods};

fn mesh(spec: &MeshSpec) -> Value {
    json!({"apiVersion": "nodemesh.dev/v1alpha1", "kind": "Mesh", "metadata": {"name": "default"}, "spec": spec})
}

#[test]
fn every_field_of_the_schema_is_one_that_is_read() {
    let spec = MeshSpec {
        trust_domain: Some("example.org".into()),
        root_namespace: Some("mesh".into()),
        mtls: Some(MtlsSpec { mode: Some(ModeSpec::Strict) }),
        same_node: Some(SameNodeSpec::Encrypt),
        excluded_ports: Some(vec![22]),
        excluded_cidrs: Some(vec!["10.0.0.0/8".into()]),
        unknown_pods: Some(UnknownPodsSpec::Pass),
        tracing: Some(TracingSpec { endpoint: "http://collector.observability:4317".into(), sampling: Some(12.5) }),
        outbound_traffic_policy: Some(OutboundTrafficPolicySpec { mode: Some(OutboundTrafficModeSpec::RegistryOnly) }),
    };
    let converted = convert(&mesh(&spec));
    assert_eq!(converted.findings, []);
    let Reading::Good(Object::Mesh { settings, .. }) = converted.reading else { panic!("{converted:?}") };
    assert_eq!(settings.trust_domain.to_string(), "example.org");
    assert_eq!((&*settings.root_namespace, settings.mtls), ("mesh", MtlsMode::Strict));
    assert_eq!((settings.same_node, settings.unknown_pods), (SameNode::Encrypt, UnknownPods::Pass));
    let tracing = settings.tracing.as_ref().unwrap();
    assert_eq!((&*tracing.endpoint, tracing.sampling_ppm), ("http://collector.observability:4317", 125_000));
    assert_eq!(settings.outbound_traffic, OutboundTraffic::RegistryOnly);
    assert_eq!((settings.excluded_ports.len(), settings.excluded_cidrs.len()), (1, 1));
}

#[test]
fn every_value_that_the_schema_names_is_understood() {
    for mode in [ModeSpec::Unset, ModeSpec::Disable, ModeSpec::Permissive, ModeSpec::Strict] {
        let spec = MeshSpec { mtls: Some(MtlsSpec { mode: Some(mode) }), ..MeshSpec::default() };
        assert_eq!(convert(&mesh(&spec)).findings, []);
    }
    for same_node in [SameNodeSpec::Kernel, SameNodeSpec::Encrypt] {
        let spec = MeshSpec { same_node: Some(same_node), ..MeshSpec::default() };
        assert_eq!(convert(&mesh(&spec)).findings, []);
    }
    for mode in [OutboundTrafficModeSpec::AllowAny, OutboundTrafficModeSpec::RegistryOnly] {
        let spec = MeshSpec { outbound_traffic_policy: Some(OutboundTrafficPolicySpec { mode: Some(mode) }), ..MeshSpec::default() };
        assert_eq!(convert(&mesh(&spec)).findings, []);
    }
    for unknown_pods in [UnknownPodsSpec::Deny, UnknownPodsSpec::Pass] {
        let spec = MeshSpec { unknown_pods: Some(unknown_pods), ..MeshSpec::default() };
        assert_eq!(convert(&mesh(&spec)).findings, []);
    }
}

fn rate_limit(spec: &RateLimitSpec) -> (std::sync::Arc<crate::limit::RateLimit>, Vec<String>) {
    let metadata = json!({"namespace": "shop", "name": "web"});
    let converted = convert(&json!({"apiVersion": "nodemesh.dev/v1alpha1", "kind": "RateLimit", "metadata": metadata, "spec": spec}));
    let Reading::Good(Object::RateLimit(limit)) = converted.reading else { panic!("{converted:?}") };
    (limit, converted.findings.iter().map(|finding| finding.field.to_string()).collect())
}

#[test]
fn every_field_of_a_rate_limit_is_one_that_is_read() {
    let limit = |per: Option<&str>, unit, burst, by| LimitSpec { requests: 7, unit, per: per.map(str::to_owned), burst, by };
    let by = |source, header: Option<&str>, prefix: Option<&str>| {
        Some(LimitBySpec { source, header: header.map(str::to_owned), path_prefix: prefix.map(str::to_owned) })
    };
    let target = TargetRefSpec { group: Some(String::new()), kind: "Service".into(), name: "web".into() };
    let spec = RateLimitSpec {
        target_refs: Some(vec![target]),
        selector: None,
        limits: vec![
            limit(Some("10s"), None, Some(9), None),
            limit(None, Some(LimitUnitSpec::Second), None, by(Some(true), None, None)),
            limit(None, Some(LimitUnitSpec::Minute), None, by(None, Some("X-Key"), None)),
            limit(None, Some(LimitUnitSpec::Hour), None, by(None, None, Some("/api"))),
        ],
        scope: Some(LimitScopeSpec::Service),
    };
    let (read, found) = rate_limit(&spec);
    assert_eq!(found, ["spec.limits[1].by", "spec.limits[2].by"], "what is not lent is said");
    assert_eq!((&read.targets, read.scope), (&Scope::Services(vec!["web".into()]), LimitScope::Service));
    let numbers: Vec<_> = read.limits.iter().map(|limit| (limit.requests, limit.per.as_secs(), limit.burst, limit.by.clone())).collect();
    let wanted = [
        (7, 10, 9, LimitBy::Everyone),
        (7, 1, 7, LimitBy::Source),
        (7, 60, 7, LimitBy::Header("x-key".into())),
        (7, 3600, 7, LimitBy::PathPrefix("/api".into())),
    ];
    assert_eq!(numbers, wanted);
    assert_eq!(read.limits[0].per, Duration::from_secs(10));

    let labels = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
    let selector = Some(SelectorSpec { match_labels: Some(labels.clone()) });
    let limits = vec![limit(Some("1m30s"), None, None, None)];
    let (read, found) = rate_limit(&RateLimitSpec { selector, limits, scope: Some(LimitScopeSpec::Endpoint), ..RateLimitSpec::default() });
    assert_eq!(found, Vec::<String>::new());
    assert_eq!((&read.targets, read.scope), (&Scope::Selector(labels), LimitScope::Endpoint));
}
