//! Peers that mean harm or have lost their minds: what they send ends their own connection, is counted and named, and costs nobody else
//! anything.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mesh_lab::peer::{Client, End, HoldReport, Report, run};
use mesh_lab::process::wait_until;
use mesh_lab::{Pod, PodSpec};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::foreign::{Authority, Leaf, Shown, Tunnel, connect, drown, inside, throw, tls, tls_version};
use crate::world::{Cluster, LIMIT, OUTSIDE, SOON, at, ground};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
/// Longer than any wait of the agent for a peer's handshake.
const BOUND: Duration = Duration::from_secs(14);

struct Scene {
    cluster: Cluster,
    shown: Shown,
    caller: Pod,
    server: Pod,
    tunnel: SocketAddr,
    /// An honest connection through the honest agents, from before the first attack.
    honest: Client,
    _servers: Vec<mesh_lab::peer::Server>,
}

fn scene(name: &str) -> Scene {
    let authority = Authority::new("the test's root");
    let pods = [
        ("n1", PodSpec::new("shop", "caller").service_account("caller")),
        ("n1", PodSpec::new(OUTSIDE, "outsider")),
        ("n2", PodSpec::new("shop", "server").service_account("server")),
    ];
    let mut ground = ground(name, &pods);
    ground.options.control_flags.extend(authority.flags(&ground.world));
    let cluster = ground.start();
    let (caller, server) = (cluster.pod("caller"), cluster.pod("server"));
    let servers = ["echo", "stall", "bulk", "sink"].iter().zip(7000..).map(|(mode, port)| server.serve(mode, port).unwrap()).collect();
    let honest = caller.spawn_peer(&["tick", &at(&server, 7000).to_string(), "--interval", "20", "--seconds", "120"]).unwrap();
    wait_until("rounds", LIMIT, || honest.ticks() > 2).unwrap();
    let tunnel = SocketAddr::new(server.ipv4().into(), 15008);
    Scene { shown: authority.issue(&Leaf::of(&caller.spiffe_id())), cluster, caller, server, tunnel, honest, _servers: servers }
}

impl Scene {
    /// Others are served: the connection of before goes on, a new one is answered, soon.
    fn others_are_served(&self, what: &str) {
        let ticks = self.honest.ticks();
        let begun = Instant::now();
        let report = self.caller.connect(at(&self.server, 7000), "hello").unwrap();
        assert_eq!((&*report.received, report.end), ("hello", End::Eof), "{what}: {report:?}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{what}: a connection took {:?}", begun.elapsed());
        wait_until("more rounds", SOON, || self.honest.ticks() > ticks)
            .unwrap_or_else(|error| panic!("{what}: {error}: {}", self.honest.process.log()));
    }

    /// Resident memory of a node's agent, in KiB, and how many files it has open.
    fn footprint(&self, node: &str) -> (u64, usize) {
        let pid = self.cluster.agent(node).process.pid();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the agent runs");
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        let files = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("its files").count();
        (resident.trim().trim_end_matches(" kB").trim().parse().expect("a number"), files)
    }

    /// It is the process of the beginning, and never panicked.
    fn unharmed(&self, begun: [u32; 2]) {
        for (node, pid) in ["n1", "n2"].into_iter().zip(begun) {
            let agent = self.cluster.agent(node);
            assert_eq!(agent.process.pid(), pid);
            let log = agent.log();
            for word in ["panicked", "stack backtrace", "\"ERROR\"", "internal error"] {
                assert!(
                    !log.contains(word),
                    "{node}: {word}:\n{}",
                    log.lines().filter(|line| line.contains(word)).collect::<Vec<_>>().join("\n")
                );
            }
            assert_eq!(agent.metrics().unwrap().sum("nodemesh_kernel_map_full_total", &[]), 0.0);
        }
    }

    fn pids(&self) -> [u32; 2] {
        ["n1", "n2"].map(|node| self.cluster.agent(node).process.pid())
    }

    fn failed(&self, result: &str) -> f64 {
        self.cluster.sum("n2", "nodemesh_tunnel_handshakes_total", &[("direction", "inbound"), ("result", result)])
    }
}

/// An HTTP/2 frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

