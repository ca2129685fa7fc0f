//! HTTP between two applications, where some object asks for it: what is spoken, which rule a request has, what is changed on its way,
//! and the exchange itself.
//!
//! ```text
//!  first bytes ─ detect ─► serve ─ matches ─► filter ─► upstream::cluster ─► upstream::http ─► the server's agent or the server
//! ```
//!
//! [`asked`], [`detect`], [`guard`], [`request`], [`mod@matches`], [`apply`], [`filter`], [`cors`], [`session`], [`retry`], [`limit`],
//! [`sequence`], [`stage`] and [`reply`] are pure.

pub mod apply;
pub mod asked;
pub mod attempt;
pub mod body;
pub mod cors;
pub mod counters;
pub mod detect;
pub mod egress;
pub mod exchange;
pub mod filter;
pub mod first;
pub mod guard;
pub mod limit;
pub mod matches;
pub mod mirror;
pub mod plan;
pub mod reply;
pub mod request;
pub mod retry;
pub mod sequence;
pub mod serve;
pub mod session;
pub mod stage;
pub mod tables;
pub mod upgrade;
