//! The exporter: finished spans in batches to the collector, by OTLP over gRPC. It runs beside the data path, which never waits for it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use mesh_model::settings::Tracing;
use mesh_model::snapshot::Snapshot;
use mesh_model::workload::WorkloadUid;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans};
use tokio::sync::{mpsc, watch};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::span::resource;
use super::spans::Dropped;
use super::{Finished, Sampler, Spans};

/// Spans of one request to the collector.
const BATCH: usize = 512;
/// How long the first span of a batch waits for others.
const PATIENCE: Duration = Duration::from_secs(1);
/// For a connection to the collector, and for its answer.
const CONNECT: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(10);
/// Between a connection's probes.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// Waits before a batch is sent again, after which it is dropped: what comes meanwhile fills the queue.
const AGAIN: [Duration; 4] = [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4), Duration::from_secs(8)];

/// Who exports, as the spans tell.
#[derive(Clone, Debug)]
pub struct Exporter {
    /// Name of the cluster.
    pub cluster: Arc<str>,
    /// The node.
    pub node: Arc<str>,
}

impl Exporter {
    /// Exports what is put into `spans`, as the mesh's settings ask now; never ends. Only the first to run has spans to export.
    pub async fn run(self, spans: Arc<Spans>, mut snapshots: watch::Receiver<Arc<Snapshot>>) {
        let Some(queue) = spans.take_queue() else { return std::future::pending().await };
        let mut work = Work { exporter: self, spans, queue, batch: Vec::with_capacity(BATCH), failing: false };
        loop {
            let asked = snapshots.borrow_and_update().settings().tracing.clone();
            work.spans.set_sampler(asked.as_ref().map(|tracing| Sampler::new(tracing.sampling_ppm)));
            let serving = async {
                match &asked {
                    Some(tracing) => work.serve(tracing).await,
                    None => work.discard().await,
                }
            };
            tokio::select! {
                () = serving => {}
                () = another(&mut snapshots, asked.as_deref()) => {}
            }
        }
    }
}

/// Returns once the settings ask for something else.
async fn another(snapshots: &mut watch::Receiver<Arc<Snapshot>>, asked: Option<&Tracing>) {
    loop {
        if snapshots.changed().await.is_err() {
            // The configuration stays as it is.
            return std::future::pending().await;
        }
        if snapshots.borrow_and_update().settings().tracing.as_deref() != asked {
            return;
        }
    }
}

struct Work {
    exporter: Exporter,
    spans: Arc<Spans>,
    queue: mpsc::Receiver<Finished>,
    /// What was taken from the queue and is not settled. It outlives a change of the settings, and then goes to the new collector.
    batch: Vec<Finished>,
    /// The last batch could not be exported, which has been said.
    failing: bool,
}

impl Work {
    /// Without a collector: what requests under way still bring is dropped.
    async fn discard(&mut self) {
        loop {
            self.spans.settle_dropped(self.batch.drain(..).count(), Dropped::Off);
            if self.queue.recv_many(&mut self.batch, BATCH).await == 0 {
                return std::future::pending().await;
            }
        }
    }

    async fn serve(&mut self, tracing: &Tracing) {
        let mut client = match Endpoint::from_shared(tracing.endpoint.to_string()) {
            Ok(endpoint) => TraceServiceClient::new(
                endpoint.connect_timeout(CONNECT).timeout(ANSWER).http2_keep_alive_interval(KEEPALIVE).connect_lazy(),
            ),
            // The conversion of the settings lets none through that would.
            Err(error) => {
                tracing::error!(endpoint = &*tracing.endpoint, %error, "Mesh: spec.tracing.endpoint cannot be used, so no spans are exported");
                return self.discard().await;
            }
        };
        tracing::info!(endpoint = &*tracing.endpoint, sampling_ppm = tracing.sampling_ppm, "spans of requests are exported");
        loop {
            self.fill().await;
            self.export(&mut client, &tracing.endpoint).await;
        }
    }

