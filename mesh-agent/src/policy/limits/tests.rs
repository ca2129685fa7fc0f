use http::{HeaderName, HeaderValue};
use mesh_model::limit::{Fair, LimitScope, RateLimit};
use mesh_model::policy::Scope;
use proptest::prelude::*;

use super::*;
use crate::ops::metrics::Format;

const SECOND: Duration = Duration::from_secs(1);

fn name(name: &str) -> NamespacedName {
    NamespacedName { namespace: "shop".into(), name: name.into() }
}

fn uid(uid: &str) -> WorkloadUid {
    WorkloadUid(uid.into())
}

fn limit(index: usize, requests: u32, burst: u32, by: LimitBy) -> Limit {
    Limit { index, requests, per: SECOND, burst, by }
}

fn object(called: &str, limits: Vec<Limit>) -> AppliedLimit {
    let limit = RateLimit { name: name(called), targets: Scope::Namespace, entries: Vec::new(), limits, scope: LimitScope::Endpoint };
    AppliedLimit { limit: Arc::new(limit), towards: None, share: None }
}

fn shared(called: &str, limits: Vec<Limit>, of: u32) -> AppliedLimit {
    AppliedLimit { share: Some(Share { service: name("web"), of, node: Fair { here: 1, of } }), ..object(called, limits) }
}

fn identity(account: &str) -> Identity {
    format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().unwrap()
}

fn headers(value: &str) -> HeaderMap {
    HeaderMap::from_iter([(HeaderName::from_static("x-key"), HeaderValue::from_str(value).unwrap())])
}

const CONNECTION: Counted<'static> = Counted { source: None, request: None };

fn request<'a>(path: &'a str, headers: &'a HeaderMap) -> Counted<'a> {
    Counted { source: None, request: Some(CountedRequest { path, headers }) }
}

/// How many of so many are let through at once.
fn passed(limits: &Limits, now: Instant, counted: &Counted<'_>, of: usize) -> usize {
    (0..of).filter(|_| limits.take(now, counted).is_ok()).count()
}

#[test]
fn each_by_has_its_own_budgets() {
    let (registry, now) = (Registry::default(), Instant::now());
    let one = |by| registry.limits(Instant::now(), &uid("a"), &[object("l", vec![limit(0, 1, 3, by)])]).unwrap();
    let (none, gold, tin) = (HeaderMap::new(), headers("gold"), headers("tin"));

    let everyone = one(LimitBy::Everyone);
    assert_eq!(passed(&everyone, now, &request("/", &gold), 2) + passed(&everyone, now, &CONNECTION, 5), 3);

    let source = one(LimitBy::Source);
    let (alice, bob) = (identity("alice"), identity("bob"));
    for source_of in [Some(&alice), Some(&bob), None] {
        assert_eq!(passed(&source, now, &Counted { source: source_of, ..request("/", &none) }, 5), 3);
        assert_eq!(passed(&source, now, &Counted { source: source_of, request: None }, 5), 0, "a connection counts as a request");
    }

    let header = one(LimitBy::Header("x-key".into()));
    for of in [&gold, &tin, &none] {
        assert_eq!(passed(&header, now, &request("/", of), 5), 3);
    }
    let mut twice = headers("go");
    twice.append("x-key", HeaderValue::from_static("ld"));
    assert_eq!(passed(&header, now, &request("/", &twice), 1), 1, "two lines are not one");
    assert_eq!(header.take(now, &CONNECTION), Ok(None), "what is no HTTP has no header");

    let prefix = one(LimitBy::PathPrefix("/api/".into()));
    assert_eq!(passed(&prefix, now, &request("/api", &none), 2) + passed(&prefix, now, &request("/api/v1", &none), 2), 3);
    for other in ["/", "/apis", "/other/api"] {
        assert_eq!(prefix.take(now, &request(other, &none)), Ok(None), "{other}");
    }
    assert!(is_below("/anything", "/") && is_below("/", "/") && is_below("/a", "/a") && !is_below("/ab", "/a"));
}

