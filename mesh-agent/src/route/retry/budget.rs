//! How many retries all requests to a Service may have together: Gateway API's retry budget (GEP-3388). Where many requests fail at once,
//! retries must not become the load that keeps a server down. Pure but for its counters, which all worker threads share without a lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mesh_model::backend::RetryBudget;

#[cfg(test)]
mod tests;

/// Parts of an interval that are counted apart.
const PARTS: u32 = 10;
/// Bits of a slot for its count; the others are for the number of its part.
const COUNT: u32 = 24;
const MOST: u64 = (1 << COUNT) - 1;

/// Requests and retries of the last interval.
///
/// Counted in tenths of the interval, so that memory does not grow with the load. A request is forgotten up to a tenth early and a retry up to
/// a tenth late: what is allowed is never more than the budget says. Of threads that ask at the same moment for what is left of it some may
/// be refused for no other reason.
#[derive(Debug)]
pub struct Budget {
    settings: RetryBudget,
    start: Instant,
    requests: Window,
    retries: Window,
    /// Retries within the minimum's interval.
    recent: Window,
}

impl Budget {
    /// One without a request so far.
    pub fn new(settings: RetryBudget, now: Instant) -> Budget {
        Budget {
            start: now,
            requests: Window::new(settings.interval, PARTS),
            retries: Window::new(settings.interval, PARTS + 1),
            recent: Window::new(settings.minimum_interval, PARTS + 1),
            settings,
        }
    }

    /// What holds.
    pub fn settings(&self) -> &RetryBudget {
        &self.settings
    }

    /// Counts a request; its retries are not requests.
    pub fn request(&self, now: Instant) {
        self.requests.add(self.since(now));
    }

    /// Whether one more retry may be made; it is counted if so. Allowed are `percent` of the interval's requests, and besides `minimum` per
    /// `minimum_interval` whatever the percentage says.
    pub fn try_retry(&self, now: Instant) -> bool {
        let now = self.since(now);
        // Counted before it is judged, and taken back if that was too much: two threads do not get the last one both.
        let (retry, recent) = (self.retries.add(now), self.recent.add(now));
        let by_percent = || {
            let allowed = self.requests.sum(now).saturating_mul(self.settings.percent.into());
            self.retries.sum(now).saturating_mul(100) <= allowed
        };
        let allowed = self.recent.sum(now) <= self.settings.minimum.into() || by_percent();
        if !allowed {
            self.retries.take_back(retry);
            self.recent.take_back(recent);
        }
        allowed
    }

    fn since(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.start)
    }
}

/// A count of the latest time, by parts of equal length. Each slot holds the number of the part that it counts, and its count.
#[derive(Debug)]
struct Window {
    part: u128,
    slots: Box<[AtomicU64]>,
}

impl Window {
    fn new(interval: Duration, parts: u32) -> Window {
        Window { part: (interval / PARTS).as_nanos().max(1), slots: (0..parts).map(|_| AtomicU64::new(0)).collect() }
    }

    /// The number of the part that a time is in.
    fn number(&self, now: Duration) -> u64 {
        u64::try_from(now.as_nanos() / self.part).unwrap_or(u64::MAX) & (u64::MAX >> COUNT)
    }

    fn slot(&self, number: u64) -> Option<&AtomicU64> {
        self.slots.get(usize::try_from(number % self.slots.len().max(1) as u64).ok()?)
    }

    /// Counts one; returns the part that it is counted in. That of a thread whose time is older may be a later one, which has taken its slot:
    /// threads may come in another order than their times.
    fn add(&self, now: Duration) -> u64 {
        let number = self.number(now);
        let counted = |old: u64| {
            let (there, count) = (old >> COUNT, old & MOST);
            Some(if there < number { (number << COUNT) | 1 } else { (there << COUNT) | (count + 1).min(MOST) })
        };
        let before = self.slot(number).and_then(|slot| slot.fetch_update(Ordering::AcqRel, Ordering::Acquire, counted).ok());
        before.map_or(number, |before| number.max(before >> COUNT))
    }

    /// Undoes what was counted in a part, unless it is forgotten by now.
    fn take_back(&self, number: u64) {
        let less = |old: u64| (old >> COUNT == number && old & MOST > 0).then(|| old - 1);
        if let Some(slot) = self.slot(number) {
            // Else there is nothing to undo.
            let _ = slot.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
        }
    }

    fn sum(&self, now: Duration) -> u64 {
        let number = self.number(now);
        let oldest = (number + 1).saturating_sub(self.slots.len() as u64);
        let all = self.slots.iter().map(|slot| slot.load(Ordering::Acquire));
        all.filter(|slot| slot >> COUNT >= oldest).map(|slot| slot & MOST).sum()
    }
}
