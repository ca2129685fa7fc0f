//! The test bed itself, on this machine's kernel. Needs root.
#![allow(clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use mesh_lab::peer::{End, HoldReport, run};
use mesh_lab::{Kept, PodSpec, World, http_get, sweep};

const LIMIT: Duration = Duration::from_secs(20);

struct Pair {
    world: World,
    near: mesh_lab::Pod,
    far: mesh_lab::Pod,
}

fn pair(name: &str) -> Pair {
    let world = World::new(name).expect("world");
    let one = world.add_node("n1").expect("node");
    let two = world.add_node("n2").expect("node");
    let near = one.add_pod(PodSpec::new("shop", "near")).expect("pod");
    let far = two.add_pod(PodSpec::new("shop", "far").service_account("far")).expect("pod");
    Pair { world, near, far }
}

fn addresses(pod: &mesh_lab::Pod, port: u16) -> Vec<SocketAddr> {
    pod.addresses().into_iter().map(|address| SocketAddr::new(address, port)).collect()
}

#[test]
fn pods_of_two_nodes_reach_each_other_on_both_families_and_are_seen_on_the_link() {
    let Pair { world, near, far } = pair("reach");
    let capture = world.capture_fabric("link").expect("capture");
    let echo = far.serve("echo", 7000).expect("server");
    for to in addresses(&far, 7000) {
        let report = near.connect(to, "needle in a haystack").expect("client");
        assert_eq!((report.received.as_str(), report.end), ("needle in a haystack", End::Eof), "{report:?}");
        assert_eq!(report.peer, Some(to));
        assert!(near.addresses().contains(&report.local.expect("local").ip()));
    }
    let trace = capture.finish(Duration::from_millis(100)).expect("trace");
    assert!(trace.contains(b"needle in a haystack"));
    assert!(!trace.contains(b"needle in a hayloft"));
    assert!(trace.ports().contains(&7000));
    assert!(!trace.plaintext().is_empty());
    assert_eq!(echo.accepted(), 2);
}

#[test]
fn every_way_to_connect() {
    let Pair { world: _world, near, far } = pair("ways");
    far.sysctl(&[("net.ipv4.tcp_fastopen", "1027")]).expect("sysctl");
    let _echo = far.serve("echo", 7000).expect("server");
    let to = format!("{}:7000", far.ipv4());
    let bound = format!("{}:41234", near.ipv4());
    let ways: [&[&str]; 6] =
        [&[], &["--nonblocking"], &["--bind", &bound], &["--mapped"], &["--fast-open", "connect"], &["--fast-open", "sendto"]];
    for way in ways {
        let words = [&["connect", &to, "--send", r"a\x00b\n", "--half-close"], way].concat();
        let report = near.peer(&words, LIMIT).expect("client");
        assert_eq!((report.received.as_str(), report.end), ("a\0b\n", End::Eof), "{way:?}: {report:?}");
        if way.contains(&"--bind") {
            assert_eq!(report.local.map(|address| address.port()), Some(41234));
        }
    }
    let refused = near.peer(&["connect", &format!("{}:1", far.ipv4())], LIMIT).expect("client");
    assert_eq!((refused.connected, refused.errno, refused.end), (false, Some(111), End::NotConnected));
}

#[test]
fn every_temper_of_server() {
    let Pair { world: _world, near, far } = pair("tempers");
    let at = |port| SocketAddr::new(far.ipv4().into(), port).to_string();
    let servers: Vec<_> = ["banner", "peer-name", "sink", "stall", "reset", "half-close", "bulk"]
        .iter()
        .zip(7001..)
        .map(|(mode, port)| far.serve(mode, port).expect("server"))
        .collect();
    let banner = near.peer(&["connect", &at(7001), "--read-first", "3", "--send", "x", "--half-close"], LIMIT).expect("client");
    assert_eq!(banner.received, "220 greeter ready\r\nx");
    let name = near.peer(&["connect", &at(7002)], LIMIT).expect("client");
    assert!(name.received.contains(&format!("\"peer\":\"[::ffff:{}]:", near.ipv4())), "{name:?}");
    let sink = near.peer(&["connect", &at(7003), "--send-hex", "00ff 10", "--half-close"], LIMIT).expect("client");
    assert_eq!(sink.received, "{\"bytes\":3}\n");
    let stall = near.peer(&["connect", &at(7004), "--send", "x", "--timeout", "1"], LIMIT).expect("client");
    assert_eq!(stall.end, End::Timeout);
    let reset = near.peer(&["connect", &at(7005), "--send", "x"], LIMIT).expect("client");
    assert_eq!(reset.end, End::Reset, "{reset:?}");
    let half = near.peer(&["connect", &at(7006), "--read-first", "1", "--send", "late"], LIMIT).expect("client");
    assert_eq!((half.received.as_str(), half.end), ("220 greeter ready\r\n", End::Eof));
    let aborted = near.peer(&["connect", &at(7003), "--send", "x", "--hold", "50", "--reset"], LIMIT).expect("client");
    assert_eq!(aborted.end, End::Done);
    let bulk = near.bulk(at(7007).parse().expect("address"), 3_000_001, 2_000_003, LIMIT).expect("client");
    assert!(bulk.ok, "{bulk:?}");
    assert_eq!(servers[2].served().last().and_then(|served| served.end), Some(End::Reset));
}