#[test]
fn what_one_limit_refuses_takes_nothing_of_another() {
    let (registry, now, none) = (Registry::default(), Instant::now(), HeaderMap::new());
    let wide = object("a-wide", vec![limit(0, 1, 10, LimitBy::Everyone), limit(1, 1, 9, LimitBy::Source)]);
    let narrow = object("b-narrow", vec![limit(0, 1, 2, LimitBy::PathPrefix("/x".into()))]);
    let limits = registry.limits(Instant::now(), &uid("a"), &[wide, narrow]).unwrap();
    let standing = limits.take(now, &request("/x", &none)).unwrap().unwrap();
    assert_eq!(standing, Standing { limit: 2, remaining: 1, reset: SECOND, retry_after: None }, "of the tightest");
    assert_eq!(passed(&limits, now, &request("/x", &none), 100), 1);
    let refused = limits.take(now, &request("/x", &none)).unwrap_err();
    assert_eq!((refused.limit, refused.standing.remaining, refused.standing.retry_after), (name("b-narrow"), 0, Some(SECOND)));
    assert_eq!(passed(&limits, now, &request("/y", &none), 100), 7, "of nine, two were taken");
    assert_eq!(limits.take(now, &request("/y", &none)).unwrap_err().limit, name("a-wide"));
    assert_eq!(registry.refusals(), [("shop/a-wide".to_owned(), 94), ("shop/b-narrow".to_owned(), 100)]);
}

#[test]
fn budgets_outlive_a_configuration_that_leaves_them_as_they_are() {
    let (registry, now) = (Registry::default(), Instant::now());
    let of = |limits: Vec<Limit>| registry.limits(Instant::now(), &uid("a"), &[object("l", limits)]).unwrap();
    let first = of(vec![limit(0, 1, 3, LimitBy::Everyone)]);
    assert_eq!(passed(&first, now, &CONNECTION, 5), 3);
    let second = of(vec![limit(0, 1, 3, LimitBy::Everyone), limit(1, 100, 100, LimitBy::Source)]);
    assert!(first != second, "it is another configuration");
    drop(first);
    registry.sweep();
    assert_eq!(passed(&second, now, &CONNECTION, 1), 0, "with the same budget");
    let other = registry.limits(Instant::now(), &uid("b"), &[object("l", vec![limit(0, 1, 3, LimitBy::Everyone)])]).unwrap();
    assert_eq!(passed(&other, now, &CONNECTION, 5), 3, "each workload has its own");
    let changed = of(vec![limit(0, 1, 4, LimitBy::Everyone)]);
    assert_eq!(passed(&changed, now, &CONNECTION, 5), 4);
    assert!(registry.limits(Instant::now(), &uid("a"), &[]).is_none());
    drop((second, changed));
    registry.sweep();
    assert_eq!(registry.budgets.lock().len(), 1, "what nobody has is forgotten");
    drop(other);
    registry.sweep();
    assert!(registry.refusals().is_empty());
}

#[test]
fn a_share_is_an_equal_part_and_keeps_what_it_owes() {
    let (registry, start) = (Registry::default(), Instant::now());
    let of = |of: u32| registry.limits(Instant::now(), &uid("a"), &[shared("l", vec![limit(0, 10, 10, LimitBy::Everyone)], of)]).unwrap();
    let half = of(2);
    assert_eq!(passed(&half, start, &CONNECTION, 20), 5);
    assert_eq!(passed(&half, start + SECOND / 5, &CONNECTION, 20), 1, "five in a second");
    let quarter = of(4);
    assert!(half != quarter);
    assert_eq!(passed(&quarter, start + SECOND / 5, &CONNECTION, 20), 0, "a smaller share is no new budget");
    assert_eq!(passed(&quarter, start + SECOND * 60, &CONNECTION, 20), 2);
    assert_eq!(passed(&of(50), start + SECOND * 600, &CONNECTION, 20), 1, "never less than one at once");
    let whole = shape(&limit(0, 10, 10, LimitBy::Everyone), None, None);
    assert_eq!(whole, (SECOND, 10));
}

