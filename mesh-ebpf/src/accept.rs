//! A connection arrives: what the kernel judged goes to the application, tunnels to the tunnel's listener, the rest to the agent.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::programs::SkLookupContext;
use mesh_common::event::counter;

use crate::ctx;
use crate::maps::*;

const SK_DROP: u32 = 0;
const SK_PASS: u32 = 1;
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
    if flow.destination_port.get() as u32 == settings.tunnel_port {
        return SK_PASS;
    }
    // SAFETY: BPF_F_NO_PREALLOC keeps a found value from reuse while the program runs.
    if let Some(judged) = unsafe { FLOWS.get(flow) } {
        // SAFETY: the helper has no preconditions.
        if unsafe { bpf_ktime_get_ns() } - judged.started_ns < HANDSHAKE_NS {
            return SK_PASS;
        }
    }
    if LISTENERS.redirect_sk_lookup(ctx, flow.destination, 0).is_ok() {
        count(counter::STEERED);
        SK_PASS
    } else {
        count(counter::DROPPED);
        SK_DROP
    }
}
