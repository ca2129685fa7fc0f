//! What the kernel reports → metrics and access log.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use mesh_common::event::{EVENT_CLOSED, counter};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::directory::Directory;
use crate::capture::events::Events;
use crate::capture::load::LoadError;
use crate::capture::maps::Flows;
use crate::ops::metrics::FlowTotals;
use crate::ops::metrics::kernel::{KernelCounters, KernelFlows};
use crate::ops::record::Telemetry;

/// Between two looks into the ring buffer.
const EVENTS_EVERY: Duration = Duration::from_millis(100);
/// Between two sums of the kernel's counters beside those that each scrape makes: a name is found while its pod still has it.
const TOTALS_EVERY: Duration = Duration::from_millis(500);
/// Records at once before others on this thread get their turn.
const BATCH: usize = 1024;

/// Follows the kernel's reports for as long as the agent runs.
pub struct Reports {
    events: Events,
    totals: Arc<Mutex<Totals>>,
    telemetry: Arc<Telemetry>,
    names: Arc<ArcSwap<Directory>>,
}

/// The kernel's counters, brought into the metrics.
struct Totals {
    flows: Arc<Mutex<Flows>>,
    totals: KernelFlows,
    counters: Arc<KernelCounters>,
    names: Arc<ArcSwap<Directory>>,
}

impl Reports {
    /// Opens the pinned maps. `adopted`: they hold what an earlier agent counted and reported.
    pub fn open(
        pins: &std::path::Path,
        adopted: bool,
        telemetry: Arc<Telemetry>,
        names: Arc<ArcSwap<Directory>>,
    ) -> Result<(Self, Arc<Mutex<Flows>>), LoadError> {
        let metrics = telemetry.metrics().clone();
        let flows = Arc::new(Mutex::new(Flows::open(pins)?));
        let mut totals = Totals {
            flows: flows.clone(),
            totals: KernelFlows::new(metrics.clone(), adopted),
            counters: KernelCounters::register(&metrics),
            names: names.clone(),
        };
        if adopted {
            // Where counting starts must be known before this agent ends its first connection.
            totals.count();
        }
        let totals = Arc::new(Mutex::new(totals));
        let scraped = totals.clone();
        metrics.before_scrape(move |_| scraped.lock().take());
        Ok((Reports { events: Events::open(pins)?, totals, telemetry, names }, flows))
    }

    /// Until `hush` is cancelled: the next who reads the buffer finds it empty.
    pub async fn follow(mut self, hush: CancellationToken) {
        let mut events = tokio::time::interval(EVENTS_EVERY);
        let mut totals = tokio::time::interval(TOTALS_EVERY);
        loop {
            tokio::select! {
                () = hush.cancelled() => {
                    while self.take_events() {}
                    return;
                }
                _ = events.tick() => {
                    while self.take_events() {
                        tokio::task::yield_now().await;
                    }
                }
                _ = totals.tick() => self.totals.lock().take(),
            }
        }
    }

    fn take_events(&mut self) -> bool {
        let names = self.names.load_full();
        let now = Instant::now();
        let telemetry = &self.telemetry;
        self.events.drain(BATCH, |event| {
            // Most records are of connections that ended well; where nobody wants to read of them, they are not worth their names.
            if event.kind == EVENT_CLOSED && telemetry.access().leaves_out(now) {
                return;
            }
            if let Some((connection, report)) = names.report(&event) {
                telemetry.kernel(connection, report);
            }
        })
    }
}

impl Totals {
    fn take(&mut self) {
        {
            let flows = self.flows.lock();
            for index in 0..counter::COUNT {
                self.counters.set(index, flows.verdict(index));
            }
        }
        // Totals keep; a name is asked for once.
        if self.names.load().is_known() {
            self.count();
        }
    }

    fn count(&mut self) {
        let flows = self.flows.lock();
        for index in 0..counter::COUNT {
            self.counters.set(index, flows.verdict(index));
        }
        let names = self.names.load();
        let totals = flows.totals().into_iter().map(|(key, stats)| (key, FlowTotals::sum(&[stats])));
        self.totals.pass(totals, |key| names.flow(key));
    }
}
