//! One object as it was written → a value, or the reason why not. Each object is judged alone; what needs others is the snapshot's.
//!
//! An object that cannot be understood is not taken for absent. For a security object the value itself says so and denies; for the
//! others a cautious reading is made where one is possible, for use where no earlier version is known.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::object::{Kind, Object, ObjectKey};
use crate::problem::{FieldPath, Finding, Severity};
use crate::service::NamespacedName;

mod authorization_policy;
mod backend_traffic_policy;
mod destination_rule;
mod endpoint_slice;
mod fields;
mod gateway_route;
mod host;
mod mesh;
mod namespace;
mod node;
mod peer_authentication;
mod pod;
mod rate_limit;
mod request_authentication;
mod selector;
mod service;
mod service_entry;
mod virtual_service;

pub(crate) use authorization_policy::range;

/// Label that puts a namespace's pods, or a pod, into the mesh or out of it: `enabled` or `disabled`.
pub const MESH_LABEL: &str = "nodemesh.dev/mesh";
/// Label or annotation of a namespace: `encrypt` sends traffic between pods of one node through mTLS.
pub const SAME_NODE: &str = "nodemesh.dev/same-node";
/// Annotation of a pod: path of its network namespace, where nobody else can tell.
pub const NETNS_ANNOTATION: &str = "nodemesh.dev/netns";
/// Annotations that put an AuthorizationPolicy into dry run with `"true"`.
pub const DRY_RUN_ANNOTATIONS: [&str; 2] = ["istio.io/dry-run", "nodemesh.dev/dry-run"];
const OWN_PREFIX: &str = "nodemesh.dev/";
const OWN_NAMES: [&str; 4] = [MESH_LABEL, SAME_NODE, NETNS_ANNOTATION, "nodemesh.dev/dry-run"];
/// Namespace of an object that names none, as for `kubectl`.
pub const DEFAULT_NAMESPACE: &str = "default";

/// Who hands an object over, as far as that changes how it is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Provenance {
    /// A manifest: somebody wrote it by hand on this machine.
    Manifest,
    /// An API server. It has pruned or refused what its schemas don't know, so that an unknown field of one of its own kinds is one of
    /// a newer Kubernetes and no misspelling. Whoever may write a pod must not thereby choose a network namespace of the node:
    /// [`NETNS_ANNOTATION`] is not followed.
    ApiServer,
}

/// What came of an object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reading {
    /// It was understood; a security object that was not is here too, as a value that denies.
    Good(Object),
    /// It was not understood. This is what caution makes of it, for use where no earlier version is known.
    Cautious(Object),
    /// It was not understood, and nothing can stand in for it.
    Unreadable,
    /// It is nothing that the mesh reads.
    Foreign,
}

/// An object's value and what was found on the way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Converted {
    /// The object, as far as it could be named; `None` only if foreign or if it has no kind.
    pub key: Option<ObjectKey>,
    /// The object in words, for a [`crate::problem::Problem`].
    pub title: String,
    /// The value.
    pub reading: Reading,
    /// What was found.
    pub findings: Vec<Finding>,
}

/// Converts an object of any kind, as a manifest holds it.
pub fn convert(object: &Value) -> Converted {
    convert_from(object, Provenance::Manifest)
}

