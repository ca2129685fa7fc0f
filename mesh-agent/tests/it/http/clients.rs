//! HTTP clients and servers that people use, through routes: nghttp2's and curl, wrk, nginx, WebSockets.

use mesh_lab::manifests::authorization_policy;
use mesh_lab::peer::Server;
use mesh_lab::{Process, packages};

use super::*;

/// The mesh that these tests share.
struct Clients {
    cluster: Cluster,
    sockets: Server,
    /// Asked by one test only.
    together: Server,
    _others: ([Process; 2], Server),
}

static CLIENTS: LazyLock<Clients> = LazyLock::new(|| {
    packages::ensure(&["nghttp2-client", "wrk", "nginx-light", "curl"]).expect("Debian packages");
    let ground = ground(
        "clients",
        &[
            ("n1", PodSpec::new("shop", "client")),
            ("n1", PodSpec::new(OUTSIDE, "stranger")),
            ("n2", PodSpec::new("shop", "web")),
            ("n2", PodSpec::new("shop", "sockets")),
            ("n2", PodSpec::new("shop", "plain")),
            ("n2", PodSpec::new("shop", "bare")),
        ],
    );
    let ports = [("http", 80, 8080), ("http2", 81, 8081)];
    let names = ["web", "sockets", "plain", "bare"];
    let services = names.iter().zip(1..);
    let mut objects: Vec<Value> =
        services.map(|(name, number)| service("shop", name, &[&format!("10.97.0.{number}")], name, &ports)).collect();
    for name in names {
        let backend = |port: u16| json!([{ "backendRefs": [{ "name": name, "port": port }] }]);
        for (port, part) in [(80, "one"), (81, "two")] {
            let mut route = route_in("shop", name, &backend(port));
            route["metadata"]["name"] = json!(format!("{name}-{part}"));
            route["spec"]["parentRefs"][0]["port"] = json!(port);
            objects.push(route);
        }
        if name == "bare" {
            continue;
        }
        // So that requests are judged one by one at the server's agent too.
        let allow = json!([{ "to": [{ "operation": { "methods": ["GET", "POST", "PUT"] } }] }]);
        objects.push(authorization_policy("shop", name, &[("app", name)], "ALLOW", &allow));
    }
    ground.put("objects", &objects);
    let cluster = ground.start();
    let nginxes = ["web", "bare"].map(|pod| nginx(&cluster, pod));
    let sockets = cluster.pod("sockets").serve_web_socket(8080).expect("a WebSocket server");
    let plain = cluster.pod("plain").serve_http("plain", 8080).expect("a server");
    let together = cluster.pod("plain").serve_http("together", 8081).expect("a server");
    Clients { cluster, sockets, together, _others: (nginxes, plain) }
});

/// nginx with HTTP/1.1 on one port and HTTP/2 on another. It ends a connection after a hundred requests, as it is by default after a
/// thousand, in the middle of others: with a GOAWAY.
fn nginx(cluster: &Cluster, pod: &str) -> Process {
    let directory = cluster.world.directory().join(format!("nginx-{pod}"));
    std::fs::create_dir_all(&directory).unwrap();
    let at = directory.display();
    let file = std::fs::File::create(directory.join("large")).unwrap();
    file.set_len(LARGE).unwrap();
    let configuration = format!(
        "daemon off; user root; worker_processes 1; pid {at}/pid; error_log {at}/error.log;\n\
         events {{ worker_connections 1024; }}\n\
         http {{\n\
         client_body_temp_path {at}/body; proxy_temp_path {at}/proxy; fastcgi_temp_path {at}/fastcgi;\n\
         uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;\n\
         access_log off; keepalive_requests 100; client_max_body_size 0;\n\
         server {{ listen 0.0.0.0:8080; listen 0.0.0.0:8081 http2; root {at};\n\
         location = /large {{ }}\n\
         location = /trailers {{ add_header Trailer X-Sum; add_trailer X-Sum done; return 200 \"body\\n\"; }}\n\
         location / {{ return 200 \"hello\\n\"; }} }}\n\
         }}\n"
    );
    let file = directory.join("nginx.conf");
    std::fs::write(&file, configuration).unwrap();
    let server = cluster.pod(pod);
    let process = server.spawn(&["nginx", "-p", &at.to_string(), "-c", &file.to_string_lossy()]).unwrap();
    let netns = server.netns();
    let answers = || mesh_lab::http_get(&netns, "http://127.0.0.1:8080/").is_ok_and(|answer| answer.status == 200);
    wait_until("nginx answers", LIMIT, answers).unwrap_or_else(|error| panic!("{error}: {}", process.log()));
    process
}

