//! Certificates: an authority whose key the test holds, and what it signs, honest or not.

use std::time::{Duration, SystemTime};

use mesh_lab::World;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use time::OffsetDateTime;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// A root whose key the test holds, so that it can sign what no honest authority would.
pub struct Authority {
    key: KeyPair,
    certificate: CertificateDer<'static>,
    pem: String,
}

/// A certificate that somebody shows, and its key.
pub struct Shown {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
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
        vec![
            format!("--ca-cert={}", write("ca-cert.pem", &self.pem)),
            format!("--ca-key={}", write("ca-key.pem", &self.key.serialize_pem())),
        ]
    }

    /// Signs.
    pub fn issue(&self, leaf: &Leaf) -> Shown {
        let key = KeyPair::generate().unwrap();
        let issuer = Issuer::from_ca_cert_der(&self.certificate, &self.key).unwrap();
        let certificate = leaf.params().signed_by(&key, &issuer).unwrap();
        Shown { chain: vec![certificate.der().clone()], key: key.into() }
    }

    pub(super) fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        roots
    }
}

impl Shown {
    /// From what a certificate authority answered: PEM, leaf first, and the key that was asked for.
    pub fn from_pem(chain: &[String], key: &KeyPair) -> Self {
        use rustls::pki_types::pem::PemObject;
        let mut certificates: Vec<_> =
            chain.iter().flat_map(|pem| CertificateDer::pem_slice_iter(pem.as_bytes())).map(Result::unwrap).collect();
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
