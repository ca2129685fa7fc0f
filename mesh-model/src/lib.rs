//! The mesh as plain values, and Kubernetes, Gateway API and Istio objects converted into them or refused with a reason. No I/O.
//!
//! ```text
//! text ─ document ─► objects with their lines ─ convert ─► values ─ snapshot ─► the mesh at one moment ─ policy::compile ─► programs
//! ```

pub mod backend;
pub mod convert;
#[cfg(any(test, feature = "crd"))]
pub mod crd;
pub mod document;
pub mod gateway;
pub mod identity;
#[cfg(feature = "jwt")]
pub mod jwt;
pub mod limit;
pub mod manifests;
pub mod object;
pub mod policy;
pub mod problem;
pub mod route;
pub mod service;
pub mod service_entry;
pub mod settings;
pub mod snapshot;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod traffic;
pub mod virtual_service;
pub mod workload;
