use std::path::Path;

use super::*;
use crate::document::parse_documents;

fn snapshot(text: &str) -> Snapshot {
    let parsed = parse_documents(Path::new("mesh.yaml"), text);
    Snapshot::build(&parsed.documents, parsed.problems, None)
}

fn pod(name: &str, app: &str, ip: &str, ready: bool) -> String {
    let (namespace, name) = name.split_once('/').unwrap();
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{app: {app}, nodemesh.dev/mesh: enabled}}}}\n\
         status: {{podIP: {ip}, conditions: [{{type: Ready, status: '{}'}}]}}\n",
        if ready { "True" } else { "False" }
    )
}

fn service(name: &str, app: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{clusterIP: None, selector: {{app: {app}}}, ports: [{{port: 80}}, {{port: 81, name: b}}]}}\n"
    )
}

fn limit(name: &str, spec: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap();
    format!(
        "---\napiVersion: nodemesh.dev/v1alpha1\nkind: RateLimit\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{limits: [{{requests: 10, unit: second}}], {spec}}}\n"
    )
}

/// Pods `web-1` and `web-2`, `db`, which is not ready, and one of the name `web-1` in another namespace.
fn world(limits: &[String]) -> Snapshot {
    let pods = [
        pod("shop/web-1", "web", "10.1.0.1", true),
        pod("shop/web-2", "web", "10.1.0.2", true),
        pod("shop/db", "db", "10.1.0.3", false),
        pod("other/web-1", "web", "10.1.0.4", true),
    ];
    let services = [service("web", "web"), service("db", "db"), service("also-web", "web")];
    snapshot(&[pods.concat(), services.concat(), limits.concat()].concat())
}

/// `name` of each limit, with its share.
fn held(snapshot: &Snapshot, ip: &str) -> Vec<String> {
    let workload = snapshot.workload_at(ip.parse().unwrap()).unwrap();
    let shown = |applied: &AppliedLimit| {
        let share = applied.share.as_ref().map(|share| format!(" 1/{} of {}", share.of, share.service.name)).unwrap_or_default();
        format!("{}{share}", applied.limit.name.name)
    };
    snapshot.limits_for(workload).iter().map(shown).collect()
}

#[test]
fn each_workload_has_its_own() {
    let snapshot = world(&[
        limit("shop/c-all", ""),
        limit("shop/a-web", "selector: {matchLabels: {app: web}}"),
        limit("shop/b-db", "targetRefs: [{kind: Service, name: db}]"),
        limit("other/away", "selector: {matchLabels: {app: web}}"),
    ]);
    assert_eq!(held(&snapshot, "10.1.0.1"), ["a-web", "c-all"]);
    assert_eq!(held(&snapshot, "10.1.0.3"), ["b-db", "c-all"], "a pod need not be ready");
    assert_eq!(held(&snapshot, "10.1.0.4"), ["away"]);
    assert_eq!(snapshot.problems(), []);
    assert_eq!(held(&world(&[]), "10.1.0.1"), Vec::<String>::new());
}

#[test]
fn of_two_services_an_endpoint_has_a_limit_once_and_a_share_in_each() {
    let both = "targetRefs: [{kind: Service, name: web}, {kind: Service, name: also-web}]";
    assert_eq!(held(&world(&[limit("shop/l", both)]), "10.1.0.1"), ["l"]);
    let shared = world(&[limit("shop/l", &format!("{both}, scope: service"))]);
    assert_eq!(held(&shared, "10.1.0.2"), ["l 1/2 of also-web", "l 1/2 of web"]);
}

#[test]
fn one_that_is_not_ready_has_a_share_beside_those_that_are() {
    let snapshot = world(&[limit("shop/l", "targetRefs: [{kind: Service, name: db}], scope: service")]);
    assert_eq!(held(&snapshot, "10.1.0.3"), ["l 1/1 of db"]);
}

