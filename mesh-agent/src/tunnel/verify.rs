//! Whom to believe: a chain to our roots, the right purpose, and a SPIFFE identity that is acceptable here. No host names.

use std::fmt;
use std::sync::Arc;

use mesh_model::identity::{Identity, TrustDomain};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore, SignatureScheme};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::identity::spiffe::identity_in;

/// Why a peer's certificate is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// It showed none.
    #[error("it showed no certificate")]
    Missing,
    /// Its time is over.
    #[error("it is expired")]
    Expired,
    /// Its time has not come; the clocks may differ.
    #[error("it is not valid yet")]
    NotYetValid,
    /// No chain to a root that we trust; self-signed ones among them.
    #[error("it does not chain to a root that we trust")]
    UnknownIssuer,
    /// Its extended key usage forbids this use.
    #[error("it is not meant for this purpose (extended key usage)")]
    Purpose,
    /// It names no identity of the mesh.
    #[error("it names no identity: {0}")]
    NoIdentity(Arc<str>),
    /// The identity is of a trust domain that is neither ours nor an alias of it.
    #[error("its identity {found} is not of a trust domain accepted here ({accepted})")]
    TrustDomain {
        /// Whose certificate it is.
        found: Identity,
        /// What would be accepted.
        accepted: Arc<str>,
    },
    /// It is somebody else than who is expected there.
    #[error("it is {found}, not {expected}")]
    Identity {
        /// Whose certificate it is.
        found: Identity,
        /// Who is expected.
        expected: Arc<str>,
    },
    /// Malformed, or wrongly signed.
    #[error("it is invalid: {0}")]
    Invalid(Arc<str>),
}

impl VerifyError {
    /// What the TLS library wraps it in; decides the alert that the peer gets.
    fn into_tls(self) -> rustls::Error {
        rustls::Error::InvalidCertificate(match self {
            VerifyError::Expired => CertificateError::Expired,
            VerifyError::NotYetValid => CertificateError::NotValidYet,
            VerifyError::UnknownIssuer => CertificateError::UnknownIssuer,
            VerifyError::Purpose => CertificateError::InvalidPurpose,
            other => CertificateError::Other(OtherError(Arc::new(other))),
        })
    }

    /// What the TLS library reports, if it is about the peer's certificate.
    pub fn from_tls(error: &rustls::Error) -> Option<VerifyError> {
        Some(match error {
            rustls::Error::NoCertificatesPresented => VerifyError::Missing,
            rustls::Error::InvalidCertificate(error) => match error {
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => VerifyError::Expired,
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => VerifyError::NotYetValid,
                CertificateError::UnknownIssuer => VerifyError::UnknownIssuer,
                CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => VerifyError::Purpose,
                CertificateError::Other(other) => match other.0.downcast_ref::<VerifyError>() {
                    Some(ours) => ours.clone(),
                    None => VerifyError::Invalid(error.to_string().into()),
                },
                other => VerifyError::Invalid(other.to_string().into()),
            },
            _ => return None,
        })
    }

    pub(super) fn from_webpki(error: webpki::Error) -> VerifyError {
        match error {
            webpki::Error::CertExpired { .. } => VerifyError::Expired,
            webpki::Error::CertNotValidYet { .. } => VerifyError::NotYetValid,
            webpki::Error::UnknownIssuer | webpki::Error::CaUsedAsEndEntity => VerifyError::UnknownIssuer,
            webpki::Error::RequiredEkuNotFoundContext(_) | webpki::Error::EmptyEkuExtension => VerifyError::Purpose,
            other => VerifyError::Invalid(other.to_string().into()),
        }
    }
}

/// The identity that a certificate names, and its `notAfter` in seconds since 1970.
pub fn identity_of(certificate: &CertificateDer<'_>) -> Result<(Identity, i64), VerifyError> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|e| VerifyError::Invalid(e.to_string().into()))?;
    let identity = identity_in(&parsed).map_err(|e| VerifyError::NoIdentity(e.to_string().into()))?;
    Ok((identity, parsed.validity().not_after.timestamp()))
}

/// Which identities are acceptable.
#[derive(Clone, Debug)]
pub enum Acceptable {
    /// Any of these trust domains: what a server demands of its clients.
    TrustDomains(Arc<[TrustDomain]>),
    /// One of these: what a client demands of the server that it dialled.
    Identities(Arc<[Identity]>),
}

impl Acceptable {
    fn judge(&self, found: Identity) -> Result<(), VerifyError> {
        match self {
            Acceptable::TrustDomains(domains) if domains.contains(found.trust_domain()) => Ok(()),
            Acceptable::TrustDomains(domains) => Err(VerifyError::TrustDomain { found, accepted: list(domains) }),
            Acceptable::Identities(identities) if identities.contains(&found) => Ok(()),
            Acceptable::Identities(identities) => Err(VerifyError::Identity { found, expected: list(identities) }),
        }
    }
}

fn list<T: fmt::Display>(items: &[T]) -> Arc<str> {
    let texts: Vec<String> = items.iter().take(8).map(T::to_string).collect();
    texts.join(" or ").into()
}

/// Judges a peer's certificate in either role.
#[derive(Debug)]
pub struct PeerVerifier {
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
    acceptable: Acceptable,
}

impl PeerVerifier {
    /// With the roots to chain to.
    pub fn new(roots: Arc<RootCertStore>, algorithms: WebPkiSupportedAlgorithms, acceptable: Acceptable) -> Arc<Self> {
        Arc::new(PeerVerifier { roots, algorithms, acceptable })
    }

    fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<(), VerifyError> {
        let leaf = EndEntityCert::try_from(end_entity).map_err(VerifyError::from_webpki)?;
        leaf.verify_for_usage(self.algorithms.all, &self.roots.roots, intermediates, now, usage, None, None)
            .map_err(VerifyError::from_webpki)?;
        let (identity, _) = identity_of(end_entity)?;
        self.acceptable.judge(identity)
    }

    fn tls12(&self) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken here".into()))
    }
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, now, KeyUsage::server_auth()).map_err(VerifyError::into_tls)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // A peer has one certificate for the pod it speaks for; hints would only tell strangers whom we trust.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, now, KeyUsage::client_auth()).map_err(VerifyError::into_tls)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
