//! The operators' endpoint: metrics and health, over HTTP/1.1.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::metrics::Metrics;
use crate::ready::Readiness;

/// Connections at once.
const CONNECTIONS: usize = 32;
/// Longest time for the head of a request.
const HEAD: Duration = Duration::from_secs(5);
/// Longest life of a connection.
const TOTAL: Duration = Duration::from_secs(15);

/// What the endpoint shows.
pub struct Admin {
    /// `/metrics`
    pub metrics: Arc<Metrics>,
    /// `/healthz/ready`
    pub ready: Arc<Readiness>,
}

impl Admin {
    /// Serves until dropped.
    pub async fn serve(self, listener: TcpListener) {
        let admin = Arc::new(self);
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let Ok(permit) = room.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let admin = admin.clone();
                    connections.spawn(async move {
                        // Whatever ends it: there is nobody to tell.
                        let _ = tokio::time::timeout(TOTAL, connection(stream, admin)).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "can't accept a connection to the operators' endpoint");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }

    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        if !matches!(*method, Method::GET | Method::HEAD) {
            let mut reply = text(StatusCode::METHOD_NOT_ALLOWED, "this answers to GET and HEAD\n");
            reply.headers_mut().insert(http::header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return reply;
        }
        match path {
            "/metrics" => match self.metrics.text() {
                Ok(metrics) => {
                    let mut reply = text(StatusCode::OK, metrics);
                    let open_metrics = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
                    reply.headers_mut().insert(CONTENT_TYPE, open_metrics);
                    reply
                }
                Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            },
            "/healthz/live" => text(StatusCode::OK, "live\n"),
            "/healthz/ready" => match &*self.ready.awaited() {
                [] => text(StatusCode::OK, "ready\n"),
                awaited => text(StatusCode::SERVICE_UNAVAILABLE, format!("waiting for\n{}\n", awaited.join("\n"))),
            },
            _ => text(StatusCode::NOT_FOUND, "there are /metrics, /healthz/live and /healthz/ready\n"),
        }
    }
}

async fn connection(stream: TcpStream, admin: Arc<Admin>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let reply = admin.answer(request.method(), request.uri().path());
        std::future::ready(Ok::<_, Infallible>(reply))
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .keep_alive(false)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "the operators' endpoint was not used properly");
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        let admin = Admin { metrics: Arc::new(Metrics::new()), ready: Arc::new(Readiness::default()) };
        assert_eq!(admin.answer(&Method::GET, "/healthz/live").status(), StatusCode::OK);
        assert_eq!(admin.answer(&Method::GET, "/healthz/ready").status(), StatusCode::OK);
        assert_eq!(admin.answer(&Method::GET, "/metrics").status(), StatusCode::OK);
        assert_eq!(admin.answer(&Method::POST, "/metrics").status(), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(admin.answer(&Method::GET, "/").status(), StatusCode::NOT_FOUND);
        admin.ready.wait_for("tokens", "none");
        assert_eq!(admin.answer(&Method::GET, "/healthz/ready").status(), StatusCode::SERVICE_UNAVAILABLE);
    }
}
