//! Policies: what is not understood, and STRICT.

use anyhow::{Result, bail};

use super::bed::{Bed, DEMO, MESH, OUTSIDE, STRICT, apply, curl, curl_until, namespace, ready, service, web};
use super::view::{logged, text};
use super::walk::URL;
use crate::cluster;

const WRONG: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: wrong}
spec:
  selector: {matchLabels: {app: hello-world}}
  action: ALLOW
  rules: [{from: [{source: {ipBlocks: [10.0.0.0/99]}}]}]
";

pub fn not_understood(bed: &mut Bed) -> Result<String> {
    apply(DEMO, WRONG)?;
    curl_until(DEMO, "client", URL, |answer| !answer.ok)?;
    let problems = bed.says(&["check"])?;
    let condition = invalid("wrong")?;
    cluster::ask(&["-n", DEMO, "delete", "authorizationpolicy", "wrong"])?;
    if !problems.contains("e2e-demo/wrong") || !problems.contains("ipBlocks") {
        bail!("meshctl check names neither object nor field:\n{problems}");
    }
    curl_until(DEMO, "client", URL, |answer| answer.ok)?;
    Ok(format!("{problems}\nstatus: {condition}\nwritten by {}", writer()?))
}

/// The replica that writes the status of objects.
fn writer() -> Result<String> {
    let holder = cluster::ask(&["-n", MESH, "get", "lease", "mesh-control", "-o", "jsonpath={.spec.holderIdentity}"])?;
    let replicas = cluster::ask(&["-n", MESH, "get", "pods", "-l", "app.kubernetes.io/name=mesh-control", "-o", "name"])?;
    // Behind its name it says where agents reach it.
    let name = holder.split('_').next().unwrap_or_default();
    match replicas.split_whitespace().find(|pod| pod.trim_start_matches("pod/") == name) {
        Some(_) => Ok(holder),
        None => bail!("the Lease is held by {holder:?}, which is none of {replicas}"),
    }
}

/// What the status of a policy says of it, which must be that it is wrong, and where.
fn invalid(name: &str) -> Result<String> {
    cluster::ask(&["-n", DEMO, "wait", "--for=condition=Reconciled=false", "--timeout=30s", "authorizationpolicy", name])?;
    let path = "jsonpath={.status.conditions[?(@.type==\"Reconciled\")].reason}: {.status.conditions[?(@.type==\"Reconciled\")].message}";
    let told = cluster::ask(&["-n", DEMO, "get", "authorizationpolicy", name, "-o", path])?;
    if !told.starts_with("Invalid: ") || !told.contains("spec.rules[0].from[0].source.ipBlocks[0]") {
        bail!("the status of the policy names no field: {told}");
    }
    Ok(told.trim().to_owned())
}

const DEMAND: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: STRICT}}
---
";

/// Where the pod that accepts no plaintext is called.
pub const STRICT_URL: &str = "http://server.e2e-strict";

pub fn strict(_: &mut Bed) -> Result<String> {
    namespace(STRICT, "nodemesh.dev/mesh: enabled")?;
    apply(STRICT, &(DEMAND.to_owned() + &web("server", "") + &service("server", "server", 80, "")))?;
    ready(STRICT, &["server"])?;
    cluster::ask(&["-n", STRICT, "wait", "--for=condition=Reconciled", "--timeout=30s", "peerauthentication", "default"])?;
    curl_until(DEMO, "client", STRICT_URL, |answer| answer.ok)?;
    // Not through the Service: the node's proxy may not have it yet, and would refuse the call by itself.
    let address = cluster::ask(&["-n", STRICT, "get", "pod", "server", "-o", "jsonpath={.status.podIP}"])?;
    let outsider = curl(OUTSIDE, "tools", &format!("http://{}", address.trim()))?;
    if outsider.ok {
        bail!("a pod outside the mesh was answered in the clear: {}", outsider.text);
    }
    let line = logged(&[("destination_workload", "e2e-strict/server"), ("outcome", "mtls_required")])?;
    Ok(format!("{}: {}", text(&line, "outcome"), text(&line, "reason")))
}
