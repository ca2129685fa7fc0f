//! Rate limits: the generic cell rate algorithm (ITU-T I.371), which is a token bucket that stores one time instead of a level.
//!
//! The time is the one at which the bucket will be full. A request moves it on by the time in which what it takes is refilled, and is refused
//! if the time would then lie farther ahead than a whole bucket takes to fill. Everything is counted in nanoseconds times the limit, so that a
//! limit that does not divide its unit loses nothing to rounding.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

#[cfg(test)]
mod tests;

/// What is left after something was taken, for the `RateLimit-*` headers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Remaining {
    /// How much could be taken at once.
    pub left: u32,
    /// In which time the bucket is full again.
    pub reset: Duration,
}

/// Nothing was taken: the limit is reached (HTTP 429, gRPC RESOURCE_EXHAUSTED).
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the rate limit is reached; there is enough again in {retry_after:?}")]
pub struct Exceeded {
    /// In which time there is enough for the same request, if nobody else takes it; [`Duration::MAX`] if never.
    pub retry_after: Duration,
    /// In which time the bucket is full again.
    pub reset: Duration,
}

/// How fast and how far a bucket fills.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Rate {
    limit: u128,
    /// Nanoseconds in which `limit` is refilled: what one costs, in nanoseconds times the limit.
    cost: u128,
    burst: u32,
    /// Thousandths of one beyond the burst.
    beyond: u32,
}

impl Rate {
    fn new(limit: u32, per: Duration, burst: u32) -> Rate {
        Rate { limit: limit.into(), cost: per.as_nanos(), burst: burst.max(1), beyond: 0 }
    }

    /// What the bucket holds when it is full, as `full` is counted.
    fn depth(&self) -> u128 {
        self.cost.saturating_mul(self.burst.into()).saturating_add(self.cost.saturating_mul(self.beyond.into()) / 1000)
    }

    /// `full`: when the bucket is full, in nanoseconds times the limit, as `now` is counted.
    fn take(&self, full: &mut u128, now: Duration, n: u32) -> Result<Remaining, Exceeded> {
        let now = now.as_nanos().saturating_mul(self.limit);
        let reset = self.time((*full).saturating_sub(now));
        if n > self.burst || self.limit == 0 && n > 0 {
            return Err(Exceeded { retry_after: Duration::MAX, reset });
        }
        let depth = self.depth();
        let then = (*full).max(now).saturating_add(self.cost.saturating_mul(n.into()));
        let ahead = then.saturating_sub(now);
        if ahead > depth {
            return Err(Exceeded { retry_after: self.time(ahead - depth), reset });
        }
        *full = then;
        let left = (depth - ahead).checked_div(self.cost).map_or(self.burst, |left| u32::try_from(left).unwrap_or(u32::MAX));
        Ok(Remaining { left, reset: self.time(ahead) })
    }

    /// Undoes a [`Rate::take`] of as many.
    fn give_back(&self, full: &mut u128, n: u32) {
        *full = full.saturating_sub(self.cost.saturating_mul(n.into()));
    }

    /// Of another time and burst. The limit, which is the unit of the stored time, stays.
    fn reshaped(&self, per: Duration, burst: u32, beyond: u32) -> Rate {
        Rate { limit: self.limit, cost: per.as_nanos(), burst: burst.max(1), beyond: beyond.min(999) }
    }

    /// When a bucket of another rate is full that holds as much as this one does, or as much of it as there is room for. `now` is counted as
    /// `full` is.
    fn carried(&self, to: &Rate, full: u128, now: u128) -> u128 {
        let depth = self.depth();
        let level = depth.saturating_sub(full.saturating_sub(now));
        let (Some(whole), Some(rest)) = (level.checked_div(self.cost), level.checked_rem(self.cost)) else { return now };
        // Too large to multiply exactly; what is lost is less than a thousandth of one.
        let rest = (rest as f64 / self.cost as f64 * to.cost as f64) as u128;
        let depth = to.depth();
        let level = whole.saturating_mul(to.cost).saturating_add(rest).min(depth);
        now.saturating_add(depth - level)
    }

    /// Rounded up: waiting so long must be enough.
    fn time(&self, scaled: u128) -> Duration {
        Duration::from_nanos(u64::try_from(scaled.div_ceil(self.limit.max(1))).unwrap_or(u64::MAX))
    }
}

/// One budget. Shared by all worker threads.
#[derive(Debug)]
pub struct Bucket {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    rate: Rate,
    /// The first time that was told.
    start: Option<Instant>,
    full: u128,
    /// How much was asked for so far, whether it was given or not.
    asked: u64,
}

impl State {
    /// A moment, as `full` is counted.
    fn scaled(&mut self, now: Instant) -> u128 {
        now.saturating_duration_since(*self.start.get_or_insert(now)).as_nanos().saturating_mul(self.rate.limit)
    }
}

impl Bucket {
    /// A full bucket that holds `burst` (1 at least: with 0 nothing could ever be taken) and gets `limit` in each `per`, evenly. In any time
    /// `t` no more than `burst + limit * t / per` are taken from it. With a limit of 0 nothing is; with a `per` of 0 there is no limit.
    pub fn new(limit: u32, per: Duration, burst: u32) -> Bucket {
        Bucket { state: Mutex::new(State { rate: Rate::new(limit, per, burst), start: None, full: 0, asked: 0 }) }
    }

    /// Takes `n` or nothing.
    pub fn take(&self, now: Instant, n: u32) -> Result<Remaining, Exceeded> {
        let state = &mut *self.state.lock();
        let now = now.saturating_duration_since(*state.start.get_or_insert(now));
        state.asked = state.asked.saturating_add(n.into());
        state.rate.take(&mut state.full, now, n)
    }

