//! Rate limits in force for a workload (RateLimit, `nodemesh.dev`), and the budgets of all of this node's.
//!
//! A budget is of one limit and one workload, whichever worker thread asks. It lives as long as some workload's policy has it, so that a
//! changed configuration in which the limit is the same takes none away and gives none back. It is not handed to the next agent of an
//! upgrade: there every budget begins full.
//!
//! A limit with a budget for each client or header knows [`MAX_KEYS`] of them. With one more, the one that has been idle for longest is
//! forgotten and would begin full if it came back: whoever can invent values of a header gets more than the limit, but never more memory.
//! `nodemesh_rate_limit_keys_forgotten` counts those that still owed something.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use http::HeaderMap;
use mesh_model::identity::Identity;
use mesh_model::limit::{AppliedLimit, Limit, LimitBy, Share};
use mesh_model::service::NamespacedName;
use mesh_model::workload::WorkloadUid;
use parking_lot::Mutex;

use crate::ops::metrics::{Kind, Metrics};
use crate::route::limit::{Bucket, Buckets, Exceeded, Remaining};

/// Clients, or values of a header, that one limit of one workload tells apart.
pub const MAX_KEYS: usize = 10_000;

/// What is to be counted.
#[derive(Clone, Copy)]
pub struct Counted<'a> {
    /// The client's proven identity.
    pub source: Option<&'a Identity>,
    /// The request; `None` for a connection that is no HTTP.
    pub request: Option<CountedRequest<'a>>,
}

/// A request, as it is forwarded.
#[derive(Clone, Copy)]
pub struct CountedRequest<'a> {
    /// Its path in normal form, without the query.
    pub path: &'a str,
    /// Its headers.
    pub headers: &'a HeaderMap,
}

/// How a budget stands after it was asked: what the `RateLimit-*` headers say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Standing {
    /// How many there may be at once.
    pub limit: u32,
    /// How many there may be at once now.
    pub remaining: u32,
    /// In which time the budget is whole again.
    pub reset: Duration,
    /// In which time there may be another one, if there may be none now.
    pub retry_after: Option<Duration>,
}

/// A budget is used up. Nothing was taken of any other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refused {
    /// The RateLimit.
    pub limit: NamespacedName,
    /// How its budget stands.
    pub standing: Standing,
}

/// The limits that hold for a workload, with their budgets. Equal values limit equally. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Limits {
    applied: Arc<[AppliedLimit]>,
    held: Arc<[Held]>,
}

impl PartialEq for Limits {
    fn eq(&self, other: &Self) -> bool {
        self.applied == other.applied
    }
}

impl Eq for Limits {}

impl Hash for Limits {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.applied.hash(state);
    }
}

/// One limit.
#[derive(Debug)]
struct Held {
    name: NamespacedName,
    /// How many there may be at once.
    burst: u32,
    budget: Arc<Budget>,
    refusals: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Budget {
    /// What it was made for.
    limit: Limit,
    buckets: Shape,
    hasher: RandomState,
}

#[derive(Debug)]
enum Shape {
    One(Bucket),
    /// By a keyed hash of what tells them apart, which may be long and secret.
    Keyed(Buckets<u64>),
}

impl Budget {
    fn new(limit: &Limit, per: Duration, burst: u32, hasher: RandomState) -> Self {
        let buckets = match limit.by {
            LimitBy::Everyone | LimitBy::PathPrefix(_) => Shape::One(Bucket::new(limit.requests, per, burst)),
            LimitBy::Source | LimitBy::Header(_) => Shape::Keyed(Buckets::new(limit.requests, per, burst, MAX_KEYS)),
        };
        Budget { limit: limit.clone(), buckets, hasher }
    }

    fn reshape(&self, per: Duration, burst: u32) {
        match &self.buckets {
            Shape::One(bucket) => bucket.reshape(per, burst),
            Shape::Keyed(buckets) => buckets.reshape(per, burst),
        }
    }

