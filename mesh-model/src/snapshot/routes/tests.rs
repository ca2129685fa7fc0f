use std::path::Path;
use std::sync::Arc;

use crate::document::parse_documents;
use crate::object::Kind;
use crate::route::{Filter, HttpRule, ParentStatus, PathMatch, RouteTable, Target};
use crate::service::NamespacedName;
use crate::snapshot::Snapshot;

fn snapshot(text: &str) -> Snapshot {
    after(text, None)
}

fn after(text: &str, previous: Option<&Snapshot>) -> Snapshot {
    let parsed = parse_documents(Path::new("mesh.yaml"), text);
    Snapshot::build(&parsed.documents, parsed.problems, previous)
}

fn service(name: &str, ip: &str, ports: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap();
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{clusterIP: {ip}, ports: [{ports}]}}\n"
    )
}

/// Services `shop/web` with the ports 80 (`http`) and 81, `shop/v1`, `shop/v2` and `far/v3`.
fn services() -> String {
    [
        service("shop/web", "10.96.0.1", "{port: 80, name: http}, {port: 81, name: other}"),
        service("shop/v1", "10.96.0.2", "{port: 80}"),
        service("shop/v2", "10.96.0.3", "{port: 80}"),
        service("far/v3", "10.96.0.4", "{port: 80}"),
    ]
    .concat()
}

/// `name` may begin with a year, `2025:ns/name`. The parent is `shop/web`, with `parent` as more of its fields.
fn route(kind: &str, name: &str, parent: &str, rules: &str) -> String {
    let (year, name) = name.split_once(':').unwrap_or(("2026", name));
    let (namespace, name) = name.split_once('/').unwrap();
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}, \
         creationTimestamp: '{year}-01-01T00:00:00Z', generation: 7}}\n\
         spec: {{parentRefs: [{{group: '', kind: Service, name: web, namespace: shop{parent}}}], rules: [{rules}]}}\n"
    )
}

fn to(service: &str) -> String {
    format!("backendRefs: [{{name: {service}, port: 80}}]")
}

fn name(text: &str) -> NamespacedName {
    let (namespace, name) = text.split_once('/').unwrap();
    NamespacedName { namespace: namespace.into(), name: name.into() }
}

fn table<'a>(snapshot: &'a Snapshot, port: u16, client: &str) -> Option<&'a Arc<RouteTable>> {
    snapshot.routes(&name("shop/web"), port)?.table(client)
}

fn rules(snapshot: &Snapshot) -> &[Arc<HttpRule>] {
    match table(snapshot, 80, "any").map(|table| &**table) {
        Some(RouteTable::Http { rules, .. }) => rules,
        other => panic!("{other:?}"),
    }
}

/// Kind and name of the route that a client's table comes from.
fn owner(snapshot: &Snapshot, port: u16, client: &str) -> Option<String> {
    let origin = match &**table(snapshot, port, client)? {
        RouteTable::Http { rules, .. } => &rules.first()?.origin,
        RouteTable::Tls(rules) => &rules.first()?.origin,
        RouteTable::Tcp(rules) => &rules[0].origin,
    };
    Some(origin.object.to_string())
}

fn status<'a>(snapshot: &'a Snapshot, kind: Kind, route: &str) -> &'a ParentStatus {
    let (namespace, name) = route.split_once('/').unwrap();
    let found =
        snapshot.route_statuses().iter().find(|s| s.route.kind == kind && *s.route.namespace == *namespace && *s.route.name == *name);
    found.unwrap_or_else(|| panic!("no status of {route}: {:?}", snapshot.route_statuses()))
}

fn accepted(snapshot: &Snapshot, kind: Kind, route: &str) -> (bool, &'static str) {
    let accepted = &status(snapshot, kind, route).accepted;
    (accepted.status, accepted.reason)
}

fn resolved(snapshot: &Snapshot, kind: Kind, route: &str) -> (bool, &'static str) {
    let resolved = &status(snapshot, kind, route).resolved;
    (resolved.status, resolved.reason)
}

