use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn settings() -> OutlierDetection {
    OutlierDetection { consecutive_5xx: 3, max_ejection_percent: 50, ..OutlierDetection::default() }
}

fn health(settings: OutlierDetection, endpoints: u8) -> Health<u8> {
    let health = Health::new(settings);
    health.set_endpoints(&(0..endpoints).collect::<Vec<_>>());
    health
}

fn fail(health: &Health<u8>, now: Instant, key: u8, times: usize) -> Option<Event<u8>> {
    (0..times).filter_map(|_| health.record(now, &key, Observation::Status(500))).last()
}

#[test]
fn ejected_for_its_time() {
    let (health, start) = (health(settings(), 4), Instant::now());
    assert_eq!(fail(&health, start, 1, 2), None);
    assert!(health.usable(start, &1));
    let until = start + 30 * SECOND;
    let ejected = Event::Ejected { key: 1, reason: Reason::Consecutive5xx, until, times: 1 };
    assert_eq!(fail(&health, start, 1, 1), Some(ejected));
    assert!(!health.usable(until - SECOND, &1) && health.usable(until - SECOND, &0));
    assert!(health.usable(until, &1));
    assert_eq!(health.wake(), Some(until));
    assert_eq!(health.tick(until - SECOND), []);
    assert_eq!(health.tick(until), [Event::Returned { key: 1, at: until }]);
    assert_eq!(health.tick(until), []);
    assert_eq!(health.wake(), None);
}

#[test]
fn a_return_nobody_ticked_for_is_told_by_the_next_tick() {
    let (health, start) = (health(settings(), 4), Instant::now());
    fail(&health, start, 1, 3);
    let back = start + 40 * SECOND;
    assert_eq!(health.record(back, &1, Observation::Success), None);
    assert_eq!(health.ejected(back), 0);
    assert_eq!(health.tick(back), [Event::Returned { key: 1, at: start + 30 * SECOND }]);
}

#[test]
fn success_begins_the_count_anew() {
    let (health, now) = (health(settings(), 4), Instant::now());
    for observation in [Observation::Success, Observation::Status(404)] {
        assert_eq!(fail(&health, now, 1, 2), None);
        health.record(now, &1, observation);
    }
    assert_eq!(fail(&health, now, 1, 2), None);
}

