//! The mesh's control plane: its certificate authority, and what it says of the users' objects.
//!
//! ```text
//!  agent ─ TLS ─► server ─► ca::service ─ who asks?      authenticate (a token a node)
//!                                       ─ what for?      csr (key, signature, one SPIFFE ID)
//!                                       ─ may it?        inventory (enrolled pods of that node)
//!                                       ─ sign           authority (root ► intermediate ► leaf)
//!
//!  RequestAuthentications ─► keys ─ https ─► issuers of tokens; agents call keys::service for what came of it
//!
//!  services beside the authority ask gate (of which node is the caller, and does it ask too often) and leadership (is it this replica's turn)
//!
//! the users' objects ─► status::conditions (what is said) ─► status::writer (by the replica that leads)
//! ```
//!
//! It serves Istio's `IstioCertificateService`, so that our agents and Istio's ztunnel can use it alike.

pub mod admin;
pub mod budgets;
pub mod ca;
pub mod config;
pub mod control;
pub mod files;
pub mod gate;
pub mod keys;
pub mod leadership;
pub mod log;
pub mod metrics;
pub mod ready;
pub mod server;
pub mod status;

pub use config::Config;
pub use control::Control;
