//! What becomes of a socket that connect() noted, or that accepted what sk_lookup judged: its ports, its connection, its bytes, its end.

use aya_ebpf::bindings::{
    BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
    BPF_SOCK_OPS_TCP_CONNECT_CB,
};
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::programs::SockOpsContext;
use mesh_common::addr::Endpoint;
use mesh_common::event::counter;
use mesh_common::flow::*;
use mesh_common::workload::POD_READY;

use crate::accept::number_of;
use crate::closing;
use crate::ctx;
use crate::maps::*;

/// The sockops hook. Sockets without a note are left at once.
///
/// What it calls is not inlined: only one of them at a time fits into the kernel's 512 bytes of stack.
#[inline(always)]
pub fn sockops(ctx: &SockOpsContext) {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(ctx),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => established(ctx),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted(ctx),
        BPF_SOCK_OPS_STATE_CB => {
            let (old, new) = ctx::states_of_ops(ctx);
            if new == closing::TCP_CLOSE {
                closed(ctx, old);
            } else if closing::is_of_interest(new) {
                closing(ctx, new);
            }
        }
        _ => {}
    }
}

/// The connection as `FLOWS` has it: from the client to the server.
#[inline(always)]
fn flow_of(ctx: &SockOpsContext, kind: u32) -> FlowKey {
    let flow = ctx::flow_of_ops(ctx);
    if kind == KIND_PLAINTEXT { flow.reversed() } else { flow }
}

#[inline(always)]
fn origin_key(ctx: &SockOpsContext, flow: &FlowKey) -> OriginKey {
    OriginKey { netns_cookie: ctx::netns_of_ops(ctx), addr: flow.source, port: flow.source_port, pad: [0; 6] }
}

#[inline(always)]
fn follow(ctx: &SockOpsContext) {
    let _ = ctx.set_cb_flags((ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG) as i32);
}

/// Runs before the SYN leaves: what the accepting side will ask for must be there first. A note is good for the connection that was
/// judged and for no other: a socket that failed to connect there may be on its way elsewhere now.
#[inline(never)]
fn connecting(ctx: &SockOpsContext) {
    let Some(entry) = SOCKETS.get(ctx::sk_of_ops(ctx)) else { return };
    if entry.kind == KIND_RESOLVED || entry.kind == KIND_NONE || entry.kind == KIND_PLAINTEXT {
        return;
    }
    let flow = ctx::flow_of_ops(ctx);
    let written = if entry.kind == KIND_AGENT {
        if settings().is_none_or(|s| flow.destination_port.get() as u32 != s.outbound_port) {
            return;
        }
        let origin = Origin { dialled: entry.dialled, endpoint: entry.endpoint, service: entry.service, flags: entry.flags };
        ORIGINS.insert(origin_key(ctx, &flow), origin, 0)
    } else {
        if flow.destination != entry.endpoint.addr || flow.destination_port != entry.endpoint.port {
            return;
        }
        if entry.kind == KIND_DIRECT && !is_own(ctx, &flow) {
            return;
        }
        let value = FlowEntry {
            cookie: ctx::cookie_of_ops(ctx),
            // SAFETY: the helper has no preconditions.
            started_ns: unsafe { bpf_ktime_get_ns() },
            kind: entry.kind,
            source: entry.source,
            destination: entry.destination,
            service: entry.service,
            policy: entry.policy,
            dialled: entry.dialled,
            ..FlowEntry::default()
        };
        FLOWS.insert(flow, value, 0)
    };
    if written.is_err() {
        count(counter::MAP_FULL);
    }
    follow(ctx);
}

/// Whether the connection comes from the address of the pod that was judged; a socket may be bound to any other.
#[inline(always)]
fn is_own(ctx: &SockOpsContext, flow: &FlowKey) -> bool {
    // SAFETY: BPF_F_NO_PREALLOC keeps a found value from reuse while the program runs.
    unsafe { PODS.get(ctx::netns_of_ops(ctx)) }.is_some_and(|pod| flow.source == pod.v4 || flow.source == pod.v6)
}

