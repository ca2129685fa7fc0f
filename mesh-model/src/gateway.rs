//! Gateway API routes as their authors wrote them.

/// A route of the Gateway API.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RouteObject {}