#[test]
fn ticks_holds_and_datagrams() {
    let Pair { world: _world, near, far } = pair("ticks");
    let mut echo = far.serve("echo", 7000).expect("server");
    let to = SocketAddr::new(far.ipv4().into(), 7000).to_string();
    let ticking = near.spawn_peer(&["tick", &to, "--interval", "5"]).expect("client");
    mesh_lab::process::wait_until("five rounds", LIMIT, || ticking.ticks() >= 5).expect("rounds");
    let held: HoldReport = run(&near.place(), &["hold", &to, "--connections", "20", "--seconds", "0"], LIMIT).expect("client");
    assert_eq!((held.opened, held.failed, held.alive), (20, 0, 20));
    echo.process.kill();
    let report: mesh_lab::peer::Report = ticking.finish(LIMIT).expect("report");
    assert!(matches!(report.end, End::Eof | End::Reset), "{report:?}");

    let mut datagrams =
        far.spawn(&[&mesh_lab::peer::binary().expect("peer").display().to_string(), "udp-echo", "--listen", "[::]:7100"]).expect("server");
    datagrams.wait_for_log("listening", LIMIT).expect("listens");
    for to in addresses(&far, 7100) {
        let report = near.peer(&["udp", &to.to_string(), "--send", "hello"], LIMIT).expect("client");
        assert_eq!(report.received, "hello", "{report:?}");
    }
}

#[test]
fn programs_run_in_their_pods_cgroup_and_the_host_outside_of_it() {
    let Pair { world, near, .. } = pair("places");
    let inside = near.exec(&["cat", "/proc/self/cgroup"], LIMIT).expect("cat");
    assert!(inside.stdout.contains(&format!("nodemesh-lab-{}/n1/pods/shop_near_", world.id())), "{}", inside.stdout);
    let host = near.node().exec_host(&["cat", "/proc/self/cgroup"], LIMIT).expect("cat");
    assert!(host.stdout.contains(&format!("nodemesh-lab-{}/n1/system/shell", world.id())), "{}", host.stdout);
    let slow = near.exec(&["sleep", "60"], Duration::from_millis(50)).expect("sleep");
    assert!(slow.status.is_none() && slow.success().is_err());
    assert!(http_get(&near.netns(), "http://127.0.0.1:1/").is_err());
    // Nothing leads out: not even the machine's own addresses are known here.
    let routes = near.node().exec_host(&["ip", "route"], LIMIT).expect("ip");
    assert!(!routes.stdout.contains("default"), "{}", routes.stdout);
}

#[test]
fn a_pod_can_go_and_its_address_come_back() {
    let Pair { world: _world, near, far } = pair("reuse");
    let echo = far.serve("echo", 7000).expect("server");
    let (address, uid, netns, node) = (far.ipv4(), far.uid().to_owned(), far.netns(), far.node().clone());
    far.remove().expect("removed");
    assert!(!netns.exists());
    drop(echo);
    let number = address.octets()[3];
    let again = node.add_pod(PodSpec::new("shop", "other").host(number)).expect("pod");
    assert_eq!(again.ipv4(), address);
    assert_ne!(again.uid(), uid);
    let _echo = again.serve("echo", 7000).expect("server");
    let report = near.connect(SocketAddr::new(address.into(), 7000), "back").expect("client");
    assert_eq!(report.received, "back", "{report:?}");
}

#[test]
fn a_world_leaves_nothing_behind() {
    let Pair { world, near, far } = pair("traces");
    let _server = far.serve("echo", 7000).expect("server");
    let traces = [world.directory().to_owned(), near.netns(), far.node().netns(), far.cgroup().path().to_owned()];
    assert!(traces.iter().all(|path| path.exists()));
    world.remove().expect("removed");
    assert!(traces.iter().all(|path| !path.exists()));
}

#[test]
fn a_kept_world_stays_until_it_is_swept() {
    let Pair { world, near, .. } = pair("keptworld");
    let server = near.serve("echo", 7000).expect("server");
    let (id, pid) = (world.id().to_owned(), server.process.pid());
    server.process.detach();
    world.keep().expect("kept");
    let _ = sweep(Kept::Leave);
    assert!(near.netns().exists() && Path::new(&format!("/proc/{pid}")).exists());
    assert!(sweep(Kept::Remove("keptworld")).expect("swept").contains(&id));
    assert!(!near.netns().exists());
}

#[test]
fn a_killed_owner_is_cleaned_up_after() {
    // The child is this very test, which then makes a world, names it, and waits for its death.
    const CHILD: &str = "MESH_LAB_TEST_OWNER";
    if std::env::var_os(CHILD).is_some() {
        let Pair { world, near, .. } = pair("orphan");
        let _server = near.serve("echo", 7000).expect("server");
        println!("directory {}", world.directory().display());
        println!("netns {}", near.netns().display());
        println!("ready");
        std::thread::sleep(Duration::from_secs(60));
        return;
    }
    use std::io::{BufRead as _, BufReader};
    let mut child = std::process::Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "a_killed_owner_is_cleaned_up_after", "--nocapture"])
        .env(CHILD, "1")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("child");
    let lines: Vec<String> =
        BufReader::new(child.stdout.take().expect("pipe")).lines().map_while(Result::ok).take_while(|line| line != "ready").collect();
    child.kill().expect("killed");
    child.wait().expect("reaped");
    let paths: Vec<_> = lines
        .iter()
        .filter_map(|line| line.split_once(' '))
        .map(|(_, path)| path.to_owned())
        .filter(|path| path.starts_with("/run/"))
        .collect();
    assert_eq!(paths.len(), 2, "{lines:?}");
    mesh_lab::process::wait_until("the guardian's work", LIMIT, || paths.iter().all(|path| !Path::new(path).exists()))
        .expect("nothing is left");
}
