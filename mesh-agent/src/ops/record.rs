//! The record of a connection: made when it opens, written once when it ends, into metrics and access log from the same value.
//! If nobody says how it ended, dropping it does.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_model::service::NamespacedName;

use super::access::{AccessLine, AccessLog, Direction};
use super::clock::{Clock, SystemClock};
use super::live::{LiveConnection, LiveConnections};
use super::metrics::labels::{ConnectionLabels, Reporter};
use super::metrics::{Metrics, Series};
use super::trace::Spans;
use crate::conn::Meter;
use crate::outcome::Outcome;

/// What is known of a connection when it is opened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Connection {
    /// For the metrics.
    pub labels: ConnectionLabels,
    /// As this node sees it.
    pub direction: Direction,
    /// The client's own end.
    pub client: SocketAddr,
    /// The server application's end, once an endpoint is chosen.
    pub server: Option<SocketAddr>,
    /// What the client dialled, where it differs.
    pub dialled: Option<SocketAddr>,
    /// Trace id, 32 hexadecimal digits. Claimed by the peer where it came with the tunnel.
    pub trace_id: Option<Arc<str>>,
    /// The server's name in TLS that is begun here on the client's behalf.
    pub upstream_tls: Option<Arc<str>>,
}

/// Where connections are recorded. One a process, shared by all workers.
pub struct Telemetry {
    metrics: Arc<Metrics>,
    access: Arc<AccessLog>,
    live: Arc<LiveConnections>,
    spans: Arc<Spans>,
    clock: Arc<dyn Clock>,
    /// Of connections that are taken apart into requests: those are counted.
    uncounted: Arc<Series>,
}

impl Telemetry {
    /// By the system's clock.
    pub fn new(metrics: Arc<Metrics>, access: Arc<AccessLog>) -> Arc<Telemetry> {
        Self::with_clock(metrics, access, Arc::new(SystemClock))
    }

    /// By another clock.
    pub fn with_clock(metrics: Arc<Metrics>, access: Arc<AccessLog>, clock: Arc<dyn Clock>) -> Arc<Telemetry> {
        let live = Arc::new(LiveConnections::default());
        let counted = live.clone();
        metrics.before_scrape(move |_| counted.count_bytes());
        let uncounted = metrics.uncounted();
        let spans = Spans::new();
        spans.collect(&metrics);
        Arc::new(Telemetry { metrics, access, live, spans, clock, uncounted })
    }

    /// The metrics.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// The access log.
    pub fn access(&self) -> &Arc<AccessLog> {
        &self.access
    }

    /// The connections that live.
    pub fn live(&self) -> &Arc<LiveConnections> {
        &self.live
    }

    /// Spans of requests.
    pub fn spans(&self) -> &Arc<Spans> {
        &self.spans
    }

    /// The clock.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// Opens the record of a connection. It is counted as opened, whatever becomes of it.
    pub fn open(self: &Arc<Self>, connection: Connection) -> ConnectionRecorder {
        self.open_with(connection, Arc::default())
    }

    /// The same, with a meter that is already written to.
    pub fn open_with(self: &Arc<Self>, connection: Connection, meter: Arc<Meter>) -> ConnectionRecorder {
        let series = self.metrics.series(&connection.labels);
        series.add_opened(1);
        let live = self.live.insert(connection, meter, series, self.clock.now());
        ConnectionRecorder { telemetry: self.clone(), live, dry_run: None, outcome: None }
    }

    /// Lists a connection among those that live, of which the requests are recorded and not itself.
    pub fn list(self: &Arc<Self>, connection: Connection) -> Listed {
        let live = self.live.insert(connection, Arc::default(), self.uncounted.clone(), self.clock.now());
        Listed { telemetry: self.clone(), live }
    }

    /// Records a connection that ended before it began.
    pub fn refused(self: &Arc<Self>, connection: Connection, outcome: Outcome) {
        self.open(connection).finish(outcome);
    }

    /// Records what the kernel reported of a connection that never reached the agent. Bytes and counts of those it let through come from its
    /// own totals ([`KernelFlows`](super::metrics::KernelFlows)) and are not counted here; refusals are, for both sides.
    pub fn kernel(&self, mut connection: Connection, report: KernelReport) {
        if report.outcome.is_denial() {
            let flag = report.outcome.meaning().flag;
            for reporter in [Reporter::Source, Reporter::Destination] {
                connection.labels.reporter = reporter;
                let series = self.metrics.series(&connection.labels);
                series.add_opened(1);
                series.add_closed(flag, 1);
            }
        }
        if report.dry_run.is_some() {
            self.metrics.agent.dry_run_denial();
        }
        self.log_kernel(&connection, &report);
    }