#[test]
fn bytes_that_are_no_protocol_end_their_own_connection() {
    let scene = scene("garbage");
    let pids = scene.pids();
    let hello: &[u8] = &[0x16, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3];
    let noise: Vec<u8> = (0..70_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    // Before TLS.
    let raw: Vec<(&str, Vec<u8>)> = vec![
        ("noise", noise.clone()),
        ("plain HTTP", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
        ("plain HTTP/2", [PREFACE, SETTINGS].concat()),
        ("a record that is too long", vec![0x16, 3, 1, 0xff, 0xff, 1, 0xff, 0xff, 0xff]),
        ("a record of an unknown kind", vec![0x7f, 3, 3, 0, 1, 0]),
        ("an alert out of nothing", vec![21, 3, 3, 0, 2, 2, 40]),
        ("application data out of nothing", [&[23, 3, 3, 0, 64][..], &[0xaa; 64]].concat()),
        ("a hello of lies", [hello, &[0xff; 185]].concat()),
        ("a hello without end", [&[0x16, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff][..], &[0; 16380]].concat().repeat(8)),
        ("SSL 2", vec![0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10]),
    ];
    inside(&scene.caller, async {
        for (what, bytes) in &raw {
            let ended = throw(scene.tunnel, bytes, BOUND).await;
            assert!(ended.is_some(), "{what}: the connection is kept");
        }
        assert!(tls_version(scene.tunnel, Some(&scene.shown), &[b"h2"], &rustls::version::TLS12).await.is_err());
    });
    let counted = || scene.failed("handshake_protocol") + scene.failed("handshake_timeout");
    wait_until("they are counted", SOON, || counted() >= raw.len() as f64)
        .unwrap_or_else(|error| panic!("{error}: {}", scene.cluster.lines("n2", "nodemesh_tunnel_handshakes")));
    scene.others_are_served("garbage before TLS");

    // What breaks off: no more is heard of it, and nothing is kept of it.
    inside(&scene.caller, async {
        for length in [1, 5, hello.len()] {
            let mut tcp = tokio::net::TcpStream::connect(scene.tunnel).await.unwrap();
            tcp.write_all(&hello[..length]).await.unwrap();
            drop(tcp);
        }
    });

    // Inside of TLS, with a good certificate: HTTP/2 that is none.
    let block = [0x44u8, 0x07].to_vec();
    let http2: Vec<(&str, Vec<u8>)> = vec![
        ("noise", noise.clone()),
        ("HTTP/1", b"CONNECT 10.10.2.10:7000 HTTP/1.1\r\n\r\n".to_vec()),
        ("a frame that is too long", [PREFACE, SETTINGS, &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]].concat()),
        ("SETTINGS of a broken length", [PREFACE, &frame(4, 0, 0, &[0; 5])].concat()),
        ("data for a stream that is not there", [PREFACE, SETTINGS, &frame(0, 0, 1, b"x")].concat()),
        ("headers of a broken code", [PREFACE, SETTINGS, &frame(1, 4, 1, &[0xff; 64])].concat()),
        ("headers on an even stream", [PREFACE, SETTINGS, &frame(1, 4, 2, &block)].concat()),
        ("headers that are cut off by another frame", [PREFACE, SETTINGS, &frame(1, 0, 1, &block), &frame(6, 0, 0, &[0; 8])].concat()),
        (
            "headers without end",
            [PREFACE, SETTINGS, &frame(1, 0, 1, &block), &frame(9, 0, 1, &[0x40, 1, b'a', 1, b'b'].repeat(3000)).repeat(40)].concat(),
        ),
        ("a window without bound", [PREFACE, SETTINGS, &frame(8, 0, 0, &[0x7f, 0xff, 0xff, 0xff]).repeat(3)].concat()),
    ];
    inside(&scene.caller, async {
        for (what, bytes) in &http2 {
            let mut stream = tls(scene.tunnel, Some(&scene.shown), &[b"h2"]).await.unwrap();
            let ended = drown(&mut stream, bytes, BOUND).await;
            assert!(ended.is_some(), "{what}: the connection is kept");
        }
    });
    scene.others_are_served("garbage as HTTP/2");

    // The same for the protocol between agents of one make.
    let own: Vec<(&str, Vec<u8>)> = vec![
        ("noise", noise),
        ("a frame of an unknown type", vec![0xee, 0, 0, 0]),
        ("DATA before OPEN", vec![5, 0, 0, 4, 1, 2, 3, 4]),
        ("a control frame that is too long", vec![2, 0xff, 0xff, 0xff]),
        ("an OPEN that is empty", vec![2, 0, 0, 0]),
        ("an OPEN of broken fields", vec![2, 0, 0, 8, 0x1b, 0x58, 0, 1, 0xff, 0xff, 9, 9]),
        ("the server's part", vec![1, 0, 0, 0, 3, 0, 0, 0]),
        ("HTTP/2", [PREFACE, SETTINGS].concat()),
    ];
    inside(&scene.caller, async {
        for (what, bytes) in &own {
            let mut stream = tls(scene.tunnel, Some(&scene.shown), &[b"nodemesh/1"]).await.unwrap();
            assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"nodemesh/1"[..]));
            let ended = drown(&mut stream, bytes, BOUND).await;
            assert!(ended.is_some(), "{what}: the connection is kept");
        }
    });
    scene.others_are_served("garbage as the own protocol");
    streams_without_mercy(&scene);
    scene.unharmed(pids);
}

