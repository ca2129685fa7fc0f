use super::*;

fn state() -> KernelState {
    let mut s = KernelState::default();
    s.pods.insert(1, PodEntry { workload: 1, identity: 1, state: 3, ..PodEntry::default() });
    s.workloads.insert(Addr::v4([10, 0, 0, 1]), WorkloadEntry { workload: 1, policy: 5, plaintext: 6, flags: 3 });
    s.policies.insert(5, Arc::new(Program { header: Default::default(), ops: [Default::default(); mesh_common::names::MAX_OPS] }));
    s.members.insert(Member { set: 1, identity: 1 });
    s.lists.insert(9, vec![Endpoint::new(Addr::v4([10, 0, 0, 1]), 80)].into());
    s.services.insert(Endpoint::new(Addr::v4([10, 96, 0, 1]), 80), ServiceEntry { service: 1, list: 9, count: 1, flags: 0 });
    s
}

#[test]
fn equal_states_need_no_write() {
    assert!(diff(&state(), &state()).is_empty());
}

#[test]
fn rules_come_before_the_judged_and_go_after_them() {
    let place = |changes: &[Change], f: fn(&Change) -> bool| changes.iter().position(f).unwrap();
    let up = diff(&KernelState::default(), &state());
    assert!(place(&up, |c| matches!(c, Change::Policy(..))) < place(&up, |c| matches!(c, Change::Workload(..))));
    assert!(place(&up, |c| matches!(c, Change::Member(..))) < place(&up, |c| matches!(c, Change::Policy(..))));
    assert!(place(&up, |c| matches!(c, Change::List(..))) < place(&up, |c| matches!(c, Change::Service(..))));
    assert!(place(&up, |c| matches!(c, Change::Workload(..))) < place(&up, |c| matches!(c, Change::Pod(..))));
    let down = diff(&state(), &KernelState::default());
    assert!(place(&down, |c| matches!(c, Change::ForgetWorkload(..))) < place(&down, |c| matches!(c, Change::ForgetPolicy(..))));
    assert!(place(&down, |c| matches!(c, Change::ForgetService(..))) < place(&down, |c| matches!(c, Change::ForgetList(..))));
    assert!(place(&down, |c| matches!(c, Change::ForgetPolicy(..))) < place(&down, |c| matches!(c, Change::ForgetMember(..))));
}

#[test]
fn only_what_changed_is_written() {
    let mut want = state();
    want.pods.insert(1, PodEntry { workload: 1, identity: 1, state: 2, ..PodEntry::default() });
    assert_eq!(diff(&state(), &want), [Change::Pod(1, want.pods[&1])]);
}

#[test]
fn ports_of_hosts_outside_come_and_go() {
    let watching = |ports: &[u16]| KernelState { egress_ports: ports.iter().copied().collect(), ..state() };
    let changes = diff(&watching(&[80, 81]), &watching(&[81, 82]));
    assert_eq!(changes, [Change::WatchPort(82), Change::UnwatchPort(80)]);
}
