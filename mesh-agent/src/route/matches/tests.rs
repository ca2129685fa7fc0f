use mesh_model::route::Pattern;

use super::*;

fn text(value: &str) -> TextMatch {
    TextMatch::Exact(value.into())
}

fn holds(asked: &RequestMatch, target: &str, headers: &[(&str, &str)]) -> bool {
    let mut request = http::Request::builder().uri(target).method("GET");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let (parts, ()) = request.body(()).unwrap().into_parts();
    let host = host_of(&parts.uri, &parts.headers);
    let view = RequestView { method: &parts.method, uri: &parts.uri, host: &host, headers: &parts.headers };
    matches(asked, view, ClientView { labels: &BTreeMap::from([("app".into(), "web".into())]), namespace: "shop" })
}

#[test]
fn a_prefix_of_segments_ends_at_a_segment() {
    let asked = RequestMatch { path: Some(PathMatch::Segments("/v2".into())), ..RequestMatch::default() };
    for (target, wanted) in [("/v2", true), ("/v2/", true), ("/v2/x?y=1", true), ("/v2?q", true), ("/v2example", false), ("/foo/v2", false)]
    {
        assert_eq!(holds(&asked, target, &[]), wanted, "{target}");
    }
    let root = RequestMatch { path: Some(PathMatch::Segments("".into())), ..RequestMatch::default() };
    assert!(holds(&root, "/", &[]) && holds(&root, "/x", &[]));
}

#[test]
fn every_condition_must_hold() {
    let asked = RequestMatch {
        path: Some(PathMatch::Exact("/a".into())),
        method: Some(text("GET")),
        headers: vec![("version".into(), text("two")), ("x".into(), text("a,b"))],
        query: vec![("animal".into(), text("blue whale"))],
        authority: Some(text("shop.example")),
        source_namespace: Some("shop".into()),
        source_labels: BTreeMap::from([("app".into(), "web".into())]),
        ..RequestMatch::default()
    };
    let headers = [("host", "Shop.example:8080"), ("Version", "two"), ("x", "a"), ("x", "b")];
    assert!(holds(&asked, "/a?animal=blue+whale&animal=dolphin", &headers));
    assert!(!holds(&asked, "/a?animal=dolphin&animal=blue+whale", &headers), "the first value counts");
    assert!(!holds(&asked, "/a?animal=blue+whale", &headers[..2]));
    assert!(!holds(&asked, "/A?animal=blue+whale", &headers));
    assert!(!holds(&RequestMatch { source_namespace: Some("other".into()), ..asked.clone() }, "/a?animal=blue+whale", &headers));
    assert!(!holds(&RequestMatch { method: Some(text("POST")), ..asked }, "/a?animal=blue+whale", &headers));
}

#[test]
fn istio_adds_case_patterns_and_absence() {
    let asked = RequestMatch { path: Some(PathMatch::Prefix("/Api".into())), ignore_path_case: true, ..RequestMatch::default() };
    assert!(holds(&asked, "/apiary", &[]) && !holds(&asked, "/ap", &[]));
    let asked = RequestMatch { path: Some(PathMatch::Regex(Pattern::new("/v[0-9]+").unwrap())), ..RequestMatch::default() };
    assert!(holds(&asked, "/v12", &[]) && !holds(&asked, "/v12/x", &[]));
    let asked = RequestMatch { without_headers: vec![("debug".into(), TextMatch::Present)], ..RequestMatch::default() };
    assert!(holds(&asked, "/", &[]) && !holds(&asked, "/", &[("debug", "1")]));
    let asked = RequestMatch { headers: vec![("a".into(), TextMatch::Present)], ..RequestMatch::default() };
    assert!(!holds(&asked, "/", &[]) && holds(&asked, "/", &[("A", "")]));
}

#[test]
fn values_that_are_no_text_are_there_all_the_same() {
    let view = |asked: &RequestMatch, value: &[u8]| {
        let headers = HeaderMap::from_iter([(http::HeaderName::from_static("debug"), HeaderValue::from_bytes(value).unwrap())]);
        let view = RequestView { method: &Method::GET, uri: &Uri::from_static("/"), host: "", headers: &headers };
        matches(asked, view, ClientView { labels: &BTreeMap::new(), namespace: "" })
    };
    let with = |text: TextMatch| RequestMatch { headers: vec![("debug".into(), text)], ..RequestMatch::default() };
    let without = |text: TextMatch| RequestMatch { without_headers: vec![("debug".into(), text)], ..RequestMatch::default() };
    assert!(view(&with(TextMatch::Present), b"\xff") && !view(&without(TextMatch::Present), b"\xff"));
    assert!(!view(&with(text("x")), b"\xff") && view(&without(text("x")), b"\xff"));
    assert!(view(&with(text("caf\u{e9}")), "caf\u{e9}".as_bytes()), "text is UTF-8");
}

#[test]
fn hosts_lose_their_port() {
    for (authority, host) in [("a:80", "a"), ("a", "a"), ("[::1]:80", "[::1]"), ("[::1]", "[::1]"), ("::1", "::1"), ("a:", "a"), ("", "")] {
        assert_eq!(without_port(authority), host);
    }
}
