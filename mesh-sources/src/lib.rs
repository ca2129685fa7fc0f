//! Where the mesh's configuration is read from: reads, follows and publishes it as [`mesh_model::snapshot::Snapshot`]s. What the objects
//! mean is decided in `mesh-model`; here is only the reading.

pub mod manifests;