#[test]
fn times_grow_and_decay() {
    let (health, mut now) = (health(settings(), 4), Instant::now());
    let mut eject = |wait: Duration| {
        now += wait;
        match fail(&health, now, 1, 3) {
            Some(Event::Ejected { until, times, .. }) => {
                let lasts = until - now;
                now = until;
                (times, lasts.as_secs())
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(eject(Duration::ZERO), (1, 30));
    assert_eq!(eject(SECOND), (2, 60));
    assert_eq!(eject(9 * SECOND), (3, 90));
    // Two intervals of 10 s are two less.
    assert_eq!(eject(25 * SECOND), (2, 60));
    assert_eq!(eject(1000 * SECOND), (1, 30));
    for times in 2..=10 {
        assert_eq!(eject(Duration::ZERO), (times, u64::from(times) * 30));
    }
    assert_eq!(eject(Duration::ZERO), (10, 300));
}

#[test]
fn gateway_errors_have_their_own_count() {
    let settings = OutlierDetection { consecutive_5xx: 0, consecutive_gateway: 3, ..settings() };
    let (health, now) = (health(settings, 4), Instant::now());
    assert_eq!(fail(&health, now, 0, 100), None);
    for observation in [Observation::Status(502), Observation::LocalFailure, Observation::Status(500), Observation::Status(504)] {
        assert_eq!(health.record(now, &0, observation), None);
    }
    assert_eq!(health.record(now, &0, Observation::Timeout), None);
    let event = health.record(now, &0, Observation::LocalFailure);
    assert!(matches!(event, Some(Event::Ejected { reason: Reason::ConsecutiveGateway, .. })), "{event:?}");
}

#[test]
fn local_failures_are_split_off() {
    let settings = OutlierDetection { consecutive_local: 2, split_local_origin: true, ..settings() };
    let (health, now) = (health(settings, 4), Instant::now());
    assert_eq!(fail(&health, now, 0, 2), None);
    assert_eq!(health.record(now, &0, Observation::LocalFailure), None);
    // It was reached, though it answered with an error that is not enough either.
    assert!(health.record(now, &0, Observation::Status(404)).is_none());
    assert_eq!(health.record(now, &0, Observation::Timeout), None);
    let event = health.record(now, &0, Observation::LocalFailure);
    assert!(matches!(event, Some(Event::Ejected { reason: Reason::ConsecutiveLocal, .. })), "{event:?}");
}

#[test]
fn below_the_least_health_all_are_used() {
    let settings = OutlierDetection { max_ejection_percent: 100, min_health_percent: 60, ..settings() };
    let (health, now) = (health(settings, 4), Instant::now());
    fail(&health, now, 0, 3);
    assert!(!health.usable(now, &0) && !health.panics(now));
    fail(&health, now, 1, 3);
    assert!(health.panics(now));
    assert!((0..4).all(|key| health.usable(now, &key)));
}

#[test]
fn state_of_those_that_stay_is_kept() {
    let (health, now) = (health(settings(), 4), Instant::now());
    fail(&health, now, 1, 3);
    fail(&health, now, 2, 2);
    health.set_endpoints(&[1, 2, 7, 8]);
    assert!(!health.usable(now, &1));
    assert!(fail(&health, now, 2, 1).is_some());
    health.set_endpoints(&[7]);
    health.set_endpoints(&[1, 7]);
    assert!(health.usable(now, &1));
    assert_eq!(health.record(now, &99, Observation::Timeout), None);
}

#[test]
fn one_thread_ejects() {
    let (health, now) = (health(settings(), 4), Instant::now());
    let ejections: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| (0..50).filter(|_| health.record(now, &1, Observation::Status(503)).is_some()).count()))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!((ejections, health.ejected(now)), (1, 1));
}

proptest! {
    #[test]
    fn rules_hold_in_any_order(
        endpoints in 1u8..12,
        percent in 0u8..=100,
        split in any::<bool>(),
        steps in prop::collection::vec((0u64..8_000, 0u8..12, 0u8..6), 0..400),
    ) {
        let settings = OutlierDetection { max_ejection_percent: percent, split_local_origin: split, consecutive_gateway: 2, ..settings() };
        let health = health(settings, endpoints);
        let mut now = Instant::now();
        let mut untold = HashSet::new();
        let mut ends: HashMap<u8, Instant> = HashMap::new();
        for (wait, key, kind) in steps {
            now += Duration::from_millis(wait);
            let observation = match kind {
                0 => Observation::Success,
                1 => Observation::Status(503),
                2 => Observation::Status(500),
                3 => Observation::LocalFailure,
                4 => Observation::Timeout,
                _ => {
                    for event in health.tick(now) {
                        let Event::Returned { key, at } = event else { panic!("{event:?}") };
                        prop_assert!(at <= now && untold.remove(&(key, at)));
                    }
                    continue;
                }
            };
            if let Some(Event::Ejected { key: ejected, until, times, .. }) = health.record(now, &key, observation) {
                prop_assert_eq!(ejected, key);
                prop_assert!(until > now && times >= 1 && until <= now + LONGEST);
                untold.insert((key, until));
                // An earlier ejection must be over.
                prop_assert!(ends.insert(key, until).is_none_or(|before| before <= now));
                let count = health.ejected(now);
                prop_assert!(count == 1 || count * 100 <= usize::from(endpoints) * usize::from(percent));
            }
            for key in 0..endpoints {
                prop_assert_eq!(health.usable(now, &key), ends.get(&key).is_none_or(|until| *until <= now));
            }
        }
    }

    #[test]
    fn never_without_enough_in_a_row(successes in prop::collection::vec(0usize..3, 1..50)) {
        let (health, now) = (health(settings(), 4), Instant::now());
        for failures in successes {
            prop_assert_eq!(fail(&health, now, 0, failures), None);
            health.record(now, &0, Observation::Success);
        }
    }
}
