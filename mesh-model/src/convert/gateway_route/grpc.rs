//! Rules of GRPCRoute. A call is a request for `/service/method`, so that its rules are a HTTPRoute's with other words.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::http::{self, HeaderWire};
use super::{Input, backends, fault, filters, part};
use crate::convert::typed;
use crate::gateway::{RequestRule, RouteFilter, RouteMatch};
use crate::problem::FieldPath;
use crate::route::{Filter, PathMatch, Pattern, RequestMatch};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RuleWire {
    name: Option<String>,
    matches: Option<Vec<Value>>,
    filters: Option<Vec<Value>>,
    backend_refs: Option<Vec<Value>>,
    session_persistence: Option<Value>,
}

#[derive(Deserialize)]
struct MatchWire {
    method: Option<MethodWire>,
    headers: Option<Vec<HeaderWire>>,
}

#[derive(Deserialize)]
struct MethodWire {
    #[serde(rename = "type")]
    type_: Option<String>,
    service: Option<String>,
    method: Option<String>,
}

pub(super) fn rule(input: &mut Input<'_>, at: &FieldPath, index: usize, value: &Value) -> RequestRule {
    let before = input.findings.len();
    let Some(wire) = part::<RuleWire>(input, at, value, super::ANSWERED) else { return http::lost(input, before) };
    let matches = http::matches(input, &at.key("matches"), wire.matches, r#match);
    let broken = input.findings.len();
    let session =
        wire.session_persistence.and_then(|value| http::session(input, &at.key("sessionPersistence"), index, &value, super::ANSWERED));
    let refs = backends(input, &at.key("backendRefs"), wire.backend_refs, |input, at, values| {
        filters::of_backend(input, at, values.unwrap_or_default(), true)
    });
    let refused = super::error_since(input, broken);
    let (mut filters, incompatible) = filters::of_rule(input, &at.key("filters"), wire.filters.unwrap_or_default(), true);
    if let Some(why) = refused {
        filters.insert(0, RouteFilter::Ready(Filter::Refuse(why)));
    }
    RequestRule {
        name: wire.name.map(Arc::from),
        matches,
        filters,
        backends: refs,
        timeout: None,
        try_timeout: None,
        retry: None,
        session,
        fault: fault(input, before, incompatible),
    }
}

fn r#match(input: &mut Input<'_>, at: &FieldPath, value: &Value) -> RouteMatch {
    let mut found = RouteMatch::default();
    let (wire, unknown) = match typed::<MatchWire>(value) {
        Ok(read) => read,
        Err(finding) => {
            input.error(finding.field.below(at), finding.message);
            return found;
        }
    };
    for field in unknown {
        input.error(field.below(at), "is not a part of a match that is known here; check its spelling and place");
    }
    let mut matches = RequestMatch::default();
    if let Some(method) = wire.method {
        match path(&method) {
            Ok(path) => matches.path = path,
            Err(message) => input.error(at.key("method"), message),
        }
        let length = |text: &Option<String>| text.as_ref().map_or(0, |text| text.chars().count());
        found.grpc = (length(&method.service), length(&method.method));
    }
    matches.headers = http::headers(input, &at.key("headers"), wire.headers);
    found.matches = matches;
    found
}

/// A service or method of any name.
const ANY: &str = "[^/]+";

fn path(wire: &MethodWire) -> Result<Option<PathMatch>, String> {
    let service = wire.service.as_deref().filter(|text| !text.is_empty());
    let method = wire.method.as_deref().filter(|text| !text.is_empty());
    if service.is_none() && method.is_none() {
        return Err("names neither a service nor a method; write one of them, or leave it out for every call".into());
    }
    let pattern =
        |service: &str, method: &str| Pattern::new(&format!("/{service}/{method}")).map(|pattern| Some(PathMatch::Regex(pattern)));
    match wire.type_.as_deref() {
        None | Some("Exact") => {
            let name = |text: &str| !text.contains('/') && super::text::path(text).is_ok();
            if let Some(wrong) = [service, method].into_iter().flatten().find(|text| !name(text)) {
                return Err(format!("\"{}\" is not the name of a service or method", wrong.escape_default()));
            }
            match (service, method) {
                (Some(service), Some(method)) => Ok(Some(PathMatch::Exact(format!("/{service}/{method}").into()))),
                (Some(service), None) => Ok(Some(PathMatch::Segments(format!("/{service}").into()))),
                (None, method) => pattern(ANY, &regex::escape(method.unwrap_or_default())),
            }
        }
        Some("RegularExpression") => {
            let group = |text: Option<&str>| match text {
                // Each is a pattern by itself, so that none ends the other's group.
                Some(text) => Pattern::new(text).map(|pattern| format!("(?:{})", pattern.as_str())),
                None => Ok(ANY.to_owned()),
            };
            pattern(&group(service)?, &group(method)?)
        }
        Some(other) => Err(format!("\"{other}\" is not a type of match; write Exact or RegularExpression")),
    }
}
