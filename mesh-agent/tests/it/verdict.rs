//! The kernel's verdict, the agent's, and what the specification says are the same, for random policies and connections.

use std::net::IpAddr;
use std::path::Path;

use aya::maps::HashMap as BpfMap;
use aya::programs::{TestRun, TestRunOptions, Xdp};
use mesh_agent::capture::desired::{plaintext_program, program};
use mesh_agent::capture::load::Programs;
use mesh_agent::conn::{ClientAddr, ServerAddr};
use mesh_agent::policy::{Peer, Transport, WorkloadPolicy, decide};
use mesh_common::names::{map, program as names};
use mesh_common::policy::{Facts, Member, Program};
use mesh_lab::World;
use mesh_model::policy::{MtlsMode, MtlsModes, PortMode, SetInterner, compile};
use mesh_model::testing::{Case, case, judge};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, TestRunner};

const MODES: [MtlsMode; 3] = [MtlsMode::Permissive, MtlsMode::Strict, MtlsMode::Disable];

/// `Question` as packet data.
fn question(facts: &Facts, program: u32, identity: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(facts.source.0);
    bytes.extend(facts.destination.0);
    for word in [facts.port, facts.identified, program, identity] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.extend([0; 12]);
    bytes
}

#[test]
fn kernel_agent_and_specification_agree() {
    let world = World::new("verdict").unwrap();
    world.own_instance(world.id()).unwrap();
    let mut loaded = Programs::load(&crate::abi::object(), Path::new("/sys/fs/bpf"), world.id()).unwrap();
    let ebpf = loaded.ebpf();
    let mut policies: BpfMap<_, u32, Program> = ebpf.take_map(map::POLICIES).unwrap().try_into().unwrap();
    let mut members: BpfMap<_, Member, u32> = ebpf.take_map(map::IDENTITY_SETS).unwrap().try_into().unwrap();
    let probe: &mut Xdp = ebpf.program_mut(names::PROBE).unwrap().try_into().unwrap();
    probe.load().unwrap();

    let mut judged = 0;
    let mut denied = 0;
    let mut plain = [0, 0];
    let mut interner = SetInterner::default();
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::default() });
    for _ in 0..400 {
        let Case { policies: effective, flows } = case().new_tree(&mut runner).unwrap().current();
        let compiled = compile(&effective, &mut interner);
        let Some(kernel_program) = program(&compiled, 1000) else { continue };
        policies.insert(7, kernel_program, 0).unwrap();
        for (flow, identity) in flows.iter().zip(1u32..) {
            let mut written = Vec::new();
            if let Some(id) = &flow.identity {
                for (set, patterns) in &compiled.sets {
                    if patterns.matches(id) {
                        let member = Member { set: set + 1000, identity };
                        members.insert(member, 1, 0).unwrap();
                        written.push(member);
                    }
                }
            }
            let facts = flow.facts();
            let mut packet = question(&facts, 7, identity);
            let input = packet.clone();
            probe.test_run(TestRunOptions { data_in: Some(&input), data_out: Some(&mut packet), ..TestRunOptions::new() }).unwrap();
            let word = |at: usize| u32::from_ne_bytes(packet[at..at + 4].try_into().unwrap());
            let agent = compiled.decide(&facts, flow.identity.as_ref());
            assert_eq!((word(48), word(52), word(56)), (u32::from(agent.allowed), agent.policy, agent.dry_run));
            let specified = judge(&effective, flow);
            assert_eq!(agent.allowed, specified.allowed, "{effective:#?} {flow:#?}");
            judged += 1;
            denied += u32::from(!agent.allowed);
            for member in written {
                members.remove(&member).unwrap();
            }

            // The same client without an identity, under every kind of modes.
            let port = |mode| PortMode { mode, by: None };
            let modes = MtlsModes {
                all: port(MODES[(identity as usize) % 3]),
                ports: [(flow.port, port(MODES[(identity as usize / 3) % 3]))].into_iter().filter(|_| identity % 2 == 0).collect(),
            };
            let Some(kernel_program) = plaintext_program(&compiled, &modes, 1000) else { continue };
            policies.insert(8, kernel_program, 0).unwrap();
            let facts = Facts { identified: 0, ..facts };
            let input = question(&facts, 8, 0);
            let mut packet = input.clone();
            probe.test_run(TestRunOptions { data_in: Some(&input), data_out: Some(&mut packet), ..TestRunOptions::new() }).unwrap();
            let word = |at: usize| u32::from_ne_bytes(packet[at..at + 4].try_into().unwrap());
            let peer = Peer { identity: None, address: ClientAddr((IpAddr::from(facts.source), 9).into()) };
            let server = ServerAddr((IpAddr::from(facts.destination), flow.port).into());
            let agent = decide(&WorkloadPolicy::new(modes, compiled.clone()), &peer, server, Transport::Plaintext);
            assert_eq!(word(48) == 1, agent.is_ok(), "{agent:?} {effective:#?} {flow:#?}");
            assert_eq!(word(56) != 0, agent.as_ref().is_ok_and(|permit| permit.dry_run().is_some()));
            plain[usize::from(agent.is_ok())] += 1;
        }
    }
    assert!(plain.iter().all(|count| *count > judged / 10), "{plain:?} refused and let through as plaintext");
    // A generator that only ever allowed would prove nothing.
    assert!(judged > 500 && denied > judged / 10 && denied < judged * 9 / 10, "{denied} of {judged} denied");
}
