//! Where the agent's configuration comes from.

pub use mesh_sources::manifests;