fn complaints(snapshot: &Snapshot) -> Vec<String> {
    snapshot.problems().iter().map(ToString::to_string).collect()
}

#[test]
fn a_route_is_for_the_ports_of_its_parent() {
    for (parent, ports) in [
        ("", vec![80, 81]),
        (", port: 80", vec![80]),
        (", sectionName: other", vec![81]),
        (", sectionName: http, port: 80", vec![80]),
        (", sectionName: http, port: 81", vec![]),
        (", port: 82", vec![]),
        (", sectionName: novel", vec![]),
    ] {
        let snapshot = snapshot(&(services() + &route("HTTPRoute", "shop/r", parent, &format!("{{{}}}", to("v1")))));
        let found: Vec<u16> = [80, 81, 82].into_iter().filter(|port| table(&snapshot, *port, "any").is_some()).collect();
        assert_eq!(found, ports, "{parent}");
        let reason = if ports.is_empty() { (false, "NoMatchingParent") } else { (true, "Accepted") };
        assert_eq!(accepted(&snapshot, Kind::HttpRoute, "shop/r"), reason, "{parent}");
        assert_eq!(complaints(&snapshot).len(), usize::from(ports.is_empty()), "{parent}: {:?}", complaints(&snapshot));
        assert_eq!(status(&snapshot, Kind::HttpRoute, "shop/r").generation, Some(7));
    }
}

#[test]
fn a_parent_must_be_a_service_that_is_dialled() {
    for parent in [
        "",
        &service("shop/web", "None", "{port: 80}"),
        "---\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {type: ExternalName, externalName: x}\n",
    ] {
        let snapshot = snapshot(&(parent.to_owned() + &route("HTTPRoute", "shop/r", "", "{}")));
        assert_eq!(accepted(&snapshot, Kind::HttpRoute, "shop/r"), (false, "NoMatchingParent"));
        assert!(table(&snapshot, 80, "any").is_none());
    }
    let gateway = route("HTTPRoute", "shop/r", "", "{}").replace("group: '', kind: Service", "kind: Gateway");
    assert!(snapshot(&(services() + &gateway)).route_statuses().is_empty());
}

#[test]
fn a_route_with_two_parents_on_one_port_stands_there_once() {
    let two = route("HTTPRoute", "shop/r", "}, {group: '', kind: Service, name: web, port: 80", &format!("{{{}}}", to("v1")));
    let snapshot = snapshot(&(services() + &two));
    assert_eq!((rules(&snapshot).len(), snapshot.route_statuses().len()), (1, 2));
    assert!(snapshot.route_statuses().iter().all(|status| status.accepted.status));
}

#[test]
fn rules_are_tried_in_the_order_of_the_standard() {
    // Rules of one route, written from the last to the first; each is for a backend of its own name's number.
    let ordered = [
        "path: {type: Exact, value: /long/path}, method: GET",
        "path: {type: Exact, value: /long/path}, headers: [{name: a, value: b}, {name: c, value: d}]",
        "path: {type: Exact, value: /long/path}",
        "path: {type: RegularExpression, value: '/l.*'}",
        "path: {type: RegularExpression, value: '/'}",
        "path: {value: /long/path}",
        "path: {value: /long}, method: GET",
        "path: {value: /long}, headers: [{name: a, value: b}, {name: c, value: d}]",
        "path: {value: /long}, headers: [{name: a, value: b}], queryParams: [{name: a, value: b}]",
        "path: {value: /long}, headers: [{name: a, value: b}]",
        "path: {value: /long}, queryParams: [{name: a, value: b}, {name: b, value: b}, {name: c, value: b}]",
        "path: {value: /long}, queryParams: [{name: a, value: b}]",
        "path: {value: /long}",
        "method: GET",
        "path: {value: /}",
    ];
    let all: Vec<String> =
        ordered.iter().enumerate().rev().map(|(i, matched)| format!("{{name: n{i}, matches: [{{{matched}}}]}}")).collect();
    let snapshot = snapshot(&(services() + &route("HTTPRoute", "shop/r", "", &all.join(", "))));
    let names: Vec<_> = rules(&snapshot).iter().map(|rule| rule.origin.name.as_deref().unwrap().to_owned()).collect();
    let expected: Vec<_> = (0..ordered.len()).map(|i| format!("n{i}")).collect();
    assert_eq!(names, expected);
}

