//! One typed handle for each map.

use std::path::Path;

use aya::maps::lpm_trie::Key as CidrKey;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, MapInfo, PerCpuArray, PerCpuHashMap, RingBuf, SkStorage, SockHash};
use mesh_common::addr::{Addr, Endpoint};
use mesh_common::event::counter;
use mesh_common::flow::{FlowEntry, FlowKey, Origin, OriginKey, Stats, StatsKey};
use mesh_common::names::map;
use mesh_common::policy::{Member, Program};
use mesh_common::service::{Backend, BackendKey, CidrData, ServiceEntry};
use mesh_common::workload::{PodEntry, Settings, WorkloadEntry};

use super::load::LoadError;
use super::sync::{Change, KernelState};

/// The maps that the agent's one writer owns.
pub struct Maps {
    settings: Array<MapData, Settings>,
    pods: HashMap<MapData, u64, PodEntry>,
    workloads: HashMap<MapData, Addr, WorkloadEntry>,
    services: HashMap<MapData, Endpoint, ServiceEntry>,
    backends: HashMap<MapData, BackendKey, Backend>,
    policies: HashMap<MapData, u32, Program>,
    members: HashMap<MapData, Member, u32>,
    excluded_ports: HashMap<MapData, u32, u32>,
    excluded_cidrs: LpmTrie<MapData, CidrData, u32>,
    egress_ports: HashMap<MapData, u32, u32>,
    listeners: SockHash<MapData, Addr>,
    own: SkStorage<MapData, u32>,
}

/// A map is full, or the kernel refuses a write.
#[derive(Debug, thiserror::Error)]
#[error("map {map}: {error}")]
pub struct WriteError {
    /// Which map.
    pub map: &'static str,
    /// What the kernel said.
    pub error: MapError,
}

fn at<T>(map: &'static str, result: Result<T, MapError>) -> Result<T, WriteError> {
    result.map_err(|error| WriteError { map, error })
}

/// As [`at`], for removals: what is not there is removed already.
fn unless_absent(map: &'static str, result: Result<(), MapError>) -> Result<(), WriteError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => at(map, other),
    }
}

