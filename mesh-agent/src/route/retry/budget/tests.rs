use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn budget(percent: u32, minimum: u32) -> RetryBudget {
    RetryBudget { percent, interval: 10 * SECOND, minimum, minimum_interval: SECOND }
}

fn retries(budget: &Budget, now: Instant) -> usize {
    (0..1000).take_while(|_| budget.try_retry(now)).count()
}

#[test]
fn a_percentage_of_the_intervals_requests() {
    let (budget, start) = (Budget::new(&budget(20, 0)), Instant::now());
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
    let (budget, start) = (Budget::new(&budget(20, 3)), Instant::now());
    assert_eq!(retries(&budget, start), 3);
    assert_eq!(retries(&budget, start + SECOND / 2), 0);
    assert_eq!(retries(&budget, start + SECOND * 11 / 10), 3);
    // A thread whose time is older.
    assert!(!budget.try_retry(start));
}

proptest! {
    #[test]
    fn never_more_than_the_budget(
        percent in 0u32..150,
        minimum in 0u32..5,
        steps in prop::collection::vec((0u64..700, any::<bool>()), 1..300),
    ) {
        let settings = budget(percent, minimum);
        let budget = Budget::new(&settings);
        let mut now = Instant::now();
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
            }
        }
    }
}
