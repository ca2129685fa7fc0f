//! Mesh (`nodemesh.dev`): settings of the mesh. What cannot be read takes its strictest value.

use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

mod tracing;

use super::peer_authentication::{Mtls, mode};
use super::{Input, Reading, UNKNOWN_FIELD, port, typed};
use crate::object::Object;
use crate::policy::MtlsMode;
use crate::problem::{FieldPath, Finding};
use crate::settings::{MeshSettings, OutboundTraffic, SameNode, UnknownPods};

#[derive(Deserialize)]
struct Wire {
    #[serde(rename = "metadata")]
    _metadata: ObjectMeta,
    spec: Option<SpecWire>,
}

/// Each field is read on its own, so that one mistake does not undo the others.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct SpecWire {
    trust_domain: Option<Value>,
    root_namespace: Option<Value>,
    mtls: Option<Value>,
    same_node: Option<Value>,
    excluded_ports: Option<Value>,
    excluded_cidrs: Option<Value>,
    unknown_pods: Option<Value>,
    tracing: Option<Value>,
    outbound_traffic_policy: Option<Value>,
}

/// As Istio's mesh configuration has it.
#[derive(Deserialize)]
struct OutboundWire {
    mode: Option<String>,
}

pub(super) fn convert(input: &mut Input<'_>) -> Reading {
    let Some(wire) = input.read::<Wire>() else { return strictest(&input.name.name) };
    let spec = wire.spec.unwrap_or_default();
    let mut settings = MeshSettings::default();
    field(input, "trustDomain", spec.trust_domain, |text: String| {
        settings.trust_domain = text.parse().map_err(|error: crate::identity::ParseIdentityError| error.to_string())?;
        Ok(())
    });
    field(input, "rootNamespace", spec.root_namespace, |text: String| {
        if text.is_empty() {
            return Err("is empty; write a namespace's name".into());
        }
        settings.root_namespace = text.into();
        Ok(())
    });
    let read = field(input, "mtls", spec.mtls, |mtls: Mtls| {
        settings.mtls = mode(mtls.mode.as_deref())?.unwrap_or_default();
        Ok(())
    });
    if !read {
        settings.mtls = MtlsMode::Strict;
    }
    let read = field(input, "sameNode", spec.same_node, |text: String| {
        settings.same_node = match text.as_str() {
            "kernel" => SameNode::Kernel,
            "encrypt" => SameNode::Encrypt,
            other => return Err(format!("\"{other}\" is neither kernel nor encrypt; pods of one node talk encrypted until it is")),
        };
        Ok(())
    });
    if !read {
        settings.same_node = SameNode::Encrypt;
    }
    field(input, "excludedPorts", spec.excluded_ports, |ports: Vec<i64>| {
        settings.excluded_ports = ports.into_iter().map(port).collect::<Result<_, _>>()?;
        Ok(())
    });
    field(input, "excludedCidrs", spec.excluded_cidrs, |ranges: Vec<String>| {
        let range =
            |text: String| text.parse().map(|net: IpNet| net.trunc()).map_err(|_| format!("\"{text}\" is not a range such as 10.0.0.0/8"));
        settings.excluded_cidrs = ranges.into_iter().map(range).collect::<Result<_, _>>()?;
        Ok(())
    });
    field(input, "unknownPods", spec.unknown_pods, |text: String| {
        settings.unknown_pods = match text.as_str() {
            "deny" => UnknownPods::Deny,
            "pass" => UnknownPods::Pass,
            other => return Err(format!("\"{other}\" is neither deny nor pass; unknown pods are denied until it is")),
        };
        Ok(())
    });
    settings.tracing = spec.tracing.as_ref().and_then(|value| tracing::read(input, value)).map(Arc::new);
    let read = field(input, "outboundTrafficPolicy", spec.outbound_traffic_policy, |policy: OutboundWire| {
        settings.outbound_traffic = match policy.mode.as_deref() {
            None | Some("ALLOW_ANY") => OutboundTraffic::AllowAny,
            Some("REGISTRY_ONLY") => OutboundTraffic::RegistryOnly,
            Some(other) => {
                return Err(format!("mode \"{other}\" is neither ALLOW_ANY nor REGISTRY_ONLY; what is not known is refused until it is"));
            }
        };
        Ok(())
    });
    if !read {
        settings.outbound_traffic = OutboundTraffic::RegistryOnly;
    }
    let object = Object::Mesh { name: input.name.name.clone(), settings: Arc::new(settings) };
    if input.failed() { Reading::Cautious(object) } else { Reading::Good(object) }
}

/// For a Mesh of which nothing can be read.
pub(super) fn strictest(name: &Arc<str>) -> Reading {
    let settings = MeshSettings {
        mtls: MtlsMode::Strict,
        same_node: SameNode::Encrypt,
        outbound_traffic: OutboundTraffic::RegistryOnly,
        ..MeshSettings::default()
    };
    Reading::Cautious(Object::Mesh { name: name.clone(), settings: Arc::new(settings) })
}

/// Reads one field of `spec`; false if that failed.
fn field<T: DeserializeOwned>(input: &mut Input<'_>, name: &str, value: Option<Value>, set: impl FnOnce(T) -> Result<(), String>) -> bool {
    let Some(value) = value.filter(|value| !value.is_null()) else { return true };
    let at = FieldPath::of("spec").key(name);
    match typed::<T>(&value) {
        Ok((value, unknown)) => {
            for field in unknown {
                input.warn(field.below(&at), UNKNOWN_FIELD);
            }
            match set(value) {
                Ok(()) => return true,
                Err(message) => input.error(at, message),
            }
        }
        Err(finding) => input.findings.push(Finding { field: finding.field.below(&at), ..finding }),
    }
    false
}
