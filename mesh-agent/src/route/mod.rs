//! HTTP between two applications, where some object asks for it: what is spoken, which rule a request has, what is changed on its way,
//! and the exchange itself.
//!
//! ```text
//!  first bytes ─ detect ─► serve ─ matches ─► filter ─► upstream::cluster ─► upstream::http ─► the server's agent or the server
//! ```
//!
//! [`detect`], [`matches`], [`filter`], [`cors`] and [`guard`] are pure.

pub mod cors;
pub mod detect;
pub mod filter;
pub mod matches;
