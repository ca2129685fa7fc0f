//! Which endpoints are left out for a while because of how they answer: Envoy's outlier detection as a state machine without a clock.
//!
//! Observations go in with the time at which they were made, an [`Event`] comes out where one changes something. An endpoint whose time is
//! over is usable from that moment on whether anybody calls [`Health::tick`] or not; the tick only says so in the log and the metrics.
//!
//! As in Envoy: three counters of failures in a row; a failed connection counts as 503 and a timeout as 504 unless failures of local origin
//! are split off; the n-th ejection lasts n times as long, at most 300 s (or the base time if that is longer); n falls by one for each
//! interval without an ejection; of all endpoints only a part may be ejected at once, but one always. An observation takes a read lock and
//! an atomic; ejecting and returning take the write lock.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mesh_model::traffic::OutlierDetection;
use parking_lot::RwLock;

#[cfg(test)]
mod tests;

/// Envoy's `max_ejection_time`, which Istio leaves at its default.
const LONGEST: Duration = Duration::from_secs(300);
/// An interval of 0 would let ejections be forgotten at once.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(1);

/// How a request or connection to an endpoint ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Observation {
    /// It was connected to, and what was asked of it is done (TCP: the connection stood).
    Success,
    /// It answered with this HTTP status code.
    Status(u16),
    /// No connection could be had, or it was reset before an answer.
    LocalFailure,
    /// No connection or answer came in time.
    Timeout,
}

/// Which counter an endpoint was ejected for. The texts are Envoy's.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Reason {
    /// `consecutive5xxErrors`.
    Consecutive5xx,
    /// `consecutiveGatewayErrors`.
    ConsecutiveGateway,
    /// `consecutiveLocalOriginFailures`.
    ConsecutiveLocal,
}

impl Reason {
    /// For logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Consecutive5xx => "consecutive_5xx",
            Reason::ConsecutiveGateway => "consecutive_gateway_failure",
            Reason::ConsecutiveLocal => "consecutive_local_origin_failure",
        }
    }
}

/// A change of an endpoint's state, for logs and metrics.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event<K> {
    /// It is left out.
    Ejected {
        /// Which.
        key: K,
        /// Why.
        reason: Reason,
        /// From then on it is used again.
        until: Instant,
        /// Multiple of the base time that it is ejected for.
        times: u32,
    },
    /// Its time is over.
    Returned {
        /// Which.
        key: K,
        /// When it was over. An endpoint may have been ejected again before a tick tells.
        at: Instant,
    },
}

/// Health of one host's endpoints, each known by its `K`. Shared by all worker threads.
#[derive(Debug)]
pub struct Health<K> {
    state: RwLock<State<K>>,
    /// Endpoints that hold an ejection, including those whose time is over and that nobody looked at: with none there is nothing to look up.
    ejected: AtomicUsize,
}

#[derive(Debug)]
struct State<K> {
    settings: OutlierDetection,
    endpoints: HashMap<K, Endpoint>,
    /// To be told by the next tick.
    returned: Vec<(K, Instant)>,
}

#[derive(Default, Debug)]
struct Endpoint {
    server: AtomicU32,
    gateway: AtomicU32,
    local: AtomicU32,
    until: Option<Instant>,
    times: u32,
    /// Up to when `times` has been decayed.
    decayed: Option<Instant>,
}

impl<K: Clone + Eq + Hash> Health<K> {
    /// One without endpoints.
    pub fn new(settings: OutlierDetection) -> Health<K> {
        let state = RwLock::new(State { settings, endpoints: HashMap::new(), returned: Vec::new() });
        Health { state, ejected: AtomicUsize::new(0) }
    }

