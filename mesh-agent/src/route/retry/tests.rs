use proptest::prelude::*;

use super::*;

const MILLI: Duration = Duration::from_millis(1);

fn status(status: u16) -> Failure {
    Failure::Status { status, grpc: None }
}

fn all_failures() -> [Failure; 11] {
    let reset = |sent_any| Failure::Reset { sent_any };
    let grpc = Failure::Status { status: 200, grpc: Some(14) };
    [
        status(409),
        status(429),
        status(500),
        status(503),
        status(504),
        grpc,
        Failure::Connect,
        Failure::Refused,
        reset(false),
        reset(true),
        Failure::TryTimeout,
    ]
}

fn retriable(on: RetryOn) -> Vec<Failure> {
    all_failures().into_iter().filter(|failure| is_retriable(&on, *failure)).collect()
}

#[test]
fn each_condition_is_for_its_failures() {
    let none = RetryOn::default();
    let [_, _, _, _, _, grpc, connect, refused, unsent, sent, timeout] = all_failures();
    let ends = [connect, refused, unsent, sent, timeout];
    assert_eq!(retriable(none.clone()), []);
    assert_eq!(retriable(RetryOn { statuses: vec![429, 500], ..none.clone() }), [status(429), status(500)]);
    assert_eq!(retriable(RetryOn { statuses: vec![504], ..none.clone() }), [status(504), timeout]);
    assert_eq!(retriable(RetryOn { retriable_4xx: true, ..none.clone() }), [status(409)]);
    assert_eq!(retriable(RetryOn { grpc: vec![14], ..none.clone() }), [grpc]);
    assert_eq!(retriable(RetryOn { connect_failure: true, ..none.clone() }), [connect]);
    assert_eq!(retriable(RetryOn { refused_stream: true, ..none.clone() }), [refused]);
    assert_eq!(retriable(RetryOn { reset_before_request: true, ..none.clone() }), [connect, unsent]);
    assert_eq!(retriable(RetryOn { reset: true, ..none.clone() }), ends);
    assert_eq!(retriable(RetryOn { gateway_errors: true, ..none.clone() }), [&[status(503), status(504)][..], &ends].concat());
    assert_eq!(retriable(RetryOn { server_errors: true, ..none }), [&[status(500), status(503), status(504)][..], &ends].concat());
    assert_eq!(retriable(default_policy().on), [grpc, connect, refused]);
}

#[test]
fn intervals_double_up_to_ten_times() {
    let policy = RetryPolicy { attempts: 7, ..default_policy() };
    let now = Instant::now();
    let mut state = RetryState::new(&policy, None);
    let longest: Vec<u128> = std::iter::from_fn(|| match state.after(now, Failure::Connect, u64::MAX) {
        Next::Retry { at } => Some((at - now).as_micros().div_ceil(1000)),
        Next::GiveUp => None,
    })
    .collect();
    assert_eq!(longest, [25, 50, 100, 200, 250, 250, 250]);
    assert_eq!(state.retries(), 7);
}

#[test]
fn the_policys_backoff_is_the_least_wait() {
    let policy = RetryPolicy { attempts: 2, backoff: Some(100 * MILLI), ..default_policy() };
    let now = Instant::now();
    for (random, first, second) in [(0, 100, 100), (u64::MAX, 200, 300)] {
        let mut state = RetryState::new(&policy, None);
        for expected in [first, second] {
            let Next::Retry { at } = state.after(now, Failure::Connect, random) else { panic!("gives up") };
            assert_eq!((at - now).as_micros().div_ceil(1000), expected);
        }
    }
    let policy = RetryPolicy { backoff: Some(Duration::ZERO), ..policy };
    assert_eq!(RetryState::new(&policy, None).after(now, Failure::Connect, u64::MAX), Next::Retry { at: now });
}

#[test]
fn no_retry_from_the_deadline_on() {
    let policy = RetryPolicy { backoff: Some(100 * MILLI), ..default_policy() };
    let now = Instant::now();
    assert_eq!(RetryState::new(&policy, Some(now + 100 * MILLI)).after(now, Failure::Connect, 0), Next::GiveUp);
    assert_ne!(RetryState::new(&policy, Some(now + 101 * MILLI)).after(now, Failure::Connect, 0), Next::GiveUp);
    let forever = RetryPolicy { backoff: Some(Duration::MAX), ..default_policy() };
    assert_eq!(RetryState::new(&forever, None).after(now, Failure::Connect, 1), Next::GiveUp);
}

proptest! {
    #[test]
    fn bounded_in_number_and_time(
        attempts in 0u32..40,
        backoff in prop::option::of(0u64..1000),
        limit in prop::option::of(0u64..5000),
        failures in prop::collection::vec((0usize..11, any::<u64>(), 0u64..100), 0..60),
    ) {
        let backoff = backoff.map(Duration::from_millis);
        let policy = RetryPolicy { attempts, backoff, ..default_policy() };
        let mut now = Instant::now();
        let deadline = limit.map(|limit| now + Duration::from_millis(limit));
        let mut state = RetryState::new(&policy, deadline);
        let mut made = 0;
        for (kind, random, wait) in failures {
            now += Duration::from_millis(wait);
            let failure = all_failures()[kind];
            if let Next::Retry { at } = state.after(now, failure, random) {
                made += 1;
                prop_assert!(is_retriable(&policy.on, failure));
                prop_assert!(at >= now + backoff.unwrap_or_default() && at <= now + 10 * backoff.unwrap_or(BASE));
                prop_assert!(deadline.is_none_or(|deadline| at < deadline));
                now = at;
            }
            prop_assert_eq!(state.retries(), made);
            prop_assert!(made <= attempts);
        }
    }
}