#[test]
fn ties_go_to_the_older_route_then_by_name_then_by_place() {
    let same = "{name: first, matches: [{path: {value: /a}}, {path: {value: /a/}}]}, {name: second, matches: [{path: {value: /a}}]}";
    let undated = route("HTTPRoute", "shop/undated", "", same).replace("creationTimestamp: '2026-01-01T00:00:00Z', ", "");
    let text = [
        services(),
        undated,
        route("HTTPRoute", "2026:shop/b", "", same),
        route("HTTPRoute", "2025:shop/z", "", same),
        route("HTTPRoute", "2026:shop/a", "", same),
    ];
    let snapshot = snapshot(&text.concat());
    let found: Vec<_> = rules(&snapshot).iter().map(|rule| format!("{}{}", rule.origin.object.name, rule.origin.rule)).collect();
    let each = |name: &str| [format!("{name}0"), format!("{name}0"), format!("{name}1")];
    assert_eq!(found, [each("z"), each("a"), each("b"), each("undated")].concat());
}

#[test]
fn calls_of_grpc_go_by_service_method_and_headers() {
    let ordered = [
        "method: {service: long.Service, method: Go}",
        "method: {service: long.Service}, headers: [{name: a, value: b}]",
        "method: {service: long.Service}",
        "method: {type: RegularExpression, service: 'x.*', method: M}",
        "method: {method: LongMethod}",
        "method: {method: M}, headers: [{name: a, value: b}]",
        "method: {method: M}",
        "headers: [{name: a, value: b}]",
    ];
    let all: Vec<String> =
        ordered.iter().enumerate().rev().map(|(i, matched)| format!("{{name: n{i}, matches: [{{{matched}}}]}}")).collect();
    let snapshot = snapshot(&(services() + &route("GRPCRoute", "shop/r", "", &all.join(", "))));
    let names: Vec<_> = rules(&snapshot).iter().map(|rule| rule.origin.name.as_deref().unwrap().to_owned()).collect();
    let expected: Vec<_> = (0..ordered.len()).map(|i| format!("n{i}")).collect();
    assert_eq!(names, expected);
    assert!(matches!(&**table(&snapshot, 80, "any").unwrap(), RouteTable::Http { grpc: true, .. }));
}

#[test]
fn a_consumers_routes_replace_the_producers_for_it_alone() {
    let text = [
        services(),
        route("HTTPRoute", "shop/producer", "", &format!("{{{}}}", to("v1"))),
        route("HTTPRoute", "far/consumer", ", port: 80", &format!("{{{}}}", to("v3"))),
        route("HTTPRoute", "near/consumer", ", port: 80", "{}"),
    ];
    let snapshot = snapshot(&text.concat());
    let of = |port, client| owner(&snapshot, port, client).unwrap();
    assert_eq!(of(80, "shop"), "HTTPRoute shop/producer");
    assert_eq!(of(80, "far"), "HTTPRoute far/consumer");
    assert_eq!(of(80, "near"), "HTTPRoute near/consumer");
    assert_eq!(of(81, "far"), "HTTPRoute shop/producer", "the consumer's is for port 80");
    assert!(snapshot.route_statuses().iter().all(|status| status.accepted.status && status.resolved.status));
}