/// HTTP/2 as it is allowed, in numbers that are not.
fn streams_without_mercy(scene: &Scene) {
    let target = at(&scene.server, 7000).to_string();
    let (resident, _) = scene.footprint("n2");
    inside(&scene.caller, async {
        // Streams that are opened and reset at once, as fast as they go.
        let mut stream = tls(scene.tunnel, Some(&scene.shown), &[b"h2"]).await.unwrap();
        // :method CONNECT and :authority, literally, without an index.
        let headers = [&[0x02, 7][..], b"CONNECT", &[0x01, u8::try_from(target.len()).unwrap()], target.as_bytes()].concat();
        let mut bytes = [PREFACE, SETTINGS].concat();
        for number in 0..5000u32 {
            bytes.extend(frame(1, 4, number * 2 + 1, &headers));
            bytes.extend(frame(3, 0, number * 2 + 1, &8u32.to_be_bytes()));
        }
        // It may end the connection for that, or bear it; but it must read on, and not keep them.
        let _ = drown(&mut stream, &bytes, Duration::from_secs(3)).await;

        // More streams than are allowed wait for their turn.
        let mut tunnel = Tunnel::open(scene.tunnel, &scene.shown).await.unwrap();
        let mut open = Vec::new();
        for _ in 0..200 {
            open.push(tunnel.connect(&target).await.unwrap());
        }
        assert_eq!(tunnel.most_streams(), 200);
        // PINGs without end.
        let mut stream = tls(scene.tunnel, Some(&scene.shown), &[b"h2"]).await.unwrap();
        let flood = [PREFACE, SETTINGS, &frame(6, 0, 0, &[7; 8]).repeat(20_000)].concat();
        let _ = drown(&mut stream, &flood, Duration::from_secs(2)).await;
        for (i, one) in open.iter_mut().enumerate() {
            one.send(&[i as u8], LIMIT).await.unwrap();
            assert_eq!(one.receive(1).await.unwrap(), [i as u8]);
        }
    });
    scene.others_are_served("streams without mercy");
    let (after, _) = scene.footprint("n2");
    assert!(after < resident + 40 * 1024, "the agent grew from {resident} KiB to {after} KiB");
    // Connections to the application of streams that were reset do not stay.
    let live = || scene.cluster.admin("n2", "/connections?direction=inbound&limit=1")["total"].as_u64().unwrap();
    wait_until("their connections are over", SOON, || live() < 10).unwrap_or_else(|error| panic!("{error}: {}", live()));
}

