//! `cargo xtask crds`: the CustomResourceDefinitions of the chart, generated from the types in `mesh_model::crd`.
//!
//! Kinds of our own get a structural schema. Istio's kinds are defined only where Istio hasn't: their schemas keep every field, because the
//! agent judges objects by itself and must see the fields that it does not know in order to say so.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use crate::command;

/// What to do with them.
#[derive(clap::Args)]
pub struct Arguments {
    /// Write nothing; fail if a file is not what would be written.
    #[arg(long)]
    check: bool,
}

/// Writes the definitions, or compares them.
pub fn run(arguments: &Arguments) -> Result<bool> {
    if arguments.check {
        check()?;
        return Ok(true);
    }
    for (file, content) in definitions()? {
        fs::write(&file, content).with_context(|| format!("writing {}", file.display()))?;
        println!("{}", file.display());
    }
    Ok(true)
}

/// Fails if a definition in the chart isn't what the types say.
pub fn check() -> Result<()> {
    for (file, content) in definitions()? {
        let found = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        if found != content {
            bail!("{} is not what the types say; run `cargo xtask crds`", file.display());
        }
    }
    Ok(())
}

const HEADER: &str = "# Written by `cargo xtask crds`.\n";

fn definitions() -> Result<Vec<(PathBuf, String)>> {
    let chart = command::root().join("deploy/chart");
    let mut files =
        vec![(chart.join("crds/nodemesh.dev_meshes.yaml"), mesh()?), (chart.join("crds/nodemesh.dev_ratelimits.yaml"), rate_limit()?)];
    for kind in &ISTIO {
        files.push((chart.join(format!("files/crds/{}_{}.yaml", kind.group, kind.plural)), kind.definition()));
    }
    files
        .into_iter()
        .map(|(file, definition)| {
            let text = serde_yaml_ng::to_string(&definition).context("a definition as YAML")?;
            Ok((file, format!("{HEADER}{text}")))
        })
        .collect()
}

fn mesh() -> Result<Value> {
    let columns = json!([
        {"name": "Trust domain", "type": "string", "jsonPath": ".spec.trustDomain"},
        {"name": "mTLS", "type": "string", "jsonPath": ".spec.mtls.mode"},
        {"name": "Same node", "type": "string", "jsonPath": ".spec.sameNode"},
        {"name": "Accepted", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Accepted\")].status"},
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    ]);
    let what = "Settings of the whole mesh. Only the object named default counts.";
    let rule = ("self.metadata.name == 'default'", "only the Mesh named default counts; give this one that name");
    let version = own_version(what, structural::<mesh_model::crd::MeshSpec>()?, rule, columns);
    let names = json!({
        "kind": "Mesh", "listKind": "MeshList", "plural": "meshes", "singular": "mesh", "categories": ["nodemesh"],
    });
    Ok(definition("nodemesh.dev", "meshes", "Cluster", names, &[version], json!({})))
}

fn rate_limit() -> Result<Value> {
    let columns = json!([
        {"name": "Scope", "type": "string", "jsonPath": ".spec.scope"},
        {"name": "Accepted", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Accepted\")].status"},
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    ]);
    let what = "How many requests workloads of its namespace take.";
    let mut spec = structural::<mesh_model::crd::RateLimitSpec>()?;
    // Only what needs no look at other objects: the conversion has the last word.
    let limit = spec.pointer_mut("/properties/limits/items").and_then(Value::as_object_mut).context("the schema of a limit")?;
    limit.insert(
        "x-kubernetes-validations".to_owned(),
        json!([
            {"rule": "has(self.unit) != has(self.per)", "message": "write either unit or per"},
            {
                "rule": "!has(self.by) || [has(self.by.source), has(self.by.header), has(self.by.pathPrefix)].filter(x, x).size() == 1",
                "message": "by names one of source, header and pathPrefix",
            },
        ]),
    );
    let rule = ("!has(self.spec) || !(has(self.spec.selector) && has(self.spec.targetRefs))", "write either selector or targetRefs");
    let version = own_version(what, spec, rule, columns);
    let names = json!({
        "kind": "RateLimit", "listKind": "RateLimitList", "plural": "ratelimits", "singular": "ratelimit", "categories": ["nodemesh"],
    });
    Ok(definition("nodemesh.dev", "ratelimits", "Namespaced", names, &[version], json!({})))
}

