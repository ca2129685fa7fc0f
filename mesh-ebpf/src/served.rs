//! Connections that pods' processes accept: those of clients without an identity, which [`crate::accept`] judged, are counted here.
//!
//! Attached to the pods' cgroup only. The agent's own accepted sockets, to which the other plaintext was steered, are not below it.

use aya_ebpf::bindings::{BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG};
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::programs::SockOpsContext;
use mesh_common::event::counter;
use mesh_common::flow::*;
use mesh_common::workload::POD_READY;

use crate::accept::number_of;
use crate::closing;
use crate::ctx;
use crate::maps::*;

/// The sockops hook of pods' processes.
#[inline(always)]
pub fn served(ctx: &SockOpsContext) {
    match ctx.op() {
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted(ctx),
        BPF_SOCK_OPS_STATE_CB => {
            let (old, new) = ctx::states_of_ops(ctx);
            if new == closing::TCP_CLOSE {
                closed(ctx, old);
            } else if closing::is_of_interest(new) {
                let flow = ctx::flow_of_ops(ctx).reversed();
                closing::fins(ctx, &flow, KIND_PLAINTEXT, new);
            }
        }
        _ => {}
    }
}

#[inline(always)]
fn accepted(ctx: &SockOpsContext) {
    // SAFETY (all lookups here): BPF_F_NO_PREALLOC keeps a found value from reuse while the program runs.
    let Some(pod) = (unsafe { PODS.get(ctx::netns_of_ops(ctx)) }) else { return };
    let flow = ctx::flow_of_ops(ctx).reversed();
    if pod.state != POD_READY || flow.source == flow.destination || flow.source.is_loopback() {
        return;
    }
    // Judged at its own connect(), or delivered by the agent: counted there.
    if unsafe { FLOWS.get(flow) }.is_some_and(|known| known.kind != KIND_PLAINTEXT) {
        return;
    }
    let value = FlowEntry {
        cookie: ctx::cookie_of_ops(ctx),
        // SAFETY: the helper has no preconditions.
        started_ns: unsafe { bpf_ktime_get_ns() },
        kind: KIND_PLAINTEXT,
        state: STATE_ESTABLISHED,
        source: number_of(&flow),
        destination: pod.workload,
        ..FlowEntry::default()
    };
    if FLOWS.insert(flow, value, 0).is_err() {
        count(counter::MAP_FULL);
    }
    closing::opened(&value);
    let _ = ctx.set_cb_flags((ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG) as i32);
}

#[inline(always)]
fn closed(ctx: &SockOpsContext, old: u32) {
    let cookie = ctx::cookie_of_ops(ctx);
    let flow = ctx::flow_of_ops(ctx).reversed();
    let Some(value) = (unsafe { FLOWS.get(flow) }) else { return };
    let value = *value;
    if value.cookie == cookie && value.kind == KIND_PLAINTEXT {
        let _ = FLOWS.remove(flow);
        closing::ended(ctx, cookie, &value, &flow, old);
    }
}
