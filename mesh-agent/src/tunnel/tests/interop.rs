//! Against an HBONE peer that shares nothing with the agent: tokio-rustls and the HTTP/2 library, driven as Istio's ambient data plane drives
//! them. Both directions, and the odd requests that a correct client never makes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use mesh_model::identity::Identity;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;

use super::world::*;
use crate::conn::TunnelAddr;
use crate::outcome::Side;
use crate::tunnel::tls::provider;
use crate::tunnel::verify::{Acceptable, PeerVerifier};
use crate::tunnel::{Refusal, Settings, TunnelError};
use crate::upstream::copy::How;

/// ztunnel's suites: no ChaCha20.
fn suites() -> Arc<rustls::crypto::CryptoProvider> {
    use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
    Arc::new(rustls::crypto::CryptoProvider {
        cipher_suites: vec![cipher_suite::TLS13_AES_256_GCM_SHA384, cipher_suite::TLS13_AES_128_GCM_SHA256],
        kx_groups: vec![kx_group::X25519],
        ..default_provider()
    })
}

struct Peer {
    send: h2::client::SendRequest<Bytes>,
}

impl Peer {
    async fn connect(ca: &Ca, agent: &Agent, who: &Identity) -> Peer {
        let verifier = PeerVerifier::new(ca.roots(), provider().signature_verification_algorithms, Acceptable::Identities([bob()].into()));
        let mut config = ClientConfig::builder_with_provider(suites())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(ca.key(&Leaf::of(who)))));
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.enable_sni = false;
        let tcp = TcpStream::connect(agent.address.0).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let tls = connector.connect(ServerName::from(agent.address.0.ip()), tcp).await.unwrap();
        assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let (send, connection) = h2::client::Builder::new()
            .initial_window_size(4 << 20)
            .initial_connection_window_size(16 << 20)
            .max_frame_size(1 << 20)
            .enable_push(false)
            .handshake(tls)
            .await
            .unwrap();
        spawn_local(async move { drop(connection.await) });
        Peer { send }
    }

    async fn ask(&self, request: Request<()>) -> Result<(Response<RecvStream>, SendStream<Bytes>), h2::Error> {
        let (response, send) = self.send.clone().ready().await?.send_request(request, false)?;
        Ok((response.await?, send))
    }

    async fn connect_to(&self, authority: &str) -> (Response<RecvStream>, SendStream<Bytes>) {
        self.ask(connect(authority)).await.unwrap()
    }
}

fn connect(authority: &str) -> Request<()> {
    Request::builder().method(Method::CONNECT).uri(authority).version(Version::HTTP_2).body(()).unwrap()
}

async fn world(settings: Settings) -> (Ca, App, Agent) {
    let ca = Ca::new();
    let app = App::at(echo().await);
    let agent = Agent::start(&app, ca.credentials(&bob()), settings).await;
    (ca, app, agent)
}

async fn read_all(recv: &mut RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut all = Vec::new();
    while let Some(data) = recv.data().await {
        let data = data?;
        recv.flow_control().release_capacity(data.len()).unwrap();
        all.extend_from_slice(&data);
    }
    Ok(all)
}

#[test]
fn a_foreign_client_is_served() {
    run(async {
        let (ca, app, agent) = world(Settings::default()).await;
        let peer = Peer::connect(&ca, &agent, &alice()).await;
        let mut request = connect("127.0.0.1:80");
        let headers = request.headers_mut();
        headers.insert("baggage", "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=alice".parse().unwrap());
        headers.insert("forwarded", "for=\"10.9.8.7:1234\";host=web.shop.svc.cluster.local".parse().unwrap());
        headers.insert("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00".parse().unwrap());
        let (response, mut send) = peer.ask(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["baggage"], "k8s.namespace.name=shop");
        let mut recv = response.into_body();
        send.send_data(Bytes::from_static(b"hello"), false).unwrap();
        assert_eq!(recv.data().await.unwrap().unwrap(), "hello");
        // FIN is an empty DATA with END_STREAM, in both directions.
        send.send_data(Bytes::new(), true).unwrap();
        assert!(read_all(&mut recv).await.unwrap().is_empty());
        assert_eq!(app.ended_all(1).await[0].how, How::Eof);
        let asked = &app.asked()[0];
        assert_eq!(asked.client.unwrap().to_string(), "10.9.8.7:1234");
        assert_eq!(asked.host.as_deref(), Some("web.shop.svc.cluster.local"));
        assert_eq!(asked.peer, alice());
    });
}