#[test]
fn of_the_kinds_on_a_port_one_is_in_force_for_each_group() {
    let text = [
        services(),
        route("TCPRoute", "2020:shop/tcp", "", &format!("{{{}}}", to("v1"))),
        route("TLSRoute", "2021:shop/tls", "", &format!("{{{}}}", to("v1"))),
        route("HTTPRoute", "2022:shop/http", "", &format!("{{{}}}", to("v1"))),
        route("GRPCRoute", "2026:shop/grpc", ", port: 80", &format!("{{{}}}", to("v1"))),
        route("TCPRoute", "far/tcp", "", &format!("{{{}}}", to("v3"))),
    ];
    let all = snapshot(&text.concat());
    assert_eq!(owner(&all, 80, "any").unwrap(), "GRPCRoute shop/grpc");
    assert_eq!(owner(&all, 81, "any").unwrap(), "HTTPRoute shop/http");
    assert_eq!(owner(&all, 80, "far").unwrap(), "TCPRoute far/tcp", "groups are judged apart");
    assert_eq!(accepted(&all, Kind::GrpcRoute, "shop/grpc"), (true, "Accepted"));
    assert_eq!(accepted(&all, Kind::HttpRoute, "shop/http"), (true, "Accepted"), "it has port 81");
    assert!(status(&all, Kind::HttpRoute, "shop/http").accepted.message.contains("port 80 is GRPCRoute shop/grpc's"));
    assert_eq!(accepted(&all, Kind::TlsRoute, "shop/tls"), (false, "Conflicted"));
    assert_eq!(accepted(&all, Kind::TcpRoute, "shop/tcp"), (false, "Conflicted"));
    let without = [&text[0][..], &text[1], &text[2]].concat();
    assert_eq!(owner(&snapshot(&without), 80, "any").unwrap(), "TLSRoute shop/tls");
}

#[test]
fn the_oldest_tcp_route_has_the_port() {
    let rule = format!("{{{}}}", to("v1"));
    let text = [
        services(),
        route("TCPRoute", "2026:shop/a", "", &rule),
        route("TCPRoute", "2025:shop/b", "", &rule),
        route("TCPRoute", "2025:shop/c", "", &rule),
    ];
    let snapshot = snapshot(&text.concat());
    assert_eq!(owner(&snapshot, 80, "any").unwrap(), "TCPRoute shop/b");
    let of = |name| accepted(&snapshot, Kind::TcpRoute, name);
    assert_eq!((of("shop/a"), of("shop/b"), of("shop/c")), ((false, "Conflicted"), (true, "Accepted"), (false, "Conflicted")));
}

#[test]
fn server_names_go_from_the_exact_to_any() {
    let of = |name: &str, hosts: &str| {
        route("TLSRoute", name, "", &format!("{{{}}}", to("v1"))).replace("spec: {", &format!("spec: {{hostnames: [{hosts}], "))
    };
    let snapshot =
        snapshot(&[services(), of("shop/any", ""), of("shop/some", "'*.b', '*.a.b', x.a.b"), of("2020:shop/old", "'*.b'")].concat());
    let RouteTable::Tls(rules) = &**table(&snapshot, 80, "any").unwrap() else { panic!() };
    let found: Vec<_> = rules.iter().map(|rule| (rule.hosts.first().map_or("", |host| host), &*rule.origin.object.name)).collect();
    assert_eq!(found, [("x.a.b", "some"), ("*.a.b", "some"), ("*.b", "old"), ("*.b", "some"), ("", "any")]);
}

#[test]
fn a_backend_that_is_not_there_keeps_its_share() {
    let backends = "backendRefs: [{name: v1, port: 80, weight: 70}, {name: gone, port: 80, weight: 0}, {name: v2, port: 81}, \
        {name: v2}, {group: x, kind: Y, name: z, port: 80}, {name: v3, namespace: far, port: 80, weight: 30}]";
    let snapshot = snapshot(&(services() + &route("HTTPRoute", "shop/r", "", &format!("{{{backends}}}"))));
    let rule = &rules(&snapshot)[0];
    let found: Vec<_> = rule.backends.iter().map(|b| (matches!(b.target, Target::Service { .. }), b.weight)).collect();
    assert_eq!(found, [(true, 70), (false, 0), (false, 1), (false, 1), (false, 1), (true, 30)]);
    assert_eq!(accepted(&snapshot, Kind::HttpRoute, "shop/r"), (true, "Accepted"));
    assert_eq!(resolved(&snapshot, Kind::HttpRoute, "shop/r"), (false, "BackendNotFound"));
    assert_eq!(complaints(&snapshot).len(), 4, "{:?}", complaints(&snapshot));
}

