use proptest::prelude::*;

use super::*;

const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn headers(values: &[(&'static str, &str)]) -> HeaderMap {
    values.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())).collect()
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> &'h str {
    headers.get(name).map_or("", |value| value.to_str().unwrap())
}

fn ids() -> (u128, u64) {
    (0xaa, 0xbb)
}

#[test]
fn traceparents_as_the_specification_has_them() {
    let read = TraceParent::parse(GOOD).unwrap();
    assert_eq!((read.to_string().as_str(), read.is_sampled()), (GOOD, true));
    assert_eq!(&*read.trace_id(), "0af7651916cd43dd8448eb211c80319c");
    let id = "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331";
    // Flags that are not known are not passed on; those that are, are.
    for (flags, kept) in [("00", "00"), ("01", "01"), ("02", "02"), ("03", "03"), ("ff", "03"), ("fe", "02")] {
        assert_eq!(TraceParent::parse(&format!("00-{id}-{flags}")).unwrap().to_string(), format!("00-{id}-{kept}"));
    }
    // Later versions may say more, behind another dash.
    for later in [format!("01-{id}-01"), format!("cc-{id}-01-what-the-future-says"), format!("fe-{id}-01-")] {
        assert_eq!(TraceParent::parse(&later).unwrap().to_string(), GOOD, "{later}");
    }
    for bad in [
        String::new(),
        "00".into(),
        format!("00-{id}"),
        format!("00-{id}-1"),
        format!("00-{id}-01-"),
        format!("00-{id}-01-more"),
        format!("00-{id}-011"),
        format!("cc-{id}-01.more"),
        format!("cc-{id}-01more"),
        format!("ff-{id}-01"),
        format!("0-{id}-01"),
        format!("00_{id}_01"),
        GOOD.to_uppercase(),
        format!("00-{id}-0G"),
        format!("00-{id}-+1"),
        format!("+0-{id}-01"),
        "00-00000000000000000000000000000000-b7ad6b7169203331-01".into(),
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01".into(),
        "00-0af7651916cd43dd8448eb211c8031-9cb7ad6b7169203331-01".into(),
        format!(" {GOOD}"),
        format!("{GOOD} "),
        "00-0af7651916cd43dd8448eb211c80319ä-b7ad6b7169203331-01".into(),
    ] {
        assert_eq!(TraceParent::parse(&bad), None, "{bad:?}");
    }
    let mut twice = headers(&[("traceparent", GOOD)]);
    twice.append(TRACEPARENT, HeaderValue::from_static(GOOD));
    assert_eq!(TraceParent::of(&twice), None);
}

proptest! {
    #[test]
    fn anything_may_come(text in "\\PC{0,80}") {
        if let Some(read) = TraceParent::parse(&text) {
            prop_assert_eq!(TraceParent::parse(&read.to_string()), Some(read));
        }
    }

    #[test]
    fn shares_are_kept(per_million in 0u32..=1_000_000, ids in prop::collection::vec(any::<u128>(), 400)) {
        let sampler = Sampler::new(per_million);
        let taken = ids.iter().filter(|id| sampler.takes(**id)).count() as f64;
        let expected = 400.0 * f64::from(per_million) / 1e6;
        // Six standard deviations.
        prop_assert!((taken - expected).abs() <= 6.0 * (400.0_f64 * 0.25).sqrt(), "{} of 400 at {}", taken, per_million);
        // A larger share takes what a smaller one does.
        prop_assert!(ids.iter().all(|id| !sampler.takes(*id) || Sampler::new(1_000_000).takes(*id)));
    }
}

#[test]
fn none_and_all() {
    for trace in [1, u128::MAX, u128::from(u64::MAX), 1 << 63] {
        assert!(!Sampler::new(0).takes(trace));
        assert!(Sampler::new(1_000_000).takes(trace));
    }
}

#[test]
fn a_trace_that_has_begun_is_sampled_if_its_beginner_says_so() {
    let (all, none) = (Some(Sampler::new(1_000_000)), Some(Sampler::new(0)));
    let unsampled = GOOD.replace("-01", "-00");
    for sampler in [all, none] {
        let mut request = headers(&[("traceparent", GOOD), ("tracestate", "congo=t61rcWkgMzE")]);
        let hop = Hop::of(&request, sampler, ids);
        let open = Open::of(hop, &request, true).unwrap();
        assert_eq!((open.state.as_deref(), open.http2, hop.parent), (Some("congo=t61rcWkgMzE"), true, Some(0xb7ad_6b71_6920_3331)));
        hop.write(&mut request);
        assert_eq!(text(&request, "traceparent"), "00-0af7651916cd43dd8448eb211c80319c-00000000000000bb-01");
        assert_eq!(text(&request, "tracestate"), "congo=t61rcWkgMzE");

        let mut request = headers(&[("traceparent", &unsampled), ("tracestate", "a=b")]);
        let hop = Hop::of(&request, sampler, ids);
        assert_eq!(Open::of(hop, &request, true), None);
        hop.write(&mut request);
        assert_eq!((text(&request, "traceparent"), text(&request, "tracestate")), (unsampled.as_str(), "a=b"));
    }
    // With tracing off it goes on as it came, of whatever version.
    let later = GOOD.replace("00-", "01-") + "-more";
    let mut request = headers(&[("traceparent", &later)]);
    let hop = Hop::of(&request, None, ids);
    hop.write(&mut request);
    assert_eq!((text(&request, "traceparent"), hop.is_sampled()), (later.as_str(), false));
    // A filter took it away: the trace goes on.
    let mut bare = HeaderMap::new();
    hop.write(&mut bare);
    assert_eq!(text(&bare, "traceparent"), GOOD);
}

#[test]
fn a_trace_that_begins_here_is_sampled_by_its_id() {
    for (sampler, flags) in [(None, "00"), (Some(Sampler::new(0)), "00"), (Some(Sampler::new(1_000_000)), "01")] {
        for before in [&[][..], &[("traceparent", "00-xyz")], &[("tracestate", "a=b")], &[("traceparent", "00-xyz"), ("tracestate", "a=b")]]
        {
            let mut request = headers(before);
            let hop = Hop::of(&request, sampler, ids);
            assert_eq!(Open::of(hop, &request, false).is_some(), flags == "01");
            assert_eq!(Open::of(hop, &request, false).and_then(|open| open.state), None, "of no trace that is known");
            hop.write(&mut request);
            assert_eq!(text(&request, "traceparent"), format!("00-{:032x}-{:016x}-{flags}", 0xaa, 0xbb));
            assert!(!request.contains_key("tracestate"), "it belongs to no trace that is known");
        }
    }
    assert_eq!(Hop::of(&HeaderMap::new(), None, || (0, 0)).own.to_string(), format!("00-{:032x}-{:016x}-00", 1, 1));
}
