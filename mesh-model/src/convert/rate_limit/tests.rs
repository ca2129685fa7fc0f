use serde_json::{Value, json};

use super::*;
use crate::convert::{Converted, convert};

fn read(spec: Value) -> Converted {
    let metadata = json!({"namespace": "shop", "name": "web"});
    convert(&json!({"apiVersion": "nodemesh.dev/v1alpha1", "kind": "RateLimit", "metadata": metadata, "spec": spec}))
}

fn value(converted: &Converted) -> &Arc<RateLimit> {
    match &converted.reading {
        Reading::Good(Object::RateLimit(limit)) | Reading::Cautious(Object::RateLimit(limit)) => limit,
        _ => panic!("{converted:?}"),
    }
}

fn found(converted: &Converted) -> Vec<(Severity, String)> {
    converted.findings.iter().map(|finding| (finding.severity, finding.field.to_string())).collect()
}

#[test]
fn a_limit_without_anything_is_for_all_of_the_namespace() {
    let converted = read(json!({"limits": [{"requests": 5, "unit": "second"}]}));
    assert_eq!(converted.findings, []);
    let limit = Limit { index: 0, requests: 5, per: Duration::from_secs(1), burst: 5, by: LimitBy::Everyone };
    let name = crate::service::NamespacedName { namespace: "shop".into(), name: "web".into() };
    let wanted = RateLimit { name, targets: Scope::Namespace, entries: Vec::new(), limits: vec![limit], scope: LimitScope::Endpoint };
    assert_eq!(**value(&converted), wanted);
}

#[test]
fn whom_it_is_about_must_be_understood() {
    let limits = json!([{"requests": 5, "unit": "second"}]);
    for (field, spec) in [
        ("spec.selector.matchLabel", json!({"selector": {"matchLabel": {"app": "web"}}, "limits": limits})),
        ("spec.targetRefs[0]", json!({"targetRefs": [{"kind": "Gateway", "name": "web"}], "limits": limits})),
        ("spec.targetRef", json!({"targetRef": {"kind": "Service", "name": "web"}, "limits": limits})),
        (
            "spec.selector",
            json!({"selector": {"matchLabels": {"app": "web"}}, "targetRefs": [{"kind": "Service", "name": "web"}], "limits": limits}),
        ),
    ] {
        let converted = read(spec);
        assert_eq!((&converted.reading, found(&converted)), (&Reading::Unreadable, vec![(Severity::Error, field.to_owned())]));
    }
}

#[test]
fn one_bad_limit_takes_no_other_with_it() {
    let good = json!({"requests": 5, "unit": "second"});
    for (bad, field) in [
        (json!({"unit": "second"}), "requests"),
        (json!({"requests": 0, "unit": "second"}), "requests"),
        (json!({"requests": "many", "unit": "second"}), "requests"),
        (json!({"requests": 5}), "unit"),
        (json!({"requests": 5, "unit": "day"}), "unit"),
        (json!({"requests": 5, "unit": "second", "per": "10s"}), "unit"),
        (json!({"requests": 5, "per": "0s"}), "per"),
        (json!({"requests": 5, "per": "25h"}), "per"),
        (json!({"requests": 5, "per": 10}), "per"),
        (json!({"requests": 5, "unit": "second", "burst": 0}), "burst"),
        (json!({"requests": 5, "unit": "second", "by": {}}), "by"),
        (json!({"requests": 5, "unit": "second", "by": "source"}), "by"),
        (json!({"requests": 5, "unit": "second", "by": {"source": true, "header": "x"}}), "by"),
        (json!({"requests": 5, "unit": "second", "by": {"source": false}}), "by.source"),
        (json!({"requests": 5, "unit": "second", "by": {"header": "x y"}}), "by.header"),
        (json!({"requests": 5, "unit": "second", "by": {"pathPrefix": "/a/../b"}}), "by.pathPrefix"),
        (json!({"requests": 5, "unit": "second", "by": {"pathPrefix": "a"}}), "by.pathPrefix"),
        (json!({"requests": 5, "unit": "second", "by": {"pathPrefix": "*"}}), "by.pathPrefix"),
    ] {
        let converted = read(json!({"limits": [bad, good]}));
        assert!(matches!(converted.reading, Reading::Cautious(_)), "{bad}: {converted:?}");
        assert_eq!(value(&converted).limits.iter().map(|limit| limit.index).collect::<Vec<_>>(), [1], "{bad}");
        assert_eq!(found(&converted), [(Severity::Error, format!("spec.limits[0].{field}"))], "{bad}: {converted:?}");
    }
    let converted = read(json!({"limits": [{"requests": 5, "unit": "second", "algorithm": "window"}]}));
    assert_eq!(found(&converted), [(Severity::Warn, "spec.limits[0].algorithm".to_owned())]);
    assert_eq!(value(&converted).limits.len(), 1);
}

