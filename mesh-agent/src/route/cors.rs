//! Cross-origin resource sharing (Fetch standard, 3.2), as a rule allows it. Pure.

use std::sync::Arc;

use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Method};
use mesh_model::route::{Cors, OriginMatch};

/// What becomes of a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Decision {
    /// It is a preflight, to be answered with these headers.
    Preflight(HeaderMap),
    /// It goes on; its response gets these headers.
    Pass(HeaderMap),
}

/// Decides about a request. Without `Origin`, or from one that is not allowed, it goes on without headers: the browser then keeps the
/// answer from the script. A preflight of such an origin is answered without headers, which says no.
pub fn decide(cors: &Cors, method: &Method, headers: &HeaderMap) -> Decision {
    let Some(origin) = headers.get(header::ORIGIN) else { return Decision::Pass(HeaderMap::new()) };
    let asked_method = headers.get(header::ACCESS_CONTROL_REQUEST_METHOD).filter(|_| method == Method::OPTIONS);
    let mut out = HeaderMap::new();
    if !origin.to_str().is_ok_and(|origin| cors.origins.iter().any(|allowed| allows(allowed, origin))) {
        return if asked_method.is_some() { Decision::Preflight(out) } else { Decision::Pass(out) };
    }
    // `*` may not be said with credentials, and with the origin itself an answer is right in any cache that heeds Vary.
    out.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    out.insert(header::VARY, HeaderValue::from_static("Origin"));
    if cors.credentials {
        out.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
    let Some(asked_method) = asked_method else {
        list(&mut out, header::ACCESS_CONTROL_EXPOSE_HEADERS, &cors.expose, None);
        return Decision::Pass(out);
    };
    let asked_headers = headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS);
    list(&mut out, header::ACCESS_CONTROL_ALLOW_METHODS, &cors.methods, Some(asked_method));
    list(&mut out, header::ACCESS_CONTROL_ALLOW_HEADERS, &cors.headers, asked_headers);
    if let Some(age) = cors.max_age {
        out.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from(age.as_secs()));
    }
    Decision::Preflight(out)
}

/// `*` is answered with what was asked for, which holds with credentials too.
fn list(out: &mut HeaderMap, name: HeaderName, values: &[Arc<str>], asked: Option<&HeaderValue>) {
    if values.iter().any(|value| **value == *"*") {
        let value = asked.cloned().unwrap_or(HeaderValue::from_static("*"));
        out.insert(name, value);
    } else if !values.is_empty()
        && let Ok(value) = HeaderValue::from_str(&values.join(", "))
    {
        out.insert(name, value);
    }
}

fn allows(allowed: &OriginMatch, origin: &str) -> bool {
    match allowed {
        OriginMatch::Any => true,
        OriginMatch::Text(text) => text.matches(origin),
        OriginMatch::Wildcard { scheme, suffix } => {
            origin.strip_prefix(&**scheme).and_then(|host| host.strip_suffix(&**suffix)).is_some_and(|rest| !rest.is_empty())
        }
    }
}

#[cfg(test)]
mod tests;
