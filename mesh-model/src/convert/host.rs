//! Hosts and namespaces as Istio's objects name them.

use std::net::IpAddr;
use std::sync::Arc;

use super::Input;
use super::fields::Fields;
use crate::problem::FieldPath;
use crate::service::NamespacedName;

/// The host that a name stands for, in full and in lower case. As in Istio a name without a dot is a Service of the object's own
/// namespace, any other is in full already, and `*` may stand for what comes before the first dot.
pub(super) fn host(text: &str, namespace: &str) -> Result<Arc<str>, String> {
    let lower = text.to_ascii_lowercase();
    let full = lower.strip_suffix('.').unwrap_or(&lower);
    let named = match full {
        "*" => return Ok("*".into()),
        _ => full.strip_prefix("*.").unwrap_or(full),
    };
    let fine = |label: &str| !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if full.is_empty() || full.len() > 253 || !named.split('.').all(fine) {
        return Err(format!("\"{text}\" is not a host; write a Service's name, a full host name, or *. and its end"));
    }
    if full.contains('.') {
        return Ok(full.into());
    }
    Ok(NamespacedName { namespace: namespace.into(), name: full.into() }.service_host().into())
}

/// Whether it is a host's name in itself, with no `*` in it.
pub(super) fn is_host(name: &str) -> bool {
    let fine = |label: &str| !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    name.len() <= 253 && name.split('.').all(fine)
}

/// `subjectAltNames`: names of which a server's certificate must have one; and what is wrong with those that no certificate can have. They
/// are among the others, so that none of them is left out of what is demanded.
pub(super) fn alt_names(input: &mut Input<'_>, map: &mut Fields<'_>) -> (Vec<Arc<str>>, Vec<(FieldPath, String)>) {
    let possible = |name: &str| {
        let is_uri = || name.split_once("://").is_some_and(|(scheme, rest)| !scheme.is_empty() && !rest.is_empty());
        is_host(name) || name.parse::<IpAddr>().is_ok() || is_uri()
    };
    let (mut names, mut wrong) = (Vec::new(), Vec::new());
    for (at, name) in map.texts(input, "subjectAltNames") {
        if !possible(name) {
            wrong.push((at, format!("\"{name}\" is neither a host name, an IP address nor a URI, so no certificate can have it")));
        }
        names.push(name.into());
    }
    (names, wrong)
}

/// The namespaces of `exportTo`; empty for all. One that cannot be read leaves the object's own namespace alone, the narrowest.
pub(super) fn export_to(input: &mut Input<'_>, spec: &mut Fields<'_>) -> Vec<Arc<str>> {
    let own = input.name.namespace.clone();
    let before = input.findings.len();
    let mut namespaces: Vec<Arc<str>> = Vec::new();
    let mut all = false;
    for (at, text) in spec.texts(input, "exportTo") {
        match text {
            "*" => all = true,
            "." => namespaces.push(own.clone()),
            // No namespace has this name, so that it is for nobody, as it is meant.
            "~" => namespaces.push("~".into()),
            name if !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') => {
                namespaces.push(name.into());
            }
            other => input.error(at, format!("\"{other}\" is not a namespace; write its name, . for the object's own, or * for all")),
        }
    }
    if input.findings.len() > before {
        return vec![own];
    }
    if all {
        return Vec::new();
    }
    namespaces.sort();
    namespaces.dedup();
    namespaces
}
