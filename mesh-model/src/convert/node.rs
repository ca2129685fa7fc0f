//! Node: its addresses and where it stands.

use std::sync::Arc;

use super::{Input, Reading, label};
use crate::object::{Node, Object};
use crate::problem::FieldPath;

pub(super) fn convert(input: &mut Input<'_>) -> Reading {
    let Some(node) = input.read::<k8s_openapi::api::core::v1::Node>() else { return Reading::Unreadable };
    let mut addresses = Vec::new();
    let listed = node.status.and_then(|status| status.addresses).unwrap_or_default();
    for (i, address) in listed.iter().enumerate().filter(|(_, a)| matches!(a.type_.as_str(), "InternalIP" | "ExternalIP")) {
        match address.address.parse() {
            Ok(ip) => addresses.push(ip),
            Err(_) => {
                let at = FieldPath::of("status.addresses").index(i).key("address");
                input.error(at, format!("\"{}\" is not an IP address", address.address));
            }
        }
    }
    let topology = |key: &str| label(&node.metadata, key).unwrap_or_default().into();
    let value = Node {
        name: input.name.name.clone(),
        addresses,
        region: topology("topology.kubernetes.io/region"),
        zone: topology("topology.kubernetes.io/zone"),
    };
    input.finish(Some(Object::Node(Arc::new(value))))
}
