//! The record of a request: made when it arrives, written once when its response has ended, into metrics and access log from the same value.
//! If nobody says how it ended, dropping it does: then its client went away.

use std::sync::Arc;
use std::time::Instant;

use super::access::AccessLine;
use super::metrics::requests::{RequestKey, RequestProtocol, RequestTotals};
use super::record::{Connection, DryRun, Telemetry};
use super::trace;
use crate::outcome::Outcome;

/// What the access log says of a request beyond its connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RequestLine {
    /// Method.
    pub method: Arc<str>,
    /// Path without the query, which may hold secrets.
    pub path: Arc<str>,
    /// Host as the client sent it.
    pub authority: Arc<str>,
    /// What was spoken.
    pub protocol: RequestProtocol,
    /// Status code; 0 if there was no response.
    pub status: u16,
    /// gRPC's status.
    pub grpc_status: Option<u16>,
    /// The rule that decided where it went.
    pub route: Option<Arc<str>>,
    /// Attempts that were made.
    pub attempts: u32,
}

/// The record of a request in progress.
#[must_use = "dropping it records the request as given up by its client"]
pub struct RequestRecorder {
    telemetry: Arc<Telemetry>,
    started: Instant,
    /// Known of its connection; the destination once an endpoint is chosen.
    pub connection: Connection,
    /// Known of itself.
    pub line: RequestLine,
    /// Counted.
    pub totals: RequestTotals,
    /// A policy in dry run that would have denied it.
    pub dry_run: Option<DryRun>,
    /// Its span, if its trace is sampled.
    pub span: Option<Box<trace::Open>>,
    outcome: Option<Outcome>,
}

impl RequestRecorder {
    /// A request arrives.
    pub fn new(telemetry: &Arc<Telemetry>, connection: Connection, line: RequestLine) -> RequestRecorder {
        let started = telemetry.clock().now();
        let telemetry = telemetry.clone();
        let totals = RequestTotals::default();
        RequestRecorder { telemetry, started, connection, line, totals, dry_run: None, span: None, outcome: None }
    }

    /// When it arrived.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Notes how it will have ended unless something worse comes.
    pub fn presume(&mut self, outcome: Outcome) {
        self.outcome = Some(outcome);
    }

    /// Records how it ended.
    pub fn finish(mut self, outcome: Outcome) {
        self.outcome = Some(outcome);
    }

    /// Records an end in order, or as presumed.
    pub fn complete(mut self) {
        self.outcome.get_or_insert(Outcome::Completed);
    }
}

impl Drop for RequestRecorder {
    fn drop(&mut self) {
        let outcome = self.outcome.take().unwrap_or(Outcome::ClientReset);
        let telemetry = &self.telemetry;
        let now = telemetry.clock().now();
        self.totals.duration = now.saturating_duration_since(self.started);
        let key = RequestKey {
            protocol: self.line.protocol,
            code: self.line.status,
            flag: outcome.meaning().flag,
            grpc: self.line.grpc_status.and_then(|status| u8::try_from(status).ok()).filter(|status| *status <= 16),
        };
        telemetry.metrics().series(&self.connection.labels).requests(key).add(&self.totals);
        telemetry.count_decision(&outcome);
        if let Outcome::Internal { detail } = &outcome {
            tracing::error!(client = %self.connection.client, %detail, "a request failed; {}", outcome.meaning().advice);
        }
        telemetry.access().record(
            &AccessLine {
                time: telemetry.clock().wall(),
                connection: &self.connection,
                bytes: (self.totals.request_bytes, self.totals.response_bytes),
                duration: self.totals.duration,
                outcome: &outcome,
                dry_run: self.dry_run.as_ref(),
                request: Some(&self.line),
            },
            now,
        );
        if let Some(open) = self.span.take() {
            let (connection, end) = (self.connection.clone(), telemetry.clock().wall());
            telemetry.spans().put(trace::Finished::new(open, connection, &self.line, self.totals, outcome, end));
        }
    }
}
