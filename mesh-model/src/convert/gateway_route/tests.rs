use std::time::Duration;

use serde_json::{Value, json};

use super::duration;
use crate::convert::{Converted, Reading, convert};
use crate::gateway::{FaultReason, RequestRule, RouteFilter, RouteObject, RouteRules};
use crate::object::Object;
use crate::problem::Severity;
use crate::route::{Cors, Filter, HeaderEdit, OriginMatch, PathMatch, PathRewrite, SessionBy, TextMatch};

fn object(kind: &str, spec: Value) -> Converted {
    let mut spec = spec;
    let parents = spec.as_object_mut().unwrap().entry("parentRefs");
    parents.or_insert_with(|| json!([{"group": "", "kind": "Service", "name": "web"}]));
    convert(&json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": kind,
        "metadata": {"name": "r", "namespace": "shop", "generation": 3, "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": spec,
    }))
}

fn route(kind: &str, spec: Value) -> (RouteObject, Converted) {
    let converted = object(kind, spec);
    let Reading::Good(Object::Route(route)) = &converted.reading else { panic!("{converted:?}") };
    ((**route).clone(), converted)
}

fn of_kind(kind: &str, rules: Value) -> (Vec<RequestRule>, Converted) {
    let (route, converted) = route(kind, json!({ "rules": rules }));
    let RouteRules::Requests(rules) = route.rules else { panic!("{route:?}") };
    (rules, converted)
}

fn rule(rule: Value) -> (RequestRule, Converted) {
    let (mut rules, converted) = of_kind("HTTPRoute", json!([rule]));
    (rules.remove(0), converted)
}

fn grpc(rule: Value) -> (RequestRule, Converted) {
    let (mut rules, converted) = of_kind("GRPCRoute", json!([rule]));
    (rules.remove(0), converted)
}

fn filter(value: Value) -> (RouteFilter, Converted) {
    let (mut rule, converted) = rule(json!({ "filters": [value] }));
    assert_eq!(rule.filters.len(), 1, "{rule:?}");
    (rule.filters.remove(0), converted)
}

fn fields(converted: &Converted, severity: Severity) -> Vec<String> {
    converted.findings.iter().filter(|finding| finding.severity == severity).map(|finding| finding.field.to_string()).collect()
}

fn refused(rule: &RequestRule) -> bool {
    rule.filters.iter().any(|filter| matches!(filter, RouteFilter::Ready(Filter::Refuse(_))))
}

#[test]
fn a_whole_route_is_read() {
    let (read, converted) = route(
        "HTTPRoute",
        json!({
            "parentRefs": [
                {"name": "gateway"},
                {"group": "core", "kind": "Service", "name": "web", "namespace": "other", "port": 80, "sectionName": "http"},
            ],
            "rules": [{
                "name": "main", "timeouts": {"request": "10s", "backendRequest": "0s"},
                "retry": {"codes": [503, 500, 503], "attempts": 3, "backoff": "100ms"},
                "backendRefs": [{"name": "v1", "port": 80, "weight": 3}, {"name": "v2", "namespace": "far", "port": 81},
                    {"group": "x", "kind": "Y", "name": "z"}],
            }],
        }),
    );
    assert_eq!(converted.findings, []);
    assert_eq!((read.created, read.generation), (Some(1_767_225_600), Some(3)));
    let parents: Vec<_> = read.parents.iter().map(|p| (p.index, p.is_ours(), &*p.namespace, p.port, p.section.as_deref())).collect();
    assert_eq!(parents, [(0, false, "shop", None, None), (1, true, "other", Some(80), Some("http"))]);
    let RouteRules::Requests(rules) = read.rules else { panic!() };
    let rule = &rules[0];
    assert_eq!((rule.name.as_deref(), rule.timeout, rule.try_timeout), (Some("main"), Some(Duration::from_secs(10)), None));
    let retry = rule.retry.as_ref().unwrap();
    assert_eq!((retry.attempts, retry.backoff, &retry.on.statuses[..]), (3, Some(Duration::from_millis(100)), &[500, 503][..]));
    assert!(retry.on.connect_failure && retry.on.reset && retry.on.refused_stream && !retry.on.server_errors);
    let backends: Vec<_> = rule.backends.iter().map(|b| (&*b.to.group, &*b.to.kind, &*b.to.namespace, b.to.port, b.weight)).collect();
    assert_eq!(backends, [("", "Service", "shop", Some(80), 3), ("", "Service", "far", Some(81), 1), ("x", "Y", "shop", None, 1)]);
    assert!(rule.matches.len() == 1 && rule.matches[0].matches == Default::default() && rule.fault.is_none());
}

