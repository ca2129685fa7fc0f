//! Istio's RequestAuthentication as values: whose tokens are believed, and where a request carries them. `mesh_model::jwt` checks tokens by
//! them (with feature `jwt`).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::policy::Scope;
use crate::service::NamespacedName;

/// A RequestAuthentication.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct RequestAuthentication {
    /// Its name.
    pub name: NamespacedName,
    /// `metadata.creationTimestamp`, seconds since 1970, if given.
    pub created: Option<i64>,
    /// The workloads it is about.
    pub scope: Scope,
    /// Its rules; of all that hold for a workload, a token must meet one.
    pub rules: Vec<Arc<JwtRule>>,
    /// Why it could not be understood. No request with a token then passes: neither is it known whose tokens are good, nor may a bad one
    /// be let through.
    pub refused: Option<Arc<str>>,
}

/// Whose tokens are believed.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct JwtRule {
    /// `iss`, exactly.
    pub issuer: Arc<str>,
    /// One of them must be in `aud`; empty: any.
    pub audiences: Vec<Arc<str>>,
    /// Where the issuer's keys are.
    pub keys: KeySource,
    /// Headers that hold a token. Where these, `from_params` and `from_cookies` are empty: [`JwtRule::default_places`].
    pub from_headers: Vec<TokenHeader>,
    /// Query parameters that hold a token.
    pub from_params: Vec<Arc<str>>,
    /// Cookies that hold a token.
    pub from_cookies: Vec<Arc<str>>,
    /// Whether the server is given the token too; if not, it is taken out of the request.
    pub forward_original: bool,
    /// Header in which the server is given the payload in base64url, in lower case. What a client sends by that name is taken out.
    pub output_payload_header: Option<Arc<str>>,
    /// Headers in which the server is given claims. What a client sends by their names is taken out.
    pub output_claims: Vec<OutputClaim>,
    /// For fetching keys.
    pub timeout: Option<Duration>,
}

impl JwtRule {
    /// Whether tokens are looked for where RFC 6750 puts them: `Authorization: Bearer …` and the query's `access_token`.
    pub fn default_places(&self) -> bool {
        self.from_headers.is_empty() && self.from_params.is_empty() && self.from_cookies.is_empty()
    }

    /// Where its keys are to be fetched; `None` if they stand in it.
    pub fn location(&self) -> Option<KeyLocation> {
        match &self.keys {
            KeySource::Inline(_) => None,
            KeySource::Uri(uri) => Some(KeyLocation::Jwks(uri.clone())),
            KeySource::Discovery => Some(KeyLocation::Issuer(self.issuer.clone())),
        }
    }
}

/// What stands behind an issuer to find its metadata (OpenID Connect Discovery 1.0, 4.1).
const DISCOVERY: &str = "/.well-known/openid-configuration";
/// Longest URL of keys, in bytes.
pub const MAX_URL: usize = 2048;

/// From where keys are fetched: what a rule's [`KeySource`] comes to. Rules of the same location share what is fetched.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum KeyLocation {
    /// A JWKS at this URL.
    Jwks(Arc<str>),
    /// A JWKS whose URL the metadata of this issuer tells.
    Issuer(Arc<str>),
}

impl KeyLocation {
    /// What is asked first: the JWKS itself, or the issuer's metadata, where a slash at the issuer's end is of no matter.
    pub fn url(&self) -> String {
        match self {
            KeyLocation::Jwks(uri) => uri.to_string(),
            KeyLocation::Issuer(issuer) => format!("{}{DISCOVERY}", issuer.strip_suffix('/').unwrap_or(issuer)),
        }
    }

    /// Whether it is asked without TLS, so that whoever is in between can put in keys of its own.
    pub fn is_clear(&self) -> bool {
        let (KeyLocation::Jwks(url) | KeyLocation::Issuer(url)) = self;
        scheme(url).is_some_and(|(scheme, _)| scheme.eq_ignore_ascii_case("http"))
    }
}

impl fmt::Display for KeyLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url())
    }
}

fn scheme(url: &str) -> Option<(&str, &str)> {
    url.split_once("://")
}

/// Judges a URL that keys are fetched from: `http` or `https` (as Istio), a host, no credentials, no fragment. The error completes the
/// sentence "`url` …".
pub fn check_url(url: &str) -> Result<(), &'static str> {
    let Some((scheme, rest)) = scheme(url) else { return Err("is not a URL; write https://…") };
    if !scheme.eq_ignore_ascii_case("https") && !scheme.eq_ignore_ascii_case("http") {
        return Err("is not a URL of https or http; write https://…");
    }
    if url.len() > MAX_URL {
        return Err("has more than 2048 bytes");
    }
    if !url.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("has blanks or letters that no URL has; write them as %20 and so on");
    }
    if url.contains('#') {
        return Err("has a fragment (#), which no server is sent; remove it");
    }
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    if authority.contains('@') {
        return Err("holds credentials, which keys are never asked with; remove what stands before the @");
    }
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    if host.is_empty() { Err("names no host; write https://<host>/…") } else { Ok(()) }
}

/// Where an issuer's keys are.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum KeySource {
    /// This JWKS (RFC 7517).
    Inline(Arc<str>),
    /// A JWKS at this URL.
    Uri(Arc<str>),
    /// A JWKS whose URL the issuer's `/.well-known/openid-configuration` tells.
    Discovery,
}

/// A header that holds a token.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct TokenHeader {
    /// Its name, in lower case.
    pub name: Arc<str>,
    /// What stands before the token, with its blank; a value that does not begin so holds none.
    pub prefix: Arc<str>,
}

/// A claim in a header.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct OutputClaim {
    /// The header's name, in lower case.
    pub header: Arc<str>,
    /// The claim; `.` goes into an object.
    pub claim: Arc<str>,
}

#[cfg(test)]
mod tests;
