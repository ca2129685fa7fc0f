//! connect(): whose socket is it, whom does it dial, and may it.

use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use aya_ebpf::programs::SockAddrContext;
use mesh_common::addr::{Addr, Endpoint};
use mesh_common::event::*;
use mesh_common::flow::*;
use mesh_common::policy::{Facts, Member, Program};
use mesh_common::service::{BackendKey, SERVICE_OUTSIDE, SERVICE_VIA_AGENT};
use mesh_common::verdict::{Decision, Walk};
use mesh_common::workload::*;

use crate::ctx::{self, Family};
use crate::event;
use crate::maps::*;

const ALLOW: i32 = 1;
const REFUSE: i32 = 0;

/// The connect hooks. What is learnt of the attempt is gathered in one [`SockEntry`], because the kernel's stack has no room for more.
#[inline(always)]
pub fn connect(ctx: &SockAddrContext, family: Family) -> i32 {
    if !ctx::is_tcp(ctx) {
        return ALLOW;
    }
    let Some(settings) = settings() else { return REFUSE };
    let dialled = ctx::user_endpoint(ctx, family);
    let mut attempt = SockEntry { dialled, endpoint: dialled, ..SockEntry::default() };
    // What an earlier attempt of this socket noted is of another connection.
    if let Some(stale) = SOCKETS.get(ctx::sk_of_addr(ctx)) {
        stale.kind = KIND_NONE;
    }
    let netns = ctx::netns_of_addr(ctx);
    // SAFETY: BPF_F_NO_PREALLOC keeps a found value from reuse while the program runs.
    let Some(pod) = (unsafe { PODS.get(netns) }) else {
        return stranger(ctx, settings, netns, &mut attempt);
    };
    let to = &attempt.dialled.addr;
    if is_agent(settings) {
        // On its way out of the pod, to whom is not in the mesh, it delivers nothing: were that pod enrolled by now, it must judge this.
        let delivers = *to == pod.v4 || *to == pod.v6;
        return if delivers { agent(ctx, settings, &mut attempt) } else { ALLOW };
    }
    if pod.state == POD_OUTSIDE || *to == pod.v4 || *to == pod.v6 || to.is_loopback() || to.is_unspecified() {
        return ALLOW;
    }
    if is_excluded(to, attempt.dialled.port.get()) {
        count(counter::PASS);
        return ALLOW;
    }
    if pod.state != POD_READY {
        return refuse(pod, &attempt, REASON_SOURCE_HELD);
    }
    resolve_and_judge(ctx, family, settings, pod, &mut attempt)
}

/// Whether the process is the agent, or the one before it that finishes its connections.
#[inline(always)]
fn is_agent(settings: &Settings) -> bool {
    let own = ctx::current_cgroup();
    own == settings.agent_cgroup || (settings.former_agent_cgroup != 0 && own == settings.former_agent_cgroup)
}

/// A socket outside the known pods: a process of the host, or one that should be known.
#[inline(always)]
fn stranger(ctx: &SockAddrContext, settings: &Settings, netns: u64, attempt: &mut SockEntry) -> i32 {
    if is_agent(settings) {
        // In a pod's namespace that is not written down yet.
        return if netns == settings.host_netns { ALLOW } else { agent(ctx, settings, attempt) };
    }
    let in_pods = settings.pods_cgroup != 0 && ctx::current_ancestor(settings.pods_level) == settings.pods_cgroup;
    if netns == settings.host_netns {
        // SAFETY: as in `connect`.
        let local = unsafe { WORKLOADS.get(attempt.dialled.addr) }.is_some_and(|w| w.flags & WORKLOAD_LOCAL != 0);
        if local && !in_pods {
            attempt.kind = KIND_HOST;
            note(ctx, attempt);
        }
        return ALLOW;
    }
    let to = &attempt.dialled.addr;
    let within = to.is_loopback() || to.is_unspecified();
    if in_pods && settings.flags & (SETTINGS_DENY_UNKNOWN | SETTINGS_INCOMPLETE) != 0 && !within {
        refused(REASON_UNKNOWN_POD, |record| {
            record.server = attempt.dialled;
            record.dialled = attempt.dialled;
        });
        return REFUSE;
    }
    ALLOW
}

