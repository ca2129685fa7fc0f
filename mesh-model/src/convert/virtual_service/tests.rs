use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::convert::{Converted, convert};
use crate::problem::Severity;
use crate::route::{
    Backend, ConnectionScope, Cors, Fault, HeaderEdit, HttpRule, OriginMatch, PathMatch, PathRewrite, Pattern, Redirect, RequestMatch,
    RetryOn, RetryPolicy, Rewrite, RouteTable, Substitution, Target, TextMatch,
};
use crate::virtual_service::Declared;

fn read(spec: Value) -> (Arc<VirtualService>, Converted) {
    let metadata = json!({"name": "r", "namespace": "shop"});
    let converted =
        convert(&json!({"apiVersion": "networking.istio.io/v1beta1", "kind": "VirtualService", "metadata": metadata, "spec": spec}));
    match &converted.reading {
        Reading::Good(Object::VirtualService(rules)) | Reading::Cautious(Object::VirtualService(rules)) => (rules.clone(), converted),
        _ => panic!("{converted:?}"),
    }
}

fn resolve(to: &Destination) -> Target {
    Target::Invalid(to.host.clone())
}

fn rules(virtual_service: &VirtualService) -> Vec<Arc<HttpRule>> {
    match virtual_service.table(80, Declared::Http, &resolve) {
        Some(RouteTable::Http { rules, .. }) => rules,
        None => Vec::new(),
        other => panic!("{other:?}"),
    }
}

/// Of one rule, about which nothing is found; it goes to `web` if it does not say otherwise.
fn rule(mut rule: Value) -> HttpRule {
    if rule.get("redirect").or(rule.get("directResponse")).or(rule.get("route")).is_none() {
        rule["route"] = json!([{"destination": {"host": "web"}}]);
    }
    let (read, converted) = read(json!({"hosts": ["web"], "http": [rule]}));
    assert_eq!(converted.findings, [], "{converted:?}");
    HttpRule::clone(&rules(&read)[0])
}

fn found(converted: &Converted) -> Vec<(Severity, String)> {
    converted.findings.iter().map(|finding| (finding.severity, finding.field.to_string())).collect()
}

fn exact(text: &str) -> TextMatch {
    TextMatch::Exact(text.into())
}

#[test]
fn every_field_of_a_match_is_read() {
    let read = rule(json!({"name": "r", "match": [{
        "name": "m", "uri": {"prefix": "/a"}, "scheme": {"exact": "http"}, "method": {"exact": "GET"}, "authority": {"regex": "w.*"},
        "headers": {"X-A": {"exact": "1"}, "x-b": {}}, "withoutHeaders": {"x-c": {"prefix": "p"}}, "queryParams": {"Q": {"exact": "1"}},
        "ignoreUriCase": true, "port": 80, "sourceLabels": {"app": "a"}, "sourceNamespace": "ns", "gateways": ["edge", "mesh"],
    }]}));
    let matches = RequestMatch {
        path: Some(PathMatch::Prefix("/a".into())),
        ignore_path_case: true,
        method: Some(exact("GET")),
        headers: vec![("x-a".into(), exact("1")), ("x-b".into(), TextMatch::Present)],
        without_headers: vec![("x-c".into(), TextMatch::Prefix("p".into()))],
        query: vec![("Q".into(), exact("1"))],
        scheme: Some(exact("http")),
        authority: Some(TextMatch::Regex(Pattern::new("w.*").unwrap())),
        source_labels: [("app".to_string(), "a".to_string())].into(),
        source_namespace: Some("ns".into()),
    };
    assert_eq!(read.matches, matches);
    assert_eq!(read.origin.to_string(), "VirtualService shop/r rule 0 (r.m)");
    assert_eq!(rule(json!({"match": [{}]})).matches, RequestMatch::default());
}