    /// The endpoints there are. State of those that stay is kept, that of others forgotten; more ejected than the settings allow of the ones
    /// left stay so, as in Envoy.
    pub fn set_endpoints(&self, keys: &[K]) {
        let mut state = self.state.write();
        let keep: HashSet<&K> = keys.iter().collect();
        state.endpoints.retain(|key, _| keep.contains(key));
        for key in keys {
            if !state.endpoints.contains_key(key) {
                state.endpoints.insert(key.clone(), Endpoint::default());
            }
        }
        self.ejected.store(state.endpoints.values().filter(|endpoint| endpoint.until.is_some()).count(), Ordering::Release);
    }

    /// Takes note of how a request or connection ended. Gives the ejection if that led to one. Unknown endpoints are ignored, and so is what
    /// still arrives from an ejected one.
    pub fn record(&self, now: Instant, key: &K, observation: Observation) -> Option<Event<K>> {
        loop {
            let state = self.state.read();
            let endpoint = state.endpoints.get(key)?;
            match endpoint.until {
                Some(until) if until > now => return None,
                Some(_) => {
                    // Its counters begin anew, for which nobody else may count.
                    drop(state);
                    self.state.write().give_back(now, key, &self.ejected);
                }
                None => {
                    let reason = endpoint.count(&state.settings, observation)?;
                    drop(state);
                    return self.state.write().eject(now, key, reason, &self.ejected);
                }
            }
        }
    }

    /// Whether requests may go to an endpoint: it is not ejected, or so many are that detection is off. Unknown endpoints are usable.
    pub fn usable(&self, now: Instant, key: &K) -> bool {
        if self.ejected.load(Ordering::Acquire) == 0 {
            return true;
        }
        let state = self.state.read();
        !state.endpoints.get(key).is_some_and(|endpoint| endpoint.is_ejected(now)) || state.panics(now)
    }

    /// Whether less than the settings' `min_health_percent` are healthy, so that all are used (Envoy's panic threshold, which Istio sets to it).
    pub fn panics(&self, now: Instant) -> bool {
        self.ejected.load(Ordering::Acquire) > 0 && self.state.read().panics(now)
    }

    /// How many are ejected.
    pub fn ejected(&self, now: Instant) -> usize {
        if self.ejected.load(Ordering::Acquire) == 0 { 0 } else { self.state.read().ejected(now) }
    }

    /// Returns those whose time is over: every return is told by exactly one tick.
    pub fn tick(&self, now: Instant) -> Vec<Event<K>> {
        let mut state = self.state.write();
        let over = |(key, endpoint): (&K, &Endpoint)| endpoint.until.is_some_and(|until| until <= now).then(|| key.clone());
        let keys: Vec<K> = state.endpoints.iter().filter_map(over).collect();
        for key in keys {
            state.give_back(now, &key, &self.ejected);
        }
        state.returned.drain(..).map(|(key, at)| Event::Returned { key, at }).collect()
    }

    /// When the next tick has something to tell.
    pub fn wake(&self) -> Option<Instant> {
        self.state.read().endpoints.values().filter_map(|endpoint| endpoint.until).min()
    }
}

impl<K: Clone + Eq + Hash> State<K> {
    fn ejected(&self, now: Instant) -> usize {
        self.endpoints.values().filter(|endpoint| endpoint.is_ejected(now)).count()
    }

    fn panics(&self, now: Instant) -> bool {
        if self.settings.min_health_percent == 0 {
            return false;
        }
        let all = self.endpoints.len();
        (all - self.ejected(now)) * 100 < all * usize::from(self.settings.min_health_percent)
    }

    fn give_back(&mut self, now: Instant, key: &K, held: &AtomicUsize) {
        let Some(endpoint) = self.endpoints.get_mut(key) else { return };
        let Some(until) = endpoint.until.filter(|until| *until <= now) else { return };
        endpoint.forget_failures();
        endpoint.until = None;
        endpoint.decayed = Some(until);
        held.fetch_sub(1, Ordering::AcqRel);
        self.returned.push((key.clone(), until));
    }

