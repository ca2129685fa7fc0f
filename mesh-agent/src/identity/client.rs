//! The client of a certificate authority that speaks Istio's protocol: istiod or mesh-control.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mesh_model::identity::Identity;
use mesh_proto::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use mesh_proto::ca::{IstioCertificateRequest, IstioCertificateResponse};
use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate as PemBundle, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::issuer::{IssueError, IssuedChain, Issuer, Issuing};

/// Largest answer.
const MAX_ANSWER: usize = 1 << 20;
/// Most certificates in an answer or a bundle.
const MAX_CERTIFICATES: usize = 64;
/// Largest file of roots, and of a token.
const MAX_FILE: u64 = 4 << 20;

/// Settings of the client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CaClientSettings {
    /// Authorities, `https://host:port` each; the next is asked when one does not answer.
    pub addresses: Vec<String>,
    /// File with the roots (PEM) that the authority's own certificate must lead to; read for each request.
    pub roots: PathBuf,
    /// File with the token that proves who this node is; read for each request.
    pub token: PathBuf,
    /// Lifetime that is asked for; the authority may give less.
    pub lifetime: Duration,
    /// Longest time for one authority to answer, connecting included.
    pub timeout: Duration,
    /// Name of this cluster, where istiod serves several (metadata `clusterid`).
    pub cluster: Option<String>,
}

impl CaClientSettings {
    /// With a lifetime of 24 h and 8 s to answer.
    pub fn new(addresses: Vec<String>, roots: PathBuf, token: PathBuf) -> CaClientSettings {
        let day = Duration::from_secs(24 * 3600);
        CaClientSettings { addresses, roots, token, lifetime: day, timeout: Duration::from_secs(8), cluster: None }
    }
}

/// The client. Connections are kept and made anew when the roots change.
pub struct CaClient {
    settings: CaClientSettings,
    endpoints: Vec<Endpoint>,
    cluster: Option<MetadataValue<Ascii>>,
    /// The authority that answered last.
    preferred: AtomicUsize,
    channels: Mutex<Channels>,
}

#[derive(Default)]
struct Channels {
    roots: Arc<[u8]>,
    open: Vec<Option<Channel>>,
}

impl CaClient {
    /// Judges the settings; connects to nobody yet, and needs no runtime.
    pub fn new(settings: CaClientSettings) -> Result<CaClient, IssueError> {
        let wrong = |given: &str, message: String| IssueError::Setting { setting: "--ca-address", given: given.into(), message };
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
            endpoints.push(
                endpoint
                    .connect_timeout(settings.timeout)
                    .tcp_keepalive(Some(Duration::from_secs(30)))
                    .http2_keep_alive_interval(Duration::from_secs(20))
                    .keep_alive_timeout(Duration::from_secs(10)),
            );
        }
        let cluster = settings.cluster.as_ref().map(|cluster| {
            cluster.parse().map_err(|_| IssueError::Setting {
                setting: "--cluster",
                given: cluster.clone(),
                message: "is not plain ASCII".into(),
            })
        });
        Ok(CaClient { endpoints, cluster: cluster.transpose()?, preferred: AtomicUsize::new(0), channels: Mutex::default(), settings })
    }

    async fn ask(&self, identity: &Identity, csr: &str) -> Result<IssuedChain, IssueError> {
        let (roots, token) = self.files().await?;
        let bundle = roots_in(&roots, &self.settings.roots)?;
        let first = self.preferred.load(Ordering::Relaxed);
        let mut unreachable = Vec::new();
        for i in 0..self.endpoints.len() {
            let index = (first + i) % self.endpoints.len();
            let Some(address) = self.settings.addresses.get(index) else { continue };
            let channel = self.channel(index, &roots)?;
            // Whoever gives up on this request, and is silent about it, begins with the next authority the next time.
            self.preferred.store((index + 1) % self.endpoints.len(), Ordering::Relaxed);
            match tokio::time::timeout(self.settings.timeout, self.call(channel, identity, csr, &token)).await {
                Ok(Ok(answer)) => {
                    self.preferred.store(index, Ordering::Relaxed);
                    return read_answer(answer, bundle);
                }
                Ok(Err(status)) if is_unreachable(&status) => unreachable.push(format!("{address}: {}", words(&status))),
                Ok(Err(status)) => {
                    self.preferred.store(index, Ordering::Relaxed);
                    let message = status.message().chars().take(500).collect();
                    return Err(IssueError::Refused { address: address.clone(), code: status.code(), message });
                }
                Err(_) => {
                    // Whatever the connection waits for: the next request gets a new one.
                    self.forget(index);
                    unreachable.push(format!("{address}: no answer within {} s", self.settings.timeout.as_secs_f32()));
                }
            }
        }
        Err(IssueError::Unreachable(unreachable.join("; ")))
    }

    async fn call(
        &self,
        channel: Channel,
        identity: &Identity,
        csr: &str,
        token: &MetadataValue<Ascii>,
    ) -> Result<IstioCertificateResponse, Status> {
        let seconds = i64::try_from(self.settings.lifetime.as_secs()).unwrap_or(i64::MAX);
        let mut request = Request::new(IstioCertificateRequest::for_workload(csr.into(), seconds, identity.to_string()));
        request.metadata_mut().insert("authorization", token.clone());
        if let Some(cluster) = &self.cluster {
            request.metadata_mut().insert("clusterid", cluster.clone());
        }
        let mut client = IstioCertificateServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER);
        Ok(client.create_certificate(request).await?.into_inner())
    }

    /// The connection to an authority, made when first used.
    fn channel(&self, index: usize, roots: &Arc<[u8]>) -> Result<Channel, IssueError> {
        let mut channels = self.channels.lock();
        if channels.roots != *roots {
            *channels = Channels { roots: roots.clone(), open: Vec::new() };
        }
        channels.open.resize(self.endpoints.len(), None);
        if let Some(Some(channel)) = channels.open.get(index) {
            return Ok(channel.clone());
        }
        let endpoint = self.endpoints.get(index).ok_or_else(|| IssueError::Unreachable("no address".into()))?;
        let host = endpoint.uri().host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        let tls =
            ClientTlsConfig::new().domain_name(host.clone()).ca_certificate(PemBundle::from_pem(&**roots)).timeout(self.settings.timeout);
        let endpoint = endpoint.clone().tls_config(tls).map_err(|error| IssueError::Setting {
            setting: "--ca-address",
            given: host,
            message: chain_of(&error),
        })?;
        let channel = endpoint.connect_lazy();
        if let Some(slot) = channels.open.get_mut(index) {
            *slot = Some(channel.clone());
        }
        Ok(channel)
    }

    fn forget(&self, index: usize) {
        if let Some(slot) = self.channels.lock().open.get_mut(index) {
            *slot = None;
        }
    }

    /// The roots and the token, as they are now.
    async fn files(&self) -> Result<(Arc<[u8]>, MetadataValue<Ascii>), IssueError> {
        let (roots, token) = (self.settings.roots.clone(), self.settings.token.clone());
        let read = tokio::task::spawn_blocking(move || {
            let failed = |what, path: &Path, error| IssueError::File { what, path: path.into(), error };
            let bundle = read_file(&roots).map_err(|error| failed("root certificates", &roots, error))?;
            let text = read_file(&token).map_err(|error| failed("token", &token, error))?;
            let text = std::str::from_utf8(&text).map(str::trim).ok().filter(|text| !text.is_empty());
            let header = text.and_then(|text| MetadataValue::try_from(format!("Bearer {text}")).ok());
            let mut header =
                header.ok_or_else(|| failed("token", &token, io::Error::other("holds no token: one line of visible ASCII")))?;
            header.set_sensitive(true);
            Ok((bundle.into(), header))
        });
        read.await.map_err(|error| IssueError::Unreachable(error.to_string()))?
    }
}

