//! Finished spans on their way to the exporter: a queue of bounded length into which the data path puts without waiting.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

use super::{Finished, Sampler};
use crate::ops::metrics::{Kind, Metrics};

/// Spans that wait for the exporter; further ones are dropped.
const QUEUE: usize = 8192;
/// In place of a sampler's share: there is none.
const OFF: u64 = u64::MAX;

/// Why a span never reached the collector.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Dropped {
    /// The queue was full.
    Queue,
    /// The collector could not be reached, or would not take it.
    Export,
    /// The collector took its batch, but not this one.
    Rejected,
    /// Tracing was turned off meanwhile.
    Off,
}

const REASONS: [(Dropped, &str); 4] =
    [(Dropped::Queue, "queue_full"), (Dropped::Export, "export_failed"), (Dropped::Rejected, "rejected"), (Dropped::Off, "turned_off")];

/// The spans of this agent.
pub struct Spans {
    sampler: AtomicU64,
    queue: mpsc::Sender<Finished>,
    /// The other end, until the exporter takes it.
    waiting: Mutex<Option<mpsc::Receiver<Finished>>>,
    /// Queued, and neither exported nor dropped yet.
    pending: AtomicUsize,
    exported: AtomicU64,
    dropped: [AtomicU64; REASONS.len()],
    /// Something has been exported or dropped.
    settled: Notify,
    /// What waits is to be exported at once.
    pub(super) hurry: Notify,
}

impl Spans {
    /// With none, and turned off.
    pub fn new() -> Arc<Spans> {
        let (queue, waiting) = mpsc::channel(QUEUE);
        Arc::new(Spans {
            sampler: AtomicU64::new(OFF),
            queue,
            waiting: Mutex::new(Some(waiting)),
            pending: AtomicUsize::new(0),
            exported: AtomicU64::new(0),
            dropped: Default::default(),
            settled: Notify::new(),
            hurry: Notify::new(),
        })
    }

    /// Which traces that begin here are sampled; `None`: no spans are made at all.
    pub fn sampler(&self) -> Option<Sampler> {
        let below = self.sampler.load(Ordering::Relaxed);
        (below != OFF).then_some(Sampler { below })
    }

    pub(super) fn set_sampler(&self, sampler: Option<Sampler>) {
        self.sampler.store(sampler.map_or(OFF, |sampler| sampler.below), Ordering::Relaxed);
    }

    /// Hands one to the exporter, or drops it.
    pub fn put(&self, finished: Finished) {
        self.pending.fetch_add(1, Ordering::AcqRel);
        if self.queue.try_send(finished).is_err() {
            self.settle_dropped(1, Dropped::Queue);
        }
    }

    /// The end of the queue that is read, once.
    pub(super) fn take_queue(&self) -> Option<mpsc::Receiver<Finished>> {
        self.waiting.lock().take()
    }

    pub(super) fn settle_exported(&self, count: usize) {
        self.exported.fetch_add(count as u64, Ordering::Relaxed);
        self.settle(count);
    }

    pub(super) fn settle_dropped(&self, count: usize, why: Dropped) {
        if let Some((_, counter)) = REASONS.iter().zip(&self.dropped).find(|((reason, _), _)| *reason == why) {
            counter.fetch_add(count as u64, Ordering::Relaxed);
        }
        self.settle(count);
    }

    fn settle(&self, count: usize) {
        self.pending.fetch_sub(count, Ordering::AcqRel);
        self.settled.notify_waiters();
    }

    /// Waits until what has been put is exported or dropped, for so long at most. False if some is left.
    pub async fn flush(&self, limit: Duration) -> bool {
        let empty = async {
            loop {
                let mut settled = std::pin::pin!(self.settled.notified());
                settled.as_mut().enable();
                if self.pending.load(Ordering::Acquire) == 0 {
                    return;
                }
                self.hurry.notify_one();
                settled.await;
            }
        };
        tokio::time::timeout(limit, empty).await.is_ok()
    }

    /// Registers what is counted.
    pub fn collect(self: &Arc<Self>, metrics: &Metrics) {
        let spans = self.clone();
        metrics.collect(move |samples| {
            samples
                .family("nodemesh_spans_exported", "Spans of requests that a collector has taken.", Kind::Counter)
                .sample(&[], spans.exported.load(Ordering::Relaxed) as f64);
            let mut family = samples.family("nodemesh_spans_dropped", "Spans of requests that no collector has, by reason.", Kind::Counter);
            for ((_, reason), counter) in REASONS.iter().zip(&spans.dropped) {
                family.sample(&[("reason", reason)], counter.load(Ordering::Relaxed) as f64);
            }
        });
    }
}
