use proptest::prelude::*;

use super::*;

#[test]
fn ports_declare_by_app_protocol_then_by_name() {
    for (app, name, declared) in [
        ("http", "tcp-x", Declared::Http),
        ("kubernetes.io/h2c", "", Declared::Http2),
        ("kubernetes.io/ws", "", Declared::Http),
        ("kubernetes.io/wss", "", Declared::Tls),
        ("GRPC", "", Declared::Http2),
        ("example.com/own", "http", Declared::Unknown),
        ("", "http", Declared::Http),
        ("", "http-web", Declared::Http),
        ("", "http2-x", Declared::Http2),
        ("", "grpc-web", Declared::Http),
        ("", "grpc-api", Declared::Http2),
        ("", "https", Declared::Tls),
        ("", "redis", Declared::Tcp),
        ("", "httpx", Declared::Unknown),
        ("", "", Declared::Unknown),
    ] {
        assert_eq!(Declared::of(app, name), declared, "{app} {name}");
    }
}

#[test]
fn first_bytes_tell() {
    for (bytes, protocol) in [
        (&b"GET / HTTP/1.1\r\n"[..], Some(Protocol::Http1)),
        (b"\r\nOPTIONS * HTTP/1.1\r\n", Some(Protocol::Http1)),
        (b"M-SEARCH http://a/ HTTP/1.0\n", Some(Protocol::Http1)),
        (b"GET /", None),
        (b"P", None),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r", None),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Some(Protocol::Http2)),
        (b"PUT / HTTP/1.1\r\n", Some(Protocol::Http1)),
        (b"PING\r\n", Some(Protocol::Opaque)),
        (b"GET key\r\n", Some(Protocol::Opaque)),
        (b"*1\r\n$4\r\nPING\r\n", Some(Protocol::Opaque)),
        (b"\x16", None),
        (b"\x16\x03\x01\x02", Some(Protocol::Tls)),
        (b"EHLO a.example\r\n", Some(Protocol::Opaque)),
        (b"get / HTTP/1.1\r\n", Some(Protocol::Opaque)),
        (b"GET  ", Some(Protocol::Opaque)),
        (b"GET  HTTP/1.1\r\n", Some(Protocol::Opaque)),
        (b"\0\0\0\x08", Some(Protocol::Opaque)),
    ] {
        assert_eq!(sniff(bytes), protocol, "{:?}", String::from_utf8_lossy(bytes));
    }
    let long = [b"GET /".as_slice(), &[b'a'; ENOUGH]].concat();
    assert_eq!(sniff(&long), Some(Protocol::Http1));
    // Cut between CR and LF it is the same line.
    let cut = [&long, b" HTTP/1.1\r".as_slice()].concat();
    assert_eq!((sniff(&cut), sniff(&[&cut, b"\n".as_slice()].concat())), (Some(Protocol::Http1), Some(Protocol::Http1)));
    assert_eq!(sniff(&[b"GET /\r".as_slice(), &[b'a'; ENOUGH]].concat()), Some(Protocol::Opaque));
}

proptest! {
    #[test]
    fn never_panics_and_never_changes_its_mind(bytes in proptest::collection::vec(any::<u8>(), 0..400), cut in 0usize..400) {
        let _ = server_name(&bytes);
        let whole = sniff(&bytes);
        if let Some(early) = sniff(&bytes[..cut.min(bytes.len())]) {
            // A long line that has no end yet is judged by its beginning.
            prop_assert!(whole == Some(early) || cut >= ENOUGH);
        }
    }
}

#[test]
fn the_host_of_a_request_is_in_its_head() {
    let host = |text: &str| http_host(text.as_bytes());
    for (text, expected) in [
        ("GET / HTTP/1.1\r\nAccept: */*\r\nhost:  A.Example.com:8080 \r\n\r\nHost: b", Some("a.example.com")),
        ("\r\nGET / HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n\r\n", Some("2001:db8::1")),
        ("GET http://b.example.com./x HTTP/1.1\r\nHost: a.example.com\r\n\r\n", Some("b.example.com")),
        ("GET / HTTP/1.1\r\nHost: a.example.com\r\nHost: b.example.com\r\n\r\n", None),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n", None),
        ("GET / HTTP/1.0\r\n\r\n", None),
        ("GET / HTTP/1.1\r\nHost: a.example.com\r\n", None),
        ("\r\n\r\n", None),
        ("", None),
    ] {
        assert_eq!(host(text).as_deref(), expected, "{text:?}");
    }
}
