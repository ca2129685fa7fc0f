//! Peers that send what they should not, too much of it, or too little. Others are served meanwhile.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::world::*;
use crate::tunnel::server::ServeError;
use crate::tunnel::tls::{self, ALPN_HBONE, ALPN_OWN};
use crate::tunnel::verify::{Acceptable, PeerVerifier};
use crate::tunnel::wire::{Frame, Open, data_header};
use crate::tunnel::{HandshakeError, Settings};

/// A TLS client with alice's certificate, by another TLS stack than the agent's record layer.
async fn connect(ca: &Ca, agent: &Agent, alpn: &[u8]) -> TlsStream<TcpStream> {
    let provider = tls::provider();
    let verifier = PeerVerifier::new(ca.roots(), provider.signature_verification_algorithms, Acceptable::Identities([bob()].into()));
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(ca.key(&Leaf::of(&alice())))));
    config.alpn_protocols = vec![alpn.to_vec()];
    let tcp = TcpStream::connect(agent.address.0).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(ServerName::from(agent.address.0.ip()), tcp).await.unwrap()
}

struct World {
    ca: Ca,
    app: App,
    agent: Agent,
    client: Client,
}

impl World {
    async fn new(settings: Settings) -> World {
        let ca = Ca::new();
        let app = App::at(echo().await);
        let agent = Agent::start(&app, ca.credentials(&bob()), settings).await;
        let client = Client::new(agent.address, ca.credentials(&alice()), &[bob()], Settings::default());
        World { ca, app, agent, client }
    }

    /// Honest peers are served as if nothing were the matter.
    async fn still_serves(&self) {
        for own_protocol in [true, false] {
            let settings = Settings { own_protocol, ..Settings::default() };
            let client = Client::new(self.agent.address, self.client.credentials.borrow().clone().unwrap(), &[bob()], settings);
            let (answer, end) = client.dial().await.exchange(b"honest").await;
            assert_eq!(answer, b"honest", "{end:?}");
        }
    }
}

#[test]
fn bytes_that_are_no_tls_are_refused_at_once() {
    run(async {
        let world = World::new(Settings::default()).await;
        let mut oversized = vec![22, 3, 1, 0x40, 0];
        oversized.resize(5 + 0x4000, 0);
        let inputs: [&[u8]; 6] = [
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            &[0; 100],
            &[0xff; 5000],
            &[22, 3, 1, 0, 4, 1, 0, 0, 0],
            &oversized,
        ];
        for input in inputs {
            let mut tcp = TcpStream::connect(world.agent.address.0).await.unwrap();
            tcp.write_all(input).await.unwrap();
            let mut answer = Vec::new();
            let _ = tokio::time::timeout(Duration::from_secs(5), tcp.read_to_end(&mut answer)).await.expect("it must be closed at once");
        }
        until(|| world.agent.results.borrow().len() == 6).await;
        assert!(world.agent.results.borrow().iter().all(|result| matches!(result, Err(ServeError::Handshake(_)))));
        world.still_serves().await;
    });
}

#[test]
fn a_handshake_cut_off_anywhere_ends_cleanly() {
    run(async {
        let world = World::new(Settings { server_handshake_timeout: Duration::from_millis(300), ..Settings::default() }).await;
        // What an honest client says, recorded.
        let (recorded, to) = (Rc::new(std::cell::RefCell::new(Vec::new())), world.agent.address.0);
        let tape = recorded.clone();
        let recorder = application(move |mut tcp| {
            let tape = tape.clone();
            async move {
                let mut far = TcpStream::connect(to).await.unwrap();
                let (mut read, mut write) = tcp.split();
                let (mut far_read, mut far_write) = far.split();
                let forth = async {
                    let mut buffer = [0; 4096];
                    while let Ok(n) = read.read(&mut buffer).await
                        && n > 0
                    {
                        tape.borrow_mut().extend_from_slice(&buffer[..n]);
                        far_write.write_all(&buffer[..n]).await.unwrap();
                    }
                };
                tokio::select! { () = forth => {}, _ = tokio::io::copy(&mut far_read, &mut write) => {} }
            }
        })
        .await;
        let client = Client::new(
            crate::conn::TunnelAddr(recorder),
            world.client.credentials.borrow().clone().unwrap(),
            &[bob()],
            Settings::default(),
        );
        client.dial().await.exchange(b"x").await.1.unwrap();
        let tape = recorded.borrow().clone();
        let before = world.agent.results.borrow().len();
        let cuts: Vec<usize> = (0..tape.len()).step_by(37).chain([1, 4, 5, 6, tape.len()]).collect();
        for cut in &cuts {
            // A replay: the server's random differs, so it fails wherever the handshake is bound to it.
            let mut tcp = TcpStream::connect(world.agent.address.0).await.unwrap();
            let _ = tcp.write_all(&tape[..*cut]).await;
            let _ = tcp.shutdown().await;
        }
        until(|| world.agent.results.borrow().len() == before + cuts.len()).await;
        assert_eq!(world.app.asked().len(), 1);
        world.still_serves().await;
    });
}

