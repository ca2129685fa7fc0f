//! How long a certificate is valid. Pure.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Most that a certificate's begin is put before the moment of issue, for peers whose clocks are behind.
pub const BACKDATE: Duration = Duration::from_secs(60);

/// Bounds of the lifetimes that are issued.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lifetimes {
    /// Where none is asked for.
    pub default: Duration,
    /// The longest.
    pub max: Duration,
}

/// From when to when; both ends belong to it, in whole seconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Validity {
    /// First moment.
    pub not_before: SystemTime,
    /// Last moment.
    pub not_after: SystemTime,
}

impl Validity {
    /// Whether `now` lies in it.
    pub fn contains(&self, now: SystemTime) -> bool {
        self.not_before <= now && now <= self.not_after
    }

    /// The middle, when it is time for a successor.
    pub fn half(&self) -> SystemTime {
        self.not_before + self.not_after.duration_since(self.not_before).unwrap_or_default() / 2
    }
}

impl Lifetimes {
    /// The lifetime for a request of `seconds`: not more than the most; the default if it is not positive, as Istio has it.
    pub fn grant(&self, seconds: i64) -> Duration {
        match u64::try_from(seconds) {
            Ok(0) | Err(_) => self.default.min(self.max),
            Ok(seconds) => Duration::from_secs(seconds).min(self.max),
        }
    }
}

/// Validity of a certificate issued `now` for `lifetime` by an issuer that is valid itself as `issuer` says; `None` if there is nothing
/// left of that.
///
/// The begin is back-dated by [`BACKDATE`], but by no more than a tenth of the lifetime: clients that renew at the middle between begin
/// and end (ztunnel does) would otherwise renew short-lived certificates without pause.
pub fn validity(now: SystemTime, lifetime: Duration, issuer: &Validity) -> Option<Validity> {
    let not_before = whole(now - BACKDATE.min(lifetime / 10)).max(issuer.not_before);
    let not_after = whole(now.checked_add(lifetime)?).min(issuer.not_after);
    (issuer.contains(now) && not_after > now).then_some(Validity { not_before, not_after })
}

/// Without the part of a second, which X.509 cannot express.
fn whole(time: SystemTime) -> SystemTime {
    time.duration_since(UNIX_EPOCH).map_or(UNIX_EPOCH, |since| UNIX_EPOCH + Duration::from_secs(since.as_secs()))
}

#[cfg(test)]
mod tests;
