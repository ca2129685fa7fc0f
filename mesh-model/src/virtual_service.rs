//! Istio's VirtualService as its author wrote it.

/// A VirtualService.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VirtualService {}
