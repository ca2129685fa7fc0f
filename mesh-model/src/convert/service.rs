//! Service: its addresses and TCP ports, and which pods stand behind it.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Input, Reading, created, port};
use crate::object::{Object, ServiceObject, ServicePortObject, TargetPort};
use crate::problem::{FieldPath, Finding};

pub(super) fn convert(input: &mut Input<'_>) -> Reading {
    let Some(read) = input.read::<k8s_openapi::api::core::v1::Service>() else { return Reading::Unreadable };
    let created = created(&read.metadata);
    let spec = read.spec.unwrap_or_default();
    if spec.type_.as_deref() == Some("ExternalName") {
        let at = FieldPath::of("spec.type");
        input.findings.push(Finding::info(at, "ExternalName is only a name in the DNS; the mesh does nothing for it"));
        return Reading::Foreign;
    }
    let mut texts: Vec<(FieldPath, String)> = Vec::new();
    let many = FieldPath::of("spec.clusterIPs");
    texts.extend(spec.cluster_ips.unwrap_or_default().into_iter().enumerate().map(|(i, text)| (many.index(i), text)));
    if texts.is_empty() {
        texts.extend(spec.cluster_ip.map(|text| (FieldPath::of("spec.clusterIP"), text)));
    }
    let headless = texts.iter().any(|(_, text)| text == "None");
    let mut addresses = Vec::new();
    for (at, text) in texts.into_iter().filter(|(_, text)| !headless && !text.is_empty()) {
        match text.parse::<IpAddr>() {
            Ok(ip) => addresses.push(ip.to_canonical()),
            Err(_) => input.error(at, format!("\"{text}\" is not an IP address; write one, or None for a headless Service")),
        }
    }
    if addresses.is_empty() && !headless && !input.failed() {
        let message = "is not set, and nobody here assigns one: the Service cannot be dialled; write an address, or None";
        input.findings.push(Finding::info(FieldPath::of("spec.clusterIP"), message));
    }
    let mut ports = Vec::new();
    let at = FieldPath::of("spec.ports");
    for (i, wire) in spec.ports.unwrap_or_default().into_iter().enumerate() {
        if wire.protocol.is_some_and(|protocol| protocol != "TCP") {
            continue;
        }
        let at = at.index(i);
        let number = port(wire.port.into());
        let target = match wire.target_port {
            None | Some(IntOrString::Int(0)) => number.clone().map(TargetPort::Number),
            Some(IntOrString::Int(target)) => port(target.into()).map(TargetPort::Number),
            // A number in quotes is one, as for the API server.
            Some(IntOrString::String(text)) => match text.parse::<i64>() {
                Ok(target) => port(target).map(TargetPort::Number),
                Err(_) if text.is_empty() => number.clone().map(TargetPort::Number),
                Err(_) => Ok(TargetPort::Name(text)),
            },
        };
        match (number, target) {
            (Ok(port), Ok(target)) => ports.push(ServicePortObject {
                port,
                name: wire.name.unwrap_or_default().into(),
                app_protocol: wire.app_protocol.unwrap_or_default().into(),
                target,
            }),
            (Err(message), _) => input.error(at.key("port"), message),
            (_, Err(message)) => input.error(at.key("targetPort"), message),
        }
    }
    let value = ServiceObject {
        name: input.name.clone(),
        addresses,
        selector: spec.selector.unwrap_or_default(),
        ports,
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
        created,
    };
    input.finish(Some(Object::Service(Arc::new(value))))
}
