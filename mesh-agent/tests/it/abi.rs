//! The object's maps have the shapes that the agent believes they have.

use std::collections::HashMap;
use std::path::PathBuf;

use mesh_common::names::{map, program};
use mesh_common::{addr, event, flow, policy, service, workload};

/// The built object.
pub fn object() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/mesh-ebpf.o")
}

#[test]
fn the_objects_maps_have_the_contracts_sizes() {
    let data = std::fs::read(object()).expect("build it with cargo xtask build-ebpf");
    let parsed = aya_obj::Object::parse(&data).unwrap();
    let sizes: HashMap<&str, (u32, u32)> = parsed.maps.iter().map(|(name, m)| (name.as_str(), (m.key_size(), m.value_size()))).collect();
    fn size<T>() -> u32 {
        size_of::<T>() as u32
    }
    let expected = [
        (map::SETTINGS, 4, size::<workload::Settings>()),
        (map::PODS, 8, size::<workload::PodEntry>()),
        (map::WORKLOADS, size::<addr::Addr>(), size::<workload::WorkloadEntry>()),
        (map::SERVICES, size::<addr::Endpoint>(), size::<service::ServiceEntry>()),
        (map::BACKENDS, size::<service::BackendKey>(), size::<service::Backend>()),
        (map::POLICIES, 4, size::<policy::Program>()),
        (map::IDENTITY_SETS, size::<policy::Member>(), 4),
        (map::EXCLUDED_PORTS, 4, 4),
        (map::EGRESS_PORTS, 4, 4),
        (map::EXCLUDED_CIDRS, 4 + 16, 4),
        (map::SOCKETS, 4, size::<flow::SockEntry>()),
        (map::OWN_LISTENERS, 4, 4),
        (map::ORIGINS, size::<flow::OriginKey>(), size::<flow::Origin>()),
        (map::FLOWS, size::<flow::FlowKey>(), size::<flow::FlowEntry>()),
        (map::FLOW_STATS, size::<flow::StatsKey>(), size::<flow::Stats>()),
        (map::VERDICTS, 4, 8),
        (map::LISTENERS, size::<addr::Addr>(), 4),
    ];
    for (name, key, value) in expected {
        assert_eq!(sizes.get(name), Some(&(key, value)), "{name}");
    }
    assert!(sizes.contains_key(map::EVENTS));
    assert_eq!(size::<event::Event>(), 112);
    for name in
        [program::CONNECT4, program::CONNECT6, program::PEERNAME4, program::PEERNAME6, program::SOCKOPS, program::ACCEPT, program::PROBE]
    {
        assert!(parsed.programs.contains_key(name), "{name}");
    }
}
