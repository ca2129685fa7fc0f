use std::path::Path;

use super::*;
use crate::document::parse_documents;

fn after(text: &str, previous: Option<&Snapshot>) -> Snapshot {
    let parsed = parse_documents(Path::new("mesh.yaml"), text);
    Snapshot::build(&parsed.documents, parsed.problems, previous)
}

/// Pods `client` with label `app: client` in the namespaces, and Service `shop/web`.
fn world(rules: &[String]) -> String {
    let pods = ["shop", "other", "nodemesh-system"].map(|namespace| {
        format!("---\napiVersion: v1\nkind: Pod\nmetadata: {{name: client, namespace: {namespace}, labels: {{app: client}}}}\n")
    });
    let service =
        "---\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}\n";
    [&pods.concat(), service, &rules.concat()].concat()
}

/// Its `maxConnections` tells which of several rules is meant.
fn rule(name: &str, host: &str, connections: u32, extra: &str) -> String {
    let policy = match connections {
        0 => String::new(),
        number => format!("trafficPolicy: {{connectionPool: {{tcp: {{maxConnections: {number}}}}}}},"),
    };
    let (namespace, name) = name.split_once('/').unwrap();
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{host: '{host}', {policy} {extra}}}\n"
    )
}

fn web() -> NamespacedName {
    NamespacedName { namespace: "shop".into(), name: "web".into() }
}

fn client<'a>(snapshot: &'a Snapshot, namespace: &str) -> &'a Workload {
    snapshot.workloads().find(|workload| *workload.namespace == *namespace).unwrap()
}

/// `maxConnections` for the client of a namespace.
fn connections(snapshot: &Snapshot, namespace: &str) -> Option<u32> {
    snapshot.traffic(client(snapshot, namespace), &web(), 80, None)?.pool.max_connections
}

fn complaints(snapshot: &Snapshot) -> Vec<String> {
    snapshot.problems().iter().map(ToString::to_string).filter(|text| text.contains("DestinationRule")).collect()
}

const WEB: &str = "web.shop.svc.cluster.local";

#[test]
fn the_clients_namespace_goes_before_the_services_before_the_root() {
    let root = rule("nodemesh-system/r", "*.local", 1, "");
    let own = rule("shop/s", "web", 2, "");
    let local = rule("other/o", "*.shop.svc.cluster.local", 3, "");
    for (rules, expected) in [
        (vec![], [None, None, None]),
        (vec![&root], [Some(1), Some(1), Some(1)]),
        (vec![&root, &own], [Some(2), Some(2), Some(2)]),
        (vec![&root, &own, &local], [Some(2), Some(3), Some(2)]),
    ] {
        let rules: Vec<String> = rules.into_iter().cloned().collect();
        let snapshot = after(&world(&rules), None);
        assert_eq!(["shop", "other", "nodemesh-system"].map(|namespace| connections(&snapshot, namespace)), expected);
        assert_eq!(snapshot.has_traffic(&web()), !rules.is_empty());
        assert_eq!(complaints(&snapshot), Vec::<String>::new());
    }
}

#[test]
fn the_longest_host_wins_in_a_namespace() {
    let hosts = [(WEB, 1), ("*.shop.svc.cluster.local", 2), ("*.svc.cluster.local", 3), ("*", 4)];
    for skip in 0..hosts.len() {
        let rules: Vec<String> = hosts.iter().skip(skip).map(|(host, n)| rule(&format!("shop/r{n}"), host, *n, "")).collect();
        assert_eq!(connections(&after(&world(&rules), None), "other"), Some(hosts[skip].1));
    }
    let elsewhere = [rule("shop/a", "*.other.svc.cluster.local", 1, ""), rule("shop/b", "*.web.shop.svc.cluster.local", 2, "")];
    assert_eq!(connections(&after(&world(&elsewhere), None), "other"), None);
}

#[test]
fn rules_are_seen_where_they_are_exported_to() {
    for (export, expected) in [
        ("'*'", [Some(1), Some(1), Some(1)]),
        ("'.'", [Some(1), None, None]),
        ("other", [None, Some(1), None]),
        ("'~'", [None, None, None]),
    ] {
        let snapshot = after(&world(&[rule("shop/r", "web", 1, &format!("exportTo: [{export}]"))]), None);
        assert_eq!(["shop", "other", "nodemesh-system"].map(|namespace| connections(&snapshot, namespace)), expected, "{export}");
    }
    let private = rule("nodemesh-system/r", WEB, 1, "exportTo: ['.']");
    let snapshot = after(&world(&[private, rule("shop/r", "web", 2, "")]), None);
    assert_eq!(connections(&snapshot, "nodemesh-system"), Some(1), "what the root keeps to itself is its own");
}

#[test]
fn a_selector_is_about_clients_of_its_own_namespace() {
    let select = |app: &str| format!("workloadSelector: {{matchLabels: {{app: {app}}}}}");
    let rules = [rule("shop/a", "web", 1, ""), rule("shop/b", "web", 2, &select("client"))];
    let snapshot = after(&world(&rules), None);
    assert_eq!((connections(&snapshot, "shop"), connections(&snapshot, "other")), (Some(2), Some(1)));
    let snapshot = after(&world(&[rule("shop/a", "web", 1, ""), rule("shop/b", "web", 2, &select("x"))]), None);
    assert_eq!(connections(&snapshot, "shop"), Some(1));
    assert_eq!(complaints(&snapshot), Vec::<String>::new());
}

