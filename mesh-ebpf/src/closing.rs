//! How a connection that the kernel judged ends, and what it is counted as.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::programs::SockOpsContext;
use mesh_common::addr::Endpoint;
use mesh_common::event::{EVENT_ABORTED, EVENT_CLOSED, EVENT_PLAINTEXT, counter};
use mesh_common::flow::*;
use mesh_common::workload::SETTINGS_LOG_DIRECT;

use crate::ctx;
use crate::event;
use crate::maps::*;

// The kernel's TCP states (include/net/tcp_states.h).
const TCP_ESTABLISHED: u32 = 1;
const TCP_FIN_WAIT1: u32 = 4;
const TCP_FIN_WAIT2: u32 = 5;
/// The end of a socket.
pub const TCP_CLOSE: u32 = 7;
const TCP_CLOSE_WAIT: u32 = 8;
const TCP_LAST_ACK: u32 = 9;
const TCP_CLOSING: u32 = 11;

/// Whether [`fins`] learns anything from a socket entering a state.
#[inline(always)]
pub fn is_of_interest(state: u32) -> bool {
    state == TCP_FIN_WAIT2 || state == TCP_CLOSE_WAIT || state == TCP_CLOSING
}

/// Keeps track of which FINs the socket's byte counters include.
#[inline(always)]
pub fn fins(ctx: &SockOpsContext, flow: &FlowKey, new: u32) {
    let Some(value) = FLOWS.get_ptr_mut(flow) else { return };
    // SAFETY: found by lookup, kept from reuse by BPF_F_NO_PREALLOC; the socket's own callbacks are its only writers.
    let value = unsafe { &mut *value };
    if new == TCP_FIN_WAIT2 {
        value.fins |= FIN_SENT | FIN_WAITED;
        value.received_at_fin_wait2 = ctx::bytes_of_ops(ctx).1;
    } else {
        value.fins |= FIN_RECEIVED;
    }
}

#[inline(always)]
fn key(value: &FlowEntry) -> StatsKey {
    StatsKey { source: value.source, destination: value.destination, service: value.service, kind: value.kind }
}

/// Counts a connection as opened.
#[inline(always)]
pub fn opened(value: &FlowEntry) {
    add(&key(value), &Stats { opened: 1, ..Stats::default() });
}

/// Counts and reports. `old` is the state before the end. The socket's counters include one for each FIN, and one for its own SYN at the
/// side that connected; they are taken off.
#[inline(always)]
pub fn ended(ctx: &SockOpsContext, value: &FlowEntry, flow: &FlowKey, old: u32) {
    let plaintext = value.kind == KIND_PLAINTEXT;
    let (acked, received) = ctx::bytes_of_ops(ctx);
    let fin_sent = value.fins & FIN_SENT != 0 || old == TCP_LAST_ACK || old == TCP_CLOSING;
    let fin_received = value.fins & FIN_RECEIVED != 0 || (value.fins & FIN_WAITED != 0 && received > value.received_at_fin_wait2);
    let written = acked.saturating_sub(!plaintext as u64 + fin_sent as u64);
    let read = received.saturating_sub(fin_received as u64);
    // The socket is the client's, or with plaintext the server's.
    let (sent, received) = if plaintext { (read, written) } else { (written, read) };
    add(&key(value), &Stats { opened: 0, closed: 1, sent, received });
    if settings().is_some_and(|s| s.flags & SETTINGS_LOG_DIRECT != 0) {
        let aborted = old == TCP_ESTABLISHED || old == TCP_CLOSE_WAIT || old == TCP_FIN_WAIT1;
        event::send(EVENT_CLOSED, |record| {
            record.flags = if plaintext { EVENT_PLAINTEXT } else { 0 } | if aborted { EVENT_ABORTED } else { 0 };
            record.sent = sent;
            record.received = received;
            // SAFETY: the helper has no preconditions.
            record.duration_ns = unsafe { bpf_ktime_get_ns() } - value.started_ns;
            record.source = value.source;
            record.destination = value.destination;
            record.service = value.service;
            record.policy = value.policy;
            record.client = Endpoint { addr: flow.source, port: flow.source_port, pad: [0; 2] };
            record.server = Endpoint { addr: flow.destination, port: flow.destination_port, pad: [0; 2] };
            record.dialled = value.dialled;
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
