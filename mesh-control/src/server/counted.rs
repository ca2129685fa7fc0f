//! Refusals that the gRPC library gives before our service sees the request: counted and logged as well.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{HeaderValue, Request, Response};
use tower_service::Service;

use super::Peer;
use crate::ca::refusal::REASON;
use crate::metrics::Metrics;

/// A service whose refusals by the library are counted.
#[derive(Clone)]
pub(super) struct Counted<S> {
    inner: S,
    metrics: Arc<Metrics>,
}

impl<S> Counted<S> {
    pub(super) fn new(inner: S, metrics: Arc<Metrics>) -> Counted<S> {
        Counted { inner, metrics }
    }
}

impl<S, I, O> Service<Request<I>> for Counted<S>
where
    S: Service<Request<I>, Response = Response<O>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<O>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<I>) -> Self::Future {
        let peer = request.extensions().get::<Peer>().map(|peer| peer.0);
        let metrics = self.metrics.clone();
        let answer = self.inner.call(request);
        Box::pin(async move {
            let mut response = answer.await?;
            if let Some(reason) = library_refusal(&mut response) {
                metrics.refused(reason);
                let message = response.headers().get("grpc-message").and_then(|message| message.to_str().ok()).unwrap_or_default();
                tracing::debug!(?peer, reason, message, "request refused before it was read");
            }
            Ok(response)
        })
    }
}

/// Its name, if the response is a refusal and not one of our service's. A message that is too long is answered as other gRPC
/// servers do, by RESOURCE_EXHAUSTED.
fn library_refusal<O>(response: &mut Response<O>) -> Option<&'static str> {
    let headers = response.headers_mut();
    let status = headers.get("grpc-status")?;
    let reason = match status.as_bytes() {
        b"0" => return None,
        _ if headers.contains_key(REASON) => return None,
        b"11" => {
            headers.insert("grpc-status", HeaderValue::from_static("8"));
            "too_large"
        }
        b"12" => "unknown_method",
        b"1" | b"4" => "timeout",
        _ => "malformed",
    };
    Some(reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(status: Option<&'static str>, ours: bool) -> (Option<&'static str>, Option<String>) {
        let mut response = Response::new(());
        if let Some(status) = status {
            response.headers_mut().insert("grpc-status", HeaderValue::from_static(status));
        }
        if ours {
            response.headers_mut().insert(REASON, HeaderValue::from_static("csr"));
        }
        let reason = library_refusal(&mut response);
        (reason, response.headers().get("grpc-status").map(|status| status.to_str().unwrap().to_owned()))
    }

    #[test]
    fn tells_the_librarys_refusals_from_ours() {
        assert_eq!(with(None, false), (None, None));
        assert_eq!(with(Some("0"), false).0, None);
        assert_eq!(with(Some("3"), true).0, None);
        assert_eq!(with(Some("3"), false).0, Some("malformed"));
        assert_eq!(with(Some("12"), false).0, Some("unknown_method"));
        assert_eq!(with(Some("11"), false), (Some("too_large"), Some("8".into())));
    }
}