/// The version of a kind of our own. `rule` is one of CEL about the whole object, with what its breaking means.
fn own_version(what: &str, spec: Value, rule: (&str, &str), columns: Value) -> Value {
    let schema = json!({
        "type": "object",
        "description": what,
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": {
                "type": "object",
                "description": "What became of the object.",
                "properties": {
                    "observedGeneration": {"type": "integer", "format": "int64"},
                    "conditions": conditions(),
                },
            },
        },
        "x-kubernetes-validations": [{"rule": rule.0, "message": rule.1}],
    });
    json!({
        "name": "v1alpha1", "served": true, "storage": true,
        "schema": {"openAPIV3Schema": schema},
        "subresources": {"status": {}},
        "additionalPrinterColumns": columns,
    })
}

/// A kind of Istio's.
struct Istio {
    group: &'static str,
    /// Served versions; the first is stored.
    versions: &'static [&'static str],
    kind: &'static str,
    plural: &'static str,
    short: &'static str,
    what: &'static str,
    /// What `kubectl get` shows beside name and age: title, type, path.
    columns: &'static [(&'static str, &'static str, &'static str)],
}

const SECURITY: &str = "security.istio.io";
const NETWORKING: &str = "networking.istio.io";

/// Istio's kinds that the mesh reads, with the short names and columns that Istio gives them.
const ISTIO: [Istio; 6] = [
    Istio {
        group: SECURITY,
        versions: &["v1", "v1beta1"],
        kind: "AuthorizationPolicy",
        plural: "authorizationpolicies",
        short: "ap",
        what: "Who may talk to whom.",
        columns: &[("Action", "string", ".spec.action")],
    },
    Istio {
        group: SECURITY,
        versions: &["v1", "v1beta1"],
        kind: "PeerAuthentication",
        plural: "peerauthentications",
        short: "pa",
        what: "Whether plaintext is accepted.",
        columns: &[("Mode", "string", ".spec.mtls.mode")],
    },
    Istio {
        group: SECURITY,
        versions: &["v1", "v1beta1"],
        kind: "RequestAuthentication",
        plural: "requestauthentications",
        short: "ra",
        what: "Whose tokens are believed.",
        columns: &[],
    },
    Istio {
        group: NETWORKING,
        versions: &["v1", "v1beta1", "v1alpha3"],
        kind: "VirtualService",
        plural: "virtualservices",
        short: "vs",
        what: "Where the requests for a host go.",
        columns: &[("Gateways", "string", ".spec.gateways"), ("Hosts", "string", ".spec.hosts")],
    },
    Istio {
        group: NETWORKING,
        versions: &["v1", "v1beta1", "v1alpha3"],
        kind: "DestinationRule",
        plural: "destinationrules",
        short: "dr",
        what: "How clients talk to a host.",
        columns: &[("Host", "string", ".spec.host")],
    },
    Istio {
        group: NETWORKING,
        versions: &["v1", "v1beta1", "v1alpha3"],
        kind: "ServiceEntry",
        plural: "serviceentries",
        short: "se",
        what: "Hosts that are no Services, and where they are.",
        columns: &[
            ("Hosts", "string", ".spec.hosts"),
            ("Location", "string", ".spec.location"),
            ("Resolution", "string", ".spec.resolution"),
        ],
    },
];