impl Issuer for CaClient {
    fn issue<'a>(&'a self, identity: &'a Identity, csr: &'a str) -> Issuing<'a> {
        Box::pin(self.ask(identity, csr))
    }
}

/// Whether nobody has judged the request, so that another authority may.
fn is_unreachable(status: &Status) -> bool {
    // Unknown and Cancelled are what the library makes of a connection that broke.
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Unknown | Code::Cancelled | Code::Internal)
}

/// A status and the errors behind it, e.g. that the authority's certificate is not trusted.
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

fn roots_in(pem: &[u8], path: &Path) -> Result<Vec<CertificateDer<'static>>, IssueError> {
    let failed = |message: String| IssueError::File { what: "root certificates", path: path.into(), error: io::Error::other(message) };
    let roots: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).take(MAX_CERTIFICATES).collect();
    let roots = roots.map_err(|error| failed(format!("is not PEM: {error}")))?;
    if roots.is_empty() { Err(failed("holds no certificate in PEM".into())) } else { Ok(roots) }
}

/// Sorts an answer: the leaf comes first, the roots last, what stands between leads from one to the other. istiod gives one
/// certificate an element, so that of several roots all but one stand among the intermediates: they are known by being self-issued.
fn read_answer(answer: IstioCertificateResponse, bundle: Vec<CertificateDer<'static>>) -> Result<IssuedChain, IssueError> {
    let mut chain = IssuedChain { certificates: Vec::new(), roots: Vec::new() };
    let last = answer.cert_chain.len().saturating_sub(1);
    for (i, element) in answer.cert_chain.iter().enumerate() {
        for certificate in CertificateDer::pem_slice_iter(element.as_bytes()) {
            let certificate = certificate.map_err(|error| IssueError::Answer(format!("element {i} is not PEM: {error}")))?;
            if chain.certificates.len() + chain.roots.len() >= MAX_CERTIFICATES {
                return Err(IssueError::Answer(format!("it has more than {MAX_CERTIFICATES} certificates")));
            }
            let (_, parsed) = X509Certificate::from_der(&certificate)
                .map_err(|error| IssueError::Answer(format!("element {i} is no certificate: {error}")))?;
            let self_issued = parsed.subject().as_raw() == parsed.issuer().as_raw();
            let is_root = i > 0 && (i == last || self_issued);
            if is_root { chain.roots.push(certificate) } else { chain.certificates.push(certificate) }
        }
    }
    for root in bundle {
        if !chain.roots.contains(&root) {
            chain.roots.push(root);
        }
    }
    Ok(chain)
}

#[cfg(test)]
mod tests;
