//! Tokens of requests, checked by the RequestAuthentications that hold for a workload. Pure: time and keys are passed in.
//!
//! A request without a token passes as nobody; whether it may is an AuthorizationPolicy's question (`requestPrincipals`). Every token at
//! a place where one is looked for must be good, or the request is answered with 401: it is not known which one the server would read.
//! Of several good ones the first counts.
//!
//! Only signatures by private keys are accepted (RFC 7518: RS*, PS*, ES256, ES384; RFC 8037: Ed25519). `none` and the HS* do not exist
//! here: a key set is public, so a "secret" from it proves nothing.

use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::policy::http::{Claims, Headers};
use crate::policy::{JwtRule, RequestAuthentication};
use crate::service::NamespacedName;

mod keys;
mod places;

pub use keys::{Jwks, JwksError, MAX_JWKS, MAX_REDUCED, reduce};
pub use places::Place;

/// How far clocks may be apart, in seconds, as in Envoy.
pub const LEEWAY: f64 = 60.0;
/// Longest token that is looked at, in bytes.
pub const MAX_TOKEN: usize = 16 * 1024;
/// How many tokens one request may have.
pub const MAX_TOKENS: usize = 8;

/// Where the keys of a rule are found, anew for each token: they may be fetched, and change.
pub trait KeyRing: fmt::Debug + Send + Sync {
    /// The keys now, or why there are none.
    fn keys(&self) -> Result<Arc<Jwks>, Arc<str>>;
}

/// Keys that do not change: those that stand in the rule itself, or why they are none.
pub type FixedKeys = Result<Arc<Jwks>, Arc<str>>;

impl KeyRing for FixedKeys {
    fn keys(&self) -> Result<Arc<Jwks>, Arc<str>> {
        self.clone()
    }
}

/// Checks the tokens of the requests to a workload.
#[derive(Clone, Debug)]
pub struct Authenticator {
    rules: Vec<(Arc<JwtRule>, Arc<dyn KeyRing>)>,
    refused: Option<NamespacedName>,
}

/// What a request's token proves.
#[derive(Clone, PartialEq, Debug)]
pub struct Verified {
    /// Its claims.
    pub claims: Claims,
    /// The rule that it meets: says what the server is given of it.
    pub rule: Arc<JwtRule>,
    /// Where it stands: to be taken out there, unless [`JwtRule::forward_original`].
    pub place: Place,
    /// The payload in base64url, for [`JwtRule::output_payload_header`].
    pub payload: String,
}

/// Why a token is not believed. Says the reason for the log; [`JwtError::body`] what the client is told.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum JwtError {
    /// It does not have the form of a JWS (RFC 7515, 7.1) with claims.
    #[error("the token is malformed: {0}")]
    Malformed(&'static str),
    /// It is longer than [`MAX_TOKEN`].
    #[error("the token has more than {MAX_TOKEN} bytes")]
    TooLong,
    /// There are more than [`MAX_TOKENS`].
    #[error("the request has more than {MAX_TOKENS} tokens")]
    TooMany,
    /// `alg` is not one of those that are accepted.
    #[error("the token is signed with {0:?}, which is not accepted")]
    Algorithm(String),
    /// No rule that looks at this place names its issuer.
    #[error("no RequestAuthentication names the token's issuer {0:?} for this place")]
    UnknownIssuer(String),
    /// None of its audiences is one that the rule names.
    #[error("the token of issuer {0} is for other audiences")]
    Audience(Arc<str>),
    /// `exp` is past.
    #[error("the token of issuer {0} has expired")]
    Expired(Arc<str>),
    /// `nbf` is to come.
    #[error("the token of issuer {0} is not valid yet")]
    NotYetValid(Arc<str>),
    /// No key of the issuer made its signature.
    #[error("no key of issuer {0} made the token's signature")]
    Signature(Arc<str>),
    /// The issuer's keys are not there, and why.
    #[error("the keys of issuer {0} are not there: {1}")]
    NoKeys(Arc<str>, Arc<str>),
    /// A RequestAuthentication that holds for the workload is not understood.
    #[error("RequestAuthentication {0} is not understood, and so no token is believed; see the problems of the configuration")]
    Refused(NamespacedName),
}

impl JwtError {
    /// The text of the 401, which tells a stranger no more than Envoy does.
    pub fn body(&self) -> &'static str {
        match self {
            JwtError::Expired(_) => "Jwt is expired",
            JwtError::NotYetValid(_) => "Jwt not yet valid",
            JwtError::UnknownIssuer(_) => "Jwt issuer is not configured",
            JwtError::Audience(_) => "Audiences in Jwt are not allowed",
            JwtError::Malformed(_) => "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections",
            // istiod puts a key of nobody where it cannot fetch any.
            JwtError::NoKeys(..) => "Jwks doesn't have key to match kid or alg from Jwt",
            JwtError::TooLong | JwtError::TooMany | JwtError::Algorithm(_) | JwtError::Signature(_) | JwtError::Refused(_) => {
                "Jwt verification fails"
            }
        }
    }
}

/// A token taken apart, nothing of it believed.
struct Token<'a> {
    algorithm: jsonwebtoken::Algorithm,
    key_id: Option<String>,
    claims: Map<String, Value>,
    payload: &'a str,
    /// Header and payload, as they are signed.
    signed: &'a str,
    signature: &'a str,
}

#[derive(Deserialize)]
struct HeaderWire {
    alg: String,
    kid: Option<String>,
    crit: Option<Value>,
}

