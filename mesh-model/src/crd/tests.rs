use serde_json::{Value, json};

use super::*;
use crate::convert::{Reading, convert};
use crate::object::Object;
use crate::policy::MtlsMode;
use crate::settings::{SameNode, UnknownPods};

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
    };
    let converted = convert(&mesh(&spec));
    assert_eq!(converted.findings, []);
    let Reading::Good(Object::Mesh { settings, .. }) = converted.reading else { panic!("{converted:?}") };
    assert_eq!(settings.trust_domain.to_string(), "example.org");
    assert_eq!((&*settings.root_namespace, settings.mtls), ("mesh", MtlsMode::Strict));
    assert_eq!((settings.same_node, settings.unknown_pods), (SameNode::Encrypt, UnknownPods::Pass));
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
    for unknown_pods in [UnknownPodsSpec::Deny, UnknownPodsSpec::Pass] {
        let spec = MeshSpec { unknown_pods: Some(unknown_pods), ..MeshSpec::default() };
        assert_eq!(convert(&mesh(&spec)).findings, []);
    }
}