#[test]
fn ports_and_subsets_have_their_own() {
    let ports = "{portLevelSettings: [{port: {number: 80}, connectionPool: {tcp: {maxConnections: 9}}}]}";
    let snapshot = after(
        &world(&[rule(
            "shop/r",
            "web",
            0,
            &format!(
                "trafficPolicy: {ports}, subsets: [{{name: v1, labels: {{v: '1'}}, trafficPolicy: {{connectionPool: {{tcp: {{maxConnections: 5}}}}}}}}]"
            ),
        )]),
        None,
    );
    let client = client(&snapshot, "other");
    let of = |port, subset| snapshot.traffic(client, &web(), port, subset).unwrap().pool.max_connections;
    assert_eq!(
        [of(80, None), of(81, None), of(80, Some("v1")), of(81, Some("v1")), of(80, Some("none"))],
        [Some(9), None, Some(5), Some(5), Some(9)]
    );
    assert_eq!(snapshot.subset(client, &web(), "v1").unwrap()["v"], "1");
    assert_eq!(snapshot.subset(client, &web(), "none"), None);
}

#[test]
fn rules_for_one_host_are_merged_under_the_oldest() {
    let subset = |name: &str, value: &str| format!("subsets: [{{name: {name}, labels: {{v: '{value}'}}}}]");
    let aged = |text: String, year: u32| text.replace("metadata: {", &format!("metadata: {{creationTimestamp: '{year}-01-01T00:00:00Z', "));
    let rules = [
        aged(rule("shop/a", "web", 7, &subset("v2", "younger")), 2026),
        aged(rule("shop/b", WEB, 0, &subset("v1", "older")), 2025),
        aged(rule("shop/c", "web", 9, &subset("v1", "youngest")), 2027),
    ];
    let snapshot = after(&world(&rules), None);
    let found = snapshot.destination_rule(client(&snapshot, "other"), &web()).unwrap();
    assert_eq!(found.name.to_string(), "shop/b");
    let subsets: Vec<_> = found.subsets.iter().map(|(name, s)| (&**name, s.labels["v"].as_str(), s.policy.pool.max_connections)).collect();
    assert_eq!(subsets, [("v1", "older", Some(7)), ("v2", "younger", Some(7))], "subsets of each have the one policy that there is");
    let complaints = complaints(&snapshot);
    assert_eq!(complaints.len(), 2, "{complaints:?}");
    assert!(complaints.iter().all(|text| text.contains("shop/c") && text.contains("shop/b")), "{complaints:?}");
    assert!(complaints[0].contains("spec.subsets: \"v1\"") && complaints[1].contains("spec.trafficPolicy"), "{complaints:?}");
}

#[test]
fn what_has_not_changed_is_shared() {
    let rules = |n| world(&[rule("shop/a", "web", n, ""), rule("shop/b", "web", 0, "subsets: [{name: v1}]"), rule("other/a", WEB, 3, "")]);
    let first = after(&rules(1), None);
    let second = after(&rules(2), Some(&first));
    let of = |snapshot: &Snapshot, namespace| snapshot.destination_rule(client(snapshot, namespace), &web()).unwrap().clone();
    assert!(Arc::ptr_eq(&of(&first, "other"), &of(&second, "other")));
    assert_eq!((connections(&first, "shop"), connections(&second, "shop")), (Some(1), Some(2)));
    let third = after(&rules(2), Some(&second));
    assert!(Arc::ptr_eq(&of(&second, "shop"), &of(&third, "shop")), "merged ones too");
}

#[test]
fn a_host_without_a_service_is_noted() {
    let rules = [rule("shop/a", "wbe", 1, ""), rule("shop/b", "web.shop", 1, ""), rule("shop/c", "api.example.com", 1, "")];
    let snapshot = after(&world(&rules), None);
    let complaints = complaints(&snapshot);
    assert!(snapshot.problems().iter().all(|problem| problem.severity < Severity::Error));
    assert!(complaints[0].contains("Service shop/wbe, which does not exist"), "{complaints:?}");
    assert!(complaints[1].contains(&format!("write {WEB}")), "{complaints:?}");
    assert_eq!(complaints.len(), 3);
}

#[test]
fn ten_thousand_rules_are_no_burden() {
    let text: String = (0..10_000).map(|i| rule(&format!("n{}/r{i}", i % 100), &format!("s{i}"), 1, "")).collect();
    let parsed = parse_documents(Path::new("mesh.yaml"), &world(&[text]));
    let begin = std::time::Instant::now();
    let snapshot = Snapshot::build(&parsed.documents, Vec::new(), None);
    let client = client(&snapshot, "other");
    let none = (0..1000).filter(|_| snapshot.traffic(client, &web(), 80, None).is_some()).count();
    assert_eq!(none, 0);
    assert!(begin.elapsed().as_secs() < 5, "{:?}", begin.elapsed());
}
