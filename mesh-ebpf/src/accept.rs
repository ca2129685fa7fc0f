//! A connection arrives: what the kernel judged goes to the application, tunnels to the tunnel's listener, the rest to the agent.

use aya_ebpf::programs::SkLookupContext;
use mesh_common::event::counter;
use mesh_common::flow::STATE_CONNECTING;

use crate::ctx;
use crate::maps::*;

const SK_DROP: u32 = 0;
const SK_PASS: u32 = 1;

/// The sk_lookup hook, attached to enrolled pods' namespaces only.
#[inline(always)]
pub fn accept(ctx: &SkLookupContext) -> u32 {
    let Some(flow) = ctx::flow_of_lookup(ctx) else { return SK_PASS };
    if flow.source == flow.destination || flow.destination.is_loopback() {
        return SK_PASS;
    }
    let Some(settings) = settings() else { return SK_DROP };
    if flow.destination_port.get() as u32 == settings.tunnel_port {
        return SK_PASS;
    }
    // SAFETY: BPF_F_NO_PREALLOC keeps a found value from reuse while the program runs.
    if unsafe { FLOWS.get(flow) }.is_some_and(|f| f.state == STATE_CONNECTING) {
        return SK_PASS;
    }
    if LISTENERS.redirect_sk_lookup(ctx, flow.destination, 0).is_ok() {
        count(counter::STEERED);
        SK_PASS
    } else {
        count(counter::DROPPED);
        SK_DROP
    }
}
