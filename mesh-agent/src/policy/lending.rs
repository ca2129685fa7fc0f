//! What a node holds of a budget that mesh-control lends, and what it needs. Pure: the moment is passed in.
//!
//! Without a loan a node has its fair share. A loan that lapses leaves it with the smaller of the two for a while: what it had not of its fair
//! share is lent to others, and their loans must lapse too before it takes that back.

use std::time::{Duration, Instant};

use mesh_model::limit::{Fair, WHOLE};

/// A share that was lent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lent {
    /// In parts of [`WHOLE`].
    pub parts: u32,
    /// Since when.
    pub since: Instant,
    /// Until when it is good.
    pub until: Instant,
    /// From when on nobody has what was lent of the rest.
    pub over: Instant,
}

impl Lent {
    /// By an answer of `parts` for `lifetime` to a request that was made at `asked`, and came at `now`. It ends a little before its time:
    /// shares are looked at no more often than each `look`.
    pub fn answered(parts: u32, asked: Instant, now: Instant, lifetime: Duration, look: Duration) -> Lent {
        Lent { parts: parts.min(WHOLE), since: now, until: asked + lifetime.saturating_sub(look), over: now + lifetime * 2 }
    }
}

/// What a node holds of one budget.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Holding {
    fair: Fair,
    lent: Option<Lent>,
    /// Loans that lapsed.
    lapsed: u64,
}

impl Holding {
    /// The fair share.
    pub fn new(fair: Fair) -> Holding {
        Holding { fair, lent: None, lapsed: 0 }
    }

    /// The fair share is another.
    pub fn shared(&mut self, fair: Fair) {
        self.fair = fair;
    }

    /// A share is lent in the place of the one before.
    pub fn lend(&mut self, lent: Lent) {
        self.lent = Some(lent);
    }

    /// What is held, in parts of [`WHOLE`].
    pub fn parts(&mut self, now: Instant) -> u32 {
        let fair = self.fair.parts();
        let Some(lent) = self.lent else { return fair };
        if now < lent.until {
            return lent.parts;
        }
        if now < lent.over {
            return lent.parts.min(fair);
        }
        self.lent = None;
        self.lapsed += 1;
        fair
    }

    /// Since when the share is lent, if it is.
    pub fn since(&self, now: Instant) -> Option<Instant> {
        self.lent.filter(|lent| now < lent.until).map(|lent| lent.since)
    }

    /// How often the node went back to its fair share because no loan came.
    pub fn lapsed(&self) -> u64 {
        self.lapsed
    }
}

/// Measures how often something is asked for, smoothly.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Meter {
    /// Over how long what was measured counts.
    over: Duration,
    /// A second.
    rate: f64,
    /// The same over [`LONGER`] times as long.
    steady: f64,
    last: Option<(Instant, u64)>,
}

/// Longest and shortest time over which demand is measured.
const OVER: (Duration, Duration) = (Duration::from_millis(700), Duration::from_secs(30));
/// Requests in that time that are too few to tell a pause from an end by it, and how much longer they are measured over.
const FEW: f64 = 5.0;
const LONGER: f64 = 4.0;
/// What is asked for beyond a few, and in parts of these few beyond what is just more, as far as it is not much more.
const ROOM: f64 = 1.25;
const LESS_ROOM: f64 = 0.05;
/// Standard deviations of a number of requests that come by chance, within which it is taken for what it always is.
const CHANCE: f64 = 2.0;

impl Meter {
    /// For a limit of so many in a time: over the time in which ten are let through, so that one that lets few through is not shared by
    /// chance.
    pub fn new(requests: u32, per: Duration) -> Meter {
        let ten = per.saturating_mul(10) / requests.max(1);
        Meter { over: ten.clamp(OVER.0, OVER.1), rate: 0.0, steady: 0.0, last: None }
    }

    /// There were `count` in all so far.
    pub fn read(&mut self, now: Instant, count: u64) {
        let Some((then, before)) = self.last.replace((now, count)) else { return };
        let time = now.saturating_duration_since(then).as_secs_f64();
        if time <= 0.0 {
            self.last = Some((then, before));
            return;
        }
        let seen = count.saturating_sub(before) as f64 / time;
        let over = self.over.as_secs_f64();
        self.rate += (seen - self.rate) * (1.0 - (-time / over).exp());
        self.steady += (seen - self.steady) * (1.0 - (-time / over / LONGER).exp());
    }

    /// What is asked for in the time of a limit, in parts of what it lets through.
    pub fn demand(&self, requests: u32, per: Duration) -> u64 {
        let over = self.over.as_secs_f64();
        // What differs by chance alone is no change: a share that followed it would be on its way for nothing, where nobody can use it.
        let noise = CHANCE * (self.steady / (2.0 * over)).sqrt();
        let rate = if (self.rate - self.steady).abs() <= noise { self.steady } else { self.rate };
        // Of a few the time between them is not their absence, and they do not come evenly: with just their number some would come too early.
        let few = FEW / over;
        let rate =
            if rate < few { (self.rate.max(self.steady) * ROOM).min(few * (1.0 + LESS_ROOM)) } else { rate + LESS_ROOM * few * few / rate };
        let parts = rate * per.as_secs_f64() / f64::from(requests.max(1)) * f64::from(WHOLE);
        // A cast from float saturates.
        parts.round() as u64
    }
}

/// A share of a limit: its requests in how much more time, and its burst in whole numbers, 1 at least. All shares together have at once what
/// the limit has, or as many as there are shares, or one more: only one of them can be more than half.
pub fn part(per: Duration, burst: u32, parts: u32) -> (Duration, u32) {
    let parts = u128::from(parts.clamp(1, WHOLE));
    let nanos = (per.as_nanos() * u128::from(WHOLE)).div_ceil(parts);
    let (seconds, rest) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
    let per = Duration::new(u64::try_from(seconds).unwrap_or(u64::MAX), u32::try_from(rest).unwrap_or_default());
    let whole = if parts * 2 > u128::from(WHOLE) {
        // To the nearest: cut off, a node with nine tenths of two would have one at once, and lose what comes in while nobody asks.
        (u128::from(burst) * parts + u128::from(WHOLE) / 2) / u128::from(WHOLE)
    } else {
        // A fair share is rounded down: a third of three is still one.
        u128::from(burst) * (parts + 1) / u128::from(WHOLE)
    };
    (per, u32::try_from(whole).unwrap_or(u32::MAX).clamp(1, burst.max(1)))
}

/// Room beyond a share's burst (see [`Bucket::recast`](crate::route::limit::Bucket::recast)): half of one where the share of a larger burst
/// is one. What comes a little unevenly would be refused else, although it is no more than the share.
pub fn beyond(burst: u32, part: u32) -> u32 {
    if part == 1 && burst > 1 { 500 } else { 0 }
}

#[cfg(test)]
mod tests;
