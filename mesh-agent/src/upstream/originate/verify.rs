//! Whether a server outside the mesh is who it should be.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Demands a certificate that chains to a root and has one of the names.
pub(super) struct Verifier {
    /// `None`: whoever answers will do (`insecureSkipVerify`).
    roots: Option<Arc<RootCertStore>>,
    /// Any of these; the server name if empty.
    names: Vec<Name>,
    algorithms: WebPkiSupportedAlgorithms,
}

enum Name {
    /// A host or an address; a certificate may have `*.` for the first label.
    Host(ServerName<'static>),
    /// A URI, as it is written.
    Uri(Box<str>),
}

impl Verifier {
    pub(super) fn new(roots: Option<Arc<RootCertStore>>, names: &[Arc<str>], algorithms: WebPkiSupportedAlgorithms) -> Verifier {
        let name = |text: &Arc<str>| match ServerName::try_from(text.to_string()) {
            Ok(host) => Name::Host(host),
            Err(_) => Name::Uri((&**text).into()),
        };
        Verifier { roots, names: names.iter().map(name).collect(), algorithms }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(roots) = &self.roots else { return Ok(ServerCertVerified::assertion()) };
        let certificate = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&certificate, roots, intermediates, now, self.algorithms.all)?;
        if self.names.is_empty() {
            verify_server_name(&certificate, server_name)?;
            return Ok(ServerCertVerified::assertion());
        }
        let mut last = Error::InvalidCertificate(CertificateError::NotValidForName);
        for name in &self.names {
            match name {
                Name::Host(host) => match verify_server_name(&certificate, host) {
                    Ok(()) => return Ok(ServerCertVerified::assertion()),
                    Err(error) => last = error,
                },
                Name::Uri(uri) if has_uri(end_entity, uri) => return Ok(ServerCertVerified::assertion()),
                Name::Uri(_) => {}
            }
        }
        Err(last)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn has_uri(certificate: &CertificateDer<'_>, wanted: &str) -> bool {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return false };
    let Ok(Some(names)) = parsed.subject_alternative_name() else { return false };
    names.value.general_names.iter().any(|name| matches!(name, GeneralName::URI(uri) if *uri == wanted))
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("verifies", &self.roots.is_some()).field("names", &self.names.len()).finish_non_exhaustive()
    }
}
