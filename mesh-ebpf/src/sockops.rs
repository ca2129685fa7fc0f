//! What becomes of a socket that connect() noted: its ports, its connection, its bytes, its end.

use aya_ebpf::bindings::{
    BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB,
};
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::programs::SockOpsContext;
use mesh_common::addr::Endpoint;
use mesh_common::event::{EVENT_CLOSED, counter};
use mesh_common::flow::*;
use mesh_common::workload::SETTINGS_LOG_DIRECT;

use crate::ctx;
use crate::event;
use crate::maps::*;

// The kernel's TCP states (include/net/tcp_states.h).
const TCP_FIN_WAIT2: u32 = 5;
const TCP_CLOSE: u32 = 7;
const TCP_CLOSE_WAIT: u32 = 8;
const TCP_LAST_ACK: u32 = 9;
const TCP_CLOSING: u32 = 11;

/// The sockops hook. Sockets that connect() did not note are left at once.
#[inline(always)]
pub fn sockops(ctx: &SockOpsContext) {
    let op = ctx.op();
    if op != BPF_SOCK_OPS_TCP_CONNECT_CB && op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB && op != BPF_SOCK_OPS_STATE_CB {
        return;
    }
    let cookie = ctx::cookie_of_ops(ctx);
    let flow = ctx::flow_of_ops(ctx);
    if op == BPF_SOCK_OPS_STATE_CB && ctx::states_of_ops(ctx).1 == TCP_CLOSE {
        closed(ctx, cookie, &flow);
        return;
    }
    // SAFETY: copied at once; see `connect::peername`.
    let Some(entry) = (unsafe { SOCKETS.get(cookie) }) else { return };
    let entry = *entry;
    if entry.kind == KIND_RESOLVED {
        return;
    }
    match op {
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(ctx, cookie, &entry, &flow),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => established(&entry, &flow),
        _ if entry.kind == KIND_DIRECT => fins(ctx, &flow, ctx::states_of_ops(ctx).1),
        _ => {}
    }
}

#[inline(always)]
fn origin_key(ctx: &SockOpsContext, flow: &FlowKey) -> OriginKey {
    OriginKey { netns_cookie: ctx::netns_of_ops(ctx), addr: flow.source, port: flow.source_port, pad: [0; 6] }
}

/// Runs before the SYN leaves: what the accepting side will ask for must be there first. A note is good for the connection that was
/// judged and for no other: a socket that failed to connect there may be on its way elsewhere now.
#[inline(always)]
fn connecting(ctx: &SockOpsContext, cookie: u64, entry: &SockEntry, flow: &FlowKey) {
    let written = if entry.kind == KIND_AGENT {
        if settings().is_none_or(|s| flow.destination_port.get() as u32 != s.outbound_port) {
            return;
        }
        let origin = Origin { dialled: entry.dialled, endpoint: entry.endpoint, service: entry.service, pad: 0 };
        ORIGINS.insert(origin_key(ctx, flow), origin, 0)
    } else {
        if flow.destination != entry.endpoint.addr || flow.destination_port != entry.endpoint.port {
            return;
        }
        if entry.kind == KIND_DIRECT && !is_own(ctx, flow) {
            return;
        }
        let value = FlowEntry {
            cookie,
            // SAFETY: the helper has no preconditions.
            started_ns: unsafe { bpf_ktime_get_ns() },
            kind: entry.kind,
            source: entry.source,
            destination: entry.destination,
            service: entry.service,
            policy: entry.policy,
            ..FlowEntry::default()
        };
        FLOWS.insert(flow, value, 0)
    };
    if written.is_err() {
        count(counter::MAP_FULL);
    }
    let _ = ctx.set_cb_flags((ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG) as i32);
}

/// Whether the connection comes from the address of the pod that was judged; a socket may be bound to any other.
#[inline(always)]
fn is_own(ctx: &SockOpsContext, flow: &FlowKey) -> bool {
    // SAFETY: BPF_F_NO_PREALLOC keeps a found value from reuse while the program runs.
    unsafe { PODS.get(ctx::netns_of_ops(ctx)) }.is_some_and(|pod| flow.source == pod.v4 || flow.source == pod.v6)
}