/// Converts an object of any kind.
pub fn convert_from(object: &Value, provenance: Provenance) -> Converted {
    let text = |key: &str| object.get(key).and_then(Value::as_str);
    let (api_version, kind_name) = (text("apiVersion"), text("kind"));
    let metadata = |key: &str| object.get("metadata").and_then(|m| m.get(key));
    let name = metadata("name").and_then(Value::as_str).unwrap_or_default();
    let namespace = match metadata("namespace") {
        None | Some(Value::Null) if provenance == Provenance::Manifest => DEFAULT_NAMESPACE,
        Some(Value::String(namespace)) => namespace,
        // Unreadable: a policy that cannot be placed counts for the whole mesh.
        _ => "",
    };
    let title = || {
        let place = if namespace.is_empty() { name.into() } else { format!("{namespace}/{name}") };
        format!("{} {place}", kind_name.unwrap_or("object"))
    };
    let foreign = |finding| Converted { key: None, title: title(), reading: Reading::Foreign, findings: vec![finding] };
    let Some(kind_name) = kind_name else {
        let finding =
            Finding::error(FieldPath::of("kind"), "is missing or not a text; the document is not applied: name the object's kind");
        return Converted { key: None, title: title(), reading: Reading::Unreadable, findings: vec![finding] };
    };
    let Some(kind) = Kind::from_name(kind_name) else { return foreign(unsupported(api_version, kind_name)) };
    let versions = kind.api_versions();
    let group = |version: &str| version.rsplit_once('/').map_or("", |(group, _)| group).to_owned();
    let known = api_version.is_some_and(|version| versions.contains(&version));
    if let Some(version) = api_version
        && !known
        && !versions.iter().any(|v| group(v) == group(version))
    {
        return foreign(unsupported(api_version, kind_name));
    }
    let key = ObjectKey { kind, namespace: if kind.namespaced() { namespace.into() } else { "".into() }, name: name.into() };
    let title = key.to_string();
    let name_of = NamespacedName { namespace: key.namespace.clone(), name: key.name.clone() };
    let mut input = Input { object, kind, provenance, name: name_of, findings: Vec::new() };
    if !known {
        let found = api_version.map_or("is missing or not a text".into(), |v| format!("\"{v}\" is not a version that is known"));
        input.error(FieldPath::of("apiVersion"), format!("{found}; write {}", versions.join(" or ")));
    }
    if name.is_empty() {
        input.error(FieldPath::of("metadata.name"), "is missing or not a text; give the object a name");
    }
    if kind.namespaced() && namespace.is_empty() {
        input.error(
            FieldPath::of("metadata.namespace"),
            "is not a namespace's name; write the name, or leave the field out for \"default\"",
        );
    }
    unknown_names(&mut input);
    let reading = match kind {
        Kind::Namespace => namespace::convert(&mut input),
        Kind::Node => node::convert(&mut input),
        Kind::ServiceAccount => service_account(&mut input),
        Kind::Pod => pod::convert(&mut input),
        Kind::Service => service::convert(&mut input),
        Kind::EndpointSlice => endpoint_slice::convert(&mut input),
        Kind::PeerAuthentication => peer_authentication::convert(&mut input),
        Kind::AuthorizationPolicy => authorization_policy::convert(&mut input),
        Kind::RequestAuthentication => request_authentication::convert(&mut input),
        Kind::Mesh => mesh::convert(&mut input),
        Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute | Kind::TcpRoute => gateway_route::convert(&mut input),
        Kind::VirtualService => virtual_service::convert(&mut input),
        Kind::DestinationRule => destination_rule::convert(&mut input),
        Kind::ServiceEntry => service_entry::convert(&mut input),
        Kind::RateLimit => rate_limit::convert(&mut input),
        Kind::XBackendTrafficPolicy => backend_traffic_policy::convert(&mut input),
    };
    Converted { key: Some(key), title, reading, findings: input.findings }
}

/// What stands in for a document whose text is no YAML, of which only kind and name could be made out.
pub fn unparsable(key: &ObjectKey) -> Reading {
    let why = "its document is not valid YAML";
    let name = NamespacedName { namespace: key.namespace.clone(), name: key.name.clone() };
    match key.kind {
        Kind::PeerAuthentication => peer_authentication::refused(name, why),
        Kind::AuthorizationPolicy => authorization_policy::refused(name, why),
        Kind::RequestAuthentication => request_authentication::refused(name, why),
        Kind::Mesh => mesh::strictest(&key.name),
        Kind::Namespace => namespace::unknown(&key.name),
        _ => Reading::Unreadable,
    }
}

fn unsupported(api_version: Option<&str>, kind: &str) -> Finding {
    let version = api_version.unwrap_or_default();
    let message = format!("{version} {kind} is not a kind that is supported; nothing of the object is done");
    // Objects written for a mesh ask for something that does not happen; others are none of the mesh's business.
    let for_a_mesh = ["istio.io/", "gateway.networking.k8s.io/", "gateway.networking.x-k8s.io/", "nodemesh.dev/"]
        .iter()
        .any(|group| version.contains(group));
    let severity = if for_a_mesh { Severity::Warn } else { Severity::Info };
    Finding { severity, field: FieldPath::default(), message }
}