#[test]
fn references_are_judged_by_their_reason() {
    for (kind, port, backend, reason) in [
        ("HTTPRoute", "{port: 80}", "{name: b, port: 80}", (true, "ResolvedRefs")),
        ("HTTPRoute", "{port: 80, appProtocol: kubernetes.io/h2c}", "{name: b, port: 80}", (true, "ResolvedRefs")),
        ("HTTPRoute", "{port: 80, appProtocol: kubernetes.io/wss}", "{name: b, port: 80}", (false, "UnsupportedProtocol")),
        ("GRPCRoute", "{port: 80, appProtocol: example.com/own}", "{name: b, port: 80}", (false, "UnsupportedProtocol")),
        ("HTTPRoute", "{port: 80, appProtocol: https}", "{name: b, port: 80}", (false, "UnsupportedProtocol")),
        ("TCPRoute", "{port: 80, appProtocol: https}", "{name: b, port: 80}", (true, "ResolvedRefs")),
        ("HTTPRoute", "{port: 80}", "{kind: Pod, name: b, port: 80}", (false, "InvalidKind")),
        ("TCPRoute", "{port: 80}", "{name: b, port: 8080}", (false, "BackendNotFound")),
    ] {
        let text = [services(), service("shop/b", "10.96.0.9", port), route(kind, "shop/r", "", &format!("{{backendRefs: [{backend}]}}"))];
        let snapshot = snapshot(&text.concat());
        let kind = Kind::from_name(kind).unwrap();
        assert_eq!(resolved(&snapshot, kind, "shop/r"), reason, "{port} {backend}");
    }
    let headless = service("shop/b", "None", "{port: 80}");
    let backend = snapshot(&[services(), headless, route("HTTPRoute", "shop/r", "", &format!("{{{}}}", to("b")))].concat());
    assert_eq!(resolved(&backend, Kind::HttpRoute, "shop/r"), (true, "ResolvedRefs"), "a backend need not be dialled");
}

#[test]
fn a_mirror_that_leads_nowhere_is_dropped() {
    let mirror = |name: &str| format!("{{type: RequestMirror, requestMirror: {{backendRef: {{name: {name}, port: 80}}}}}}");
    let rule = format!("{{filters: [{}, {}], {}}}", mirror("gone"), mirror("v2"), to("v1"));
    let snapshot = snapshot(&(services() + &route("HTTPRoute", "shop/r", "", &rule)));
    let rule = &rules(&snapshot)[0];
    assert!(matches!(&rule.filters[..], [Filter::Mirror { target: Target::Service { service, .. }, .. }] if &*service.name == "v2"));
    assert_eq!(resolved(&snapshot, Kind::HttpRoute, "shop/r"), (false, "BackendNotFound"));
}

#[test]
fn what_is_not_understood_is_refused_after_all_else() {
    let rules_ = format!(
        "{{name: bad, matches: [{{path: {{type: RegularExpression, value: '('}}, method: GET}}, {{path: {{value: /fine}}}}], {}}}, {{name: rest, {}}}",
        to("v1"),
        to("v2")
    );
    let snapshot = snapshot(&(services() + &route("HTTPRoute", "shop/r", "", &rules_)));
    let [fine, rest, bad] = rules(&snapshot) else { panic!("{:?}", rules(&snapshot)) };
    assert_eq!(fine.matches.path, Some(PathMatch::Segments("/fine".into())));
    assert_eq!((fine.filters.len(), rest.origin.name.as_deref(), bad.origin.name.as_deref()), (0, Some("rest"), Some("bad")));
    assert!(bad.backends.is_empty() && matches!(&bad.filters[..], [Filter::Refuse(_)]));
    let said = status(&snapshot, Kind::HttpRoute, "shop/r");
    assert!(said.accepted.status);
    let partial = said.partial.as_ref().unwrap();
    assert!(partial.reason == "UnsupportedValue" && partial.message.starts_with("Dropped Rule"), "{partial:?}");
}

