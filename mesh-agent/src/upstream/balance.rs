//! Which endpoint a request goes to: Istio's load balancers over the endpoints of one host.
//!
//! A [`Picker`] is built once for a list of endpoints and a policy. Time, chance, load and health are arguments of each [`Picker::pick`], so
//! that what is decided can be tested without either. Three questions, in this order:
//!
//! 1. Which group: the nearest that can take it (`locality`), or by percentage.
//! 2. Which of its endpoints: by the balancer.
//! 3. If none of that group is acceptable: the same in the other groups.
//!
//! Endpoints that this request has been tried at are acceptable only where no other is.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_model::traffic::{Balancer, HashTable, Locality, Warmup};

use crate::route::sequence::Sequence;

pub mod ewma;
pub mod hash;
mod locality;
#[cfg(test)]
mod tests;

use hash::{Maglev, Member, Ring};
use locality::{Grouping, WHOLE};
pub use locality::{SUBZONE, decisive};

/// Endpoints that chance may miss before they are gone through one by one.
const TRIES: usize = 8;
/// Costs that differ by less than a part of so many are alike: without it the one of two equal endpoints that was faster by a hair would get all.
const ALIKE: f64 = 8.0;
/// Latencies that differ by less than this factor are alike: a server on another node must not lose its share to a nearer one, and one after the
/// other requests would all go to whichever is faster.
const SLOWER: u32 = 4;

/// Where this node is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LocalityName {
    /// `topology.kubernetes.io/region`; empty if unknown, and then no endpoint is nearer than another.
    pub region: Arc<str>,
    /// `topology.kubernetes.io/zone`.
    pub zone: Arc<str>,
    /// `topology.istio.io/subzone`.
    pub subzone: Arc<str>,
    /// Labels that `failoverPriority` may name.
    pub labels: BTreeMap<String, String>,
}

/// An endpoint that a request may go to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// Its address.
    pub address: SocketAddr,
    /// Its share; with 0 it gets none.
    pub weight: u32,
    /// Region and zone; empty if unknown.
    pub locality: (Arc<str>, Arc<str>),
    /// Its pod's labels, for `failoverPriority`; `topology.istio.io/subzone` for its sub-zone.
    pub labels: BTreeMap<String, String>,
    /// When it became known, for the warm-up; `None` if it was there from the beginning.
    pub since: Option<Instant>,
}

/// What an endpoint has to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Load {
    /// Requests in flight from here.
    pub in_flight: u32,
    /// Its response time ([`ewma::Ewma::micros`]); 0 if unknown: it then counts as fast as the one it is compared with.
    pub ewma_micros: u32,
}

/// Where a request goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pick {
    /// Number of the endpoint in the list.
    pub index: usize,
    /// How far it is: 0 for the nearest group there is. With `distribute` always 0.
    pub priority: usize,
}

/// Picks endpoints. Shared by all worker threads.
#[derive(Debug)]
pub struct Picker {
    balancer: Balancer,
    warmup: Option<Warmup>,
    endpoints: Vec<Endpoint>,
    /// For [`Balancer::Passthrough`].
    addresses: HashMap<SocketAddr, usize>,
    groups: Vec<Group>,
    /// The groups have percentages instead of an order.
    shares: Option<Shares>,
}

#[derive(Debug)]
struct Endpoint {
    weight: u32,
    since: Option<Instant>,
}

#[derive(Debug)]
struct Shares {
    sequence: Sequence,
    percents: Vec<u32>,
}

#[derive(Debug)]
struct Group {
    members: Vec<usize>,
    /// Sums of the weights up to each member.
    sums: Vec<u64>,
    /// Mean weight.
    mean: f64,
    method: Method,
}

#[derive(Debug)]
enum Method {
    LeastRequest,
    Random,
    /// Turns of all members, and turns in which others stand in for those that are not acceptable.
    Turns(Sequence, Sequence),
    Ring(Ring),
    Maglev(Maglev),
}

