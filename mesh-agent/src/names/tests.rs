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

#[test]
fn names_of_entries_that_pods_of_the_node_know_are_wanted() {
    let snapshot = snapshot();
    let all: Vec<_> = wanted(&snapshot, "n1").iter().map(ToString::to_string).collect();
    assert_eq!(all, ["a.example.com", "c.example.com"]);
    assert!(wanted(&snapshot, "n2").is_empty());
}

#[test]
fn endpoints_are_what_the_names_stand_for() {
    let (names, snapshot, now) = (Names::default(), snapshot(), Instant::now());
    assert_eq!(endpoints(&names, &snapshot, "a.example.com"), Vec::<String>::new());
    let mut table = Table::default();
    table.want(now, &wanted(&snapshot, "n1"));
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

#[test]
fn more_names_than_are_looked_up_are_left_out() {
    let names = Names::default();
    names.want((0..MOST + 3).map(|number| format!("h{number}.example.com").into()).collect());
    assert_eq!((names.wanted.borrow().len(), names.left_out.load(Ordering::Relaxed)), (MOST, 3));
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
    table.want(now, &wanted(&snapshot, "n1"));
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
