//! The headers of HBONE.

use super::*;

#[test]
fn forwarded_is_written_and_read() {
    let v4: SocketAddr = "10.1.2.3:4567".parse().unwrap();
    let v6: SocketAddr = "[2001:db8::1]:4567".parse().unwrap();
    assert_eq!(forwarded(v4, None), "for=\"10.1.2.3:4567\"");
    assert_eq!(forwarded(v6, Some("web.shop.svc")), "for=\"[2001:db8::1]:4567\";host=web.shop.svc");
    for client in [v4, v6] {
        assert_eq!(parse_forwarded(&forwarded(client, None)), (Some(client), None));
        assert_eq!(parse_forwarded(&forwarded(client, Some("a.b"))), (Some(client), Some("a.b")));
    }
}

#[test]
fn what_cannot_be_read_is_absent() {
    for text in ["", ";", "for", "for=", "for=unknown", "for=10.1.2.3", "by=10.1.2.3:4", "=;=;=", "for=\"", "host="] {
        assert_eq!(parse_forwarded(text), (None, None), "{text:?}");
    }
    assert_eq!(parse_forwarded("For=\"1.2.3.4:5\"; Host=a, for=\"6.7.8.9:1\""), (Some("1.2.3.4:5".parse().unwrap()), Some("a")));
    // What breaks the grammar is not guessed at, nor is anything before it.
    for text in [
        "for=\"1.2.3.4:5\";host=a b",
        "for=\"1.2.3.4:5\"x;host=a",
        "for=\"1.2.3.4:5\";host=\"a",
        "for=\"1.2.3.4:5\";host=\"a\\\"b\"",
        "for=\"1.2.3.4:5\";host=a/b",
        "for=\"1.2.3.4:5\";host=a;host=b",
        "for=\"1.2.3.4:5\";for=\"1.2.3.4:5\"",
        "for=\"1.2.3.4:5\";=a",
        "for=\"1.2.3.4:5\";host=ä",
        "for=1.2.3.4:5;host=a",
        "for =\"1.2.3.4:5\"",
    ] {
        assert_eq!(parse_forwarded(text), (None, None), "{text:?}");
    }
    // Separators in quotes are none.
    assert_eq!(parse_forwarded("by=\"a,b;host=c\";host=\"d:80\";;for=_x"), (None, Some("d:80")));
    assert_eq!(parse_forwarded(&";".repeat(MAX_TEXT)), (None, None));
    let mut headers = HeaderMap::new();
    headers.insert(BAGGAGE, HeaderValue::from_bytes(&[0xff, 0xfe]).unwrap());
    assert_eq!(text(&headers, &BAGGAGE), None);
    headers.insert(BAGGAGE, HeaderValue::from_str(&"a".repeat(2000)).unwrap());
    assert_eq!(text(&headers, &BAGGAGE), None);
}

#[test]
fn baggage_says_what_there_is_and_escapes_what_it_must() {
    use mesh_model::workload::Canonical;
    let canonical =
        Canonical { workload: "web".into(), service: "shop, =front".into(), revision: "v1.2".into(), app: "".into(), version: "".into() };
    let mut workload = Workload {
        uid: mesh_model::workload::WorkloadUid("u".into()),
        namespace: "shop".into(),
        name: "web-1".into(),
        identity: "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap(),
        node: "n1".into(),
        addresses: Vec::new(),
        enrolled: true,
        host_network: false,
        netns: None,
        labels: Default::default(),
        canonical,
    };
    let expected =
        "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=web,service.name=shop%2C%20%3Dfront,service.version=v1.2";
    assert_eq!(baggage("Kubernetes", &workload), expected);
    workload.canonical = Canonical::default();
    assert_eq!(baggage("", &workload), "k8s.namespace.name=shop");
}
