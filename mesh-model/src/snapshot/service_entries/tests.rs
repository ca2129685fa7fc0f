use std::path::Path;

use super::*;
use crate::document::parse_documents;
use crate::route::{RouteTable, Target};

fn after(text: &str, previous: Option<&Snapshot>) -> Snapshot {
    let parsed = parse_documents(Path::new("mesh.yaml"), text);
    Snapshot::build(&parsed.documents, parsed.problems, previous)
}

fn snapshot(text: &str) -> Snapshot {
    after(text, None)
}

fn entry(name: &str, spec: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap();
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}\n"
    )
}

const HTTP: &str = "ports: [{number: 80, name: http, protocol: HTTP}]";

fn at(snapshot: &Snapshot, client: &str, address: &str) -> Option<String> {
    snapshot.meant_by(client, address.parse().unwrap()).map(|(service, port)| format!("{}:{}", service.name, port.port))
}

fn named(snapshot: &Snapshot, client: &str, host: &str) -> Option<String> {
    snapshot.entry_named(client, host, 80).map(|(service, _)| service.name.to_string())
}

fn complaints(snapshot: &Snapshot) -> Vec<String> {
    snapshot.problems().iter().map(ToString::to_string).filter(|text| text.contains("ServiceEntry")).collect()
}

#[test]
fn hosts_are_services_of_their_namespace() {
    let text = entry(
        "shop/a",
        &format!(
            "hosts: [a.example.com], addresses: [192.0.2.1], {HTTP}, resolution: STATIC, endpoints: [{{address: 203.0.113.2, weight: 2}}, {{address: 203.0.113.1}}]"
        ),
    );
    let snapshot = snapshot(&text);
    let service = snapshot.entries().next().unwrap();
    assert_eq!((service.name.to_string().as_str(), service.name.service_host().as_str()), ("shop/a.example.com", "a.example.com"));
    assert!(!service.is_by_name() && snapshot.is_routed(&service.name, 80));
    let addresses: Vec<_> = service.ports[0].endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect();
    assert_eq!(addresses, ["203.0.113.1:80", "203.0.113.2:80"]);
    assert_eq!(service.ports[0].endpoints[1].traits.as_ref().unwrap().weight, 2);
    assert_eq!(at(&snapshot, "anywhere", "192.0.2.1:80").as_deref(), Some("shop/a.example.com:80"));
    assert_eq!(at(&snapshot, "anywhere", "192.0.2.1:81"), None);
    let again = after(&text, Some(&snapshot));
    assert!(Arc::ptr_eq(service, again.entries().next().unwrap()), "what has not changed is shared");
}

#[test]
fn names_are_found_as_far_as_a_client_knows_them() {
    let snapshot = snapshot(
        &[
            entry("shop/own", &format!("hosts: [a.example.com], exportTo: [.], {HTTP}")),
            entry("other/all", &format!("hosts: [a.example.com], {HTTP}")),
            entry("other/wild", &format!("hosts: ['*.example.com', '*.deep.example.com'], {HTTP}")),
            entry("hidden/none", &format!("hosts: [c.example.org], exportTo: ['~'], {HTTP}")),
        ]
        .concat(),
    );
    assert_eq!(named(&snapshot, "shop", "a.example.com").as_deref(), Some("shop/a.example.com"));
    assert_eq!(named(&snapshot, "third", "a.example.com").as_deref(), Some("other/a.example.com"));
    assert_eq!(named(&snapshot, "third", "b.example.com").as_deref(), Some("other/*.example.com"));
    assert_eq!(named(&snapshot, "third", "x.y.deep.example.com").as_deref(), Some("other/*.deep.example.com"));
    for host in ["example.com", "c.example.org", "notexample.com", ""] {
        assert_eq!(named(&snapshot, "third", host), None, "{host}");
    }
    assert_eq!(snapshot.entry_named("third", "a.example.com", 81), None, "it has no such port");
}