#[inline(always)]
fn established(entry: &SockEntry, flow: &FlowKey) {
    if entry.kind == KIND_AGENT {
        return;
    }
    if let Some(value) = FLOWS.get_ptr_mut(flow) {
        // SAFETY: found by lookup, kept from reuse by BPF_F_NO_PREALLOC; the socket's own callbacks are its only writers.
        unsafe { (*value).state = STATE_ESTABLISHED };
    }
    if entry.kind == KIND_DIRECT {
        add(
            &StatsKey { source: entry.source, destination: entry.destination, service: entry.service },
            &Stats { opened: 1, ..Stats::default() },
        );
    }
}

/// Takes away whatever was noted, also where the socket's own note has been displaced by newer ones.
#[inline(always)]
fn closed(ctx: &SockOpsContext, cookie: u64, flow: &FlowKey) {
    let old = ctx::states_of_ops(ctx).0;
    // SAFETY: as in `is_own`.
    if let Some(value) = unsafe { FLOWS.get(flow) } {
        let value = *value;
        if value.cookie == cookie {
            let _ = FLOWS.remove(flow);
            if value.kind == KIND_DIRECT && value.state == STATE_ESTABLISHED {
                ended(ctx, cookie, &value, flow, old);
            }
        }
    } else {
        // The agent has long read it; what is left is of no use to anybody.
        let _ = ORIGINS.remove(origin_key(ctx, flow));
    }
    let _ = SOCKETS.remove(cookie);
}

/// Keeps track of which FINs the socket's byte counters include.
#[inline(always)]
fn fins(ctx: &SockOpsContext, flow: &FlowKey, new: u32) {
    let Some(value) = FLOWS.get_ptr_mut(flow) else { return };
    // SAFETY: as in `established`.
    unsafe {
        if new == TCP_FIN_WAIT2 {
            (*value).fins |= FIN_SENT | FIN_WAITED;
            (*value).received_at_fin_wait2 = ctx::bytes_of_ops(ctx).1;
        } else if new == TCP_CLOSE_WAIT || new == TCP_CLOSING {
            (*value).fins |= FIN_RECEIVED;
        }
    }
}

/// Counts and reports. The socket's counters include one for the SYN and one for each FIN; they are taken off.
#[inline(always)]
fn ended(ctx: &SockOpsContext, cookie: u64, value: &FlowEntry, flow: &FlowKey, old: u32) {
    let (acked, received) = ctx::bytes_of_ops(ctx);
    let fin_sent = value.fins & FIN_SENT != 0 || old == TCP_LAST_ACK || old == TCP_CLOSING;
    let fin_received = value.fins & FIN_RECEIVED != 0 || (value.fins & FIN_WAITED != 0 && received > value.received_at_fin_wait2);
    let stats = Stats {
        opened: 0,
        closed: 1,
        sent: acked.saturating_sub(1 + fin_sent as u64),
        received: received.saturating_sub(fin_received as u64),
    };
    add(&StatsKey { source: value.source, destination: value.destination, service: value.service }, &stats);
    if settings().is_some_and(|s| s.flags & SETTINGS_LOG_DIRECT != 0) {
        event::send(EVENT_CLOSED, |record| {
            record.sent = stats.sent;
            record.received = stats.received;
            // SAFETY: the helper has no preconditions.
            record.duration_ns = unsafe { bpf_ktime_get_ns() } - value.started_ns;
            record.source = value.source;
            record.destination = value.destination;
            record.service = value.service;
            record.policy = value.policy;
            record.client = Endpoint { addr: flow.source, port: flow.source_port, pad: [0; 2] };
            record.server = Endpoint { addr: flow.destination, port: flow.destination_port, pad: [0; 2] };
            record.dialled = record.server;
            // SAFETY: copied at once; see `connect::peername`.
            if let Some(entry) = unsafe { SOCKETS.get(cookie) } {
                record.dialled = entry.dialled;
            }
        });
    }
}

#[inline(always)]
fn add(key: &StatsKey, more: &Stats) {
    if let Some(stats) = FLOW_STATS.get_ptr_mut(key) {
        // SAFETY: this CPU's slot; nothing else writes it while the program runs.
        unsafe {
            (*stats).opened += more.opened;
            (*stats).closed += more.closed;
            (*stats).sent += more.sent;
            (*stats).received += more.received;
        }
    } else if FLOW_STATS.insert(key, more, 0).is_err() {
        count(counter::MAP_FULL);
    }
}
