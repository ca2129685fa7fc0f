//! What the kernel counts: connections that it judged and let through without the agent, and its verdicts.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mesh_common::event::counter;
use mesh_common::flow::{KIND_PLAINTEXT, Stats, StatsKey};

use super::labels::{ConnectionLabels, PeerInfo, Reporter, Security, ServiceRef};
use super::{Kind, Metrics, Samples, Series};
use crate::outcome::{Outcome, ResponseFlag};

/// Cumulative counts of one key, summed over the CPUs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FlowTotals {
    /// Connections established.
    pub opened: u64,
    /// Connections ended.
    pub closed: u64,
    /// Bytes from client to server.
    pub from_client: u64,
    /// Bytes from server to client.
    pub to_client: u64,
}

impl FlowTotals {
    /// The sum over CPUs.
    pub fn sum(per_cpu: &[Stats]) -> FlowTotals {
        per_cpu.iter().fold(FlowTotals::default(), |sum, cpu| FlowTotals {
            opened: sum.opened.wrapping_add(cpu.opened),
            closed: sum.closed.wrapping_add(cpu.closed),
            from_client: sum.from_client.wrapping_add(cpu.sent),
            to_client: sum.to_client.wrapping_add(cpu.received),
        })
    }

    /// What came since `before`. A total below its predecessor means that the entry was made anew: then all of it is new.
    fn since(self, before: FlowTotals) -> FlowTotals {
        let restarted = self.opened < before.opened
            || self.closed < before.closed
            || self.from_client < before.from_client
            || self.to_client < before.to_client;
        let before = if restarted { FlowTotals::default() } else { before };
        FlowTotals {
            opened: self.opened - before.opened,
            closed: self.closed - before.closed,
            from_client: self.from_client - before.from_client,
            to_client: self.to_client - before.to_client,
        }
    }
}

/// Who the numbers of a key are.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FlowPeers {
    /// The client.
    pub source: PeerInfo,
    /// The server.
    pub destination: PeerInfo,
    /// The Service.
    pub service: Option<ServiceRef>,
}

struct Flow {
    seen: FlowTotals,
    /// One for each reporter. Absent until something is to be counted.
    series: Option<Vec<Arc<Series>>>,
    /// Passes since it was last there.
    missed: u32,
    /// Passes since it last changed.
    still: u32,
    /// Flags of connections that the agent ended and that are yet to be counted as closed, and passes since.
    ended: Vec<(ResponseFlag, u32)>,
}

impl Flow {
    fn new() -> Self {
        Flow { seen: FlowTotals::default(), series: None, missed: 0, still: 0, ended: Vec::new() }
    }

    /// Counts those that closed, with the flags of those that were ended first. The kernel counts an end at once: a flag that found none
    /// belongs to a connection that it does not count, and to no later one.
    fn count_closed(&mut self, closed: u64) {
        let flagged = self.ended.len().min(usize::try_from(closed).unwrap_or(usize::MAX));
        for (flag, _) in self.ended.drain(..flagged) {
            self.series.iter().flatten().for_each(|series| series.add_closed(flag, 1));
        }
        self.series.iter().flatten().for_each(|series| series.add_closed(ResponseFlag::None, closed - flagged as u64));
        self.ended.retain_mut(|(_, passes)| {
            *passes += 1;
            *passes <= MISSED
        });
    }
}

/// A walk through a hash map that changes meanwhile can miss an entry; so one is forgotten only after so many passes without it, or its
/// whole total would be taken for new when it is found again.
const MISSED: u32 = 8;
/// Passes without a change after which nothing more is expected of workloads that are gone.
const STILL: u32 = 60;

/// Turns the kernel's cumulative totals into counters of the `istio_tcp_*` families. Call [`KernelFlows::pass`] now and then, and
/// before a scrape.
///
/// What an earlier agent left in maps that were adopted was reported by that agent; it is where counting starts, not counted again.
pub struct KernelFlows {
    metrics: Arc<Metrics>,
    flows: HashMap<StatsKey, Flow>,
    adopting: bool,
}

impl KernelFlows {
    /// `adopted`: the maps are those of an earlier agent, so the first pass only takes their state down.
    pub fn new(metrics: Arc<Metrics>, adopted: bool) -> KernelFlows {
        KernelFlows { metrics, flows: HashMap::new(), adopting: adopted }
    }

