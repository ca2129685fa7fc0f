use mesh_model::route::Substitution;

use super::*;

fn segments(prefix: &str) -> RequestMatch {
    RequestMatch { path: Some(PathMatch::Segments(prefix.into())), ..RequestMatch::default() }
}

#[test]
fn a_replaced_prefix_keeps_slashes_single() {
    // The Gateway API's table of ReplacePrefixMatch; the prefix is kept without its last slash.
    for (path, prefix, by, wanted) in [
        ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
        ("/foo", "/foo", "/xyz", "/xyz"),
        ("/foo/", "/foo", "/xyz", "/xyz/"),
        ("/foo/bar", "/foo", "", "/bar"),
        ("/foo/", "/foo", "", "/"),
        ("/foo", "/foo", "", "/"),
        ("/foo/", "/foo", "/", "/"),
        ("/foo", "/foo", "/", "/"),
        ("/bar", "", "/xyz", "/xyz/bar"),
    ] {
        let mut uri: Uri = format!("{path}?q=1").parse().unwrap();
        let change = Rewrite { path: Some(PathRewrite::Prefix(by.into())), authority: None };
        rewrite(&mut uri, &mut HeaderMap::new(), &change, &segments(prefix)).unwrap();
        assert_eq!(uri.to_string(), format!("{wanted}?q=1"), "{path} {prefix} {by}");
    }
}

#[test]
fn whole_paths_patterns_and_hosts_are_rewritten() {
    let mut headers = HeaderMap::from_iter([(http::header::HOST, HeaderValue::from_static("old"))]);
    let mut uri: Uri = "/a/b?x".parse().unwrap();
    let change = Rewrite { path: Some(PathRewrite::Full("/new".into())), authority: Some("new.example".into()) };
    rewrite(&mut uri, &mut headers, &change, &RequestMatch::default()).unwrap();
    assert_eq!((uri.to_string(), &headers["host"]), ("/new?x".into(), &HeaderValue::from_static("new.example")));
    let mut uri: Uri = "http://old/users/7/orders".parse().unwrap();
    let substitution = Substitution::new("users/([0-9]+)/(.*)", "\\2/of/\\1").unwrap();
    let change = Rewrite { path: Some(PathRewrite::Regex(substitution)), authority: Some("new".into()) };
    rewrite(&mut uri, &mut headers, &change, &RequestMatch::default()).unwrap();
    assert_eq!(uri, "http://new/orders/of/7");
    let change = Rewrite { path: Some(PathRewrite::Full("/a b".into())), authority: None };
    assert!(rewrite(&mut uri, &mut headers, &change, &RequestMatch::default()).is_err());
}

#[test]
fn redirections_name_only_ports_that_are_not_the_schemes_own() {
    let headers = HeaderMap::from_iter([(http::header::HOST, HeaderValue::from_static("shop.example:8080"))]);
    let uri: Uri = "/foo/bar?q".parse().unwrap();
    let plain = Redirect { scheme: None, host: None, port: None, path: None, status: 302 };
    let scheme = |scheme: &str| Redirect { scheme: Some(scheme.into()), ..plain.clone() };
    for (redirect, port, wanted) in [
        (plain.clone(), 8080, "http://shop.example:8080/foo/bar?q"),
        (plain.clone(), 80, "http://shop.example/foo/bar?q"),
        (scheme("https"), 8080, "https://shop.example/foo/bar?q"),
        (scheme("http"), 8080, "http://shop.example/foo/bar?q"),
        (Redirect { port: Some(8443), ..scheme("https") }, 80, "https://shop.example:8443/foo/bar?q"),
        (Redirect { port: Some(443), ..scheme("https") }, 80, "https://shop.example/foo/bar?q"),
        (Redirect { host: Some("other".into()), ..plain.clone() }, 80, "http://other/foo/bar?q"),
        (Redirect { path: Some(PathRewrite::Prefix("/x".into())), ..plain.clone() }, 80, "http://shop.example/x/bar?q"),
        (Redirect { path: Some(PathRewrite::Full("/y".into())), ..plain.clone() }, 80, "http://shop.example/y?q"),
    ] {
        assert_eq!(location(&redirect, &uri, &headers, &segments("/foo"), port).unwrap(), wanted);
    }
}

#[test]
fn headers_are_removed_set_and_added_in_this_order() {
    let mut headers = HeaderMap::new();
    headers.append("a", HeaderValue::from_static("1"));
    headers.append("b", HeaderValue::from_static("1"));
    headers.append("c", HeaderValue::from_static("1"));
    let change = HeaderEdit {
        remove: vec!["a".into()],
        set: vec![("b".into(), "2".into()), ("a".into(), "3".into())],
        add: vec![("c".into(), "2".into())],
    };
    edit(&mut headers, &change);
    let all = |name| headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
    assert_eq!((all("a"), all("b"), all("c")), (vec!["3"], vec!["2"], vec!["1", "2"]));
    let mut uri: Uri = "http://old/".parse().unwrap();
    let host = HeaderEdit { set: vec![("host".into(), "new".into())], ..HeaderEdit::default() };
    edit_request(&mut uri, &mut headers, &host).unwrap();
    assert_eq!(uri, "http://new/");
}

#[test]
fn headers_of_one_hop_go_no_further() {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("connection", "close, x-private, host, TE"),
        ("x-private", "1"),
        ("keep-alive", "timeout=5"),
        ("upgrade", "websocket"),
        ("te", "trailers"),
        ("transfer-encoding", "chunked"),
        ("host", "a"),
        ("x-kept", "1"),
    ] {
        headers.append(name, HeaderValue::from_static(value));
    }
    assert_eq!(upgrade_of(&headers), None, "an upgrade that Connection does not name is none");
    strip_hop(&mut headers);
    let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
    left.sort_unstable();
    assert_eq!(left, ["host", "te", "x-kept"]);
}

#[test]
fn nothing_is_switched_to_that_would_carry_requests_past_the_judge() {
    let asks = |to: &[&str]| {
        let mut headers = HeaderMap::new();
        headers.insert("connection", HeaderValue::from_static("Upgrade, HTTP2-Settings"));
        headers.insert("http2-settings", HeaderValue::from_static("AAMAAABkAAQAAP__"));
        for to in to {
            headers.append("upgrade", HeaderValue::from_str(to).unwrap());
        }
        assert_eq!(asks_to_switch(&headers), !to.is_empty());
        let upgrade = upgrade_of(&headers);
        strip_hop(&mut headers);
        assert!(headers.is_empty(), "{headers:?}");
        upgrade
    };
    for refused in [&["h2c"][..], &["H2C"], &["HTTP/2.0"], &["TLS/1.0"], &["websocket, h2c"], &["websocket", "h2c"], &[""], &[]] {
        assert_eq!(asks(refused), None, "{refused:?}");
    }
    let mut odd = HeaderMap::new();
    odd.insert("connection", HeaderValue::from_bytes(b"\xff, upgrade").unwrap());
    odd.insert("upgrade", HeaderValue::from_static("websocket"));
    assert!(asks_to_switch(&odd), "the guard sees it too");
    for passed in ["websocket", "any", "SPDY/3.1"] {
        assert_eq!(asks(&[passed]).unwrap(), passed);
    }
}
