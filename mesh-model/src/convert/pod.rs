//! Pod: who runs where, under which identity.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use super::namespace::mesh_word;
use super::{Input, NETNS_ANNOTATION, Provenance, Reading, created, label};
use crate::object::{Object, PodObject};
use crate::problem::FieldPath;
use crate::workload::{Canonical, WorkloadUid};

pub(super) fn convert(input: &mut Input<'_>) -> Reading {
    let mesh = mesh_word(input);
    let netns = netns(input);
    let addresses = addresses(input);
    let mut pod = PodObject {
        uid: uid(input),
        name: input.name.clone(),
        service_account: input.raw(&["spec", "serviceAccountName"]).and_then(Value::as_str).unwrap_or("default").into(),
        node: input.raw(&["spec", "nodeName"]).and_then(Value::as_str).unwrap_or_default().into(),
        addresses,
        host_network: input.raw(&["spec", "hostNetwork"]).and_then(Value::as_bool).unwrap_or(false),
        netns,
        mesh,
        labels: Arc::default(),
        canonical: Canonical::default(),
        finished: false,
        terminating: false,
        ready: false,
        ports: BTreeMap::new(),
        created: None,
        refused: None,
    };
    if let Some(read) = input.read::<Pod>() {
        fill(&mut pod, read);
    }
    pod.refused = input.first_error();
    let refused = pod.refused.is_some();
    let object = Object::Pod(Arc::new(pod));
    if refused { Reading::Cautious(object) } else { Reading::Good(object) }
}

fn fill(pod: &mut PodObject, read: Pod) {
    let (metadata, spec, status) = (read.metadata, read.spec.unwrap_or_default(), read.status.unwrap_or_default());
    pod.canonical = canonical(&metadata);
    pod.created = created(&metadata).or_else(|| status.start_time.map(|time| time.0.as_second()));
    pod.terminating = metadata.deletion_timestamp.is_some();
    let phase = status.phase.as_deref().unwrap_or("Running");
    pod.finished = matches!(phase, "Succeeded" | "Failed");
    let held_back = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status != "True");
    pod.ready = phase == "Running" && !held_back;
    for port in spec.containers.into_iter().flat_map(|container| container.ports.unwrap_or_default()) {
        let tcp = port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP");
        if let (true, Some(name), Ok(number)) = (tcp, port.name, u16::try_from(port.container_port)) {
            // Of two with one name the first counts, as for kubelet and endpoint controller.
            pod.ports.entry(name).or_insert(number);
        }
    }
    pod.labels = Arc::new(metadata.labels.unwrap_or_default());
}

fn uid(input: &Input<'_>) -> WorkloadUid {
    match input.raw(&["metadata", "uid"]).and_then(Value::as_str) {
        Some(uid) if !uid.is_empty() => WorkloadUid(uid.into()),
        _ => WorkloadUid(input.name.to_string().into()),
    }
}

fn netns(input: &mut Input<'_>) -> Option<PathBuf> {
    let path = PathBuf::from(input.raw(&["metadata", "annotations", NETNS_ANNOTATION])?.as_str()?);
    let at = FieldPath::of("metadata.annotations").key(NETNS_ANNOTATION);
    if input.provenance == Provenance::ApiServer {
        input.warn(at, "has no effect in a cluster, where the node's agent finds the network namespace itself; remove it");
        return None;
    }
    if !path.is_absolute() {
        input.error(at, "is not an absolute path; write e.g. /run/netns/<name>");
        return None;
    }
    Some(path)
}

/// `status.podIPs`, else `status.podIP`: at most one a family.
fn addresses(input: &mut Input<'_>) -> Vec<IpAddr> {
    let many = FieldPath::of("status.podIPs");
    let mut texts: Vec<(FieldPath, String)> = Vec::new();
    if let Some(Value::Array(list)) = input.raw(&["status", "podIPs"]) {
        let ips = list.iter().map(|entry| entry.get("ip").and_then(Value::as_str).unwrap_or_default());
        texts.extend(ips.enumerate().map(|(i, text)| (many.index(i).key("ip"), text.into())));
    }
    if texts.is_empty()
        && let Some(Value::String(text)) = input.raw(&["status", "podIP"])
        && !text.is_empty()
    {
        texts.push((FieldPath::of("status.podIP"), text.clone()));
    }
    let mut addresses: Vec<IpAddr> = Vec::new();
    for (at, text) in texts {
        match text.parse::<IpAddr>().map(|ip| ip.to_canonical()) {
            Ok(ip) if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() => {
                input.error(at, format!("{ip} cannot be a pod's address"));
            }
            Ok(ip) if addresses.iter().any(|other| other.is_ipv4() == ip.is_ipv4()) => {
                input.warn(at, format!("{ip} is a second address of its family and is ignored"));
            }
            Ok(ip) => addresses.push(ip),
            Err(_) => input.error(at, format!("\"{text}\" is not an IP address")),
        }
    }
    addresses
}

/// Istio's canonical names; see [`Canonical`].
fn canonical(metadata: &ObjectMeta) -> Canonical {
    let label = |key: &str| label(metadata, key).filter(|value| !value.is_empty());
    let workload = controller(metadata).unwrap_or_else(|| metadata.name.clone().unwrap_or_default());
    let service = ["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"].into_iter().find_map(label);
    let revision = ["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"].into_iter().find_map(label);
    Canonical {
        service: service.unwrap_or(&workload).into(),
        revision: revision.unwrap_or("latest").into(),
        app: label("app").unwrap_or_default().into(),
        version: label("version").unwrap_or_default().into(),
        workload: workload.into(),
    }
}

/// The controller's name; of a ReplicaSet made by a Deployment and of a Job made by a CronJob the maker's.
fn controller(metadata: &ObjectMeta) -> Option<String> {
    let owner = metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))?;
    let stem = owner.name.rsplit_once('-');
    let made_by = match (owner.kind.as_str(), stem) {
        ("ReplicaSet", Some((stem, hash))) => label(metadata, "pod-template-hash").filter(|of| *of == hash).map(|_| stem),
        // The suffix is the scheduled time in seconds or minutes since 1970.
        ("Job", Some((stem, time))) => {
            let is_time = (8..=10).contains(&time.len()) && time.bytes().all(|b| b.is_ascii_digit());
            is_time.then_some(stem)
        }
        _ => None,
    };
    Some(made_by.unwrap_or(&owner.name).into())
}
