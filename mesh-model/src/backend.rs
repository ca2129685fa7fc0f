//! How requests to a Service are treated whatever route they came by: Gateway API's `XBackendTrafficPolicy` (GEP-3388) as values.

use std::sync::Arc;
use std::time::Duration;

use crate::route::{ConditionStatus, Session};
use crate::service::NamespacedName;

/// An `XBackendTrafficPolicy`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackendTrafficPolicy {
    /// Its name. Its targets are in the same namespace.
    pub name: NamespacedName,
    /// `metadata.creationTimestamp`, seconds since 1970, if given: of two for one Service the older holds.
    pub created: Option<i64>,
    /// `metadata.generation`, if given.
    pub generation: Option<i64>,
    /// Names of the Services, each with its number in `spec.targetRefs`. Targets of other kinds are for other controllers.
    pub targets: Vec<(usize, Arc<str>)>,
    /// How many retries there may be; `None`: as many as routes ask for.
    pub retry_budget: Option<RetryBudget>,
    /// Session persistence, where a route's rule has none of its own.
    pub session: Option<Session>,
}

/// How many retries all the requests to a Service that one agent sends may have together.
///
/// The defaults are the Gateway API's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RetryBudget {
    /// Percent of the requests of the interval.
    pub percent: u32,
    /// Over which requests are counted.
    pub interval: Duration,
    /// So many are allowed whatever the percentage says, ...
    pub minimum: u32,
    /// ... in this time.
    pub minimum_interval: Duration,
}

impl Default for RetryBudget {
    fn default() -> Self {
        RetryBudget { percent: 20, interval: Duration::from_secs(10), minimum: 10, minimum_interval: Duration::from_secs(1) }
    }
}

/// What is to be said of a policy about one of its targets (`PolicyAncestorStatus` of the Gateway API).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct TargetStatus {
    /// The policy.
    pub policy: NamespacedName,
    /// Number of the target in `spec.targetRefs`.
    pub target: usize,
    /// `Accepted`.
    pub accepted: ConditionStatus,
    /// `metadata.generation` of the policy that this is said of, if it has one.
    pub generation: Option<i64>,
}