    /// Takes the whole content of the kernel's map. `peers` is asked once for a key, when it first has something to count; what it cannot
    /// name is counted as unknown. Keys that stay away are forgotten.
    pub fn pass(&mut self, totals: impl IntoIterator<Item = (StatsKey, FlowTotals)>, peers: impl Fn(&StatsKey) -> FlowPeers) {
        for flow in self.flows.values_mut() {
            flow.missed += 1;
        }
        for (key, now) in totals {
            let flow = self.flows.entry(key).or_insert_with(Flow::new);
            let new = if self.adopting { FlowTotals::default() } else { now.since(flow.seen) };
            flow.seen = now;
            flow.missed = 0;
            flow.still = if new == FlowTotals::default() { flow.still.saturating_add(1) } else { 0 };
            if new != FlowTotals::default() {
                let series = flow.series.get_or_insert_with(|| resolve(&self.metrics, &key, peers(&key)));
                for series in series.iter() {
                    series.add_opened(new.opened);
                    series.add_bytes(new.from_client, new.to_client);
                }
            }
            flow.count_closed(new.closed);
        }
        self.flows.retain(|_, flow| flow.missed <= MISSED);
        self.adopting = false;
    }

    /// Notes that the agent ended a connection of this key: the next that closes bears the flag. To be called before the pass that may count
    /// its end.
    pub fn ended(&mut self, key: StatsKey, flag: ResponseFlag) {
        self.flows.entry(key).or_insert_with(Flow::new).ended.push((flag, 0));
    }

    /// Keys whose every connection has ended a while ago, among those that `gone` picks: nothing will be counted there any more.
    pub fn settled(&self, gone: impl Fn(&StatsKey) -> bool) -> Vec<StatsKey> {
        let over = |flow: &Flow| flow.still >= STILL && flow.missed == 0 && flow.seen.opened == flow.seen.closed;
        self.flows.iter().filter(|(key, flow)| over(flow) && gone(key)).map(|(key, _)| *key).collect()
    }
}

/// No agent stands between two pods of a node, so this one speaks for both sides. A client outside the mesh has nobody to speak for it.
fn resolve(metrics: &Metrics, key: &StatsKey, peers: FlowPeers) -> Vec<Arc<Series>> {
    let FlowPeers { source, destination, service } = peers;
    let reporters: &[Reporter] =
        if key.kind == KIND_PLAINTEXT { &[Reporter::Destination] } else { &[Reporter::Source, Reporter::Destination] };
    // The bytes stay in the kernel's memory: nothing is encrypted, and nothing is claimed.
    let mut labels = ConnectionLabels { reporter: Reporter::Source, source, destination, service, security: Security::None };
    let of = |reporter: &Reporter| {
        labels.reporter = *reporter;
        metrics.series(&labels)
    };
    reporters.iter().map(of).collect()
}

/// The kernel's counters (`mesh_common::event::counter`), summed over CPUs; put in by whoever reads the map, shown at a scrape.
#[derive(Debug, Default)]
pub struct KernelCounters([AtomicU64; counter::COUNT as usize]);

impl KernelCounters {
    /// Registers the families in `metrics`.
    pub fn register(metrics: &Metrics) -> Arc<KernelCounters> {
        let counters = Arc::new(KernelCounters::default());
        let shown = counters.clone();
        metrics.collect(move |samples| shown.show(samples));
        counters
    }

    /// Sets one counter to its total; indices beyond the contract are left out.
    pub fn set(&self, index: u32, total: u64) {
        if let Some(cell) = self.0.get(index as usize) {
            cell.store(total, Ordering::Relaxed);
        }
    }

    fn get(&self, index: u32) -> f64 {
        self.0.get(index as usize).map_or(0.0, |cell| cell.load(Ordering::Relaxed) as f64)
    }

    fn show(&self, samples: &mut Samples<'_, '_>) {
        let mut verdicts = samples.family("nodemesh_kernel_verdicts", "What the kernel did with connections of pods.", Kind::Counter);
        for (kind, index) in [
            ("pass", counter::PASS),
            ("direct", counter::DIRECT),
            ("agent", counter::AGENT),
            ("deny", counter::DENY),
            ("plaintext", counter::PLAINTEXT),
            ("steered", counter::STEERED),
            ("dropped", counter::DROPPED),
        ] {
            verdicts.sample(&[("verdict", kind)], self.get(index));
        }
        let mut refusals = samples.family("nodemesh_kernel_refusals", "Connections refused at connect(), by reason.", Kind::Counter);
        for reason in 1..mesh_common::event::REASONS {
            let name = Outcome::from_kernel_refusal(reason, None).meaning().name;
            refusals.sample(&[("reason", name)], self.get(counter::REASON_BASE + reason));
        }
        samples
            .family("nodemesh_kernel_map_full", "Entries that could not be written because a kernel map is full.", Kind::Counter)
            .sample(&[], self.get(counter::MAP_FULL));
        samples
            .family("nodemesh_kernel_events_lost", "Events lost because the kernel's ring buffer was full.", Kind::Counter)
            .sample(&[], self.get(counter::EVENT_LOST));
    }
}
