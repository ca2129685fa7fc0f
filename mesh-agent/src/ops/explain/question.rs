//! The question, and how it is asked of the admin endpoint.

use std::sync::Arc;

use http::header::{HOST, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request, Uri};

use super::Unanswered;
use super::find::Place;
use crate::ops::admin::{ActionError, Query};
use crate::policy::KeyStore;

/// Would this be allowed, and where would it go?
#[derive(Clone, Debug)]
pub struct Question {
    /// The client: `namespace/pod`, `namespace/workload` or an address.
    pub from: String,
    /// The server: `namespace/service`, `namespace/pod`, `namespace/workload`, each with `:port` if need be, or an address and port.
    pub to: String,
    /// The port, if `to` does not say it.
    pub port: Option<u16>,
    /// The request; without one it is about the connection.
    pub request: Option<Asked>,
    /// The server name of a TLS connection.
    pub sni: Option<String>,
    /// Seconds since 1970, for tokens.
    pub now: u64,
    /// The keys of issuers that the agent has that is asked.
    pub keys: Arc<KeyStore>,
}

/// A request.
#[derive(Clone, Debug)]
pub struct Asked {
    method: Method,
    target: PathAndQuery,
    headers: HeaderMap,
}

impl Question {
    /// From the parameters of the page.
    ///
    /// # Errors
    /// One is missing or wrong.
    pub fn of(query: &Query, keys: &Arc<KeyStore>, now: u64) -> Result<Question, ActionError> {
        query.only_repeating(&["from", "to", "port", "method", "path", "sni"], &["header"])?;
        let named = |name: &str| match query.get(name) {
            Some(value) if !value.is_empty() => Ok(value.to_owned()),
            _ => Err(ActionError::BadRequest(format!("{name}= is missing: {}", super::USAGE))),
        };
        let (method, path) = (query.get("method"), query.get("path"));
        let request = match method.is_some() || path.is_some() || query.get("header").is_some() {
            true => Some(Asked::new(method.unwrap_or("GET"), path.unwrap_or("/"), query.all("header"))?),
            false => None,
        };
        let sni = query.get("sni").map(str::to_ascii_lowercase);
        Ok(Question {
            from: named("from")?,
            to: named("to")?,
            port: query.parsed("port", "a port")?,
            request,
            sni,
            now,
            keys: keys.clone(),
        })
    }
}

impl Asked {
    /// From its parts; headers as `name:value`.
    ///
    /// # Errors
    /// HTTP has no such thing.
    pub fn new<'a>(method: &str, path: &str, headers: impl Iterator<Item = &'a str>) -> Result<Asked, Unanswered> {
        let bad = |what: String| Unanswered::Bad(what);
        let method = method.parse().map_err(|_| bad(format!("method={method}: HTTP has no such method")))?;
        if !path.starts_with('/') {
            return Err(bad(format!("path={path}: expected a path that begins with /")));
        }
        let target = path.parse().map_err(|error| bad(format!("path={path}: {error}")))?;
        let mut map = HeaderMap::new();
        for header in headers {
            let wrong = || bad(format!("header={header}: expected name:value"));
            let (name, value) = header.split_once(':').ok_or_else(wrong)?;
            let name = HeaderName::from_bytes(name.trim().as_bytes()).map_err(|_| wrong())?;
            map.append(name, HeaderValue::from_str(value.trim()).map_err(|_| wrong())?);
        }
        Ok(Asked { method, target, headers: map })
    }

    /// The request, as a client that dials `place` would send it: if it says nothing else, to the host that it has dialled.
    pub(super) fn parts(&self, place: &Place<'_>) -> Result<Parts, Unanswered> {
        let (mut parts, ()) = Request::new(()).into_parts();
        parts.method = self.method.clone();
        parts.uri = Uri::from(self.target.clone());
        parts.headers = self.headers.clone();
        if !parts.headers.contains_key(HOST) {
            let host = HeaderValue::from_str(&place.host()).map_err(|error| Unanswered::Bad(error.to_string()))?;
            parts.headers.insert(HOST, host);
        }
        Ok(parts)
    }
}
