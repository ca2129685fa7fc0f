//! When a certificate is renewed, and when a failed attempt is repeated. Pure; the moments and the chance are passed in.

use std::time::{Duration, SystemTime};

/// First pause after a failure.
const FIRST: Duration = Duration::from_millis(500);
/// Longest pause while there is no valid certificate.
const LONGEST: Duration = Duration::from_secs(30);
/// Longest pause while there is one.
const LONGEST_WITH: Duration = Duration::from_secs(600);
/// Shortest time from one issuance to the next: a certificate that ends too soon must not make an endless loop.
pub const SHORTEST: Duration = Duration::from_secs(1);

/// When to renew a certificate that came at `issued`: between 45% and 55% of the time that it is still valid, as `random` (0 to 1) says,
/// so that the pods of a node that started together don't ask together for ever.
///
/// What lies before `issued` doesn't count: authorities date back.
pub fn renew_at(issued: SystemTime, not_after: SystemTime, random: f64) -> SystemTime {
    let left = not_after.duration_since(issued).unwrap_or_default();
    issued + left.mul_f64(0.45 + 0.1 * clamp(random)).max(SHORTEST)
}

/// How long to wait after the `failures`-th failure in a row: from half a second, doubled each time, up to 30 s; with a certificate that
/// is valid for `left` up to a tenth of that, but ten minutes at most. Of that, between half and all, as `random` (0 to 1) says.
pub fn retry_in(failures: u32, left: Option<Duration>, random: f64) -> Duration {
    let longest = match left {
        None | Some(Duration::ZERO) => LONGEST,
        Some(left) => (left / 10).clamp(SHORTEST, LONGEST_WITH),
    };
    let doubled = FIRST.saturating_mul(1 << failures.saturating_sub(1).min(20));
    doubled.min(longest).mul_f64(0.5 + 0.5 * clamp(random))
}

fn clamp(random: f64) -> f64 {
    if random.is_nan() { 0.5 } else { random.clamp(0.0, 1.0) }
}

#[cfg(test)]
mod tests;