/// More than an agent may have in memory.
const LARGE: u64 = 200 << 20;
/// The longest that a load may take.
const LOAD: std::time::Duration = std::time::Duration::from_secs(60);

fn requests(node: &str, reporter: &str, service: &str, code: &str) -> f64 {
    let labels = [("reporter", reporter), ("destination_service_name", service), ("response_code", code)];
    CLIENTS.cluster.sum(node, "istio_requests_total", &labels)
}

fn client(words: &[&str]) -> String {
    let finished = CLIENTS.cluster.pod("client").exec(words, LOAD).unwrap();
    finished.success().unwrap_or_else(|error| panic!("{words:?}: {error:#}")).to_owned()
}

#[test]
fn loads_of_both_versions_lose_no_request() {
    let body = CLIENTS.cluster.world.directory().join("load-body");
    std::fs::write(&body, "x=1").unwrap();
    let body = body.display().to_string();
    let before = requests("n1", "source", "web", "200");
    let mut sent = 0.0;
    // nginx sends each connection of an agent away after a hundred requests, while others are under way on it: those of the server's
    // agent where that takes requests apart, else those of the client's.
    for (url, more) in [
        ("http://10.97.0.1:81/", &[][..]),
        ("http://10.97.0.1:81/", &["-d", &body]),
        ("http://10.97.0.4:81/", &[]),
        ("http://10.97.0.4:81/", &["-d", &body]),
    ] {
        let words = [&["h2load", "-n", "2000", "-c", "4", "-m", "50"], more, &[url]].concat();
        let said = client(&words);
        let bad = || {
            let lines = ["n1", "n2"].map(|node| CLIENTS.cluster.agent(node).access_log()).concat();
            let failed = lines.into_iter().filter(|line| line["status"].as_str().is_none_or(|status| status.starts_with('5')));
            failed.take(6).map(|line| line.to_string()).collect::<Vec<_>>().join("\n")
        };
        assert!(said.contains("2000 succeeded, 0 failed, 0 errored, 0 timeout"), "{url} {more:?}: {said}{}", bad());
    }
    sent += 4000.0;
    let said = client(&["nghttp", "-n", "-v", "-m", "30", "http://10.97.0.1:81/"]);
    assert_eq!(said.matches(":status: 200").count(), 30, "{said}");
    sent += 30.0;
    let said = client(&["wrk", "-t", "1", "-c", "8", "-d", "1s", "http://10.97.0.1/"]);
    assert!(!said.contains("Socket errors") && !said.contains("Non-2xx") && said.contains(" requests in "), "{said}");
    let counted = |node: &str, reporter: &str| requests(node, reporter, "web", "200");
    assert!(counted("n1", "source") >= before + sent, "{}", CLIENTS.cluster.lines("n1", "istio_requests_total"));
    // Both agents have counted the same, but for what wrk left unfinished at its end.
    wait_until("both sides agree", SOON, || (counted("n1", "source") - counted("n2", "destination")).abs() <= 8.0).unwrap();
    for node in ["n1", "n2"] {
        let failed = CLIENTS.cluster.sum(node, "istio_requests_total", &[("response_code", "503")]);
        assert_eq!(failed, 0.0, "{}", CLIENTS.cluster.lines(node, "istio_requests_total"));
    }
}