impl Picker {
    /// A picker for clients on the node `from`. `outlier_on`: outlier detection is configured, which by Istio's default turns on failover
    /// between localities.
    pub fn new(
        balancer: &Balancer,
        locality: &Locality,
        warmup: Option<&Warmup>,
        from: &LocalityName,
        endpoints: Vec<Candidate>,
        outlier_on: bool,
    ) -> Picker {
        let (shares, groups) = match locality::group(locality, from, &endpoints, outlier_on) {
            Grouping::Priorities(groups) => (None, groups),
            Grouping::Shares(groups) => {
                let (percents, groups): (Vec<u32>, Vec<_>) = groups.into_iter().unzip();
                (Some(Shares { sequence: Sequence::new(&percents), percents }), groups)
            }
        };
        let groups = groups.into_iter().map(|members| Group::new(balancer, &endpoints, members)).collect();
        let addresses = match balancer {
            Balancer::Passthrough => endpoints.iter().enumerate().map(|(index, endpoint)| (endpoint.address, index)).collect(),
            _ => HashMap::new(),
        };
        let endpoints = endpoints.iter().map(|endpoint| Endpoint { weight: endpoint.weight, since: endpoint.since }).collect();
        Picker { balancer: balancer.clone(), warmup: warmup.cloned(), endpoints, addresses, groups, shares }
    }

    /// The endpoint for a request; `None` if none is usable.
    ///
    /// - `hash`: of the request's key, for [`Balancer::Hash`]; without one any endpoint will do.
    /// - `dialled`: where the client connected to, for [`Balancer::Passthrough`]: that endpoint is taken whatever its health, as by Envoy's
    ///   original-destination cluster. If it is none of the endpoints' (a Service's address) any will do.
    /// - `random`: 64 random bits at each call.
    /// - `load`, `usable`: of an endpoint by its number. With several groups `usable` is asked about many: it should cost next to nothing.
    /// - `tried`: where this request has been; taken again only if there is nobody else.
    #[expect(clippy::too_many_arguments, reason = "what a decision depends on is passed in, and each is used once")]
    pub fn pick(
        &self,
        now: Instant,
        hash: Option<u64>,
        dialled: Option<SocketAddr>,
        random: &mut impl FnMut() -> u64,
        load: &impl Fn(usize) -> Load,
        usable: &impl Fn(usize) -> bool,
        tried: &[usize],
    ) -> Option<Pick> {
        if let Some(index) = dialled.and_then(|address| self.addresses.get(&address)) {
            return Some(Pick { index: *index, priority: 0 });
        }
        let hash = hash.filter(|_| matches!(self.balancer, Balancer::Hash { .. }));
        let chosen = self.choose(hash, random, usable)?;
        let untried = |index: usize| !tried.contains(&index) && usable(index);
        let rounds: [&dyn Fn(usize) -> bool; 2] = [&untried, usable];
        for eligible in rounds.into_iter().skip(usize::from(tried.is_empty())) {
            let others = (0..self.groups.len()).filter(|number| *number != chosen);
            for number in std::iter::once(chosen).chain(others) {
                let index = self.groups.get(number).and_then(|group| self.pick_in(group, now, hash, random, load, eligible));
                if let Some(index) = index {
                    return Some(Pick { index, priority: if self.shares.is_some() { 0 } else { number } });
                }
            }
        }
        None
    }

