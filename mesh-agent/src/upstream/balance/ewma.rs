//! How long an endpoint takes to answer, as the balancer sees it: a peak-sensitive moving average (Finagle's and linkerd's peak EWMA).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

#[cfg(test)]
mod tests;

/// After this time of fast answers 1/e of a peak is left.
const TIME_CONSTANT: Duration = Duration::from_secs(10);
/// For so long without an answer the average falls no faster than by fast ones.
const FRESH: Duration = Duration::from_secs(1);
/// After this time without any answer 1/e of what was known is left: a single slow answer, of a server that was just starting, must not cost an
/// endpoint its share for longer than seconds, since as long as it is avoided it cannot show that it has become fast.
const FORGETTING: Duration = Duration::from_secs(2);

/// Average of an endpoint's response times. It follows a slower answer at once and a faster one slowly, so that an endpoint in trouble is
/// avoided from its first slow answer on. Without answers it falls too, and faster: one that was slow is tried again after seconds.
#[derive(Debug)]
pub struct Ewma {
    start: Instant,
    /// Milliseconds since the start, then the average in microseconds as a float (0: unknown), 32 bits each: both change at once.
    packed: AtomicU64,
}

impl Ewma {
    /// One that knows nothing. `now` is any time before the first observation.
    pub fn new(now: Instant) -> Ewma {
        Ewma { start: now, packed: AtomicU64::new(0) }
    }

    /// Takes note of a response time.
    pub fn observe(&self, now: Instant, rtt: Duration) {
        let seen = (rtt.as_secs_f32() * 1e6).max(1.0);
        let now = self.millis(now);
        let update = |packed| {
            let (at, average) = unpack(packed);
            if seen >= average {
                return Some(pack(now.max(at), seen));
            }
            let left = left_after(now.saturating_sub(at));
            // Within one millisecond the average keeps; the next observation then counts for the whole of it.
            (left < 1.0).then(|| pack(now.max(at), average * left + seen * (1.0 - left)))
        };
        // An update that is not needed is no failure.
        let _ = self.packed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update);
    }

    /// The average in microseconds at a time; 0 if nothing is known.
    pub fn micros(&self, now: Instant) -> u32 {
        let (at, average) = unpack(self.packed.load(Ordering::Relaxed));
        (average * left_after(self.millis(now).saturating_sub(at))).round() as u32
    }

    fn millis(&self, now: Instant) -> u32 {
        u32::try_from(now.saturating_duration_since(self.start).as_millis()).unwrap_or(u32::MAX)
    }
}

/// Part of a value that is left after a time without an answer.
fn left_after(millis: u32) -> f32 {
    let gap = Duration::from_millis(millis.into());
    let fresh = gap.min(FRESH);
    (-(fresh.as_secs_f32() / TIME_CONSTANT.as_secs_f32() + (gap - fresh).as_secs_f32() / FORGETTING.as_secs_f32())).exp()
}

fn pack(at: u32, average: f32) -> u64 {
    (u64::from(at) << 32) | u64::from(average.to_bits())
}

fn unpack(packed: u64) -> (u32, f32) {
    ((packed >> 32) as u32, f32::from_bits(packed as u32))
}