#[test]
fn addresses_are_services_first_then_the_clients_then_the_oldest() {
    let service =
        "---\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}\n";
    let with = |name: &str, host: &str, addresses: &str| {
        entry(
            name,
            &format!("hosts: [{host}], addresses: [{addresses}], {HTTP}, resolution: STATIC, endpoints: [{{address: 203.0.113.1}}]"),
        )
    };
    let snapshot = snapshot(
        &[
            service.to_owned(),
            with("shop/taken", "taken.example.com", "10.96.0.1"),
            with("a/one", "one.example.com", "192.0.2.1"),
            with("b/two", "two.example.com", "192.0.2.1"),
            with("a/three", "three.example.com", "192.0.2.1"),
            with("a/range", "range.example.com", "192.0.2.0/24"),
        ]
        .concat(),
    );
    assert_eq!(at(&snapshot, "shop", "10.96.0.1:80").as_deref(), Some("shop/web:80"));
    assert_eq!(at(&snapshot, "b", "192.0.2.1:80").as_deref(), Some("b/two.example.com:80"));
    assert_eq!(at(&snapshot, "c", "192.0.2.1:80").as_deref(), Some("a/one.example.com:80"));
    assert_eq!(at(&snapshot, "c", "192.0.2.9:80").as_deref(), Some("a/range.example.com:80"));
    let said = complaints(&snapshot);
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said.iter().any(|text| text.contains("shop/taken") && text.contains("Service shop/web")), "{said:?}");
    assert!(said.iter().any(|text| text.contains("a/three") && text.contains("a/one.example.com")), "{said:?}");
}

#[test]
fn hosts_of_one_entry_share_its_address() {
    let spec = format!("hosts: [a.example.com, b.example.com], addresses: [192.0.2.1], {HTTP}, resolution: DNS");
    let snapshot = snapshot(&entry("shop/both", &spec));
    assert_eq!(complaints(&snapshot), Vec::<String>::new());
    let meant = |host: &str| snapshot.meant_by_name("shop", "192.0.2.1:80".parse().unwrap(), host).unwrap().0.name.name.clone();
    assert_eq!(
        (&*meant("a.example.com"), &*meant("b.example.com"), &*meant("c.example.com")),
        ("a.example.com", "b.example.com", "a.example.com")
    );
    let service = snapshot.entries().next().unwrap();
    let Discovery::Dns { names, first: false } = &service.ports[0].discovery else { panic!("{service:?}") };
    assert_eq!((&*names[0].host, names[0].port), ("a.example.com", 80));
}

#[test]
fn two_entries_of_a_namespace_for_one_host_add_up_and_the_older_counts() {
    let text = |name: &str, number: u16, more: &str| {
        entry(
            name,
            &format!(
                "hosts: [a.example.com], ports: [{{number: 80, name: http}}, {{number: {number}, name: x}}], resolution: NONE, {more}"
            ),
        )
    };
    let snapshot = snapshot(&[text("shop/a", 81, ""), text("shop/b", 82, "exportTo: [.], subjectAltNames: [b.example]")].concat());
    let service = snapshot.entries().next().unwrap();
    assert_eq!(service.ports.iter().map(|port| port.port).collect::<Vec<_>>(), [80, 81, 82]);
    assert!(service.is_known_to("other") && service.is_by_name());
    let said = complaints(&snapshot);
    assert!(said.len() == 3 && said.iter().all(|text| text.contains("shop/b")), "{said:?}");
}

#[test]
fn a_selector_finds_ready_pods() {
    let pod = |name: &str, ip: &str, ready: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: vm}}}}\nspec: {{nodeName: n1, containers: []}}\nstatus: {{podIP: {ip}, conditions: [{{type: Ready, status: '{ready}'}}]}}\n"
        )
    };
    let spec = format!("hosts: [vm.example.com], {HTTP}, resolution: STATIC, workloadSelector: {{labels: {{app: vm}}}}");
    let snapshot = snapshot(&[pod("one", "10.1.0.1", "True"), pod("two", "10.1.0.2", "False"), entry("shop/vm", &spec)].concat());
    let service = snapshot.entries().next().unwrap();
    let endpoints = &service.ports[0].endpoints;
    assert_eq!(endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect::<Vec<_>>(), ["10.1.0.1:80"]);
    assert!(endpoints[0].workload.is_some());
}

#[test]
fn routes_and_rules_are_for_hosts_as_for_services() {
    let rules = "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: v, namespace: shop}\nspec: {hosts: [a.example.com], http: [{route: [{destination: {host: b.example.com, port: {number: 80}, subset: x}}]}]}\n";
    let rule = "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: d, namespace: shop}\nspec: {host: b.example.com, trafficPolicy: {connectionPool: {tcp: {maxConnections: 7}}}, subsets: [{name: x, labels: {a: b}}]}\n";
    let entries =
        [entry("shop/a", &format!("hosts: [a.example.com], {HTTP}")), entry("shop/b", &format!("hosts: [b.example.com], {HTTP}"))];
    let snapshot = snapshot(&[&entries.concat(), rules, rule].concat());
    let name = |host: &str| NamespacedName { namespace: "shop".into(), name: host.into() };
    let table = snapshot.routes(&name("a.example.com"), 80).unwrap().table("shop").unwrap();
    let RouteTable::Http { rules, .. } = &**table else { panic!("{table:?}") };
    let target = Target::Service { service: name("b.example.com"), port: 80, subset: Some("x".into()) };
    assert_eq!(rules[0].backends[0].target, target);
    assert!(snapshot.has_traffic(&name("b.example.com")) && !snapshot.has_traffic(&name("a.example.com")));
    let said: Vec<_> = snapshot.problems().iter().map(ToString::to_string).collect();
    assert_eq!(said, Vec::<String>::new());
}

