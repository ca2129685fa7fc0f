//! `aya::Pod` for everything that user space writes to or reads from maps.
//!
//! SAFETY of each impl: the type is `#[repr(C)]`, has no padding (asserted: its size is the sum of its fields'), holds only integers
//! and arrays of integers, so every byte pattern is a valid value and no uninitialised byte is ever given to the kernel.
#![allow(unsafe_code)]

use crate::{addr, event, flow, policy, service, workload};

macro_rules! pod {
    ($($t:ty = $size:expr),* $(,)?) => {$(
        const _: () = assert!(core::mem::size_of::<$t>() == $size);
        // SAFETY: see the module's header.
        unsafe impl aya::Pod for $t {}
    )*};
}

pod! {
    addr::Addr = 16,
    addr::Endpoint = 16 + 2 + 2,
    flow::SockEntry = 20 + 20 + 6 * 4,
    flow::OriginKey = 8 + 16 + 2 + 6,
    flow::Origin = 20 + 20 + 2 * 4,
    flow::FlowKey = 16 + 16 + 2 + 2,
    flow::FlowEntry = 3 * 8 + 7 * 4 + 20,
    flow::StatsKey = 4 * 4,
    flow::Stats = 4 * 8,
    workload::PodEntry = 2 * 16 + 4 * 4,
    workload::WorkloadEntry = 4 * 4,
    workload::Settings = 4 * 8 + 4 * 4,
    service::ServiceEntry = 4 * 4,
    service::BackendKey = 2 * 4,
    policy::Op = 4 + 2 * 4 + 2 * 16,
    policy::Header = 3 * 4,
    policy::Program = 12 + crate::names::MAX_OPS * 44,
    policy::Member = 2 * 4,
    policy::Question = 2 * 16 + 2 * 4 + 2 * 4,
    policy::Answer = 3 * 4,
    event::Event = 3 * 8 + 6 * 4 + 3 * 20 + 4,
}

/// Reads a record of the ring buffer; `None` if it is not of this layout's size.
pub fn read_event(bytes: &[u8]) -> Option<event::Event> {
    if bytes.len() != size_of::<event::Event>() {
        return None;
    }
    // SAFETY: `bytes` has exactly the size of an `Event`, which is plain old data (see above); the read does not assume alignment.
    Some(unsafe { core::ptr::read_unaligned(bytes.as_ptr().cast()) })
}
