//! Rate limits in force for a workload (RateLimit, `nodemesh.dev`), and the budgets of all of this node's.
//!
//! A budget is of one limit and one workload, or of all workloads of this node if it is one that mesh-control lends ([`super::lending`]),
//! whichever worker thread asks. It lives as long as some workload's policy has it, so that a changed configuration in which the limit is the
//! same takes none away and gives none back. What is left of it is handed to the next agent of an upgrade ([`super::carried`]).
//!
//! A limit with a budget for each client or header knows [`MAX_KEYS`] of them. With one more, the one that has been idle for longest is
//! forgotten and would begin full if it came back: whoever can invent values of a header gets more than the limit, but never more memory.
//! `nodemesh_rate_limit_keys_forgotten` counts those that still owed something.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use http::HeaderMap;
use mesh_model::identity::Identity;
use mesh_model::limit::{AppliedLimit, Limit, LimitBy, Share, WHOLE};
use mesh_model::service::NamespacedName;
use mesh_model::workload::WorkloadUid;
use parking_lot::Mutex;

use super::carried::{Carried, CarriedName, Handed};
use super::lending::{Holding, Lent, Meter, beyond, part};
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
    budget: Arc<Budget>,
    refusals: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Budget {
    /// What it was made for.
    limit: Limit,
    buckets: Shape,
    /// How many there may be at once.
    burst: AtomicU32,
    /// What the node holds of it and needs, if it is lent. Requests do not look at it.
    lending: Option<Mutex<(Holding, Meter)>>,
    hasher: RandomState,
}

#[derive(Debug)]
enum Shape {
    One(Bucket),
    /// By a keyed hash of what tells them apart, which may be long and secret.
    Keyed(Buckets<u64>),
}

impl Budget {
    fn new(limit: &Limit, share: Option<&Share>, now: Instant, hasher: RandomState) -> Self {
        let lending = share.filter(|_| limit.by.is_lent()).map(|share| {
            let meter = Meter::new(limit.requests, limit.per);
            Mutex::new((Holding::new(share.node), meter))
        });
        let parts = lending.as_ref().map(|lending| lending.lock().0.parts(now));
        let (per, burst) = shape(limit, share, parts);
        let buckets = match limit.by {
            LimitBy::Everyone | LimitBy::PathPrefix(_) => Shape::One(Bucket::new(limit.requests, per, burst)),
            LimitBy::Source | LimitBy::Header(_) => Shape::Keyed(Buckets::new(limit.requests, per, burst, MAX_KEYS)),
        };
        Budget { limit: limit.clone(), buckets, burst: AtomicU32::new(burst), lending, hasher }
    }

    /// Other pods share it than before.
    fn shared(&self, now: Instant, share: Option<&Share>) {
        if let (Some(lending), Some(share)) = (&self.lending, share) {
            lending.lock().0.shared(share.node);
            self.cast(now);
        } else if let Shape::Keyed(buckets) = &self.buckets {
            let (per, burst) = shape(&self.limit, share, None);
            buckets.reshape(per, burst);
            self.burst.store(burst, Ordering::Relaxed);
        }
    }

    /// Gives the bucket the shape of what is held.
    fn cast(&self, now: Instant) {
        if let (Some(lending), Shape::One(bucket)) = (&self.lending, &self.buckets) {
            let mut lending = lending.lock();
            let (per, burst) = part(self.limit.per, self.limit.burst, lending.0.parts(now));
            bucket.recast(now, per, burst, beyond(self.limit.burst, burst));
            self.burst.store(burst, Ordering::Relaxed);
        }
    }

    fn burst(&self) -> u32 {
        self.burst.load(Ordering::Relaxed)
    }

