//! What becomes of a socket that connect() noted: its ports, its connection, its bytes, its end.

use aya_ebpf::bindings::{
    BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB,
};
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::programs::SockOpsContext;
use mesh_common::event::counter;
use mesh_common::flow::*;

use crate::closing;
use crate::ctx;
use crate::maps::*;

/// The sockops hook of every process. Sockets that connect() did not note are left at once.
#[inline(always)]
pub fn sockops(ctx: &SockOpsContext) {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(ctx),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => established(ctx),
        BPF_SOCK_OPS_STATE_CB => {
            let (old, new) = ctx::states_of_ops(ctx);
            if new == closing::TCP_CLOSE {
                closed(ctx, old);
            } else if closing::is_of_interest(new) {
                let flow = ctx::flow_of_ops(ctx);
                closing::fins(ctx, &flow, KIND_DIRECT, new);
            }
        }
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
fn connecting(ctx: &SockOpsContext) {
    let cookie = ctx::cookie_of_ops(ctx);
    // SAFETY: copied at once; see `connect::peername`.
    let Some(entry) = (unsafe { SOCKETS.get(cookie) }) else { return };
    let entry = *entry;
    if entry.kind == KIND_RESOLVED {
        return;
    }
    let flow = ctx::flow_of_ops(ctx);
    let written = if entry.kind == KIND_AGENT {
        if settings().is_none_or(|s| flow.destination_port.get() as u32 != s.outbound_port) {
            return;
        }
        let origin = Origin { dialled: entry.dialled, endpoint: entry.endpoint, service: entry.service, pad: 0 };
        ORIGINS.insert(origin_key(ctx, &flow), origin, 0)
    } else {
        if flow.destination != entry.endpoint.addr || flow.destination_port != entry.endpoint.port {
            return;
        }
        if entry.kind == KIND_DIRECT && !is_own(ctx, &flow) {
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
fn established(ctx: &SockOpsContext) {
    // A socket whose state is not followed has no note: nothing was written for it.
    if ctx.cb_flags() & BPF_SOCK_OPS_STATE_CB_FLAG == 0 {
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

/// Takes away whatever was noted, also where the socket's own note has been displaced by newer ones.
#[inline(always)]
fn closed(ctx: &SockOpsContext, old: u32) {
    let cookie = ctx::cookie_of_ops(ctx);
    let flow = ctx::flow_of_ops(ctx);
    // SAFETY: as in `is_own`.
    if let Some(value) = unsafe { FLOWS.get(flow) } {
        let value = *value;
        if value.cookie == cookie {
            let _ = FLOWS.remove(flow);
            if value.kind == KIND_DIRECT && value.state == STATE_ESTABLISHED {
                closing::ended(ctx, cookie, &value, &flow, old);
            }
        }
    } else {
        // The agent has long read it; what is left is of no use to anybody.
        let _ = ORIGINS.remove(origin_key(ctx, &flow));
    }
    let _ = SOCKETS.remove(cookie);
}
