use std::path::Path;

use super::*;
use crate::document::parse_documents;

fn after(text: &str, previous: Option<&Snapshot>) -> Snapshot {
    let parsed = parse_documents(Path::new("mesh.yaml"), text);
    Snapshot::build(&parsed.documents, parsed.problems, previous)
}

fn service(name: &str, ports: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap();
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{clusterIP: None, ports: [{ports}]}}\n"
    )
}

fn rules(name: &str, spec: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap();
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}\n"
    )
}

/// Services `shop/web` (80, 81), `shop/v2` (8080 alone), `other/api` (80).
fn world(rules: &[String]) -> String {
    let services =
        [service("shop/web", "{port: 80}, {port: 81, name: b}"), service("shop/v2", "{port: 8080}"), service("other/api", "{port: 80}")];
    [services.concat(), rules.concat()].concat()
}

fn to(host: &str) -> String {
    format!("http: [{{route: [{{destination: {{host: {host}}}}}]}}]")
}

fn web() -> NamespacedName {
    NamespacedName { namespace: "shop".into(), name: "web".into() }
}

/// Target of the first rule's first backend.
fn target(table: &RouteTable) -> String {
    let backends = match table {
        RouteTable::Http { rules, .. } => &rules[0].backends,
        RouteTable::Tls(rules) => &rules[0].backends,
        RouteTable::Tcp(rules) => &rules[0].backends,
    };
    match &backends[0].target {
        Target::Service { service, port, subset } => {
            format!("{service}:{port}{}", subset.as_ref().map(|s| format!("/{s}")).unwrap_or_default())
        }
        Target::Invalid(why) => why.to_string(),
    }
}

fn from(snapshot: &Snapshot, client: &str, port: u16) -> Option<String> {
    snapshot.routes(&web(), port)?.table(client).map(|table| target(table))
}

/// Name of the object that the clients of a namespace have their rules from.
fn author(snapshot: &Snapshot, client: &str) -> Option<String> {
    match &**snapshot.routes(&web(), 80)?.table(client)? {
        RouteTable::Http { rules, .. } => Some(rules[0].origin.object.name.to_string()),
        _ => None,
    }
}

fn complaints(snapshot: &Snapshot) -> Vec<String> {
    snapshot.problems().iter().map(ToString::to_string).filter(|text| text.contains("VirtualService")).collect()
}

#[test]
fn a_destinations_port_is_the_dialled_one_or_its_only_one() {
    let snapshot = after(&world(&[rules("shop/r", &format!("hosts: [web], {}", to("v2")))]), None);
    assert_eq!((from(&snapshot, "any", 80), from(&snapshot, "any", 81)), (Some("shop/v2:8080".into()), Some("shop/v2:8080".into())));
    assert_eq!(complaints(&snapshot), Vec::<String>::new());
    let snapshot = after(&world(&[rules("shop/r", &format!("hosts: [web], {}", to("web")))]), None);
    assert_eq!((from(&snapshot, "any", 80), from(&snapshot, "any", 81)), (Some("shop/web:80".into()), Some("shop/web:81".into())));
    for (destination, part) in [
        ("{host: none}", "names Service shop/none, which does not exist"),
        ("{host: example.com}", "example.com, which is no host of a Service, nor of a ServiceEntry"),
        ("{host: web, port: {number: 99}}", "port 99, which Service shop/web does not have"),
    ] {
        let snapshot =
            after(&world(&[rules("shop/r", &format!("hosts: [web], http: [{{route: [{{destination: {destination}}}]}}]"))]), None);
        assert!(from(&snapshot, "any", 80).unwrap().contains(part));
        let complaints = complaints(&snapshot);
        assert!(
            complaints.len() == 1 && complaints[0].contains("spec.http[0].route[0].destination") && complaints[0].contains(part),
            "{complaints:?}"
        );
    }
    let snapshot = after(&world(&[rules("shop/r", &format!("hosts: [v2], {}", to("web")))]), None);
    let v2 = NamespacedName { namespace: "shop".into(), name: "v2".into() };
    assert!(target(snapshot.routes(&v2, 8080).unwrap().table("x").unwrap()).contains("several, of which 8080 is none"));
}