    /// What the node needs of it, if it is lent.
    fn need(&self, now: Instant) -> Option<(u64, u32)> {
        let (Some(lending), Shape::One(bucket)) = (&self.lending, &self.buckets) else { return None };
        let (holding, meter) = &mut *lending.lock();
        meter.read(now, bucket.asked());
        Some((meter.demand(self.limit.requests, self.limit.per), holding.parts(now)))
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
                    let standing = Standing { limit: held.budget.burst(), remaining: left, reset, retry_after: None };
                    let tighter = |than: &Standing| (left, than.reset) < (than.remaining, reset);
                    if tightest.as_ref().is_none_or(tighter) {
                        tightest = Some(standing);
                    }
                }
                Err(Exceeded { retry_after, reset }) => {
                    taken.iter().for_each(|(held, key)| held.budget.give_back(*key));
                    held.refusals.fetch_add(1, Ordering::Relaxed);
                    let standing = Standing { limit: held.budget.burst(), remaining: 0, reset, retry_after: Some(retry_after) };
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
    /// Of which Service's budget it is a share, or what is sent to which host of a ServiceEntry it counts.
    service: Option<NamespacedName>,
    /// `None`: all workloads of the node have it together.
    workload: Option<WorkloadUid>,
}

impl BudgetKey {
    fn carried(&self) -> CarriedName {
        CarriedName {
            limit: self.limit.to_string(),
            index: self.index,
            service: self.service.as_ref().map(NamespacedName::to_string),
            workload: self.workload.as_ref().map(WorkloadUid::to_string),
        }
    }
}

/// Names a budget that is lent.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LentBudget {
    /// The RateLimit.
    pub limit: NamespacedName,
    /// The place of the limit in it.
    pub index: usize,
    /// The Service.
    pub service: NamespacedName,
}

/// What this node needs of a budget and holds of it, in parts of [`WHOLE`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Need {
    /// What is asked for in the limit's time.
    pub demand: u64,
    /// What it holds.
    pub holds: u32,
}

/// What is shown of a budget that is lent.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Shown {
    parts: u32,
    age: Option<Duration>,
    lapsed: u64,
}

/// The budgets of this node's workloads, shared by all worker threads.
#[derive(Debug, Default)]
pub struct Registry {
    budgets: Mutex<HashMap<BudgetKey, Weak<Budget>>>,
    handed: Mutex<Handed>,
    refusals: Mutex<BTreeMap<NamespacedName, Weak<AtomicU64>>>,
    hasher: RandomState,
}

impl Registry {
    /// The limits of a workload, with the budgets that they have already where they are the same; `None` if there are none.
    pub fn limits(&self, now: Instant, workload: &WorkloadUid, applied: &[AppliedLimit]) -> Option<Limits> {
        let held = applied.iter().flat_map(|one| one.limit.limits.iter().map(move |limit| (one, limit)));
        let held: Arc<[Held]> = held.map(|(one, limit)| self.held(now, workload, one, limit)).collect();
        (!held.is_empty()).then(|| Limits { applied: applied.into(), held })
    }

    fn held(&self, now: Instant, workload: &WorkloadUid, applied: &AppliedLimit, limit: &Limit) -> Held {
        let name = applied.limit.name.clone();
        let share = applied.share.as_ref();
        let service = applied.towards.as_ref().or(share.map(|share| &share.service)).cloned();
        let workload = Some(workload).filter(|_| share.is_none() || !limit.by.is_lent()).cloned();
        let key = BudgetKey { limit: name.clone(), index: limit.index, service, workload };
        let mut budgets = self.budgets.lock();
        let known = budgets.get(&key).and_then(Weak::upgrade).filter(|budget| budget.limit == *limit);
        let budget = match known {
            Some(budget) => {
                budget.shared(now, share);
                budget
            }
            None => {
                let budget = Arc::new(Budget::new(limit, share, now, self.hasher.clone()));
                if let Shape::One(bucket) = &budget.buckets
                    && let Some(left) = self.handed.lock().take(now, &key.carried(), limit)
                {
                    bucket.fill(now, left);
                }
                budgets.insert(key, Arc::downgrade(&budget));
                budget
            }
        };
        drop(budgets);
        let mut all = self.refusals.lock();
        let refusals = all.get(&name).and_then(Weak::upgrade).unwrap_or_default();
        all.insert(name.clone(), Arc::downgrade(&refusals));
        Held { name, budget, refusals }
    }

    /// Takes what is left out of every budget that can be handed to the next agent. Connections that live on here get what comes from now on.
    pub fn hand_over(&self, now: Instant) -> Vec<Carried> {
        let budgets: Vec<(CarriedName, Arc<Budget>)> =
            self.budgets.lock().iter().filter_map(|(key, budget)| Some((key.carried(), budget.upgrade()?))).collect();
        let carried = budgets.into_iter().filter_map(|(name, budget)| match &budget.buckets {
            Shape::One(bucket) => {
                let Limit { requests, per, burst, .. } = budget.limit;
                Some(Carried { budget: name, requests, per, burst, left: bucket.empty(now) })
            }
            Shape::Keyed(_) => None,
        });
        carried.collect()
    }

