use std::path::Path;
use std::time::Duration;

use mesh_model::document::parse_documents;

use super::table::{Reply, Table};
use super::*;

const TEXT: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {nodemesh.dev/mesh: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop}
spec: {nodeName: n1, containers: []}
status: {podIP: 10.1.0.1}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: all, namespace: other}
spec: {hosts: [a.example.com], ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}], resolution: DNS}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: first, namespace: shop}
spec:
  hosts: [b.example.com]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: DNS_ROUND_ROBIN
  endpoints: [{address: c.example.com, ports: {http: 81}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: hidden, namespace: other}
spec: {hosts: [d.example.com], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS, exportTo: [.]}
";

fn snapshot() -> Snapshot {
    let parsed = parse_documents(Path::new("mesh.yaml"), TEXT);
    Snapshot::build(&parsed.documents, parsed.problems, None)
}

fn port<'s>(snapshot: &'s Snapshot, host: &str) -> &'s ServicePort {
    snapshot.entry_named("shop", host, 80).unwrap().1
}

fn endpoints(names: &Names, snapshot: &Snapshot, host: &str) -> Vec<String> {
    names.endpoints(snapshot, port(snapshot, host)).iter().map(|endpoint| endpoint.address.to_string()).collect()
}

/// Whosever they are.
fn all(wanted: Wanted) -> BTreeSet<Arc<str>> {
    wanted.into_values().flatten().collect()
}

#[test]
fn names_of_entries_that_pods_of_the_node_know_are_wanted() {
    let snapshot = snapshot();
    let by_namespace = wanted(&snapshot, "n1");
    assert_eq!(by_namespace.keys().map(|namespace| &**namespace).collect::<Vec<_>>(), ["other", "shop"]);
    assert_eq!(all(by_namespace).iter().map(ToString::to_string).collect::<Vec<_>>(), ["a.example.com", "c.example.com"]);
    assert!(wanted(&snapshot, "n2").is_empty());
}

#[test]
fn endpoints_are_what_the_names_stand_for() {
    let (names, snapshot, now) = (Names::default(), snapshot(), Instant::now());
    assert_eq!(endpoints(&names, &snapshot, "a.example.com"), Vec::<String>::new());
    let mut table = Table::default();
    table.want(now, &all(wanted(&snapshot, "n1")));
    let ips: Vec<IpAddr> = ["192.0.2.2", "192.0.2.1", "2001:db8::1", "10.1.0.1"].map(|ip| ip.parse().unwrap()).to_vec();
    for name in ["a.example.com", "c.example.com"] {
        table.heard(now, name, Reply::Addresses(ips.clone(), Duration::from_secs(60)));
    }
    let before = names.generation();
    names.publish(table.known(), table.asked());
    assert!(names.generation() > before);
    let all = ["10.1.0.1:8080", "192.0.2.1:8080", "192.0.2.2:8080", "[2001:db8::1]:8080"];
    assert_eq!(endpoints(&names, &snapshot, "a.example.com"), all);
    assert!(names.endpoints(&snapshot, port(&snapshot, "a.example.com"))[0].workload.is_some(), "a pod is known by its address");
    assert_eq!(endpoints(&names, &snapshot, "b.example.com"), ["192.0.2.2:81", "[2001:db8::1]:81"], "the first of each family");
    assert!(
        names.stands_for(port(&snapshot, "a.example.com"), ips[1])
            && !names.stands_for(port(&snapshot, "a.example.com"), "192.0.2.9".parse().unwrap())
    );
    let now_known = names.generation();
    names.publish(table.known(), table.asked());
    assert_eq!(names.generation(), now_known, "nothing is another");
}

fn many(prefix: &str, count: usize) -> BTreeSet<Arc<str>> {
    (0..count).map(|number| format!("{prefix}{number:05}.example.com").into()).collect()
}

/// How many names have no place, and of which namespaces they are.
fn left_out(names: &Names) -> (usize, Vec<(String, usize)>) {
    let left_out = names.left_out.load();
    (left_out.count, left_out.by_namespace.iter().map(|(namespace, count)| (namespace.to_string(), *count)).collect())
}

