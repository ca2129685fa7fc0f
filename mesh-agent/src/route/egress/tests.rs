use std::path::Path;

use mesh_model::document::parse_documents;

use super::*;

const CLIENT: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop}
spec: {nodeName: n1, containers: []}
status: {podIP: 10.1.0.1}
";

fn entry(name: &str, spec: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap();
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}\n"
    )
}

fn mesh(registry_only: bool, entries: &[String]) -> Snapshot {
    let mode = if registry_only { "REGISTRY_ONLY" } else { "ALLOW_ANY" };
    let settings = format!(
        "---\napiVersion: nodemesh.dev/v1alpha1\nkind: Mesh\nmetadata: {{name: default}}\nspec: {{outboundTrafficPolicy: {{mode: {mode}}}}}\n"
    );
    let parsed = parse_documents(Path::new("mesh.yaml"), &[CLIENT, &settings, &entries.concat()].concat());
    Snapshot::build(&parsed.documents, parsed.problems, None)
}

/// What becomes of a connection, in a word.
fn way(snapshot: &Snapshot, to: &str, protocol: Protocol, host: Option<&str>) -> String {
    let client = snapshot.workloads().next().unwrap();
    let dialled = Dialled::of(snapshot, client, to.parse().unwrap());
    match dialled.way(&Names::default(), protocol, host) {
        Way::Whole(asked) => asked.service.name.to_string(),
        Way::Requests => "requests".into(),
        Way::Pass => "pass".into(),
        Way::Refuse(outcome) => outcome.meaning().name.into(),
    }
}

fn look(snapshot: &Snapshot, to: &str) -> Look {
    Dialled::of(snapshot, snapshot.workloads().next().unwrap(), to.parse().unwrap()).look()
}

const WEB: &str = "ports: [{number: 80, name: http, protocol: HTTP}, {number: 443, name: tls, protocol: TLS}]";
const AWAY: &str = "192.0.2.1";

#[test]
fn what_names_no_host_passes_or_is_refused() {
    for (registry_only, expected) in [(false, "pass"), (true, "registry_only")] {
        let snapshot = mesh(registry_only, &[entry("shop/a", &format!("hosts: [a.example.com], {WEB}, resolution: DNS"))]);
        for (port, protocol, host) in [
            (443, Protocol::Tls, Some("b.example.com")),
            (443, Protocol::Tls, None),
            (443, Protocol::Opaque, None),
            (80, Protocol::Opaque, None),
            (444, Protocol::Tls, Some("a.example.com")),
        ] {
            assert_eq!(way(&snapshot, &format!("{AWAY}:{port}"), protocol, host), expected, "{port} {protocol:?} {host:?}");
        }
        let http = way(&snapshot, "192.0.2.1:80", Protocol::Http1, Some("b.example.com"));
        assert_eq!(http, if registry_only { "requests" } else { "pass" }, "a refusal of a request is an answer");
    }
}

#[test]
fn the_host_that_a_client_names_is_the_one_it_means() {
    let entries = [
        entry("shop/a", &format!("hosts: [a.example.com, '*.wild.example.com'], {WEB}, resolution: NONE")),
        entry("other/hidden", &format!("hosts: [hidden.example.com], {WEB}, resolution: NONE, exportTo: [.]")),
    ];
    for registry_only in [false, true] {
        let snapshot = mesh(registry_only, &entries);
        assert_eq!(way(&snapshot, "192.0.2.1:443", Protocol::Tls, Some("a.example.com")), "a.example.com");
        assert_eq!(way(&snapshot, "192.0.2.1:443", Protocol::Tls, Some("b.wild.example.com")), "*.wild.example.com");
        assert_eq!(way(&snapshot, "192.0.2.1:80", Protocol::Http1, Some("a.example.com")), "requests");
        let hidden = way(&snapshot, "192.0.2.1:443", Protocol::Tls, Some("hidden.example.com"));
        assert_eq!(hidden, if registry_only { "registry_only" } else { "pass" });
    }
}

#[test]
fn a_host_with_addresses_is_told_by_them_and_only_by_them() {
    let spec = format!("hosts: [a.example.com], addresses: [192.0.2.1], {WEB}, resolution: STATIC, endpoints: [{{address: 198.51.100.1}}]");
    let snapshot = mesh(true, &[entry("shop/a", &spec)]);
    assert_eq!(way(&snapshot, "192.0.2.1:443", Protocol::Tls, Some("anything.example.com")), "a.example.com");
    assert_eq!(way(&snapshot, "192.0.2.1:80", Protocol::Http1, None), "requests");
    assert_eq!(way(&snapshot, "192.0.2.1:80", Protocol::Opaque, None), "a.example.com");
    assert_eq!(way(&snapshot, "192.0.2.2:443", Protocol::Tls, Some("a.example.com")), "registry_only");
    assert_eq!(look(&snapshot, "192.0.2.1:80"), Look::First(None));
}

