//! What an issuer gave, judged: is it for our key, our identity, now, and does it lead to the roots?

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA256, digest};
use mesh_model::identity::Identity;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls::RootCertStore;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{PrivateKeyDer, UnixTime};
use webpki::{ALL_VERIFICATION_ALGS, EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::issuer::IssuedChain;
use super::spiffe::{SpiffeError, identity_in};

/// A certificate that may be used, with its key and whom to trust.
#[derive(Debug)]
pub struct Certificate {
    /// Whose it is.
    pub identity: Identity,
    /// Chain (leaf, then intermediates) and key, as TLS shows them.
    pub key: Arc<CertifiedKey>,
    /// The roots that peers' certificates must lead to.
    pub roots: Arc<RootCertStore>,
    /// First moment of its validity.
    pub not_before: SystemTime,
    /// Last moment of its validity.
    pub not_after: SystemTime,
    /// When it came.
    pub issued: SystemTime,
    /// Its serial number in hexadecimal digits.
    pub serial: String,
    /// Fingerprint of the root that its chain ends in.
    pub root: Option<String>,
    /// Fingerprints of [`Certificate::roots`].
    pub trusted: Vec<String>,
}

/// SHA-256 of a certificate, in lower-case hexadecimal digits.
fn fingerprint(certificate: &[u8]) -> String {
    digest(&SHA256, certificate).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Why what was issued is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// There is no certificate.
    #[error("the answer has no certificate")]
    Empty,
    /// It cannot be read.
    #[error("the certificate cannot be read: {0}")]
    Malformed(String),
    /// It names no identity.
    #[error("the certificate names no identity: {0}")]
    Names(#[from] SpiffeError),
    /// It is somebody else's.
    #[error("the certificate is for {got}, not for {wanted}")]
    Identity {
        /// In the certificate.
        got: Box<Identity>,
        /// Asked for.
        wanted: Box<Identity>,
    },
    /// It is for another key.
    #[error("the certificate is not for the key that was made here")]
    Key,
    /// It is not valid now.
    #[error("the certificate is {0}; compare this node's clock with the authority's")]
    Time(&'static str),
    /// A root cannot be used.
    #[error("the answer has no root that can be used: {0}")]
    Roots(String),
    /// It is not trusted, or not for client and server.
    #[error("the certificate is not trusted as a {0}'s: {1}")]
    Chain(&'static str, String),
    /// The TLS library cannot use it.
    #[error("the certificate cannot be used: {0}")]
    Tls(String),
}

/// A fresh key on P-256 and its request for a certificate, in PEM.
pub fn request(identity: &Identity) -> Result<(KeyPair, String), rcgen::Error> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
    let csr = params.serialize_request(&key)?.pem()?;
    Ok((key, csr))
}

/// Judges what was issued for `identity` and `key`.
pub fn accept(identity: &Identity, key: &KeyPair, chain: IssuedChain, now: SystemTime) -> Result<Certificate, ChainError> {
    let IssuedChain { certificates, roots } = chain;
    let (leaf, intermediates) = certificates.split_first().ok_or(ChainError::Empty)?;
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|error| ChainError::Malformed(error.to_string()))?;
    let got = identity_in(&parsed)?;
    if got != *identity {
        return Err(ChainError::Identity { got: Box::new(got), wanted: Box::new(identity.clone()) });
    }
    if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
        return Err(ChainError::Key);
    }
    let (not_before, not_after) = (moment(parsed.validity.not_before), moment(parsed.validity.not_after));
    if now < not_before {
        return Err(ChainError::Time("not valid yet"));
    }
    if now >= not_after {
        return Err(ChainError::Time("expired"));
    }
    let serial = parsed.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect();
    let trust = trust(&roots)?;
    let mut root = None;
    let time = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default());
    for (role, usage) in [("client", KeyUsage::client_auth()), ("server", KeyUsage::server_auth())] {
        EndEntityCert::try_from(leaf)
            .and_then(|leaf| {
                let path = leaf.verify_for_usage(ALL_VERIFICATION_ALGS, &trust.roots, intermediates, time, usage, None, None)?;
                root = roots.iter().find(|root| anchor_from_trusted_cert(root).is_ok_and(|anchor| anchor == *path.anchor()));
                Ok(())
            })
            .map_err(|error| ChainError::Chain(role, error.to_string()))?;
    }
    let secret = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let certified = CertifiedKey::from_der(certificates, secret, &rustls::crypto::aws_lc_rs::default_provider());
    Ok(Certificate {
        identity: identity.clone(),
        key: Arc::new(certified.map_err(|error| ChainError::Tls(error.to_string()))?),
        root: root.map(|root| fingerprint(root)),
        trusted: roots.iter().filter(|root| anchor_from_trusted_cert(root).is_ok()).map(|root| fingerprint(root)).collect(),
        roots: Arc::new(trust),
        not_before,
        not_after,
        issued: now,
        serial,
    })
}

/// The roots that can be used; a bundle may have some of a kind that the TLS library doesn't know, but not only such.
fn trust(roots: &[rustls_pki_types::CertificateDer<'static>]) -> Result<RootCertStore, ChainError> {
    let mut trust = RootCertStore::empty();
    let mut wrong = String::from("there is none at all");
    for (i, root) in roots.iter().enumerate() {
        if roots.iter().take(i).any(|earlier| earlier == root) {
            continue;
        }
        if let Err(error) = trust.add(root.clone()) {
            tracing::debug!(%error, "a root certificate cannot be used");
            wrong = error.to_string();
        }
    }
    if trust.is_empty() { Err(ChainError::Roots(wrong)) } else { Ok(trust) }
}

fn moment(time: x509_parser::time::ASN1Time) -> SystemTime {
    // One before 1970 is long past in any case.
    UNIX_EPOCH + Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or(0))
}

#[cfg(test)]
mod tests;
