use serde_json::{Value, json};

use crate::convert::{Reading, convert};
use crate::object::Object;
use crate::settings::Tracing;

/// What `spec.tracing` comes to, and what is found: the field, and the message.
fn read(tracing: Value) -> (Option<Tracing>, Vec<(String, String)>) {
    let spec = json!({ "mtls": { "mode": "STRICT" }, "tracing": tracing });
    let mesh = json!({ "apiVersion": "nodemesh.dev/v1alpha1", "kind": "Mesh", "metadata": { "name": "default" }, "spec": spec });
    let converted = convert(&mesh);
    let (Reading::Good(Object::Mesh { settings, .. }) | Reading::Cautious(Object::Mesh { settings, .. })) = converted.reading else {
        panic!("{:?}", converted.reading)
    };
    assert_eq!(settings.mtls, crate::policy::MtlsMode::Strict, "what else is said holds");
    let found = converted.findings.into_iter().map(|finding| (finding.field.to_string(), finding.message)).collect();
    (settings.tracing.as_deref().cloned(), found)
}

#[test]
fn endpoints_and_percentages() {
    for (endpoint, kept) in [
        ("http://collector.observability:4317", "http://collector.observability:4317"),
        ("http://collector:4317/", "http://collector:4317"),
        ("http://10.0.0.1:4317", "http://10.0.0.1:4317"),
        ("http://[fd00::1]:4317", "http://[fd00::1]:4317"),
        ("http://collector.observability.svc.cluster.local.:1", "http://collector.observability.svc.cluster.local.:1"),
    ] {
        let (tracing, found) = read(json!({ "endpoint": endpoint }));
        assert_eq!((tracing.map(|tracing| (tracing.endpoint, tracing.sampling_ppm)), found), (Some((kept.into(), 10_000)), vec![]));
    }
    for (sampling, ppm) in [(json!(0), 0), (json!(100), 1_000_000), (json!(0.01), 100), (json!("2.5"), 25_000), (Value::Null, 10_000)] {
        let (tracing, found) = read(json!({ "endpoint": "http://c:1", "sampling": sampling }));
        assert_eq!((tracing.unwrap().sampling_ppm, found), (ppm, vec![]));
    }
    assert_eq!(read(Value::Null), (None, vec![]));
}

#[test]
fn what_is_wrong_is_named_and_turns_nothing_on() {
    for (tracing, field, words) in [
        (json!({}), "spec.tracing.endpoint", "missing"),
        (json!({ "endpoint": "" }), "spec.tracing.endpoint", "is not the address"),
        (json!({ "endpoint": "collector:4317" }), "spec.tracing.endpoint", "is not the address"),
        (json!({ "endpoint": "grpc://collector:4317" }), "spec.tracing.endpoint", "is not the address"),
        (json!({ "endpoint": "https://collector:4317" }), "spec.tracing.endpoint", "TLS"),
        (json!({ "endpoint": "http://collector" }), "spec.tracing.endpoint", "no port"),
        (json!({ "endpoint": "http://collector:0" }), "spec.tracing.endpoint", "no port from 1"),
        (json!({ "endpoint": "http://10.0.0.1:0" }), "spec.tracing.endpoint", "no port from 1"),
        (json!({ "endpoint": "http://collector:http" }), "spec.tracing.endpoint", "no port from 1"),
        (json!({ "endpoint": "http://collector:4318/v1/traces" }), "spec.tracing.endpoint", "path"),
        (json!({ "endpoint": "http://user:word@collector:4317" }), "spec.tracing.endpoint", "user"),
        (json!({ "endpoint": "http://:4317" }), "spec.tracing.endpoint", "no host"),
        (json!({ "endpoint": "http://a..b:4317" }), "spec.tracing.endpoint", "no host"),
        (json!({ "endpoint": "http://a b:4317" }), "spec.tracing.endpoint", "no host"),
        (json!({ "endpoint": "http://c:1", "sampling": 101 }), "spec.tracing.sampling", "is not a number from 0 to 100"),
        (json!({ "endpoint": "http://c:1", "sampling": -1 }), "spec.tracing.sampling", "is not a number"),
        (json!({ "endpoint": "http://c:1", "sampling": "much" }), "spec.tracing.sampling", "is not a number"),
        (json!("http://c:1"), "spec.tracing", "is not a mapping"),
    ] {
        let (read, found) = read(tracing.clone());
        assert_eq!(read, None, "{tracing}");
        assert!(found.iter().any(|(at, message)| at == field && message.contains(words)), "{tracing}: {found:?}");
    }
    let (read, found) = read(json!({ "endpoint": "http://c:1", "sampler": 1 }));
    assert_eq!((read.is_some(), found.len(), found[0].0.as_str()), (true, 1, "spec.tracing.sampler"));
}