    /// Begins with what the agent before this one had left, in budgets of which none is known yet.
    pub fn take_over(&self, now: Instant, carried: Vec<Carried>) {
        *self.handed.lock() = Handed::new(now, carried);
    }

    /// Budgets of Services that are lent, by name.
    fn lent(&self) -> BTreeMap<LentBudget, Arc<Budget>> {
        let budgets = self.budgets.lock();
        let lent = budgets.iter().filter_map(|(key, budget)| {
            let budget = budget.upgrade().filter(|budget| budget.lending.is_some())?;
            Some((LentBudget { limit: key.limit.clone(), index: key.index, service: key.service.clone()? }, budget))
        });
        lent.collect()
    }

    /// Lets lapse what is not lent any longer, and says what the node needs. To be called every now and then: demand is measured between.
    pub fn needs(&self, now: Instant) -> Vec<(LentBudget, Need)> {
        let needs = self.lent().into_iter().filter_map(|(name, budget)| {
            budget.cast(now);
            let (demand, holds) = budget.need(now)?;
            Some((name, Need { demand, holds }))
        });
        needs.collect()
    }

    /// Takes what was lent in the place of what was held before.
    pub fn lend(&self, now: Instant, loans: impl IntoIterator<Item = (LentBudget, Lent)>) {
        let budgets = self.lent();
        for (name, lent) in loans {
            // One that is not there any more is not needed.
            let Some(budget) = budgets.get(&name) else { continue };
            if let Some(lending) = &budget.lending {
                lending.lock().0.lend(lent);
            }
            budget.cast(now);
        }
    }

    /// What is held of budgets that are lent.
    fn shown(&self, now: Instant) -> Vec<(LentBudget, Shown)> {
        let shown = self.lent().into_iter().filter_map(|(name, budget)| {
            let holding = &mut budget.lending.as_ref()?.lock().0;
            let age = holding.since(now).map(|since| now.saturating_duration_since(since));
            Some((name, Shown { parts: holding.parts(now), age, lapsed: holding.lapsed() }))
        });
        shown.collect()
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

/// What a bucket is to be: that of a limit, of the `parts` that are held of it, or of a workload's equal part: the same number in as many times
/// the time, and of the burst what is whole, but 1 at least. All parts together are no more than the limit, and than the larger of its burst
/// and the number of parts.
fn shape(limit: &Limit, share: Option<&Share>, parts: Option<u32>) -> (Duration, u32) {
    if let Some(parts) = parts {
        return part(limit.per, limit.burst, parts);
    }
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
        let lent: Vec<([String; 3], Shown)> = registry
            .shown(Instant::now())
            .into_iter()
            .map(|(name, shown)| ([name.limit.to_string(), name.index.to_string(), name.service.to_string()], shown))
            .collect();
        type Value = fn(&Shown) -> Option<f64>;
        let families: [(&str, &str, Kind, Value); 3] = [
            ("nodemesh_rate_limit_share_ratio", "Part of a Service's budget that this node holds, from 0 to 1.", Kind::Gauge, |shown| {
                Some(f64::from(shown.parts) / f64::from(WHOLE))
            }),
            (
                "nodemesh_rate_limit_loan_age_seconds",
                "Time since mesh-control lent this node its part of a Service's budget; absent where it has its fair share.",
                Kind::Gauge,
                |shown| shown.age.map(|age| age.as_secs_f64()),
            ),
            (
                "nodemesh_rate_limit_fallbacks",
                "How often this node went back to its fair share of a Service's budget because no loan came.",
                Kind::Counter,
                |shown| Some(shown.lapsed as f64),
            ),
        ];
        for (name, help, kind, value) in families {
            let mut family = samples.family(name, help, kind);
            for ([limit, index, service], shown) in &lent {
                if let Some(value) = value(shown) {
                    family.sample(&[("limit", limit), ("index", index), ("service", service)], value);
                }
            }
        }
    });
}

#[cfg(test)]
mod tests;