#[test]
fn streams_that_begin_together_share_a_connection() {
    // The first requests of the client to this port, all at once.
    let said = client(&["h2load", "-n", "60", "-c", "1", "-m", "60", "http://10.97.0.3:81/"]);
    assert!(said.contains("60 succeeded, 0 failed"), "{said}");
    let log = CLIENTS.together.process.log();
    assert_eq!(log.matches("connection from").count(), 1, "{log}");
}

/// A number of a process's status, in bytes.
fn memory(pid: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[test]
fn large_bodies_pass_through_without_being_kept() {
    let pids = ["n1", "n2"].map(|node| CLIENTS.cluster.agent(node).process.pid());
    let before = pids.map(|pid| {
        std::fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
        memory(pid, "VmRSS:")
    });
    let large = CLIENTS.cluster.world.directory().join("nginx-web/large").display().to_string();
    for (version, port) in [("--http1.1", 80), ("--http2-prior-knowledge", 81)] {
        let curl = |words: &[&str]| client(&[&["curl", "-sS", version, "-m", "55"], words].concat());
        let down = curl(&["-o", "/dev/null", "-w", "%{http_code} %{size_download}", &format!("http://10.97.0.1:{port}/large")]);
        assert_eq!(down, format!("200 {LARGE}"), "{version}");
        // What the server has read.
        let up = curl(&["-T", &large, "http://10.97.0.3/large"]);
        assert!(up.contains(&format!("\"body\":{LARGE},")), "{version}: {up}");
    }
    for (pid, before) in pids.into_iter().zip(before) {
        let grown = memory(pid, "VmHWM:").saturating_sub(before);
        assert!(grown < LARGE / 4, "an agent has grown by {grown} bytes");
    }
}

#[test]
fn bodies_of_unknown_length_come_with_their_trailers() {
    let pod = CLIENTS.cluster.pod("client");
    let url = "http://10.97.0.3/chunked";
    let answer = pod.curl(&["-H", "Transfer-Encoding: chunked", "-H", "Expect: 100-continue", "-d", "some words", url]).unwrap();
    let seen = answer.seen();
    assert_eq!((answer.status, seen.body, seen.all("transfer-encoding")), (200, 10, vec!["chunked"]), "{answer:?}");
    assert_eq!(seen.all("expect"), Vec::<&str>::new(), "whoever reads the body has asked for it");
    let verbose = pod.exec(&["curl", "-sv", "-H", "Expect: 100-continue", "-d", "some words", url], LIMIT).unwrap();
    assert!(verbose.stderr.contains("HTTP/1.1 100 Continue"), "{}", verbose.stderr);

    let request = "POST /trailers HTTP/1.1\r\nHost: plain\r\nConnection: close\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n\
                   3\r\nabc\r\n0\r\nX-Sum: 7\r\n\r\n";
    let answer = pod.request("10.97.0.3:80".parse().unwrap(), request).unwrap().received;
    assert!(answer.contains(r#""trailers":[["x-sum","7"]]"#), "{answer}");
    let request = "GET /trailers HTTP/1.1\r\nHost: web\r\nConnection: close, TE\r\nTE: trailers\r\n\r\n";
    let answer = pod.request("10.97.0.1:80".parse().unwrap(), request).unwrap().received;
    assert!(answer.to_ascii_lowercase().contains("\r\n0\r\nx-sum: done\r\n"), "{answer}");
}

#[test]
fn web_sockets_carry_data_both_ways_and_their_close_codes() {
    let pod = CLIENTS.cluster.pod("client");
    let call = |words: &[&str]| pod.web_socket(&[&["10.97.0.2:80"], words].concat(), LIMIT).unwrap();
    let binary = 4 << 20;
    let report = call(&[
        "--path",
        "/chat",
        "--text",
        "one",
        "--text",
        "zwölf",
        "--binary",
        &binary.to_string(),
        "--idle",
        "7000",
        "--close",
        "4001",
    ]);
    assert_eq!((report.texts, report.binary_bytes, report.close_code), (vec!["one".to_owned(), "zwölf".to_owned()], binary, Some(4001)));
    wait_until("the server hears of the close", SOON, || CLIENTS.sockets.process.log().contains("4001 enough"))
        .unwrap_or_else(|error| panic!("{error}: {}", CLIENTS.sockets.process.log()));
    for (node, direction) in [("n1", "outbound"), ("n2", "inbound")] {
        let line = CLIENTS.cluster.access(node, &[("direction", direction), ("path", "/chat"), ("status", "101")]);
        assert_eq!(text(&line, "outcome"), "completed", "{line}");
        assert!(number(&line, "bytes_received") > binary && number(&line, "bytes_sent") > binary, "{line}");
    }
    let report = call(&["--text", "close 4008 too much"]);
    assert_eq!((report.close_code, report.close_reason.as_str()), (Some(4008), "too much"));
}

#[test]
fn a_web_socket_ends_with_the_policy_that_allowed_it() {
    let words = ["ws-call", "10.97.0.2:80", "--path", "/ended", "--text", "hello"];
    let mut held = CLIENTS.cluster.pod("client").spawn_peer(&words).unwrap();
    held.process.wait_for_log("texts came back", LIMIT).unwrap();
    let deny = |path: &str| {
        let rules = json!([{ "to": [{ "operation": { "paths": [path] } }] }]);
        CLIENTS.cluster.apply("no-sockets", &[authorization_policy("shop", "no-sockets", &[("app", "sockets")], "DENY", &rules)]);
    };
    deny("/elsewhere");
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert!(held.process.is_running(), "another policy that allows it is none of its concern: {}", held.process.log());
    deny("/ended");
    let line = CLIENTS.cluster.access("n2", &[("direction", "inbound"), ("path", "/ended"), ("status", "101")]);
    assert_eq!((text(&line, "outcome"), text(&line, "policy")), ("policy_revoked", "shop/no-sockets"), "{line}");
    let bytes = ["bytes_received", "bytes_sent"].map(|field| line[field].as_u64().unwrap_or_default());
    assert!(bytes.iter().all(|bytes| *bytes > 5), "what it carried until then: {line}");
    assert!(held.process.wait(SOON).unwrap().is_some(), "its client waits on");
    CLIENTS.cluster.withdraw("no-sockets");
}

#[test]
fn a_web_socket_in_the_clear_is_a_connection_of_its_pod_as_long_as_it_lives() {
    let server = CLIENTS.cluster.pod("sockets");
    let words = ["ws-call", &at(&server, 8080).to_string(), "--path", "/clear", "--text", "hello"];
    let mut held = CLIENTS.cluster.pod("stranger").spawn_peer(&words).unwrap();
    held.process.wait_for_log("texts came back", LIMIT).unwrap();
    let clear = || {
        let shown = CLIENTS.cluster.admin("n2", "/connections?workload=shop/sockets");
        let all = shown["connections"].as_array().cloned().unwrap_or_default();
        all.iter().filter(|one| text(one, "security") == "none").count()
    };
    assert_eq!(clear(), 1, "it is switched, and open");
    let rules = json!([{ "to": [{ "operation": { "paths": ["/clear"] } }] }]);
    CLIENTS.cluster.apply("no-strangers", &[authorization_policy("shop", "no-strangers", &[("app", "sockets")], "DENY", &rules)]);
    assert!(held.process.wait(SOON).unwrap().is_some(), "its client waits on");
    wait_until("its place is free", SOON, || clear() == 0).unwrap();
    CLIENTS.cluster.withdraw("no-strangers");
}