#[test]
fn endpoints_of_services_that_are_no_pods_are_known() {
    let text = "---\napiVersion: v1\nkind: Service\nmetadata: {name: db, namespace: shop}\nspec: {clusterIP: None, ports: [{port: 5432, name: a}]}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: db-1, namespace: shop, labels: {kubernetes.io/service-name: db}}\naddressType: IPv4\nports: [{name: a, port: 5432, protocol: TCP}]\nendpoints: [{addresses: [192.0.2.50]}]\n";
    let snapshot = snapshot(text);
    assert_eq!(snapshot.service_of_stranger("192.0.2.50:5432".parse().unwrap()).unwrap().name.to_string(), "shop/db");
    assert!(snapshot.service_of_stranger("192.0.2.50:5433".parse().unwrap()).is_none());
}

const PODS: &str = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: db-0, namespace: shop, labels: {nodemesh.dev/mesh: enabled, app: db}}\nstatus: {podIP: 10.1.0.1, conditions: [{type: Ready, status: 'True'}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: db, namespace: shop}\nspec: {clusterIP: 10.96.0.7, selector: {app: db}, ports: [{port: 5432, name: tcp}]}\n";

#[test]
fn what_is_a_pods_stays_the_pods() {
    let own = "ports: [{number: 5432, name: tcp, protocol: TCP}], resolution: STATIC, endpoints: [{address: 192.0.2.66}]";
    let alone = entry("evil/alone", &format!("hosts: [a.example.com], addresses: [10.1.0.1], {own}"));
    let range = entry("evil/range", &format!("hosts: [b.example.com], addresses: [10.0.0.0/8], {own}"));
    let snapshot = snapshot(&[PODS, &alone, &range].concat());
    for client in ["shop", "evil"] {
        assert_eq!(at(&snapshot, client, "10.1.0.1:5432"), None);
        assert_eq!(at(&snapshot, client, "10.96.0.7:5432").as_deref(), Some("shop/db:5432"), "nor is a Service's address another's");
        assert_eq!(at(&snapshot, client, "10.2.0.1:5432").as_deref(), Some("evil/b.example.com:5432"));
    }
    assert!(snapshot.service_at("10.1.0.1:5432".parse().unwrap()).is_none());
    let said = complaints(&snapshot);
    assert!(said.iter().any(|said| said.contains("spec.addresses") && said.contains("10.1.0.1:5432 is a pod's address")), "{said:?}");
}

#[test]
fn a_service_as_an_endpoint_is_its_pods() {
    let ports = "ports: [{number: 5432, name: tcp, protocol: TCP}]";
    for (resolution, address) in [("STATIC", "10.96.0.7"), ("DNS", "db.shop.svc.cluster.local")] {
        let host =
            entry("shop/out", &format!("hosts: [a.example.com], {ports}, resolution: {resolution}, endpoints: [{{address: {address}}}]"));
        let snapshot = snapshot(&[PODS, &host].concat());
        let port = &snapshot.entries().next().unwrap().ports[0];
        let [endpoint] = &*port.endpoints else { panic!("{port:?}") };
        assert_eq!((endpoint.address.to_string().as_str(), endpoint.workload.is_some()), ("10.1.0.1:5432", true));
        assert!(port.discovery.names().is_none_or(|names| names.is_empty()));
    }
}

#[test]
fn endpoints_on_the_hosts_network_are_no_pods() {
    let text = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: exporter, namespace: shop, labels: {app: exporter}}\nspec: {hostNetwork: true, nodeName: n1, containers: []}\nstatus: {podIP: 172.18.0.2, conditions: [{type: Ready, status: 'True'}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: exporter, namespace: shop}\nspec: {clusterIP: None, selector: {app: exporter}, ports: [{port: 9100, name: http}]}\n";
    let snapshot = snapshot(text);
    assert_eq!(snapshot.service_of_stranger("172.18.0.2:9100".parse().unwrap()).unwrap().name.to_string(), "shop/exporter");
}
