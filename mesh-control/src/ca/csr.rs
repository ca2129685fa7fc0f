//! Certificate requests (PKCS #10), as clients send them. Nothing in one is believed but the key that signed it.

use mesh_model::identity::Identity;
use rcgen::SubjectPublicKeyInfo;
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_PKCS1_RSAENCRYPTION};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo as ParsedKey;

use super::refusal::Refusal;

/// Longest text of a request; one with an 8192 bit RSA key has about 3 KB.
pub const MAX_LENGTH: usize = 16 * 1024;

/// A request whose signature and key are fine.
#[derive(Debug)]
pub struct Csr {
    /// The key to be certified.
    pub key: SubjectPublicKeyInfo,
    /// The identity it asks for; Istio leaves it to the authority to know if there is none.
    pub identity: Option<Identity>,
}

/// Reads a request in PEM and proves that the client has the key. Subject and extensions other than the names are not looked at: they
/// never reach the certificate.
pub fn read(pem: &str) -> Result<Csr, Refusal> {
    if pem.len() > MAX_LENGTH {
        return Err(Refusal::Csr(format!("it has {} bytes, more than {MAX_LENGTH}", pem.len())));
    }
    let mut sections = CertificateSigningRequestDer::pem_slice_iter(pem.as_bytes());
    let der = match (sections.next(), sections.next()) {
        (Some(Ok(der)), None) => der,
        (None, _) => return Err(Refusal::Csr("it is not PEM with the label CERTIFICATE REQUEST".into())),
        (Some(Err(error)), _) => return Err(Refusal::Csr(format!("it is not PEM: {error}"))),
        (Some(Ok(_)), Some(_)) => return Err(Refusal::Csr("it has more than one PEM section".into())),
    };
    let (rest, request) = X509CertificationRequest::from_der(&der).map_err(|error| Refusal::Csr(format!("it is not PKCS #10: {error}")))?;
    if !rest.is_empty() {
        return Err(Refusal::Csr("bytes follow the request".into()));
    }
    let key = key(&request.certification_request_info.subject_pki)?;
    request.verify_signature().map_err(|_| Refusal::CsrSignature)?;
    let identity = identity(&request)?;
    Ok(Csr { key, identity })
}

/// The key, if it is of a kind that every peer can verify at a bearable price.
fn key(spki: &ParsedKey<'_>) -> Result<SubjectPublicKeyInfo, Refusal> {
    let algorithm = &spki.algorithm.algorithm;
    if *algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
        let curve = spki.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
        match curve {
            Some(curve) if curve == OID_EC_P256 || curve == OID_NIST_EC_P384 => {}
            _ => return Err(Refusal::Key("the key's curve is neither P-256 nor P-384".into())),
        }
    } else if *algorithm == OID_PKCS1_RSAENCRYPTION {
        let Ok(PublicKey::RSA(rsa)) = spki.parsed() else { return Err(Refusal::Key("the RSA key cannot be read".into())) };
        let bits = rsa.modulus.iter().skip_while(|byte| **byte == 0).count() * 8;
        if !(2048..=8192).contains(&bits) {
            return Err(Refusal::Key(format!("the RSA key has {bits} bits")));
        }
    } else {
        return Err(Refusal::Key(format!("keys of the kind {algorithm} are not signed for")));
    }
    SubjectPublicKeyInfo::from_der(spki.raw).map_err(|error| Refusal::Key(format!("the key cannot be read: {error}")))
}

/// The one name that the request asks for.
fn identity(request: &X509CertificationRequest<'_>) -> Result<Option<Identity>, Refusal> {
    let mut found: Option<&str> = None;
    for attribute in request.certification_request_info.iter_attributes() {
        let ParsedCriAttribute::ExtensionRequest(requested) = attribute.parsed_attribute() else { continue };
        for extension in &requested.extensions {
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(names) => {
                    for name in &names.general_names {
                        let GeneralName::URI(uri) = name else { return Err(Refusal::Names("it asks for a name that is no URI".into())) };
                        if found.replace(uri).is_some() {
                            return Err(Refusal::Names("it asks for more than one name".into()));
                        }
                    }
                }
                ParsedExtension::BasicConstraints(constraints) if constraints.ca => {
                    return Err(Refusal::Names("it asks to be an authority".into()));
                }
                ParsedExtension::ParseError { .. } => return Err(Refusal::Csr("an extension that it asks for cannot be read".into())),
                _ => {}
            }
        }
    }
    Ok(found.map(str::parse).transpose()?)
}

#[cfg(test)]
mod tests;