/// The agent's own socket in a pod's namespace: a tunnel, or a delivery to the pod's application.
#[inline(always)]
fn agent(ctx: &SockAddrContext, settings: &Settings, attempt: &mut SockEntry) -> i32 {
    if attempt.dialled.port.get() as u32 != settings.tunnel_port {
        attempt.kind = KIND_DELIVERY;
        note(ctx, attempt);
    }
    ALLOW
}

#[inline(always)]
#[expect(clippy::needless_borrows_for_generic_args, reason = "a key that is passed by value is copied to the stack once more")]
fn resolve_and_judge(ctx: &SockAddrContext, family: Family, settings: &Settings, pod: &PodEntry, attempt: &mut SockEntry) -> i32 {
    attempt.source = pod.workload;
    // SAFETY (all lookups below): the maps are created with BPF_F_NO_PREALLOC, see `connect`.
    if let Some(service) = unsafe { SERVICES.get(&attempt.dialled) } {
        attempt.service = service.service;
        let via_agent = service.flags & SERVICE_VIA_AGENT != 0;
        if service.flags & SERVICE_OUTSIDE != 0 {
            attempt.flags = ORIGIN_OUTSIDE;
        }
        if service.count != 0 {
            // SAFETY: the helper has no preconditions.
            let index = unsafe { bpf_get_prandom_u32() } % service.count;
            match unsafe { BACKENDS.get(BackendKey { list: service.list, index }) } {
                Some(backend) => attempt.endpoint = *backend,
                None if via_agent => {}
                None => return refuse(pod, attempt, REASON_NO_ENDPOINT),
            }
        } else if !via_agent {
            return refuse(pod, attempt, REASON_NO_ENDPOINT);
        }
        // Whom it goes to is the agent's to say, and who may be reached is judged at the server's end of the tunnel.
        if via_agent {
            return to_agent(ctx, family, settings, pod, attempt);
        }
    }
    let to = &attempt.endpoint.addr;
    let own = *to == pod.v4 || *to == pod.v6;
    let known = if own { None } else { unsafe { WORKLOADS.get(to) } };
    if known.is_none() && !own && settings.flags & SETTINGS_INCOMPLETE != 0 {
        return refuse(pod, attempt, REASON_INCOMPLETE);
    }
    if known.is_none() && !own && attempt.service == 0 && is_watched(settings, attempt.dialled.port.get()) {
        attempt.flags = ORIGIN_OUTSIDE;
        return to_agent(ctx, family, settings, pod, attempt);
    }
    let Some(workload) = known.filter(|workload| workload.flags & WORKLOAD_ENROLLED != 0) else {
        count(counter::PASS);
        if attempt.service != 0 {
            attempt.kind = KIND_RESOLVED;
            note(ctx, attempt);
            ctx::set_user_endpoint(ctx, family, &attempt.endpoint);
        }
        return ALLOW;
    };
    attempt.destination = workload.workload;
    let port = attempt.endpoint.port.get() as u32;
    if port == settings.tunnel_port || port == settings.outbound_port {
        return refuse(pod, attempt, REASON_OWN_PORT);
    }
    if workload.flags & WORKLOAD_HELD != 0 {
        return refuse(pod, attempt, REASON_DESTINATION_HELD);
    }
    let own = if attempt.endpoint.addr.is_v4() { &pod.v4 } else { &pod.v6 };
    if own.is_unspecified() {
        return refuse(pod, attempt, REASON_FAMILY);
    }
    let via_agent = workload.flags & WORKLOAD_VIA_AGENT != 0 || pod.flags & POD_VIA_AGENT != 0;
    if workload.flags & WORKLOAD_LOCAL != 0 && !via_agent {
        attempt.policy = workload.policy;
        let Some(program) = (unsafe { POLICIES.get(workload.policy) }) else {
            return refuse(pod, attempt, REASON_NO_RULES);
        };
        return judge(ctx, family, pod, own, attempt, program);
    }
    to_agent(ctx, family, settings, pod, attempt)
}

/// Whether the agent looks after connections to addresses of nobody that is known, on this port.
#[inline(always)]
fn is_watched(settings: &Settings, port: u16) -> bool {
    // SAFETY: as in `resolve_and_judge`.
    settings.flags & SETTINGS_REGISTRY_ONLY != 0 || unsafe { EGRESS_PORTS.get(port as u32) }.is_some()
}