#[test]
fn thousands_that_begin_and_do_not_go_on_keep_nobody_from_being_served() {
    let scene = scene("flood");
    let pids = scene.pids();
    let (resident, files) = scene.footprint("n2");
    let to = scene.tunnel.to_string();
    let host = scene.cluster.node("n1").host("flood").unwrap();
    let flood = std::thread::spawn(move || -> HoldReport {
        run(&host, &["hold", &to, "--connections", "10000", "--seconds", "3", "--timeout", "20"], Duration::from_secs(90)).unwrap()
    });
    let mut rounds = 0;
    let (mut most_resident, mut most_files) = (0, 0);
    while !flood.is_finished() {
        scene.others_are_served("a flood of connections that say nothing");
        let (resident, files) = scene.footprint("n2");
        (most_resident, most_files) = (most_resident.max(resident), most_files.max(files));
        rounds += 1;
    }
    let report = flood.join().unwrap();
    assert!(rounds >= 3, "{rounds} rounds");
    assert_eq!((report.opened, report.failed), (10_000, 0));
    // The oldest give way, so that few are kept at any time.
    assert!(report.alive < 2000 && most_files < files + 2500, "{} alive, {most_files} files", report.alive);
    assert!(most_resident < resident + 64 * 1024, "the agent grew from {resident} KiB to {most_resident} KiB");
    wait_until("they are counted", LIMIT, || scene.failed("handshake_timeout") + scene.failed("handshake_protocol") >= 10_000.0)
        .unwrap_or_else(|error| panic!("{error}: {}", scene.cluster.lines("n2", "nodemesh_tunnel_handshakes")));
    wait_until("their files are closed", LIMIT, || scene.footprint("n2").1 < files + 50).unwrap();
    scene.others_are_served("after the flood");

    // Handshakes that are done and no request: they go on for a while, and harm nobody.
    inside(&scene.caller, async {
        let mut idle = Vec::new();
        for _ in 0..300 {
            idle.push(tls(scene.tunnel, Some(&scene.shown), &[b"h2"]).await.unwrap());
        }
        let mut tunnel = Tunnel::open(scene.tunnel, &scene.shown).await.unwrap();
        assert_eq!(tunnel.status(&at(&scene.server, 7000).to_string()).await, 200);
    });
    // The way for plaintext: connections that say nothing reach the application, which is asked to bear what it always had to.
    let outsider = scene.cluster.pod("outsider");
    let held: HoldReport = run(
        &outsider.place(),
        &["hold", &at(&scene.server, 7003).to_string(), "--connections", "500", "--seconds", "1"],
        Duration::from_secs(60),
    )
    .unwrap();
    assert_eq!((held.opened, held.alive), (500, 500));
    scene.others_are_served("many that say nothing in plaintext");
    scene.unharmed(pids);
}

#[test]
fn who_stops_reading_is_waited_for_by_nobody_else() {
    let scene = scene("stall");
    let pids = scene.pids();
    let (resident, _) = scene.footprint("n2");
    let [resident_n1, _] = [scene.footprint("n1").0, 0];
    // Applications that never read, of our own client: what was sent stays with the sender.
    let stalled: Vec<Client> = (0..4)
        .map(|_| {
            scene.caller.spawn_peer(&["bulk", &at(&scene.server, 7001).to_string(), "--send", "200000000", "--timeout", "60"]).unwrap()
        })
        .collect();
    inside(&scene.caller, async {
        // A peer that never reads what an echo sends back; on the same tunnel another stream goes on.
        let mut tunnel = Tunnel::open_with(scene.tunnel, &scene.shown, 65_535).await.unwrap();
        let mut deaf = tunnel.connect(&at(&scene.server, 7000).to_string()).await.unwrap();
        let sent = deaf.send(&vec![b'x'; 64 << 20], Duration::from_secs(2)).await.unwrap();
        assert!(sent < 32 << 20, "{sent} bytes were taken of a peer that does not read");
        let mut other = tunnel.connect(&at(&scene.server, 7000).to_string()).await.unwrap();
        for round in 0..50u8 {
            other.send(&[round], LIMIT).await.unwrap();
            assert_eq!(other.receive(1).await.unwrap(), [round]);
        }
        // It may go on where it stopped.
        assert!(deaf.receive(sent.min(1 << 20)).await.unwrap().len() >= sent.min(1 << 20));

        // A peer that does not even read the answers of HTTP/2.
        let mut stream = tls(scene.tunnel, Some(&scene.shown), &[b"h2"]).await.unwrap();
        let flood = [PREFACE, SETTINGS, &frame(6, 0, 0, &[7; 8]).repeat(100_000)].concat();
        let _ = tokio::time::timeout(Duration::from_secs(3), stream.write_all(&flood)).await;
        scene.others_are_served("a peer that does not read");
        drop(stream);
    });
    scene.others_are_served("applications that do not read");
    for (node, before) in [("n1", resident_n1), ("n2", resident)] {
        let (after, _) = scene.footprint(node);
        assert!(after < before + 64 * 1024, "the agent of {node} grew from {before} KiB to {after} KiB");
    }
    drop(stalled);
    aborts_in_every_place(&scene);
    scene.unharmed(pids);
}