#[test]
fn routes_of_gateways_are_another_controllers() {
    let filters = json!([{"filters": [{"type": "ExtensionRef", "extensionRef": {}}]}]);
    let converted = object("HTTPRoute", json!({"parentRefs": [{"name": "gateway"}], "rules": filters}));
    assert_eq!((converted.reading, converted.findings), (Reading::Foreign, Vec::new()));
    let converted = object("HTTPRoute", json!({"parentRefs": [{"name": "gateway", "port": 0}], "rules": "x"}));
    assert_eq!((converted.reading, converted.findings), (Reading::Foreign, Vec::new()), "however bad");
    assert_eq!(object("HTTPRoute", json!({"parentRefs": null})).reading, Reading::Foreign);
    assert_eq!(object("HTTPRoute", json!({"parentRefs": "web"})).reading, Reading::Unreadable);
}

#[test]
fn a_service_without_its_group_is_a_mistake() {
    let (read, converted) = route("HTTPRoute", json!({"parentRefs": [{"kind": "Service", "name": "web"}]}));
    assert!(!read.parents[0].is_ours());
    assert_eq!(fields(&converted, Severity::Warn), ["spec.parentRefs[0].group"]);
}

#[test]
fn a_parent_that_is_not_understood_takes_no_other_with_it() {
    let parents = json!([{"group": "", "kind": "Service", "name": "a", "port": 70000}, {"group": "", "kind": "Service", "name": "b"}]);
    let (read, converted) = route("HTTPRoute", json!({ "parentRefs": parents }));
    assert_eq!(read.parents.iter().map(|parent| (parent.index, &*parent.name)).collect::<Vec<_>>(), [(1, "b")]);
    assert_eq!(fields(&converted, Severity::Error), ["spec.parentRefs[0].port"]);
}

#[test]
fn matches_are_read() {
    let (rule, converted) = rule(json!({ "matches": [
        {"path": {"type": "Exact", "value": "/A/"}},
        {"path": {"value": "/a/b/"}},
        {"path": {"type": "PathPrefix"}},
        {"path": {"type": "RegularExpression", "value": "/v[0-9]+"}},
        {"method": "GET", "headers": [{"name": "X-A", "value": "1"}, {"name": "x-b", "type": "RegularExpression", "value": "a|b"}],
            "queryParams": [{"name": "Q", "value": "1"}]},
        {},
    ]}));
    assert_eq!(converted.findings, []);
    let paths: Vec<_> = rule.matches.iter().map(|found| found.matches.path.clone()).collect();
    let [Some(PathMatch::Exact(exact)), Some(PathMatch::Segments(prefix)), Some(PathMatch::Segments(root)), Some(regex), None, None] =
        &paths[..]
    else {
        panic!("{paths:?}")
    };
    assert_eq!((&**exact, &**prefix, &**root), ("/A/", "/a/b", ""));
    assert!(matches!(regex, PathMatch::Regex(pattern) if pattern.is_match("/v12") && !pattern.is_match("/v1/x")));
    let found = &rule.matches[4].matches;
    assert_eq!(found.method, Some(TextMatch::Exact("GET".into())));
    assert_eq!(found.headers[0], ("x-a".into(), TextMatch::Exact("1".into())));
    assert!(matches!(&found.headers[1].1, TextMatch::Regex(pattern) if pattern.is_match("b") && !pattern.is_match("ab")));
    assert_eq!(found.query, [("Q".into(), TextMatch::Exact("1".into()))]);
}

#[test]
fn of_conditions_on_one_name_the_first_counts() {
    let (rule, converted) = rule(json!({"matches": [{
        "headers": [{"name": "a", "value": "1"}, {"name": "A", "value": "2"}],
        "queryParams": [{"name": "a", "value": "1"}, {"name": "A", "value": "2"}, {"name": "a", "value": "3"}],
    }]}));
    assert_eq!((rule.matches[0].matches.headers.len(), rule.matches[0].matches.query.len()), (1, 2));
    assert_eq!(rule.matches[0].matches.headers[0].1, TextMatch::Exact("1".into()));
    let expected = ["spec.rules[0].matches[0].headers[1]", "spec.rules[0].matches[0].queryParams[2]"];
    assert_eq!(fields(&converted, Severity::Warn), expected);
}