#[test]
fn a_route_of_which_nothing_is_understood_is_not_accepted() {
    let of = |rule: &str| snapshot(&(services() + &route("HTTPRoute", "shop/r", "", rule)));
    let bad = of("{filters: [{type: ExtensionRef}]}");
    assert_eq!(accepted(&bad, Kind::HttpRoute, "shop/r"), (false, "UnsupportedValue"));
    assert!(matches!(&rules(&bad)[0].filters[..], [Filter::Refuse(_)]), "it has the port all the same");
    let both = "{filters: [{type: URLRewrite, urlRewrite: {}}, {type: RequestRedirect, requestRedirect: {}}]}, {}";
    assert_eq!(accepted(&of(both), Kind::HttpRoute, "shop/r"), (false, "IncompatibleFilters"));
}

#[test]
fn filters_that_are_not_done_are_told_and_refuse() {
    let extension = "filters: [{type: ExtensionRef, extensionRef: {group: x.example, kind: Thing, name: a}}]";
    let auth = "filters: [{type: ExternalAuth, externalAuth: {protocol: HTTP, backendRef: {name: v1, port: 80}}}]";
    let on_backend = format!("backendRefs: [{{name: v1, port: 80, {extension}}}]");
    for (rule, reference) in [
        (format!("{extension}, {}", to("v1")), "InvalidKind"),
        (format!("{auth}, {}", to("v1")), "ResolvedRefs"),
        (on_backend, "InvalidKind"),
    ] {
        for kind in ["HTTPRoute", "GRPCRoute"] {
            let of = Kind::from_name(kind).unwrap();
            let alone = snapshot(&(services() + &route(kind, "shop/r", "", &format!("{{{rule}}}"))));
            assert_eq!(accepted(&alone, of, "shop/r"), (false, "UnsupportedValue"), "{kind} {rule}");
            assert_eq!(resolved(&alone, of, "shop/r"), (reference == "ResolvedRefs", reference), "{kind} {rule}");
            let found = &rules(&alone)[0];
            let mut filters = found.backends.iter().flat_map(|backend| &backend.filters).chain(&found.filters);
            let refuses = filters.any(|filter| matches!(filter, Filter::Refuse(_)));
            assert!(refuses, "{kind}: {found:?}");
            // Beside a rule that is understood the route is accepted in part.
            let beside = snapshot(&(services() + &route(kind, "shop/r", "", &format!("{{{rule}}}, {{{}}}", to("v2")))));
            assert_eq!(accepted(&beside, of, "shop/r"), (true, "Accepted"), "{kind} {rule}");
            let partial = status(&beside, of, "shop/r").partial.as_ref().map(|partial| partial.reason);
            assert_eq!(partial, Some("UnsupportedValue"), "{kind} {rule}");
        }
    }
}

#[test]
fn a_route_without_rules_answers_with_an_error() {
    let snapshot = snapshot(&(services() + &route("HTTPRoute", "shop/r", "", "")));
    assert!(rules(&snapshot)[0].backends.is_empty() && rules(&snapshot)[0].matches == Default::default());
}

#[test]
fn tables_that_have_not_changed_are_shared() {
    let rule = format!("{{{}}}", to("v1"));
    let one = [services(), route("HTTPRoute", "shop/r", ", port: 80", &rule), route("HTTPRoute", "far/r", ", port: 80", &rule)].concat();
    let first = snapshot(&one);
    let second = after(&(one + &route("HTTPRoute", "far/s", "", &rule)), Some(&first));
    assert!(Arc::ptr_eq(table(&first, 80, "shop").unwrap(), table(&second, 80, "shop").unwrap()));
    assert!(!Arc::ptr_eq(table(&first, 80, "far").unwrap(), table(&second, 80, "far").unwrap()));
}

