//! How often a node may ask, or an address fail: a token bucket each. Pure; the moment is passed in.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

/// Rate and burst of a bucket.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Rate {
    /// Requests a second in the long run.
    pub per_second: f64,
    /// Requests at once.
    pub burst: f64,
}

/// The buckets. [`Limiter::sweep`] bounds them: only those that are not full are kept.
#[derive(Debug)]
pub struct Limiter {
    rate: Rate,
    buckets: HashMap<Arc<str>, (f64, Instant)>,
}

impl Limiter {
    /// With full buckets.
    pub fn new(rate: Rate) -> Limiter {
        Limiter { rate, buckets: HashMap::new() }
    }

    /// Whether the node's bucket has one left.
    pub fn has(&self, node: &str, now: Instant) -> bool {
        let rate = self.rate;
        self.buckets
            .get(node)
            .is_none_or(|(level, last)| level + now.saturating_duration_since(*last).as_secs_f64() * rate.per_second >= 1.0)
    }

    /// Buckets that are kept.
    pub fn len(&self) -> usize {
        self.buckets.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }

    /// Takes one from the node's bucket; false if it is empty.
    pub fn admit(&mut self, node: &Arc<str>, now: Instant) -> bool {
        let rate = self.rate;
        let (level, last) = self.buckets.entry(node.clone()).or_insert((rate.burst, now));
        *level = (*level + now.saturating_duration_since(*last).as_secs_f64() * rate.per_second).min(rate.burst);
        *last = now.max(*last);
        if *level < 1.0 {
            return false;
        }
        *level -= 1.0;
        true
    }

    /// Forgets the nodes whose bucket has been full again for long.
    pub fn sweep(&mut self, now: Instant) {
        let rate = self.rate;
        self.buckets.retain(|_, (level, last)| *level + now.saturating_duration_since(*last).as_secs_f64() * rate.per_second < rate.burst);
    }
}

#[cfg(test)]
mod tests;