impl Authenticator {
    /// For the RequestAuthentications that hold for a workload; `None` if there are none. `keys` gives the place of a rule's keys.
    pub fn new(effective: &[Arc<RequestAuthentication>], keys: impl Fn(&JwtRule) -> Arc<dyn KeyRing>) -> Option<Authenticator> {
        let refused = effective.iter().find(|policy| policy.refused.is_some()).map(|policy| policy.name.clone());
        let rules: Vec<_> = effective.iter().flat_map(|policy| &policy.rules).map(|rule| (rule.clone(), keys(rule))).collect();
        (refused.is_some() || !rules.is_empty()).then_some(Authenticator { rules, refused })
    }

    /// Checks the tokens of a request at a time in seconds since 1970; `query` is its query without `?`. `None`: it has none.
    pub fn verify(&self, headers: &dyn Headers, query: Option<&[u8]>, now_unix: u64) -> Result<Option<Verified>, JwtError> {
        let defaults = self.refused.is_some();
        let tokens = places::find(self.rules.iter().map(|(rule, _)| &**rule), defaults, headers, query)?;
        if tokens.len() > MAX_TOKENS {
            return Err(JwtError::TooMany);
        }
        let mut first = None;
        for (place, text) in tokens {
            if let Some(refused) = &self.refused {
                return Err(JwtError::Refused(refused.clone()));
            }
            let token = Token::parse(&text)?;
            let verified = self.token(&token, place, now_unix)?;
            first.get_or_insert(verified);
        }
        Ok(first)
    }

    /// By the first rule that it meets.
    fn token(&self, token: &Token<'_>, place: Place, now: u64) -> Result<Verified, JwtError> {
        let issuer = token.claims.get("iss").and_then(Value::as_str).unwrap_or_default();
        let mut error = None;
        for (rule, keys) in self.rules.iter().filter(|(rule, _)| *rule.issuer == *issuer && place.is_of(rule)) {
            match check(token, rule, &**keys, now) {
                Ok(()) => {
                    let claims = Claims::new(token.claims.clone());
                    return Ok(Verified { claims, rule: rule.clone(), place, payload: token.payload.to_owned() });
                }
                Err(why) => error = error.or(Some(why)),
            }
        }
        Err(error.unwrap_or_else(|| JwtError::UnknownIssuer(issuer.chars().take(300).collect())))
    }
}

/// What is cheap is checked first, and nothing is believed before the signature.
fn check(token: &Token<'_>, rule: &JwtRule, keys: &dyn KeyRing, now: u64) -> Result<(), JwtError> {
    let issuer = || rule.issuer.clone();
    let time = |name: &str| match token.claims.get(name) {
        None => Ok(None),
        Some(value) => value.as_f64().map(Some).ok_or(JwtError::Malformed("a time is not a number")),
    };
    // Exact up to the year 285 million.
    let now = now as f64;
    if time("exp")?.is_some_and(|expires| now >= expires + LEEWAY) {
        return Err(JwtError::Expired(issuer()));
    }
    if time("nbf")?.is_some_and(|begins| now + LEEWAY < begins) {
        return Err(JwtError::NotYetValid(issuer()));
    }
    let wanted = |audience: &Value| audience.as_str().is_some_and(|audience| rule.audiences.iter().any(|wanted| **wanted == *audience));
    let meant = match token.claims.get("aud") {
        _ if rule.audiences.is_empty() => true,
        Some(Value::Array(list)) => list.iter().any(wanted),
        Some(one) => wanted(one),
        None => false,
    };
    if !meant {
        return Err(JwtError::Audience(issuer()));
    }
    let keys = keys.keys().map_err(|why| JwtError::NoKeys(issuer(), why))?;
    if keys.verify(token.algorithm, token.key_id.as_deref(), token.signed.as_bytes(), token.signature) {
        Ok(())
    } else {
        Err(JwtError::Signature(issuer()))
    }
}

impl<'a> Token<'a> {
    fn parse(text: &'a str) -> Result<Token<'a>, JwtError> {
        use jsonwebtoken::Algorithm as A;
        if text.len() > MAX_TOKEN {
            return Err(JwtError::TooLong);
        }
        let (signed, signature) = text.rsplit_once('.').ok_or(JwtError::Malformed("it has not three parts"))?;
        let (header, payload) = signed.split_once('.').ok_or(JwtError::Malformed("it has not three parts"))?;
        let decode = |part: &str, what| URL_SAFE_NO_PAD.decode(part).map_err(|_| JwtError::Malformed(what));
        let header: HeaderWire = serde_json::from_slice(&decode(header, "its header is not base64url")?)
            .map_err(|_| JwtError::Malformed("its header is no JSON object with `alg`"))?;
        if header.crit.is_some() {
            // RFC 7515, 4.1.11: whoever does not understand what is marked so must refuse.
            return Err(JwtError::Malformed("its header has extensions that must be understood"));
        }
        let algorithm = match header.alg.as_str() {
            "RS256" => A::RS256,
            "RS384" => A::RS384,
            "RS512" => A::RS512,
            "PS256" => A::PS256,
            "PS384" => A::PS384,
            "PS512" => A::PS512,
            "ES256" => A::ES256,
            "ES384" => A::ES384,
            "EdDSA" => A::EdDSA,
            other => return Err(JwtError::Algorithm(other.chars().take(40).collect())),
        };
        let claims = serde_json::from_slice(&decode(payload, "its payload is not base64url")?)
            .map_err(|_| JwtError::Malformed("its payload is no JSON object"))?;
        Ok(Token { algorithm, key_id: header.kid, claims, payload, signed, signature })
    }
}

#[cfg(test)]
mod tests;