#[test]
fn refusals_are_what_hbone_says() {
    run(async {
        let (ca, app, agent) = world(Settings::default()).await;
        app.judge(|incoming| match incoming.server.0.port() {
            81 => Err(Refusal::new(StatusCode::UNAUTHORIZED, "policy")),
            82 => Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "nobody listens")),
            _ => Ok(()),
        });
        let peer = Peer::connect(&ca, &agent, &alice()).await;
        let cases = [
            ("127.0.0.1:81", 401),
            ("127.0.0.1:82", 503),
            // Another pod's address: this connection leads to its own destination only.
            ("127.0.0.2:80", 400),
            ("10.1.2.3:80", 400),
            ("[::1]:80", 400),
            ("web.shop.svc.cluster.local:80", 400),
            ("127.0.0.1:15001", 503),
            ("127.0.0.1:15006", 503),
            ("127.0.0.1:15008", 503),
            ("127.0.0.1:0", 400),
            ("127.0.0.1:99999", 400),
        ];
        for (authority, status) in cases {
            let (response, mut send) = peer.connect_to(authority).await;
            assert_eq!(response.status().as_u16(), status, "{authority}");
            assert!(response.headers().contains_key("nodemesh-reason"));
            assert!(response.body().is_end_stream(), "{authority}: HEADERS must end the stream");
            // And the rest of the request is not wanted, without blame.
            let reset = std::future::poll_fn(|cx| send.poll_reset(cx)).await.unwrap();
            assert_eq!(reset, Reason::NO_ERROR, "{authority}");
        }
        let (response, _) = peer.ask(Request::builder().method("GET").uri("http://127.0.0.1:80/").body(()).unwrap()).await.unwrap();
        assert_eq!(response.status(), 400);
        // No port. The library takes it for a malformed CONNECT on either side, or it is refused; it never passes.
        if let Ok((response, _)) = peer.ask(connect("127.0.0.1")).await {
            assert_eq!(response.status(), 400);
        }
        assert_eq!(app.asked().len(), 2);
        // The mapped form is the same address.
        let (response, _) = peer.connect_to("[::ffff:127.0.0.1]:80").await;
        assert_eq!(response.status(), 200);
    });
}

#[test]
fn an_abort_is_a_reset_with_cancel_and_the_other_way_round() {
    run(async {
        let (ca, app, agent) = world(Settings::default()).await;
        let peer = Peer::connect(&ca, &agent, &alice()).await;
        let (response, mut send) = peer.connect_to("127.0.0.1:80").await;
        let mut recv = response.into_body();
        send.send_data(Bytes::from_static(b"x"), false).unwrap();
        recv.data().await.unwrap().unwrap();
        send.send_reset(Reason::CANCEL);
        assert_eq!(app.ended_all(1).await[0].how, How::Reset(Side::Client));

        let (response, mut send) = peer.connect_to("127.0.0.1:80").await;
        let mut recv = response.into_body();
        send.send_data(Bytes::from_static(b"x"), false).unwrap();
        recv.data().await.unwrap().unwrap();
        app.cancel();
        let error = recv.data().await.unwrap().unwrap_err();
        assert_eq!(error.reason(), Some(Reason::CANCEL));
        // The connection goes on.
        let (_response, _send) = peer.connect_to("127.0.0.1:80").await;
    });
}

#[test]
fn streams_beyond_the_limit_wait_and_stalled_ones_hold_up_nobody() {
    run(async {
        let (ca, _app, agent) = world(Settings { max_streams: 20, ..Settings::default() }).await;
        let peer = Peer::connect(&ca, &agent, &alice()).await;
        let mut open = Vec::new();
        for _ in 0..20 {
            open.push(peer.connect_to("127.0.0.1:80").await);
        }
        let beyond = tokio::time::timeout(Duration::from_millis(200), peer.connect_to("127.0.0.1:80")).await;
        assert!(beyond.is_err(), "the 21st must wait");
        // Nineteen read nothing of what the application sends back; the twentieth goes on.
        for (_, send) in &mut open[..19] {
            let _ = send.send_data(Bytes::from(vec![1; 256 << 10]), false);
        }
        let (response, mut send) = open.pop().unwrap();
        let mut recv = response.into_body();
        send.send_data(Bytes::from_static(b"still"), true).unwrap();
        let answer = tokio::time::timeout(Duration::from_secs(5), read_all(&mut recv)).await.unwrap().unwrap();
        assert_eq!(answer, b"still");
    });
}

#[test]
fn huge_headers_and_rapid_resets_end_the_offender_only() {
    run(async {
        let (ca, app, agent) = world(Settings::default()).await;
        let peer = Peer::connect(&ca, &agent, &alice()).await;
        let mut request = connect("127.0.0.1:80");
        for i in 0..60 {
            let name = http::HeaderName::from_bytes(format!("x-{i}").as_bytes()).unwrap();
            request.headers_mut().insert(name, "y".repeat(1000).parse().unwrap());
        }
        match peer.ask(request).await {
            Ok((response, _)) => assert!(response.status().is_client_error(), "{}", response.status()),
            Err(error) => assert!(error.is_reset() || error.is_go_away() || error.is_io(), "{error}"),
        }
        let flooder = Peer::connect(&ca, &agent, &identity("cluster.local/ns/shop/sa/flooder")).await;
        for _ in 0..3000 {
            let Ok(mut ready) = flooder.send.clone().ready().await else { break };
            let Ok((_, mut send)) = ready.send_request(connect("127.0.0.1:80"), false) else { break };
            send.send_reset(Reason::CANCEL);
            tokio::task::yield_now().await;
        }
        let other = Peer::connect(&ca, &agent, &alice()).await;
        let (response, _) = other.connect_to("127.0.0.1:80").await;
        assert_eq!(response.status(), 200);
        drop(app);
    });
}

