//! Rules of TLSRoute and TCPRoute: where connections go.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::{Input, backends, fault, part, text};
use crate::gateway::{ConnectionRule, RouteRules};
use crate::object::Kind;
use crate::problem::FieldPath;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RuleWire {
    name: Option<String>,
    backend_refs: Option<Vec<Value>>,
}

pub(super) fn rules(input: &mut Input<'_>, at: &FieldPath, hosts: Vec<String>, values: &[Value]) -> RouteRules {
    let before = input.findings.len();
    let hosts = server_names(input, hosts);
    let Some(value) = values.first() else { return RouteRules::Connections { hosts, rule: None } };
    if values.len() > 1 {
        input.warn(at.index(1), "is never reached: nothing tells the connections of one rule from another's, so the first has them all");
    }
    let at = at.index(0);
    let wire = part::<RuleWire>(input, &at, value, "its connections are refused");
    let (name, refs) = wire.map_or((None, None), |wire| (wire.name, wire.backend_refs));
    let refs = backends(input, &at.key("backendRefs"), refs, |input, at, filters| {
        if filters.is_some_and(|filters| !filters.is_empty()) {
            input.warn(at.clone(), "are for requests; connections have none, and they are not done");
        }
        Vec::new()
    });
    let fault = fault(input, before, false);
    RouteRules::Connections { hosts, rule: Some(ConnectionRule { name: name.map(Arc::from), backends: refs, fault }) }
}

fn server_names(input: &mut Input<'_>, hosts: Vec<String>) -> Vec<Arc<str>> {
    let at = FieldPath::of("spec.hostnames");
    if input.kind == Kind::TcpRoute {
        if !hosts.is_empty() {
            input.warn(at, super::super::UNKNOWN_FIELD);
        }
        return Vec::new();
    }
    let mut names = Vec::new();
    for (i, name) in hosts.iter().enumerate() {
        match text::host(name.strip_prefix("*.").unwrap_or(name)) {
            Ok(_) => names.push(Arc::from(name.as_str())),
            Err(message) => input.error(at.index(i), format!("{message}; the route's connections are refused")),
        }
    }
    names
}
