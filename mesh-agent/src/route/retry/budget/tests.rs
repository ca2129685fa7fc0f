use std::sync::atomic::AtomicUsize;

use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn settings(percent: u32, minimum: u32) -> RetryBudget {
    RetryBudget { percent, interval: 10 * SECOND, minimum, minimum_interval: SECOND }
}

fn retries(budget: &Budget, now: Instant) -> usize {
    (0..1000).take_while(|_| budget.try_retry(now)).count()
}

#[test]
fn a_percentage_of_the_intervals_requests() {
    let start = Instant::now();
    let budget = Budget::new(settings(20, 0), start);
    assert_eq!(retries(&budget, start), 0);
    (0..100).for_each(|_| budget.request(start));
    assert_eq!(retries(&budget, start), 20);
    (0..50).for_each(|_| budget.request(start + 5 * SECOND));
    assert_eq!(retries(&budget, start + 5 * SECOND), 10);
    // The first hundred are forgotten a part before their retries are.
    assert_eq!(retries(&budget, start + 10 * SECOND), 0);
    assert_eq!(retries(&budget, start + 11 * SECOND), 0);
    (0..5).for_each(|_| budget.request(start + 11 * SECOND));
    assert_eq!(retries(&budget, start + 11 * SECOND), 1);
    assert_eq!(retries(&budget, start + 100 * SECOND), 0);
}

#[test]
fn a_minimum_whatever_the_percentage() {
    let start = Instant::now();
    let budget = Budget::new(settings(20, 3), start);
    assert_eq!(retries(&budget, start), 3);
    assert_eq!(retries(&budget, start + SECOND / 2), 0);
    assert_eq!(retries(&budget, start + SECOND * 11 / 10), 3);
    // A thread whose time is older.
    assert!(!budget.try_retry(start));
    // One from before the budget was made.
    assert!(!budget.try_retry(start.checked_sub(SECOND).unwrap_or(start)));
}

#[test]
fn what_is_refused_is_not_counted() {
    let start = Instant::now();
    let budget = Budget::new(settings(50, 0), start);
    (0..500).for_each(|_| assert!(!budget.try_retry(start)));
    (0..10).for_each(|_| budget.request(start));
    assert_eq!(retries(&budget, start), 5);
    let all = Budget::new(settings(100, 0), start);
    (0..10).for_each(|_| all.request(start));
    assert_eq!(retries(&all, start), 10);
}

#[test]
fn threads_together_get_no_more_than_it_says() {
    let start = Instant::now();
    let budget = Budget::new(settings(20, 7), start);
    (0..1000).for_each(|_| budget.request(start));
    let made = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let own = (0..2000).filter(|_| budget.try_retry(start)).count();
                made.fetch_add(own, Ordering::Relaxed);
            });
        }
    });
    // 20 % of a thousand; the minimum is a part of that.
    let made = made.into_inner();
    assert!((7..=200).contains(&made), "{made}");
    // What was refused left nothing behind: the rest may still be had.
    assert_eq!(made + retries(&budget, start), 200);
}

proptest! {
    #[test]
    fn never_more_than_the_budget(
        percent in 0u32..=100,
        minimum in 0u32..5,
        steps in prop::collection::vec((0u64..700, any::<bool>()), 1..300),
    ) {
        let settings = settings(percent, minimum);
        let mut now = Instant::now();
        let budget = Budget::new(settings.clone(), now);
        let (mut requests, mut made) = (Vec::new(), Vec::new());
        for (wait, retry) in steps {
            now += Duration::from_millis(wait);
            let within = |times: &Vec<Instant>, time| times.iter().filter(|at| now - **at < time).count();
            if !retry {
                budget.request(now);
                requests.push(now);
            } else if budget.try_retry(now) {
                let by_percent = (within(&made, settings.interval) + 1) * 100 <= within(&requests, settings.interval) * percent as usize;
                prop_assert!(by_percent || within(&made, settings.minimum_interval) < minimum as usize);
                made.push(now);
            } else {
                // It is refused for a reason, up to the part that is counted coarsely.
                prop_assert!(within(&made, settings.minimum_interval * 12 / 10) >= minimum as usize);
                let coarse = within(&requests, settings.interval * 9 / 10) * percent as usize;
                prop_assert!((within(&made, settings.interval * 12 / 10) + 1) * 100 > coarse);
            }
        }
    }
}
