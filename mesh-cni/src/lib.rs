//! The chained CNI plug-in: it holds a pod's start until the node's agent says that the pod is in the mesh, or that it does not belong
//! into it.
//!
//! ```text
//! container runtime ── ADD, after the network plug-in ──► mesh-cni ── Request ──► agent: opens the namespace, attaches, serves
//!                   ◄── prevResult, unchanged ─────────────────── ◄── Answer ───┘
//! ```
//!
//! - [`config`]: what the runtime says (environment and standard input), by the CNI specification 0.3.1 to 1.1.0;
//! - [`protocol`]: what plug-in and agent say to one another;
//! - [`run`]: one invocation;
//! - [`conflist`]: the plug-in in a network configuration, put in and taken out;
//! - [`install`]: the same for the files of a node.

pub mod client;
pub mod config;
pub mod conflist;
pub mod install;
pub mod protocol;
pub mod run;

/// Name of the binary, which is the plug-in's `type` in a network configuration.
pub const PLUGIN: &str = "mesh-cni";
