//! The endpoint that Prometheus and the kubelet ask: `/metrics`, `/healthz/ready`, `/healthz/live`.

use std::net::SocketAddr;
use std::sync::Arc;

use http::header::{ACCEPT, ALLOW, HeaderValue};
use http::{Method, StatusCode};

use super::{Format, Metrics};
use crate::ops::clock::Clock;
use crate::ops::http::{Answer, Handler, Received, Reply, reply, text};
use crate::ops::ready::Readiness;

/// Answers on `--metrics-listen`. It tells nothing that must not leave the node but names and counts.
pub struct MetricsEndpoint {
    metrics: Arc<Metrics>,
    readiness: Readiness,
    clock: Arc<dyn Clock>,
}

impl MetricsEndpoint {
    /// An endpoint over these metrics and this readiness.
    pub fn new(metrics: Arc<Metrics>, readiness: Readiness, clock: Arc<dyn Clock>) -> MetricsEndpoint {
        MetricsEndpoint { metrics, readiness, clock }
    }

    fn reply(&self, request: &Received) -> Reply {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut reply = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
            reply.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return reply;
        }
        match request.uri().path() {
            "/metrics" => {
                let format = Format::negotiate(request.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok()));
                match self.metrics.expose(format, self.clock.now()) {
                    Ok(body) => reply(StatusCode::OK, format.content_type(), body),
                    Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "the metrics can't be written: a collector failed\n"),
                }
            }
            "/healthz/ready" | "/readyz" => {
                let awaited = self.readiness.awaited();
                let remarks: String = self.readiness.remarks().iter().map(|remark| format!("{remark}\n")).collect();
                if awaited.is_empty() {
                    text(StatusCode::OK, format!("ready\n{remarks}"))
                } else {
                    text(StatusCode::SERVICE_UNAVAILABLE, format!("waiting for: {}\n{remarks}", awaited.join(", ")))
                }
            }
            "/healthz/live" | "/livez" => text(StatusCode::OK, "live\n"),
            _ => text(StatusCode::NOT_FOUND, "there are /metrics, /healthz/ready and /healthz/live\n"),
        }
    }
}

impl Handler for MetricsEndpoint {
    fn answer(&self, _peer: SocketAddr, request: Received) -> Answer {
        let reply = self.reply(&request);
        Box::pin(std::future::ready(reply))
    }
}