#[test]
fn numbers_of_limits_are_bounded() {
    let converted = read(json!({"limits": []}));
    assert_eq!(found(&converted), [(Severity::Error, "spec.limits".to_owned())]);
    let many = vec![json!({"requests": 5, "unit": "second"}); MOST_LIMITS + 1];
    let converted = read(json!({"limits": many}));
    assert_eq!(found(&converted), [(Severity::Error, "spec.limits".to_owned())]);
    assert_eq!(value(&converted).limits.len(), MOST_LIMITS);
}

#[test]
fn a_service_is_needed_for_its_budget() {
    let limits = json!([{"requests": 5, "unit": "second"}]);
    let converted = read(json!({"targetRefs": [{"kind": "Service", "name": "web"}], "scope": "service", "limits": limits}));
    assert!(found(&converted).is_empty());
    assert_eq!(value(&converted).scope, LimitScope::Service);
    let keyed = json!([{"requests": 1, "unit": "second"}, {"requests": 1, "unit": "second", "by": {"source": true}}]);
    let converted = read(json!({"targetRefs": [{"kind": "Service", "name": "web"}], "scope": "service", "limits": keyed}));
    assert_eq!(found(&converted), [(Severity::Warn, "spec.limits[1].by".to_owned())], "what is not lent is said");
    for scope in ["service", "cluster"] {
        let converted = read(json!({"scope": scope, "limits": limits}));
        assert_eq!(found(&converted), [(Severity::Error, "spec.scope".to_owned())]);
        assert_eq!(value(&converted).scope, LimitScope::Endpoint);
    }
}

#[test]
fn a_service_entry_is_targeted_by_its_name() {
    let limits = json!([{"requests": 5, "unit": "second"}]);
    let entry = json!({"group": "networking.istio.io", "kind": "ServiceEntry", "name": "out"});
    let service = json!({"kind": "Service", "name": "web"});
    for (targets, services) in [(json!([entry]), vec![]), (json!([entry, service, entry]), vec!["web".into()])] {
        let converted = read(json!({"targetRefs": targets, "scope": "service", "limits": limits}));
        assert_eq!(found(&converted), []);
        let limit = value(&converted);
        assert_eq!((&limit.targets, &*limit.entries, limit.scope), (&Scope::Services(services), &["out".into()][..], LimitScope::Service));
    }
    let labels = json!({"matchLabels": {"app": "web"}});
    for (field, spec) in [
        ("spec.selector", json!({"targetRefs": [entry], "selector": labels, "limits": limits})),
        ("spec.targetRefs[0].group", json!({"targetRefs": [{"kind": "ServiceEntry", "name": "out"}], "limits": limits})),
        ("spec.targetRefs[0].name", json!({"targetRefs": [{"group": "networking.istio.io", "kind": "ServiceEntry"}], "limits": limits})),
    ] {
        let converted = read(spec);
        assert_eq!((&converted.reading, found(&converted)), (&Reading::Unreadable, vec![(Severity::Error, field.to_owned())]));
    }
}

#[test]
fn it_denies_nothing_when_it_is_not_understood() {
    let kind = crate::object::Kind::RateLimit;
    assert!(!kind.is_security() && kind.namespaced() && !kind.is_builtin());
    let key = crate::object::ObjectKey { kind, namespace: "shop".into(), name: "web".into() };
    assert_eq!(crate::convert::unparsable(&key), Reading::Unreadable);
}
