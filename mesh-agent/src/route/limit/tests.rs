use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_burst_then_the_rate() {
    let (bucket, start) = (Bucket::new(10, SECOND, 5), Instant::now());
    for left in (0..5).rev() {
        assert_eq!(bucket.take(start, 1), Ok(Remaining { left, reset: SECOND / 10 * (5 - left) }));
    }
    let exceeded = Exceeded { retry_after: SECOND / 10, reset: SECOND / 2 };
    assert_eq!(bucket.take(start, 1), Err(exceeded));
    assert_eq!(bucket.take(start, 1), Err(exceeded));
    assert!(bucket.take(start + exceeded.retry_after - Duration::from_nanos(1), 1).is_err());
    assert!(bucket.take(start + exceeded.retry_after, 1).is_ok());
    assert_eq!(bucket.take(start + SECOND / 10, 3), Err(Exceeded { retry_after: SECOND * 3 / 10, reset: SECOND / 2 }));
    assert_eq!(bucket.take(start + SECOND * 10, 2), Ok(Remaining { left: 3, reset: SECOND / 5 }));
    // A thread whose time is older gives nothing back.
    assert_eq!(bucket.take(start, 5).unwrap_err().retry_after, SECOND * 10 + SECOND / 5);
}

#[test]
fn thirds_of_a_nanosecond_are_not_lost() {
    let (bucket, start) = (Bucket::new(3, Duration::from_nanos(10), 1), Instant::now());
    let passed = (0..3000u64).filter(|nanos| bucket.take(start + Duration::from_nanos(*nanos), 1).is_ok()).count();
    // One in 3 1/3 ns, seen at whole ones only: each waits for the next whole one.
    assert_eq!(passed, 750);
    let (bucket, mut left) = (Bucket::new(7, SECOND, 7), 0);
    for second in 0..1000 {
        left = (0..7).map(|_| bucket.take(start + SECOND * second, 1).unwrap().left).last().unwrap();
    }
    assert_eq!(left, 0);
}

#[test]
fn extremes() {
    let now = Instant::now();
    let never = Err(Exceeded { retry_after: Duration::MAX, reset: Duration::ZERO });
    assert_eq!(Bucket::new(0, SECOND, 5).take(now, 1), never);
    assert_eq!(Bucket::new(5, SECOND, 5).take(now, 6), never);
    assert!(Bucket::new(5, SECOND, 0).take(now, 1).is_ok());
    let free = Bucket::new(5, Duration::ZERO, 5);
    assert!((0..100).all(|_| free.take(now, 5) == Ok(Remaining { left: 5, reset: Duration::ZERO })));
    let huge = Bucket::new(u32::MAX, Duration::MAX, u32::MAX);
    assert!(huge.take(now, u32::MAX).is_ok() && huge.take(now, 1).is_err());
}

#[test]
fn the_oldest_key_goes() {
    let (buckets, now) = (Buckets::new(1, SECOND, 1, 2), Instant::now());
    assert!(buckets.is_empty());
    assert!(buckets.take(now, &"a", 1).is_ok() && buckets.take(now, &"b", 1).is_ok());
    assert!(buckets.take(now, &"a", 1).is_err());
    assert!(buckets.take(now, &"c", 1).is_ok());
    assert!(buckets.take(now, &"a", 1).is_err());
    assert_eq!((buckets.len(), buckets.dropped()), (2, 1));
    assert!(buckets.take(now, &"b", 1).is_ok());
    assert!(buckets.take(now + SECOND * 2, &"d", 1).is_ok());
    assert_eq!((buckets.len(), buckets.dropped()), (2, 2));
}

#[test]
fn threads_share_one_budget() {
    let (bucket, now) = (Bucket::new(1, SECOND, 100), Instant::now());
    let passed: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| (0..1000).filter(|_| bucket.take(now, 1).is_ok()).count())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(passed, 100);
}

#[test]
fn what_is_given_back_can_be_taken_again() {
    let (bucket, start) = (Bucket::new(10, SECOND, 2), Instant::now());
    assert!(bucket.take(start, 1).is_ok() && bucket.take(start, 1).is_ok() && bucket.take(start, 1).is_err());
    bucket.give_back(1);
    assert!(bucket.take(start, 1).is_ok() && bucket.take(start, 1).is_err());
    let keyed = Buckets::new(10, SECOND, 1, 5);
    assert!(keyed.take(start, &"a", 1).is_ok() && keyed.take(start, &"b", 1).is_ok());
    keyed.give_back(&"a", 1);
    keyed.give_back(&"nobody", 1);
    assert!(keyed.take(start, &"b", 1).is_err());
    assert!(keyed.take(start, &"a", 1).is_ok() && keyed.take(start, &"a", 1).is_err());
}

#[test]
fn another_shape_is_no_new_budget() {
    let (bucket, start) = (Bucket::new(10, SECOND, 10), Instant::now());
    assert!(bucket.take(start, 10).is_ok());
    // Half of it: what was taken is still owed.
    bucket.reshape(SECOND * 2, 5);
    assert!(bucket.take(start, 1).is_err());
    let later = start + SECOND;
    assert_eq!(bucket.take(later, 5), Ok(Remaining { left: 0, reset: SECOND }));
    bucket.reshape(SECOND, 10);
    assert!(bucket.take(later, 1).is_err(), "a second's worth is owed, which is all there is");
    assert!(bucket.take(later + SECOND / 10, 1).is_ok());
}