/// An application that aborts is an abort for the other, at any moment and in either direction.
fn aborts_in_every_place(scene: &Scene) {
    let sink = scene.server.serve("sink", 7050).unwrap();
    let resetting = scene.server.serve("reset", 7051).unwrap();
    let ends = || sink.served().iter().filter_map(|served| served.end).collect::<Vec<_>>();
    for (i, words) in [&["--send", "x", "--hold", "100", "--reset"][..], &["--hold", "100", "--reset"]].iter().enumerate() {
        let to = at(&scene.server, 7050).to_string();
        let report: Report = scene.caller.peer(&[&["connect", to.as_str()][..], words].concat(), LIMIT).unwrap();
        assert!(report.connected, "{report:?}");
        wait_until("the abort at the application", SOON, || ends().iter().filter(|end| **end == End::Reset).count() == i + 1)
            .unwrap_or_else(|error| panic!("{words:?}: {error}: {:?}", ends()));
    }
    let report = scene.caller.connect(at(&scene.server, 7051), "x").unwrap();
    assert_eq!(report.end, End::Reset, "{report:?}");
    assert_eq!(resetting.accepted(), 1);
    // An application that is killed in mid-transfer.
    let mut victim = scene.server.serve("echo", 7052).unwrap();
    let ticking = scene.caller.spawn_peer(&["tick", &at(&scene.server, 7052).to_string(), "--interval", "10"]).unwrap();
    wait_until("rounds", LIMIT, || ticking.ticks() > 2).unwrap();
    victim.process.kill();
    let report: Report = ticking.finish(SOON).unwrap();
    assert!(matches!(report.end, End::Reset | End::Eof), "{report:?}");
    // A peer's tunnel that is cut: its streams are aborts for the application, never an end in order.
    let before = ends().len();
    inside(&scene.caller, async {
        let mut stream = tls(scene.tunnel, Some(&scene.shown), &[b"h2"]).await.unwrap();
        let target = at(&scene.server, 7050).to_string();
        let headers = [&[0x02, 7][..], b"CONNECT", &[0x01, u8::try_from(target.len()).unwrap()], target.as_bytes()].concat();
        let bytes = [PREFACE, SETTINGS, &frame(1, 4, 1, &headers), &frame(0, 0, 1, b"half of it")].concat();
        stream.write_all(&bytes).await.unwrap();
        let mut byte = [0; 64];
        // Until the request is answered.
        for _ in 0..3 {
            let _ = tokio::time::timeout(Duration::from_millis(300), stream.read(&mut byte)).await;
        }
        socket2::SockRef::from(stream.get_ref().0).set_linger(Some(Duration::ZERO)).unwrap();
        drop(stream);
    });
    wait_until("the cut at the application", SOON, || ends().len() == before + 1).unwrap();
    assert_eq!(ends().pop(), Some(End::Reset));
    // And an orderly end of a stream is none.
    inside(&scene.caller, async {
        let mut tunnel = Tunnel::open(scene.tunnel, &scene.shown).await.unwrap();
        let mut stream = tunnel.request(connect(&at(&scene.server, 7050).to_string())).await.unwrap();
        stream.up.send_data(Bytes::from_static(b"all of it"), true).unwrap();
        assert_eq!(stream.receive(usize::MAX).await.unwrap(), b"{\"bytes\":9}\n");
    });
    wait_until("the end at the application", SOON, || ends().len() == before + 2).unwrap();
    assert_eq!(ends().pop(), Some(End::Eof));
}
