//! Budgets of RateLimits with `scope: service`: each node's agent counts against a share, and shares go to where the requests are.
//!
//! ```text
//!  agent ─ need: what was asked for, what it holds ─► service ─ is it that node's to ask?   (the snapshot)
//!                                                             ─ who holds what?             ledger (pure)
//!        ◄─ loan: a share for a few seconds ─────────
//! ```
//!
//! The ledger is memory of the replica that leads. One that begins to lead lends nobody more than he holds until whatever was lent before it
//! must have lapsed.

pub mod ledger;
mod service;
mod split;

pub use ledger::{BudgetId, Ledger};
pub use service::{BudgetService, LONGEST};