#[test]
fn matches_are_alternatives_and_those_of_gateways_are_left_out() {
    let (read, converted) = read(json!({"hosts": ["web", "*.shop.svc.cluster.local"], "gateways": ["mesh", "edge"], "http": [
        {"match": [{"uri": {"exact": "/a"}}, {"uri": {"regex": "/b+"}}, {"gateways": ["edge"]}], "route": [{"destination": {"host": "a"}}]},
        {"match": [{"gateways": ["edge"]}], "route": [{"destination": {"host": "b"}}]},
        {"route": [{"destination": {"host": "c"}}]},
    ]}));
    assert_eq!(converted.findings, []);
    assert_eq!(read.hosts, ["*.shop.svc.cluster.local".into(), "web.shop.svc.cluster.local".into()]);
    let rules = rules(&read);
    assert_eq!(rules.iter().map(|rule| rule.origin.rule).collect::<Vec<_>>(), [0, 0, 2]);
    assert_eq!(rules[0].matches.path, Some(PathMatch::Exact("/a".into())));
}

#[test]
fn weights_and_headers_of_destinations_are_read() {
    let two = rule(json!({"route": [
        {"destination": {"host": "a", "subset": "v1", "port": {"number": 81}}, "weight": 75, "headers": {"response": {"remove": ["Server"]}}},
        {"destination": {"host": "b.x.svc.cluster.local"}, "weight": 25},
    ]}));
    let target = |host: &str| Target::Invalid(host.into());
    let filters = vec![Filter::ResponseHeaders(HeaderEdit { remove: vec!["server".into()], ..HeaderEdit::default() })];
    let expected = [
        Backend { target: target("a.shop.svc.cluster.local"), weight: 75, filters },
        Backend { target: target("b.x.svc.cluster.local"), weight: 25, filters: Vec::new() },
    ];
    assert_eq!(two.backends, expected);
    assert_eq!(rule(json!({})).backends[0].weight, 100, "the only one has all");
}

#[test]
fn everything_that_is_done_on_the_way_is_read_in_order() {
    let read = rule(json!({
        "corsPolicy": {"allowOrigins": [{"exact": "https://a"}, {"regex": "https://.*"}], "allowOrigin": ["*"], "allowMethods": ["GET"],
            "allowHeaders": ["x-a"], "exposeHeaders": ["x-b"], "maxAge": "24h", "allowCredentials": true},
        "fault": {"delay": {"fixedDelay": "2s", "percentage": {"value": 0.1}}, "abort": {"grpcStatus": "UNAVAILABLE", "percentage": {"value": 100}}},
        "headers": {"request": {"set": {"X-A": "1", "Host": "other"}, "add": {"x-b": "2"}, "remove": ["x-c"]}},
        "rewrite": {"uri": "/new", "authority": "host"},
        "mirror": {"host": "shadow"}, "mirrorPercentage": {"value": 50}, "mirrors": [{"destination": {"host": "m"}, "percentage": {"value": 1}}],
        "timeout": "3s", "match": [{"uri": {"prefix": "/old"}}],
    }));
    let cors = Cors {
        origins: vec![
            OriginMatch::Text(exact("https://a")),
            OriginMatch::Text(TextMatch::Regex(Pattern::new("https://.*").unwrap())),
            OriginMatch::Any,
        ],
        methods: vec!["GET".into()],
        headers: vec!["x-a".into()],
        expose: vec!["x-b".into()],
        credentials: true,
        max_age: Some(Duration::from_secs(86_400)),
    };
    let edit = HeaderEdit { set: vec![("x-a".into(), "1".into())], add: vec![("x-b".into(), "2".into())], remove: vec!["x-c".into()] };
    let mirror = |host: &str, share| Filter::Mirror {
        target: Target::Invalid(format!("{host}.shop.svc.cluster.local").into()),
        share: (share, 1_000_000),
    };
    let expected = [
        Filter::Cors(cors),
        Filter::Delay { time: Duration::from_secs(2), share: (1_000, 1_000_000) },
        Filter::Abort { fault: Fault::Grpc(14), share: (1_000_000, 1_000_000) },
        Filter::RequestHeaders(edit),
        Filter::Rewrite(Rewrite { authority: Some("other".into()), path: None }),
        Filter::Rewrite(Rewrite { authority: Some("host".into()), path: Some(PathRewrite::Prefix("/new".into())) }),
        mirror("shadow", 500_000),
        mirror("m", 10_000),
    ];
    assert_eq!(read.filters, expected);
    assert_eq!(read.timeout, Some(Duration::from_secs(3)));
}

