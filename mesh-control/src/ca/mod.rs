//! The authority: what it signs with, for whom, and what it answers.

pub mod authenticate;
pub mod authority;
pub mod csr;
pub mod hierarchy;
pub mod inventory;
pub mod keeper;
pub mod lifetime;
pub mod limit;
pub mod objects;
pub mod refusal;
pub mod rotation;
pub mod secret;
pub mod service;
pub mod state;
pub mod token_review;

pub use authenticate::{Authenticator, Caller, NodeTokens};
pub use authority::Authority;
pub use inventory::{Inventory, MeshInventory};
pub use keeper::Keeper;
pub use lifetime::{Lifetimes, Validity};
pub use objects::{ObjectNames, Objects};
pub use refusal::Refusal;
pub use service::CaService;
pub use token_review::{ReviewSettings, TokenReviews};

#[cfg(test)]
pub(crate) mod testing;