/// A misspelt label must not be without effect in silence.
fn unknown_names(input: &mut Input<'_>) {
    for place in ["labels", "annotations"] {
        let Some(Value::Object(names)) = input.raw(&["metadata", place]) else { continue };
        let ours = names.keys().filter(|name| name.starts_with(OWN_PREFIX));
        let unknown: Vec<String> = ours.filter(|name| !OWN_NAMES.contains(&name.as_str())).cloned().collect();
        for name in unknown {
            let message = format!("is not known and has no effect; known are {}", OWN_NAMES.join(", "));
            input.warn(FieldPath::of("metadata").key(place).key(name), message);
        }
    }
}

fn service_account(input: &mut Input<'_>) -> Reading {
    let read = input.read::<k8s_openapi::api::core::v1::ServiceAccount>();
    input.finish(read.map(|_| Object::ServiceAccount(input.name.clone())))
}

/// An object under conversion.
struct Input<'a> {
    object: &'a Value,
    kind: Kind,
    provenance: Provenance,
    name: NamespacedName,
    findings: Vec<Finding>,
}

impl Input<'_> {
    fn error(&mut self, field: FieldPath, message: impl Into<String>) {
        self.findings.push(Finding::error(field, message));
    }

    fn warn(&mut self, field: FieldPath, message: impl Into<String>) {
        self.findings.push(Finding::warn(field, message));
    }

    fn failed(&self) -> bool {
        self.findings.iter().any(|finding| finding.severity == Severity::Error)
    }

    /// The first error, with its field.
    fn first_error(&self) -> Option<Arc<str>> {
        let finding = self.findings.iter().find(|finding| finding.severity == Severity::Error)?;
        Some(if finding.field.0.is_empty() { finding.message.clone() } else { format!("{} {}", finding.field, finding.message) }.into())
    }

    /// Reads the whole object; fields that the type does not have become warnings.
    fn read<T: DeserializeOwned>(&mut self) -> Option<T> {
        let (value, unknown) = self.read_strictly::<T>()?;
        for field in unknown {
            self.warn(field, UNKNOWN_FIELD);
        }
        Some(value)
    }

    /// As [`Input::read`], but hands back the fields that the type does not have. An object that does not fit is an error.
    fn read_strictly<T: DeserializeOwned>(&mut self) -> Option<(T, Vec<FieldPath>)> {
        match typed::<T>(self.object) {
            Ok((read, mut unknown)) => {
                if self.provenance == Provenance::ApiServer {
                    unknown.retain(|field| !self.kind.is_builtin() && !field.starts_with(&FieldPath::of("metadata")));
                }
                Some((read, unknown))
            }
            Err(finding) => {
                self.findings.push(finding);
                None
            }
        }
    }

    /// The value, unless there was an error.
    fn finish(&self, object: Option<Object>) -> Reading {
        match object {
            Some(object) if !self.failed() => Reading::Good(object),
            _ => Reading::Unreadable,
        }
    }

    /// Text at a path, however bad the rest is.
    fn raw(&self, path: &[&str]) -> Option<&Value> {
        path.iter().try_fold(self.object, |value, key| value.get(key)).filter(|value| !value.is_null())
    }
}

const UNKNOWN_FIELD: &str = "is not a field that is known here and is ignored; check its spelling and place";

/// Deserialises, naming the field of an error and listing the fields that `T` does not have.
fn typed<T: DeserializeOwned>(value: &Value) -> Result<(T, Vec<FieldPath>), Finding> {
    let mut unknown = Vec::new();
    let mut track = serde_path_to_error::Track::new();
    let deserializer = serde_path_to_error::Deserializer::new(value, &mut track);
    let mut note = |path: serde_ignored::Path<'_>| unknown.push(FieldPath::from(&path));
    let read = T::deserialize(serde_ignored::Deserializer::new(deserializer, &mut note));
    match read {
        Ok(read) => {
            // What every object has, and what only controllers write.
            unknown.retain(|path| !["apiVersion", "kind", "status"].iter().any(|key| *path == FieldPath::of(key)));
            Ok((read, unknown))
        }
        Err(error) => Err(Finding::error(FieldPath::from(&track.path()), error.to_string())),
    }
}

fn created(metadata: &ObjectMeta) -> Option<i64> {
    metadata.creation_timestamp.as_ref().map(|time| time.0.as_second())
}

fn label<'a>(metadata: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    metadata.labels.as_ref()?.get(key).map(String::as_str)
}

/// A TCP port, 1 to 65535.
fn port(number: i64) -> Result<u16, String> {
    match u16::try_from(number) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(format!("{number} is not a port; write a number from 1 to 65535")),
    }
}

#[cfg(test)]
mod tests;
