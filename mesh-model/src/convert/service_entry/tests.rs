use serde_json::{Value, json};

use super::*;
use crate::convert::{Converted, convert};
use crate::problem::Severity;

fn converted(spec: Value) -> Converted {
    let metadata = json!({"name": "api", "namespace": "shop"});
    convert(&json!({"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": metadata, "spec": spec}))
}

fn read(spec: Value) -> (Arc<ServiceEntry>, Converted) {
    let converted = converted(spec);
    match &converted.reading {
        Reading::Good(Object::ServiceEntry(entry)) | Reading::Cautious(Object::ServiceEntry(entry)) => (entry.clone(), converted),
        _ => panic!("{converted:?}"),
    }
}

fn found(converted: &Converted) -> Vec<(Severity, String)> {
    converted.findings.iter().map(|finding| (finding.severity, finding.field.to_string())).collect()
}

fn port() -> Value {
    json!([{"number": 443, "name": "tls", "protocol": "TLS"}])
}

#[test]
fn what_istio_documents_is_read_in_full() {
    let (entry, converted) = read(json!({
        "hosts": ["API.example.com", "*.wild.example.com"], "addresses": ["192.0.2.7", "198.51.100.0/24"],
        "ports": [{"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 8080}, {"number": 443, "name": "https", "protocol": "HTTPS"}],
        "location": "MESH_EXTERNAL", "resolution": "STATIC", "exportTo": [".", "other"],
        "endpoints": [
            {"address": "203.0.113.1", "ports": {"http": 9080}, "labels": {"version": "v1"}, "weight": 3, "locality": "eu/eu-1/rack"},
            {"address": "2001:db8::1"},
        ],
    }));
    assert_eq!(converted.findings, vec![]);
    assert!(matches!(converted.reading, Reading::Good(_)));
    assert_eq!(entry.hosts.iter().map(|host| &**host).collect::<Vec<_>>(), ["api.example.com", "*.wild.example.com"]);
    assert_eq!(entry.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), ["192.0.2.7/32", "198.51.100.0/24"]);
    assert_eq!(entry.export_to.iter().map(|namespace| &**namespace).collect::<Vec<_>>(), ["other", "shop"]);
    let [http, https] = &entry.ports[..] else { panic!("{entry:?}") };
    assert_eq!((&*http.protocol, http.target, &*https.protocol, https.number), ("http", Some(8080), "https", 443));
    let [first, second] = &entry.endpoints[..] else { panic!("{entry:?}") };
    assert_eq!((first.port(http), first.port(https), second.port(http)), (9080, 443, 8080));
    assert_eq!((first.traits.weight, &*first.traits.region, &*first.traits.zone, second.traits.weight), (3, "eu", "eu-1", 1));
}

#[test]
fn a_mistake_costs_its_own_field() {
    let (entry, converted) = read(json!({
        "hosts": ["api.example.com", "short", "1.2.3.4", "web.shop.svc.cluster.local"],
        "addresses": ["nonsense", "127.0.0.1", "192.0.2.1"],
        "ports": [{"number": 443, "name": "a", "protocol": "TLS"}, {"number": 443, "name": "b"}, {"number": 53, "name": "c", "protocol": "UDP"}, {"number": 9, "name": "d", "protocol": "odd"}],
        "resolution": "STATIC", "endpoints": [{"address": "name.example.com"}, {"address": "192.0.2.9", "network": "n"}, {}, {"address": "::1"}],
        "subjectAltNames": ["spiffe://a", "a b"], "unknown": 1,
    }));
    use Severity::{Error, Warn};
    let expected = [
        (Error, "spec.hosts[1]"),
        (Error, "spec.hosts[2]"),
        (Error, "spec.hosts[3]"),
        (Error, "spec.ports[1].number"),
        (Warn, "spec.ports[2].protocol"),
        (Warn, "spec.ports[3].protocol"),
        (Error, "spec.addresses[0]"),
        (Error, "spec.addresses[1]"),
        (Error, "spec.endpoints[0].address"),
        (Warn, "spec.endpoints[1].network"),
        (Error, "spec.endpoints[2].address"),
        (Error, "spec.endpoints[3].address"),
        (Error, "spec.subjectAltNames[1]"),
        (Warn, "spec.unknown"),
    ];
    assert_eq!(found(&converted), expected.map(|(severity, field)| (severity, field.to_owned())));
    assert!(matches!(converted.reading, Reading::Cautious(_)));
    assert_eq!((entry.hosts.len(), entry.addresses.len(), entry.ports.len(), entry.endpoints.len()), (1, 1, 2, 1));
    assert_eq!(entry.alt_names.iter().map(|name| &**name).collect::<Vec<_>>(), ["spiffe://a", "a b"], "no server is let off the second");
    assert_eq!(&*entry.ports[1].protocol, "tcp", "what is not known is not looked into");
}

#[test]
fn what_does_not_go_together_is_said() {
    for (spec, field) in [
        (json!({"hosts": ["*.example.com"], "ports": port(), "resolution": "DNS"}), "spec.hosts[0]"),
        (
            json!({"hosts": ["a.example.com"], "ports": port(), "resolution": "NONE", "endpoints": [{"address": "192.0.2.1"}]}),
            "spec.endpoints",
        ),
        (json!({"hosts": ["a.example.com"], "ports": port(), "resolution": "DNS", "addresses": ["10.0.0.0/8"]}), "spec.addresses[0]"),
        (
            json!({"hosts": ["a.example.com"], "ports": port(), "resolution": "DNS_ROUND_ROBIN", "endpoints": [{"address": "b.example.com"}, {"address": "c.example.com"}]}),
            "spec.endpoints",
        ),
        (
            json!({"hosts": ["a.example.com"], "ports": port(), "resolution": "STATIC", "endpoints": [{"address": "192.0.2.1"}], "workloadSelector": {"labels": {"a": "b"}}}),
            "spec.workloadSelector",
        ),
    ] {
        let (_, converted) = read(spec);
        assert_eq!(found(&converted), [(Severity::Error, field.to_owned())], "{converted:?}");
    }
    let (_, converted) = read(json!({"hosts": ["a.example.com"], "ports": port(), "resolution": "STATIC"}));
    assert_eq!(found(&converted), [(Severity::Warn, "spec.endpoints".to_owned())]);
}

#[test]
fn without_a_host_port_or_resolution_nothing_is_left() {
    for spec in [
        json!({"ports": port()}),
        json!({"hosts": ["*"], "ports": port()}),
        json!({"hosts": ["a.example.com"]}),
        json!({"hosts": ["a.example.com"], "ports": port(), "resolution": "GUESS"}),
    ] {
        let converted = converted(spec);
        assert_eq!(converted.reading, Reading::Unreadable);
        assert!(converted.findings.iter().any(|finding| finding.severity == Severity::Error), "{converted:?}");
    }
}