#[test]
fn a_share_that_moves_takes_what_it_holds_along_and_gets_no_more() {
    let (bucket, start) = (Bucket::new(10, SECOND, 10), Instant::now());
    assert!(bucket.take(start, 4).is_ok());
    bucket.recast(start, SECOND * 2, 5, 0);
    assert_eq!(bucket.take(start, 1).unwrap().left, 4, "of six there is room for five");
    bucket.recast(start, SECOND, 10, 0);
    assert_eq!(bucket.take(start, 1).unwrap().left, 3, "nothing comes with a larger share");
    assert_eq!(bucket.take(start + SECOND / 2, 1).unwrap().left, 7, "but its rate");
    bucket.recast(start + SECOND / 2, SECOND * 1000, 1, 0);
    assert!(bucket.take(start + SECOND / 2, 1).is_ok());
    assert!(bucket.take(start + SECOND, 1).is_err());
    // Half of one that is on its way stays half of one.
    bucket.recast(start + SECOND * 51, SECOND * 10, 1, 0);
    assert!(bucket.take(start + SECOND * 51 + SECOND * 4 / 10, 1).is_err());
    assert!(bucket.take(start + SECOND * 51 + SECOND * 6 / 10, 1).is_ok());
    assert_eq!(bucket.asked(), 11, "what was refused counts too");
}

#[test]
fn room_beyond_the_burst_is_for_what_comes_unevenly_and_not_for_more_at_once() {
    let millis = Duration::from_millis;
    // A fifth of 40 a second: one in 125 ms.
    let passed = |beyond: u32| {
        let start = Instant::now();
        let bucket = Bucket::new(40, SECOND * 5, 1);
        bucket.recast(start, SECOND * 5, 1, beyond);
        let moments = (0..100_u64).map(|turn| start + millis(turn * 125 + turn % 3 * 30));
        moments.filter(|moment| bucket.take(*moment, 1).is_ok()).count()
    };
    assert_eq!((passed(500), passed(0)), (100, 67));
    let (start, bucket) = (Instant::now(), Bucket::new(40, SECOND * 5, 1));
    bucket.recast(start, SECOND * 5, 1, 500);
    let full = start + SECOND * 60;
    assert_eq!(bucket.take(full, 1).map(|remaining| remaining.left), Ok(0));
    assert_eq!(bucket.take(full, 1).map_err(|exceeded| exceeded.retry_after), Err(millis(125) / 2));
    assert!(bucket.take(full + millis(63), 1).is_ok());
    assert!(bucket.take(full + millis(125), 1).is_err(), "what came early is missing later");
}

#[test]
fn what_is_taken_out_of_one_is_put_into_another() {
    let (older, newer, now) = (Bucket::new(10, SECOND, 10), Bucket::new(10, SECOND, 10), Instant::now());
    assert!(older.take(now, 6).is_ok());
    let level = older.empty(now + SECOND / 20);
    assert_eq!(level, 4_500_000);
    assert!(older.take(now + SECOND / 20, 1).is_err());
    newer.fill(now, level);
    assert_eq!(newer.take(now, 4).unwrap().left, 0);
    assert!(newer.take(now, 1).is_err() && newer.take(now + SECOND / 20, 1).is_ok());
    newer.fill(now, u64::MAX);
    assert_eq!(newer.take(now, 1).unwrap().left, 9, "there is no more room");
}

proptest! {
    #[test]
    fn no_window_has_more_than_its_share(
        limit in 1u32..50,
        per in 1u64..5_000_000_000,
        burst in 1u32..20,
        steps in prop::collection::vec((0u64..1_000_000_000, 1u32..4), 1..120),
    ) {
        let bucket = Bucket::new(limit, Duration::from_nanos(per), burst);
        let mut now = Instant::now();
        bucket.take(now, 0).unwrap();
        let (start, mut passed) = (now, Vec::<(Instant, u32)>::new());
        for (wait, n) in steps {
            now += Duration::from_nanos(wait / u64::from(limit));
            match bucket.take(now, n) {
                Ok(remaining) => {
                    passed.push((now, n));
                    prop_assert!(remaining.left <= burst - n);
                    let State { rate, mut full, .. } = *bucket.state.lock();
                    prop_assert!(rate.take(&mut full, now - start, remaining.left).is_ok());
                    prop_assert!(rate.take(&mut full, now - start, 1).is_err());
                }
                Err(exceeded) if n > burst => prop_assert_eq!(exceeded.retry_after, Duration::MAX),
                Err(exceeded) => prop_assert!(!exceeded.retry_after.is_zero()),
            }
        }
        for (first, (start, _)) in passed.iter().enumerate() {
            let mut sum = 0u128;
            for (end, n) in &passed[first..] {
                sum += u128::from(*n);
                let nanos = (*end - *start).as_nanos();
                prop_assert!((sum - u128::from(burst.min(sum as u32))) * u128::from(per) <= u128::from(limit) * nanos);
            }
        }
    }

    #[test]
    fn waiting_as_told_is_enough(limit in 1u32..1000, per in 1u64..10_000_000_000, burst in 1u32..20, n in 1u32..20) {
        let (bucket, mut now) = (Bucket::new(limit, Duration::from_nanos(per), burst), Instant::now());
        for _ in 0..50 {
            match bucket.take(now, n.min(burst)) {
                Ok(_) => {}
                Err(exceeded) => {
                    now += exceeded.retry_after;
                    prop_assert!(bucket.take(now, n.min(burst)).is_ok());
                }
            }
        }
    }

    #[test]
    fn never_more_keys_than_allowed(max in 0usize..6, keys in prop::collection::vec((0u8..12, 0u64..2000), 0..200)) {
        let (buckets, mut now) = (Buckets::new(2, SECOND, 3, max), Instant::now());
        for (key, wait) in keys {
            now += Duration::from_millis(wait);
            let _ = buckets.take(now, &key, 1);
            prop_assert!(buckets.len() <= max.max(1));
            prop_assert_eq!(buckets.state.lock().uses.len(), buckets.len());
        }
    }
}