#[test]
fn rules_are_for_the_port_they_name() {
    let spec = "hosts: [web], http: [{match: [{port: 81}, {uri: {prefix: /a}, port: 80}], route: [{destination: {host: v2}}]}]";
    let snapshot = after(&world(&[rules("shop/r", spec)]), None);
    let count = |port| match &**snapshot.routes(&web(), port).unwrap().table("x").unwrap() {
        RouteTable::Http { rules, .. } => rules.iter().map(|rule| rule.matches.path.is_some()).collect::<Vec<_>>(),
        _ => panic!(),
    };
    assert_eq!((count(80), count(81)), (vec![true], vec![false]));
    let snapshot =
        after(&world(&[rules("shop/r", "hosts: [web], http: [{match: [{port: 81}], route: [{destination: {host: v2}}]}]")]), None);
    assert_eq!(snapshot.routes(&web(), 80), None);
}

#[test]
fn the_ports_protocol_chooses_the_list() {
    let spec = "hosts: [db], http: [{route: [{destination: {host: db}}]}], tcp: [{route: [{destination: {host: db}}]}], tls: [{match: [{sniHosts: ['*.a']}], route: [{destination: {host: db}}]}]";
    let ports = "{port: 1, name: http-a}, {port: 2, name: tcp}, {port: 3, name: x, appProtocol: https}, {port: 4, name: y}";
    let snapshot = after(&[service("shop/db", ports), rules("shop/r", spec)].concat(), None);
    let db = NamespacedName { namespace: "shop".into(), name: "db".into() };
    let kinds = [1, 2, 3, 4].map(|port| match &**snapshot.routes(&db, port).unwrap().table("x").unwrap() {
        RouteTable::Http { .. } => "http".to_string(),
        RouteTable::Tls(rules) => rules[0].hosts[0].to_string(),
        RouteTable::Tcp(_) => "tcp".to_string(),
    });
    assert_eq!(kinds, ["http", "tcp", "*.a", "http"]);
}

#[test]
fn the_clients_namespace_goes_before_the_services_before_the_root() {
    let of = |name: &str, host: &str, extra: &str| rules(name, &format!("hosts: ['{host}'], {extra} {}", to("web.shop.svc.cluster.local")));
    let full = "web.shop.svc.cluster.local";
    let own = of("shop/own", "web", "");
    let root = of("nodemesh-system/root", full, "");
    let wild = of("nodemesh-system/wild", "*.svc.cluster.local", "");
    let local = of("other/local", full, "exportTo: ['.'],");
    let shared = of("other/shared", full, "");
    let lent = of("shop/lent", "web", "exportTo: [third],");
    // For the clients of `shop`, `other` and `third`.
    for (all, expected) in [
        (vec![&own, &root], [Some("own"), Some("own"), Some("own")]),
        (vec![&root, &wild], [Some("root"), Some("root"), Some("root")]),
        (vec![&wild], [Some("wild"), Some("wild"), Some("wild")]),
        (vec![&local], [None, Some("local"), None]),
        (vec![&local, &own], [Some("own"), Some("local"), Some("own")]),
        (vec![&shared], [Some("shared"), Some("shared"), Some("shared")]),
        (vec![&shared, &own], [Some("own"), Some("shared"), Some("own")]),
        (vec![&lent, &root], [Some("root"), Some("root"), Some("lent")]),
    ] {
        let all: Vec<String> = all.into_iter().cloned().collect();
        let snapshot = after(&world(&all), None);
        let authors = ["shop", "other", "third"].map(|client| author(&snapshot, client));
        assert_eq!(authors.each_ref().map(Option::as_deref), expected, "{all:?}");
    }
}

