//! The TCP series: four families of Istio's that share a label set.
//!
//! **Which way round.** Istio counts from the data plane towards its downstream, the client: *received* are the bytes of the request
//! (client to server), *sent* those of the response (server to client). Both reporters count the same way.
//!
//! **Flags.** `opened` and the bytes carry `-`: they are counted while nobody knows how the connection will end, and a label that changed
//! in mid-life would tear a rate apart. `closed` carries the outcome's flag; opened minus closed is what lives.
//!
//! **Resolve once.** The names of a pair of workloads are put together when the pair is first seen. Later connections find the series by
//! the pair's shared keys under a read lock of one of many shards. Several pods of one Deployment share one series.
//!
//! **Bounded.** At most `limit` pairs; what comes beyond is counted in a series whose names are all unknown, and a counter says so. A pair is
//! dropped when a workload of it is forgotten; a series [`GRACE`] after its last pair, so that the last scrape still sees it.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mesh_model::service::NamespacedName;
use mesh_model::workload::WorkloadUid;
use parking_lot::{Mutex, RwLock};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use serde::Serialize;

use super::labels::{ConnectionLabels, Flagged, Protection, Reporter, TcpLabels, TupleKey};
use crate::outcome::ResponseFlag;

/// How long a series outlives its workloads: a few scrapes at Prometheus' usual intervals.
pub const GRACE: Duration = Duration::from_secs(300);

const SHARDS: usize = 16;

/// The counters of one label set. Shared by all connections that have it.
#[derive(Debug)]
pub struct Series {
    pub(super) labels: TcpLabels,
    opened: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    closed: [AtomicU64; ResponseFlag::ALL.len()],
    /// Requests, where HTTP is parsed.
    pub(super) requests: super::requests::Requests,
    /// Pairs that lead here.
    pairs: AtomicUsize,
}

impl Series {
    fn new(labels: TcpLabels) -> Series {
        Series {
            labels,
            opened: AtomicU64::new(0),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            closed: [const { AtomicU64::new(0) }; ResponseFlag::ALL.len()],
            requests: super::requests::Requests::default(),
            pairs: AtomicUsize::new(0),
        }
    }

    /// Where the requests of one kind of end are counted.
    pub fn requests(&self, key: super::requests::RequestKey) -> Arc<super::requests::RequestCells> {
        self.requests.cells(key)
    }

    /// Counts opened connections.
    pub fn add_opened(&self, count: u64) {
        self.opened.fetch_add(count, Ordering::Relaxed);
    }

    /// Counts ended connections.
    pub fn add_closed(&self, flag: ResponseFlag, count: u64) {
        if let Some(cell) = self.closed.get(flag as usize) {
            cell.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// Counts bytes, named by the way they went.
    pub fn add_bytes(&self, from_client: u64, to_client: u64) {
        if from_client != 0 {
            self.received.fetch_add(from_client, Ordering::Relaxed);
        }
        if to_client != 0 {
            self.sent.fetch_add(to_client, Ordering::Relaxed);
        }
    }
}

/// Connections since the agent's start. One between two nodes is counted at both.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Opened {
    /// Encrypted, both ends proven.
    pub mutual_tls: u64,
    /// Between two pods of the node, inside its kernel.
    pub within_node: u64,
    /// Taken from clients that proved nothing.
    pub plaintext: u64,
}

impl Opened {
    fn add(&mut self, series: &Series) {
        let count = match series.labels.protection() {
            Some(Protection::MutualTls) => &mut self.mutual_tls,
            Some(Protection::WithinNode) => &mut self.within_node,
            Some(Protection::Plaintext) => &mut self.plaintext,
            None => return,
        };
        *count += series.opened.load(Ordering::Relaxed);
    }
}

/// The table of series.
#[derive(Debug)]
pub struct TcpSeries {
    cluster: Arc<str>,
    limit: usize,
    hasher: RandomState,
    shards: [RwLock<HashMap<TupleKey, Arc<Series>>>; SHARDS],
    pairs: AtomicUsize,
    by_labels: Mutex<HashMap<TcpLabels, Arc<Series>>>,
    /// Series without a pair, and since when.
    retired: Mutex<Vec<(Instant, TcpLabels)>>,
    overflow: [Arc<Series>; 2],
    overflowed: AtomicU64,
    /// What series that are dropped had counted.
    dropped: Mutex<Opened>,
}

impl TcpSeries {
    /// `cluster` is the label `source_cluster`/`destination_cluster` of known workloads; `limit` bounds the pairs of workloads.
    pub fn new(cluster: Arc<str>, limit: usize) -> TcpSeries {
        TcpSeries {
            cluster,
            limit,
            hasher: RandomState::new(),
            shards: std::array::from_fn(|_| RwLock::default()),
            pairs: AtomicUsize::new(0),
            by_labels: Mutex::default(),
            retired: Mutex::default(),
            overflow: [Reporter::Source, Reporter::Destination].map(|reporter| Arc::new(Series::new(TcpLabels::overflow(reporter)))),
            overflowed: AtomicU64::new(0),
            dropped: Mutex::default(),
        }
    }

    fn shard(&self, key: &impl Hash) -> &RwLock<HashMap<TupleKey, Arc<Series>>> {
        let [first, ..] = &self.shards;
        let index = (self.hasher.hash_one(key) as usize) % SHARDS;
        self.shards.get(index).unwrap_or(first)
    }

    pub(super) fn uncounted(&self) -> Arc<Series> {
        Arc::new(Series::new(TcpLabels::overflow(Reporter::Source)))
    }