#[test]
fn what_is_left_is_handed_to_the_next_agent() {
    let (older, newer, now) = (Registry::default(), Registry::default(), Instant::now());
    let all = |burst| {
        let limits = vec![limit(0, 1, burst, LimitBy::Everyone), limit(1, 1, 9, LimitBy::Source)];
        [object("own", limits.clone()), shared("lent", limits, 2)]
    };
    let before = older.limits(now, &uid("a"), &all(6)).unwrap();
    assert_eq!(passed(&before, now, &CONNECTION, 1), 1);
    let carried = older.hand_over(now);
    assert_eq!(carried.len(), 2, "of those by source nothing is");
    assert_eq!(passed(&before, now, &CONNECTION, 1), 0, "what is handed over is not kept");
    let carried: Vec<Carried> = serde_json::from_str(&serde_json::to_string(&carried).unwrap()).unwrap();
    newer.take_over(now, carried.clone());
    let after = newer.limits(now, &uid("a"), &all(6)).unwrap();
    assert_eq!(passed(&after, now, &CONNECTION, 9), 2, "of three that are lent, one is gone");
    // Of a limit that is another one, and of what came too late, nothing is left to hand over.
    newer.take_over(now, carried.clone());
    assert_eq!(passed(&newer.limits(now, &uid("b"), &all(4)).unwrap(), now, &CONNECTION, 9), 2);
    let late = Registry::default();
    late.take_over(now, carried);
    let later = now + Duration::from_secs(30);
    assert_eq!(passed(&late.limits(later, &uid("a"), &all(6)).unwrap(), later, &CONNECTION, 9), 3);
}

#[test]
fn keys_are_bounded_and_what_is_forgotten_is_counted() {
    let (registry, now) = (Registry::default(), Instant::now());
    let limits = registry.limits(Instant::now(), &uid("a"), &[object("l", vec![limit(0, 1, 1, LimitBy::Header("x-key".into()))])]).unwrap();
    for value in 0..MAX_KEYS + 5 {
        assert!(limits.take(now, &request("/", &headers(&value.to_string()))).is_ok());
    }
    assert_eq!(registry.keys(), BTreeMap::from([("shop/l".to_owned(), (MAX_KEYS, 5))]));
    let metrics = Metrics::new(Default::default());
    let registry = Arc::new(registry);
    collect(&metrics, &registry);
    let text = metrics.expose(Format::OpenMetrics, now).unwrap();
    for line in [
        "nodemesh_rate_limit_refusals_total{limit=\"shop/l\"} 0",
        "nodemesh_rate_limit_keys{limit=\"shop/l\"} 10000",
        "nodemesh_rate_limit_keys_forgotten_total{limit=\"shop/l\"} 5",
    ] {
        assert!(text.lines().any(|found| found.starts_with(line)), "{line}: {text}");
    }
}

proptest! {
    /// Over any interleaving of keys, no window of time lets more of a key through than its rate and burst.
    #[test]
    fn no_key_gets_more_than_its_share(
        requests in 1u32..20,
        burst in 1u32..10,
        of in 1u32..4,
        steps in prop::collection::vec((0usize..4, 0u64..300), 1..200),
    ) {
        let registry = Registry::default();
        let each = limit(0, requests, burst, LimitBy::Header("x-key".into()));
        let all = limit(1, requests * 2, burst * 2, LimitBy::Everyone);
        let limits = registry.limits(Instant::now(), &uid("a"), &[shared("l", vec![each, all], of)]).unwrap();
        let (each_burst, all_burst) = ((burst / of).max(1), (burst * 2 / of).max(1));
        let per = SECOND * of;
        let keys: Vec<HeaderMap> = ["a", "b", "c", "d"].map(headers).into();
        let mut now = Instant::now();
        let mut passed: Vec<(usize, Instant)> = Vec::new();
        for (key, wait) in steps {
            now += Duration::from_millis(wait);
            if limits.take(now, &request("/", &keys[key])).is_ok() {
                passed.push((key, now));
            }
        }
        let check = |times: &[Instant], requests: u32, burst: u32| {
            times.iter().enumerate().all(|(first, start)| {
                times[first..].iter().enumerate().all(|(more, end)| {
                    let over = (more as u128 + 1).saturating_sub(burst.into());
                    over * per.as_nanos() <= u128::from(requests) * (*end - *start).as_nanos()
                })
            })
        };
        for key in 0..4 {
            let times: Vec<Instant> = passed.iter().filter(|(of, _)| *of == key).map(|(_, time)| *time).collect();
            prop_assert!(check(&times, requests, each_burst));
        }
        let times: Vec<Instant> = passed.iter().map(|(_, time)| *time).collect();
        prop_assert!(check(&times, requests * 2, all_burst));
    }
}
