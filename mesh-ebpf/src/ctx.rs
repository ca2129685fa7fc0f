//! The only reads and writes of the kernel's context structures.
//!
//! SAFETY of every access in this module: the pointers are the program's own context, valid for its whole run; the verifier checks
//! each offset and width against what the program's type may touch, and refuses to load the object otherwise.

use core::ptr::read_volatile;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::{
    bpf_get_current_ancestor_cgroup_id, bpf_get_current_cgroup_id, bpf_get_netns_cookie, bpf_get_socket_cookie,
};
use aya_ebpf::programs::{SkLookupContext, SockAddrContext, SockOpsContext};
use mesh_common::addr::{Addr, Endpoint};
use mesh_common::flow::FlowKey;

const AF_INET: u32 = 2;
const SOCK_STREAM: u32 = 1;
const IPPROTO_TCP: u32 = 6;

/// Reads one word of a context. Volatile, and never under a condition: else the compiler joins the loads of two branches into one at a
/// computed address, which the verifier refuses.
macro_rules! word {
    ($ptr:expr, $($field:tt)+) => {
        read_volatile(&raw const (*$ptr).$($field)+)
    };
}

/// Four words in network byte order.
macro_rules! words {
    ($ptr:expr, $field:ident) => {
        [word!($ptr, $field[0]), word!($ptr, $field[1]), word!($ptr, $field[2]), word!($ptr, $field[3])]
    };
}

/// Which hook ran.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// The IPv4 hook.
    V4,
    /// The IPv6 hook; the address may be a mapped IPv4 one.
    V6,
}

/// Whether the socket is a TCP one.
#[inline(always)]
pub fn is_tcp(ctx: &SockAddrContext) -> bool {
    unsafe { (*ctx.sock_addr).type_ == SOCK_STREAM && (*ctx.sock_addr).protocol == IPPROTO_TCP }
}

/// The address in the socket address that the hook may change.
#[inline(always)]
pub fn user_endpoint(ctx: &SockAddrContext, family: Family) -> Endpoint {
    unsafe {
        let sa = ctx.sock_addr;
        let addr = match family {
            Family::V4 => Addr::from_be_v4((*sa).user_ip4),
            Family::V6 => Addr::from_be_v6(words!(sa, user_ip6)),
        };
        Endpoint::new(addr, u16::from_be((*sa).user_port as u16))
    }
}

/// Writes it. In the IPv4 hook `to` must be an IPv4 address.
#[inline(always)]
pub fn set_user_endpoint(ctx: &SockAddrContext, family: Family, to: &Endpoint) {
    unsafe {
        let sa = ctx.sock_addr;
        match family {
            Family::V4 => (*sa).user_ip4 = to.addr.to_be_v4(),
            Family::V6 => {
                let [a, b, c, d] = to.addr.to_be_v6();
                (*sa).user_ip6[0] = a;
                (*sa).user_ip6[1] = b;
                (*sa).user_ip6[2] = c;
                (*sa).user_ip6[3] = d;
            }
        }
        (*sa).user_port = u16::from_ne_bytes(to.port.0) as u32;
    }
}

/// Cookie of the socket's network namespace.
#[inline(always)]
pub fn netns_of_addr(ctx: &SockAddrContext) -> u64 {
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

/// The socket itself.
#[inline(always)]
pub fn sk_of_addr(ctx: &SockAddrContext) -> *mut bpf_sock {
    unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk }
}

/// The socket itself; null while it is but a request.
#[inline(always)]
pub fn sk_of_ops(ctx: &SockOpsContext) -> *mut bpf_sock {
    unsafe { (*ctx.ops).__bindgen_anon_2.sk }
}

/// The cgroup of the running process.
#[inline(always)]
pub fn current_cgroup() -> u64 {
    unsafe { bpf_get_current_cgroup_id() }
}

/// The ancestor of the running process's cgroup at a depth, 0 if there is none so deep.
#[inline(always)]
pub fn current_ancestor(level: u32) -> u64 {
    unsafe { bpf_get_current_ancestor_cgroup_id(level as i32) }
}

/// Cookie of the socket's network namespace.
#[inline(always)]
pub fn netns_of_ops(ctx: &SockOpsContext) -> u64 {
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

/// Cookie of the socket.
#[inline(always)]
pub fn cookie_of_ops(ctx: &SockOpsContext) -> u64 {
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

/// Both ends of a socket, as of one that connected: local is the client.
#[inline(always)]
pub fn flow_of_ops(ctx: &SockOpsContext) -> FlowKey {
    unsafe {
        let ops = ctx.ops;
        let (remote4, local4) = (word!(ops, remote_ip4), word!(ops, local_ip4));
        let (remote6, local6) = (words!(ops, remote_ip6), words!(ops, local_ip6));
        // An IPv6 socket with a mapped peer is an IPv4 connection. Its IPv4 field tells nothing: on an accepted IPv6 connection the kernel
        // writes a loopback address there.
        let mapped = remote6[0] == 0 && remote6[1] == 0 && remote6[2] == 0xffffu32.to_be();
        let v4 = word!(ops, family) == AF_INET || mapped;
        FlowKey {
            source: if v4 { Addr::from_be_v4(local4) } else { Addr::from_be_v6(local6) },
            destination: if v4 { Addr::from_be_v4(remote4) } else { Addr::from_be_v6(remote6) },
            source_port: mesh_common::addr::Port::new(word!(ops, local_port) as u16),
            destination_port: mesh_common::addr::Port::new(u32::from_be(word!(ops, remote_port)) as u16),
        }
    }
}

/// Old and new state in a state callback.
#[inline(always)]
pub fn states_of_ops(ctx: &SockOpsContext) -> (u32, u32) {
    unsafe { ((*ctx.ops).__bindgen_anon_1.args[0], (*ctx.ops).__bindgen_anon_1.args[1]) }
}

/// The socket's counters: bytes the peer acknowledged, bytes received. SYN and FIN count one each.
#[inline(always)]
pub fn bytes_of_ops(ctx: &SockOpsContext) -> (u64, u64) {
    unsafe { ((*ctx.ops).bytes_acked, (*ctx.ops).bytes_received) }
}

/// Both ends of an arriving TCP connection (remote is the client), or nothing for another protocol.
#[inline(always)]
pub fn flow_of_lookup(ctx: &SkLookupContext) -> Option<FlowKey> {
    unsafe {
        let l = ctx.lookup;
        if (*l).protocol != IPPROTO_TCP {
            return None;
        }
        let (remote4, local4) = (word!(l, remote_ip4), word!(l, local_ip4));
        let (remote6, local6) = (words!(l, remote_ip6), words!(l, local_ip6));
        let v4 = word!(l, family) == AF_INET;
        Some(FlowKey {
            source: if v4 { Addr::from_be_v4(remote4) } else { Addr::from_be_v6(remote6) },
            destination: if v4 { Addr::from_be_v4(local4) } else { Addr::from_be_v6(local6) },
            source_port: mesh_common::addr::Port(word!(l, remote_port).to_ne_bytes()),
            destination_port: mesh_common::addr::Port::new(word!(l, local_port) as u16),
        })
    }
}
