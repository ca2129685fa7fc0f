use std::time::Duration;

use super::*;

fn parts(version: Version, method: &str, target: &str, headers: &[(&str, &str)]) -> Parts {
    let mut request = http::Request::builder().version(version).method(method).uri(target);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

fn refused(version: Version, method: &str, target: &str, headers: &[(&str, &str)]) -> u16 {
    settle(&mut parts(version, method, target, headers)).err().map_or(0, |outcome| outcome.http_status().as_u16())
}

#[test]
fn what_could_be_read_in_two_ways_is_refused() {
    let v11 = Version::HTTP_11;
    assert_eq!(refused(v11, "GET", "/", &[("host", "a")]), 0);
    assert_eq!(refused(v11, "POST", "/", &[("host", "a"), ("content-length", "3"), ("transfer-encoding", "chunked")]), 400);
    assert_eq!(refused(Version::HTTP_10, "POST", "/", &[("transfer-encoding", "chunked")]), 400);
    assert_eq!(refused(v11, "POST", "/", &[("host", "a"), ("content-length", "3"), ("content-length", "3")]), 400);
    assert_eq!(refused(v11, "POST", "/", &[("host", "a"), ("content-length", "+3")]), 400);
    assert_eq!(refused(v11, "GET", "/", &[("host", "a"), ("host", "b")]), 400);
    assert_eq!(refused(v11, "GET", "/", &[]), 400);
    assert_eq!(refused(Version::HTTP_10, "GET", "/", &[]), 0);
    assert_eq!(refused(v11, "GET", "/", &[("host", "a b")]), 400);
    assert_eq!(refused(v11, "GET", "http://user@a/", &[("host", "a")]), 400);
    assert_eq!(refused(v11, "CONNECT", "a:443", &[("host", "a")]), 405);
}

#[test]
fn the_targets_host_is_the_headers() {
    let mut request = parts(Version::HTTP_11, "GET", "http://real.example/x?y", &[("host", "claimed.example")]);
    settle(&mut request).unwrap();
    assert_eq!(request.headers[header::HOST], "real.example");
    address(&mut request, false, false, None).unwrap();
    assert_eq!(request.uri, "/x?y");
    address(&mut request, true, false, None).unwrap();
    assert_eq!((request.uri.to_string().as_str(), request.headers.get(header::HOST)), ("http://real.example/x?y", None));
}

#[test]
fn an_upgrade_is_taken_out_and_put_back_for_its_server() {
    let mut request =
        parts(Version::HTTP_11, "GET", "/", &[("host", "a"), ("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]);
    trim(&mut request.headers);
    assert_eq!(
        (&request.headers[header::UPGRADE], &request.headers[header::CONNECTION]),
        (&"websocket".parse().unwrap(), &"upgrade".parse().unwrap())
    );
    let upgrade = take_upgrade(&mut request.headers);
    assert_eq!(upgrade.as_ref().unwrap(), "websocket");
    assert!(!request.headers.contains_key(header::UPGRADE));
    address(&mut request, false, false, upgrade.as_ref()).unwrap();
    assert_eq!(
        (&request.headers[header::UPGRADE], &request.headers[header::CONNECTION]),
        (&"websocket".parse().unwrap(), &"upgrade".parse().unwrap())
    );
}

#[test]
fn what_connection_names_is_taken_out_once() {
    let named = [
        ("host", "a"),
        ("connection", "Upgrade, x-a, TE, http2-settings"),
        ("upgrade", "h2c"),
        ("x-a", "1"),
        ("te", "trailers"),
        ("expect", "100-continue"),
    ];
    let mut request = parts(Version::HTTP_11, "GET", "/", &named);
    trim(&mut request.headers);
    let names = |headers: &HeaderMap| {
        let mut all: Vec<String> = headers.keys().map(ToString::to_string).collect();
        all.sort_unstable();
        all
    };
    assert_eq!(names(&request.headers), ["host", "te"]);
    // What is added afterwards stays, whatever else is named.
    for (name, value) in [("x-a", "2"), ("connection", "x-a"), ("keep-alive", "1")] {
        request.headers.insert(name, HeaderValue::from_static(value));
    }
    assert_eq!(take_upgrade(&mut request.headers), None);
    assert_eq!(names(&request.headers), ["host", "te", "x-a"]);
}

#[test]
fn grpc_deadlines_have_units() {
    let of = |text: &str| grpc_timeout(&HeaderMap::from_iter([("grpc-timeout".parse().unwrap(), HeaderValue::from_str(text).unwrap())]));
    assert_eq!(of("100m"), Some(Duration::from_millis(100)));
    assert_eq!(of("2S"), Some(Duration::from_secs(2)));
    assert_eq!(of("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
    for wrong in ["", "S", "1", "123456789S", "-1S", "1x", "1é"] {
        assert_eq!(of(wrong), None, "{wrong}");
    }
}
