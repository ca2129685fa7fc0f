//! The node agent: a byte enters by [`capture`], is judged by [`policy`], and leaves by [`tunnel`] or [`upstream`].
//!
//! ```text
//!  pod A (netns a)                          node 1 │ node 2                              pod B (netns b)
//!  app ─ connect(B:80) ─► kernel verdict           │                                               app
//!         │ direct ──────────── same node, judged in the kernel, no hop ─────────────────────────► ▲
//!         └► agent: outbound                       │                                               │
//!              capture::accept → upstream::resolve → tunnel::client ══ mTLS ══► tunnel::server      │
//!                                                  │        → policy::decide → upstream::connect ──►┘
//!  plaintext from outside ─► sk_lookup, judged in the kernel: yes ─────────────────────────────────────► app
//!         └► no, or only the agent can say: inbound ─► policy::decide → reset and log, or upstream::connect ─► app
//! ```
//!
//! Dependencies point one way: `mesh-model` ← steps (`capture` … `upstream`) ← [`outbound`]/[`inbound`] ← [`agent`]; `sources`
//! feeds the model; `ops` observes.

pub mod agent;
pub mod capture;
pub mod config;
pub mod conn;
pub mod identity;
pub mod inbound;
pub mod link;
pub mod names;
pub mod ops;
pub mod outbound;
pub mod outcome;
pub mod policy;
pub mod route;
pub mod shared;
pub mod sources;
pub mod sys;
pub mod tunnel;
pub mod upstream;
