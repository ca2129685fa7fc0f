//! How many requests a workload takes (RateLimit, `nodemesh.dev`), as values.

use std::collections::BTreeMap;
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
    /// The workloads of its namespace that it is about; none, if only ServiceEntries are targeted.
    pub targets: Scope,
    /// The ServiceEntries of its namespace that are targeted. What goes to their hosts is counted by the agents of the clients, there being
    /// no other.
    pub entries: Vec<Arc<str>>,
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

    /// Whether a budget of a Service is lent to those that need it. One for each client or header value is not: there may be any number of
    /// those, and each pod has an equal share in every one.
    pub fn is_lent(&self) -> bool {
        match self {
            LimitBy::Everyone | LimitBy::PathPrefix(_) => true,
            LimitBy::Source | LimitBy::Header(_) => false,
        }
    }
}

/// Who counts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum LimitScope {
    /// The agent of each pod, for this pod alone: of each that is asked or, where a ServiceEntry is targeted, of each that asks.
    #[default]
    Endpoint,
    /// The agents of all pods of a Service together. mesh-control lends the budget to those that need it; without it each has the share that
    /// its pods are of the Service's ready ones. Where [`LimitBy::is_lent`] is false, each pod always has an equal share.
    Service,
}

/// A RateLimit as it holds for one workload.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct AppliedLimit {
    /// The object.
    pub limit: Arc<RateLimit>,
    /// The host of a ServiceEntry: what the workload sends to it is counted. `None`: what the workload is sent.
    pub towards: Option<NamespacedName>,
    /// The share in a Service's budget; `None` if the workload has the limits for itself.
    pub share: Option<Share>,
}

/// A workload's share in the budget of a Service: one of `of` equal ones, or what its node has.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Share {
    /// The Service.
    pub service: NamespacedName,
    /// Pods among which the budget is shared: those ready, and the workload itself; at least 1.
    pub of: u32,
    /// What the node has of a budget that nobody lends.
    pub node: Fair,
}

/// A budget, in the parts in which it is shared and lent: millionths.
pub const WHOLE: u32 = 1_000_000;

/// The part of a budget that a node has without anybody's word: that of its ready pods among all ready ones.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Fair {
    /// Pods of the node, at least 1.
    pub here: u32,
    /// Pods of all nodes, at least as many.
    pub of: u32,
}

impl Fair {
    /// In parts of [`WHOLE`], rounded down: all nodes together have no more than the whole.
    pub fn parts(self) -> u32 {
        let parts = u64::from(WHOLE) * u64::from(self.here) / u64::from(self.of.max(1));
        u32::try_from(parts).unwrap_or(WHOLE).min(WHOLE)
    }
}

/// Who shares the budgets of a RateLimit for a Service, or for the host of a ServiceEntry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sharing {
    /// The object.
    pub limit: Arc<RateLimit>,
    /// Ready endpoints of the Service, wherever they are; of a host, the pods of the mesh that know it.
    pub ready: u32,
    /// By node, its pods in the mesh that are ready endpoints, or that know the host. A node with none that is ready is here too.
    pub nodes: BTreeMap<Arc<str>, u32>,
}

impl Sharing {
    /// What a node has that nobody lends anything. One whose pods are not ready, and may be dialled all the same, counts as one of them more.
    pub fn fair(&self, node: &str) -> Fair {
        match self.nodes.get(node) {
            Some(&here) if here > 0 => Fair { here, of: self.ready.max(here) },
            _ => Fair { here: 1, of: self.ready.saturating_add(1) },
        }
    }
}
