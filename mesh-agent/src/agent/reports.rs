//! What the kernel reports → metrics and access log.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use mesh_common::event::{EVENT_CLOSED, counter};
use mesh_common::flow::{STATE_ESTABLISHED, StatsKey};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::directory::Directory;
use super::ended::EndedFlows;
use super::revoke::{self, Parties};
use crate::capture::events::Events;
use crate::capture::load::LoadError;
use crate::capture::maps::Flows;
use crate::ops::metrics::FlowTotals;
use crate::ops::metrics::kernel::{KernelCounters, KernelFlows};
use crate::ops::record::{KernelReport, Telemetry};

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
    ended: Arc<Mutex<EndedFlows>>,
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

/// Ends connections judged in the kernel, and sees to it that they are recorded with the reason.
pub struct Revoker {
    totals: Arc<Mutex<Totals>>,
    ended: Arc<Mutex<EndedFlows>>,
}

impl Revoker {
    /// Ends those that may not go on.
    pub fn sweep(&self, parties: &Parties) {
        // Until it is noted why they ended, nobody counts them.
        let mut totals = self.totals.lock();
        let all = revoke::sweep(&mut totals.flows.lock(), parties);
        let mut noted = self.ended.lock();
        for ended in &all {
            let (key, flow) = (&ended.key, &ended.flow);
            tracing::debug!(client = ?key.source, port = key.source_port.get(), reason = %ended.outcome, "ended a connection that the kernel had judged");
            // What never stood was never counted as opened.
            if flow.state == STATE_ESTABLISHED {
                let stats = StatsKey { source: flow.source, destination: flow.destination, service: flow.service, kind: flow.kind };
                totals.totals.ended(stats, ended.outcome.meaning().flag);
                noted.note(ended, Instant::now());
            }
        }
    }
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
        Ok((Reports { events: Events::open(pins)?, totals, ended: Arc::default(), telemetry, names }, flows))
    }

    /// For whoever ends connections.
    pub fn revoker(&self) -> Revoker {
        Revoker { totals: self.totals.clone(), ended: self.ended.clone() }
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
                    self.take_overdue();
                }
                _ = totals.tick() => self.totals.lock().take(),
            }
        }
    }

    fn take_events(&mut self) -> bool {
        let names = self.names.load_full();
        let now = Instant::now();
        let telemetry = &self.telemetry;
        let mut noted = self.ended.lock();
        self.events.drain(BATCH, |event| {
            let ended = noted.settle(&event);
            // Most records are of connections that ended well; where nobody wants to read of them, they are not worth their names.
            if event.kind == EVENT_CLOSED && ended.is_none() && telemetry.access().leaves_out(now) {
                return;
            }
            let Some((connection, report)) = names.report(&event) else { return };
            match ended {
                Some(outcome) => telemetry.ended(connection, KernelReport { outcome, ..report }),
                None => telemetry.kernel(connection, report),
            }
        })
    }

    /// Connections that this agent ended and of which the kernel told nothing, because nobody wants to read of them or its buffer was full.
    fn take_overdue(&mut self) {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let boot = Duration::try_from(time).unwrap_or_default();
        let overdue = self.ended.lock().overdue(Instant::now(), u64::try_from(boot.as_nanos()).unwrap_or(u64::MAX));
        for (event, outcome) in overdue {
            if let Some((connection, report)) = self.names.load().report(&event) {
                self.telemetry.ended(connection, KernelReport { outcome, ..report });
            }
        }
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
        let mut flows = self.flows.lock();
        let names = self.names.load();
        let totals = flows.totals().into_iter().map(|(key, stats)| (key, FlowTotals::sum(&[stats])));
        self.totals.pass(totals, |key| names.flow(key));
        // Their numbers are not given again, and the kernel's map has room for so many keys.
        for key in self.totals.settled(|key| names.is_gone(key)) {
            if let Err(error) = flows.forget(&key) {
                tracing::debug!(%error, "totals of a workload that is gone stay in the kernel");
            }
        }
    }
}
