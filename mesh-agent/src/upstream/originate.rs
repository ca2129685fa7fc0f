//! TLS that is begun here on behalf of a client, as a DestinationRule asks (SIMPLE, MUTUAL): configurations made of files, made again when
//! those change, and the handshake. What cannot be had or verified is no connection; nothing is ever sent in the clear instead.
//!
//! Towards a pod of the mesh the tunnel stays: this TLS goes inside it, to the application.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use mesh_model::traffic::Origination;
use rustls::ClientConfig;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::outcome::{Outcome, UpstreamFailure};

mod files;
#[cfg(test)]
mod tests;
mod verify;

pub use files::Credentials;
use files::{Material, Stamp};

/// For so long files are taken to be as they were.
const LOOK: Duration = Duration::from_secs(1);
/// For so long a server that did not agree on HTTP/2 is not offered it again.
const NO_HTTP2: Duration = Duration::from_secs(300);

/// What a client's connections to one cluster need for TLS. Sessions are resumed within it.
pub struct Originator {
    settings: Origination,
    /// Of the clients.
    namespace: Arc<str>,
    credentials: Arc<Credentials>,
    start: Instant,
    made: ArcSwapOption<Made>,
    /// One looks at the files at a time.
    looking: tokio::sync::Mutex<()>,
    /// Milliseconds since the start until which HTTP/2 is not offered.
    without_http2: AtomicU64,
}

/// What the files came to.
struct Made {
    /// When they were looked at last, milliseconds since the start.
    looked: AtomicU64,
    stamps: Vec<Stamp>,
    result: Result<Arc<Session>, Arc<str>>,
}

/// A configuration. Connections that were made by different ones do not stand in for each other.
pub struct Session {
    number: u64,
    /// By what is offered.
    configs: [Arc<ClientConfig>; 4],
}

/// What is spoken within TLS, as it is offered to the server (ALPN, RFC 7301).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Offer {
    /// Nothing is said.
    Opaque,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2, and HTTP/1.1 if the server does not speak it.
    Either,
    /// HTTP/2.
    Http2,
}

impl Offer {
    const ALL: [Offer; 4] = [Offer::Opaque, Offer::Http1, Offer::Either, Offer::Http2];

    fn protocols(self) -> Vec<Vec<u8>> {
        let names: &[&[u8]] = match self {
            Offer::Opaque => &[],
            Offer::Http1 => &[b"http/1.1"],
            Offer::Either => &[b"h2", b"http/1.1"],
            Offer::Http2 => &[b"h2"],
        };
        names.iter().map(|name| name.to_vec()).collect()
    }
}

/// TLS for one connection or request: to whom, and by which configuration.
#[derive(Clone)]
pub struct Secured {
    session: Arc<Session>,
    name: ServerName<'static>,
    text: Arc<str>,
}

impl std::fmt::Debug for Secured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secured").field("name", &self.text).field("session", &self.session.number).finish()
    }
}

/// Which TLS connections serve alike.
pub type SecuredKey = (Arc<str>, u64);

impl Originator {
    /// For the clients of a namespace.
    pub fn new(settings: Origination, namespace: Arc<str>, credentials: Arc<Credentials>, now: Instant) -> Originator {
        Originator {
            settings,
            namespace,
            credentials,
            start: now,
            made: ArcSwapOption::empty(),
            looking: tokio::sync::Mutex::new(()),
            without_http2: AtomicU64::new(0),
        }
    }

    /// TLS to a server: by the rule's server name, else the request's host (`authority`), else the Service's.
    ///
    /// # Errors
    /// Files that cannot be used, or a host that is no name a certificate could have.
    pub async fn secure(&self, now: Instant, authority: Option<&str>, service_host: &str) -> Result<Secured, Outcome> {
        let text = server_name(&self.settings, authority, service_host);
        let name = ServerName::try_from(text.to_owned()).map_err(|_| {
            let detail = format!("\"{text}\" is no name that a certificate could have; write the server's as sni").into();
            Outcome::Upstream(UpstreamFailure::TlsCertificate { detail })
        })?;
        let session = self.session(now).await.map_err(|detail| Outcome::Upstream(UpstreamFailure::TlsFiles { detail }))?;
        Ok(Secured { session, name, text: text.into() })
    }

    /// The configuration as the files are now.
    async fn session(&self, now: Instant) -> Result<Arc<Session>, Arc<str>> {
        if let Some(made) = self.fresh(now) {
            return made.result.clone();
        }
        let _looking = self.looking.lock().await;
        // Somebody else may have looked meanwhile.
        if let Some(made) = self.fresh(now) {
            return made.result.clone();
        }
        let before = self.made.load_full();
        let (settings, namespace, credentials) = (self.settings.clone(), self.namespace.clone(), self.credentials.clone());
        let said = before.as_ref().and_then(|made| made.result.as_ref().err().cloned());
        let known = before.as_ref().filter(|made| made.result.is_ok()).map(|made| made.stamps.clone());
        // Files may lie on a slow disk.
        let looked = tokio::task::spawn_blocking(move || {
            let stamps = files::stamps(&settings, &credentials, &namespace);
            (known.as_ref() != Some(&stamps)).then(|| (stamps, session(&settings, &credentials, &namespace)))
        });
        let looked = looked.await.map_err(|error| Arc::from(format!("its files could not be looked at: {error}")))?;
        let at = AtomicU64::new(self.millis(now));
        let result = match (looked, before) {
            (None, Some(before)) => {
                before.looked.store(at.into_inner(), Ordering::Relaxed);
                return before.result.clone();
            }
            (Some((stamps, result)), _) => {
                self.made.store(Some(Arc::new(Made { looked: at, stamps, result: result.clone() })));
                result
            }
            (None, None) => Err("its files could not be looked at".into()),
        };
        if let Err(reason) = &result
            && said.as_ref() != Some(reason)
        {
            tracing::warn!(namespace = &*self.namespace, %reason, "TLS towards a server can't be begun; connections are refused");
        }
        result
    }

