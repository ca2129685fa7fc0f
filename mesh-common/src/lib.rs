//! The contract between the kernel programs and the agent: map keys, map values, and the verdict that both sides compute.
//!
//! Rules for everything that crosses the boundary:
//! - `#[repr(C)]`, no implicit padding, no `bool` or `enum` in a map value (any byte pattern must be a valid value);
//! - IP addresses and ports inside keys are in network byte order as bytes (`[u8; 16]`, [`addr::Port`]); everything else is native;
//! - a change of any layout raises [`ABI_VERSION`], which is part of the pin path, so an agent never adopts maps of another shape.
#![no_std]

#[cfg(any(test, feature = "user"))]
extern crate std;

pub mod addr;
pub mod event;
pub mod flow;
pub mod names;
#[cfg(feature = "user")]
pub mod pod;
pub mod policy;
pub mod service;
pub mod verdict;
pub mod workload;

/// Version of every layout in this crate; part of the pin path ([`names::pin_dir`]).
pub const ABI_VERSION: u32 = 6;

#[cfg(test)]
mod tests;
