use proptest::prelude::*;

use super::*;

const MILLI: Duration = Duration::from_millis(1);

#[test]
fn rises_at_once_and_falls_slowly() {
    let start = Instant::now();
    let ewma = Ewma::new(start);
    assert_eq!(ewma.micros(start), 0);
    ewma.observe(start, MILLI);
    assert_eq!(ewma.micros(start), 1000);
    ewma.observe(start, 50 * MILLI);
    assert_eq!(ewma.micros(start), 50_000);
    let mut now = start;
    for _ in 0..1000 {
        now += 10 * MILLI;
        ewma.observe(now, MILLI);
    }
    let expected = 1000.0 + 49_000.0 / std::f64::consts::E;
    assert!((f64::from(ewma.micros(now)) - expected).abs() < expected * 0.01, "{}", ewma.micros(now));
    assert!(ewma.micros(now + 30 * TIME_CONSTANT) == 0);
}

#[test]
fn many_fast_answers_count_as_time_does() {
    let start = Instant::now();
    let ewma = Ewma::new(start);
    ewma.observe(start, 10 * MILLI);
    for micro in 0..1_000_000u64 {
        ewma.observe(start + Duration::from_micros(micro * 10), MILLI);
    }
    let expected = 1000.0 + 9000.0 / std::f64::consts::E;
    let seen = f64::from(ewma.micros(start + TIME_CONSTANT));
    assert!((seen - expected).abs() < expected * 0.02, "{seen}");
}

#[test]
fn what_is_not_asked_is_forgotten_within_seconds() {
    let start = Instant::now();
    let ewma = Ewma::new(start);
    ewma.observe(start, 100 * MILLI);
    assert!(ewma.micros(start + FRESH) > 90_000, "a second's pause says nothing");
    let later = start + FRESH + 4 * FORGETTING;
    assert!(ewma.micros(later) < 2000, "{}", ewma.micros(later));
    // A fast answer now counts for more than what was known long ago, a slow one at once.
    ewma.observe(later, MILLI);
    assert!(ewma.micros(later) < 3000, "{}", ewma.micros(later));
    ewma.observe(later, 100 * MILLI);
    assert_eq!(ewma.micros(later), 100_000);
}

proptest! {
    #[test]
    fn stays_within_what_was_seen(seen in prop::collection::vec((0u64..100, 1u64..10_000_000), 1..100)) {
        let mut now = Instant::now();
        let ewma = Ewma::new(now);
        let (mut least, mut most) = (u64::MAX, 0);
        for (wait, micros) in seen {
            now += Duration::from_millis(wait);
            ewma.observe(now, Duration::from_micros(micros));
            (least, most) = (least.min(micros), most.max(micros));
            let average = f64::from(ewma.micros(now));
            prop_assert!(average >= least as f64 * 0.999 - 1.0 && average <= most as f64 * 1.001 + 1.0);
        }
    }
}
