//! One fetch: an issuer's metadata if need be, then its keys, judged before anybody gets them.
//!
//! Whoever may write a RequestAuthentication chooses where this program asks. So it sends nothing but a GET without credentials, follows few
//! redirects and none from https to http, and reads no more than [`MAX_BODY`]; what an answer holds is told to nobody unless it is keys.
//! Addresses of this machine's own link are not asked; see [`super::client`].

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, LOCATION, USER_AGENT};
use http::uri::PathAndQuery;
use http::{HeaderMap, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use mesh_model::jwt::{self, Jwks, JwksError};
use mesh_model::policy::request_authentication::{KeyLocation, check_url};
use serde::Deserialize;

use super::client::{Client, Clients, Forbidden, forbidden, words};

/// Largest answer, in bytes.
pub const MAX_BODY: usize = jwt::MAX_JWKS;
/// Redirects that are followed.
const REDIRECTS: usize = 5;

/// What a fetch brought.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fetched {
    /// JWKS of the keys that can be used.
    pub text: Arc<str>,
    /// A digest of it.
    pub version: Arc<str>,
    /// How many keys.
    pub keys: usize,
    /// Keys that were left out, and why.
    pub skipped: Vec<String>,
    /// How long the issuer says that they are good for.
    pub max_age: Option<Duration>,
}

