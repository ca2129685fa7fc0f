//! Answers that this agent gives itself. Pure.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, Response, StatusCode};

use crate::outcome::{Outcome, RequestFailure};
use crate::policy::limits::Standing;

/// Whether a request is gRPC's (`application/grpc`, also `+proto` and the like).
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    match kind.strip_prefix(b"application/grpc".as_slice()) {
        Some(rest) => rest.first().is_none_or(|next| matches!(next, b'+' | b';' | b' ')),
        None => false,
    }
}

/// The answer to a request that ended so before a server answered.
pub fn of_outcome(outcome: &Outcome, grpc: bool) -> Response<Bytes> {
    let text = match outcome {
        Outcome::Request(RequestFailure::Unauthenticated { body, .. }) => (*body).to_owned(),
        // The object's name is the operators' matter.
        Outcome::Request(RequestFailure::RateLimited { .. }) => "rate limit exceeded".to_owned(),
        // It is about the client's own namespace, and about a host that the client has named itself.
        Outcome::Unregistered { .. } => outcome.to_string(),
        // Who is denied learns that and no more.
        denial if denial.is_denial() => "RBAC: access denied".to_owned(),
        other => other.to_string(),
    };
    let mut response = if grpc { of_grpc(outcome.grpc_status(), &text) } else { plain(outcome.http_status(), &text) };
    if let Outcome::Request(RequestFailure::RateLimited { standing, .. }) = outcome {
        rate_limit(response.headers_mut(), standing);
    }
    if response.status() == StatusCode::UNAUTHORIZED {
        // RFC 6750, 3.
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer error=\"invalid_token\""));
    }
    response
}

/// Says how a budget stands, in whole seconds (`RateLimit-Limit`, `-Remaining` and `-Reset` of draft-ietf-httpapi-ratelimit-headers-03, and
/// `Retry-After`). What the server says of limits of its own stays.
pub fn rate_limit(headers: &mut HeaderMap, standing: &Standing) {
    const LIMIT: HeaderName = HeaderName::from_static("ratelimit-limit");
    const REMAINING: HeaderName = HeaderName::from_static("ratelimit-remaining");
    const RESET: HeaderName = HeaderName::from_static("ratelimit-reset");
    if headers.contains_key(LIMIT) {
        return;
    }
    // Whoever waits so long must have waited long enough.
    let seconds = |time: Duration| time.as_secs().saturating_add(u64::from(time.subsec_nanos() > 0));
    headers.insert(LIMIT, standing.limit.into());
    headers.insert(REMAINING, standing.remaining.into());
    headers.insert(RESET, seconds(standing.reset).into());
    if let Some(time) = standing.retry_after {
        headers.insert(RETRY_AFTER, seconds(time).max(1).into());
    }
}

/// An answer with a text.
pub fn plain(status: StatusCode, text: &str) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(text.to_owned()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// An answer of gRPC without messages ("Trailers-Only").
pub fn of_grpc(status: u16, message: &str) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    grpc_status(headers, status, message);
    response
}

/// Adds gRPC's status and its text, to headers or trailers.
pub fn grpc_status(headers: &mut HeaderMap, status: u16, message: &str) {
    headers.insert(HeaderName::from_static("grpc-status"), HeaderValue::from(status));
    if let Ok(message) = HeaderValue::from_str(&percent(message)) {
        headers.insert(HeaderName::from_static("grpc-message"), message);
    }
}

/// gRPC's encoding of messages: printable ASCII but `%` as it is, all else percent-encoded.
fn percent(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if (b' '..=b'~').contains(&byte) && byte != b'%' {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_is_told_by_its_content_type() {
        for (kind, wanted) in
            [("application/grpc", true), ("application/grpc+proto", true), ("application/grpc-web", false), ("text/plain", false)]
        {
            let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(kind))]);
            assert_eq!(is_grpc(&headers), wanted, "{kind}");
        }
    }

    #[test]
    fn outcomes_have_a_status_in_both_languages() {
        let no_route = Outcome::Request(RequestFailure::NoRoute);
        assert_eq!(of_outcome(&no_route, false).status(), 404);
        let grpc = of_outcome(&no_route, true);
        assert_eq!((grpc.status(), &grpc.headers()["grpc-status"]), (StatusCode::OK, &HeaderValue::from(12)));
        let denied = Outcome::PolicyDenied { reason: crate::outcome::DenyReason::NoAllowPolicy, policy: None };
        assert_eq!(of_outcome(&denied, false).body(), "RBAC: access denied");
        assert_eq!(of_outcome(&denied, true).headers()["grpc-status"], "7");
        let standing =
            Standing { limit: 5, remaining: 0, reset: Duration::from_millis(2500), retry_after: Some(Duration::from_millis(10)) };
        let limit = mesh_model::service::NamespacedName { namespace: "shop".into(), name: "web".into() };
        let over = Outcome::Request(RequestFailure::RateLimited { limit, standing });
        for (grpc, status) in [(false, 429), (true, 200)] {
            let answer = of_outcome(&over, grpc);
            let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
            assert_eq!(answer.status(), status);
            assert_eq!(
                (header("ratelimit-limit"), header("ratelimit-remaining"), header("ratelimit-reset")),
                ("5".into(), "0".into(), "3".into())
            );
            assert_eq!(header("retry-after"), "1");
        }
        assert_eq!(of_outcome(&over, false).body(), "rate limit exceeded");
        assert_eq!(of_outcome(&over, true).headers()["grpc-status"], "8");
        let mut theirs = HeaderMap::from_iter([(HeaderName::from_static("ratelimit-limit"), HeaderValue::from(7))]);
        rate_limit(&mut theirs, &standing);
        assert_eq!((theirs.len(), &theirs["ratelimit-limit"]), (1, &HeaderValue::from(7)));
        assert_eq!(percent("100% ä\n"), "100%25 %C3%A4%0A");
    }
}
