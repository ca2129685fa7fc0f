//! When to try again, and when to publish. Pure: time and chance come as arguments.

use std::time::Duration;

use tokio::time::Instant;

/// Waits between attempts, growing while they fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BackoffSettings {
    /// After the first failure.
    pub first: Duration,
    /// At most.
    pub most: Duration,
}

/// Counts failures in a row.
#[derive(Debug)]
pub(super) struct Backoff {
    settings: BackoffSettings,
    failures: u32,
    last: Option<Instant>,
}

impl Backoff {
    pub(super) fn new(settings: BackoffSettings) -> Backoff {
        Backoff { settings, failures: 0, last: None }
    }

    /// It works again.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// How long to wait after a failure at `now`; `chance` is in 0..1. Half of the time is chance, so that a thousand nodes that lost
    /// the server together don't come back together. A failure long after the one before is a new beginning.
    pub(super) fn failed(&mut self, now: Instant, chance: f64) -> Duration {
        if self.last.is_some_and(|last| now.saturating_duration_since(last) > self.settings.most * 4) {
            self.failures = 0;
        }
        self.last = Some(now);
        let grown = self.settings.first.saturating_mul(1 << self.failures.min(16)).min(self.settings.most);
        self.failures = self.failures.saturating_add(1);
        grown.mul_f64(0.5 + chance.clamp(0.0, 1.0) / 2.0)
    }
}

/// Gathers changes that come in a burst.
#[derive(Debug)]
pub(super) struct Debounce {
    quiet: Duration,
    patience: Duration,
    /// First and last change that has not been published.
    pending: Option<(Instant, Instant)>,
    /// A change that somebody waits for.
    urgent: Option<Instant>,
}

impl Debounce {
    /// Publishes after `quiet` without a change, but at the latest `patience` after the first.
    pub(super) fn new(quiet: Duration, patience: Duration) -> Debounce {
        Debounce { quiet, patience, pending: None, urgent: None }
    }

    /// Something changed.
    pub(super) fn changed(&mut self, now: Instant) {
        self.pending = Some((self.pending.map_or(now, |(first, _)| first), now));
    }

    /// Something changed that somebody waits for: it is published at once.
    pub(super) fn urgent(&mut self, now: Instant) {
        self.urgent.get_or_insert(now);
    }

    /// When to publish; `None` if there is nothing to.
    pub(super) fn due(&self) -> Option<Instant> {
        let quiet = self.pending.map(|(first, last)| (last + self.quiet).min(first + self.patience));
        quiet.into_iter().chain(self.urgent).min()
    }

    /// It was published.
    pub(super) fn done(&mut self) {
        self.pending = None;
        self.urgent = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound_and_start_over() {
        let mut backoff = Backoff::new(BackoffSettings { first: Duration::from_millis(100), most: Duration::from_secs(2) });
        let now = Instant::now();
        let waits: Vec<u128> = (0..7).map(|_| backoff.failed(now, 1.0).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 2000, 2000]);
        assert_eq!(backoff.failed(now, 0.0).as_millis(), 1000);
        backoff.reset();
        assert_eq!(backoff.failed(now, 0.5).as_millis(), 75);
        assert_eq!(backoff.failed(now + Duration::from_secs(9), 1.0).as_millis(), 100);
        for _ in 0..100 {
            assert!(backoff.failed(now, 1.0) <= Duration::from_secs(2));
        }
    }

    #[test]
    fn a_burst_is_published_once_and_not_too_late() {
        let (start, ms) = (Instant::now(), Duration::from_millis);
        let mut debounce = Debounce::new(ms(20), ms(200));
        assert_eq!(debounce.due(), None);
        debounce.changed(start);
        assert_eq!(debounce.due(), Some(start + ms(20)));
        debounce.changed(start + ms(15));
        assert_eq!(debounce.due(), Some(start + ms(35)));
        debounce.changed(start + ms(190));
        assert_eq!(debounce.due(), Some(start + ms(200)));
        debounce.done();
        assert_eq!(debounce.due(), None);
    }

    #[test]
    fn what_somebody_waits_for_is_published_at_once() {
        let (start, ms) = (Instant::now(), Duration::from_millis);
        let mut debounce = Debounce::new(ms(20), ms(200));
        debounce.changed(start);
        debounce.urgent(start + ms(5));
        debounce.urgent(start + ms(7));
        assert_eq!(debounce.due(), Some(start + ms(5)));
        debounce.done();
        assert_eq!(debounce.due(), None);
    }
}
