//! How many retries all requests to a host may have together: Gateway API's retry budget (GEP-3388). Where many requests fail at once, retries
//! must not become the load that keeps a server down.

use std::time::{Duration, Instant};

use mesh_model::traffic::RetryBudget;
use parking_lot::Mutex;

#[cfg(test)]
mod tests;

/// Parts of an interval that are counted apart.
const PARTS: u32 = 10;

/// Requests and retries of the last interval. Shared by all worker threads.
///
/// Counted in tenths of the interval, so that memory does not grow with the load. A request is forgotten up to a tenth early and a retry up to
/// a tenth late: what is allowed is never more than the budget says.
#[derive(Debug)]
pub struct Budget {
    percent: u64,
    minimum: u64,
    windows: Mutex<Windows>,
}

#[derive(Debug)]
struct Windows {
    /// The first time that was told.
    start: Option<Instant>,
    requests: Window,
    retries: Window,
    /// Retries within the minimum's interval.
    recent: Window,
}

impl Budget {
    /// One without a request so far.
    pub fn new(budget: &RetryBudget) -> Budget {
        let windows = Windows {
            start: None,
            requests: Window::new(budget.interval, PARTS),
            retries: Window::new(budget.interval, PARTS + 1),
            recent: Window::new(budget.minimum_interval, PARTS + 1),
        };
        Budget { percent: budget.percent.into(), minimum: budget.minimum.into(), windows: Mutex::new(windows) }
    }

    /// Counts a request; its retries are not requests.
    pub fn request(&self, now: Instant) {
        let mut windows = self.windows.lock();
        let now = windows.since_start(now);
        windows.requests.add(now);
    }

    /// Whether one more retry may be made; it is counted if so. Allowed are `percent` of the interval's requests, and besides `minimum` per
    /// `minimum_interval` whatever the percentage says.
    pub fn try_retry(&self, now: Instant) -> bool {
        let mut windows = self.windows.lock();
        let now = windows.since_start(now);
        let by_percent = (windows.retries.sum(now) + 1).saturating_mul(100) <= windows.requests.sum(now).saturating_mul(self.percent);
        let allowed = by_percent || windows.recent.sum(now) < self.minimum;
        if allowed {
            windows.retries.add(now);
            windows.recent.add(now);
        }
        allowed
    }
}

impl Windows {
    fn since_start(&mut self, now: Instant) -> Duration {
        now.saturating_duration_since(*self.start.get_or_insert(now))
    }
}

/// A count of the latest time, by parts of equal length.
#[derive(Debug)]
struct Window {
    part: u128,
    counts: Vec<u64>,
    /// Number of the latest part, counted from the start.
    latest: u128,
}

impl Window {
    fn new(interval: Duration, parts: u32) -> Window {
        Window { part: (interval / PARTS).as_nanos().max(1), counts: vec![0; parts as usize], latest: 0 }
    }

    /// Forgets what is too old. A time before the latest counts as the latest: threads may come in another order than their times.
    fn advance(&mut self, now: Duration) -> usize {
        let part = now.as_nanos() / self.part;
        let parts = self.counts.len() as u128;
        if part > self.latest {
            if part - self.latest >= parts {
                self.counts.fill(0);
            } else {
                for old in self.latest + 1..=part {
                    self.set((old % parts) as usize, 0);
                }
            }
            self.latest = part;
        }
        (self.latest % parts) as usize
    }

    fn set(&mut self, place: usize, count: u64) {
        if let Some(old) = self.counts.get_mut(place) {
            *old = count;
        }
    }

    fn add(&mut self, now: Duration) {
        let place = self.advance(now);
        if let Some(count) = self.counts.get_mut(place) {
            *count += 1;
        }
    }

    fn sum(&mut self, now: Duration) -> u64 {
        self.advance(now);
        self.counts.iter().sum()
    }
}
