//! A finished request as a span of OTLP, with the attributes of OpenTelemetry's conventions for HTTP and gRPC. Pure.
//!
//! Nothing of it may be a secret: no query, no header, and of a path what the access log shows too.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_model::workload::Workload;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{Span, SpanFlags, Status};
use opentelemetry_semantic_conventions::attribute as name;

use super::Open;
use crate::ops::metrics::labels::{PeerInfo, Reporter};
use crate::ops::metrics::requests::{RequestProtocol, RequestTotals};
use crate::ops::record::Connection;
use crate::ops::request::RequestLine;
use crate::outcome::Outcome;

/// Longest text of an attribute; what is longer is cut off.
const LONGEST: usize = 1024;
/// Methods that may stand in a span's name; clients can invent others without end.
const METHODS: [&str; 10] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"];
/// gRPC statuses for which a server is to blame: UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS.
const SERVER_FAULTS: [u16; 6] = [2, 4, 12, 13, 14, 15];

/// A request that has ended, with all that its span tells.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Where it stands in its trace.
    pub open: Box<Open>,
    /// Who talked to whom.
    pub connection: Connection,
    /// What was asked and answered.
    pub line: RequestLine,
    /// What was counted, and how long it took.
    pub totals: RequestTotals,
    /// How it ended.
    pub outcome: Outcome,
    /// When it ended.
    pub end: SystemTime,
}

impl Finished {
    /// One that may have to wait long: of what its client wrote it holds no more than is sent.
    pub fn new(
        open: Box<Open>,
        connection: Connection,
        line: &RequestLine,
        totals: RequestTotals,
        outcome: Outcome,
        end: SystemTime,
    ) -> Finished {
        // What is cut off may be the sign that what stands before it is a user's name and password.
        let authority = match line.authority.rsplit_once('@') {
            Some((_, host)) => cut(host).into(),
            None => short(&line.authority),
        };
        let line = RequestLine { method: short(&line.method), path: short(&line.path), authority, ..line.clone() };
        let outcome = match outcome {
            Outcome::Unregistered { host } => Outcome::Unregistered { host: host.as_ref().map(short) },
            other => other,
        };
        Finished { open, connection, line, totals, outcome, end }
    }

    /// On whose behalf the agent made it: the client at the client's agent, the server at the server's.
    pub(super) fn subject(&self) -> Option<&Workload> {
        let labels = &self.connection.labels;
        let peer = match labels.reporter {
            Reporter::Source => &labels.source,
            Reporter::Destination => &labels.destination,
        };
        peer.workload.as_deref()
    }

    /// As it is sent.
    pub(super) fn span(&self) -> Span {
        let hop = &self.open.hop;
        let failed = self.error();
        let remote = if hop.parent.is_some() { SpanFlags::ContextIsRemoteMask as u32 } else { 0 };
        let start = self.end.checked_sub(self.totals.duration).unwrap_or(self.end);
        Span {
            trace_id: hop.own.trace.to_be_bytes().to_vec(),
            span_id: hop.own.span.to_be_bytes().to_vec(),
            parent_span_id: hop.parent.map(|span| span.to_be_bytes().to_vec()).unwrap_or_default(),
            trace_state: self.open.state.as_deref().unwrap_or_default().to_owned(),
            flags: u32::from(hop.own.flags) | SpanFlags::ContextHasIsRemoteMask as u32 | remote,
            name: self.name(),
            kind: if self.is_client() { SpanKind::Client } else { SpanKind::Server } as i32,
            start_time_unix_nano: nanoseconds(start),
            end_time_unix_nano: nanoseconds(self.end),
            status: failed.as_ref().map(|_| Status { code: StatusCode::Error as i32, message: self.failure() }),
            attributes: self.attributes(failed),
            ..Span::default()
        }
    }

    fn is_client(&self) -> bool {
        self.connection.labels.reporter == Reporter::Source
    }

