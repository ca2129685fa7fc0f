//! Who the node's pods are: one certificate an identity, its key made here, renewed before it ends.
//!
//! ```text
//!  ensure(identities) ─► store ── key, CSR ─► issuer ── gRPC ─► istiod or mesh-control
//!                          │ ◄─ chain ── chain::accept: our key? our identity? a chain to the roots?
//!                          └─► watch::Receiver<CertState>, one an identity
//! ```
//!
//! Private keys are in memory only. An old certificate is used as long as it is valid, however often its renewal fails.

pub mod chain;
pub mod client;
pub mod issuer;
pub mod plan;
pub mod spiffe;
pub mod state;
pub mod store;
mod upkeep;
mod wiring;

pub use chain::Certificate;
pub use client::CaClient;
pub use issuer::{IssueError, IssuedChain, Issuer};
pub use state::{CertInfo, CertState, CertificateWatch, Unusable};
pub use store::{Driver, Observer, SecretStore, StoreSettings};
pub use wiring::{renew_action, start};

/// The certificates of this node, as the other parts of the agent hold them.
pub type Secrets = SecretStore;

#[cfg(test)]
mod testing;
