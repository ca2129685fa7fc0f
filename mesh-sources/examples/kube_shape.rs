//! What a cluster of many pods costs the Kubernetes source: time and memory for a first list, one change, and a list that says the same.
//! Run with `cargo run --release -p mesh-sources --example kube_shape -- PODS PODS_OF_A_SERVICE`.
#![allow(clippy::print_stdout)]

use std::time::Instant;

use mesh_model::object::Kind;
use mesh_model::snapshot::Snapshot;
use mesh_sources::kube::store::{Event, Store};
use serde_json::{Value, json};

const KINDS: [Kind; 4] = [Kind::Namespace, Kind::Pod, Kind::Service, Kind::EndpointSlice];

fn address(i: usize) -> String {
    format!("10.{}.{}.{}", i >> 16 & 255, i >> 8 & 255, i & 255)
}

fn pod(i: usize, version: &str) -> Value {
    json!({
        "metadata": {
            "name": format!("app-{i}-7d9c5b8f6-abcde"), "namespace": format!("ns-{}", i % 50), "uid": format!("uid-{i:032}"),
            "resourceVersion": "1000", "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"app": format!("app-{}", i % 100), "version": version, "pod-template-hash": "7d9c5b8f6"},
            "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("app-{i}-7d9c5b8f6"), "uid": "u", "controller": true},
            ],
        },
        "spec": {
            "nodeName": format!("node-{}", i % 100), "serviceAccountName": "app",
            "containers": [{"name": "app", "ports": [{"name": "http", "containerPort": 8080}]}],
        },
        "status": {
            "phase": "Running", "podIPs": [{"ip": address(i)}], "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

fn list(store: &mut Store, kind: Kind, objects: impl Iterator<Item = Value>) {
    let events = std::iter::once(Event::ListBegins).chain(objects.map(Event::Listed)).chain([Event::ListEnds]);
    for event in events {
        let _ = store.take(kind, event);
    }
}

/// Memory of the process, KiB.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or_default()
}

fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    println!("{what:<42} {:>9.3} ms", start.elapsed().as_secs_f64() * 1000.0);
    result
}

fn shared(before: &Snapshot, after: &Snapshot) -> (usize, usize) {
    let same = |workload: &&std::sync::Arc<mesh_model::workload::Workload>| {
        before.workload(&workload.uid).is_some_and(|old| std::sync::Arc::ptr_eq(old, workload))
    };
    (after.workloads().filter(same).count(), after.workloads().len())
}

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|text| text.parse::<usize>().ok());
    let (pods, of_a_service) = (numbers.next().unwrap_or(1000), numbers.next().unwrap_or(20));
    let services = pods / of_a_service.max(1);
    let before = resident();
    let mut store = Store::new(KINDS);
    list(
        &mut store,
        Kind::Namespace,
        (0..50)
            .map(|i| json!({"metadata": {"name": format!("ns-{i}"), "uid": format!("n{i}"), "labels": {"nodemesh.dev/mesh": "enabled"}}})),
    );
    list(&mut store, Kind::Service, (0..services).map(|i| json!({
        "metadata": {"name": format!("svc-{i}"), "namespace": format!("ns-{}", i % 50), "uid": format!("s{i}")},
        "spec": {"clusterIP": format!("172.{}.{}.{}", 16 + (i >> 16), i >> 8 & 255, i & 255), "ports": [{"name": "http", "port": 80}]},
    })));
    list(
        &mut store,
        Kind::EndpointSlice,
        (0..services).map(|i| {
            let endpoints: Vec<Value> = (i * of_a_service..(i + 1) * of_a_service).map(|p| json!({"addresses": [address(p)]})).collect();
            json!({
                "metadata": {
                    "name": format!("svc-{i}-x"), "namespace": format!("ns-{}", i % 50), "uid": format!("e{i}"),
                    "labels": {"kubernetes.io/service-name": format!("svc-{i}")},
                },
                "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}], "endpoints": endpoints,
            })
        }),
    );
    println!("{pods} pods, {services} services of {of_a_service}");
    timed("first list of pods", || list(&mut store, Kind::Pod, (0..pods).map(|i| pod(i, "v1"))));
    let held = resident();
    println!("{:<42} {:>9} KiB, {} bytes a pod", "memory of all objects", held - before, (held - before) * 1024 / pods.max(1));
    let Some(first) = timed("first snapshot", || store.snapshot(None)) else { return };
    println!("{:<42} {:>9} KiB", "memory with the snapshot", resident() - before);
    println!("{:<42} {:>9}", "problems", first.problems().len());
    let effect = timed("a pod's status, of no concern", || {
        let mut beaten = pod(7, "v1");
        if let Some(condition) = beaten.pointer_mut("/status/conditions/0") {
            *condition = json!({"type": "Ready", "status": "True", "lastProbeTime": "2026-01-01T00:00:00Z"});
        }
        store.take(Kind::Pod, Event::Applied(beaten))
    });
    println!("{:<42} {effect:>9?}", "its effect");
    let _ = timed("a pod's label", || store.take(Kind::Pod, Event::Applied(pod(7, "v2"))));
    let Some(second) = timed("the next snapshot", || store.snapshot(Some(&first))) else { return };
    let (same, all) = shared(&first, &second);
    println!("{:<42} {same} of {all} workloads", "shared with the one before");
    timed("the list again, the same", || list(&mut store, Kind::Pod, (0..pods).map(|i| pod(i, if i == 7 { "v2" } else { "v1" }))));
    println!("{:<42} {:>9} KiB", "memory in the end", resident() - before);
}