#[test]
fn handshakes_that_never_end_are_ended() {
    run(async {
        let world = World::new(Settings { server_handshake_timeout: Duration::from_millis(200), ..Settings::default() }).await;
        let mut silent = TcpStream::connect(world.agent.address.0).await.unwrap();
        assert_eq!(world.agent.first_result().await, Err(ServeError::Handshake(HandshakeError::TimedOut)));
        assert_eq!(silent.read(&mut [0; 1]).await.unwrap(), 0);
    });
}

#[test]
fn thousands_of_half_open_connections_lock_nobody_out() {
    run(async {
        let world = World::new(Settings { max_handshakes: 64, ..Settings::default() }).await;
        let mut half_open = Vec::new();
        for i in 0..5000 {
            let Ok(tcp) = TcpStream::connect(world.agent.address.0).await else { break };
            if i % 3 == 0 {
                let _ = tcp.try_write(&[22, 3, 1, 2, 0, 1]);
            }
            half_open.push(tcp);
        }
        assert!(half_open.len() > 1000, "the machine allows too few descriptors: {}", half_open.len());
        world.still_serves().await;
        let open = world.agent.counters.server.open.get();
        assert!(open < 80, "{open}");
        let crowded = world.agent.results.borrow().iter().filter(|r| **r == Err(ServeError::Handshake(HandshakeError::Crowded))).count();
        assert!(crowded > 900, "{crowded}");
    });
}

#[test]
fn half_open_connections_to_one_pod_cost_no_other_its_own() {
    run(async {
        let settings = Settings { max_handshakes: 16, max_pod_handshakes: 4, ..Settings::default() };
        let world = World::new(settings.clone()).await;
        let flooded = Agent::start(&world.app, world.ca.credentials(&bob()), settings).await;
        let mut slow = TcpStream::connect(world.agent.address.0).await.unwrap();
        until(|| world.agent.counters.server.open.get() == 1).await;
        let mut half_open = Vec::new();
        for _ in 0..100 {
            half_open.push(TcpStream::connect(flooded.address.0).await.unwrap());
        }
        until(|| flooded.counters.server.connections.get() == 100 && flooded.counters.server.open.get() == 4).await;
        assert_eq!(*world.agent.results.borrow(), []);
        assert!(slow.try_read(&mut [0; 1]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock));
        slow.shutdown().await.unwrap();
    });
}

fn encoded(frames: &[Frame]) -> Vec<u8> {
    let mut out = Vec::new();
    frames.iter().for_each(|frame| frame.encode(&mut out));
    out
}

#[test]
fn frames_out_of_place_end_the_connection_and_reach_nobody() {
    run(async {
        let world = World::new(Settings::default()).await;
        let open = Frame::Open(Open { port: 80, ..Open::default() });
        let mut early = data_header(5).to_vec();
        early.extend(b"early");
        let mut twice = encoded(&[open.clone(), open.clone()]);
        twice.extend(b"");
        let cases: Vec<(Vec<u8>, usize)> = vec![
            (vec![0, 0, 0, 0], 0),
            (vec![99, 0, 0, 0], 0),
            (vec![2, 0xff, 0xff, 0xff], 0),
            (vec![2, 0, 0, 1, 7], 0),
            (early, 0),
            (encoded(&[Frame::Fin { delivered: 0 }]), 0),
            (encoded(&[Frame::Ready]), 0),
            (encoded(&[Frame::Accept { baggage: None }]), 0),
            (twice, 1),
            (encoded(&[open.clone(), Frame::Ready]), 1),
        ];
        for (bytes, asked) in cases {
            let before = world.app.asked().len();
            let mut tls = connect(&world.ca, &world.agent, ALPN_OWN).await;
            tls.write_all(&bytes).await.unwrap();
            tls.flush().await.unwrap();
            let mut answer = Vec::new();
            let _ = tokio::time::timeout(Duration::from_secs(5), tls.read_to_end(&mut answer)).await.expect("it must be closed");
            assert_eq!(world.app.asked().len() - before, asked, "{bytes:?}");
        }
        world.still_serves().await;
    });
}

