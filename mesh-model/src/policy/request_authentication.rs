//! Istio's RequestAuthentication as values: whose tokens are believed, and where a request carries them. `mesh_model::jwt` checks tokens by
//! them (with feature `jwt`).

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
