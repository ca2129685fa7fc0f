use super::*;

fn cors() -> Cors {
    Cors {
        origins: vec![
            OriginMatch::Text(mesh_model::route::TextMatch::Exact("https://www.example.com".into())),
            OriginMatch::Wildcard { scheme: "https://".into(), suffix: ".shop.example".into() },
        ],
        methods: vec!["GET".into(), "PUT".into()],
        headers: vec!["*".into()],
        expose: vec!["x-seen".into()],
        credentials: true,
        max_age: Some(std::time::Duration::from_secs(60)),
    }
}

fn asked(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
}

#[test]
fn a_preflight_of_an_allowed_origin_is_answered() {
    let headers = asked(&[
        ("origin", "https://a.b.shop.example"),
        ("access-control-request-method", "PUT"),
        ("access-control-request-headers", "x-one, x-two"),
    ]);
    let Decision::Preflight(out) = decide(&cors(), &Method::OPTIONS, &headers) else { panic!("goes on") };
    assert_eq!(out["access-control-allow-origin"], "https://a.b.shop.example");
    assert_eq!(out["access-control-allow-methods"], "GET, PUT");
    assert_eq!(out["access-control-allow-headers"], "x-one, x-two");
    assert_eq!(out["access-control-allow-credentials"], "true");
    assert_eq!(out["access-control-max-age"], "60");
    assert_eq!(out["vary"], "Origin");
}

#[test]
fn others_get_nothing() {
    let preflight = |origin| asked(&[("origin", origin), ("access-control-request-method", "PUT")]);
    for origin in ["https://evil.example", "https://.shop.example", "http://a.shop.example", "null"] {
        assert_eq!(decide(&cors(), &Method::OPTIONS, &preflight(origin)), Decision::Preflight(HeaderMap::new()), "{origin}");
        assert_eq!(decide(&cors(), &Method::GET, &asked(&[("origin", origin)])), Decision::Pass(HeaderMap::new()), "{origin}");
    }
    assert_eq!(decide(&cors(), &Method::GET, &HeaderMap::new()), Decision::Pass(HeaderMap::new()));
}

#[test]
fn a_request_goes_on_and_its_response_says_who_may_see_it() {
    let Decision::Pass(out) = decide(&cors(), &Method::OPTIONS, &asked(&[("origin", "https://www.example.com")])) else {
        panic!("answered")
    };
    assert_eq!(out["access-control-allow-origin"], "https://www.example.com");
    assert_eq!(out["access-control-expose-headers"], "x-seen");
    assert!(!out.contains_key("access-control-allow-methods"));
}