/// Guards against a quadratic join: that one takes minutes.
#[test]
fn a_thousand_routes_and_ten_thousand_services_are_joined_in_seconds() {
    let mut text = services();
    for i in 0..10_000 {
        text += &service(&format!("many/s{i}"), &format!("10.97.{}.{}", i / 250, i % 250), "{port: 80}");
    }
    for i in 0..1_000 {
        let rule = format!("{{matches: [{{path: {{value: /p{i}}}}}, {{path: {{type: Exact, value: /e{i}}}}}], {}}}", to("v1"));
        text += &route("HTTPRoute", &format!("shop/r{i}"), "", &rule);
    }
    let parsed = parse_documents(Path::new("mesh.yaml"), &text);
    let start = std::time::Instant::now();
    let snapshot = Snapshot::build(&parsed.documents, parsed.problems, None);
    let took = start.elapsed();
    assert_eq!((rules(&snapshot).len(), complaints(&snapshot).len()), (2_000, 0));
    println!("built in {took:?}");
    assert!(took < std::time::Duration::from_secs(10), "{took:?}");
}

/// ServiceEntry `out/api` with two hosts, which namespace `shop` knows.
fn entry(more: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: api, namespace: out}}\n\
         spec: {{hosts: [a.example.com, b.example.com], resolution: DNS, \
         ports: [{{number: 80, name: http, protocol: HTTP}}, {{number: 443, name: tls, protocol: HTTPS}}], {more}}}\n"
    )
}

/// A HTTPRoute with ServiceEntry `out/api` as its parent.
fn of_entry(name: &str, parent: &str, rules: &str) -> String {
    route("HTTPRoute", name, parent, rules).replace(
        "group: '', kind: Service, name: web, namespace: shop",
        "group: networking.istio.io, kind: ServiceEntry, name: api, namespace: out",
    )
}

fn hostname(host: &str, port: u16) -> String {
    format!("backendRefs: [{{group: networking.istio.io, kind: Hostname, name: {host}, port: {port}}}]")
}

