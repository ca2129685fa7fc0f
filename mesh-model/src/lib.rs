//! The mesh as plain values, and Kubernetes, Gateway API and Istio objects converted into them or refused with a reason. No I/O.

pub mod identity;
pub mod service;
pub mod workload;
