//! Calls to mesh-control, or to another authority that stands in its place: one connection to each address, shared by all services.
//!
//! Whoever does not answer is followed by the next address; whoever answered last is asked first. A service that only one replica serves is
//! called by [`Link::call_leader`]: a replica that does not lead names the one that does, and its TLS certificate must be good for the name
//! under which the first was reached.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mesh_proto::LEADER;
use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate as PemBundle, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Response, Status};

/// Most certificates in a bundle.
pub const MAX_CERTIFICATES: usize = 64;
/// Largest file of roots, and of a token.
const MAX_FILE: u64 = 4 << 20;
/// How often a call follows the name of another leader.
const REDIRECTS: usize = 2;

/// Settings of the link.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LinkSettings {
    /// Whom to call, `https://host:port` each; the next is called when one does not answer.
    pub addresses: Vec<String>,
    /// File with the roots (PEM) that the other's certificate must lead to; read for each call.
    pub roots: PathBuf,
    /// File with the token that proves who this node is; read for each call.
    pub token: PathBuf,
    /// Longest time for one address to be connected to.
    pub connect_timeout: Duration,
    /// Name of this cluster, where istiod serves several (metadata `clusterid`).
    pub cluster: Option<String>,
}

impl LinkSettings {
    /// With 8 s to connect.
    pub fn new(addresses: Vec<String>, roots: PathBuf, token: PathBuf) -> LinkSettings {
        LinkSettings { addresses, roots, token, connect_timeout: Duration::from_secs(8), cluster: None }
    }
}

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// A file that is needed cannot be read.
    #[error("{what} {}: {error}", path.display())]
    File {
        /// What the file is for.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A setting cannot be used.
    #[error("{setting} \"{given}\": {message}")]
    Setting {
        /// The setting.
        setting: &'static str,
        /// What was given.
        given: String,
        /// What is wrong.
        message: String,
    },
    /// Nobody answers.
    #[error("no certificate authority answers: {0}")]
    Unreachable(String),
    /// Somebody answers no.
    #[error("the certificate authority {address} refuses ({code}): {message}")]
    Refused {
        /// Who.
        address: String,
        /// The gRPC code.
        code: Code,
        /// The words.
        message: String,
    },
}

/// An answer, and whom its sender was trusted by.
#[derive(Debug)]
pub struct Answered<A> {
    /// The message.
    pub message: A,
    /// The roots of [`LinkSettings::roots`].
    pub roots: Vec<CertificateDer<'static>>,
}

/// The link. Connections are kept, and made anew when the roots change.
pub struct Link {
    settings: LinkSettings,
    endpoints: Vec<Endpoint>,
    cluster: Option<MetadataValue<Ascii>>,
    /// Who answered last.
    preferred: AtomicUsize,
    channels: Mutex<Channels>,
}

#[derive(Default)]
struct Channels {
    roots: Arc<[u8]>,
    open: Vec<Option<Channel>>,
    leader: Option<(String, Channel)>,
}

/// What each call needs, as the files are now.
struct Proof {
    roots: Arc<[u8]>,
    bundle: Vec<CertificateDer<'static>>,
    token: MetadataValue<Ascii>,
}

/// What came of one attempt.
enum Attempt<A> {
    Answered(A),
    /// By a status that is an answer.
    Refused(Status),
    /// Nobody has judged the call, so that another may.
    Unreachable(String),
}

impl Link {
    /// Judges the settings; connects to nobody yet, and needs no runtime.
    pub fn new(settings: LinkSettings) -> Result<Link, LinkError> {
        let wrong = |given: &str, message: String| LinkError::Setting { setting: "--ca-address", given: given.into(), message };
        if settings.addresses.is_empty() {
            return Err(wrong("", "name at least one certificate authority, https://host:port".into()));
        }
        let mut endpoints = Vec::with_capacity(settings.addresses.len());
        for address in &settings.addresses {
            let endpoint =
                Endpoint::from_shared(address.clone()).map_err(|error| wrong(address, format!("{error}; write https://host:port")))?;
            if endpoint.uri().scheme_str() != Some("https") || endpoint.uri().host().is_none_or(str::is_empty) {
                return Err(wrong(address, "is not of the form https://host:port".into()));
            }
            endpoints.push(kept_alive(endpoint, &settings));
        }
        let cluster = settings.cluster.as_ref().map(|cluster| {
            cluster.parse().map_err(|_| LinkError::Setting {
                setting: "--cluster",
                given: cluster.clone(),
                message: "is not plain ASCII".into(),
            })
        });
        Ok(Link { endpoints, cluster: cluster.transpose()?, preferred: AtomicUsize::new(0), channels: Mutex::default(), settings })
    }