#[test]
fn a_rewrite_fits_what_is_matched() {
    let of = |uri: Value, rewrite: Value| {
        let rule = rule(json!({"match": [{"uri": uri}], "rewrite": rewrite}));
        let [Filter::Rewrite(Rewrite { path: Some(path), .. })] = &rule.filters[..] else { panic!("{rule:?}") };
        (rule.matches.path.clone(), path.clone())
    };
    let by = || json!({"uri": "/n"});
    assert_eq!(of(json!({"exact": "/a"}), by()).1, PathRewrite::Prefix("/n".into()));
    assert_eq!(of(json!({"regex": "/a.*"}), by()).1, PathRewrite::Full("/n".into()));
    assert_eq!(of(json!(null), by()), (Some(PathMatch::Prefix("/".into())), PathRewrite::Prefix("/n".into())));
    let regex = of(json!({"prefix": "/a"}), json!({"uriRegexRewrite": {"match": "/a/(.*)", "rewrite": "/\\1"}})).1;
    assert_eq!(regex, PathRewrite::Regex(Substitution::new("/a/(.*)", "/\\1").unwrap()));
}

#[test]
fn redirects_and_answers_are_read() {
    let redirect = |redirect: Value| match &rule(json!({ "redirect": redirect })).filters[..] {
        [Filter::Redirect(redirect)] => redirect.clone(),
        other => panic!("{other:?}"),
    };
    let none = Redirect { scheme: None, host: None, port: None, path: None, status: 301 };
    let full = Some(PathRewrite::Full("/n".into()));
    for (written, expected) in [
        (json!({"uri": "/n", "authority": "h"}), Redirect { host: Some("h".into()), path: full, ..none.clone() }),
        (
            json!({"authority": "h:81", "redirectCode": 308}),
            Redirect { host: Some("h".into()), port: Some(81), status: 308, ..none.clone() },
        ),
        (
            json!({"scheme": "https", "derivePort": "FROM_PROTOCOL_DEFAULT"}),
            Redirect { scheme: Some("https".into()), port: Some(443), ..none.clone() },
        ),
        (json!({"uri": "%PREFIX()%/x", "port": 82}), Redirect { path: Some(PathRewrite::Prefix("/x".into())), port: Some(82), ..none }),
    ] {
        assert_eq!(redirect(written), expected);
    }
    for body in [json!({"string": "hi"}), json!({"bytes": "aGk="})] {
        let answer = rule(json!({"directResponse": {"status": 418, "body": body}}));
        assert_eq!(answer.filters, [Filter::Respond { status: 418, body: b"hi"[..].into() }]);
    }
}

#[test]
fn retries_are_envoys_words() {
    let of = |retries: Value| rule(json!({ "retries": retries }));
    let default = RetryOn { statuses: vec![503], connect_failure: true, refused_stream: true, grpc: vec![14, 1], ..RetryOn::default() };
    let plain = of(json!({"attempts": 3, "perTryTimeout": "2s", "backoff": "25ms"}));
    assert_eq!(plain.retry, Some(RetryPolicy { attempts: 3, backoff: Some(Duration::from_millis(25)), on: default }));
    assert_eq!(plain.try_timeout, Some(Duration::from_secs(2)));
    let all = "5xx, gateway-error,reset,reset-before-request,retriable-4xx,retriable-status-codes,429,deadline-exceeded,internal,resource-exhausted";
    let on = RetryOn {
        statuses: vec![429],
        server_errors: true,
        gateway_errors: true,
        reset: true,
        reset_before_request: true,
        retriable_4xx: true,
        grpc: vec![4, 13, 8],
        ..RetryOn::default()
    };
    assert_eq!(of(json!({"attempts": 1, "retryOn": all})).retry.unwrap().on, on);
    assert_eq!(rule(json!({})).retry, None);
    let (_, converted) = read(
        json!({"hosts": ["web"], "http": [{"route": [{"destination": {"host": "a"}}], "retries": {"attempts": 1, "retryOn": "mood,5xx"}}]}),
    );
    assert_eq!(found(&converted), [(Severity::Warn, "spec.http[0].retries.retryOn".into())]);
}