    fn method(&self) -> Option<&'static str> {
        METHODS.into_iter().find(|method| *method == &*self.line.method)
    }

    fn name(&self) -> String {
        match self.line.protocol {
            RequestProtocol::Grpc => cut(self.line.path.trim_start_matches('/')).to_owned(),
            RequestProtocol::Http => self.method().unwrap_or("HTTP").to_owned(),
        }
    }

    /// `error.type`, if it failed: a server's answer is the server's failure from 500 on, and the client's from 400 on.
    fn error(&self) -> Option<String> {
        let status = self.line.status;
        if let Some(grpc) = self.line.grpc_status.filter(|_| self.line.protocol == RequestProtocol::Grpc) {
            let fails = if self.is_client() { grpc != 0 } else { SERVER_FAULTS.contains(&grpc) };
            return fails.then(|| grpc.to_string());
        }
        let least = if self.is_client() { 400 } else { 500 };
        match &self.outcome {
            Outcome::Completed => (status >= least).then(|| status.to_string()),
            // A refusal by policy is the client's failure.
            outcome => (!(400..least).contains(&status)).then(|| outcome.meaning().name.to_owned()),
        }
    }

    /// The outcome in words, where it says more than the status.
    fn failure(&self) -> String {
        if self.outcome == Outcome::Completed { String::new() } else { cut(&self.outcome.to_string()).to_owned() }
    }

    fn attributes(&self, failed: Option<String>) -> Vec<KeyValue> {
        let Connection { labels, client, server, .. } = &self.connection;
        let line = &self.line;
        let mut all = Attributes(Vec::with_capacity(24));
        all.text(name::HTTP_REQUEST_METHOD, self.method().unwrap_or("_OTHER"));
        if self.method().is_none() {
            all.text(name::HTTP_REQUEST_METHOD_ORIGINAL, &line.method);
        }
        if line.status > 0 {
            all.number(name::HTTP_RESPONSE_STATUS_CODE, line.status.into());
        }
        all.text(name::URL_SCHEME, "http");
        all.text(name::URL_PATH, &line.path);
        all.text(name::NETWORK_PROTOCOL_VERSION, if self.open.http2 { "2" } else { "1.1" });
        let (host, port) = authority(&line.authority);
        all.text(name::SERVER_ADDRESS, host);
        if let Some(port) = port.or_else(|| self.connection.dialled.or(*server).map(|address| address.port())) {
            all.number(name::SERVER_PORT, port.into());
        }
        let peer = if self.is_client() { *server } else { Some(*client) };
        if let Some(peer) = peer {
            all.text(name::NETWORK_PEER_ADDRESS, &peer.ip().to_canonical().to_string());
            all.number(name::NETWORK_PEER_PORT, peer.port().into());
        }
        if !self.is_client() {
            all.text(name::CLIENT_ADDRESS, &client.ip().to_canonical().to_string());
        }
        if line.attempts > 1 {
            all.number(name::HTTP_REQUEST_RESEND_COUNT, (line.attempts - 1).into());
        }
        all.number(name::HTTP_REQUEST_BODY_SIZE, clamp(self.totals.request_bytes));
        all.number(name::HTTP_RESPONSE_BODY_SIZE, clamp(self.totals.response_bytes));
        if line.protocol == RequestProtocol::Grpc {
            all.text(name::RPC_SYSTEM_NAME, "grpc");
            all.text(name::RPC_METHOD, line.path.trim_start_matches('/'));
            if let Some(status) = line.grpc_status {
                all.text(name::RPC_RESPONSE_STATUS_CODE, &status.to_string());
            }
        }
        if let Some(error) = failed {
            all.text(name::ERROR_TYPE, &error);
        }
        let meaning = self.outcome.meaning();
        all.text("nodemesh.outcome", meaning.name);
        all.text("nodemesh.response_flags", meaning.flag.as_str());
        all.text("nodemesh.connection_security_policy", labels.security.as_str());
        if let Some(route) = &line.route {
            all.text("nodemesh.route", route);
        }
        if let Some(service) = &labels.service {
            all.text("nodemesh.destination.service", &service.host);
        }
        if let Some(policy) = self.outcome.policy().or_else(|| self.outcome.rate_limit()) {
            all.text("nodemesh.policy", &policy.to_string());
        }
        for (side, peer) in [("source", &labels.source), ("destination", &labels.destination)] {
            all.peer(side, peer);
        }
        all.0
    }
}

/// The resource of the spans that were made on behalf of a workload, as if it had made them itself. `cluster` and `node` are the agent's.
pub(super) fn resource(workload: Option<&Workload>, cluster: &str, node: &str) -> Resource {
    let mut all = Attributes(Vec::with_capacity(8));
    match workload {
        Some(workload) => {
            all.text(name::SERVICE_NAME, &workload.canonical.service);
            all.text(name::SERVICE_NAMESPACE, &workload.namespace);
            all.text(name::SERVICE_VERSION, &workload.canonical.revision);
            all.text(name::SERVICE_INSTANCE_ID, &workload.uid.0);
            all.text(name::K8S_NAMESPACE_NAME, &workload.namespace);
            all.text(name::K8S_POD_NAME, &workload.name);
        }
        None => all.text(name::SERVICE_NAME, "unknown"),
    }
    all.text(name::K8S_CLUSTER_NAME, cluster);
    all.text(name::K8S_NODE_NAME, node);
    Resource { attributes: all.0, ..Resource::default() }
}

struct Attributes(Vec<KeyValue>);

impl Attributes {
    fn put(&mut self, key: &str, value: Value) {
        self.0.push(KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() });
    }

    /// One that is empty says nothing.
    fn text(&mut self, key: &str, text: &str) {
        if !text.is_empty() {
            self.put(key, Value::StringValue(cut(text).to_owned()));
        }
    }

    fn number(&mut self, key: &str, number: i64) {
        self.put(key, Value::IntValue(number));
    }

    fn peer(&mut self, side: &str, peer: &PeerInfo) {
        if let Some(workload) = &peer.workload {
            self.text(&format!("nodemesh.{side}.workload"), &workload.canonical.workload);
            self.text(&format!("nodemesh.{side}.namespace"), &workload.namespace);
        }
        if let Some(identity) = &peer.identity {
            self.text(&format!("nodemesh.{side}.principal"), &identity.to_string());
        }
    }
}

/// As much of a text as is sent.
fn cut(text: &str) -> &str {
    let end = (0..=LONGEST).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    if text.len() <= LONGEST { text } else { text.get(..end).unwrap_or_default() }
}

fn short(text: &Arc<str>) -> Arc<str> {
    if text.len() <= LONGEST { text.clone() } else { cut(text).into() }
}

fn clamp(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// Host and port of an authority. A user's name and password, which nobody should send, are left out.
fn authority(text: &str) -> (&str, Option<u16>) {
    let text = text.rsplit_once('@').map_or(text, |(_, host)| host);
    match text.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
            (host.trim_start_matches('[').trim_end_matches(']'), port.parse().ok())
        }
        _ => (text.trim_start_matches('[').trim_end_matches(']'), None),
    }
}

fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