    /// Calls whoever answers. `timeout`: longest time for one address to answer, connecting included. `method` makes the call, e.g.
    /// `|channel, request| async move { Client::new(channel).method(request).await }`.
    pub async fn call<M, A, F>(
        &self,
        timeout: Duration,
        message: M,
        method: impl Fn(Channel, Request<M>) -> F,
    ) -> Result<Answered<A>, LinkError>
    where
        M: Clone,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let proof = self.proof().await?;
        let (_, answered) = self.any(&proof, timeout, &message, &method).await?;
        match answered {
            (_, Ok(message)) => Ok(Answered { message, roots: proof.bundle }),
            (address, Err(status)) => Err(refused(address, &status)),
        }
    }

    /// As [`Link::call`], of a service that only the replica that leads serves.
    pub async fn call_leader<M, A, F>(
        &self,
        timeout: Duration,
        message: M,
        method: impl Fn(Channel, Request<M>) -> F,
    ) -> Result<Answered<A>, LinkError>
    where
        M: Clone,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let proof = self.proof().await?;
        let mut named = self.leader(&proof.roots);
        let mut told_by = self.preferred.load(Ordering::Relaxed);
        for _ in 0..=REDIRECTS {
            let (address, status) = match named.take() {
                Some((leader, channel)) => match self.attempt(&proof, timeout, channel, &message, &method).await {
                    Attempt::Answered(message) => return Ok(Answered { message, roots: proof.bundle }),
                    Attempt::Refused(status) => (leader, status),
                    // It may be gone for good: the others know who comes after it.
                    Attempt::Unreachable(_) => {
                        self.channels.lock().leader = None;
                        continue;
                    }
                },
                None => {
                    let (index, answered) = self.any(&proof, timeout, &message, &method).await?;
                    told_by = index;
                    match answered {
                        (_, Ok(message)) => return Ok(Answered { message, roots: proof.bundle }),
                        (address, Err(status)) => (address, status),
                    }
                }
            };
            self.channels.lock().leader = None;
            let next = status.metadata().get(LEADER).and_then(|leader| leader.to_str().ok()).filter(|leader| **leader != address);
            let Some(next) = next else { return Err(refused(address, &status)) };
            named = Some(self.follow(next, told_by, &proof.roots)?);
        }
        Err(LinkError::Unreachable("each replica of mesh-control says that another leads".into()))
    }

    /// The first address that answers, its number, and its answer.
    async fn any<M, A, F>(
        &self,
        proof: &Proof,
        timeout: Duration,
        message: &M,
        method: &impl Fn(Channel, Request<M>) -> F,
    ) -> Result<(usize, (String, Result<A, Status>)), LinkError>
    where
        M: Clone,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let first = self.preferred.load(Ordering::Relaxed);
        let mut unreachable = Vec::new();
        for i in 0..self.endpoints.len() {
            let index = (first + i) % self.endpoints.len();
            let Some(address) = self.settings.addresses.get(index) else { continue };
            let channel = self.channel(index, &proof.roots)?;
            // Whoever gives up on this call, and is silent about it, begins with the next address the next time.
            self.preferred.store((index + 1) % self.endpoints.len(), Ordering::Relaxed);
            let answer = match self.attempt(proof, timeout, channel, message, method).await {
                Attempt::Answered(message) => Ok(message),
                Attempt::Refused(status) => Err(status),
                Attempt::Unreachable(why) => {
                    // Whatever the connection waits for: the next call gets a new one.
                    if let Some(slot) = self.channels.lock().open.get_mut(index) {
                        *slot = None;
                    }
                    unreachable.push(format!("{address}: {why}"));
                    continue;
                }
            };
            self.preferred.store(index, Ordering::Relaxed);
            return Ok((index, (address.clone(), answer)));
        }
        Err(LinkError::Unreachable(unreachable.join("; ")))
    }

    async fn attempt<M, A, F>(
        &self,
        proof: &Proof,
        timeout: Duration,
        channel: Channel,
        message: &M,
        method: &impl Fn(Channel, Request<M>) -> F,
    ) -> Attempt<A>
    where
        M: Clone,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let mut request = Request::new(message.clone());
        request.metadata_mut().insert("authorization", proof.token.clone());
        if let Some(cluster) = &self.cluster {
            request.metadata_mut().insert("clusterid", cluster.clone());
        }
        match tokio::time::timeout(timeout, method(channel, request)).await {
            Ok(Ok(answer)) => Attempt::Answered(answer.into_inner()),
            Ok(Err(status)) if is_unreachable(&status) => Attempt::Unreachable(words(&status)),
            Ok(Err(status)) => Attempt::Refused(status),
            Err(_) => Attempt::Unreachable(format!("no answer within {} s", timeout.as_secs_f32())),
        }
    }

    /// The connection to an address, made when first used.
    fn channel(&self, index: usize, roots: &Arc<[u8]>) -> Result<Channel, LinkError> {
        let mut channels = self.channels.lock();
        channels.under(roots);
        channels.open.resize(self.endpoints.len(), None);
        if let Some(Some(channel)) = channels.open.get(index) {
            return Ok(channel.clone());
        }
        let endpoint = self.endpoints.get(index).ok_or_else(|| LinkError::Unreachable("no address".into()))?;
        let channel = self.secured(endpoint, host(endpoint), roots)?;
        if let Some(slot) = channels.open.get_mut(index) {
            *slot = Some(channel.clone());
        }
        Ok(channel)
    }

    /// The leader that is known.
    fn leader(&self, roots: &Arc<[u8]>) -> Option<(String, Channel)> {
        let mut channels = self.channels.lock();
        channels.under(roots);
        channels.leader.clone()
    }

    /// The connection to a leader that the address of this number named.
    fn follow(&self, leader: &str, told_by: usize, roots: &Arc<[u8]>) -> Result<(String, Channel), LinkError> {
        let strange = || LinkError::Unreachable(format!("who leads mesh-control is said to be \"{}\"", leader.escape_default()));
        // An address, no name: nobody is asked where it is.
        let address: std::net::SocketAddr = leader.parse().map_err(|_| strange())?;
        let endpoint = Endpoint::from_shared(format!("https://{address}")).map_err(|_| strange())?;
        let name = self.endpoints.get(told_by).map(host).unwrap_or_default();
        let named = (address.to_string(), self.secured(&kept_alive(endpoint, &self.settings), name, roots)?);
        self.channels.lock().leader = Some(named.clone());
        Ok(named)
    }

    fn secured(&self, endpoint: &Endpoint, name: String, roots: &[u8]) -> Result<Channel, LinkError> {
        let tls = ClientTlsConfig::new()
            .domain_name(name.clone())
            .ca_certificate(PemBundle::from_pem(roots))
            .timeout(self.settings.connect_timeout);
        let endpoint = endpoint.clone().tls_config(tls).map_err(|error| LinkError::Setting {
            setting: "--ca-address",
            given: name,
            message: chain_of(&error),
        })?;
        Ok(endpoint.connect_lazy())
    }

    /// The roots and the token, as they are now.
    async fn proof(&self) -> Result<Proof, LinkError> {
        let (roots, token) = (self.settings.roots.clone(), self.settings.token.clone());
        let read = tokio::task::spawn_blocking(move || {
            let failed = |what, path: &Path, error| LinkError::File { what, path: path.into(), error };
            let pem = read_file(&roots).map_err(|error| failed("root certificates", &roots, error))?;
            let text = read_file(&token).map_err(|error| failed("token", &token, error))?;
            let text = std::str::from_utf8(&text).map(str::trim).ok().filter(|text| !text.is_empty());
            let header = text.and_then(|text| MetadataValue::try_from(format!("Bearer {text}")).ok());
            let mut header =
                header.ok_or_else(|| failed("token", &token, io::Error::other("holds no token: one line of visible ASCII")))?;
            header.set_sensitive(true);
            let bundle = roots_in(&pem, &roots)?;
            Ok(Proof { roots: pem.into(), bundle, token: header })
        });
        read.await.map_err(|error| LinkError::Unreachable(error.to_string()))?
    }
}

