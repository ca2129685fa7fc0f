//! A connection arrives: what the kernel judged goes to the application, tunnels to the tunnel's listener, the rest to the agent.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::{bpf_ktime_get_ns, bpf_sk_assign};
use aya_ebpf::programs::SkLookupContext;
use mesh_common::addr::Endpoint;
use mesh_common::event::*;
use mesh_common::flow::{FlowKey, KIND_PLAINTEXT};
use mesh_common::policy::Facts;
use mesh_common::workload::{WORKLOAD_HELD, WorkloadEntry};

use crate::connect::evaluate;
use crate::ctx;
use crate::event;
use crate::maps::*;

const SK_DROP: u32 = 0;
const SK_PASS: u32 = 1;
/// `BPF_SK_LOOKUP_F_REPLACE`: an earlier choice of a socket may be taken back.
const REPLACE: u64 = 1;
/// How long a judgement opens the way: longer than a SYN is repeated (127 s by default), and with SYN cookies the last segment of the
/// handshake asks once more. An established connection does not ask at all.
const HANDSHAKE_NS: u64 = 150_000_000_000;

/// The sk_lookup hook, attached to enrolled pods' namespaces only.
#[inline(always)]
pub fn accept(ctx: &SkLookupContext) -> u32 {
    let Some(flow) = ctx::flow_of_lookup(ctx) else { return SK_PASS };
    // A loopback source cannot come from outside: the kernel calls it martian.
    if flow.source == flow.destination || flow.destination.is_loopback() || flow.source.is_loopback() {
        return SK_PASS;
    }
    let Some(settings) = settings() else { return SK_DROP };
    let port = flow.destination_port.get() as u32;
    if port == settings.tunnel_port {
        return SK_PASS;
    }
    // SAFETY (all lookups here): BPF_F_NO_PREALLOC keeps a found value from reuse while the program runs.
    if let Some(judged) = unsafe { FLOWS.get(flow) } {
        // What was plaintext is judged each time: its note outlives no connection, but a policy may have changed under it.
        // SAFETY: the helper has no preconditions.
        if judged.kind != KIND_PLAINTEXT && unsafe { bpf_ktime_get_ns() } - judged.started_ns < HANDSHAKE_NS {
            return SK_PASS;
        }
    }
    // First the way to the agent: without an agent plaintext has none, also where it would be allowed.
    if LISTENERS.redirect_sk_lookup(ctx, flow.destination, 0).is_err() {
        count(counter::DROPPED);
        return SK_DROP;
    }
    if let Some(workload) = unsafe { WORKLOADS.get(flow.destination) }
        && port != settings.outbound_port
        && allows_nobody(&flow, port, workload)
        // SAFETY: the context is the program's own; no socket takes back the choice made above.
        && unsafe { bpf_sk_assign(ctx.as_ptr(), core::ptr::null_mut(), REPLACE) } == 0
    {
        count(counter::PLAINTEXT);
        return SK_PASS;
    }
    count(counter::STEERED);
    SK_PASS
}

/// Whether a client without an identity may reach the application. A no is the agent's to say, which tells the client and the log.
#[inline(always)]
fn allows_nobody(flow: &FlowKey, port: u32, workload: &WorkloadEntry) -> bool {
    if workload.plaintext == 0 || workload.flags & WORKLOAD_HELD != 0 {
        return false;
    }
    // SAFETY: see `accept`.
    let Some(program) = (unsafe { POLICIES.get(workload.plaintext) }) else { return false };
    let facts = Facts { source: flow.source, destination: flow.destination, port, identified: 0 };
    let decision = evaluate(program, &facts, 0);
    if decision.allowed && decision.dry_run != 0 {
        event::send(EVENT_DRY_RUN, |record| {
            record.flags = EVENT_PLAINTEXT;
            record.policy = decision.dry_run;
            record.destination = workload.workload;
            record.source = number_of(flow);
            record.client = Endpoint { addr: flow.source, port: flow.source_port, pad: [0; 2] };
            record.server = Endpoint { addr: flow.destination, port: flow.destination_port, pad: [0; 2] };
            record.dialled = record.server;
        });
    }
    decision.allowed
}

/// The number of the pod whose address the client has, 0 if it is none's. A name for the log, never evidence.
#[inline(always)]
pub fn number_of(flow: &FlowKey) -> u32 {
    // SAFETY: see `accept`.
    unsafe { WORKLOADS.get(flow.source) }.map_or(0, |workload| workload.workload)
}
