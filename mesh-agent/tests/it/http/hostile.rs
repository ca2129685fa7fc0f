//! Clients and objects that mean harm, where HTTP is taken apart: at the client's agent (a Service with a route) and at the server's (a
//! policy about requests, and a client outside the mesh). What they send is bounded in size and in time, is answered as HTTP says, is
//! counted, and costs nobody else anything.

use std::time::Duration;

use mesh_lab::Pod;
use mesh_lab::http2::{END_HEADERS, END_STREAM, Frame, block, code, frame, goaway, hello, kind, request};
use mesh_lab::manifests::authorization_policy;
use mesh_lab::peer::End;
use mesh_lab::throw::Thrown;

use super::*;

/// As the agents of these tests are told.
const HEAD_TIMEOUT: &str = "--http-head-timeout=2s";
const BODY_TIMEOUT: &str = "--http-body-idle-timeout=2s";
/// Longer than both.
const BOUND: Duration = Duration::from_secs(8);
/// Of which the agent may grow under an attack, in KiB.
const GROWTH: u64 = 48 << 10;

/// Whose agent takes HTTP apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Side {
    Client,
    Server,
}

const SIDES: [Side; 2] = [Side::Client, Side::Server];

struct Scene {
    cluster: Cluster,
    pids: [u32; 2],
    _servers: Vec<mesh_lab::Process>,
}

fn scene(name: &str) -> Scene {
    let pods = [
        ("n1", PodSpec::new("shop", "client").label("app", "client")),
        ("n1", PodSpec::new("shop", "honest").label("app", "honest")),
        ("n1", PodSpec::new(OUTSIDE, "stranger").label("app", "stranger")),
        ("n2", PodSpec::new("shop", "server").label("app", "server")),
        ("n2", PodSpec::new("shop", "other").label("app", "other")),
        ("n2", PodSpec::new("shop", "guarded").label("app", "guarded")),
    ];
    let mut ground = ground(name, &pods);
    ground.options.agent_flags.extend([HEAD_TIMEOUT, BODY_TIMEOUT].map(String::from));
    let mut objects = Vec::new();
    for (index, (name, app)) in [("front", "server"), ("back", "server"), ("other", "other")].into_iter().enumerate() {
        objects.push(service("shop", name, &[&format!("10.96.3.{}", index + 1)], app, &[("http", 80, 8080)]));
    }
    let allow = json!([{ "to": [{ "operation": { "methods": ["GET", "POST", "OPTIONS"], "paths": ["/", "/open*"] } }] }]);
    objects.push(authorization_policy("shop", "guarded", &[("app", "guarded")], "ALLOW", &allow));
    ground.put("services", &objects);
    ground.put("front", &[route("front", &json!([{ "backendRefs": [to("back")] }]))]);
    let cluster = ground.start();
    let servers = ["server", "other", "guarded"].map(|name| cluster.pod(name).serve_http(name, 8080).unwrap().process).into();
    let pids = ["n1", "n2"].map(|node| cluster.agent(node).process.pid());
    Scene { cluster, pids, _servers: servers }
}

impl Scene {
    fn of(&self, side: Side) -> (Pod, SocketAddr, &'static str) {
        match side {
            Side::Client => (self.cluster.pod("client"), "10.96.3.1:80".parse().unwrap(), "n1"),
            Side::Server => (self.cluster.pod("stranger"), at(&self.cluster.pod("guarded"), 8080), "n2"),
        }
    }

    fn throw(&self, side: Side, bytes: &[u8], flags: &[&str]) -> Thrown {
        let (pod, to, _) = self.of(side);
        pod.throw(to, bytes, BOUND, flags).unwrap()
    }

    fn text(&self, side: Side, text: &str) -> Thrown {
        self.throw(side, text.as_bytes(), &[])
    }

    /// Resident memory of the agent, in KiB.
    fn resident(&self, side: Side) -> u64 {
        let pid = self.cluster.agent(self.of(side).2).process.pid();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the agent runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        line.trim().trim_end_matches(" kB").trim().parse().expect("a number")
    }