#[test]
fn more_names_than_are_looked_up_are_left_out() {
    let names = Names::default();
    names.want(&[("shop".into(), many("h", MOST))].into());
    assert_eq!((names.wanted.borrow().len(), left_out(&names)), (MOST, (0, vec![])));
    names.want(&[("shop".into(), many("h", MOST + 3))].into());
    assert_eq!((names.wanted.borrow().len(), left_out(&names)), (MOST, (3, vec![("shop".into(), 3)])));
    names.want(&Wanted::new());
    assert_eq!((names.wanted.borrow().len(), left_out(&names)), (0, (0, vec![])));
}

#[test]
fn no_namespace_s_names_crowd_out_another_s() {
    let names = Arc::new(Names::default());
    let of = |prefix: &str| names.wanted.borrow().iter().filter(|name| name.starts_with(prefix)).count();
    // Two have some names in common, which are the last of the first that has them.
    let wanted: Wanted = [
        ("greedy".into(), &many("0", MOST * 2) | &many("common", 3)),
        ("shop".into(), &many("s", 10) | &many("common", 3)),
        ("third".into(), many("t", MOST)),
    ]
    .into();
    names.want(&wanted);
    assert_eq!((of("s"), of("common"), names.wanted.borrow().len()), (10, 3, MOST));
    assert!(of("0").abs_diff(of("t")) <= 3, "{} {}", of("0"), of("t"));
    let without = [("greedy".into(), MOST * 2 - of("0")), ("third".into(), MOST - of("t"))];
    assert_eq!(left_out(&names), (2 * MOST + 13, without.into()));

    let metrics = Metrics::new(crate::ops::metrics::MetricsConfig::default());
    names.collect(&metrics);
    let text = metrics.expose(crate::ops::metrics::Format::OpenMetrics, Instant::now()).unwrap();
    assert!(text.contains(&format!("nodemesh_dns_names_left_out{{namespace=\"greedy\"}} {}", MOST * 2 - of("0"))), "{text}");
    assert!(!text.contains("namespace=\"shop\""), "{text}");
}

#[test]
fn what_is_in_use_stays_when_its_namespace_wants_more() {
    let names = Names::default();
    let known = Known { addresses: ["192.0.2.1".parse().unwrap()].into(), since: Instant::now() };
    let last = many("t", MOST + 1).pop_last().unwrap();
    names.publish([(last.clone(), known)].into(), [last.clone()].into());
    names.want(&[("shop".into(), many("s", 1)), ("third".into(), many("t", MOST + 1))].into());
    assert!(names.wanted.borrow().contains(&last) && names.wanted.borrow().len() == MOST);
}

#[tokio::test(start_paused = true)]
async fn the_first_answer_is_waited_for() {
    let (names, snapshot, now) = (Arc::new(Names::default()), snapshot(), Instant::now());
    let host = port(&snapshot, "a.example.com").discovery.names().unwrap().clone();
    let limit = Duration::from_secs(2);
    let start = tokio::time::Instant::now();
    names.settle(&[], limit).await;
    assert_eq!(start.elapsed(), Duration::ZERO, "there is nothing to wait for");
    names.settle(&host, limit).await;
    assert_eq!(start.elapsed(), limit, "nobody answers");
    let waiting = tokio::spawn({
        let (names, host) = (names.clone(), host.clone());
        async move { names.settle(&host, Duration::from_secs(3600)).await }
    });
    tokio::task::yield_now().await;
    let mut table = Table::default();
    table.want(now, &all(wanted(&snapshot, "n1")));
    table.heard(now, "a.example.com", Reply::Addresses(Vec::new(), Duration::from_secs(60)));
    names.publish(table.known(), table.asked());
    waiting.await.unwrap();
    assert_eq!(start.elapsed(), limit, "that there is no address is an answer");
    table.heard(now, "c.example.com", Reply::Failed);
    names.publish(table.known(), table.asked());
    let failing = port(&snapshot, "b.example.com").discovery.names().unwrap().clone();
    names.settle(&failing, limit).await;
    assert_eq!(start.elapsed(), limit, "one that nobody answers for is not waited for again and again");
    assert!(names.knows("a.example.com") && !names.knows("c.example.com"));
}