    fn eject(&mut self, now: Instant, key: &K, reason: Reason, held: &AtomicUsize) -> Option<Event<K>> {
        let active = self.ejected(now);
        let allowed = self.endpoints.len() * usize::from(self.settings.max_ejection_percent.min(100));
        let endpoint = self.endpoints.get_mut(key)?;
        if endpoint.until.is_some() {
            return None;
        }
        // Also if it may not be ejected: it is judged by new failures once there is room again.
        endpoint.counter(reason).store(0, Ordering::Relaxed);
        if active > 0 && (active + 1) * 100 > allowed {
            return None;
        }
        endpoint.decay(now, self.settings.interval);
        let base = self.settings.base_ejection;
        // Beyond the longest time a further ejection must not take longer to be forgotten.
        if base.saturating_mul(endpoint.times) < LONGEST.max(base) {
            endpoint.times = endpoint.times.saturating_add(1);
        }
        let times = endpoint.times.max(1);
        let until = later(now, base.saturating_mul(times).min(LONGEST.max(base)));
        endpoint.times = times;
        endpoint.until = Some(until);
        endpoint.decayed = Some(until);
        held.fetch_add(1, Ordering::AcqRel);
        Some(Event::Ejected { key: key.clone(), reason, until, times })
    }
}

impl Endpoint {
    fn is_ejected(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| until > now)
    }

    fn counter(&self, reason: Reason) -> &AtomicU32 {
        match reason {
            Reason::Consecutive5xx => &self.server,
            Reason::ConsecutiveGateway => &self.gateway,
            Reason::ConsecutiveLocal => &self.local,
        }
    }

    fn forget_failures(&self) {
        for counter in [&self.server, &self.gateway, &self.local] {
            reset(counter);
        }
    }

    /// Counts an observation; gives the counter that has reached its limit, for one thread alone.
    fn count(&self, settings: &OutlierDetection, observation: Observation) -> Option<Reason> {
        let status = match observation {
            Observation::Success => 200,
            Observation::Status(status) => status,
            Observation::LocalFailure | Observation::Timeout if settings.split_local_origin => {
                return reached(&self.local, settings.consecutive_local).then_some(Reason::ConsecutiveLocal);
            }
            Observation::LocalFailure => 503,
            Observation::Timeout => 504,
        };
        if settings.split_local_origin {
            // It answered, so it was reached.
            reset(&self.local);
        }
        if !(500..600).contains(&status) {
            reset(&self.server);
            reset(&self.gateway);
            return None;
        }
        let gateway = if matches!(status, 502..=504) {
            reached(&self.gateway, settings.consecutive_gateway)
        } else {
            reset(&self.gateway);
            false
        };
        let server = reached(&self.server, settings.consecutive_5xx);
        if gateway { Some(Reason::ConsecutiveGateway) } else { server.then_some(Reason::Consecutive5xx) }
    }

    /// One ejection less for each interval since the last one ended.
    fn decay(&mut self, now: Instant, interval: Duration) {
        let Some(since) = self.decayed else { return };
        let passed = now.saturating_duration_since(since).as_nanos() / interval.max(SHORTEST_INTERVAL).as_nanos();
        self.times = self.times.saturating_sub(u32::try_from(passed).unwrap_or(u32::MAX));
        self.decayed = Some(since.max(now));
    }
}

/// Counts one more; true for the one that reaches the limit. 0 is no limit.
fn reached(counter: &AtomicU32, limit: u32) -> bool {
    counter.fetch_add(1, Ordering::Relaxed).wrapping_add(1) == limit && limit > 0
}

/// Reads first: the usual case is success after success on many threads, which must not fight for the cache line.
fn reset(counter: &AtomicU32) {
    if counter.load(Ordering::Relaxed) != 0 {
        counter.store(0, Ordering::Relaxed);
    }
}

fn later(now: Instant, time: Duration) -> Instant {
    now.checked_add(time).unwrap_or_else(|| now + LONGEST)
}
