use std::convert::Infallible;
use std::path::Path;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http_body_util::StreamBody;
use hyper::body::Frame;
use mesh_proto::ca::IstioCertificateRequest;
use mesh_proto::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use mesh_proto::nodemesh::keys_client::KeysClient;
use mesh_proto::nodemesh::{FetchKeysRequest, KnownKeys};
use mesh_sources::SourceSettings;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request};

use super::*;
use crate::ca::keeper::CaSource;
use crate::ca::lifetime::Lifetimes;
use crate::ca::service::ServiceLimits;
use crate::ca::testing::{certificates, csr};
use crate::log::LogFormat;
use crate::server::ServerLimits;

const ID: &str = "spiffe://cluster.local/ns/shop/sa/cart";
const TOKEN: &str = "token-of-node-1-abcdef";

fn config(dir: &Path) -> Config {
    std::fs::create_dir_all(dir.join("tokens")).unwrap();
    std::fs::create_dir_all(dir.join("manifests")).unwrap();
    std::fs::write(dir.join("tokens/node-1"), TOKEN).unwrap();
    std::fs::write(
        dir.join("manifests/pods.yaml"),
        "apiVersion: v1\nkind: Pod\nmetadata: {name: cart, namespace: shop, labels: {nodemesh.dev/mesh: enabled}}\n\
         spec: {serviceAccountName: cart, nodeName: node-1, containers: [{name: c}]}\nstatus: {podIP: 10.0.0.1}\n",
    )
    .unwrap();
    let hour = Duration::from_secs(3600);
    Config {
        objects: None,
        lease: None,
        advertise: None,
        listen: "127.0.0.1:0".parse().unwrap(),
        admin: "127.0.0.1:0".parse().unwrap(),
        agents: AgentProof::NodeTokens(dir.join("tokens")),
        mesh: SourceSettings::Manifests(dir.join("manifests")),
        names: vec![ServerName::Ip([127, 0, 0, 1].into())],
        source: CaSource::default(),
        bundle_out: Some(dir.join("root.pem")),
        lifetimes: Lifetimes { default: hour, max: hour },
        keys: crate::config::KeySettings::default(),
        server: ServerLimits { handshake: Duration::from_millis(300), idle: Duration::from_millis(900), ..ServerLimits::default() },
        service: ServiceLimits::default(),
        log_level: "info".into(),
        log_format: LogFormat::Text,
    }
}

async fn channel(control: &Control) -> Channel {
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(control.authority().roots_pem())).domain_name("127.0.0.1");
    let endpoint = Endpoint::from_shared(format!("https://{}", control.ca_address())).unwrap().tls_config(tls).unwrap();
    endpoint.connect().await.unwrap()
}

async fn client(control: &Control) -> IstioCertificateServiceClient<Channel> {
    IstioCertificateServiceClient::new(channel(control).await)
}

fn request(csr: String) -> Request<IstioCertificateRequest> {
    let mut request = Request::new(IstioCertificateRequest { csr, validity_duration: 60, metadata: None });
    request.metadata_mut().insert("authorization", format!("Bearer {TOKEN}").parse().unwrap());
    request
}

async fn good(client: &mut IstioCertificateServiceClient<Channel>) {
    let csr = csr(&KeyPair::generate().unwrap(), &[ID]);
    let chain = client.create_certificate(request(csr)).await.unwrap().into_inner().cert_chain;
    assert_eq!(chain.len(), 3);
}

async fn scrape(control: &Control, path: &str) -> String {
    let mut stream = TcpStream::connect(control.admin_address()).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

/// Waits for a condition, at most ten seconds.
async fn until(mut done: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it did not come true");
}

#[tokio::test]
async fn serves_over_tls_and_tells_operators() {
    let dir = tempfile::tempdir().unwrap();
    let control = Control::start(config(dir.path())).await.unwrap();
    assert_eq!(certificates(&std::fs::read_to_string(dir.path().join("root.pem")).unwrap()), control.authority().roots());
    let mut client = client(&control).await;
    good(&mut client).await;
    let metrics = scrape(&control, "/metrics").await;
    for line in [
        "nodemesh_ca_certificates_issued_total 1",
        "nodemesh_ca_nodes 1",
        "nodemesh_ca_identities 1",
        "nodemesh_ca_certificate_expiration_timestamp_seconds{certificate=\"intermediate\"}",
        "nodemesh_ca_connections_open 1",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
    assert!(scrape(&control, "/healthz/ready").await.starts_with("HTTP/1.1 200"));
    std::fs::remove_file(dir.path().join("tokens/node-1")).unwrap();
    until(|| control.metrics().nodes.get() == 0).await;
    let ready = scrape(&control, "/healthz/ready").await;
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("node tokens: no node has one"), "{ready}");
}

#[tokio::test]
async fn a_huge_message_is_refused_before_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let control = Control::start(config(dir.path())).await.unwrap();
    let mut client = client(&control).await;
    let status = client.create_certificate(request("x".repeat(10 << 20))).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    let metrics = control.metrics();
    assert_eq!(metrics.refusals("too_large"), 1);
    good(&mut client).await;
}