#[test]
fn random_bytes_in_tls_never_bring_the_agent_down() {
    run(async {
        let world = World::new(Settings { server_handshake_timeout: Duration::from_secs(1), ..Settings::default() }).await;
        let mut random = StdRng::seed_from_u64(7);
        for round in 0..60 {
            let alpn = if round % 2 == 0 { ALPN_OWN } else { ALPN_HBONE };
            let mut bytes = vec![0; random.random_range(1..3000)];
            random.fill(&mut bytes[..]);
            if round % 3 == 0 {
                bytes[0] %= 12;
                bytes[1] = 0;
            }
            if alpn == ALPN_HBONE && round % 4 == 1 {
                bytes.splice(..0, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".iter().copied());
            }
            let mut tls = connect(&world.ca, &world.agent, alpn).await;
            let _ = tls.write_all(&bytes).await;
            let _ = tls.shutdown().await;
            let _ = tokio::time::timeout(Duration::from_secs(5), tls.read_to_end(&mut Vec::new())).await.expect("it must be closed");
        }
        assert!(world.app.asked().len() <= 3);
        world.still_serves().await;
    });
}

#[test]
fn our_own_ports_and_port_0_are_refused() {
    run(async {
        let world = World::new(Settings::default()).await;
        for (port, status) in [(15_001, 503), (15_006, 503), (15_008, 503), (0, 400)] {
            for own_protocol in [true, false] {
                let settings = Settings { own_protocol, ..Settings::default() };
                let client = Client::new(world.agent.address, world.client.credentials.borrow().clone().unwrap(), &[bob()], settings);
                let mut request = client.request();
                request.target.set_port(port);
                let (_near, far) = pair().await;
                let result = match client.pools.open(client.key.clone(), request).await {
                    Ok(stream) => stream.relay(far, &Default::default(), std::future::pending()).await.map(drop),
                    Err(error) => Err(error),
                };
                match result {
                    Err(crate::tunnel::TunnelError::Refused(refusal)) => assert_eq!(refusal.status.as_u16(), status, "{port}"),
                    other => panic!("{other:?}"),
                }
            }
        }
        assert!(world.app.asked().is_empty());
        assert_eq!(world.app.rejected().len(), 8);
    });
}

#[test]
fn data_that_floods_a_stream_not_yet_judged_is_not_read() {
    run(async {
        let world = World::new(Settings::default()).await;
        world.app.delay(Duration::from_secs(3600));
        let mut tls = connect(&world.ca, &world.agent, ALPN_OWN).await;
        tls.write_all(&encoded(&[Frame::Open(Open { port: 80, ..Open::default() })])).await.unwrap();
        let chunk = Bytes::from(vec![0; 64 << 10]);
        let mut taken = 0;
        loop {
            let piece = async {
                tls.write_all(&data_header(chunk.len())).await?;
                tls.write_all(&chunk).await?;
                tls.flush().await
            };
            match tokio::time::timeout(Duration::from_millis(300), piece).await {
                Ok(result) => result.unwrap(),
                Err(_) => break,
            }
            taken += chunk.len();
            assert!(taken < 64 << 20, "the agent swallows all of it");
        }
        world.app.delay(Duration::ZERO);
        world.still_serves().await;
    });
}

#[test]
fn keys_are_renewed_when_the_peer_asks_again_and_again() {
    run(async {
        let world = World::new(Settings::default()).await;
        let mut tls = connect(&world.ca, &world.agent, ALPN_OWN).await;
        let mut ready = [0; 4];
        tls.read_exact(&mut ready).await.unwrap();
        tls.write_all(&encoded(&[Frame::Open(Open { port: 80, accept_at_once: true, ..Open::default() })])).await.unwrap();
        let mut accept = vec![0; encoded(&[Frame::Accept { baggage: Some("k8s.namespace.name=shop".into()) }]).len()];
        tls.read_exact(&mut accept).await.unwrap();
        for round in 0..20u8 {
            // The library asks for the other side's renewal too, and opens nothing that comes under an old key after it.
            tls.get_mut().1.refresh_traffic_keys().unwrap();
            let mut message = data_header(1000).to_vec();
            message.extend([round; 1000]);
            tls.write_all(&message).await.unwrap();
            tls.flush().await.unwrap();
            let mut echoed = Vec::new();
            while echoed.len() < 1000 {
                let mut head = [0; 4];
                tls.read_exact(&mut head).await.unwrap();
                let mut piece = vec![0; u32::from_be_bytes([0, head[1], head[2], head[3]]) as usize];
                tls.read_exact(&mut piece).await.unwrap();
                echoed.extend(piece);
            }
            assert_eq!(echoed, [round; 1000]);
        }
        drop(tls);
        world.still_serves().await;
    });
}
