//! Istio's series of HTTP and gRPC requests. They share their workloads' labels with the series of connections, and hang on those.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, LabelSetEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::labels::{TcpLabels, put};
use super::series::Series;
use crate::outcome::ResponseFlag;

/// What a request spoke.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RequestProtocol {
    /// HTTP of any version.
    Http,
    /// gRPC.
    Grpc,
}

impl RequestProtocol {
    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            RequestProtocol::Http => "http",
            RequestProtocol::Grpc => "grpc",
        }
    }
}

/// What differs between the series of two workloads' requests.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RequestKey {
    /// What was spoken.
    pub protocol: RequestProtocol,
    /// Status code of the response; 0 if there was none.
    pub code: u16,
    /// How it ended.
    pub flag: ResponseFlag,
    /// gRPC's status, if it is one that gRPC knows (0 to 16); servers may send any number, and a label must not grow with them.
    pub grpc: Option<u8>,
}

/// Upper bounds of the histograms' buckets: those of Istio's proxies, milliseconds or bytes.
const BOUNDS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1_000.0,
    2_500.0,
    5_000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];
const CELLS: usize = BOUNDS.len() + 1;

/// A histogram of relaxed atomics.
#[derive(Debug)]
struct Histogram {
    cells: [AtomicU64; CELLS],
    /// In thousandths, so that fractions of a millisecond add up.
    sum: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram { cells: [const { AtomicU64::new(0) }; CELLS], sum: AtomicU64::new(0) }
    }
}

impl Histogram {
    fn observe(&self, value: f64) {
        let cell = BOUNDS.partition_point(|bound| *bound < value);
        if let Some(cell) = self.cells.get(cell) {
            cell.fetch_add(1, Ordering::Relaxed);
        }
        self.sum.fetch_add((value * 1_000.0) as u64, Ordering::Relaxed);
    }

    fn read(&self) -> (f64, u64, Vec<(f64, u64)>) {
        let bounds = BOUNDS.into_iter().chain([f64::MAX]);
        let buckets: Vec<(f64, u64)> = bounds.zip(&self.cells).map(|(bound, cell)| (bound, cell.load(Ordering::Relaxed))).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        (self.sum.load(Ordering::Relaxed) as f64 / 1_000.0, count, buckets)
    }
}

/// The counters of requests that ended alike.
#[derive(Debug, Default)]
pub struct RequestCells {
    count: AtomicU64,
    duration: Histogram,
    request_bytes: Histogram,
    response_bytes: Histogram,
    request_messages: AtomicU64,
    response_messages: AtomicU64,
}

/// What is counted of a finished request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RequestTotals {
    /// From its arrival to the last byte of its response.
    pub duration: Duration,
    /// Bytes of the request's body.
    pub request_bytes: u64,
    /// Bytes of the response's body.
    pub response_bytes: u64,
    /// gRPC messages of the client.
    pub request_messages: u64,
    /// gRPC messages of the server.
    pub response_messages: u64,
}

impl RequestCells {
    /// Counts a request.
    pub fn add(&self, totals: &RequestTotals) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.duration.observe(totals.duration.as_secs_f64() * 1_000.0);
        self.request_bytes.observe(totals.request_bytes as f64);
        self.response_bytes.observe(totals.response_bytes as f64);
        self.request_messages.fetch_add(totals.request_messages, Ordering::Relaxed);
        self.response_messages.fetch_add(totals.response_messages, Ordering::Relaxed);
    }
}

/// The requests of a series. Bounded: codes, flags and gRPC's statuses are.
#[derive(Debug, Default)]
pub struct Requests(Mutex<HashMap<RequestKey, Arc<RequestCells>>>);

impl Requests {
    pub(super) fn cells(&self, key: RequestKey) -> Arc<RequestCells> {
        self.0.lock().entry(key).or_default().clone()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }
}

struct Labels<'a>(&'a TcpLabels, RequestKey);

impl EncodeLabelSet for Labels<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder) -> Result<(), fmt::Error> {
        let Labels(labels, key) = self;
        labels.encode(encoder, key.protocol.as_str(), key.flag)?;
        put(encoder, "response_code", &key.code.to_string())?;
        match key.grpc {
            Some(status) => put(encoder, "grpc_response_status", &status.to_string()),
            None => put(encoder, "grpc_response_status", ""),
        }
    }
}

/// Writes the families of requests.
pub(super) fn encode(encoder: &mut DescriptorEncoder, all: &[Arc<Series>]) -> fmt::Result {
    let mut lines: Vec<(&TcpLabels, RequestKey, Arc<RequestCells>)> = Vec::new();
    for series in all {
        lines.extend(series.requests.0.lock().iter().map(|(key, cells)| (&series.labels, *key, cells.clone())));
    }
    if lines.is_empty() {
        return Ok(());
    }
    let mut family = encoder.encode_descriptor("istio_requests", "HTTP and gRPC requests.", None, MetricType::Counter)?;
    for (labels, key, cells) in &lines {
        let value = cells.count.load(Ordering::Relaxed);
        family.encode_family(&Labels(labels, *key))?.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
    }
    type Read = fn(&RequestCells) -> &Histogram;
    let histograms: [(&str, &str, Read); 3] = [
        ("istio_request_duration_milliseconds", "From a request to the last byte of its response.", |cells| &cells.duration),
        ("istio_request_bytes", "Bytes of requests' bodies.", |cells| &cells.request_bytes),
        ("istio_response_bytes", "Bytes of responses' bodies.", |cells| &cells.response_bytes),
    ];
    for (name, help, read) in histograms {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (labels, key, cells) in &lines {
            let (sum, count, buckets) = read(cells).read();
            family.encode_family(&Labels(labels, *key))?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
    }
    type Count = fn(&RequestCells) -> &AtomicU64;
    let messages: [(&str, &str, Count); 2] = [
        ("istio_request_messages", "gRPC messages of clients.", |cells| &cells.request_messages),
        ("istio_response_messages", "gRPC messages of servers.", |cells| &cells.response_messages),
    ];
    for (name, help, read) in messages {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, key, cells) in lines.iter().filter(|(_, key, _)| key.protocol == RequestProtocol::Grpc) {
            let value = read(cells).load(Ordering::Relaxed);
            family.encode_family(&Labels(labels, *key))?.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
