//! Budgets that one agent hands to the next, so that an upgrade begins with what is left of them. Those of one client or header value are not
//! handed over: they are known by hashes that are of one agent alone.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use mesh_model::limit::Limit;
use serde::{Deserialize, Serialize};

/// How long what was handed over is good for.
const GOOD: Duration = Duration::from_secs(30);

/// What is left of a budget.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Carried {
    /// Which it is.
    pub budget: CarriedName,
    /// As in [`Limit::requests`].
    pub requests: u32,
    /// As in [`Limit::per`].
    pub per: Duration,
    /// As in [`Limit::burst`].
    pub burst: u32,
    /// What may be taken of it at once, in millionths of one.
    pub left: u64,
}

/// Names a budget in words that the next agent knows too.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct CarriedName {
    /// The RateLimit, `namespace/name`.
    pub limit: String,
    /// The place of the limit in it.
    pub index: usize,
    /// The Service, `namespace/name`, if it is a budget of one, or of what is sent to one.
    pub service: Option<String>,
    /// The workload's UID, if it is a workload's.
    pub workload: Option<String>,
}

/// What an agent was handed, until it is used.
#[derive(Debug, Default)]
pub(super) struct Handed {
    until: Option<Instant>,
    budgets: HashMap<CarriedName, Carried>,
}

impl Handed {
    pub(super) fn new(now: Instant, carried: Vec<Carried>) -> Handed {
        Handed { until: Some(now + GOOD), budgets: carried.into_iter().map(|one| (one.budget.clone(), one)).collect() }
    }

    /// What is left of a budget, if it was handed over and is of the same limit. Only once.
    pub(super) fn take(&mut self, now: Instant, name: &CarriedName, limit: &Limit) -> Option<u64> {
        if self.until.is_none_or(|until| now >= until) {
            self.budgets = HashMap::new();
            return None;
        }
        let carried = self.budgets.remove(name)?;
        let same = (carried.requests, carried.per, carried.burst) == (limit.requests, limit.per, limit.burst);
        same.then_some(carried.left)
    }
}