#[test]
fn tcp_without_addresses_is_told_by_endpoints_or_the_port() {
    let tcp = "ports: [{number: 5432, name: db, protocol: TCP}]";
    let with = |name: &str, more: &str| entry(&format!("shop/{name}"), &format!("hosts: [{name}.example.com], {tcp}, {more}"));
    let fixed = with("fixed", "resolution: STATIC, endpoints: [{address: 198.51.100.1}]");
    let other = with("other", "resolution: STATIC, endpoints: [{address: 198.51.100.2}]");
    let anywhere = with("anywhere", "resolution: NONE");
    let snapshot = mesh(false, &[fixed.clone(), other.clone()]);
    assert_eq!(look(&snapshot, "192.0.2.1:5432"), Look::No);
    assert_eq!(way(&snapshot, "198.51.100.2:5432", Protocol::Opaque, None), "other.example.com");
    assert_eq!(way(&snapshot, "192.0.2.1:5432", Protocol::Opaque, None), "pass");
    assert_eq!(way(&mesh(true, &[fixed.clone(), other]), "192.0.2.1:5432", Protocol::Opaque, None), "registry_only");
    assert_eq!(
        way(&mesh(true, std::slice::from_ref(&fixed)), "192.0.2.1:5432", Protocol::Opaque, None),
        "fixed.example.com",
        "the port's only one"
    );
    let foreign =
        entry("away/fixed", &format!("hosts: [fixed.example.com], {tcp}, resolution: STATIC, endpoints: [{{address: 198.51.100.1}}]"));
    assert_eq!(
        way(&mesh(true, &[foreign]), "192.0.2.1:5432", Protocol::Opaque, None),
        "registry_only",
        "nor does another namespace's get it"
    );
    let tls = Some("unknown.example.com");
    assert_eq!(
        way(&mesh(true, std::slice::from_ref(&fixed)), "192.0.2.1:5432", Protocol::Tls, tls),
        "registry_only",
        "it says whom it means"
    );
    assert_eq!(way(&mesh(true, &[fixed, anywhere]), "192.0.2.1:5432", Protocol::Opaque, None), "anywhere.example.com");
}

#[test]
fn endpoints_of_services_pass() {
    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: db, namespace: shop}\nspec: {clusterIP: None, ports: [{port: 5432, name: a}]}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: db-1, namespace: shop, labels: {kubernetes.io/service-name: db}}\naddressType: IPv4\nports: [{name: a, port: 5432, protocol: TCP}]\nendpoints: [{addresses: [192.0.2.50]}]\n";
    let snapshot = mesh(true, &[service.to_owned()]);
    assert_eq!(look(&snapshot, "192.0.2.50:5432"), Look::No);
    assert_eq!(way(&snapshot, "192.0.2.50:5432", Protocol::Opaque, None), "pass");
    assert_eq!(way(&snapshot, "192.0.2.50:5433", Protocol::Opaque, None), "registry_only");
}

const TLS: &str = "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: db, namespace: shop}\nspec: {host: HOST, trafficPolicy: {tls: {mode: SIMPLE}}}\n";

#[test]
fn what_is_to_be_encrypted_is_never_passed_on_as_it_is() {
    let host = entry("shop/db", "hosts: [db.example.com], ports: [{number: 5432, name: db, protocol: TCP}], resolution: DNS");
    assert_eq!(way(&mesh(false, std::slice::from_ref(&host)), "192.0.2.1:5432", Protocol::Opaque, None), "pass");
    let snapshot = mesh(false, &[host, TLS.replace("HOST", "db.example.com")]);
    assert_eq!(
        way(&snapshot, "192.0.2.1:5432", Protocol::Opaque, None),
        "upstream_tls_unknown",
        "no name server has said whether it is the host"
    );
    let client = snapshot.workloads().next().unwrap();
    let dialled = Dialled::of(&snapshot, client, "192.0.2.1:5432".parse().unwrap());
    let asked: Vec<_> = dialled.unsettled(Protocol::Opaque, None).into_iter().map(|name| name.host.to_string()).collect();
    assert_eq!(asked, ["db.example.com"]);
    assert_eq!(Dialled::of(&snapshot, client, "192.0.2.1:5433".parse().unwrap()).unsettled(Protocol::Opaque, None), []);

    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: db, namespace: shop}\nspec: {clusterIP: None, ports: [{port: 5432, name: a}]}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: db-1, namespace: shop, labels: {kubernetes.io/service-name: db}}\naddressType: IPv4\nports: [{name: a, port: 5432, protocol: TCP}]\nendpoints: [{addresses: [192.0.2.50]}]\n";
    let snapshot = mesh(false, &[service.to_owned(), TLS.replace("HOST", "db.shop.svc.cluster.local")]);
    assert_eq!(way(&snapshot, "192.0.2.50:5432", Protocol::Opaque, None), "upstream_tls_unknown");
    assert_eq!(snapshot.ports_of_strangers().into_iter().collect::<Vec<_>>(), [5432], "such connections come to the agent");

    // Services without a rule that have the endpoint too, be their names before or after, take nothing from it.
    for name in ["a", "z"] {
        let other = service.replace("name: db,", &format!("name: {name},")).replace("db-1", &format!("{name}-1"));
        let other = other.replace("service-name: db", &format!("service-name: {name}"));
        let snapshot = mesh(false, &[service.to_owned(), other, TLS.replace("HOST", "db.shop.svc.cluster.local")]);
        assert_eq!(snapshot.services_of_stranger("192.0.2.50:5432".parse().unwrap()).len(), 2, "{name}");
        assert_eq!(way(&snapshot, "192.0.2.50:5432", Protocol::Opaque, None), "upstream_tls_unknown", "{name}");
        assert!(snapshot.ports_of_strangers().contains(&5432), "{name}");
    }
}