    /// Number of the group for a request.
    fn choose(&self, hash: Option<u64>, random: &mut impl FnMut() -> u64, usable: &dyn Fn(usize) -> bool) -> Option<usize> {
        if self.groups.len() < 2 {
            return (!self.groups.is_empty()).then_some(0);
        }
        // A key must not wander between groups while health stays as it is.
        let chance = |random: &mut dyn FnMut() -> u64| hash.map_or_else(random, |hash| hash::mix(hash ^ u64::MAX));
        let Some(Shares { sequence, percents }) = &self.shares else {
            // Nothing is drawn while the nearest group can take all.
            let nearest = self.groups.first().map_or(0, |group| locality::availability(&group.members, usable));
            if nearest == WHOLE {
                return Some(0);
            }
            return locality::priority(&mut self.groups.iter().map(|group| &*group.members), usable, chance(random));
        };
        let available: Vec<u64> = self.groups.iter().map(|group| locality::availability(&group.members, usable)).collect();
        let left = |number: usize| available.get(number).copied().unwrap_or(0);
        if hash.is_some() {
            let weights = percents.iter().zip(&available).map(|(percent, left)| u128::from(*percent) * u128::from(*left));
            let sum: u128 = weights.clone().sum();
            let mut point = (u128::from(chance(random)) * (sum >> 16)) >> 48;
            return weights.into_iter().position(|weight| {
                let found = point < weight;
                point = point.saturating_sub(weight);
                found
            });
        }
        // A group that is only partly available hands on that part of its turns: all end up in proportion to percentage and availability.
        for _ in 0..TRIES {
            let number = sequence.next_of(|number| left(number) > 0)?;
            if left(number) == WHOLE || random() >> 32 < left(number) {
                return Some(number);
            }
        }
        sequence.next_of(|number| left(number) > 0)
    }

    fn pick_in(
        &self,
        group: &Group,
        now: Instant,
        hash: Option<u64>,
        random: &mut impl FnMut() -> u64,
        load: &impl Fn(usize) -> Load,
        eligible: &dyn Fn(usize) -> bool,
    ) -> Option<usize> {
        match (&group.method, hash) {
            (Method::Ring(ring), Some(hash)) => ring.get(hash, eligible),
            (Method::Maglev(table), Some(hash)) => table.get(hash, eligible),
            (Method::Turns(turns, substitutes), _) => {
                let mut index = group.turn(turns, substitutes, eligible)?;
                for _ in 0..TRIES {
                    let warm = self.warm(now, index);
                    if warm >= 1.0 || unit(random()) < warm {
                        break;
                    }
                    index = group.turn(turns, substitutes, eligible)?;
                }
                Some(index)
            }
            (Method::Random | Method::Ring(_) | Method::Maglev(_), _) => self.sample(group, now, random, eligible),
            (Method::LeastRequest, _) => {
                let first = self.sample(group, now, random, eligible)?;
                if group.members.len() < 2 {
                    return Some(first);
                }
                let Some(second) = self.sample(group, now, random, &|index| index != first && eligible(index)) else { return Some(first) };
                Some(if self.is_less(group, (second, load(second)), (first, load(first))) { second } else { first })
            }
        }
    }

    /// Whether one endpoint has clearly less to do than the other. Both were drawn by their weights, so that alike ones share by them; here the
    /// weight says how many requests an endpoint may have at once before it counts as loaded.
    fn is_less(&self, group: &Group, one: (usize, Load), other: (usize, Load)) -> bool {
        let cost = |(index, load): (usize, Load), latency: u32| {
            let weight = self.endpoints.get(index).map_or(1.0, |endpoint| f64::from(endpoint.weight)) / group.mean;
            (f64::from(load.in_flight) / weight + 1.0) * f64::from(latency.max(1))
        };
        let (a, b) = (one.1.ewma_micros, other.1.ewma_micros);
        let (a, b) = match a.min(b) {
            // Unknown is as fast as the other.
            0 => (1, 1),
            least if a.max(b) / SLOWER < least => (1, 1),
            _ => (a, b),
        };
        cost(one, a) < cost(other, b) * (1.0 - 1.0 / ALIKE)
    }