#[test]
fn a_budget_is_shared_by_the_nodes_of_a_service() {
    let on = |name: &str, node: &str, ip: &str, ready: bool| {
        pod(name, "web", ip, ready) + &format!("spec: {{nodeName: {node}, containers: []}}\n")
    };
    let pods = [
        on("shop/web-1", "n1", "10.1.0.1", true),
        on("shop/web-2", "n1", "10.1.0.2", true),
        on("shop/web-3", "n2", "10.1.0.3", true),
        on("shop/web-4", "n1", "10.1.0.4", false),
        on("shop/web-5", "n3", "10.1.0.5", false),
    ];
    let objects = [service("web", "web"), limit("shop/l", "targetRefs: [{kind: Service, name: web}], scope: service")];
    let snapshot = snapshot(&[pods.concat(), objects.concat()].concat());
    let name = |name: &str| NamespacedName { namespace: "shop".into(), name: name.into() };
    let sharing = snapshot.sharing(&name("l"), &name("web")).unwrap();
    assert_eq!(sharing.ready, 3);
    assert_eq!(sharing.nodes, BTreeMap::from([("n1".into(), 2), ("n2".into(), 1), ("n3".into(), 0)]));
    let parts = ["n1", "n2", "n3", "n4"].map(|node| sharing.fair(node).parts());
    assert_eq!(parts, [666_666, 333_333, 250_000, 250_000]);
    let of_pod = |ip: &str| {
        let workload = snapshot.workload_at(ip.parse().unwrap()).unwrap();
        snapshot
            .limits_for(workload)
            .iter()
            .filter_map(|applied| applied.share.as_ref())
            .map(|share| share.node.parts())
            .collect::<Vec<_>>()
    };
    assert_eq!((of_pod("10.1.0.1"), of_pod("10.1.0.4")), (vec![666_666], vec![666_666]), "pods of a node have the node's");
    assert_eq!(snapshot.sharing(&name("l"), &name("l")), None);
}

#[test]
fn a_target_that_is_not_there_is_told() {
    let snapshot = world(&[limit("shop/l", "targetRefs: [{kind: Service, name: nobody}]")]);
    let [problem] = snapshot.problems() else { panic!("{:?}", snapshot.problems()) };
    assert_eq!((problem.severity, &*problem.field), (Severity::Warn, "spec.targetRefs"));
    assert!(problem.message.contains("shop/nobody, which does not exist"), "{problem}");
    let broken = "---\napiVersion: v1\nkind: Service\nmetadata: {name: broken, namespace: shop}\nspec: {ports: 7}\n".to_owned();
    let snapshot = world(&[broken, limit("shop/l", "targetRefs: [{kind: Service, name: broken}]")]);
    assert!(snapshot.problems().iter().any(|p| p.severity == Severity::Error && p.message.contains("not understood")));
}

fn entry(hosts: &str, more: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: out, namespace: shop}}\n\
         spec: {{hosts: [{hosts}], ports: [{{number: 443, name: tls, protocol: TLS}}], resolution: DNS{more}}}\n"
    )
}

#[test]
fn what_goes_to_hosts_outside_is_limited_at_the_clients_that_know_them() {
    let target = "targetRefs: [{group: networking.istio.io, kind: ServiceEntry, name: out}]";
    let towards = |snapshot: &Snapshot, ip: &str| {
        let workload = snapshot.workload_at(ip.parse().unwrap()).unwrap();
        let shown = |applied: AppliedLimit| {
            let share = applied.share.map(|share| format!(" 1/{} {}", share.of, share.node.parts())).unwrap_or_default();
            format!("{} {}{share}", applied.limit.name.name, applied.towards.unwrap().name)
        };
        snapshot.limits_towards_hosts(workload).into_iter().map(shown).collect::<Vec<_>>()
    };
    let each = world(&[entry("api.example, www.example", ""), limit("shop/l", target)]);
    assert_eq!(towards(&each, "10.1.0.1"), ["l api.example", "l www.example"]);
    assert_eq!(towards(&each, "10.1.0.4"), ["l api.example", "l www.example"]);
    assert_eq!(held(&each, "10.1.0.1"), Vec::<String>::new(), "what comes is not limited");
    assert_eq!(each.problems(), []);

    let shared = world(&[entry("api.example", ", exportTo: ['.']"), limit("shop/l", &format!("{target}, scope: service"))]);
    assert_eq!(towards(&shared, "10.1.0.1"), ["l api.example 1/3 1000000"], "the pods of a node have the node's");
    assert_eq!(towards(&shared, "10.1.0.4"), Vec::<String>::new(), "another namespace does not know the host");
    let name = |name: &str| NamespacedName { namespace: "shop".into(), name: name.into() };
    let sharing = shared.sharing(&name("l"), &name("api.example")).unwrap();
    assert_eq!((sharing.ready, &sharing.nodes), (3, &BTreeMap::from([("".into(), 3)])));

    let without = world(&[limit("shop/l", target)]);
    let [problem] = without.problems() else { panic!("{:?}", without.problems()) };
    assert!(problem.message.contains("ServiceEntry shop/out, which does not exist"), "{problem}");
    let away = world(&[entry("api.example", ""), limit("other/l", target)]);
    assert_eq!(towards(&away, "10.1.0.1"), Vec::<String>::new(), "the entry is of another namespace");
}
