use super::*;

fn session(permanent: bool, timeout: Option<u64>) -> Session {
    let by = SessionBy::Cookie { name: "stay".into(), path: "/shop".into(), permanent };
    Session { by, absolute_timeout: timeout.map(Duration::from_secs) }
}

fn with_cookie(value: &str) -> HeaderMap {
    HeaderMap::from_iter([(COOKIE, HeaderValue::from_str(&format!("a=b; {value}; c=d")).unwrap())])
}

fn value_of(header: &HeaderValue) -> String {
    header.to_str().unwrap().split(';').next().unwrap().to_owned()
}

#[test]
fn a_client_comes_back_to_its_endpoint() {
    let endpoint: SocketAddr = "[2001:db8::1]:8080".parse().unwrap();
    let (name, value) = header(&session(false, None), endpoint, None, 100).unwrap();
    assert_eq!(name, SET_COOKIE);
    assert!(value.to_str().unwrap().ends_with("; HttpOnly; Path=/shop"));
    assert_eq!(super::endpoint(&session(false, None), &with_cookie(&value_of(&value)), 1 << 40), Some((endpoint, None)));
}

#[test]
fn a_session_ends_when_it_was_said_to_however_it_is_used() {
    let endpoint: SocketAddr = "10.0.0.1:80".parse().unwrap();
    let session = session(true, Some(60));
    let (_, value) = header(&session, endpoint, None, 100).unwrap();
    assert!(value.to_str().unwrap().contains("Max-Age=60"));
    let headers = with_cookie(&value_of(&value));
    let (_, until) = super::endpoint(&session, &headers, 150).unwrap();
    assert_eq!(until, Some(160));
    let (_, again) = header(&session, endpoint, until, 150).unwrap();
    assert!(again.to_str().unwrap().contains("Max-Age=10"), "it is not drawn out: {again:?}");
    assert_eq!(super::endpoint(&session, &headers, 160), None);
}

#[test]
fn what_names_no_endpoint_is_not_heeded() {
    for value in ["stay=", "stay=%%%", "stay=aGVsbG8", "other=x"] {
        assert_eq!(super::endpoint(&session(false, None), &with_cookie(value), 0), None, "{value}");
    }
    let endless = encode("10.0.0.1:80".parse().unwrap(), None);
    assert_eq!(super::endpoint(&session(false, Some(60)), &with_cookie(&format!("stay={endless}")), 0), None);
}
