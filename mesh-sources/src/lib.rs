//! Where the mesh's configuration is read from: reads, follows and publishes it as [`mesh_model::snapshot::Snapshot`]s. What the objects
//! mean is decided in `mesh-model`; here is only the reading.
//!
//! ```text
//! a directory of YAML ── manifests ─┐
//!                                   ├─ Source ─► watch of Snapshots, watch of SourceStatus
//! a Kubernetes API server ── kube ──┘
//! ```

pub mod kube;
pub mod manifests;
mod problems;
pub mod source;
pub mod status;

pub use source::{ChoiceError, OpenError, Source, SourceSettings, first_snapshot};
pub use status::SourceStatus;
