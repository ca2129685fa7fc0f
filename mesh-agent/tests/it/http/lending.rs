//! One budget for a Service (RateLimit, `scope: service`), lent by mesh-control to the nodes that need it.

use std::time::{Duration, Instant};

use mesh_lab::mesh::Control;

use super::*;

/// Requests a second that the Service takes, and how many at once.
const REQUESTS: u32 = 20;
const BURST: u32 = 4;

/// A Service with a pod on each node.
fn mesh() -> Cluster {
    let mut ground = ground(
        "budget",
        &[
            ("n1", PodSpec::new("shop", "client")),
            ("n1", PodSpec::new("shop", "near").label("app", "web")),
            ("n2", PodSpec::new("shop", "far").label("app", "web")),
        ],
    );
    // One that comes back is the one that went.
    let state = ground.world.directory().join("authority");
    ground.options.control_flags = vec![format!("--state-dir={}", state.display())];
    let limit = json!({
        "apiVersion": "nodemesh.dev/v1alpha1",
        "kind": "RateLimit",
        "metadata": { "namespace": "shop", "name": "web" },
        "spec": {
            "targetRefs": [{ "kind": "Service", "name": "web" }],
            "scope": "service",
            "limits": [{ "requests": REQUESTS, "unit": "second", "burst": BURST }],
        },
    });
    ground.put("web", &[service("shop", "web", &["10.97.3.1", "fd00:97::3:1"], "web", &[("http", 80, 8080)]), limit]);
    let cluster = ground.start();
    for name in ["near", "far"] {
        std::mem::forget(cluster.pod(name).serve_http(name, 8080).expect("a server"));
    }
    cluster
}

/// So many requests to a pod, so many a second. How many were let through, and how long it took at most, in seconds.
fn load(mesh: &Cluster, server: &str, count: u32, rate: u32) -> (u32, f64) {
    let url = format!("http://{}/[1-{count}]", at(&mesh.pod(server), 8080));
    let rate = format!("{rate}/s");
    let words = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}\n", "--rate", &rate, &url];
    let begun = Instant::now();
    let finished = mesh.pod("client").exec(&words, Duration::from_secs(60)).expect("curl");
    let time = begun.elapsed().as_secs_f64();
    let statuses: Vec<&str> = finished.stdout.lines().collect();
    let strange: Vec<_> = statuses.iter().filter(|status| !["200", "429"].contains(*status)).collect();
    assert!(statuses.len() == count as usize && strange.is_empty(), "{}: {strange:?} {}", statuses.len(), finished.stderr);
    (statuses.iter().filter(|status| **status == "200").count() as u32, time)
}

/// Of a budget of so many a second: no more, and most of it.
fn within(passed: u32, time: f64, requests: u32) {
    let budget = f64::from(requests) * time;
    let passed = f64::from(passed);
    assert!(passed <= budget + f64::from(BURST) + 2.0 && passed >= budget * 0.7, "{passed} of {budget} in {time} s");
}

fn share(mesh: &Cluster, node: &str) -> f64 {
    mesh.sum(node, "nodemesh_rate_limit_share_ratio", &[("limit", "shop/web"), ("service", "shop/web")])
}

fn wait_share(mesh: &Cluster, node: &str, what: &str, is: impl Fn(f64) -> bool) {
    let waited = wait_until(what, LIMIT, || is(share(mesh, node)));
    assert!(waited.is_ok(), "{what}: {}", mesh.lines(node, "nodemesh_rate_limit"));
}

#[test]
fn a_budget_goes_where_the_requests_are_and_back_to_fair_shares_without_mesh_control() {
    let mut mesh = mesh();
    // More than a fair share could take, all at one node.
    load(&mesh, "near", 600, 100);
    let (passed, time) = load(&mesh, "near", 800, 100);
    within(passed, time, REQUESTS);
    assert!(share(&mesh, "n1") > 0.9 && share(&mesh, "n2") < 0.1, "{} {}", share(&mesh, "n1"), share(&mesh, "n2"));

    // One is asked for much, the other for a little, which it gets.
    let begun = Instant::now();
    let (much, little) = std::thread::scope(|scope| {
        let much = scope.spawn(|| load(&mesh, "near", 900, 90).0);
        let little = scope.spawn(|| load(&mesh, "far", 20, 2).0);
        (much.join().unwrap(), little.join().unwrap())
    });
    within(much + little, begun.elapsed().as_secs_f64(), REQUESTS);
    assert!(little >= 15, "{little} of 20");

    drop(mesh.mesh.control.take());
    wait_share(&mesh, "n1", "fair shares", |share| share == 0.5);
    wait_share(&mesh, "n2", "fair shares", |share| share == 0.5);
    for node in ["n1", "n2"] {
        // The share of one that held more is fair before it may take more again.
        mesh.wait_sum(node, "nodemesh_rate_limit_fallbacks_total", &[], 1.0);
    }
    let (passed, time) = load(&mesh, "near", 500, 100);
    within(passed, time, REQUESTS / 2);

    mesh.mesh.control = Some(Control::start(&mesh.ground.world, &mesh.ground.options).expect("mesh-control comes back"));
    load(&mesh, "far", 1000, 100);
    let (passed, time) = load(&mesh, "far", 500, 100);
    within(passed, time, REQUESTS);
    assert!(mesh.sum("n2", "nodemesh_rate_limit_loans_asked_total", &[("result", "lent")]) > 0.0);
}
