//! A data plane of another make, as far as the wire shows: certificates of a test's own authority, HTTP/2 CONNECT by `h2` and `rustls`
//! alone. It shares no line with the agent's tunnel, so both can't be wrong alike.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use h2::client::SendRequest;
use h2::{Reason, RecvStream, SendStream};
use http::{Method, Request, Response, StatusCode, Version};
use mesh_lab::{Pod, World};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{AlertDescription, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Longest time for anything on the wire.
const LIMIT: Duration = Duration::from_secs(15);

pub type TlsClient = tokio_rustls::client::TlsStream<TcpStream>;

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// A root whose key the test holds, so that it can sign what no honest authority would.
pub struct Authority {
    key: KeyPair,
    certificate: CertificateDer<'static>,
    pem: String,
}

/// A certificate that somebody shows, and its key.
pub struct Shown {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Clone for Shown {
    fn clone(&self) -> Self {
        Shown { chain: self.chain.clone(), key: self.key.clone_key() }
    }
}

/// What a certificate is to say.
#[derive(Clone)]
pub struct Leaf {
    pub uris: Vec<String>,
    pub from: SystemTime,
    pub until: SystemTime,
    pub usages: Vec<ExtendedKeyUsagePurpose>,
}

impl Leaf {
    /// An honest one for an identity, valid for an hour.
    pub fn of(identity: &str) -> Self {
        let now = SystemTime::now();
        Leaf {
            uris: vec![identity.to_owned()],
            from: now - Duration::from_secs(60),
            until: now + Duration::from_secs(3600),
            usages: vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth],
        }
    }

    fn params(&self) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = self.uris.iter().map(|uri| SanType::URI(uri.as_str().try_into().unwrap())).collect();
        params.not_before = OffsetDateTime::from(self.from);
        params.not_after = OffsetDateTime::from(self.until);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages.clone_from(&self.usages);
        params
    }

    /// Signed by nobody but itself.
    pub fn self_signed(&self) -> Shown {
        let key = KeyPair::generate().unwrap();
        let certificate = self.params().self_signed(&key).unwrap();
        Shown { chain: vec![certificate.der().clone()], key: key.into() }
    }
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = OffsetDateTime::from(SystemTime::now() - Duration::from_secs(3600));
        params.not_after = OffsetDateTime::from(SystemTime::now() + Duration::from_secs(24 * 3600));
        let certificate = params.self_signed(&key).unwrap();
        Authority { certificate: certificate.der().clone(), pem: certificate.pem(), key }
    }

    /// The flags with which mesh-control signs under this root.
    pub fn flags(&self, world: &World) -> Vec<String> {
        let write = |name: &str, text: &str| {
            let file = world.directory().join(name);
            std::fs::write(&file, text).unwrap();
            file.display().to_string()
        };
        vec![format!("--ca-cert={}", write("ca-cert.pem", &self.pem)), format!("--ca-key={}", write("ca-key.pem", &self.key.serialize_pem()))]
    }

    /// Signs.
    pub fn issue(&self, leaf: &Leaf) -> Shown {
        let key = KeyPair::generate().unwrap();
        let issuer = Issuer::from_ca_cert_der(&self.certificate, &self.key).unwrap();
        let certificate = leaf.params().signed_by(&key, &issuer).unwrap();
        Shown { chain: vec![certificate.der().clone()], key: key.into() }
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        roots
    }
}

impl Shown {
    /// From what a certificate authority answered: PEM, leaf first, and the key that was asked for.
    pub fn from_pem(chain: &[String], key: &KeyPair) -> Self {
        use rustls::pki_types::pem::PemObject;
        let mut certificates: Vec<_> = chain.iter().flat_map(|pem| CertificateDer::pem_slice_iter(pem.as_bytes())).map(Result::unwrap).collect();
        // Leaf and intermediates travel, the root does not.
        certificates.pop();
        Shown { chain: certificates, key: PrivateKeyDer::try_from(key.serialize_der()).unwrap() }
    }
}

/// The URIs that a certificate names.
pub fn uris(certificate: &CertificateDer<'_>) -> Vec<String> {
    let (_, parsed) = X509Certificate::from_der(certificate).unwrap();
    let names = parsed.subject_alternative_name().unwrap().expect("alternative names");
    let uri = |name: &GeneralName<'_>| if let GeneralName::URI(uri) = name { Some((*uri).to_owned()) } else { None };
    names.value.general_names.iter().filter_map(uri).collect()
}

/// Takes whatever a server shows; the caller looks at it.
#[derive(Debug)]
struct Taking(Arc<CryptoProvider>);

