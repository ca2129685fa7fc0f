//! Our client against a data plane of another make: what it sends, how it takes refusals and aborts, whom it does not believe.

use std::time::{Duration, Instant, SystemTime};

use http::Method;
use mesh_lab::PodSpec;
use mesh_lab::peer::{End, Report};
use mesh_lab::process::wait_until;

use crate::foreign::{Answer, Authority, Leaf, Server, drown};
use crate::mtls::{handshakes, under};
use crate::world::{LIMIT, SOON, at, canonical, text};

#[test]
fn our_client_speaks_to_a_data_plane_of_another_make() {
    let authority = Authority::new("the test's root");
    let cluster = under(&authority, "foreign", &[("n1", PodSpec::new("shop", "caller").service_account("caller"))]);
    let caller = cluster.pod("caller");
    // A node without an agent of ours.
    let node = cluster.world.add_node("n3").unwrap();
    let names = ["good", "another", "expired", "strange", "domain", "garbage", "silent", "absent", "fleeting"];
    for name in names {
        node.add_pod(PodSpec::new("shop", name).service_account(name)).unwrap();
    }
    cluster.changed(|| cluster.world.manifests().put_world(&cluster.world).unwrap());
    let pod = |name: &str| cluster.pod(name);
    let answer = |port: u16| match port {
        400..=599 => Answer::Status(port),
        7010 => Answer::Abort,
        _ => Answer::Echo,
    };
    let shows = |name: &str, leaf: Leaf| Server::start(&pod(name), &authority, &authority.issue(&leaf), answer);
    let now = SystemTime::now();
    let hour = Duration::from_secs(3600);
    let of = |name: &str| Leaf::of(&pod(name).spiffe_id());
    let good = shows("good", of("good"));
    let foreign_root = Authority::new("another root").issue(&of("strange"));
    let _servers = [
        shows("another", of("good")),
        shows("expired", Leaf { from: now - 2 * hour, until: now - hour, ..of("expired") }),
        Server::start(&pod("strange"), &authority, &foreign_root, answer),
        shows("domain", Leaf::of("spiffe://elsewhere.example/ns/shop/sa/domain")),
        Server::run(&pod("garbage"), |mut tcp| async move {
            drown(&mut tcp, &[0x5a; 512], Duration::from_secs(5)).await;
        }),
        Server::run(&pod("silent"), |mut tcp| async move {
            drown(&mut tcp, &[], Duration::from_secs(30)).await;
        }),
        Server::run(&pod("fleeting"), |tcp| async move { drop(tcp) }),
    ];

    // Connections of one client, so that the tunnel is used again; each carries what ztunnel would want to know.
    let to = at(&pod("good"), 7000);
    for i in 0..10 {
        let report = caller.connect(to, &format!("hello {i}")).unwrap();
        assert_eq!((report.received, report.end, report.peer), (format!("hello {i}"), End::Eof, Some(to)));
        let from = canonical(report.local.unwrap());
        let seen = good.seen().pop().unwrap();
        assert_eq!((seen.method, seen.authority, seen.sni), (Method::CONNECT, to.to_string(), None));
        assert_eq!(seen.client, [caller.spiffe_id()]);
        let header =
            |name: &str| seen.headers.get(name).unwrap_or_else(|| panic!("{name}: {:?}", seen.headers)).to_str().unwrap().to_owned();
        assert!(header("forwarded").starts_with(&format!("for=\"{from}\"")), "{}", header("forwarded"));
        let (baggage, trace) = (header("baggage"), header("traceparent"));
        assert!(baggage.contains("k8s.namespace.name=shop") && baggage.contains("k8s.cluster.name=Kubernetes"), "{baggage}");
        let parts: Vec<&str> = trace.split('-').collect();
        assert!(matches!(parts[..], ["00", id, span, _] if id.len() == 32 && span.len() == 16), "{trace}");
        wait_until("an end in order", SOON, || good.seen().last().unwrap().end == Some(Ok(()))).unwrap();
    }
    assert!(good.connections() <= 4, "{} tunnels for ten connections one after the other", good.connections());
    let large = caller.peer(&["connect", &to.to_string(), "--send", &"x".repeat(100_000), "--half-close"], LIMIT).unwrap();
    assert_eq!((large.received_bytes, large.end), (100_000, End::Eof));

    // Refusals and aborts, by what the client sees and what its node's log says.
    for (port, outcome) in [(401, "denied_by_peer"), (400, "rejected_by_peer"), (503, "unavailable_at_peer")] {
        let report = caller.connect(at(&pod("good"), port), "x").unwrap();
        assert_eq!((report.received.as_str(), report.end), ("", End::Reset), "{port}: {report:?}");
        let line = cluster.access_of("n1", "outbound", &report);
        assert_eq!(text(&line, "outcome"), outcome, "{line}");
        assert!(text(&line, "reason").contains(&port.to_string()), "{line}");
    }
    let report = caller.connect(at(&pod("good"), 7010), "x").unwrap();
    assert_eq!(report.end, End::Reset, "{report:?}");
    assert_eq!(text(&cluster.access_of("n1", "outbound", &report), "outcome"), "server_reset");
    let report = caller.peer(&["connect", &at(&pod("good"), 7011).to_string(), "--send", "x", "--hold", "200", "--reset"], LIMIT).unwrap();
    wait_until("the abort at the server", SOON, || good.seen_at(7011).iter().any(|seen| matches!(seen.end, Some(Err(_))))).unwrap();
    assert_eq!(good.seen_at(7011).pop().unwrap().end, Some(Err(h2::Reason::CANCEL)));
    assert_eq!(text(&cluster.access_of("n1", "outbound", &report), "outcome"), "client_reset");

    // Servers that are not to be believed: nothing is sent to them, and the log says what they were.
    let bad = [
        ("another", "handshake_unexpected_identity"),
        ("expired", "handshake_certificate_time"),
        ("strange", "handshake_untrusted"),
        ("domain", "handshake_unexpected_identity"),
        ("garbage", "handshake_protocol"),
        ("fleeting", "handshake_protocol"),
        ("silent", "handshake_timeout"),
        ("absent", "tunnel_refused_connection"),
    ];
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for (name, outcome) in bad {
            let (cluster, caller, pod) = (&cluster, &caller, pod(name));
            scope.spawn(move || {
                let report: Report =
                    caller.peer(&["connect", &at(&pod, 7000).to_string(), "--send", "secret", "--timeout", "15"], LIMIT).unwrap();
                assert_eq!((report.received_bytes, report.end), (0, End::Reset), "{name}: {report:?}");
                let line = cluster.access_of("n1", "outbound", &report);
                assert_eq!(text(&line, "outcome"), outcome, "{line}");
                if outcome.starts_with("handshake") {
                    assert!(handshakes(cluster, "n1", "outbound", outcome) >= 1.0, "{}", cluster.lines("n1", "nodemesh_tunnel_handshakes"));
                }
            });
        }
    });
    assert!(begun.elapsed() < Duration::from_secs(15), "no wait is without bound: {:?}", begun.elapsed());
    assert!(!cluster.agent("n1").log().contains("panicked"), "{}", cluster.agent("n1").log());
    assert_eq!(caller.connect(to, "still there").unwrap().received, "still there");
    // A server that went away is asked for anew.
    drop(good);
    let report = caller.connect(to, "gone").unwrap();
    assert_eq!((report.received_bytes, report.end), (0, End::Reset), "{report:?}");
    let good = shows("good", of("good"));
    assert_eq!(caller.connect(to, "back").unwrap().received, "back");
    drop(good);
}
