//! The kernel programs: entry points only, one line of work each.
#![no_std]
#![no_main]

mod accept;
mod closing;
mod connect;
mod ctx;
mod event;
mod maps;
mod probe;
mod sockops;
mod storage;

use aya_ebpf::macros::{cgroup_sock_addr, sk_lookup, sock_ops, xdp};
use aya_ebpf::programs::{SkLookupContext, SockAddrContext, SockOpsContext, XdpContext};

use crate::ctx::Family;

/// A pod's process connects over IPv4.
#[cgroup_sock_addr(connect4)]
pub fn mesh_connect4(ctx: SockAddrContext) -> i32 {
    connect::connect(&ctx, Family::V4)
}

/// A pod's process connects over IPv6, or to IPv4 with a mapped address.
#[cgroup_sock_addr(connect6)]
pub fn mesh_connect6(ctx: SockAddrContext) -> i32 {
    connect::connect(&ctx, Family::V6)
}

/// A process asks whom it is connected to.
#[cgroup_sock_addr(getpeername4)]
pub fn mesh_peername4(ctx: SockAddrContext) -> i32 {
    connect::peername(&ctx, Family::V4)
}

/// As [`mesh_peername4`].
#[cgroup_sock_addr(getpeername6)]
pub fn mesh_peername6(ctx: SockAddrContext) -> i32 {
    connect::peername(&ctx, Family::V6)
}

/// A socket that [`mesh_connect4`] judged gets its local port, its connection, and its end; so does one that [`mesh_accept`] judged.
#[sock_ops]
pub fn mesh_sockops(ctx: SockOpsContext) -> u32 {
    sockops::sockops(&ctx);
    1
}

/// A connection arrives in a pod's network namespace.
#[sk_lookup]
pub fn mesh_accept(ctx: SkLookupContext) -> u32 {
    accept::accept(&ctx)
}

/// Answers a `Question` with the kernel's copy of the verdict; run by `BPF_PROG_TEST_RUN`, never attached.
#[xdp]
pub fn mesh_verdict(ctx: XdpContext) -> u32 {
    probe::probe(&ctx)
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// Lets the kernel's GPL-only helpers be used.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