/// Why a fetch brought nothing.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Not in time.
    #[error("no answer within {} s", .0.as_secs_f32())]
    Timeout(Duration),
    /// A URL that is not asked.
    #[error("{0} {1}")]
    Url(String, &'static str),
    /// An address that is not asked.
    #[error("{0}")]
    Forbidden(#[from] Forbidden),
    /// Nobody answered, or not as HTTP and TLS have it.
    #[error("{0} cannot be asked: {1}")]
    Unreachable(String, String),
    /// It answered something else than 200.
    #[error("{0} answered {1}")]
    Status(String, StatusCode),
    /// A redirect that is not followed.
    #[error("{0} redirects {1}")]
    Redirect(String, &'static str),
    /// The answer is too long.
    #[error("the answer of {0} has more than {MAX_BODY} bytes")]
    TooLong(String),
    /// The metadata is none.
    #[error("the issuer's metadata at {0} {1}; write where the keys are into jwksUri")]
    Metadata(String, &'static str),
    /// The keys are none.
    #[error("what {0} answered: {1}")]
    Keys(String, JwksError),
    /// There is nobody to trust.
    #[error("{0}")]
    Roots(String),
}

impl FetchError {
    /// Its name in metrics.
    pub fn result(&self) -> &'static str {
        match self {
            FetchError::Timeout(_) => "timeout",
            FetchError::Url(..) | FetchError::Forbidden(_) => "refused",
            FetchError::Unreachable(..) => "unreachable",
            FetchError::Status(..) => "status",
            FetchError::Redirect(..) => "redirect",
            FetchError::TooLong(_) => "too_long",
            FetchError::Metadata(..) | FetchError::Keys(..) => "malformed",
            FetchError::Roots(_) => "roots",
        }
    }
}

/// Fetches keys.
pub struct Fetcher {
    clients: Clients,
}

/// Of an issuer's metadata (OpenID Connect Discovery 1.0, 3) what is needed.
#[derive(Deserialize)]
struct Metadata {
    issuer: String,
    jwks_uri: String,
}

impl Fetcher {
    /// That trusts the system's roots and those of a file, which is read for each fetch.
    pub fn new(roots: Option<PathBuf>) -> Fetcher {
        Fetcher { clients: Clients::new(roots) }
    }

    /// Fetches and judges keys, within `timeout` in all.
    pub async fn fetch(&self, location: &KeyLocation, timeout: Duration) -> Result<Fetched, FetchError> {
        tokio::time::timeout(timeout, self.get(location)).await.unwrap_or(Err(FetchError::Timeout(timeout)))
    }

    async fn get(&self, location: &KeyLocation) -> Result<Fetched, FetchError> {
        let client = self.clients.current().await.map_err(FetchError::Roots)?;
        let url = match location {
            KeyLocation::Jwks(uri) => uri.to_string(),
            KeyLocation::Issuer(issuer) => discover(&client, issuer, location.url(), location.is_clear()).await?,
        };
        let (headers, body) = load(&client, &url, location.is_clear()).await?;
        let bad = |error| FetchError::Keys(told(&url), error);
        let text = jwt::reduce(&body).map_err(bad)?;
        // What was left out stands in what was answered only.
        let keys = Jwks::parse(text.as_bytes()).map_err(bad)?.len();
        let skipped = Jwks::parse(&body).map_err(bad)?.skipped().to_vec();
        Ok(Fetched { version: version(&text), text: text.into(), keys, skipped, max_age: max_age(&headers) })
    }
}

/// The URL of an issuer's keys, as its metadata tells.
async fn discover(client: &Client, issuer: &str, url: String, clear: bool) -> Result<String, FetchError> {
    let (_, body) = load(client, &url, clear).await?;
    let bad = |why| FetchError::Metadata(told(&url), why);
    let metadata: Metadata = serde_json::from_slice(&body).map_err(|_| bad("is no JSON with issuer and jwks_uri"))?;
    // 4.3 there: else the keys are somebody else's.
    if metadata.issuer.trim_end_matches('/') != issuer.trim_end_matches('/') {
        return Err(bad("is that of another issuer"));
    }
    if check_url(&metadata.jwks_uri).is_err() {
        return Err(bad("has a jwks_uri that is no URL of https or http"));
    }
    if !clear && is_clear(&metadata.jwks_uri) {
        return Err(bad("has a jwks_uri without TLS though the issuer itself has it"));
    }
    Ok(metadata.jwks_uri)
}

/// Gets a URL. `clear`: it may be without TLS.
async fn load(client: &Client, url: &str, clear: bool) -> Result<(HeaderMap, Bytes), FetchError> {
    let mut url = url.to_owned();
    for _ in 0..=REDIRECTS {
        check_url(&url).map_err(|why| FetchError::Url(told(&url), why))?;
        if !clear && is_clear(&url) {
            return Err(FetchError::Url(told(&url), "is without TLS"));
        }
        let uri: Uri = url.parse().map_err(|_| FetchError::Url(told(&url), "is not a URL"))?;
        forbidden(&uri)?;
        let request = Request::get(&uri)
            .header(ACCEPT, "application/json, application/jwk-set+json")
            .header(USER_AGENT, concat!("nodemesh-mesh-control/", env!("CARGO_PKG_VERSION")))
            .body(Empty::<Bytes>::new())
            .map_err(|_| FetchError::Url(told(&url), "is not a URL"))?;
        let response = client.request(request).await.map_err(|error| FetchError::Unreachable(told(&url), words(&error)))?;
        let (head, body) = response.into_parts();
        match head.status {
            StatusCode::OK => {
                let body = Limited::new(body, MAX_BODY).collect().await.map_err(|error| match error.is::<LengthLimitError>() {
                    true => FetchError::TooLong(told(&url)),
                    false => FetchError::Unreachable(told(&url), words(&*error)),
                })?;
                return Ok((head.headers, body.to_bytes()));
            }
            StatusCode::MOVED_PERMANENTLY
            | StatusCode::FOUND
            | StatusCode::SEE_OTHER
            | StatusCode::TEMPORARY_REDIRECT
            | StatusCode::PERMANENT_REDIRECT => {
                let to = head.headers.get(LOCATION).and_then(|to| to.to_str().ok());
                let next = to.and_then(|to| join(&uri, to)).filter(|next| check_url(next).is_ok());
                let next =
                    next.ok_or_else(|| FetchError::Redirect(told(&url), "to what is no URL of https or http without credentials"))?;
                if is_clear(&next) && !is_clear(&url) {
                    return Err(FetchError::Redirect(told(&url), "to a URL without TLS"));
                }
                url = next;
            }
            status => return Err(FetchError::Status(told(&url), status)),
        }
    }
    Err(FetchError::Redirect(told(&url), "for more than five times"))
}

fn is_clear(url: &str) -> bool {
    KeyLocation::Jwks(url.into()).is_clear()
}

/// Where a redirect leads (RFC 9110, 10.2.2), without a fragment.
fn join(from: &Uri, to: &str) -> Option<String> {
    let to = to.split('#').next().unwrap_or_default();
    let (scheme, authority) = (from.scheme_str()?, from.authority()?);
    if to.contains("://") && !to.starts_with('/') && !to.starts_with('?') {
        return Some(to.to_owned());
    }
    if let Some(rest) = to.strip_prefix("//") {
        return Some(format!("{scheme}://{rest}"));
    }
    let path = from.path_and_query().map_or("/", PathAndQuery::path);
    let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
    Some(match to.bytes().next()? {
        b'/' => format!("{scheme}://{authority}{to}"),
        b'?' => format!("{scheme}://{authority}{path}{to}"),
        _ => format!("{scheme}://{authority}{directory}/{to}"),
    })
}

/// A URL as it is told: without what may be secret, credentials and query, and not too long.
fn told(url: &str) -> String {
    let url = url.split('?').next().unwrap_or_default();
    match url.split_once('@') {
        Some((_, rest)) => format!("…@{rest}"),
        None => url.to_owned(),
    }
    .chars()
    .take(200)
    .collect()
}

/// `max-age` of `Cache-Control` (RFC 9111, 5.2.2.1).
fn max_age(headers: &HeaderMap) -> Option<Duration> {
    let lines = headers.get_all(CACHE_CONTROL).iter().filter_map(|line| line.to_str().ok());
    let mut directives = lines.flat_map(|line| line.split(',')).map(|directive| directive.trim().to_ascii_lowercase());
    let seconds = directives.find_map(|directive| directive.strip_prefix("max-age=")?.trim_matches('"').parse().ok())?;
    Some(Duration::from_secs(seconds))
}

/// 128 bits of SHA-256 in hexadecimal.
fn version(text: &str) -> Arc<str> {
    let digest = digest::digest(&digest::SHA256, text.as_bytes());
    digest.as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect::<String>().into()
}

#[cfg(test)]
mod tests;