/// Rewritten to the agent's listener in the pod's own namespace.
#[inline(always)]
fn to_agent(ctx: &SockAddrContext, family: Family, settings: &Settings, pod: &PodEntry, attempt: &mut SockEntry) -> i32 {
    let own = if attempt.dialled.addr.is_v4() { &pod.v4 } else { &pod.v6 };
    if own.is_unspecified() {
        return refuse(pod, attempt, REASON_FAMILY);
    }
    count(counter::AGENT);
    attempt.kind = KIND_AGENT;
    note(ctx, attempt);
    ctx::set_user_endpoint(ctx, family, &Endpoint::new(*own, settings.outbound_port as u16));
    ALLOW
}

#[inline(always)]
fn judge(ctx: &SockAddrContext, family: Family, pod: &PodEntry, own: &Addr, attempt: &mut SockEntry, program: &Program) -> i32 {
    let facts = Facts { source: *own, destination: attempt.endpoint.addr, port: attempt.endpoint.port.get() as u32, identified: 1 };
    let decision = evaluate(program, &facts, pod.identity);
    if !decision.allowed {
        attempt.policy = decision.policy;
        return refuse(pod, attempt, if decision.policy == 0 { REASON_NO_ALLOW } else { REASON_POLICY });
    }
    if decision.dry_run != 0 {
        event::send(EVENT_DRY_RUN, |record| {
            describe(record, pod, attempt);
            record.policy = decision.dry_run;
        });
    }
    count(counter::DIRECT);
    attempt.kind = KIND_DIRECT;
    note(ctx, attempt);
    if attempt.service != 0 {
        ctx::set_user_endpoint(ctx, family, &attempt.endpoint);
    }
    ALLOW
}

/// The verdict, over the kernel's form of a program.
#[inline(always)]
pub fn evaluate(program: &Program, facts: &Facts, identity: u32) -> Decision {
    let mut walk = Walk::new(program.header.zero);
    let mut i = 0;
    while i < mesh_common::names::MAX_OPS {
        if i as u32 >= program.header.len {
            break;
        }
        // SAFETY: i is below the array's length.
        let op = unsafe { program.ops.get_unchecked(i) };
        // SAFETY: BPF_F_NO_PREALLOC, see `connect`.
        walk.step(op, facts, |set| unsafe { IDENTITY_SETS.get(Member { set, identity }) }.is_some());
        i += 1;
    }
    walk.finish(program.header.flags)
}

/// Remembers the socket until it connects.
#[inline(always)]
fn note(ctx: &SockAddrContext, entry: &mut SockEntry) {
    if !SOCKETS.set(ctx::sk_of_addr(ctx), entry) {
        count(counter::MAP_FULL);
        aya_log_ebpf::warn!(ctx, "no memory for a socket's note: its connection will be refused on its way");
    }
}

#[inline(always)]
fn describe(record: &mut Event, pod: &PodEntry, attempt: &SockEntry) {
    record.source = pod.workload;
    record.destination = attempt.destination;
    record.service = attempt.service;
    record.policy = attempt.policy;
    record.client.addr = if attempt.dialled.addr.is_v4() { pod.v4 } else { pod.v6 };
    record.server = attempt.endpoint;
    record.dialled = attempt.dialled;
}

#[inline(always)]
fn refuse(pod: &PodEntry, attempt: &SockEntry, reason: u32) -> i32 {
    refused(reason, |record| describe(record, pod, attempt));
    REFUSE
}

#[inline(always)]
fn refused(reason: u32, fill: impl FnOnce(&mut Event)) {
    count(counter::DENY);
    count(counter::REASON_BASE + reason);
    event::send(EVENT_DENIED, |record| {
        record.reason = reason;
        fill(record);
    });
}

/// The getpeername hooks: the application sees what it dialled.
#[inline(always)]
pub fn peername(ctx: &SockAddrContext, family: Family) -> i32 {
    if let Some(entry) = SOCKETS.get(ctx::sk_of_addr(ctx)) {
        let rewritten = matches!(entry.kind, KIND_AGENT | KIND_DIRECT | KIND_RESOLVED);
        if rewritten && (family == Family::V6 || entry.dialled.addr.is_v4()) {
            ctx::set_user_endpoint(ctx, family, &entry.dialled);
        }
    }
    ALLOW
}
