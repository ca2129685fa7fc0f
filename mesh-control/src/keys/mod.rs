//! Keys of JWT issuers: fetched here for the whole mesh, as RequestAuthentications name them, and given to the agents that need them.
//!
//! ```text
//!  RequestAuthentications ─► upkeep ─► schedule (when; pure) ─► fetch ─ https ─► issuer
//!                               └─► Book ─► service (an agent asks, and is answered when there is news)
//!                                      └──► status::writer (what could not be fetched), metrics
//! ```
//!
//! Each replica fetches for itself. What an issuer gave last stays in force while the issuer is away.

pub mod client;
pub mod fetch;
mod metrics;
pub mod schedule;
pub mod service;
pub mod upkeep;

pub use fetch::{FetchError, Fetched, Fetcher};
pub use metrics::show;
pub use schedule::{Book, KeySet, Schedule, Standing, Terms};
pub use service::KeysService;
pub use upkeep::Upkeep;

#[cfg(test)]
mod testing;
