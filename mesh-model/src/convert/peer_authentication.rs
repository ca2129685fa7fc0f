//! PeerAuthentication (`security.istio.io`).

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde_json::Value;

use super::{Input, Reading, created, port, selector};
use crate::object::Object;
use crate::policy::{MtlsMode, PeerAuthentication};
use crate::problem::{FieldPath, Severity};
use crate::service::NamespacedName;

const EFFECT: &str = "the object is not understood and demands STRICT on every port of the workloads it selects";

#[derive(Deserialize)]
struct Wire {
    metadata: ObjectMeta,
    spec: Option<SpecWire>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct SpecWire {
    #[serde(rename = "selector")]
    _selector: Option<Value>,
    mtls: Option<Mtls>,
    port_level_mtls: Option<BTreeMap<String, Mtls>>,
}

/// `mtls`, here and in `Mesh`.
#[derive(Deserialize)]
pub(super) struct Mtls {
    pub(super) mode: Option<String>,
}

pub(super) fn convert(input: &mut Input<'_>) -> Reading {
    let selector = selector::labels(input);
    let mut value =
        PeerAuthentication { name: input.name.clone(), created: None, selector, mode: None, ports: BTreeMap::new(), refused: None };
    if let Some((wire, unknown)) = input.read_strictly::<Wire>() {
        for field in unknown {
            if !field.starts_with(&FieldPath::of("spec")) {
                input.warn(field, super::UNKNOWN_FIELD);
            } else if !input.findings.iter().any(|finding| finding.field == field) {
                input.error(field, "is not a field of a PeerAuthentication that is known; check its spelling and place");
            }
        }
        value.created = created(&wire.metadata);
        let spec = wire.spec.unwrap_or_default();
        let mut modes = |mtls: &Mtls, at: FieldPath| match mode(mtls.mode.as_deref()) {
            Ok(mode) => mode,
            Err(message) => {
                input.error(at.key("mode"), message);
                None
            }
        };
        value.mode = spec.mtls.and_then(|mtls| modes(&mtls, FieldPath::of("spec.mtls")));
        let at = FieldPath::of("spec.portLevelMtls");
        let levels = spec.port_level_mtls.unwrap_or_default();
        let read: Vec<_> = levels.iter().map(|(text, mtls)| (text, modes(mtls, at.key(text)))).collect();
        for (text, mode) in read {
            match text.parse().map_err(|_| format!("\"{text}\" is not a port")).and_then(port) {
                Ok(port) => {
                    value.ports.insert(port, mode);
                }
                Err(message) => input.error(at.key(text), message),
            }
        }
        if !value.ports.is_empty() && value.selector.is_empty() {
            input.error(at, "needs a selector: modes by port are for workloads, not for a namespace or the mesh");
        }
    }
    value.refused = input.first_error();
    for finding in input.findings.iter_mut().filter(|finding| finding.severity == Severity::Error) {
        finding.message = format!("{}; {EFFECT}", finding.message);
    }
    Reading::Good(Object::PeerAuthentication(Arc::new(value)))
}

/// A PeerAuthentication of which nothing but the name is known.
pub(super) fn refused(name: NamespacedName, why: &str) -> Reading {
    Reading::Good(Object::PeerAuthentication(Arc::new(PeerAuthentication {
        name,
        created: None,
        selector: BTreeMap::new(),
        mode: None,
        ports: BTreeMap::new(),
        refused: Some(why.into()),
    })))
}

/// A mode; `None` for `UNSET`.
pub(super) fn mode(text: Option<&str>) -> Result<Option<MtlsMode>, String> {
    match text {
        None | Some("UNSET") => Ok(None),
        Some("STRICT") => Ok(Some(MtlsMode::Strict)),
        Some("PERMISSIVE") => Ok(Some(MtlsMode::Permissive)),
        Some("DISABLE") => Ok(Some(MtlsMode::Disable)),
        Some(other) => Err(format!("\"{other}\" is not a mode; write STRICT, PERMISSIVE, DISABLE or UNSET")),
    }
}
