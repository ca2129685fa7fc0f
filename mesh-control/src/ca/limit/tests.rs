use std::time::Duration;

use super::*;

#[test]
fn a_burst_then_the_rate_and_each_node_for_itself() {
    let mut limiter = Limiter::new(Rate { per_second: 2.0, burst: 3.0 });
    let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
    let start = Instant::now();
    assert_eq!([(); 4].map(|()| limiter.admit(&a, start)), [true, true, true, false]);
    assert!(limiter.admit(&b, start));
    let later = start + Duration::from_millis(500);
    assert_eq!([(); 2].map(|()| limiter.admit(&a, later)), [true, false]);
    // Time that runs backwards gives nothing.
    assert!(!limiter.admit(&a, start));
    limiter.sweep(later + Duration::from_secs(60));
    assert!(limiter.buckets.is_empty());
    assert_eq!([(); 4].map(|()| limiter.admit(&a, later)), [true, true, true, false]);
}
