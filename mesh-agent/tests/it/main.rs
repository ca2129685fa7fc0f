//! Tests on a real kernel, in namespaces, with real programs. They need root and what `cargo xtask test` builds before it runs them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod abi;
mod fail_closed;
mod l4;
mod net;
mod same_node;
mod services;
mod upgrade;
mod verdict;
#[allow(dead_code, reason = "what one module of tests does not ask, another does")]
mod world;