#[test]
fn a_match_that_is_not_understood_is_refused_alone() {
    for (bad, field) in [
        (json!({"path": {"type": "RegularExpression", "value": "("}}), "path"),
        (json!({"path": {"type": "RegularExpression", "value": "a)|(b"}}), "path"),
        (json!({"path": {"type": "Exact", "value": "a"}}), "path"),
        (json!({"path": {"value": "/a?b"}}), "path"),
        (json!({"path": {"type": "Suffix", "value": "/a"}}), "path"),
        (json!({"method": "GE T"}), "method"),
        (json!({"headers": [{"name": "a b", "value": "1"}]}), "headers[0].name"),
        (json!({"headers": [{"name": "a", "type": "RegularExpression", "value": "["}]}), "headers[0].value"),
        (json!({"headers": [{"name": "a", "type": "Like", "value": "x"}]}), "headers[0].type"),
        (json!({"headers": "none"}), "headers"),
        (json!({"queryParams": [{"name": "", "value": "1"}]}), "queryParams[0].name"),
        (json!({"cookies": []}), "cookies"),
    ] {
        let (rule, converted) = rule(json!({"matches": [{"path": {"value": "/ok"}}, bad], "backendRefs": [{"name": "v1", "port": 80}]}));
        assert_eq!(fields(&converted, Severity::Error), [format!("spec.rules[0].matches[1].{field}")], "{bad}");
        assert!(rule.matches[0].refused.is_none() && rule.matches[1].refused.is_some(), "{bad}");
        assert!(!refused(&rule) && rule.backends.len() == 1, "the other match is served: {bad}");
        assert_eq!(rule.fault.unwrap().reason, FaultReason::UnsupportedValue);
    }
}

#[test]
fn a_rule_that_is_not_understood_takes_no_other_with_it() {
    for (bad, field) in [
        (json!("x"), "spec.rules[0]"),
        (json!({"matches": {}}), "spec.rules[0].matches"),
        (json!({"timeouts": {"request": "1.5s"}}), "spec.rules[0].timeouts.request"),
        (json!({"timeouts": {"request": 5}}), "spec.rules[0].timeouts.request"),
        (json!({"retry": {"codes": [200]}}), "spec.rules[0].retry.codes[0]"),
        (json!({"retry": {"attempts": -1}}), "spec.rules[0].retry.attempts"),
        (json!({"backendRefs": [{"name": "a", "port": 80, "weight": -1}]}), "spec.rules[0].backendRefs[0].weight"),
        (json!({"backendRefs": [{"port": 80}]}), "spec.rules[0].backendRefs[0].name"),
        (json!({"backendRefs": [{"name": "a", "port": 0}]}), "spec.rules[0].backendRefs[0].port"),
        (json!({"sessionPersistence": {"type": "Address"}}), "spec.rules[0].sessionPersistence.type"),
        (json!({"sessionPersistence": {"cookie": {"name": "a;b"}}}), "spec.rules[0].sessionPersistence.cookie.name"),
    ] {
        let (rules, converted) = of_kind("HTTPRoute", json!([bad, {"backendRefs": [{"name": "v1", "port": 80}]}]));
        assert_eq!(fields(&converted, Severity::Error), [field], "{bad}");
        assert!(refused(&rules[0]) || rules[0].matches[0].refused.is_some(), "{bad}");
        assert!(rules[0].fault.is_some() && rules[1].fault.is_none() && !refused(&rules[1]), "{bad}");
    }
}

