//! The maps. All are pinned by name below the instance's directory, so that they outlive the agent.

use aya_ebpf::bindings::{BPF_F_CLONE, BPF_F_NO_PREALLOC};
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf, SockHash};
use mesh_common::addr::{Addr, Endpoint};
use mesh_common::event::counter;
use mesh_common::flow::{FlowEntry, FlowKey, Origin, OriginKey, SockEntry, Stats, StatsKey};
use mesh_common::policy::{Member, Program};
use mesh_common::service::{Backend, BackendKey, CidrData, ServiceEntry};
use mesh_common::workload::{PodEntry, Settings, WorkloadEntry};

use crate::storage::SkStorage;

#[map]
pub static SETTINGS: Array<Settings> = Array::pinned(1, 0);
#[map]
pub static PODS: HashMap<u64, PodEntry> = HashMap::pinned(4096, BPF_F_NO_PREALLOC);
#[map]
pub static WORKLOADS: HashMap<Addr, WorkloadEntry> = HashMap::pinned(524_288, BPF_F_NO_PREALLOC);
#[map]
pub static SERVICES: HashMap<Endpoint, ServiceEntry> = HashMap::pinned(65_536, BPF_F_NO_PREALLOC);
#[map]
pub static BACKENDS: HashMap<BackendKey, Backend> = HashMap::pinned(1_048_576, BPF_F_NO_PREALLOC);
#[map]
pub static POLICIES: HashMap<u32, Program> = HashMap::pinned(8192, BPF_F_NO_PREALLOC);
#[map]
pub static IDENTITY_SETS: HashMap<Member, u32> = HashMap::pinned(262_144, BPF_F_NO_PREALLOC);
#[map]
pub static EXCLUDED_PORTS: HashMap<u32, u32> = HashMap::pinned(1024, BPF_F_NO_PREALLOC);
#[map]
pub static EGRESS_PORTS: HashMap<u32, u32> = HashMap::pinned(65_536, BPF_F_NO_PREALLOC);
#[map]
pub static EXCLUDED_CIDRS: LpmTrie<CidrData, u32> = LpmTrie::pinned(1024, 0);
#[btf_map]
pub static SOCKETS: SkStorage<SockEntry, { BPF_F_NO_PREALLOC as usize }> = SkStorage::pinned();
#[btf_map]
pub static OWN_LISTENERS: SkStorage<u32, { (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize }> = SkStorage::pinned();
#[map]
pub static ORIGINS: LruHashMap<OriginKey, Origin> = LruHashMap::pinned(131_072, 0);
#[map]
pub static FLOWS: HashMap<FlowKey, FlowEntry> = HashMap::pinned(262_144, BPF_F_NO_PREALLOC);
#[map]
pub static FLOW_STATS: PerCpuHashMap<StatsKey, Stats> = PerCpuHashMap::pinned(65_536, BPF_F_NO_PREALLOC);
#[map]
pub static VERDICTS: PerCpuArray<u64> = PerCpuArray::pinned(counter::COUNT, 0);
#[map]
pub static LISTENERS: SockHash<Addr> = SockHash::pinned(8192, 0);
#[map]
pub static EVENTS: RingBuf = RingBuf::pinned(1 << 20, 0);

/// The settings in force; before the agent has written them, all zero.
#[inline(always)]
pub fn settings() -> Option<&'static Settings> {
    SETTINGS.get(0)
}

/// Adds one to a counter of `VERDICTS`.
#[inline(always)]
pub fn count(index: u32) {
    if let Some(slot) = VERDICTS.get_ptr_mut(index) {
        // SAFETY: the pointer comes from a lookup of this CPU's slot, which is valid for the program's run and has no other writer.
        unsafe { *slot += 1 };
    }
}

/// The longest excluded range that holds `addr`.
#[inline(always)]
pub fn is_excluded(addr: &Addr, port: u16) -> bool {
    // SAFETY: the map is created with BPF_F_NO_PREALLOC, so a found value is not reused while the program runs.
    if unsafe { EXCLUDED_PORTS.get(port as u32) }.is_some() {
        return true;
    }
    EXCLUDED_CIDRS.get(aya_ebpf::maps::lpm_trie::Key::new(128, addr.0)).is_some()
}
