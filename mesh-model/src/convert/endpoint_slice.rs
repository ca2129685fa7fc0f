//! EndpointSlice: endpoints that somebody else has found for a Service.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::{Input, Reading, label, port};
use crate::object::{EndpointSliceObject, Object, SliceEndpoint};
use crate::problem::{FieldPath, Finding};

/// Label that names a slice's Service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

pub(super) fn convert(input: &mut Input<'_>) -> Reading {
    let Some(read) = input.read::<EndpointSlice>() else { return Reading::Unreadable };
    let Some(service) = label(&read.metadata, SERVICE_LABEL).map(Arc::from) else {
        let at = FieldPath::of("metadata.labels").key(SERVICE_LABEL);
        input.findings.push(Finding::info(at, "is missing: the slice belongs to no Service and is not used"));
        return Reading::Foreign;
    };
    if !matches!(read.address_type.as_str(), "IPv4" | "IPv6") {
        let message = format!("\"{}\" is not supported; the slice is not used: write IPv4 or IPv6", read.address_type);
        input.findings.push(Finding::warn(FieldPath::of("addressType"), message));
        return Reading::Foreign;
    }
    let mut ports = Vec::new();
    for (i, wire) in read.ports.unwrap_or_default().into_iter().enumerate() {
        if wire.protocol.is_some_and(|protocol| protocol != "TCP") {
            continue;
        }
        match wire.port.map(|number| port(number.into())).transpose() {
            Ok(number) => ports.push((wire.name.unwrap_or_default().into(), number)),
            Err(message) => input.error(FieldPath::of("ports").index(i).key("port"), message),
        }
    }
    let mut endpoints = Vec::new();
    for (i, wire) in read.endpoints.into_iter().enumerate() {
        let at = FieldPath::of("endpoints").index(i);
        let mut addresses = Vec::new();
        for (j, text) in wire.addresses.iter().enumerate() {
            match text.parse::<IpAddr>() {
                Ok(ip) => addresses.push(ip.to_canonical()),
                Err(_) => input.error(at.key("addresses").index(j), format!("\"{text}\" is not an IP address")),
            }
        }
        let conditions = wire.conditions.unwrap_or_default();
        endpoints.push(SliceEndpoint {
            addresses,
            ready: conditions.ready.unwrap_or(true),
            pod: wire.target_ref.filter(|to| to.kind.as_deref() == Some("Pod")).and_then(|to| to.name).map(Arc::from),
        });
    }
    let value = EndpointSliceObject { name: input.name.clone(), service, ports, endpoints };
    input.finish(Some(Object::EndpointSlice(Arc::new(value))))
}