    /// Records a connection that the kernel had let through and this agent ended, as by a changed policy. Its
    /// bytes and counts come from the kernel's totals as those of every other ([`KernelFlows::ended`] gives them the flag).
    ///
    /// [`KernelFlows::ended`]: super::metrics::KernelFlows::ended
    pub fn ended(&self, connection: Connection, report: KernelReport) {
        self.count_decision(&report.outcome);
        self.log_kernel(&connection, &report);
    }

    /// Counts it if it is a denial by this agent's own decision.
    pub(super) fn count_decision(&self, outcome: &Outcome) {
        if matches!(
            outcome,
            Outcome::PolicyDenied { .. } | Outcome::MtlsRequired { .. } | Outcome::PolicyRevoked { .. } | Outcome::PodHeld { .. }
        ) {
            self.metrics.agent.denied(outcome.meaning().name);
        }
    }

    fn log_kernel(&self, connection: &Connection, report: &KernelReport) {
        self.access.record(
            &AccessLine {
                time: self.clock.wall(),
                connection,
                bytes: (report.from_client, report.to_client),
                duration: report.duration,
                outcome: &report.outcome,
                dry_run: report.dry_run.as_ref(),
                request: None,
            },
            self.clock.now(),
        );
    }
}

/// What the kernel reported.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KernelReport {
    /// How it ended.
    pub outcome: Outcome,
    /// Bytes from client to server.
    pub from_client: u64,
    /// Bytes from server to client.
    pub to_client: u64,
    /// How long it lived.
    pub duration: Duration,
    /// A policy in dry run that would have denied it.
    pub dry_run: Option<DryRun>,
}

/// A policy in dry run that would have denied the connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DryRun {
    /// This DENY policy matched.
    Policy(NamespacedName),
    /// ALLOW policies in dry run apply and none matched.
    NoAllowPolicy,
    /// One matched that is no longer known by its number.
    Unnamed,
}

impl std::fmt::Display for DryRun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DryRun::Policy(policy) => policy.fmt(f),
            DryRun::NoAllowPolicy => f.write_str("no_allow_policy"),
            DryRun::Unnamed => f.write_str("unnamed"),
        }
    }
}

/// A connection among those that live, until it is dropped.
pub struct Listed {
    telemetry: Arc<Telemetry>,
    live: Arc<LiveConnection>,
}

impl Listed {
    /// Its entry: to be told when it is to end.
    pub fn live(&self) -> &Arc<LiveConnection> {
        &self.live
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.telemetry.live.remove(self.live.id);
    }
}

/// The record of an open connection. Finish it, or its drop records that its task ended without a word.
#[must_use = "dropping it records the connection as ended"]
pub struct ConnectionRecorder {
    telemetry: Arc<Telemetry>,
    live: Arc<LiveConnection>,
    dry_run: Option<DryRun>,
    outcome: Option<Outcome>,
}

impl ConnectionRecorder {
    /// Where to count its bytes. They are seen by the next scrape, while the connection lives.
    pub fn meter(&self) -> &Arc<Meter> {
        self.live.meter()
    }

    /// Its entry among those that live: to be told when it is to end.
    pub fn live(&self) -> &Arc<LiveConnection> {
        &self.live
    }

    /// Counts that policy allowed it, and notes a policy in dry run that would not have.
    pub fn allowed(&mut self, dry_run: Option<DryRun>) {
        self.telemetry.metrics.agent.allowed();
        if dry_run.is_some() {
            self.telemetry.metrics.agent.dry_run_denial();
        }
        self.dry_run = dry_run;
    }

    /// Records how it ended.
    pub fn finish(mut self, outcome: Outcome) {
        self.outcome = Some(outcome);
    }
}

impl Drop for ConnectionRecorder {
    fn drop(&mut self) {
        let outcome = self
            .outcome
            .take()
            .or_else(|| self.live.closing().cloned())
            .unwrap_or_else(|| Outcome::internal("its task ended without saying how"));
        let meaning = outcome.meaning();
        let telemetry = &self.telemetry;
        telemetry.live.remove(self.live.id);
        self.live.count_bytes();
        self.live.series.add_closed(meaning.flag, 1);
        telemetry.count_decision(&outcome);
        if let Outcome::Internal { detail } = &outcome {
            tracing::error!(client = %self.live.connection.client, %detail, "a connection failed; {}", meaning.advice);
        }
        let now = telemetry.clock.now();
        telemetry.access.record(
            &AccessLine {
                time: telemetry.clock.wall(),
                connection: &self.live.connection,
                bytes: self.live.meter().read(),
                duration: now.saturating_duration_since(self.live.started),
                outcome: &outcome,
                dry_run: self.dry_run.as_ref(),
                request: None,
            },
            now,
        );
    }
}

#[cfg(test)]
mod tests;