#[test]
fn filters_are_read() {
    let ready = |value: Value| {
        let (filter, converted) = filter(value);
        assert_eq!(converted.findings, []);
        let RouteFilter::Ready(filter) = filter else { panic!("{filter:?}") };
        filter
    };
    let edit = json!({"set": [{"name": "X-A", "value": "1"}], "add": [{"name": "b", "value": ""}], "remove": ["C"]});
    let expected = HeaderEdit { set: vec![("x-a".into(), "1".into())], add: vec![("b".into(), "".into())], remove: vec!["c".into()] };
    let request = json!({"type": "RequestHeaderModifier", "requestHeaderModifier": edit});
    assert_eq!(ready(request), Filter::RequestHeaders(expected.clone()));
    let response = json!({"type": "ResponseHeaderModifier", "responseHeaderModifier": edit});
    assert_eq!(ready(response), Filter::ResponseHeaders(expected));
    let redirect = |value: Value| match ready(json!({"type": "RequestRedirect", "requestRedirect": value})) {
        Filter::Redirect(redirect) => redirect,
        other => panic!("{other:?}"),
    };
    let plain = redirect(json!({}));
    assert_eq!((plain.status, plain.scheme, plain.host, plain.port, plain.path), (302, None, None, None, None));
    let full = redirect(json!({
        "scheme": "https", "hostname": "a.example", "port": 8443, "statusCode": 308,
        "path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/x"},
    }));
    assert_eq!((full.scheme.as_deref(), full.host.as_deref(), full.port, full.status), (Some("https"), Some("a.example"), Some(8443), 308));
    assert_eq!(full.path, Some(PathRewrite::Prefix("/x".into())));
    let rewrite = ready(json!({"type": "URLRewrite", "urlRewrite": {"hostname": "b.example",
        "path": {"type": "ReplaceFullPath", "replaceFullPath": "/y"}}}));
    assert!(
        matches!(rewrite, Filter::Rewrite(r) if r.authority.as_deref() == Some("b.example") && r.path == Some(PathRewrite::Full("/y".into())))
    );
}

#[test]
fn mirrors_have_a_share() {
    for (share, expected) in [
        (json!({}), (100, 100)),
        (json!({"percent": 0}), (0, 100)),
        (json!({"percent": 42}), (42, 100)),
        (json!({"fraction": {"numerator": 1, "denominator": 1000}}), (1, 1000)),
        (json!({"fraction": {"numerator": 5}}), (5, 100)),
    ] {
        let mut mirror = json!({"backendRef": {"name": "copy", "port": 80}});
        mirror.as_object_mut().unwrap().extend(share.as_object().unwrap().clone());
        let (filter, converted) = filter(json!({"type": "RequestMirror", "requestMirror": mirror}));
        assert_eq!(converted.findings, []);
        assert!(matches!(filter, RouteFilter::Mirror { to, share } if &*to.name == "copy" && share == expected));
    }
}

#[test]
fn cors_is_read() {
    let (filter, converted) = filter(json!({"type": "CORS", "cors": {
        "allowOrigins": ["https://a.example:8443", "https://*.b.example", "*", "http://*"], "allowMethods": ["GET", "*"],
        "allowHeaders": ["X-A"], "exposeHeaders": ["*"], "allowCredentials": true,
    }}));
    assert_eq!(converted.findings, []);
    let wildcard = |suffix: &str| OriginMatch::Wildcard { scheme: "https://".into(), suffix: suffix.into() };
    let expected = Cors {
        origins: vec![
            OriginMatch::Text(TextMatch::Exact("https://a.example:8443".into())),
            wildcard(".b.example"),
            OriginMatch::Any,
            OriginMatch::Wildcard { scheme: "http://".into(), suffix: "".into() },
        ],
        methods: vec!["GET".into(), "*".into()],
        headers: vec!["x-a".into()],
        expose: vec!["*".into()],
        credentials: true,
        max_age: Some(Duration::from_secs(5)),
    };
    assert_eq!(filter, RouteFilter::Ready(Filter::Cors(expected)));
}