    /// An acceptable endpoint by chance, by weight and warm-up.
    fn sample(&self, group: &Group, now: Instant, random: &mut impl FnMut() -> u64, eligible: &dyn Fn(usize) -> bool) -> Option<usize> {
        if let [only] = *group.members {
            return eligible(only).then_some(only);
        }
        for _ in 0..TRIES {
            let index = group.at(random())?;
            if eligible(index) {
                let warm = self.warm(now, index);
                if warm >= 1.0 || unit(random()) < warm {
                    return Some(index);
                }
            }
        }
        let weights: Vec<(usize, f64)> = group
            .members
            .iter()
            .filter(|index| eligible(**index))
            .map(|index| (*index, self.warm(now, *index) * self.endpoints.get(*index).map_or(0.0, |endpoint| f64::from(endpoint.weight))))
            .collect();
        let mut point = unit(random()) * weights.iter().map(|(_, weight)| weight).sum::<f64>();
        let found = weights.iter().find(|(_, weight)| {
            point -= weight;
            point < 0.0
        });
        found.or(weights.last()).map(|(index, _)| *index)
    }

    /// Part of its share that an endpoint gets, above 0 and at most 1: Envoy's slow start, `max(minimum, (age / window)^(1 / aggression))`
    /// with an age of at least one second.
    fn warm(&self, now: Instant, index: usize) -> f64 {
        let Some(warmup) = &self.warmup else { return 1.0 };
        let Some(since) = self.endpoints.get(index).and_then(|endpoint| endpoint.since) else { return 1.0 };
        let age = now.saturating_duration_since(since);
        if age >= warmup.duration {
            return 1.0;
        }
        let part = age.max(Duration::from_secs(1)).as_secs_f64() / warmup.duration.as_secs_f64();
        let aggression = if warmup.aggression > 0.0 && warmup.aggression.is_finite() { warmup.aggression } else { 1.0 };
        part.powf(1.0 / aggression).max(f64::from(warmup.minimum_percent) / 100.0).clamp(1e-6, 1.0)
    }
}

impl Group {
    fn new(balancer: &Balancer, endpoints: &[Candidate], members: Vec<usize>) -> Group {
        let table: Vec<Member> = members
            .iter()
            .filter_map(|index| endpoints.get(*index).map(|endpoint| (*index, endpoint)))
            .map(|(index, endpoint)| Member { index, address: endpoint.address, weight: endpoint.weight })
            .collect();
        let weights: Vec<u32> = table.iter().map(|member| member.weight).collect();
        let add = |sum: &mut u64, weight: &u32| {
            *sum += u64::from(*weight);
            Some(*sum)
        };
        let sums: Vec<u64> = weights.iter().scan(0, add).collect();
        let mean = sums.last().map_or(1.0, |sum| *sum as f64 / weights.len() as f64);
        let method = match balancer {
            Balancer::LeastRequest => Method::LeastRequest,
            Balancer::RoundRobin => Method::Turns(Sequence::new(&weights), Sequence::new(&weights)),
            Balancer::Random | Balancer::Passthrough => Method::Random,
            Balancer::Hash { table: HashTable::Ring { minimum }, .. } => Method::Ring(Ring::new(&table, *minimum)),
            Balancer::Hash { table: HashTable::Maglev { size }, .. } => Method::Maglev(Maglev::new(&table, *size)),
        };
        Group { members, sums, mean, method }
    }

    /// The member that chance gives, by weight.
    fn at(&self, random: u64) -> Option<usize> {
        let point = ((u128::from(random) * u128::from(*self.sums.last()?)) >> 64) as u64;
        self.members.get(self.sums.partition_point(|sum| *sum <= point)).copied()
    }

    /// The member whose turn it is; for one that is not acceptable another stands in, by a sequence of its own, so that all are asked only then.
    fn turn(&self, turns: &Sequence, substitutes: &Sequence, eligible: &dyn Fn(usize) -> bool) -> Option<usize> {
        let member = |position: usize| self.members.get(position).copied();
        let index = member(turns.next()?)?;
        if eligible(index) {
            return Some(index);
        }
        member(substitutes.next_of(|position| member(position).is_some_and(eligible))?)
    }
}

/// A number from 0 to below 1.
fn unit(random: u64) -> f64 {
    (random >> 11) as f64 / (1u64 << 53) as f64
}
