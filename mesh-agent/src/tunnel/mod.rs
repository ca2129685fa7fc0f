//! Between two agents: mutual TLS, and in it either HBONE, which Istio's data plane speaks, or a protocol of our own with less work a byte.
//!
//! ```text
//!  application ─ relay ─┬─ fast:  one stream at a time on a connection of its own, which then serves the next one
//!                       └─ hbone: HTTP/2 CONNECT, many streams a connection
//!                              │
//!                          tls::channel (records sealed and opened where they lie) ─ TCP
//! ```
//!
//! - [`tls`], [`verify`] and [`trust`]: who may talk to whom and for how long, the handshake, and the records.
//! - [`wire`]: the bytes of the protocol of our own, pure.
//! - [`client`] and [`pool`]: a connection to the peer's agent, at best one that is there already.
//! - [`server`]: what a peer's agent asks for, bounded in every way and answered only after the caller's judgement.
//!
//! All of it lives on one worker's thread: a connection stays where it was accepted, and every worker has pools of its own.
//! The future of a connection must run in a [`tokio::task::LocalSet`].

pub mod client;
pub mod counters;
pub mod error;
pub mod fast;
pub mod hbone;
pub mod pool;
pub mod queue;
pub mod server;
pub mod settings;
pub mod tls;
pub mod trust;
pub mod verify;
pub mod wire;

pub use client::{OpenRequest, TunnelStream, Validity};
pub use counters::TunnelCounters;
pub use error::{HandshakeError, Refusal, TunnelError};
pub use pool::{Dialer, PoolKey, Pools};
pub use server::{Accepted, Handler, Incoming, Rejected, Server};
pub use settings::Settings;
pub use tls::{CredentialSource, Credentials, CredentialsUnavailable};

/// The mesh's own ports, which no tunnel may lead to.
pub const OWN_PORTS: [u16; 3] = [15_001, 15_006, 15_008];

#[cfg(test)]
mod tests;