#[test]
fn the_oldest_of_two_for_one_host_counts() {
    let aged = |text: String, year: u32| text.replace("metadata: {", &format!("metadata: {{creationTimestamp: '{year}-01-01T00:00:00Z', "));
    let of = |name| rules(name, &format!("hosts: [web], {}", to("web")));
    let snapshot = after(&world(&[aged(of("shop/a"), 2026), aged(of("shop/b"), 2025)]), None);
    assert_eq!(author(&snapshot, "x").as_deref(), Some("b"));
    let complaints = complaints(&snapshot);
    assert!(complaints.len() == 1 && complaints[0].contains("VirtualService shop/a: spec.hosts: is not used"), "{complaints:?}");
}

#[test]
fn subsets_stay_and_unknown_ones_are_noted() {
    let spec = "hosts: [web], http: [{route: [{destination: {host: web, subset: v1}, weight: 90}, {destination: {host: web, subset: v2}, weight: 10}]}]";
    let rule = "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: web, namespace: shop}\nspec: {host: web, subsets: [{name: v1}]}\n";
    let snapshot = after(&world(&[rules("shop/r", spec), rule.into()]), None);
    assert_eq!(from(&snapshot, "x", 80).as_deref(), Some("shop/web:80/v1"));
    let complaints = complaints(&snapshot);
    assert!(complaints.len() == 1 && complaints[0].contains("route[1].destination: names subset \"v2\""), "{complaints:?}");
}

#[test]
fn gateways_rules_and_hosts_of_nobody_are_noted() {
    let all = [
        rules("shop/a", &format!("hosts: [web], gateways: [edge], {}", to("web"))),
        rules("shop/b", &format!("hosts: [nobody], {}", to("web"))),
    ];
    let snapshot = after(&world(&all), None);
    assert_eq!(snapshot.routes(&web(), 80), None);
    let notes: Vec<_> = snapshot.problems().iter().map(|p| (p.severity, p.field.to_string())).collect();
    assert_eq!(notes, [(Severity::Info, "spec.gateways".to_string()), (Severity::Info, "spec.hosts".to_string())]);
}

#[test]
fn what_has_not_changed_is_shared() {
    let text = world(&[rules("shop/r", &format!("hosts: [web], {}", to("web")))]);
    let first = after(&text, None);
    let second = after(&text, Some(&first));
    let table = |snapshot: &Snapshot| snapshot.routes(&web(), 80).unwrap().producer.clone().unwrap();
    assert!(Arc::ptr_eq(&table(&first), &table(&second)));
}

#[test]
fn a_table_of_the_gateway_api_stands() {
    let rules = Arc::new(VirtualService {
        name: NamespacedName { namespace: "shop".into(), name: "r".into() },
        created: None,
        hosts: vec!["web.shop.svc.cluster.local".into()],
        export_to: Vec::new(),
        mesh: true,
        http: Vec::new(),
        tls: Vec::new(),
        tcp: vec![crate::virtual_service::ConnectionRoute { number: 7, matches: vec![Default::default()], route: Vec::new() }],
    });
    let origin = Origin::Api;
    let object = Object::VirtualService(rules);
    let mut sorted = Sorted::default();
    sorted.objects.insert(Kind::VirtualService, vec![(&origin, &object)]);
    let mut snapshot = after(&world(&[]), None);
    let gateway = Arc::new(RouteTable::Http { rules: Vec::new(), grpc: true });
    snapshot.routes.entry((web(), 80)).or_default().producer = Some(gateway.clone());
    join(&mut snapshot, &mut sorted, None);
    assert_eq!(snapshot.routes(&web(), 80).unwrap().producer, Some(gateway));
    assert!(
        matches!(&**snapshot.routes(&web(), 81).unwrap().producer.as_ref().unwrap(), RouteTable::Tcp(rules) if rules[0].origin.rule == 7)
    );
    assert!(sorted.problems.len() == 1 && sorted.problems[0].message.contains("Gateway API"), "{:?}", sorted.problems);
}