#[test]
fn a_filter_that_is_not_understood_answers_with_an_error() {
    let header = |name: &str, value: &str| json!({"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": name, "value": value}]}});
    let redirect = |value: Value| json!({"type": "RequestRedirect", "requestRedirect": value});
    let mirror = |value: Value| json!({"type": "RequestMirror", "requestMirror": value});
    for bad in [
        json!({"type": "ExtensionRef", "extensionRef": {"group": "x", "kind": "Y", "name": "z"}}),
        json!({"type": "ExternalAuth", "externalAuth": {"protocol": "HTTP"}}),
        json!({"type": "Teleport"}),
        json!({"type": "URLRewrite"}),
        json!({}),
        header("a b", "1"),
        header(":path", "/"),
        header("Host", "a"),
        header("Content-Length", "0"),
        header("a", "x\r\ny: z"),
        header("a", " x"),
        redirect(json!({"statusCode": 200})),
        redirect(json!({"scheme": "ftp"})),
        redirect(json!({"hostname": "a.example:80"})),
        redirect(json!({"path": {"type": "ReplaceFullPath"}})),
        redirect(json!({"path": {"type": "ReplaceFullPath", "replaceFullPath": "/a\r\nb"}})),
        redirect(json!({"port": 70000})),
        mirror(json!({"backendRef": {"name": "a", "port": 80}, "percent": 101})),
        mirror(json!({"backendRef": {"name": "a", "port": 80}, "fraction": {"numerator": 1, "denominator": 0}})),
        mirror(json!({"backendRef": {"name": "a", "port": 80}, "percent": 1, "fraction": {"numerator": 1}})),
        mirror(json!({"percent": 1})),
        json!({"type": "CORS", "cors": {"allowOrigins": ["a.example"]}}),
        json!({"type": "CORS", "cors": {"allowOrigins": ["https://a.*.example"]}}),
        json!({"type": "CORS", "cors": {"maxAge": -1}}),
    ] {
        let (filter, converted) = filter(bad.clone());
        assert!(matches!(filter, RouteFilter::Ready(Filter::Refuse(_)) | RouteFilter::Extension { .. }), "{bad}: {filter:?}");
        let errors = fields(&converted, Severity::Error);
        assert!(errors.len() == 1 && errors[0].starts_with("spec.rules[0].filters[0]"), "{bad}: {errors:?}");
    }
}

#[test]
fn a_backends_bad_filter_is_its_own_matter() {
    let (rule, _) = rule(json!({"backendRefs": [
        {"name": "v1", "port": 80, "filters": [{"type": "ExtensionRef"}]},
        {"name": "v2", "port": 80, "filters": [{"type": "CORS", "cors": {}}]},
        {"name": "v3", "port": 80, "filters": [{"type": "ResponseHeaderModifier", "responseHeaderModifier": {"remove": ["a"]}}]},
    ]}));
    let bad: Vec<_> = rule.backends.iter().map(|b| matches!(b.filters[..], [RouteFilter::Ready(Filter::Refuse(_))])).collect();
    assert_eq!(bad, [true, true, false]);
}

#[test]
fn redirect_and_rewrite_exclude_each_other() {
    let filters = json!([
        {"type": "URLRewrite", "urlRewrite": {"hostname": "a"}}, {"type": "RequestRedirect", "requestRedirect": {"hostname": "b"}},
    ]);
    let (rule, converted) = rule(json!({ "filters": filters }));
    assert_eq!((refused(&rule), rule.filters.len()), (true, 1));
    assert_eq!(rule.fault.unwrap().reason, FaultReason::IncompatibleFilters);
    assert_eq!(fields(&converted, Severity::Error), ["spec.rules[0].filters"]);
}

#[test]
fn a_prefix_is_not_replaced_where_none_was_matched() {
    let of = |kind: &str| {
        rule(json!({
            "matches": [{"path": {"type": kind, "value": "/a"}}],
            "filters": [{"type": "URLRewrite", "urlRewrite": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}}}],
        }))
        .0
    };
    assert!(refused(&of("RegularExpression")) && !refused(&of("PathPrefix")));
}

#[test]
fn durations_are_gateway_apis() {
    for (text, milliseconds) in [("0s", 0), ("500ms", 500), ("1h30m", 5_400_000), ("1m1s1ms", 61_001), ("99999s", 99_999_000)] {
        assert_eq!(duration::parse(text), Ok(Duration::from_millis(milliseconds)), "{text}");
    }
    for text in ["", "1", "s", "1.5s", "-1s", "1d", "100000s", "1s ", "1s1s1s1s1s", "1S", "१s"] {
        assert!(duration::parse(text).is_err(), "{text}");
    }
}

#[test]
fn sessions_are_read_in_both_spellings() {
    let of = |value: Value| {
        let (rule, converted) = rule(json!({ "sessionPersistence": value }));
        (rule.session.unwrap(), fields(&converted, Severity::Warn))
    };
    let cookie = |name: &str, path: &str, permanent| SessionBy::Cookie { name: name.into(), path: path.into(), permanent };
    let (session, warned) = of(json!({"absoluteTimeout": "1h", "cookie": {"name": "s", "path": "/a", "lifetimeType": "Permanent"}}));
    assert_eq!((session.by, session.absolute_timeout, warned.len()), (cookie("s", "/a", true), Some(Duration::from_secs(3600)), 0));
    let (session, warned) =
        of(json!({"type": "Cookie", "sessionName": "s", "idleTimeout": "1m", "cookieConfig": {"lifetimeType": "Permanent"}}));
    assert_eq!((session.by, warned.len()), (cookie("s", "/", false), 2));
    assert_eq!(of(json!({"type": "Header", "header": {"name": "X-S"}})).0.by, SessionBy::Header("x-s".into()));
    assert_eq!(of(json!({"type": "Header", "sessionName": "X-T"})).0.by, SessionBy::Header("x-t".into()));
    let (rules, _) = of_kind("HTTPRoute", json!([{"sessionPersistence": {}}, {"sessionPersistence": {}}]));
    assert_ne!(rules[0].session, rules[1].session, "cookies of two rules do not overwrite each other");
}