/// Calls with the beginning of a message whose end never comes, and waits for the status at most five seconds, half of what a request has.
async fn begin(mut channel: Channel, path: &str, token: Option<&str>) -> String {
    let mut begun = vec![0, 0, 0, 0x3e, 0x80];
    begun.resize(1000, 0);
    let frames = stream::iter([Ok::<_, Infallible>(Frame::data(Bytes::from(begun)))]).chain(stream::pending());
    let mut request = http::Request::post(path).header("content-type", "application/grpc");
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let request = request.body(tonic::body::Body::new(StreamBody::new(frames))).unwrap();
    std::future::poll_fn(|cx| tower_service::Service::poll_ready(&mut channel, cx)).await.unwrap();
    let answered = tokio::time::timeout(Duration::from_secs(5), tower_service::Service::call(&mut channel, request)).await;
    let response = answered.expect("a status before the message has come").unwrap();
    response.headers()["grpc-status"].to_str().unwrap().to_owned()
}

const FETCH: &str = "/nodemesh.v1.Keys/Fetch";

#[tokio::test]
async fn of_whoever_shows_no_token_nothing_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let control = Control::start(config(dir.path())).await.unwrap();
    let channel = channel(&control).await;
    for path in [FETCH, "/nodemesh.v1.Budgets/Lend", "/istio.v1.auth.IstioCertificateService/CreateCertificate"] {
        for token in [None, Some("token-of-nobody-at-all")] {
            assert_eq!(begin(channel.clone(), path, token).await, "16", "UNAUTHENTICATED: {path}");
        }
    }
    let metrics = control.metrics();
    for reason in ["no_token", "unknown_token"] {
        assert_eq!((metrics.refusals(reason), metrics.calls("keys", reason), metrics.calls("budgets", reason)), (1, 1, 1), "{reason}");
    }
}

#[tokio::test]
async fn a_node_has_few_calls_for_keys_at_once_and_the_newest_count() {
    let dir = tempfile::tempdir().unwrap();
    let control = Control::start(config(dir.path())).await.unwrap();
    let (channel, metrics) = (channel(&control).await, control.metrics());
    let mut calls = Vec::new();
    for count in 1..=3 {
        calls.push(tokio::spawn(begin(channel.clone(), FETCH, Some(TOKEN))));
        until(|| metrics.calls("keys", "let_in") == count).await;
    }
    assert_eq!(calls.remove(0).await.unwrap(), "10", "ABORTED");
    assert!(calls.iter().all(|call| !call.is_finished()));
    assert_eq!(metrics.calls("keys", "overtaken"), 1);
    let mut client = KeysClient::new(channel);
    let mut ask = async |known: Vec<KnownKeys>| {
        let mut request = Request::new(FetchKeysRequest { known, wait_ms: 0 });
        request.metadata_mut().insert("authorization", format!("Bearer {TOKEN}").parse().unwrap());
        client.fetch(request).await.map(|answer| answer.into_inner().keys.len()).map_err(|status| status.code())
    };
    assert_eq!(ask(Vec::new()).await, Ok(0));
    assert_eq!(ask(vec![KnownKeys::default(); 501]).await, Err(Code::InvalidArgument));
    assert_eq!(ask(vec![KnownKeys::default(); 5000]).await, Err(Code::InvalidArgument), "refused before anything is made of it");
    assert_eq!((metrics.calls("keys", "malformed"), metrics.refusals("malformed")), (1, 1));
}