/// A serving side as ztunnel's: answers each CONNECT by `answer`, and echoes.
async fn foreign_server(ca: &Ca, answer: impl Fn(&HeaderMap, &str) -> StatusCode + 'static) -> TunnelAddr {
    let verifier = PeerVerifier::new(
        ca.roots(),
        provider().signature_verification_algorithms,
        Acceptable::TrustDomains(["cluster.local".parse().unwrap()].into()),
    );
    let mut config = ServerConfig::builder_with_provider(suites())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(ca.key(&Leaf::of(&bob())))));
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = TunnelAddr(listener.local_addr().unwrap());
    let answer = std::rc::Rc::new(answer);
    spawn_local(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let (acceptor, answer) = (acceptor.clone(), answer.clone());
            spawn_local(async move {
                let tls = acceptor.accept(tcp).await.unwrap();
                let mut http = h2::server::Builder::new()
                    .initial_window_size(4 << 20)
                    .initial_connection_window_size(16 << 20)
                    .max_frame_size(1 << 20)
                    .max_concurrent_streams(200)
                    .handshake(tls)
                    .await
                    .unwrap();
                while let Some(Ok((request, mut respond))) = http.accept().await {
                    assert_eq!(request.method(), Method::CONNECT);
                    let status = answer(request.headers(), request.uri().authority().unwrap().as_str());
                    let response = Response::builder().status(status).header("baggage", "k8s.namespace.name=shop").body(()).unwrap();
                    if status != StatusCode::OK {
                        respond.send_response(response, true).unwrap();
                        continue;
                    }
                    let mut send = respond.send_response(response, false).unwrap();
                    let mut recv = request.into_body();
                    spawn_local(async move {
                        while let Some(data) = recv.data().await {
                            let Ok(data) = data else { return };
                            let _ = recv.flow_control().release_capacity(data.len());
                            if data.as_ref() == b"reset me" {
                                send.send_reset(Reason::CANCEL);
                                return;
                            }
                            let _ = send.send_data(data, false);
                        }
                        let _ = send.send_data(Bytes::new(), true);
                    });
                }
            });
        }
    });
    address
}

#[test]
fn a_foreign_server_is_spoken_to_as_it_expects() {
    run(async {
        let ca = Ca::new();
        let seen = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
        let tape = seen.clone();
        let address = foreign_server(&ca, move |headers, authority| {
            tape.borrow_mut().push((headers.clone(), authority.to_owned()));
            StatusCode::OK
        })
        .await;
        // It knows nothing of our own protocol; ALPN settles it.
        let client = Client::new(address, ca.credentials(&alice()), &[bob()], Settings::default());
        let data: Vec<u8> = (0..6_000_000u32).map(|i| i as u8).collect();
        let (answer, end) = client.dial().await.exchange(&data).await;
        assert!(answer == data);
        assert_eq!(end.unwrap().how, How::Eof);
        let (headers, authority) = seen.borrow()[0].clone();
        assert_eq!(authority, "127.0.0.1:80");
        assert_eq!(headers["forwarded"], "for=\"10.1.2.3:45678\";host=web.shop.svc.cluster.local");
        assert_eq!(headers["baggage"], "k8s.namespace.name=shop,service.name=alice");
        assert!(headers.contains_key("traceparent"));
        for _ in 0..20 {
            assert_eq!(client.dial().await.exchange(b"again").await.0, b"again");
        }
        assert_eq!(client.dials.get(), 1);
        let mut reset = client.dial().await;
        tokio::io::AsyncWriteExt::write_all(&mut reset.app, b"reset me").await.unwrap();
        let error = tokio::io::AsyncReadExt::read(&mut reset.app, &mut [0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        assert_eq!(reset.end().await.unwrap().how, How::Reset(Side::Server));
    });
}

#[test]
fn refusals_of_a_foreign_server_are_reported() {
    run(async {
        let ca = Ca::new();
        let address = foreign_server(&ca, |_, _| StatusCode::UNAUTHORIZED).await;
        let client = Client::new(address, ca.credentials(&alice()), &[bob()], Settings::default());
        for _ in 0..3 {
            let (_, end) = client.dial().await.exchange(b"x").await;
            assert_eq!(end.unwrap_err(), TunnelError::Refused(Refusal::new(StatusCode::UNAUTHORIZED, "")));
        }
        assert_eq!(client.dials.get(), 1);
    });
}