impl Channels {
    /// Lets go of connections that were made under other roots.
    fn under(&mut self, roots: &Arc<[u8]>) {
        if self.roots != *roots {
            *self = Channels { roots: roots.clone(), ..Channels::default() };
        }
    }
}

fn kept_alive(endpoint: Endpoint, settings: &LinkSettings) -> Endpoint {
    endpoint
        .connect_timeout(settings.connect_timeout)
        .tcp_keepalive(Some(Duration::from_secs(30)))
        .http2_keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10))
}

fn host(endpoint: &Endpoint) -> String {
    endpoint.uri().host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned()
}

fn refused(address: String, status: &Status) -> LinkError {
    LinkError::Refused { address, code: status.code(), message: status.message().chars().take(500).collect() }
}

/// Whether nobody has judged the call, so that another may.
fn is_unreachable(status: &Status) -> bool {
    // Unknown and Cancelled are what the library makes of a connection that broke.
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Unknown | Code::Cancelled | Code::Internal)
}

/// A status and the errors behind it, e.g. that the other's certificate is not trusted.
fn words(status: &Status) -> String {
    let mut text = status.message().to_owned();
    if let Some(source) = std::error::Error::source(status) {
        text = format!("{text}: {}", chain_of(source));
    }
    text.chars().take(500).collect()
}

fn chain_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = error.source();
    }
    text
}

fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if std::fs::File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut bytes)? as u64 > MAX_FILE {
        return Err(io::Error::other("is too large"));
    }
    Ok(bytes)
}

fn roots_in(pem: &[u8], path: &Path) -> Result<Vec<CertificateDer<'static>>, LinkError> {
    let failed = |message: String| LinkError::File { what: "root certificates", path: path.into(), error: io::Error::other(message) };
    let roots: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).take(MAX_CERTIFICATES).collect();
    let roots = roots.map_err(|error| failed(format!("is not PEM: {error}")))?;
    if roots.is_empty() { Err(failed("holds no certificate in PEM".into())) } else { Ok(roots) }
}

#[cfg(test)]
mod tests;