impl Istio {
    fn definition(&self) -> Value {
        let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        let schema = json!({
            "type": "object",
            "description": self.what,
            "properties": {
                "apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"},
                "spec": open, "status": open,
            },
        });
        let mut columns: Vec<Value> =
            self.columns.iter().map(|(name, kind, path)| json!({"name": name, "type": kind, "jsonPath": path})).collect();
        columns.push(json!({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}));
        let versions: Vec<Value> = self
            .versions
            .iter()
            .enumerate()
            .map(|(number, name)| {
                json!({
                    "name": name, "served": true, "storage": number == 0,
                    "schema": {"openAPIV3Schema": schema},
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": columns,
                })
            })
            .collect();
        let names = json!({
            "kind": self.kind, "listKind": format!("{}List", self.kind), "plural": self.plural, "singular": self.kind.to_lowercase(),
            "shortNames": [self.short], "categories": ["nodemesh", self.group.replace('.', "-")],
        });
        // People's policies must outlive an uninstall, as our own kinds' objects do, which Helm never deletes.
        definition(self.group, self.plural, "Namespaced", names, &versions, json!({"helm.sh/resource-policy": "keep"}))
    }
}

fn definition(group: &str, plural: &str, scope: &str, names: Value, versions: &[Value], annotations: Value) -> Value {
    let mut metadata = json!({
        "name": format!("{plural}.{group}"),
        "labels": {"app.kubernetes.io/part-of": "nodemesh"},
    });
    if let (Some(metadata), Some(false)) = (metadata.as_object_mut(), annotations.as_object().map(Map::is_empty)) {
        metadata.insert("annotations".to_owned(), annotations);
    }
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": metadata,
        "spec": {"group": group, "scope": scope, "names": names, "versions": versions},
    })
}

/// As `metav1.Condition`.
fn conditions() -> Value {
    json!({
        "type": "array",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["type", "status", "lastTransitionTime", "reason", "message"],
            "properties": {
                "type": {"type": "string", "maxLength": 316},
                "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
                "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0},
                "lastTransitionTime": {"type": "string", "format": "date-time"},
                "reason": {"type": "string", "minLength": 1, "maxLength": 1024},
                "message": {"type": "string", "maxLength": 32768},
            },
        },
    })
}

/// A type's schema in the form that the API server demands: everything in place, and nothing that it does not know.
fn structural<T: JsonSchema>() -> Result<Value> {
    let settings = SchemaSettings::openapi3().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let schema = settings.into_generator().into_root_schema_for::<T>();
    let mut value = serde_json::to_value(schema).context("a schema as JSON")?;
    tidy(&mut value)?;
    Ok(value)
}

/// Takes away titles and what makes `null` a value of its own (an absent field and `null` are the same to the API server), and refuses
/// what would not be structural.
fn tidy(schema: &mut Value) -> Result<()> {
    let Some(fields) = schema.as_object_mut() else { return Ok(()) };
    for extra in ["title", "nullable", "default"] {
        fields.remove(extra);
    }
    // A field's own description stands beside its type's; schemars then wraps the type.
    for wrapper in ["allOf", "anyOf"] {
        let Some(Value::Array(parts)) = fields.get(wrapper) else { continue };
        let real: Vec<Value> = parts.iter().filter(|part| !is_null(part)).cloned().collect();
        let [Value::Object(only)] = &*real else { bail!("{wrapper} of several schemas is not structural: {parts:?}") };
        let only = only.clone();
        fields.remove(wrapper);
        for (name, value) in only {
            fields.entry(name).or_insert(value);
        }
        for extra in ["title", "nullable", "default"] {
            fields.remove(extra);
        }
    }
    if let Some(Value::Array(values)) = fields.get_mut("enum") {
        values.retain(|value| !value.is_null());
    }
    for refused in ["$ref", "oneOf", "definitions", "$schema"] {
        if fields.contains_key(refused) {
            bail!("{refused} is not structural: {fields:?}");
        }
    }
    if let Some(Value::Object(properties)) = fields.get_mut("properties") {
        for property in properties.values_mut() {
            tidy(property)?;
        }
    }
    if let Some(items) = fields.get_mut("items") {
        tidy(items)?;
    }
    Ok(())
}

fn is_null(schema: &Value) -> bool {
    schema.get("enum").and_then(Value::as_array).is_some_and(|values| values.iter().all(Value::is_null))
        || schema.get("type").and_then(Value::as_str) == Some("null")
}

#[cfg(test)]
mod tests;
