use std::time::UNIX_EPOCH;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn renews_around_half_life() {
    let end = UNIX_EPOCH + 100 * HOUR;
    let at = |random| renew_at(UNIX_EPOCH, end, random).duration_since(UNIX_EPOCH).unwrap().as_secs() / 360;
    assert_eq!([0.0, 0.5, 1.0].map(at), [450, 500, 550]);
    // Chance out of bounds is bounded.
    assert_eq!([-5.0, f64::NAN, 7.0].map(at), [450, 500, 550]);
}

#[test]
fn never_renews_without_pause() {
    for left in [Duration::ZERO, Duration::from_millis(1), SECOND] {
        assert_eq!(renew_at(UNIX_EPOCH + HOUR, UNIX_EPOCH + HOUR + left, 0.0), UNIX_EPOCH + HOUR + SECOND);
    }
    assert_eq!(renew_at(UNIX_EPOCH + HOUR, UNIX_EPOCH, 1.0), UNIX_EPOCH + HOUR + SECOND);
}

#[test]
fn retries_ever_more_slowly_up_to_a_limit() {
    let all = |left| [1, 2, 3, 4, 7, 8, 30, u32::MAX].map(|failures| retry_in(failures, left, 1.0).as_millis());
    assert_eq!(all(None), [500, 1000, 2000, 4000, 30_000, 30_000, 30_000, 30_000]);
    assert_eq!(all(Some(Duration::ZERO)), all(None));
    assert_eq!(all(Some(HOUR)), [500, 1000, 2000, 4000, 32_000, 64_000, 360_000, 360_000]);
    assert_eq!(all(Some(24 * HOUR))[7], 600_000);
    assert_eq!(all(Some(5 * SECOND)), [500, 1000, 1000, 1000, 1000, 1000, 1000, 1000]);
    assert_eq!(retry_in(1, None, 0.0), Duration::from_millis(250));
    assert_eq!(retry_in(0, None, 1.0), Duration::from_millis(500));
}
