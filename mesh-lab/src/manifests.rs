//! Kubernetes objects as YAML files, as the agents read them with `--manifests`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::node::Node;
use crate::pod::Pod;
use crate::world::World;

/// A directory of manifests. Files are replaced whole: a reader sees the old or the new one.
#[derive(Clone, Debug)]
pub struct Manifests {
    directory: PathBuf,
}

impl Manifests {
    /// The directory; made when the first file is written.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    /// Its path.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes `<name>.yaml` with these objects.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn put(&self, name: &str, objects: &[Value]) -> Result<()> {
        let mut text = String::new();
        for object in objects {
            text.push_str("---\n");
            text.push_str(&serde_yaml_ng::to_string(object).context("writing YAML")?);
        }
        self.put_text(name, &text)
    }

    /// Writes `<name>.yaml` with this text.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn put_text(&self, name: &str, text: &str) -> Result<()> {
        fs::create_dir_all(&self.directory).with_context(|| format!("making {}", self.directory.display()))?;
        let fresh = self.directory.join(format!(".{name}.new"));
        let file = self.directory.join(format!("{name}.yaml"));
        fs::write(&fresh, text).with_context(|| format!("writing {}", fresh.display()))?;
        fs::rename(&fresh, &file).with_context(|| format!("replacing {}", file.display()))
    }

    /// Removes `<name>.yaml`; fine if it isn't there.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn remove(&self, name: &str) -> Result<()> {
        let file = self.directory.join(format!("{name}.yaml"));
        match fs::remove_file(&file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", file.display()))
            }
            _ => Ok(()),
        }
    }

    /// Writes the world's nodes and each of its pods (`nodes.yaml`, `pod-<namespace>-<name>.yaml`).
    ///
    /// # Errors
    /// A file can't be written.
    pub fn put_world(&self, world: &World) -> Result<()> {
        let nodes: Vec<Value> = world.nodes().iter().map(node).collect();
        self.put("nodes", &nodes)?;
        for node in world.nodes() {
            for pod in node.pods() {
                self.put_pod(&pod)?;
            }
        }
        Ok(())
    }

    /// Writes a pod (`pod-<namespace>-<name>.yaml`). Its service account need not exist as an object.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn put_pod(&self, of: &Pod) -> Result<()> {
        self.put(&pod_file(of), &[pod(of)])
    }

    /// Removes what [`Self::put_pod`] wrote.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn remove_pod(&self, of: &Pod) -> Result<()> {
        self.remove(&pod_file(of))
    }
}

fn pod_file(pod: &Pod) -> String {
    format!("pod-{}-{}", pod.namespace(), pod.name())
}

/// A `Node`.
pub fn node(node: &Node) -> Value {
    let addresses: Vec<Value> =
        node.addresses().iter().map(|address| json!({ "type": "InternalIP", "address": address.to_string() })).collect();
    let cidrs = node.pod_cidrs();
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": node.name(), "labels": { "kubernetes.io/hostname": node.name() } },
        "spec": { "podCIDR": cidrs[0], "podCIDRs": cidrs },
        "status": { "addresses": addresses },
    })
}

/// A `Namespace`, with the mesh's label or without.
pub fn namespace(name: &str, mesh: Option<bool>) -> Value {
    let labels = match mesh {
        Some(true) => json!({ "nodemesh.dev/mesh": "enabled" }),
        Some(false) => json!({ "nodemesh.dev/mesh": "disabled" }),
        None => json!({}),
    };
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels } })
}

/// A `ServiceAccount`.
pub fn service_account(namespace: &str, name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "namespace": namespace, "name": name } })
}

/// A `Pod` that runs and is ready.
pub fn pod(pod: &Pod) -> Value {
    let addresses: Vec<Value> = pod.addresses().iter().map(|address| json!({ "ip": address.to_string() })).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": pod.namespace(),
            "name": pod.name(),
            "uid": pod.uid(),
            "labels": pod.labels(),
            "annotations": { "nodemesh.dev/netns": pod.netns().display().to_string() },
        },
        "spec": { "nodeName": pod.node().name(), "serviceAccountName": pod.service_account(), "containers": [{ "name": "app" }] },
        "status": {
            "phase": "Running",
            "podIP": pod.ipv4().to_string(),
            "podIPs": addresses,
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    })
}

/// A `Service` of the pods with the label `app` equal to `app`; ports are (name, port, target port).
pub fn service(namespace: &str, name: &str, cluster_ips: &[&str], app: &str, ports: &[(&str, u16, u16)]) -> Value {
    let ports: Vec<Value> =
        ports.iter().map(|(name, port, target)| json!({ "name": name, "port": port, "targetPort": target, "protocol": "TCP" })).collect();
    let first = cluster_ips.first().copied().unwrap_or("None");
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "namespace": namespace, "name": name },
        "spec": { "clusterIP": first, "clusterIPs": cluster_ips, "selector": { "app": app }, "ports": ports },
    })
}

/// An Istio `AuthorizationPolicy` of the namespace, for the pods with these labels (none: all), with this action and these rules.
pub fn authorization_policy(namespace: &str, name: &str, selector: &[(&str, &str)], action: &str, rules: &Value) -> Value {
    let mut spec = json!({ "action": action, "rules": rules });
    if let (false, Some(spec)) = (selector.is_empty(), spec.as_object_mut()) {
        let labels: BTreeMap<&str, &str> = selector.iter().copied().collect();
        spec.insert("selector".to_owned(), json!({ "matchLabels": labels }));
    }
    json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": { "namespace": namespace, "name": name },
        "spec": spec,
    })
}

/// An Istio `PeerAuthentication` of the namespace (`STRICT`, `PERMISSIVE`, `DISABLE`).
pub fn peer_authentication(namespace: &str, name: &str, mode: &str) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": { "namespace": namespace, "name": name },
        "spec": { "mtls": { "mode": mode } },
    })
}