    /// Whose budget it is; `None` if the limit is not about this.
    fn key(&self, counted: &Counted<'_>) -> Option<u64> {
        match (&self.limit.by, counted.request) {
            (LimitBy::Everyone, _) => Some(0),
            (LimitBy::Source, _) => Some(self.hasher.hash_one(counted.source)),
            (LimitBy::Header(name), Some(request)) => {
                let mut hasher = self.hasher.build_hasher();
                // Each value is hashed with its length, so that two are never taken for one.
                request.headers.get_all(&**name).iter().for_each(|value| value.as_bytes().hash(&mut hasher));
                Some(hasher.finish())
            }
            (LimitBy::PathPrefix(prefix), Some(request)) => is_below(request.path, prefix).then_some(0),
            (LimitBy::Header(_) | LimitBy::PathPrefix(_), None) => None,
        }
    }

    fn take(&self, now: Instant, key: u64) -> Result<Remaining, Exceeded> {
        match &self.buckets {
            Shape::One(bucket) => bucket.take(now, 1),
            Shape::Keyed(buckets) => buckets.take(now, &key, 1),
        }
    }

    fn give_back(&self, key: u64) {
        match &self.buckets {
            Shape::One(bucket) => bucket.give_back(1),
            Shape::Keyed(buckets) => buckets.give_back(&key, 1),
        }
    }
}

/// As the Gateway API matches a prefix: in whole elements, a slash at its end being of no matter.
fn is_below(path: &str, prefix: &str) -> bool {
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl Limits {
    /// Takes one of each budget that it concerns, or none of any. Returns how the one with the least left stands, if it concerns any.
    pub fn take(&self, now: Instant, counted: &Counted<'_>) -> Result<Option<Standing>, Refused> {
        let mut taken: Vec<(&Held, u64)> = Vec::with_capacity(self.held.len());
        let mut tightest: Option<Standing> = None;
        for held in &*self.held {
            let Some(key) = held.budget.key(counted) else { continue };
            match held.budget.take(now, key) {
                Ok(Remaining { left, reset }) => {
                    taken.push((held, key));
                    let standing = Standing { limit: held.burst, remaining: left, reset, retry_after: None };
                    let tighter = |than: &Standing| (left, than.reset) < (than.remaining, reset);
                    if tightest.as_ref().is_none_or(tighter) {
                        tightest = Some(standing);
                    }
                }
                Err(Exceeded { retry_after, reset }) => {
                    taken.iter().for_each(|(held, key)| held.budget.give_back(*key));
                    held.refusals.fetch_add(1, Ordering::Relaxed);
                    let standing = Standing { limit: held.burst, remaining: 0, reset, retry_after: Some(retry_after) };
                    return Err(Refused { limit: held.name.clone(), standing });
                }
            }
        }
        Ok(tightest)
    }
}

/// Names a budget.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct BudgetKey {
    limit: NamespacedName,
    index: usize,
    /// Of which Service's budget it is a share.
    service: Option<NamespacedName>,
    workload: WorkloadUid,
}

/// The budgets of this node's workloads, shared by all worker threads.
#[derive(Debug, Default)]
pub struct Registry {
    budgets: Mutex<HashMap<BudgetKey, Weak<Budget>>>,
    refusals: Mutex<BTreeMap<NamespacedName, Weak<AtomicU64>>>,
    hasher: RandomState,
}

impl Registry {
    /// The limits of a workload, with the budgets that they have already where they are the same; `None` if there are none.
    pub fn limits(&self, workload: &WorkloadUid, applied: &[AppliedLimit]) -> Option<Limits> {
        let held = applied.iter().flat_map(|one| one.limit.limits.iter().map(move |limit| (one, limit)));
        let held: Arc<[Held]> = held.map(|(one, limit)| self.held(workload, one, limit)).collect();
        (!held.is_empty()).then(|| Limits { applied: applied.into(), held })
    }