impl ServerCertVerifier for Taking {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Runs something of this data plane in a pod's network namespace, or panics after a while. The pod's own programs are captured; this
/// process is not.
#[track_caller]
pub fn inside<T: Send>(pod: &Pod, work: impl Future<Output = T> + Send) -> T {
    inside_namespace(&pod.netns(), work)
}

/// The same in any namespace.
#[track_caller]
pub fn inside_namespace<T: Send>(netns: &std::path::Path, work: impl Future<Output = T> + Send) -> T {
    let done = mesh_lab::netns::within(netns, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { tokio::time::timeout(LIMIT * 4, work).await })
    });
    done.expect("the namespace").expect("no end within a minute")
}

/// Dials a tunnel's port and shakes hands as TLS 1.3 has it. Whether the server takes our certificate is only known from what it says next.
pub async fn tls(to: SocketAddr, shown: Option<&Shown>, alpn: &[&[u8]]) -> io::Result<TlsClient> {
    tls_version(to, shown, alpn, &rustls::version::TLS13).await
}

/// With another version.
pub async fn tls_version(
    to: SocketAddr,
    shown: Option<&Shown>,
    alpn: &[&[u8]],
    version: &'static rustls::SupportedProtocolVersion,
) -> io::Result<TlsClient> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[version])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Taking(provider())));
    let mut config = match shown {
        Some(shown) => builder.with_client_auth_cert(shown.chain.clone(), shown.key.clone_key()).unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.enable_sni = false;
    let tcp = tokio::time::timeout(LIMIT, TcpStream::connect(to)).await??;
    tcp.set_nodelay(true)?;
    let name = ServerName::IpAddress(to.ip().into());
    tokio::time::timeout(LIMIT, TlsConnector::from(Arc::new(config)).connect(name, tcp)).await?
}

/// The alert with which a server refuses a certificate, or how else it ended the connection.
pub async fn refusal(to: SocketAddr, shown: Option<&Shown>) -> Result<AlertDescription, String> {
    let alert = |error: io::Error| {
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()).cloned();
        match tls {
            Some(rustls::Error::AlertReceived(alert)) => Ok(alert),
            _ => Err(error.to_string()),
        }
    };
    let mut stream = match tls(to, shown, &[b"h2"]).await {
        Ok(stream) => stream,
        Err(error) => return alert(error),
    };
    let mut byte = [0];
    match tokio::time::timeout(LIMIT, stream.read(&mut byte)).await {
        Ok(Ok(0)) => Err("closed without a word".into()),
        Ok(Ok(_)) => Err("it talks to us".into()),
        Ok(Err(error)) => alert(error),
        Err(_) => Err("it waits".into()),
    }
}

/// A tunnel to a pod, spoken as ztunnel speaks it.
pub struct Tunnel {
    requests: SendRequest<Bytes>,
    /// What the server showed, leaf first.
    pub server: Vec<CertificateDer<'static>>,
}

/// One connection through a tunnel.
pub struct Stream {
    pub response: Response<()>,
    pub up: SendStream<Bytes>,
    pub down: RecvStream,
}

impl Tunnel {
    /// Opens one, with ztunnel's windows.
    pub async fn open(to: SocketAddr, shown: &Shown) -> io::Result<Self> {
        Self::open_with(to, shown, 4 << 20).await
    }

    /// With another window of streams.
    pub async fn open_with(to: SocketAddr, shown: &Shown, window: u32) -> io::Result<Self> {
        let stream = tls(to, Some(shown), &[b"h2"]).await?;
        let (_, session) = stream.get_ref();
        assert_eq!(session.alpn_protocol(), Some(&b"h2"[..]));
        let server = session.peer_certificates().expect("a certificate").iter().map(|one| one.clone().into_owned()).collect();
        let (requests, connection) = h2::client::Builder::new()
            .initial_window_size(window)
            .initial_connection_window_size(16 << 20)
            .max_frame_size(1 << 20)
            .enable_push(false)
            .handshake(stream)
            .await
            .map_err(io::Error::other)?;
        tokio::spawn(connection);
        Ok(Tunnel { requests, server })
    }

    /// Asks for any request's answer; the status is what it is.
    pub async fn request(&mut self, request: Request<()>) -> Result<Stream, h2::Error> {
        let mut ready = self.requests.clone().ready().await?;
        let (response, up) = ready.send_request(request, false)?;
        let answer = tokio::time::timeout(LIMIT, response).await.expect("an answer in time")?;
        let (parts, down) = answer.into_parts();
        Ok(Stream { response: Response::from_parts(parts, ()), up, down })
    }

    /// CONNECT, with the headers that ztunnel sends.
    pub async fn connect(&mut self, authority: &str) -> Result<Stream, h2::Error> {
        self.request(connect(authority)).await
    }