    /// Undoes a [`Bucket::take`]: what was taken is not used.
    pub fn give_back(&self, n: u32) {
        let state = &mut *self.state.lock();
        state.rate.give_back(&mut state.full, n);
    }

    /// From now on `limit` is got in another time, and there is room for another burst. The time at which the bucket would have been full
    /// stays.
    pub fn reshape(&self, per: Duration, burst: u32) {
        let state = &mut *self.state.lock();
        state.rate = state.rate.reshaped(per, burst, 0);
    }

    /// From now on `limit` is got in another time, and there is room for another burst. What the bucket holds stays, as far as there is room:
    /// of buckets that share a rate, all together hold no more after a part of it went from one to another. There is also room for `beyond`
    /// thousandths of one, fewer than a thousand: no more can be taken at once, but what comes a little early finds that much refilled.
    pub fn recast(&self, now: Instant, per: Duration, burst: u32, beyond: u32) {
        let state = &mut *self.state.lock();
        let to = state.rate.reshaped(per, burst, beyond);
        if to != state.rate {
            let now = state.scaled(now);
            state.full = state.rate.carried(&to, state.full, now);
            state.rate = to;
        }
    }

    /// Takes out all that it holds: how much that was, in millionths of one.
    pub fn empty(&self, now: Instant) -> u64 {
        let state = &mut *self.state.lock();
        let now = state.scaled(now);
        let depth = state.rate.depth();
        let level = depth.saturating_sub(state.full.saturating_sub(now));
        state.full = now.saturating_add(depth);
        let millionths = level.saturating_mul(1_000_000).checked_div(state.rate.cost);
        millionths.map_or(0, |level| u64::try_from(level).unwrap_or(u64::MAX))
    }

    /// From now on it holds so many millionths of one, as far as there is room.
    pub fn fill(&self, now: Instant, millionths: u64) {
        let state = &mut *self.state.lock();
        let now = state.scaled(now);
        let depth = state.rate.depth();
        let level = state.rate.cost.saturating_mul(millionths.into()) / 1_000_000;
        state.full = now.saturating_add(depth.saturating_sub(level));
    }

    /// How much was asked for so far, given or not.
    pub fn asked(&self) -> u64 {
        self.state.lock().asked
    }
}

/// A bucket for each key (a client's identity, the value of a header), of bounded number. Shared by all worker threads.
///
/// With a new key beyond the bound the one that has been idle for longest is dropped. If it comes back its bucket is full: the bound must be
/// above the number of keys that are active within the time a bucket takes to fill, or a client that can invent keys gets more than its share.
#[derive(Debug)]
pub struct Buckets<K> {
    max: usize,
    state: Mutex<Keyed<K>>,
}

#[derive(Debug)]
struct Keyed<K> {
    rate: Rate,
    start: Option<Instant>,
    /// By key, when its bucket is full, and the number of its latest use.
    buckets: HashMap<K, (u128, u64)>,
    /// Keys by their latest use.
    uses: BTreeMap<u64, K>,
    next_use: u64,
    /// Keys that were dropped before their bucket was full.
    dropped: u64,
}

impl<K: Clone + Eq + Hash> Buckets<K> {
    /// As [`Bucket::new`] for each key, of which at most `max` are known at once (1 at least).
    pub fn new(limit: u32, per: Duration, burst: u32, max: usize) -> Buckets<K> {
        let rate = Rate::new(limit, per, burst);
        let state = Keyed { rate, start: None, buckets: HashMap::new(), uses: BTreeMap::new(), next_use: 0, dropped: 0 };
        Buckets { max: max.max(1), state: Mutex::new(state) }
    }

    /// Takes `n` of a key's budget, or nothing.
    pub fn take(&self, now: Instant, key: &K, n: u32) -> Result<Remaining, Exceeded> {
        let state = &mut *self.state.lock();
        let now = now.saturating_duration_since(*state.start.get_or_insert(now));
        let this_use = state.next_use;
        state.next_use += 1;
        if let Some((full, last_use)) = state.buckets.get_mut(key) {
            if let Some(key) = state.uses.remove(last_use) {
                state.uses.insert(this_use, key);
            }
            *last_use = this_use;
            return state.rate.take(full, now, n);
        }
        if state.buckets.len() >= self.max
            && let Some((_, oldest)) = state.uses.pop_first()
            && let Some((full, _)) = state.buckets.remove(&oldest)
        {
            state.dropped += u64::from(full > now.as_nanos().saturating_mul(state.rate.limit));
        }
        let mut full = 0;
        let result = state.rate.take(&mut full, now, n);
        state.buckets.insert(key.clone(), (full, this_use));
        state.uses.insert(this_use, key.clone());
        result
    }

    /// Undoes a [`Buckets::take`] of a key, if the key is still known.
    pub fn give_back(&self, key: &K, n: u32) {
        let state = &mut *self.state.lock();
        if let Some((full, _)) = state.buckets.get_mut(key) {
            state.rate.give_back(full, n);
        }
    }

    /// As [`Bucket::reshape`], for every key.
    pub fn reshape(&self, per: Duration, burst: u32) {
        let state = &mut *self.state.lock();
        state.rate = state.rate.reshaped(per, burst, 0);
    }

    /// How many keys are known.
    pub fn len(&self) -> usize {
        self.state.lock().buckets.len()
    }

    /// Whether no key is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many keys were dropped although their bucket was not full: what they had used up was forgiven. More than a few mean that the bound
    /// is too low.
    pub fn dropped(&self) -> u64 {
        self.state.lock().dropped
    }
}