    fn held(&self, workload: &WorkloadUid, applied: &AppliedLimit, limit: &Limit) -> Held {
        let name = applied.limit.name.clone();
        let (per, burst) = part(limit, applied.share.as_ref());
        let service = applied.share.as_ref().map(|share| share.service.clone());
        let key = BudgetKey { limit: name.clone(), index: limit.index, service, workload: workload.clone() };
        let mut budgets = self.budgets.lock();
        let known = budgets.get(&key).and_then(Weak::upgrade).filter(|budget| budget.limit == *limit);
        let budget = match known {
            Some(budget) => {
                budget.reshape(per, burst);
                budget
            }
            None => {
                let budget = Arc::new(Budget::new(limit, per, burst, self.hasher.clone()));
                budgets.insert(key, Arc::downgrade(&budget));
                budget
            }
        };
        drop(budgets);
        let mut all = self.refusals.lock();
        let refusals = all.get(&name).and_then(Weak::upgrade).unwrap_or_default();
        all.insert(name.clone(), Arc::downgrade(&refusals));
        Held { name, burst, budget, refusals }
    }

    /// Forgets what no workload has any more.
    pub fn sweep(&self) {
        self.budgets.lock().retain(|_, budget| budget.strong_count() > 0);
        self.refusals.lock().retain(|_, count| count.strong_count() > 0);
    }

    /// Refusals by RateLimit, of those that are in force on this node.
    fn refusals(&self) -> Vec<(String, u64)> {
        let all = self.refusals.lock();
        all.iter().filter_map(|(name, count)| Some((name.to_string(), count.upgrade()?.load(Ordering::Relaxed)))).collect()
    }

    /// Keys that are known and keys that were forgotten too early, by RateLimit.
    fn keys(&self) -> BTreeMap<String, (usize, u64)> {
        let mut sums: BTreeMap<String, (usize, u64)> = BTreeMap::new();
        let all: Vec<(NamespacedName, Arc<Budget>)> =
            self.budgets.lock().iter().filter_map(|(key, budget)| Some((key.limit.clone(), budget.upgrade()?))).collect();
        for (name, budget) in all {
            if let Shape::Keyed(buckets) = &budget.buckets {
                let sum = sums.entry(name.to_string()).or_default();
                *sum = (sum.0 + buckets.len(), sum.1 + buckets.dropped());
            }
        }
        sums
    }
}

/// A workload's part of a limit: the same number in as many times the time, and of the burst what is whole, but 1 at least. All parts
/// together are no more than the limit, and than the larger of its burst and the number of parts.
fn part(limit: &Limit, share: Option<&Share>) -> (Duration, u32) {
    let of = share.map_or(1, |share| share.of.max(1));
    (limit.per.saturating_mul(of), (limit.burst / of).max(1))
}

/// Registers what limits count.
pub fn collect(metrics: &Metrics, registry: &Arc<Registry>) {
    let registry = registry.clone();
    metrics.collect(move |samples| {
        let mut family =
            samples.family("nodemesh_rate_limit_refusals", "Requests and connections over a RateLimit, by its name.", Kind::Counter);
        for (name, count) in registry.refusals() {
            family.sample(&[("limit", &name)], count as f64);
        }
        let keys = registry.keys();
        let mut family =
            samples.family("nodemesh_rate_limit_keys", "Clients or values of a header that a RateLimit tells apart.", Kind::Gauge);
        for (name, (known, _)) in &keys {
            family.sample(&[("limit", name)], *known as f64);
        }
        let mut family = samples.family(
            "nodemesh_rate_limit_keys_forgotten",
            "Clients or values of a header forgotten for others although they had used up a part of their budget.",
            Kind::Counter,
        );
        for (name, (_, forgotten)) in &keys {
            family.sample(&[("limit", name)], *forgotten as f64);
        }
    });
}

#[cfg(test)]
mod tests;
