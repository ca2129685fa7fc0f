//! How many requests a workload takes (RateLimit, `nodemesh.dev`), as values.

use std::sync::Arc;
use std::time::Duration;

use crate::policy::Scope;
use crate::service::NamespacedName;

/// Limits that one object may hold: each costs every request a look.
pub const MOST_LIMITS: usize = 16;

/// A RateLimit. A request must be within each of its limits, and within those of every other that holds for the workload.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct RateLimit {
    /// Its name.
    pub name: NamespacedName,
    /// The workloads of its namespace that it is about.
    pub targets: Scope,
    /// Its limits, in the order of the object.
    pub limits: Vec<Limit>,
    /// Who counts.
    pub scope: LimitScope,
}

/// One limit: a bucket that holds `burst` and gets `requests` in each `per`, evenly.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Limit {
    /// Its place in `spec.limits`.
    pub index: usize,
    /// How many there may be, at least 1.
    pub requests: u32,
    /// In which time, more than none.
    pub per: Duration,
    /// How many there may be at once, at least 1.
    pub burst: u32,
    /// For whom there is a budget.
    pub by: LimitBy,
}

/// For whom a limit has a budget.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum LimitBy {
    /// One for all.
    Everyone,
    /// One for each proven identity of a client. Clients without one share a budget, whatever their addresses.
    Source,
    /// One for each value of a header, named in lower case. Requests without it share a budget.
    Header(Arc<str>),
    /// One for the requests below a path, in whole elements; other requests are not counted. In the form in which paths are forwarded.
    PathPrefix(Arc<str>),
}

impl LimitBy {
    /// Whether only HTTP can show what is asked for, so that connections of other protocols are not counted.
    pub fn asks_http(&self) -> bool {
        match self {
            LimitBy::Everyone | LimitBy::Source => false,
            LimitBy::Header(_) | LimitBy::PathPrefix(_) => true,
        }
    }
}

/// Who counts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum LimitScope {
    /// The agent of each pod, for this pod alone.
    #[default]
    Endpoint,
    /// The agents of all pods of a Service together. Each has the share of the limit that its pods are of the Service's ready ones.
    Service,
}

/// A RateLimit as it holds for one workload.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct AppliedLimit {
    /// The object.
    pub limit: Arc<RateLimit>,
    /// The share in a Service's budget; `None` if the workload has the limits for itself.
    pub share: Option<Share>,
}

/// A workload's share in the budget of a Service: one of `of` equal ones.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Share {
    /// The Service.
    pub service: NamespacedName,
    /// Pods among which the budget is shared: those ready, and the workload itself; at least 1.
    pub of: u32,
}
