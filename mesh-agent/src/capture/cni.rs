//! The agent's side of the CNI plug-in, which holds a new pod's start until this says that it may run.
//!
//! ```text
//! mesh-cni ── ADD: pod, namespace, addresses ─► server ─► sources::finder ─► the configuration, with the pod's network ─► control loop
//!          ◄── captured, outside, or why not ── server ◄─ judge ◄── where every pod stands ◄──────── sockets, certificate, kernel's maps
//! ```
//!
//! - [`judge`]: what to answer; pure;
//! - [`server`]: the socket;
//! - [`installer`]: the plug-in on the node.

use std::path::{Path, PathBuf};

pub mod installer;
pub mod judge;
pub mod server;

/// Where the plug-in finds the agent of an instance, below the instance's directory.
pub fn socket(directory: &Path) -> PathBuf {
    directory.join("cni.sock")
}

/// Where an instance keeps what it was told, below its directory.
pub fn kept(directory: &Path) -> PathBuf {
    directory.join("attached")
}
