//! The tokens of requests (RequestAuthentication): whom they name, and what the server is given of them.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, OnceLock};

use http::header::{AUTHORIZATION, COOKIE, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, Uri};
use mesh_model::jwt::{Authenticator, FixedKeys, Jwks, KeyRing, Place, Verified};
use mesh_model::policy::http::{Claims, Headers};
use mesh_model::policy::request_authentication::{KeyLocation, KeySource};
use mesh_model::policy::{JwtRule, RequestAuthentication};
use serde_json::Value;

use super::decide::{Denial, DenialReason};

/// Whose tokens are believed at a workload. Equal values decide equally, but for keys that are fetched: those change in their slots.
#[derive(Clone, Debug)]
pub struct Tokens {
    effective: Vec<Arc<RequestAuthentication>>,
    /// Where the keys are that do not stand in the rules.
    fetched: HashMap<KeyLocation, Arc<dyn KeyRing>>,
    /// Made when the first request comes: parsing keys costs, and most configurations replace an equal one.
    authenticator: Arc<OnceLock<Option<Authenticator>>>,
}

impl PartialEq for Tokens {
    fn eq(&self, other: &Self) -> bool {
        self.effective == other.effective
    }
}

impl Eq for Tokens {}

impl Hash for Tokens {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for policy in &self.effective {
            policy.name.hash(state);
        }
    }
}

/// What a request's tokens came to. Only [`Tokens::judge`] and [`Believed::nothing`] make one.
#[derive(Debug)]
pub struct Believed(Option<Verified>);

impl Believed {
    /// Where nobody's tokens are believed.
    pub fn nothing() -> Believed {
        Believed(None)
    }

    /// What the token says.
    pub fn claims(&self) -> Option<&Claims> {
        self.0.as_ref().map(|verified| &verified.claims)
    }
}

/// The lines of a request's headers, for policies.
pub struct Lines<'a>(pub &'a HeaderMap);

impl Headers for Lines<'_> {
    fn each_value<'a>(&'a self, name: &str, each: &mut dyn FnMut(&'a [u8])) {
        for value in self.0.get_all(name) {
            each(value.as_bytes());
        }
    }
}

impl Tokens {
    /// `None` if no RequestAuthentication holds. Of keys that are to be fetched it has none; see [`Tokens::keyed`].
    pub fn of(effective: Vec<Arc<RequestAuthentication>>) -> Option<Tokens> {
        (!effective.is_empty()).then(|| Tokens { effective, fetched: HashMap::new(), authenticator: Arc::default() })
    }

    /// The same, with the places of the keys that are fetched.
    pub fn keyed(self, ring: &dyn Fn(&KeyLocation) -> Arc<dyn KeyRing>) -> Tokens {
        let fetched = self.locations().map(|location| (location.clone(), ring(&location))).collect();
        Tokens { fetched, effective: self.effective, authenticator: Arc::default() }
    }

    /// From where its keys come, as far as they are fetched.
    pub fn locations(&self) -> impl Iterator<Item = KeyLocation> + '_ {
        self.effective.iter().flat_map(|policy| &policy.rules).filter_map(|rule| rule.location())
    }

    fn authenticator(&self) -> Option<&Authenticator> {
        self.authenticator.get_or_init(|| Authenticator::new(&self.effective, |rule| self.ring(rule))).as_ref()
    }

    fn ring(&self, rule: &JwtRule) -> Arc<dyn KeyRing> {
        match rule.location().map(|location| self.fetched.get(&location)) {
            Some(Some(ring)) => ring.clone(),
            Some(None) => Arc::new(FixedKeys::Err("mesh-control is not asked for them".into())),
            None => Arc::new(inline(rule)),
        }
    }

    /// Verifies the request's tokens and brings its headers into the form that policies and the server see: what only this agent may say is
    /// taken from the client, the token is taken out unless the rule forwards it, and what the rule gives the server is added.
    pub fn judge(&self, parts: &mut Parts, now_unix: u64) -> Result<Believed, Denial> {
        for rule in self.effective.iter().flat_map(|policy| &policy.rules) {
            let given = rule.output_payload_header.iter().chain(rule.output_claims.iter().map(|output| &output.header));
            for name in given {
                parts.headers.remove(&**name);
            }
        }
        let Some(authenticator) = self.authenticator() else { return Ok(Believed(None)) };
        let query = parts.uri.query().map(str::as_bytes);
        let verified = authenticator
            .verify(&Lines(&parts.headers), query, now_unix)
            .map_err(|error| Denial { reason: DenialReason::Token(error), policy: None })?;
        if let Some(verified) = &verified {
            if !verified.rule.forward_original {
                take_out(parts, &verified.place);
            }
            give(&mut parts.headers, verified);
        }
        Ok(Believed(verified))
    }
}

/// The keys that stand in a rule.
fn inline(rule: &JwtRule) -> FixedKeys {
    let KeySource::Inline(text) = &rule.keys else { return Err("they do not stand in the rule".into()) };
    Jwks::parse(text.as_bytes()).map(Arc::new).map_err(|error| {
        tracing::error!(issuer = %rule.issuer, %error, "the keys of a RequestAuthentication are no JWKS; no token of the issuer is believed");
        error.to_string().into()
    })
}

fn take_out(parts: &mut Parts, place: &Place) {
    match place {
        Place::Bearer => drop(parts.headers.remove(AUTHORIZATION)),
        Place::Header(name, _) => drop(parts.headers.remove(&**name)),
        Place::Param(name) => {
            let Some(query) = parts.uri.query() else { return };
            let named = |pair: &&str| form_urlencoded::parse(pair.as_bytes()).next().is_some_and(|(key, _)| *key == **name);
            let left: Vec<&str> = query.split('&').filter(|pair| !named(pair)).collect();
            let target = if left.is_empty() { parts.uri.path().to_owned() } else { format!("{}?{}", parts.uri.path(), left.join("&")) };
            let mut uri = parts.uri.clone().into_parts();
            // Parts of what was a target are one.
            if let Ok(target) = PathAndQuery::try_from(target) {
                uri.path_and_query = Some(target);
                if let Ok(uri) = Uri::from_parts(uri) {
                    parts.uri = uri;
                }
            }
        }
        Place::Cookie(name) => {
            let cookies: Vec<String> =
                parts.headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok().map(str::to_owned)).collect();
            parts.headers.remove(COOKIE);
            for cookie in cookies {
                let other = |pair: &&str| pair.trim().split_once('=').is_none_or(|(key, _)| *key != **name);
                let left: Vec<&str> = cookie.split(';').filter(other).map(str::trim).collect();
                if let (false, Ok(value)) = (left.is_empty(), HeaderValue::from_str(&left.join("; "))) {
                    parts.headers.append(COOKIE, value);
                }
            }
        }
    }
}

fn give(headers: &mut HeaderMap, verified: &Verified) {
    let mut set = |name: &str, value: &str| {
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value)) {
            headers.insert(name, value);
        }
    };
    if let Some(name) = &verified.rule.output_payload_header {
        set(name, &verified.payload);
    }
    for output in &verified.rule.output_claims {
        // A point in a claim's name leads into it.
        let found = output.claim.split('.').try_fold(None::<&Value>, |at, key| match at {
            None => verified.claims.payload().get(key).map(Some),
            Some(value) => value.get(key).map(Some),
        });
        match found.flatten() {
            Some(Value::String(text)) => set(&output.header, text),
            Some(value @ (Value::Number(_) | Value::Bool(_))) => set(&output.header, &value.to_string()),
            // As Istio: lists and objects are not given so.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
