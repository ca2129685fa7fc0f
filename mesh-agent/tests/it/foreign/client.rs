//! The dialling side: TLS, HTTP/2 CONNECT, streams; and bytes that are neither.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::client::SendRequest;
use h2::{Reason, RecvStream, SendStream};
use http::{Method, Request, Response, StatusCode, Version};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{AlertDescription, ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::certificate::Shown;
use super::{LIMIT, provider};

pub type TlsClient = tokio_rustls::client::TlsStream<TcpStream>;

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
        .header(
            "baggage",
            "k8s.cluster.name=Kubernetes,k8s.namespace.name=elsewhere,k8s.deployment.name=liar,service.name=liar,service.version=v9",
        )
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