    /// The status that CONNECT is answered with, and that a refusal ends the stream at once.
    pub async fn status(&mut self, authority: &str) -> StatusCode {
        let mut stream = self.connect(authority).await.unwrap_or_else(|error| panic!("{authority}: {error}"));
        let status = stream.response.status();
        if status != StatusCode::OK {
            let rest = stream.down.data().await;
            let over = match &rest {
                None => true,
                Some(Err(error)) => error.reason() == Some(Reason::NO_ERROR),
                Some(Ok(_)) => false,
            };
            assert!(over, "{authority}: a refusal has no body: {rest:?}");
        }
        status
    }

    /// How many streams the server allows at once.
    pub fn most_streams(&self) -> usize {
        self.requests.current_max_send_streams()
    }
}

/// A CONNECT request.
pub fn connect(authority: &str) -> Request<()> {
    Request::builder()
        .method(Method::CONNECT)
        .version(Version::HTTP_2)
        .uri(authority)
        .header("baggage", "k8s.cluster.name=Kubernetes,k8s.namespace.name=elsewhere,k8s.deployment.name=liar,service.name=liar,service.version=v9")
        .header("forwarded", "for=\"192.0.2.7:4242\"")
        .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00")
        .body(())
        .unwrap()
}

impl Stream {
    /// Sends bytes, as far as the window allows within `limit`; returns how many went.
    pub async fn send(&mut self, bytes: &[u8], limit: Duration) -> Result<usize, h2::Error> {
        let mut sent = 0;
        while sent < bytes.len() {
            self.up.reserve_capacity((bytes.len() - sent).min(1 << 20));
            let room = tokio::time::timeout(limit, std::future::poll_fn(|context| self.up.poll_capacity(context))).await;
            let room = match room {
                Err(_) => break,
                Ok(None) => break,
                Ok(Some(room)) => room?,
            };
            let next = (sent + room).min(bytes.len());
            self.up.send_data(Bytes::copy_from_slice(&bytes[sent..next]), false)?;
            sent = next;
        }
        Ok(sent)
    }

    /// Ends this direction.
    pub fn finish(&mut self) {
        self.up.send_data(Bytes::new(), true).unwrap();
    }

    /// Receives until the other side has ended its direction, or has `length` bytes.
    pub async fn receive(&mut self, length: usize) -> Result<Vec<u8>, h2::Error> {
        let mut all = BytesMut::new();
        while all.len() < length {
            match tokio::time::timeout(LIMIT, self.down.data()).await.expect("data in time") {
                None => break,
                Some(data) => {
                    let data = data?;
                    let _ = self.down.flow_control().release_capacity(data.len());
                    all.extend_from_slice(&data);
                }
            }
        }
        Ok(all.to_vec())
    }

    /// Waits until the other side aborts; panics if it ends in order.
    pub async fn aborted(&mut self) -> Reason {
        loop {
            match tokio::time::timeout(LIMIT, self.down.data()).await.expect("an end in time") {
                None => panic!("an end in order"),
                Some(Ok(data)) => drop(self.down.flow_control().release_capacity(data.len())),
                Some(Err(error)) => return error.reason().unwrap_or_else(|| panic!("{error}")),
            }
        }
    }
}

/// What an independent server does with a CONNECT.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Answer {
    /// 200 with `baggage`, then sends back what it gets.
    Echo,
    /// A refusal, as ztunnel makes it.
    Status(u16),
    /// 200, then RST_STREAM(CANCEL) at the first bytes.
    Abort,
}

/// What an independent server saw.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: Method,
    pub authority: String,
    pub headers: http::HeaderMap,
    pub client: Vec<String>,
    pub sni: Option<String>,
    /// How the client ended its direction: None while it has not, otherwise an abort's reason or an end in order.
    pub end: Option<Result<(), Reason>>,
}

