//! The kernel's side: loading the programs, keeping their maps in step with the configuration, taking over sockets.

pub mod accept;
pub mod cgroup;
pub mod cni;
pub mod desired;
pub mod discovery;
pub mod events;
pub mod load;
pub mod maps;
pub mod numbers;

pub mod preflight;
pub mod sync;