#[test]
fn connections_are_routed_by_name_and_port() {
    let (read, converted) = read(json!({"hosts": ["web"],
        "tls": [{"match": [{"sniHosts": ["A.example", "*.b"], "port": 443}, {"sniHosts": ["*"]}], "route": [{"destination": {"host": "a"}}]}],
        "tcp": [{"match": [{"port": 1}], "route": [{"destination": {"host": "a"}}]}, {"route": [{"destination": {"host": "b"}, "weight": 1}, {"destination": {"host": "c"}, "weight": 3}]}],
    }));
    assert_eq!(converted.findings, []);
    let Some(RouteTable::Tls(tls)) = read.table(443, Declared::Tls, &resolve) else { panic!() };
    assert_eq!(tls.iter().map(|rule| rule.hosts.len()).collect::<Vec<_>>(), [2, 0]);
    assert_eq!(&*tls[0].hosts[0], "a.example");
    let tcp = |port| match read.table(port, Declared::Tcp, &resolve) {
        Some(RouteTable::Tcp(rules)) => rules[0].backends.iter().map(|backend| backend.weight).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    assert_eq!((tcp(1), tcp(2)), (vec![100], vec![1, 3]));
}

#[test]
fn connections_are_routed_by_who_dials_and_where() {
    let to = |host: &str| json!([{"destination": {"host": host}}]);
    let (read, converted) = read(json!({"hosts": ["web"],
        "tls": [{"match": [{"sniHosts": ["a"], "sourceNamespace": "shop"}], "route": to("a")}],
        "tcp": [
            {"match": [
                {"destinationSubnets": ["10.96.0.1", "fd00::/64"], "sourceLabels": {"app": "x"}, "gateways": ["mesh", "edge"]},
                {"gateways": ["edge"]},
                {"port": 7},
            ], "route": to("a")},
            {"route": to("b")},
        ],
    }));
    assert_eq!(converted.findings, []);
    let Some(RouteTable::Tcp(rules)) = read.table(80, Declared::Tcp, &resolve) else { panic!() };
    let scope = ConnectionScope {
        destinations: vec!["10.96.0.1/32".parse().unwrap(), "fd00::/64".parse().unwrap()],
        source_labels: [("app".to_owned(), "x".to_owned())].into(),
        source_namespace: None,
    };
    let scopes: Vec<_> = rules.iter().map(|rule| (rule.origin.rule, rule.scope.clone())).collect();
    assert_eq!(scopes, [(0, scope), (1, ConnectionScope::default())], "of port 80, and of the mesh");
    let Some(RouteTable::Tls(rules)) = read.table(443, Declared::Tls, &resolve) else { panic!() };
    assert_eq!(rules[0].scope.source_namespace.as_deref(), Some("shop"));
    for (bad, field) in [
        (json!({"destinationSubnets": ["10.96.0.0/33"]}), "destinationSubnets[0]"),
        (json!({"destinationSubnets": "10.96.0.0/16"}), "destinationSubnets"),
        (json!({"sourceSubnet": "10.0.0.0/8"}), "sourceSubnet"),
        (json!({"sourceLabels": ["a"]}), "sourceLabels"),
    ] {
        let (read, converted) = self::read(json!({"hosts": ["web"], "tcp": [{"match": [bad], "route": to("a")}]}));
        assert_eq!(found(&converted), [(Severity::Error, format!("spec.tcp[0].match[0].{field}"))]);
        assert_eq!(read.table(80, Declared::Tcp, &resolve), None, "it is not widened");
    }
}

#[test]
fn a_match_that_cannot_be_read_is_not_widened() {
    for (bad, field) in [
        (json!({"uri": {"regex": "("}}), "uri.regex"),
        (json!({"uri": {"exact": "/a", "prefix": "/b"}}), "uri"),
        (json!({"uri": "/a"}), "uri"),
        (json!({"headers": {"a b": {"exact": "1"}}}), "headers[\"a b\"]"),
        (json!({"headers": {"a": "1"}}), "headers.a"),
        (json!({"colour": {"exact": "red"}}), "colour"),
        (json!({"sourceLabels": {"app": 1}}), "sourceLabels.app"),
        (json!({"port": 0}), "port"),
    ] {
        let field = if field.starts_with("headers[") { "headers.a b" } else { field };
        let (read, converted) = read(
            json!({"hosts": ["web"], "http": [{"match": [bad, {"uri": {"exact": "/ok"}}], "route": [{"destination": {"host": "a"}}]}]}),
        );
        assert_eq!(found(&converted), [(Severity::Error, format!("spec.http[0].match[0].{field}"))]);
        assert!(converted.findings[0].message.contains("match is not used") && matches!(converted.reading, Reading::Cautious(_)));
        assert_eq!(rules(&read).len(), 1, "the other one stays");
    }
}

#[test]
fn what_cannot_be_done_is_refused() {
    let to = || json!([{"destination": {"host": "a"}}]);
    for (bad, field) in [
        (json!({"delegate": {"name": "x"}}), "delegate"),
        (json!({"name": "empty"}), ""),
        (json!({"route": to(), "rewrite": {"uriRegexRewrite": {"match": "(", "rewrite": "x"}}}), "rewrite.uriRegexRewrite.match"),
        (json!({"redirect": {"redirectCode": 200}}), "redirect.redirectCode"),
        (json!({"redirect": {"scheme": "ftp"}}), "redirect.scheme"),
        (json!({"directResponse": {"status": 99}}), "directResponse.status"),
        (json!({"directResponse": {"status": 200, "body": {"bytes": "?"}}}), "directResponse.body.bytes"),
    ] {
        let (read, converted) = read(json!({"hosts": ["web"], "http": [bad]}));
        let at = if field.is_empty() { "spec.http[0]".into() } else { format!("spec.http[0].{field}") };
        assert_eq!(found(&converted), [(Severity::Error, at)], "{bad}");
        let rules = rules(&read);
        assert!(rules[0].filters.iter().any(|filter| matches!(filter, Filter::Refuse(_))), "{bad}: {rules:?}");
    }
}

#[test]
fn a_mistake_costs_its_own_field() {
    for (bad, field, severity) in [
        (json!({"timeout": "soon"}), "timeout", Severity::Error),
        (json!({"fault": {"abort": {"httpStatus": 503}}}), "fault.abort.percentage", Severity::Warn),
        (json!({"fault": {"abort": {"httpStatus": 99, "percentage": {"value": 1}}}}), "fault.abort.httpStatus", Severity::Error),
        (json!({"fault": {"abort": {"percentage": {"value": 1}}}}), "fault.abort", Severity::Error),
        (json!({"fault": {"delay": {"fixedDelay": "1s", "percentage": {"value": 101}}}}), "fault.delay.percentage.value", Severity::Error),
        (json!({"headers": {"request": {"set": {"x": "a\nb"}}}}), "headers.request.set.x", Severity::Error),
        (json!({"corsPolicy": {"allowOrigins": [{}]}}), "corsPolicy.allowOrigins[0]", Severity::Error),
        (json!({"retries": {}}), "retries.attempts", Severity::Warn),
        (json!({"mirrors": [{}]}), "mirrors[0].destination", Severity::Error),
        (json!({"websocketUpgrade": true}), "websocketUpgrade", Severity::Warn),
        (json!({"route": [{"destination": {"host": "a"}, "weight": 0}, {"destination": {"host": "b"}}]}), "route", Severity::Error),
        (json!({"route": [{"destination": {"host": "*.a"}}]}), "route[0].destination.host", Severity::Error),
        (json!({"route": [{}]}), "route[0].destination", Severity::Error),
    ] {
        let mut all = json!({"route": [{"destination": {"host": "a"}}]});
        all.as_object_mut().unwrap().extend(bad.as_object().unwrap().clone());
        let (read, converted) = read(json!({"hosts": ["web"], "http": [all]}));
        assert_eq!(found(&converted), [(severity, format!("spec.http[0].{field}"))], "{bad}");
        assert_eq!(rules(&read).len(), 1);
    }
    for spec in [json!({}), json!({"hosts": []}), json!({"hosts": ["a..b"]}), json!({"hosts": "web"}), json!(null), json!([])] {
        let object = json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": "x"}, "spec": spec});
        let converted = convert(&object);
        assert_eq!((&converted.reading, converted.findings.len()), (&Reading::Unreadable, 1), "{spec}: {converted:?}");
    }
}