#[test]
fn calls_of_grpc_are_paths() {
    let path = |method: Value| {
        let (rule, converted) = grpc(json!({"matches": [{"method": method, "headers": [{"name": "A", "value": "1"}]}]}));
        assert_eq!(converted.findings, []);
        assert_eq!(&*rule.matches[0].matches.headers[0].0, "a");
        (rule.matches[0].matches.path.clone().unwrap(), rule.matches[0].grpc)
    };
    let exact = PathMatch::Exact("/a.B/C".into());
    assert_eq!(path(json!({"service": "a.B", "method": "C"})), (exact, (3, 1)));
    assert_eq!(path(json!({"type": "Exact", "service": "a.B"})), (PathMatch::Segments("/a.B".into()), (3, 0)));
    for (method, yes, no) in [
        (json!({"method": "C"}), "/x.Y/C", "/x.Y/CC"),
        (json!({"method": "C+"}), "/x/C+", "/x/CC"),
        (json!({"type": "RegularExpression", "service": "a|b"}), "/b/Any", "/c/Any"),
        (json!({"type": "RegularExpression", "service": "a", "method": "Get.*"}), "/a/GetX", "/a/PutX"),
    ] {
        let (PathMatch::Regex(pattern), _) = path(method.clone()) else { panic!("{method}") };
        assert!(pattern.is_match(yes) && !pattern.is_match(no), "{method}: {pattern:?}");
    }
    for bad in [
        json!({}),
        json!({"service": "a/b"}),
        json!({"type": "RegularExpression", "service": "a)|(b"}),
        json!({"type": "X", "service": "a"}),
    ] {
        assert!(grpc(json!({"matches": [{"method": bad}]})).0.matches[0].refused.is_some(), "{bad}");
    }
    let redirect = json!({"type": "RequestRedirect", "requestRedirect": {}});
    assert!(refused(&grpc(json!({"filters": [redirect]})).0), "no filter of a GRPCRoute");
}

#[test]
fn connections_have_one_rule() {
    let backend = json!([{"name": "db", "port": 5432, "weight": 2}]);
    let (tls, converted) = route("TLSRoute", json!({"hostnames": ["a.example", "*.b.example"], "rules": [{"backendRefs": backend}]}));
    assert_eq!(converted.findings, []);
    assert!(matches!(&tls.rules, RouteRules::Connections { hosts, rule: Some(rule) } if hosts.len() == 2 && rule.backends[0].weight == 2));
    let (tcp, converted) = route("TCPRoute", json!({"rules": [{"backendRefs": backend}, {"backendRefs": []}]}));
    assert_eq!(fields(&converted, Severity::Warn), ["spec.rules[1]"]);
    assert!(matches!(&tcp.rules, RouteRules::Connections { rule: Some(rule), .. } if rule.fault.is_none()));
    let (bad, converted) = route("TLSRoute", json!({"hostnames": ["A b"], "rules": [{"backendRefs": backend}]}));
    assert_eq!(fields(&converted, Severity::Error), ["spec.hostnames[0]"]);
    assert!(matches!(&bad.rules, RouteRules::Connections { rule: Some(rule), .. } if rule.fault.is_some()));
}

#[test]
fn what_is_not_known_is_said() {
    let (_, converted) = route(
        "HTTPRoute",
        json!({"hostnames": ["a.example"], "useDefaultGateways": "All", "rules": [{"novel": 1, "timeouts": {"idle": "1s"}}]}),
    );
    assert_eq!(fields(&converted, Severity::Warn), ["spec.useDefaultGateways", "spec.rules[0].novel", "spec.rules[0].timeouts.idle"]);
    assert_eq!(fields(&converted, Severity::Info), ["spec.hostnames"]);
}