    /// Waits for a batch: a full one, or what has come a while after its first, or what is there if it is asked for.
    async fn fill(&mut self) {
        let spans = self.spans.clone();
        if self.batch.is_empty() && self.queue.recv_many(&mut self.batch, BATCH).await == 0 {
            return std::future::pending().await;
        }
        let mut patience = std::pin::pin!(tokio::time::sleep(PATIENCE));
        while self.batch.len() < BATCH {
            let room = BATCH - self.batch.len();
            tokio::select! {
                biased;
                _ = self.queue.recv_many(&mut self.batch, room) => {}
                () = patience.as_mut() => return,
                () = spans.hurry.notified() => return,
            }
        }
    }

    /// Sends the batch until the collector takes it, or it has been tried often enough.
    async fn export(&mut self, client: &mut TraceServiceClient<Channel>, endpoint: &str) {
        let mut waits = AGAIN.into_iter();
        let count = self.batch.len();
        let failure = loop {
            let request = ExportTraceServiceRequest { resource_spans: grouped(&self.batch, &self.exporter) };
            match client.export(request).await {
                Ok(answer) => {
                    let partial = answer.into_inner().partial_success.unwrap_or_default();
                    let rejected = usize::try_from(partial.rejected_spans).unwrap_or(0).min(count);
                    if rejected > 0 {
                        tracing::warn!(endpoint, rejected, reason = partial.error_message, "the collector has rejected spans");
                    }
                    self.spans.settle_dropped(rejected, Dropped::Rejected);
                    self.spans.settle_exported(count - rejected);
                    if std::mem::take(&mut self.failing) {
                        tracing::info!(endpoint, "the collector takes spans again");
                    }
                    self.batch.clear();
                    return;
                }
                Err(status) => {
                    self.complain(endpoint, &status);
                    match waits.next().filter(|_| may_be_sent_again(&status)) {
                        Some(wait) => tokio::time::sleep(wait).await,
                        None => break status,
                    }
                }
            }
        };
        tracing::debug!(endpoint, count, error = %failure, "spans are dropped");
        self.spans.settle_dropped(count, Dropped::Export);
        self.batch.clear();
    }

    /// Once for each time that it goes wrong.
    fn complain(&mut self, endpoint: &str, status: &Status) {
        if !std::mem::replace(&mut self.failing, true) {
            let advice = "requests go on without them; look at the collector, and at spec.tracing.endpoint of the Mesh";
            tracing::warn!(endpoint, code = ?status.code(), error = status.message(), "the collector does not take spans: {advice}");
        }
    }
}

/// As OTLP says; of a connection that broke the library says that it is unknown why.
fn may_be_sent_again(status: &Status) -> bool {
    use Code as C;
    matches!(status.code(), C::Cancelled | C::DeadlineExceeded | C::Aborted | C::OutOfRange | C::Unavailable | C::DataLoss | C::Unknown)
}

/// The spans by on whose behalf they were made.
fn grouped(batch: &[Finished], exporter: &Exporter) -> Vec<ResourceSpans> {
    let mut places: HashMap<Option<&WorkloadUid>, usize> = HashMap::new();
    let mut all: Vec<(ResourceSpans, ScopeSpans)> = Vec::new();
    for finished in batch {
        let subject = finished.subject();
        let place = *places.entry(subject.map(|workload| &workload.uid)).or_insert_with(|| {
            let resource = Some(resource(subject, &exporter.cluster, &exporter.node));
            let scope = InstrumentationScope {
                name: "nodemesh".into(),
                version: env!("CARGO_PKG_VERSION").into(),
                ..InstrumentationScope::default()
            };
            all.push((ResourceSpans { resource, ..ResourceSpans::default() }, ScopeSpans { scope: Some(scope), ..ScopeSpans::default() }));
            all.len() - 1
        });
        if let Some((_, spans)) = all.get_mut(place) {
            spans.spans.push(finished.span());
        }
    }
    all.into_iter().map(|(of, spans)| ResourceSpans { scope_spans: vec![spans], ..of }).collect()
}

#[cfg(test)]
mod tests;