    fn fresh(&self, now: Instant) -> Option<Arc<Made>> {
        let made = self.made.load_full()?;
        let age = self.millis(now).saturating_sub(made.looked.load(Ordering::Relaxed));
        (Duration::from_millis(age) < LOOK).then_some(made)
    }

    /// What is wrong with its files, as it was seen last.
    pub fn problem(&self) -> Option<Arc<str>> {
        self.made.load().as_ref().and_then(|made| made.result.as_ref().err().cloned())
    }

    /// What to offer for HTTP. `http2`: it is wanted; `only`: the port declares it.
    pub fn offer(&self, now: Instant, http2: bool, only: bool) -> Offer {
        match (http2, only) {
            (false, _) => Offer::Http1,
            (true, true) => Offer::Http2,
            (true, false) if self.millis(now) < self.without_http2.load(Ordering::Relaxed) => Offer::Http1,
            (true, false) => Offer::Either,
        }
    }

    /// Takes note that a server chose HTTP/1.1 though HTTP/2 was offered.
    pub fn chose_http1(&self, now: Instant) {
        self.without_http2.store(self.millis(now + NO_HTTP2), Ordering::Relaxed);
    }

    fn millis(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.start).as_millis()).unwrap_or(u64::MAX)
    }
}

/// The server's name: the rule's, else the request's host without its port, else the Service's.
fn server_name<'a>(settings: &'a Origination, authority: Option<&'a str>, service_host: &'a str) -> &'a str {
    let host = || {
        let host = crate::route::matches::without_port(authority?);
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        Some(host.strip_suffix('.').unwrap_or(host)).filter(|host| !host.is_empty())
    };
    settings.sni.as_deref().or_else(host).unwrap_or(service_host)
}

fn session(settings: &Origination, credentials: &Credentials, namespace: &str) -> Result<Arc<Session>, Arc<str>> {
    static NUMBER: AtomicU64 = AtomicU64::new(1);
    let Material { roots, client } = files::read(settings, credentials, namespace)?;
    let broken = |error: &dyn std::fmt::Display| Arc::<str>::from(error.to_string());
    let provider = provider();
    let verifier = verify::Verifier::new(roots, &settings.subject_alt_names, provider.signature_verification_algorithms);
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| broken(&error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let base = match client {
        Some((chain, key)) => builder
            .with_client_auth_cert(chain, key)
            .map_err(|error| Arc::<str>::from(format!("clientCertificate and privateKey do not go together: {error}")))?,
        None => builder.with_no_client_auth(),
    };
    // The copies share the memory of sessions.
    let configs = Offer::ALL.map(|offer| {
        let mut config = base.clone();
        config.alpn_protocols = offer.protocols();
        Arc::new(config)
    });
    Ok(Arc::new(Session { number: NUMBER.fetch_add(1, Ordering::Relaxed), configs }))
}

/// TLS 1.2 and 1.3, as servers outside the mesh speak it.
fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: std::sync::OnceLock<Arc<CryptoProvider>> = std::sync::OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(aws_lc_rs::default_provider())).clone()
}

/// How a server was agreed with.
pub struct Agreed<T> {
    /// The connection.
    pub stream: TlsStream<T>,
    /// It chose HTTP/2.
    pub http2: bool,
    /// A session was resumed.
    pub resumed: bool,
}

impl Secured {
    /// Which connections serve alike.
    pub fn key(&self) -> SecuredKey {
        (self.text.clone(), self.session.number)
    }

    /// The server's name, for logs.
    pub fn name(&self) -> &Arc<str> {
        &self.text
    }

    /// Begins TLS on a connection, which must be done by `deadline`.
    ///
    /// # Errors
    /// The server's certificate is not accepted, or it does not speak TLS as it should.
    pub async fn connect<T>(&self, offer: Offer, io: T, deadline: Instant) -> Result<Agreed<T>, Outcome>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        let [opaque, http1, either, http2] = &self.session.configs;
        let config = match offer {
            Offer::Opaque => opaque,
            Offer::Http1 => http1,
            Offer::Either => either,
            Offer::Http2 => http2,
        };
        let connecting = TlsConnector::from(config.clone()).connect(self.name.clone(), io);
        let stream = match tokio::time::timeout_at(deadline.into(), connecting).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(Outcome::Upstream(failure(&error))),
            Err(_) => {
                let detail = "it was not finished within connectTimeout".into();
                return Err(Outcome::Upstream(UpstreamFailure::TlsHandshake { detail }));
            }
        };
        let (_, session) = stream.get_ref();
        let resumed = session.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
        // What declares HTTP/2 speaks it whether it answers to ALPN or not.
        let http2 = session.alpn_protocol() == Some(b"h2") || offer == Offer::Http2;
        Ok(Agreed { stream, http2, resumed })
    }
}

fn failure(error: &std::io::Error) -> UpstreamFailure {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(tls @ rustls::Error::InvalidCertificate(_)) => UpstreamFailure::TlsCertificate { detail: tls.to_string().into() },
        Some(tls) => UpstreamFailure::TlsHandshake { detail: tls.to_string().into() },
        None => UpstreamFailure::TlsHandshake { detail: error.to_string().into() },
    }
}