#[tokio::test]
async fn survives_garbage_and_silence_and_serves_others_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let control = Control::start(config(dir.path())).await.unwrap();
    let address = control.ca_address();
    let mut client = client(&control).await;
    // Before TLS: garbage, a plain HTTP request, an absurd record, nothing at all.
    for bytes in [&b"\x00\x01\x02garbage"[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\xff\xff\x01", b""] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut rest = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await;
        assert!(read.is_ok(), "the server ends the connection: {bytes:?}");
    }
    good(&mut client).await;
    // Inside TLS: garbage, a truncated frame, a frame of an absurd length, silence before and after the preface.
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let inside: [Vec<u8>; 5] = [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        [&preface[..], b"\x00\x00\x00\x04"].concat(),
        [&preface[..], b"\xff\xff\xff\x00\x00\x00\x00\x00\x01"].concat(),
        Vec::new(),
        preface.to_vec(),
    ];
    let mut roots = rustls::RootCertStore::empty();
    roots.add(control.authority().roots()[0].clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(tls));
    for bytes in inside {
        let stream = TcpStream::connect(address).await.unwrap();
        let mut stream = connector.connect("127.0.0.1".try_into().unwrap(), stream).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        let mut rest = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await;
        assert!(read.is_ok(), "the server ends the connection: {bytes:?}");
    }
    good(&mut client).await;
    let metrics = control.metrics();
    assert!(metrics.connections("handshake_failed") >= 3, "{}", metrics.text().unwrap());
    assert_eq!(metrics.connections("handshake_timeout"), 1);
    until(|| metrics.open.get() == 1).await;
}

#[tokio::test]
async fn one_address_cannot_take_every_place() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.server.per_address = 4;
    config.server.handshake = Duration::from_secs(30);
    let control = Control::start(config).await.unwrap();
    let mut held = Vec::new();
    for _ in 0..10 {
        held.push(TcpStream::connect(control.ca_address()).await.unwrap());
    }
    let metrics = control.metrics().clone();
    until(|| metrics.connections("too_many_from_address") == 6).await;
    drop(held);
    until(|| metrics.connections("handshake_failed") == 4).await;
    good(&mut client(&control).await).await;
}

#[tokio::test]
async fn an_unknown_method_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let control = Control::start(config(dir.path())).await.unwrap();
    let mut grpc = tonic::client::Grpc::new(channel(&control).await);
    grpc.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/istio.v1.auth.IstioCertificateService/Nonsense");
    let codec = tonic_prost::ProstCodec::<IstioCertificateRequest, IstioCertificateRequest>::default();
    let status = grpc.unary(Request::new(IstioCertificateRequest::default()), path, codec).await.unwrap_err();
    assert_eq!((status.code(), control.metrics().refusals("unknown_method")), (Code::Unimplemented, 1));
}

#[tokio::test]
async fn drains_when_told() {
    let dir = tempfile::tempdir().unwrap();
    let control = Control::start(config(dir.path())).await.unwrap();
    let address = control.ca_address();
    let mut client = client(&control).await;
    good(&mut client).await;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(control.run(async move { drop(stopped.await) }));
    stop.send(()).unwrap();
    tokio::time::timeout(Duration::from_secs(5), running).await.unwrap().unwrap().unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn says_what_keeps_it_from_starting() {
    let dir = tempfile::tempdir().unwrap();
    let busy = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut taken = config(dir.path());
    taken.listen = busy.local_addr().unwrap();
    let error = |started: Result<Control, ControlError>| started.err().unwrap().to_string();
    assert!(error(Control::start(taken).await).starts_with("--listen 127.0.0.1:"));
    let mut nowhere = config(dir.path());
    nowhere.bundle_out = Some(dir.path().join("absent/root.pem"));
    assert!(error(Control::start(nowhere).await).starts_with("--bundle-out"));
    let mut absent = config(dir.path());
    absent.mesh = SourceSettings::Manifests(dir.path().join("absent"));
    assert!(error(Control::start(absent).await).starts_with("--manifests"));
}

#[tokio::test]
async fn without_an_api_server_it_serves_and_signs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
         clusters: [{{name: c, cluster: {{server: \"http://{address}\"}}}}]\nusers: [{{name: u, user: {{token: secret}}}}]\n"
    );
    std::fs::write(dir.path().join("kubeconfig"), text).unwrap();
    let mesh = SourceSettings::Kubernetes { kubeconfig: Some(dir.path().join("kubeconfig")) };
    let control = Control::start(Config { mesh, ..config(dir.path()) }).await.unwrap();
    let told = async {
        while !scrape(&control, "/healthz/ready").await.contains("configuration: the first list of") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), told).await.unwrap();
    let csr = csr(&KeyPair::generate().unwrap(), &[ID]);
    let refusal = client(&control).await.create_certificate(request(csr)).await.unwrap_err();
    assert_eq!(refusal.code(), Code::Unavailable, "{refusal:?}");
    let metrics = scrape(&control, "/metrics").await;
    assert!(metrics.contains("nodemesh_config_source_connected{source=\"kubernetes\"} 0"), "{metrics}");
}
