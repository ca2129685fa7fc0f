//! Tests on a real kernel, in namespaces, with real programs. They need root and what `cargo xtask test` builds before it runs them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod abi;
mod cni;
mod config;
mod egress;
mod explain;
mod fail_closed;
#[allow(dead_code, reason = "what one module of tests does not ask, another does")]
mod foreign;
mod handover;
mod hostile;
mod http;
mod interop;
mod l4;
mod leaving;
mod limits;
mod mtls;
mod net;
mod observe;
mod policy;
mod restarts;
mod same_node;
mod services;
mod sockets;
#[allow(dead_code, reason = "it serves the unit tests of the metrics too")]
#[path = "../../src/ops/metrics/tests/strict.rs"]
mod strict;
mod upgrade;
mod verdict;
#[allow(dead_code, reason = "what one module of tests does not ask, another does")]
mod world;