#[inline(never)]
fn established(ctx: &SockOpsContext) {
    let Some(entry) = SOCKETS.get(ctx::sk_of_ops(ctx)) else { return };
    if !matches!(entry.kind, KIND_DIRECT | KIND_HOST | KIND_DELIVERY) {
        return;
    }
    let flow = ctx::flow_of_ops(ctx);
    let Some(value) = FLOWS.get_ptr_mut(flow) else { return };
    // SAFETY: found by lookup, kept from reuse by BPF_F_NO_PREALLOC; the socket's own callbacks are its only writers.
    let value = unsafe { &mut *value };
    value.state = STATE_ESTABLISHED;
    if value.kind == KIND_DIRECT {
        closing::opened(value);
    }
}

/// A process of a pod accepted what [`crate::accept`] left to it: it is counted here. What the agent accepts, it counts itself.
#[inline(never)]
fn accepted(ctx: &SockOpsContext) {
    let sk = ctx::sk_of_ops(ctx);
    if OWN_LISTENERS.get(sk).is_some() {
        return;
    }
    // SAFETY (all lookups here): as in `is_own`.
    let Some(pod) = (unsafe { PODS.get(ctx::netns_of_ops(ctx)) }) else { return };
    let flow = ctx::flow_of_ops(ctx).reversed();
    if pod.state != POD_READY || flow.source == flow.destination || flow.source.is_loopback() {
        return;
    }
    // Judged at its own connect(), or delivered by the agent: counted there.
    if unsafe { FLOWS.get(flow) }.is_some_and(|known| known.kind != KIND_PLAINTEXT) {
        return;
    }
    if !SOCKETS.set(sk, &mut SockEntry { kind: KIND_PLAINTEXT, ..SockEntry::default() }) {
        count(counter::MAP_FULL);
    }
    let value = FlowEntry {
        cookie: ctx::cookie_of_ops(ctx),
        // SAFETY: the helper has no preconditions.
        started_ns: unsafe { bpf_ktime_get_ns() },
        kind: KIND_PLAINTEXT,
        state: STATE_ESTABLISHED,
        source: number_of(&flow),
        destination: pod.workload,
        dialled: Endpoint { addr: flow.destination, port: flow.destination_port, pad: [0; 2] },
        ..FlowEntry::default()
    };
    if FLOWS.insert(flow, value, 0).is_err() {
        count(counter::MAP_FULL);
    }
    closing::opened(&value);
    follow(ctx);
}

#[inline(never)]
fn closing(ctx: &SockOpsContext, new: u32) {
    let Some(entry) = SOCKETS.get(ctx::sk_of_ops(ctx)) else { return };
    if entry.kind == KIND_DIRECT || entry.kind == KIND_PLAINTEXT {
        closing::fins(ctx, &flow_of(ctx, entry.kind), new);
    }
}

/// Takes away whatever was noted of the socket's connection.
#[inline(never)]
fn closed(ctx: &SockOpsContext, old: u32) {
    let Some(entry) = SOCKETS.get(ctx::sk_of_ops(ctx)) else { return };
    let flow = flow_of(ctx, entry.kind);
    if entry.kind == KIND_AGENT {
        // The agent has long read it; what is left is of no use to anybody.
        let _ = ORIGINS.remove(origin_key(ctx, &flow));
        return;
    }
    // SAFETY: as in `is_own`.
    if let Some(value) = unsafe { FLOWS.get(flow) } {
        let value = *value;
        if value.cookie == ctx::cookie_of_ops(ctx) {
            let _ = FLOWS.remove(flow);
            if value.state == STATE_ESTABLISHED && (value.kind == KIND_DIRECT || value.kind == KIND_PLAINTEXT) {
                closing::ended(ctx, &value, &flow, old);
            }
        }
    }
}