    /// The series of a connection.
    pub fn resolve(&self, labels: &ConnectionLabels) -> Arc<Series> {
        let key = TupleKey::of(labels);
        let shard = self.shard(&key);
        if let Some(series) = shard.read().get(&key) {
            return series.clone();
        }
        let resolved = TcpLabels::of(labels, &self.cluster);
        let mut shard = shard.write();
        if let Some(series) = shard.get(&key) {
            return series.clone();
        }
        let mut by_labels = self.by_labels.lock();
        if self.pairs.load(Ordering::Relaxed) >= self.limit {
            if let Some(series) = by_labels.get(&resolved) {
                return series.clone();
            }
            self.overflowed.fetch_add(1, Ordering::Relaxed);
            let [source, destination] = &self.overflow;
            return match labels.reporter {
                Reporter::Source => source.clone(),
                Reporter::Destination => destination.clone(),
            };
        }
        let series = by_labels.entry(resolved).or_insert_with_key(|labels| Arc::new(Series::new(labels.clone()))).clone();
        series.pairs.fetch_add(1, Ordering::Relaxed);
        self.pairs.fetch_add(1, Ordering::Relaxed);
        shard.insert(key, series.clone());
        series
    }

    /// Drops the pairs of a workload that is gone. Connections that still live keep counting into their series until they end.
    pub fn forget(&self, workload: &WorkloadUid, now: Instant) {
        self.drop_pairs(now, |key| key.names(workload));
    }

    /// Drops the pairs that name a Service that is gone.
    pub fn forget_service(&self, service: &NamespacedName, now: Instant) {
        self.drop_pairs(now, |key| key.service.as_ref() == Some(service));
    }

    fn drop_pairs(&self, now: Instant, gone: impl Fn(&TupleKey) -> bool) {
        for shard in &self.shards {
            let mut shard = shard.write();
            shard.retain(|key, series| {
                if !gone(key) {
                    return true;
                }
                self.pairs.fetch_sub(1, Ordering::Relaxed);
                if series.pairs.fetch_sub(1, Ordering::Relaxed) == 1 {
                    self.retired.lock().push((now, series.labels.clone()));
                }
                false
            });
        }
    }

    /// Drops series that lost their last pair more than [`GRACE`] ago and that no living connection uses. Called before a scrape.
    pub fn sweep(&self, now: Instant) {
        let mut by_labels = self.by_labels.lock();
        self.retired.lock().retain(|(since, labels)| {
            let Some(series) = by_labels.get(labels) else { return false };
            if series.pairs.load(Ordering::Relaxed) > 0 {
                return false;
            }
            if now.saturating_duration_since(*since) < GRACE || Arc::strong_count(series) > 1 {
                return true;
            }
            self.dropped.lock().add(series);
            by_labels.remove(labels);
            false
        });
    }

    /// Connections that were opened, by how they were protected.
    pub fn opened(&self) -> Opened {
        // In the order in which `sweep` locks: a series is counted here or there.
        let by_labels = self.by_labels.lock();
        let mut all = *self.dropped.lock();
        by_labels.values().chain(&self.overflow).for_each(|series| all.add(series));
        all
    }

    /// Number of label sets.
    pub fn len(&self) -> usize {
        self.by_labels.lock().len()
    }

    /// Whether nothing was counted yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Connections that found no room for their names.
    pub fn overflowed(&self) -> u64 {
        self.overflowed.load(Ordering::Relaxed)
    }
}

/// The collector that the registry holds.
#[derive(Debug)]
pub(super) struct TcpCollector(pub(super) Arc<TcpSeries>);

fn count(encoder: &mut MetricEncoder, labels: &TcpLabels, flag: ResponseFlag, value: u64) -> std::fmt::Result {
    encoder.encode_family(&Flagged(labels, flag))?.encode_counter::<NoLabelSet, _, u64>(&value, None)
}

impl Collector for TcpCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> std::fmt::Result {
        // A copy of the pointers, so that no connection waits while text is written.
        let mut all: Vec<Arc<Series>> = self.0.by_labels.lock().values().cloned().collect();
        all.extend(
            self.0.overflow.iter().filter(|series| series.opened.load(Ordering::Relaxed) > 0 || !series.requests.is_empty()).cloned(),
        );
        super::requests::encode(&mut encoder, &all)?;
        // Where every connection is parsed there is nothing to say of connections.
        all.retain(|series| series.opened.load(Ordering::Relaxed) > 0 || series.requests.is_empty());
        if all.is_empty() {
            return Ok(());
        }
        type Read = fn(&Series) -> &AtomicU64;
        let plain: [(&str, &str, Read); 3] = [
            ("istio_tcp_connections_opened", "TCP connections opened.", |series| &series.opened),
            ("istio_tcp_sent_bytes", "Bytes sent to clients, that is of responses.", |series| &series.sent),
            ("istio_tcp_received_bytes", "Bytes received from clients, that is of requests.", |series| &series.received),
        ];
        for (name, help, read) in plain {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for series in &all {
                count(&mut family, &series.labels, ResponseFlag::None, read(series).load(Ordering::Relaxed))?;
            }
        }
        let mut family = encoder.encode_descriptor("istio_tcp_connections_closed", "TCP connections closed.", None, MetricType::Counter)?;
        for series in &all {
            for (flag, cell) in ResponseFlag::ALL.into_iter().zip(&series.closed) {
                let value = cell.load(Ordering::Relaxed);
                // The ordinary end is always shown, so that a rate of it exists from the start; the others once they occur.
                if value > 0 || flag == ResponseFlag::None {
                    count(&mut family, &series.labels, flag, value)?;
                }
            }
        }
        Ok(())
    }
}