/// Where the first rule of a host's port leads for the clients of a namespace.
fn leads(snapshot: &Snapshot, host: &str, port: u16, client: &str) -> Option<Target> {
    let host = NamespacedName { namespace: "out".into(), name: host.into() };
    match &**snapshot.routes(&host, port)?.table(client)? {
        RouteTable::Http { rules, .. } => Some(rules[0].backends[0].target.clone()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_service_entry_is_a_parent_by_each_of_its_hosts() {
    let rule = format!("{{{}}}", hostname("b.example.com", 80));
    let everybody = of_entry("out/all", ", port: 80", &rule);
    let own = of_entry("shop/own", ", sectionName: http", &format!("{{{}}}", to("v1")));
    let snapshot = snapshot(&[services(), entry(""), everybody, own].concat());
    let b = Target::Service { service: name("out/b.example.com"), port: 80, subset: None };
    let v1 = Target::Service { service: name("shop/v1"), port: 80, subset: None };
    for host in ["a.example.com", "b.example.com"] {
        assert_eq!(leads(&snapshot, host, 80, "far"), Some(b.clone()), "a producer's route is for all");
        assert_eq!(leads(&snapshot, host, 80, "shop"), Some(v1.clone()), "a consumer's is for its own namespace");
        assert_eq!(leads(&snapshot, host, 443, "shop"), None, "of the port that is named");
    }
    for route in ["out/all", "shop/own"] {
        let status = status(&snapshot, Kind::HttpRoute, route);
        assert!(status.accepted.status && status.resolved.status, "{status:?}");
    }
}

#[test]
fn a_service_entry_that_is_not_known_is_no_parent_and_no_backend() {
    let parents = [("", "out/fine"), (", port: 81", "out/port"), ("", "shop/foreign")];
    let rule = format!("{{{}}}", hostname("a.example.com", 80));
    let routes = parents.map(|(parent, name)| of_entry(name, parent, &rule)).concat();
    let private = snapshot(&[services(), entry("exportTo: ['.']"), routes.clone()].concat());
    let said = |snapshot: &Snapshot, route: &str| {
        let status = status(snapshot, Kind::HttpRoute, route);
        (status.accepted.reason, status.accepted.message.to_string(), status.resolved.reason)
    };
    assert_eq!(said(&private, "out/fine").0, "Accepted");
    let (reason, message, _) = said(&private, "out/port");
    assert!(reason == "NoMatchingParent" && message.contains("ServiceEntry out/api has no TCP port 81"), "{message}");
    let (reason, message, refs) = said(&private, "shop/foreign");
    assert!(reason == "NoMatchingParent" && message.contains("namespace shop knows"), "{message}");
    assert_eq!(refs, "BackendNotFound", "neither is it a backend");
    let none = snapshot(&[services(), routes].concat());
    let (reason, message, _) = said(&none, "out/fine");
    assert!(reason == "NoMatchingParent" && message.contains("does not exist"), "{message}");
    // Its owner routes for those who know it, and need not know it itself.
    let elsewhere = snapshot(&[services(), entry("exportTo: [shop]"), of_entry("out/fine", "", &format!("{{{}}}", to("v1")))].concat());
    assert_eq!(said(&elsewhere, "out/fine").0, "Accepted");
    // Nobody gets there by calling it a Service.
    let disguised = of_entry("out/fine", "", "{backendRefs: [{name: a.example.com, port: 80}]}");
    let (_, _, refs) = said(&snapshot(&[services(), entry(""), disguised].concat()), "out/fine");
    assert_eq!(refs, "BackendNotFound");
}

#[test]
fn a_host_that_speaks_tls_is_a_backend_where_a_rule_begins_it() {
    let routed = of_entry("shop/tls", ", port: 80", &format!("{{{}}}", hostname("a.example.com", 443)));
    let rule = |namespace: &str, mode: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: d, namespace: {namespace}}}\n\
             spec: {{host: a.example.com, trafficPolicy: {{portLevelSettings: [{{port: {{number: 443}}, tls: {{mode: {mode}}}}}]}}}}\n"
        )
    };
    for (rules, fine) in [
        (String::new(), false),
        (rule("shop", "DISABLE"), false),
        (rule("far", "SIMPLE"), false),
        (rule("shop", "SIMPLE"), true),
        (rule("out", "SIMPLE"), true),
    ] {
        let snapshot = snapshot(&[services(), entry(""), routed.clone(), rules.clone()].concat());
        let status = status(&snapshot, Kind::HttpRoute, "shop/tls");
        let reason = if fine { "ResolvedRefs" } else { "UnsupportedProtocol" };
        assert_eq!((status.resolved.status, status.resolved.reason), (fine, reason), "{rules}");
        let target = leads(&snapshot, "a.example.com", 80, "shop").unwrap();
        assert_eq!(matches!(target, Target::Service { port: 443, .. }), fine, "{target:?}");
    }
}

#[test]
fn a_host_without_addresses_of_its_own_is_no_backend_of_a_service() {
    let entry = entry("exportTo: ['*']").replace("resolution: DNS", "resolution: NONE");
    let routed = route("HTTPRoute", "out/a", "", &format!("{{{}}}", hostname("a.example.com", 80)));
    let of_service = snapshot(&[services(), entry.clone(), routed].concat());
    let status = status(&of_service, Kind::HttpRoute, "out/a");
    assert!(status.resolved.reason == "BackendNotFound" && status.resolved.message.contains("resolution NONE"), "{status:?}");
    let of_entry = snapshot(&[services(), entry, of_entry("out/a", "", &format!("{{{}}}", hostname("a.example.com", 80)))].concat());
    assert_eq!(resolved(&of_entry, Kind::HttpRoute, "out/a"), (true, "ResolvedRefs"));
}