    /// Others are served by the agent that is under attack.
    fn others_are_served(&self, side: Side, what: &str) {
        let (_, to, _) = self.of(side);
        let answer = self.cluster.pod("honest").curl(&["-m", "5", &format!("http://{to}/open")]).unwrap();
        assert_eq!(answer.status, 200, "{side:?} {what}: {answer:?}");
    }

    /// Throws, and looks meanwhile that others are served and that the agent does not grow.
    fn attack(&self, side: Side, what: &str, bytes: &[u8], flags: &[&str]) -> Thrown {
        let before = self.resident(side);
        let mut most = 0;
        let thrown = std::thread::scope(|scope| {
            let attack = scope.spawn(|| self.throw(side, bytes, flags));
            loop {
                let over = attack.is_finished();
                self.others_are_served(side, what);
                most = most.max(self.resident(side));
                if over {
                    break attack.join().unwrap();
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        assert!(most < before + GROWTH, "{side:?} {what}: the agent grew from {before} KiB to {most} KiB");
        thrown
    }

    /// How often the guard of a side's agent refused for a reason.
    fn refusals(&self, side: Side, reason: &str) -> f64 {
        self.cluster.sum(self.of(side).2, "nodemesh_http_guard_refusals_total", &[("reason", reason)])
    }

    /// The agents are the processes of the beginning, and never panicked.
    fn unharmed(&self) {
        for (node, pid) in ["n1", "n2"].into_iter().zip(self.pids) {
            let agent = self.cluster.agent(node);
            assert_eq!(agent.process.pid(), pid);
            let log = agent.log();
            let is_bad = |line: &&str| ["panicked", "\"ERROR\"", "internal error"].iter().any(|word| line.contains(word));
            // What is wrong with an object is an error of its author.
            let bad: Vec<&str> = log.lines().filter(is_bad).filter(|line| !line.contains("\"object\"")).collect();
            assert!(bad.is_empty(), "{node}: {bad:?}");
        }
    }
}

#[test]
fn heads_and_bodies_are_bounded_in_size_and_in_time() {
    let scene = scene("slow");
    for side in SIDES {
        // 431 of RFC 6585: too many headers, one too long, both small enough to be read and not.
        let head = |headers: &str| format!("GET /open/bomb HTTP/1.1\r\nHost: a\r\n{headers}\r\n");
        for (what, headers) in [
            ("200 headers", (0..200).map(|i| format!("X-{i}: y\r\n")).collect::<String>()),
            ("10000 headers", (0..10_000).map(|i| format!("X-{i}: y\r\n")).collect()),
            ("a header of a mebibyte", format!("X: {}\r\n", "y".repeat(1 << 20))),
            ("a header of 100 KiB in many lines", format!("X: {}\r\n", "y".repeat(100 << 10))),
        ] {
            let thrown = scene.attack(side, what, head(&headers).as_bytes(), &[]);
            assert_eq!(thrown.status(), 431, "{side:?} {what}: {thrown:?}");
        }
        let thrown = scene.text(side, &format!("GET /open/{} HTTP/1.1\r\nHost: a\r\n\r\n", "y".repeat(1 << 20)));
        assert!((400..=431).contains(&thrown.status()), "{side:?}: a target of a mebibyte: {}", thrown.status());
        assert!(scene.refusals(side, "head_too_large") >= 3.0);

        // A head that comes a byte at a time.
        let slow = scene.attack(side, "a slow head", b"GET /open/slow HTTP/1.1\r\nHost: a\r\nX: ", &["--drip", "200"]);
        assert!(matches!(slow.end, End::Eof | End::Reset), "{side:?}: a slow head is waited for: {slow:?}");
        assert_eq!(scene.refusals(side, "head_timeout"), 1.0);
        // Between two requests there is time.
        let twice = "GET /open HTTP/1.1\r\nHost: a\r\n\r\n";
        let idle = scene.text(side, twice);
        assert_eq!((idle.status(), idle.end), (200, End::Timeout), "{side:?}: {idle:?}");

        // A body that stops, in either version.
        let stalled =
            scene.attack(side, "a body that stops", b"POST /open/stalled HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nbegin", &[]);
        assert_eq!(stalled.status(), 408, "{side:?}: {stalled:?}");
        let bytes = [hello(&[]), request(1, 0, "POST", "/open/stalled2", &[]), frame(kind::DATA, 0, 1, b"begin")].concat();
        let stalled = scene.attack(side, "a body that stops in HTTP/2", &bytes, &[]);
        assert!(stalled.frames().iter().any(|frame| frame.kind == kind::HEADERS && frame.stream == 1), "{side:?}: {stalled:?}");
        assert_eq!(scene.refusals(side, "body_timeout"), 2.0);
        let node = scene.of(side).2;
        for path in ["/open/stalled", "/open/stalled2"] {
            let line = scene.cluster.access(node, &[("path", path), ("status", "408")]);
            assert_eq!((text(&line, "outcome"), text(&line, "flags")), ("request_body_timeout", "SI"), "{line}");
        }
        // A body that breaks its framing is the client's fault, not the server's.
        let broken = "POST /open/broken HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n";
        let thrown = scene.text(side, broken);
        assert_eq!(thrown.status(), 400, "{side:?}: {thrown:?}");
        assert_eq!(scene.refusals(side, "chunk"), 1.0);
        let line = scene.cluster.access(node, &[("path", "/open/broken")]);
        assert_eq!(text(&line, "outcome"), "bad_request", "{line}");
    }
    scene.unharmed();
}

#[test]
fn what_two_readers_could_understand_differently_is_refused_on_either_side() {
    let scene = scene("smuggle");
    let get = |target: &str, more: &str| format!("GET {target} HTTP/1.1\r\n{more}Connection: close\r\n\r\n");
    for side in SIDES {
        for (what, bytes, reason) in [
            (
                "two framings",
                "POST /open HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                "transfer_encoding",
            ),
            ("two lengths", "POST /open HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc", "content_length"),
            ("a bare LF", "GET /open HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", "bare_lf"),
            ("a bare CR", "GET /open HTTP/1.1\r\nHost: a\rX: b\r\n\r\n", "bare_cr"),
            ("a folded header", "GET /open HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", "folded_header"),
            ("a blank before the colon", "GET /open HTTP/1.1\r\nHost : a\r\n\r\n", "header_name"),
        ] {
            let before = scene.refusals(side, reason);
            let thrown = scene.text(side, bytes);
            assert_eq!(thrown.status(), 400, "{side:?} {what}: {thrown:?}");
            assert_eq!(scene.refusals(side, reason), before + 1.0, "{side:?} {what}");
        }
        for (what, request, statuses) in [
            ("two hosts", get("/open", "Host: a\r\nHost: b\r\n"), [400, 400]),
            ("no host", get("/open", ""), [400, 400]),
            ("user information", get("http://me@a/open", "Host: a\r\n"), [400, 400]),
            // Judged at the server's side, and no matter of the client's.
            ("a broken escape", get("/open%zz", "Host: a\r\n"), [200, 400]),
            ("an escaped slash", get("/open%2F..%2Fshut", "Host: a\r\n"), [200, 400]),
            ("another spelling of what is shut", get("/open/../shut", "Host: a\r\n"), [200, 403]),
            ("the absolute form", get("http://a/open/x", "Host: b\r\n"), [200, 200]),
            ("the absolute form of what is shut", get("http://a/shut", "Host: a\r\n"), [200, 403]),
            ("the asterisk", "OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".into(), [200, 403]),
            ("CONNECT", "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n".into(), [405, 405]),
        ] {
            let thrown = scene.text(side, &request);
            let wanted = if side == Side::Client { statuses[0] } else { statuses[1] };
            assert_eq!(thrown.status(), wanted, "{side:?} {what}: {}", thrown.text());
        }
        for other in ["other", ""] {
            let switched = format!("GET /open/x?switch={other} HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: any\r\n\r\n");
            let thrown = scene.text(side, &switched);
            assert_eq!(thrown.status(), 502, "{side:?}: a switch to {other:?}, which nobody asked for: {}", thrown.text());
        }
        // Who asks to switch protocols is looked at no further: if nothing is switched, nothing more is read.
        let unguarded = "GET /open/first?upgrade=no HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: any\r\n\r\nGET /open/second HTTP/1.1\nHost: a\n\n";
        let thrown = scene.text(side, unguarded);
        assert_eq!((thrown.status(), thrown.end), (200, End::Eof), "{side:?}: {}", thrown.text());
        let answer = thrown.text();
        assert!(answer.to_ascii_lowercase().contains("connection: close") && !answer.contains("second"), "{side:?}: {answer}");
    }
    scene.unharmed();
}

/// That a connection was ended for what its client asked for.
fn ended_for(thrown: &Thrown, codes: &[u32]) -> bool {
    goaway(&thrown.frames()).is_some_and(|code| codes.contains(&code))
}

/// Whether a stream was reset for overstepping a window.
fn overstepped(frames: &[Frame]) -> bool {
    let code = code::FLOW_CONTROL_ERROR.to_be_bytes();
    frames.iter().any(|frame| frame.kind == kind::RST_STREAM && frame.payload == code)
}

#[test]
fn streams_and_frames_are_bounded() {
    let scene = scene("frames");
    let rapid: Vec<u8> = (0..20_000u32)
        .flat_map(|i| {
            [request(i * 2 + 1, END_STREAM, "GET", "/open/rapid", &[]), frame(kind::RST_STREAM, 0, i * 2 + 1, &8u32.to_be_bytes())].concat()
        })
        .collect();
    let field = block(&[("x", &"y".repeat(1000))]);
    let endless =
        [frame(kind::HEADERS, 0, 1, &block(&[(":method", "GET")])), frame(kind::CONTINUATION, 0, 1, &field).repeat(20_000)].concat();
    let empty = [frame(kind::HEADERS, 0, 1, &block(&[(":method", "GET")])), frame(kind::CONTINUATION, 0, 1, &[]).repeat(100_000)].concat();
    let streams = |path: &str| -> Vec<u8> { (0..900u32).flat_map(|i| request(i * 2 + 1, END_STREAM, "GET", path, &[])).collect() };
    let window = |stream: u32, more: u32| frame(kind::WINDOW_UPDATE, 0, stream, &more.to_be_bytes());
    for side in SIDES {
        // CVE-2023-44487, and CONTINUATION without end (VU#421644).
        for (what, bytes) in [("rapid resets", &rapid), ("a head without end", &endless), ("empty CONTINUATIONs", &empty)] {
            let thrown = scene.attack(side, what, &[hello(&[]), bytes.clone()].concat(), &[]);
            assert!(matches!(thrown.end, End::Eof | End::Reset), "{side:?} {what}: it goes on: {:?}", thrown.end);
            // The answer may be lost with a connection on which more came after its end.
            let calm = goaway(&thrown.frames());
            assert!(calm.is_none_or(|code| code == code::ENHANCE_YOUR_CALM), "{side:?} {what}: {calm:?}");
        }
        // A head that is complete and too large has an answer, and its connection goes on.
        let large =
            block(&[(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/open/large"), ("x", &"y".repeat(15_000))]);
        let more = frame(kind::CONTINUATION, 0, 1, &block(&[("z", &"y".repeat(15_000))])).repeat(5);
        let bytes = [
            hello(&[]),
            frame(kind::HEADERS, END_STREAM, 1, &large),
            more,
            frame(kind::CONTINUATION, END_HEADERS, 1, &[]),
            request(3, END_STREAM, "GET", "/open", &[]),
        ];
        let thrown = scene.attack(side, "a large head", &bytes.concat(), &[]);
        let answered = thrown.frames().iter().any(|frame| frame.kind == kind::HEADERS && frame.stream == 3);
        assert!(answered || ended_for(&thrown, &[code::ENHANCE_YOUR_CALM]), "{side:?}: {:?}", thrown.frames());

        // Windows: none at all for many large answers, which then stay with the server.
        let none = [hello(&[(4, 0)]), streams("/open/none?size=200000")].concat();
        let thrown = scene.attack(side, "streams without a window", &none, &[]);
        let bodies: usize = thrown.frames().iter().filter(|frame| frame.kind == kind::DATA).map(|frame| frame.payload.len()).sum();
        assert_eq!(bodies, 0, "{side:?}: bytes without a window");
        // One that overflows, of the connection and of a stream.
        let over = [hello(&[]), window(0, 0x7fff_ffff).repeat(2)].concat();
        let thrown = scene.attack(side, "a window that overflows", &over, &[]);
        assert!(ended_for(&thrown, &[code::FLOW_CONTROL_ERROR]), "{side:?}: {:?}", thrown.frames());
        let over = [hello(&[]), request(1, 0, "POST", "/open/over", &[]), window(1, 0x7fff_ffff).repeat(2)].concat();
        let thrown = scene.attack(side, "a stream's window that overflows", &over, &[]);
        assert!(overstepped(&thrown.frames()) || ended_for(&thrown, &[code::FLOW_CONTROL_ERROR]), "{side:?}: {:?}", thrown.frames());

        // Questions without end, by a client that does not read the answers.
        for (what, flood) in [("SETTINGS", frame(kind::SETTINGS, 0, 0, &[])), ("PINGs", frame(kind::PING, 0, 0, &[7; 8]))] {
            scene.attack(side, what, &[hello(&[]), flood.repeat(500_000)].concat(), &["--deaf"]);
        }
        scene.others_are_served(side, "after all of it");
    }
    // Nothing stays of what was broken off.
    for (node, direction) in [("n1", "outbound"), ("n2", "inbound")] {
        let page = format!("/connections?direction={direction}&limit=1");
        let live = || scene.cluster.admin(node, &page)["total"].as_u64().unwrap();
        wait_until("their connections are over", LIMIT, || live() < 50).unwrap_or_else(|error| panic!("{error}: {node} {}", live()));
    }
    scene.unharmed();
}

#[test]
fn answers_that_are_not_whole_end_their_request_only() {
    let scene = scene("answers");
    let client = scene.cluster.pod("client");
    let grpc = ["--http2-prior-knowledge", "-H", "content-type: application/grpc", "-H", "te: trailers", "-X", "POST"];
    let call = |path: &str| client.curl(&[&grpc[..], &[&format!("http://10.96.3.1{path}")]].concat()).unwrap();
    // Without trailers there is no status, which is not taken for success.
    let answer = call("/open/untold?trailers=none");
    assert_eq!(answer.status, 200, "{answer:?}");
    let line = scene.cluster.access("n1", &[("path", "/open/untold"), ("direction", "outbound")]);
    assert!(line.get("grpc_status").is_none_or(Value::is_null), "{line}");
    assert_eq!(call("/open/told").status, 200);
    let line = scene.cluster.access("n1", &[("path", "/open/told"), ("direction", "outbound")]);
    assert_eq!(line["grpc_status"].as_u64().or_else(|| text(&line, "grpc_status").parse().ok()), Some(0), "{line}");
    // A server that breaks off.
    let answer = client.curl(&["http://10.96.3.1/open/broken?break=1"]).unwrap();
    assert_eq!(answer.status, 503, "{answer:?}");
    scene.others_are_served(Side::Client, "after answers that were not whole");
    scene.unharmed();
}

#[test]
fn objects_that_ask_for_too_much_or_contradict_one_another_are_bounded_and_told_of() {
    let scene = scene("objects");
    let cluster = &scene.cluster;
    let client = cluster.pod("client");
    let get = |path: &str| client.curl(&[&format!("http://10.96.3.1{path}")]).unwrap();
    let problems = || cluster.admin("n1", "/problems").to_string();
    let path = |kind: &str, value: &str| json!([{ "path": { "type": kind, "value": value } }]);

    // Patterns: one that would be too large is refused and said; one that is slow elsewhere takes linear time here.
    let rules = json!([
        { "matches": path("RegularExpression", "/((a{1000}){1000}){1000}"), "backendRefs": [to("other")] },
        { "matches": path("RegularExpression", "/(a+)+b"), "backendRefs": [to("other")] },
        { "matches": path("PathPrefix", "/"), "backendRefs": [to("back")] },
    ]);
    cluster.apply("front", &[route("front", &rules)]);
    assert!(problems().contains("too large a pattern"), "{}", problems());
    let long = "a".repeat(4000);
    assert_eq!(get(&format!("/{long}")).seen().name, "server");
    assert_eq!(get(&format!("/{long}b")).seen().name, "other");

    // Weights: the largest that are allowed are shares; what is no weight is said, and its rule does not send everything elsewhere.
    let backend = |name: &str, weight: i64| json!({ "name": name, "namespace": "shop", "port": 80, "weight": weight });
    let most =
        json!([{ "backendRefs": (0..16).map(|i| backend(if i % 2 == 0 { "back" } else { "other" }, 1_000_000)).collect::<Vec<_>>() }]);
    cluster.apply("front", &[route("front", &most)]);
    let names: Vec<String> = (0..8).map(|_| get("/").seen().name).collect();
    assert_eq!(names.iter().filter(|name| *name == "server").count(), 4, "{names:?}");
    cluster.apply("front", &[route("front", &json!([{ "backendRefs": [backend("back", 1), backend("other", i64::from(u32::MAX) + 1)] }]))]);
    assert!(problems().contains("is not a weight"), "{}", problems());

    // Two routes for the same requests: the older one has them, whichever is read first (Gateway API).
    let aged = |name: &str, created: &str, service: &str| {
        let mut aged = route("front", &json!([{ "matches": path("PathPrefix", "/same"), "backendRefs": [to(service)] }]));
        aged["metadata"]["name"] = json!(name);
        aged["metadata"]["creationTimestamp"] = json!(created);
        aged
    };
    for (older, name) in [("other", "other"), ("back", "server")] {
        let newer = if older == "other" { "back" } else { "other" };
        cluster.apply("front", &[aged("a-newer", "2026-02-01T00:00:00Z", newer), aged("z-older", "2026-01-01T00:00:00Z", older)]);
        assert_eq!(get("/same").seen().name, name);
    }
    // Two policies for the same requests: the one that denies wins.
    let all = json!([{ "to": [{ "operation": { "paths": ["/open*"] } }] }]);
    let policies = ["ALLOW", "DENY"]
        .map(|action| authorization_policy("shop", &format!("all-{}", action.to_lowercase()), &[("app", "guarded")], action, &all));
    let guarded = || cluster.pod("honest").curl(&[&format!("http://{}/open", at(&cluster.pod("guarded"), 8080))]).unwrap().status;
    assert_eq!(guarded(), 200);
    cluster.apply("contradiction", &policies);
    assert_eq!(guarded(), 403);
    cluster.withdraw("contradiction");
    assert_eq!(guarded(), 200);

    // A thousand routes on one Service.
    let before = scene.resident(Side::Client);
    let thousand: Vec<Value> = (0..1000)
        .map(|i| {
            let mut one = route(
                "front",
                &json!([{ "matches": path("Exact", &format!("/r{i}")), "backendRefs": [to(if i % 2 == 0 { "back" } else { "other" })] }]),
            );
            one["metadata"]["name"] = json!(format!("r{i}"));
            one
        })
        .collect();
    cluster.apply("front", &thousand);
    for i in [0, 1, 498, 501, 998, 999] {
        assert_eq!(get(&format!("/r{i}")).seen().name, if i % 2 == 0 { "server" } else { "other" }, "{i}");
    }
    assert_eq!(get("/r1000").status, 404);
    let after = scene.resident(Side::Client);
    assert!(after < before + (64 << 10), "the agent grew from {before} KiB to {after} KiB");
    scene.unharmed();
}