/// A server of an independent data plane in a pod's namespace, on the tunnel's port. Ends with this value.
pub struct Server {
    seen: Arc<Mutex<Vec<Seen>>>,
    connections: Arc<Mutex<usize>>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    /// Starts it. `answer` says what to do with a CONNECT to a port.
    pub fn start(pod: &Pod, authority: &Authority, shown: &Shown, answer: impl Fn(u16) -> Answer + Send + Copy + 'static) -> Self {
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(authority.roots()), provider()).build().unwrap();
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(shown.chain.clone(), shown.key.clone_key())
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let connections: Arc<Mutex<usize>> = Arc::default();
        let (heard, counted) = (seen.clone(), connections.clone());
        Self::run(pod, move |tcp| {
            let (acceptor, seen, connections) = (acceptor.clone(), heard.clone(), counted.clone());
            async move {
                let Ok(stream) = acceptor.accept(tcp).await else { return };
                *connections.lock().unwrap() += 1;
                serve(stream, answer, seen).await;
            }
        })
        .with(seen, connections)
    }

    /// One that does with a connection whatever the caller thinks of.
    pub fn run<F: Future<Output = ()> + 'static>(pod: &Pod, each: impl Fn(TcpStream) -> F + Send + 'static) -> Self {
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (listening, heard) = std::sync::mpsc::channel();
        let (netns, at) = (pod.netns(), SocketAddr::new(pod.ipv4().into(), 15008));
        let work = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime, async move {
                let listener = TcpListener::bind(at).await.unwrap();
                listening.send(()).unwrap();
                let accept = async {
                    loop {
                        if let Ok((tcp, _)) = listener.accept().await {
                            tokio::task::spawn_local(each(tcp));
                        }
                    }
                };
                tokio::select! { _ = stopped => {}, () = accept => {} }
            });
        };
        let thread = std::thread::spawn(move || mesh_lab::netns::within(&netns, work).unwrap());
        heard.recv_timeout(LIMIT).expect("it listens");
        Server { seen: Arc::default(), connections: Arc::default(), stop: Some(stop), thread: Some(thread) }
    }

    fn with(mut self, seen: Arc<Mutex<Vec<Seen>>>, connections: Arc<Mutex<usize>>) -> Self {
        (self.seen, self.connections) = (seen, connections);
        self
    }

    /// The requests that came.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// The requests that came for a port.
    pub fn seen_at(&self, port: u16) -> Vec<Seen> {
        let suffix = format!(":{port}");
        self.seen().into_iter().filter(|seen| seen.authority.ends_with(&suffix)).collect()
    }

    /// How many tunnels stood.
    pub fn connections(&self) -> usize {
        *self.connections.lock().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(stream: tokio_rustls::server::TlsStream<TcpStream>, answer: impl Fn(u16) -> Answer + Copy + 'static, seen: Arc<Mutex<Vec<Seen>>>) {
    let (_, session) = stream.get_ref();
    let client = session.peer_certificates().and_then(|chain| chain.first()).map(uris).unwrap_or_default();
    let sni = session.server_name().map(str::to_owned);
    let handshake = h2::server::Builder::new().initial_window_size(4 << 20).initial_connection_window_size(16 << 20).handshake::<_, Bytes>(stream);
    let Ok(mut connection) = handshake.await else { return };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let (head, mut body) = request.into_parts();
        let authority = head.uri.authority().map(ToString::to_string).unwrap_or_default();
        let port = head.uri.port_u16().unwrap_or_default();
        let number = {
            let mut seen = seen.lock().unwrap();
            seen.push(Seen { method: head.method, authority, headers: head.headers, client: client.clone(), sni: sni.clone(), end: None });
            seen.len() - 1
        };
        let seen = seen.clone();
        let what = answer(port);
        tokio::task::spawn_local(async move {
            let status = if let Answer::Status(status) = what { status } else { 200 };
            let mut response = Response::builder().status(status);
            if status == 200 {
                response = response.header("baggage", "k8s.namespace.name=foreign,service.name=foreign");
            }
            let refused = status != 200;
            let Ok(mut up) = respond.send_response(response.body(()).unwrap(), refused) else { return };
            if refused {
                // Dropping the body before its end makes the library add RST_STREAM(NO_ERROR).
                return;
            }
            let end = loop {
                match body.data().await {
                    Some(Ok(data)) => {
                        let _ = body.flow_control().release_capacity(data.len());
                        if what == Answer::Abort {
                            up.send_reset(Reason::CANCEL);
                            break Ok(());
                        }
                        let _ = up.send_data(data, false);
                    }
                    None => {
                        let _ = up.send_data(Bytes::new(), true);
                        break Ok(());
                    }
                    Some(Err(error)) => break Err(error.reason().unwrap_or(Reason::INTERNAL_ERROR)),
                }
            };
            seen.lock().unwrap()[number].end = Some(end);
        });
    }
}

/// Sends bytes to an address and reads until the other side ends the connection; how long that took, and what it said. `None`: it did not end
/// it within `limit`.
pub async fn throw(to: SocketAddr, bytes: &[u8], limit: Duration) -> Option<Vec<u8>> {
    match TcpStream::connect(to).await {
        Ok(mut tcp) => drown(&mut tcp, bytes, limit).await,
        // Reset before it could be used.
        Err(_) => Some(Vec::new()),
    }
}

/// The same inside of something that is open already.
pub async fn drown(stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin), bytes: &[u8], limit: Duration) -> Option<Vec<u8>> {
    let mut said = Vec::new();
    let talk = async {
        // It may have ended the connection before it has read everything.
        let _ = stream.write_all(bytes).await;
        let _ = stream.flush().await;
        let mut block = [0; 4096];
        while let Ok(length @ 1..) = stream.read(&mut block).await {
            said.extend_from_slice(&block[..length]);
        }
    };
    let ended = tokio::time::timeout(limit, talk).await.is_ok();
    ended.then_some(said)
}