fn take<M>(ebpf: &mut aya::Ebpf, name: &'static str) -> Result<M, LoadError>
where
    M: TryFrom<Map, Error = MapError>,
{
    let map = ebpf.take_map(name).ok_or(LoadError::Missing(name))?;
    M::try_from(map).map_err(|error| LoadError::Pin { path: name.into(), error: error.to_string() })
}

/// How many entries pinned maps can hold: those that the agent writes, by name.
pub fn capacities(pins: &Path) -> Vec<(&'static str, u64)> {
    let names = [map::PODS, map::WORKLOADS, map::SERVICES, map::BACKENDS, map::POLICIES, map::IDENTITY_SETS];
    names.into_iter().filter_map(|name| Some((name, MapInfo::from_pin(pins.join(name)).ok()?.max_entries().into()))).collect()
}

impl Maps {
    /// Takes the handles from a loaded object.
    pub fn take(ebpf: &mut aya::Ebpf) -> Result<Self, LoadError> {
        Ok(Maps {
            settings: take(ebpf, map::SETTINGS)?,
            pods: take(ebpf, map::PODS)?,
            workloads: take(ebpf, map::WORKLOADS)?,
            services: take(ebpf, map::SERVICES)?,
            backends: take(ebpf, map::BACKENDS)?,
            policies: take(ebpf, map::POLICIES)?,
            members: take(ebpf, map::IDENTITY_SETS)?,
            excluded_ports: take(ebpf, map::EXCLUDED_PORTS)?,
            excluded_cidrs: take(ebpf, map::EXCLUDED_CIDRS)?,
            egress_ports: take(ebpf, map::EGRESS_PORTS)?,
            listeners: take(ebpf, map::LISTENERS)?,
            own: take(ebpf, map::OWN_LISTENERS)?,
        })
    }

    /// The settings in force; all zero before the first agent.
    pub fn settings(&self) -> Result<Settings, WriteError> {
        at(map::SETTINGS, self.settings.get(&0, 0))
    }

    /// Writes the settings.
    pub fn set_settings(&mut self, settings: &Settings) -> Result<(), WriteError> {
        at(map::SETTINGS, self.settings.set(0, settings, 0))
    }

    /// Marks a listener as the agent's; what it accepts inherits that.
    pub fn own(&mut self, listener: &std::net::TcpListener) -> Result<(), WriteError> {
        at(map::OWN_LISTENERS, self.own.insert(listener, 1, 0))
    }

    /// Steers plaintext that arrives for `addr` to `listener`.
    pub fn steer(&mut self, addr: Addr, listener: &std::net::TcpListener) -> Result<(), WriteError> {
        at(map::LISTENERS, self.listeners.insert(addr, std::os::fd::AsRawFd::as_raw_fd(listener), 0))
    }

    /// Takes that back; from then on plaintext for `addr` is dropped.
    pub fn unsteer(&mut self, addr: Addr) -> Result<(), WriteError> {
        unless_absent(map::LISTENERS, self.listeners.remove(&addr))
    }

    /// What an earlier agent left.
    pub fn read(&self) -> KernelState {
        let mut state = KernelState::default();
        state.pods.extend(self.pods.iter().flatten());
        state.workloads.extend(self.workloads.iter().flatten());
        state.services.extend(self.services.iter().flatten());
        let mut lists: std::collections::BTreeMap<u32, Vec<(u32, Endpoint)>> = Default::default();
        for (key, backend) in self.backends.iter().flatten() {
            lists.entry(key.list).or_default().push((key.index, backend));
        }
        for (list, mut backends) in lists {
            backends.sort_by_key(|(index, _)| *index);
            state.lists.insert(list, backends.into_iter().map(|(_, b)| b).collect());
        }
        state.policies.extend(self.policies.iter().flatten().map(|(k, v)| (k, std::sync::Arc::new(v))));
        state.members.extend(self.members.keys().flatten());
        state.excluded_ports.extend(self.excluded_ports.keys().flatten().map(|p| p as u16));
        state.egress_ports.extend(self.egress_ports.keys().flatten().map(|p| p as u16));
        state.excluded_cidrs.extend(self.excluded_cidrs.keys().flatten().map(|k| (k.prefix_len() as u8, Addr(k.data()))));
        state
    }

    /// Does one write.
    pub fn apply(&mut self, change: &Change) -> Result<(), WriteError> {
        match change {
            Change::Policy(k, v) => at(map::POLICIES, self.policies.insert(k, v.as_ref(), 0)),
            Change::Member(m) => at(map::IDENTITY_SETS, self.members.insert(m, 1, 0)),
            Change::ExcludePort(p) => at(map::EXCLUDED_PORTS, self.excluded_ports.insert(u32::from(*p), 1, 0)),
            Change::ExcludeCidr(p, a) => at(map::EXCLUDED_CIDRS, self.excluded_cidrs.insert(&CidrKey::new(u32::from(*p), a.0), 1, 0)),
            Change::List(list, endpoints) => {
                for (index, endpoint) in endpoints.iter().enumerate() {
                    let key = BackendKey { list: *list, index: index as u32 };
                    at(map::BACKENDS, self.backends.insert(key, endpoint, 0))?;
                }
                Ok(())
            }
            Change::Service(k, v) => at(map::SERVICES, self.services.insert(k, v, 0)),
            Change::Workload(k, v) => at(map::WORKLOADS, self.workloads.insert(k, v, 0)),
            Change::Pod(k, v) => at(map::PODS, self.pods.insert(k, v, 0)),
            Change::ForgetPod(k) => unless_absent(map::PODS, self.pods.remove(k)),
            Change::ForgetWorkload(k) => unless_absent(map::WORKLOADS, self.workloads.remove(k)),
            Change::ForgetService(k) => unless_absent(map::SERVICES, self.services.remove(k)),
            Change::ForgetList(list, count) => {
                for index in 0..*count {
                    unless_absent(map::BACKENDS, self.backends.remove(&BackendKey { list: *list, index }))?;
                }
                Ok(())
            }
            Change::IncludeCidr(p, a) => unless_absent(map::EXCLUDED_CIDRS, self.excluded_cidrs.remove(&CidrKey::new(u32::from(*p), a.0))),
            Change::WatchPort(p) => at(map::EGRESS_PORTS, self.egress_ports.insert(u32::from(*p), 1, 0)),
            Change::UnwatchPort(p) => unless_absent(map::EGRESS_PORTS, self.egress_ports.remove(&u32::from(*p))),
            Change::IncludePort(p) => unless_absent(map::EXCLUDED_PORTS, self.excluded_ports.remove(&u32::from(*p))),
            Change::ForgetMember(m) => unless_absent(map::IDENTITY_SETS, self.members.remove(m)),
            Change::ForgetPolicy(k) => unless_absent(map::POLICIES, self.policies.remove(k)),
        }
    }
}

/// A handle of its own on a pinned map, for another thread.
fn open<M>(pins: &Path, name: &'static str, wrap: fn(MapData) -> Map) -> Result<M, LoadError>
where
    M: TryFrom<Map, Error = MapError>,
{
    let path = pins.join(name);
    MapData::from_pin(&path).and_then(|data| M::try_from(wrap(data))).map_err(|error| LoadError::Pin { path, error: error.to_string() })
}

/// A worker's view: what captured connections dialled.
pub struct Origins(HashMap<MapData, OriginKey, Origin>);

impl Origins {
    /// Opens the pinned map.
    pub fn open(pins: &Path) -> Result<Self, LoadError> {
        open(pins, map::ORIGINS, Map::LruHashMap).map(Origins)
    }

    /// What the client at `key` dialled.
    pub fn get(&self, key: &OriginKey) -> Option<Origin> {
        self.0.get(key, 0).ok()
    }
}

/// Connections that the kernel judged.
pub struct Flows {
    flows: HashMap<MapData, FlowKey, FlowEntry>,
    stats: PerCpuHashMap<MapData, StatsKey, Stats>,
    verdicts: PerCpuArray<MapData, u64>,
}

impl Flows {
    /// Opens the pinned maps.
    pub fn open(pins: &Path) -> Result<Self, LoadError> {
        Ok(Flows {
            flows: open(pins, map::FLOWS, Map::HashMap)?,
            stats: open(pins, map::FLOW_STATS, Map::PerCpuHashMap)?,
            verdicts: open(pins, map::VERDICTS, Map::PerCpuArray)?,
        })
    }

    /// The connections open now.
    pub fn live(&self) -> impl Iterator<Item = (FlowKey, FlowEntry)> + '_ {
        self.flows.iter().flatten()
    }

    /// Forgets a connection.
    pub fn forget_flow(&mut self, key: &FlowKey) -> Result<(), WriteError> {
        unless_absent(map::FLOWS, self.flows.remove(key))
    }

    /// Totals for each pair of workloads and service.
    pub fn totals(&self) -> Vec<(StatsKey, Stats)> {
        let sum = |values: &[Stats]| {
            values.iter().fold(Stats::default(), |a, b| Stats {
                opened: a.opened + b.opened,
                closed: a.closed + b.closed,
                sent: a.sent + b.sent,
                received: a.received + b.received,
            })
        };
        self.stats.iter().flatten().map(|(key, values)| (key, sum(&values))).collect()
    }

    /// Drops the totals of a key.
    pub fn forget(&mut self, key: &StatsKey) -> Result<(), WriteError> {
        unless_absent(map::FLOW_STATS, self.stats.remove(key))
    }

    /// One counter of [`mesh_common::event::counter`], over all CPUs.
    pub fn verdict(&self, index: u32) -> u64 {
        debug_assert!(index < counter::COUNT);
        self.verdicts.get(&index, 0).map_or(0, |values| values.iter().sum())
    }
}

/// Cookies of the namespaces that pinned maps know.
pub fn pods(pins: &Path) -> Result<Vec<u64>, LoadError> {
    let pods: HashMap<MapData, u64, PodEntry> = open(pins, map::PODS, Map::HashMap)?;
    Ok(pods.keys().flatten().collect())
}

/// Opens the ring buffer.
pub fn events(pins: &Path) -> Result<RingBuf<MapData>, LoadError> {
    open(pins, map::EVENTS, Map::RingBuf)
}
