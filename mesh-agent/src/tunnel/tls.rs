//! Who we are and whom we trust, as TLS 1.3 configurations; the handshake and the records are below.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use mesh_model::identity::{Identity, TrustDomain};
use rustls::client::Resumption;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::verify::{Acceptable, PeerVerifier, VerifyError, identity_of};

pub mod channel;
pub mod handshake;
pub mod io;
pub mod record;

/// The protocol of our own, by its ALPN name.
pub const ALPN_OWN: &[u8] = b"nodemesh/1";
/// HBONE's.
pub const ALPN_HBONE: &[u8] = b"h2";

/// There is no certificate to show for an identity, and why, as the certificate store says it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CredentialsUnavailable(pub Arc<str>);

/// Where credentials come from. Asked for every stream and every handshake, so it must be cheap; a renewal takes effect with the next.
pub trait CredentialSource {
    /// What to show as `identity` now.
    fn current(&self, identity: &Identity) -> Result<Arc<Credentials>, CredentialsUnavailable>;
}

impl<F> CredentialSource for F
where
    F: Fn(&Identity) -> Result<Arc<Credentials>, CredentialsUnavailable>,
{
    fn current(&self, identity: &Identity) -> Result<Arc<Credentials>, CredentialsUnavailable> {
        self(identity)
    }
}

/// A certificate with its key, whom we trust, and whose clients we accept. The TLS configurations are made once for each.
pub struct Credentials {
    key: Arc<CertifiedKey>,
    roots: Arc<RootCertStore>,
    identity: Identity,
    trust_domains: Arc<[TrustDomain]>,
    not_after: SystemTime,
    client: OnceLock<Result<Arc<ClientConfig>, rustls::Error>>,
    server: [OnceLock<Result<Arc<ServerConfig>, rustls::Error>>; 2],
}

/// Why a certificate can't serve as credentials.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// The chain is empty.
    #[error("the certificate chain is empty")]
    Empty,
    /// It can't be read as an identity.
    #[error("the certificate can't be used: {0}")]
    Certificate(#[from] VerifyError),
}

impl Credentials {
    /// From a chain (leaf first, then intermediates, no root) with its key, the roots to trust, and the trust domains whose clients are
    /// accepted besides the identity's own.
    pub fn new(key: Arc<CertifiedKey>, roots: Arc<RootCertStore>, aliases: &[TrustDomain]) -> Result<Self, CredentialsError> {
        let leaf = key.cert.first().ok_or(CredentialsError::Empty)?;
        let (identity, not_after) = identity_of(leaf)?;
        let mut trust_domains = vec![identity.trust_domain().clone()];
        trust_domains.extend(aliases.iter().filter(|alias| *alias != identity.trust_domain()).cloned());
        Ok(Credentials {
            key,
            roots,
            identity,
            trust_domains: trust_domains.into(),
            not_after: system_time(not_after),
            client: OnceLock::new(),
            server: [const { OnceLock::new() }; 2],
        })
    }

    /// Whom the certificate names.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The roots that peers' certificates must chain to.
    pub fn roots(&self) -> &Arc<RootCertStore> {
        &self.roots
    }

    /// Until when the certificate is valid.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// For dialling a peer that must be one of `expected`.
    pub(super) fn client_config(&self, expected: &Arc<[Identity]>, own_protocol: bool) -> Result<Arc<ClientConfig>, rustls::Error> {
        let base = self.client.get_or_init(|| self.base_client_config()).clone()?;
        let mut config = ClientConfig::clone(&base);
        config.dangerous().set_certificate_verifier(self.verifier(Acceptable::Identities(expected.clone())));
        config.alpn_protocols = alpn(own_protocol);
        Ok(Arc::new(config))
    }

    /// For peers that dial.
    pub(super) fn server_config(&self, own_protocol: bool) -> Result<Arc<ServerConfig>, rustls::Error> {
        let [hbone_only, both] = &self.server;
        let cached = if own_protocol { both } else { hbone_only };
        cached.get_or_init(|| self.new_server_config(own_protocol)).clone()
    }

    fn verifier(&self, acceptable: Acceptable) -> Arc<PeerVerifier> {
        PeerVerifier::new(self.roots.clone(), provider().signature_verification_algorithms, acceptable)
    }

    fn base_client_config(&self) -> Result<Arc<ClientConfig>, rustls::Error> {
        // Replaced for each destination; this one accepts nobody.
        let nobody: Arc<dyn ServerCertVerifier> = self.verifier(Acceptable::Identities(Arc::new([])));
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(nobody)
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(self.key.clone())));
        config.enable_sni = false;
        // A resumed session would outlive a withdrawn certificate or root: the peer would not be judged again.
        config.resumption = Resumption::disabled();
        config.enable_secret_extraction = true;
        Ok(Arc::new(config))
    }

    fn new_server_config(&self, own_protocol: bool) -> Result<Arc<ServerConfig>, rustls::Error> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(self.verifier(Acceptable::TrustDomains(self.trust_domains.clone())))
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(self.key.clone())));
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        config.enable_secret_extraction = true;
        config.alpn_protocols = alpn(own_protocol);
        Ok(Arc::new(config))
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("identity", &self.identity).field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

fn alpn(own_protocol: bool) -> Vec<Vec<u8>> {
    if own_protocol { vec![ALPN_OWN.to_vec(), ALPN_HBONE.to_vec()] } else { vec![ALPN_HBONE.to_vec()] }
}

/// A moment from seconds since 1970; one before 1970 is long past in any case.
pub(super) fn system_time(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// Suites and groups in the order of preference. ztunnel has no ChaCha20 and starts with X25519.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER
        .get_or_init(|| {
            use aws_lc_rs::{cipher_suite, kx_group};
            Arc::new(CryptoProvider {
                cipher_suites: vec![
                    cipher_suite::TLS13_AES_256_GCM_SHA384,
                    cipher_suite::TLS13_AES_128_GCM_SHA256,
                    cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
                ],
                kx_groups: vec![kx_group::X25519, kx_group::X25519MLKEM768, kx_group::SECP256R1],
                ..aws_lc_rs::default_provider()
            })
        })
        .clone()
}
