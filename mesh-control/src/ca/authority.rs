//! What signs: one issuing certificate with its key, and the chain from it to the roots.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use mesh_model::identity::Identity;
use rcgen::string::Ia5String;
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
    SerialNumber,
};
use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, UnixTime};
use time::OffsetDateTime;
use webpki::{ALL_VERIFICATION_ALGS, EndEntityCert, KeyUsage};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::lifetime::{Validity, validity};

const WORKLOAD_USAGE: [ExtendedKeyUsagePurpose; 2] = [ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];

/// What a certificate is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Subject<'a> {
    /// A workload: one SPIFFE ID, client and server.
    Workload(&'a Identity),
    /// A server of the control plane, found by these names and addresses.
    Server(&'a [ServerName]),
}

/// A name under which a server is found.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ServerName {
    /// A DNS name; a wildcard may stand for the first label.
    Dns(String),
    /// An address.
    Ip(IpAddr),
}

/// A certificate that was issued.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Issued {
    /// The leaf.
    pub leaf: CertificateDer<'static>,
    /// From when to when.
    pub validity: Validity,
    /// Its serial number, in hexadecimal digits.
    pub serial: String,
}

/// Why nothing is signed.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A certificate cannot be read.
    #[error("the {0} cannot be read: {1}")]
    Certificate(&'static str, String),
    /// The issuing certificate may not sign certificates.
    #[error("the issuing certificate is not that of an authority: it needs CA:TRUE, and keyCertSign where it limits key usage")]
    NotAnAuthority,
    /// There is no root.
    #[error("there is no root certificate")]
    NoRoot,
    /// Its chain leads to no root.
    #[error("what the authority signs is not trusted by its own roots: {0}; check that key, certificate, chain and root belong together")]
    Chain(String),
    /// Its time is over, or has not come.
    #[error("the issuing certificate is not valid at this time")]
    NotValid,
    /// The signature failed.
    #[error("signing failed: {0}")]
    Sign(String),
}

/// The authority that signs. Immutable; a successor takes its place as a whole.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    validity: Validity,
    root_validity: Validity,
    chain: Vec<CertificateDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
    trust: RootCertStore,
}

impl Authority {
    /// From an issuing certificate and its key, the certificates above it and the roots. What it is given is proven by a certificate
    /// that is signed and verified on the spot.
    ///
    /// Roots among `chain` are left out of it: peers have them or don't trust them.
    pub fn new(
        issuing: CertificateDer<'static>,
        key: KeyPair,
        chain: Vec<CertificateDer<'static>>,
        roots: Vec<CertificateDer<'static>>,
        now: SystemTime,
    ) -> Result<Authority, AuthorityError> {
        let validity = read_authority(&issuing)?;
        let mut root_validity: Option<Validity> = None;
        for root in &roots {
            let this = read_validity("root certificate", root)?;
            root_validity = Some(root_validity.filter(|first| first.not_after <= this.not_after).unwrap_or(this));
        }
        let root_validity = root_validity.ok_or(AuthorityError::NoRoot)?;
        let trust = store(&roots)?;
        let mut above = Vec::with_capacity(chain.len() + 1);
        for certificate in std::iter::once(issuing.clone()).chain(chain) {
            if !roots.contains(&certificate) && !above.contains(&certificate) {
                above.push(certificate);
            }
        }
        let issuer = Issuer::from_ca_cert_der(&issuing, key)
            .map_err(|error| AuthorityError::Certificate("issuing certificate", error.to_string()))?;
        let authority = Authority { issuer, validity, root_validity, chain: above, roots, trust };
        authority.prove(&authority.trust, now)?;
        Ok(authority)
    }

    /// Signs and verifies a certificate that nobody gets, without names, so that constraints on names don't matter.
    fn prove(&self, trust: &RootCertStore, now: SystemTime) -> Result<(), AuthorityError> {
        let wrong = |error: webpki::Error| AuthorityError::Chain(error.to_string());
        let key = KeyPair::generate().map_err(|error| AuthorityError::Sign(error.to_string()))?;
        let issued = self.issue(&key, Vec::new(), WORKLOAD_USAGE.to_vec(), Duration::from_secs(60), now)?;
        let leaf = EndEntityCert::try_from(&issued.leaf).map_err(wrong)?;
        let time = UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
        for usage in [KeyUsage::server_auth(), KeyUsage::client_auth()] {
            leaf.verify_for_usage(ALL_VERIFICATION_ALGS, &trust.roots, &self.chain, time, usage, None, None).map_err(wrong)?;
        }
        Ok(())
    }

    /// Whether whoever trusts these roots trusts what is signed here.
    pub fn is_trusted_by(&self, roots: &[CertificateDer<'static>], now: SystemTime) -> Result<(), AuthorityError> {
        self.prove(&store(roots)?, now)
    }

    /// Signs a certificate for `key`, for `lifetime` from `now` or as long as the issuing certificate allows.
    pub fn sign(
        &self,
        key: &impl PublicKeyData,
        subject: Subject<'_>,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Issued, AuthorityError> {
        let (names, usage) = match subject {
            Subject::Workload(identity) => (vec![SanType::URI(ia5(identity.to_string())?)], WORKLOAD_USAGE.to_vec()),
            Subject::Server(names) => {
                let name = |name: &ServerName| {
                    Ok(match name {
                        ServerName::Dns(name) => SanType::DnsName(ia5(name.clone())?),
                        ServerName::Ip(address) => SanType::IpAddress(*address),
                    })
                };
                (names.iter().map(name).collect::<Result<_, AuthorityError>>()?, vec![ExtendedKeyUsagePurpose::ServerAuth])
            }
        };
        self.issue(key, names, usage, lifetime, now)
    }

    fn issue(
        &self,
        key: &impl PublicKeyData,
        names: Vec<SanType>,
        usage: Vec<ExtendedKeyUsagePurpose>,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Issued, AuthorityError> {
        let validity = validity(now, lifetime, &self.validity).ok_or(AuthorityError::NotValid)?;
        let serial = serial()?;
        let mut params = CertificateParams::default();
        params.not_before = OffsetDateTime::from(validity.not_before);
        params.not_after = OffsetDateTime::from(validity.not_after);
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        // No subject: the names are critical then, and they are all that counts (X509-SVID 4.1, RFC 5280 4.2.1.6).
        params.distinguished_name = DistinguishedName::new();
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.subject_alt_names = names;
        params.extended_key_usages = usage;
        let certificate = params.signed_by(key, &self.issuer).map_err(|error| AuthorityError::Sign(error.to_string()))?;
        Ok(Issued { leaf: certificate.into(), validity, serial: hex(&serial) })
    }

    /// Validity of the issuing certificate.
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// Validity of the root that ends first.
    pub fn root_validity(&self) -> Validity {
        self.root_validity
    }

    /// What a peer needs beside the leaf, in its order: the issuing certificate and those above it, without the roots. Empty if a root signs.
    pub fn intermediates(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The roots.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The roots in PEM.
    pub fn roots_pem(&self) -> String {
        self.roots.iter().map(|root| pem(root)).collect()
    }

    /// The answer to a request, as istiod gives it and ztunnel reads it: leaf, intermediates, and the roots together as the last element
    /// (ztunnel takes the last element for the roots and every one before it for a single certificate).
    pub fn response(&self, leaf: &CertificateDer<'_>) -> Vec<String> {
        let mut chain: Vec<String> = std::iter::once(leaf).chain(&self.chain).map(|certificate| pem(certificate)).collect();
        chain.push(self.roots_pem());
        chain
    }
}

/// A certificate in PEM (RFC 7468), with a line end at its end.
pub fn pem(der: &[u8]) -> String {
    crate::files::pem("CERTIFICATE", der)
}

fn store(roots: &[CertificateDer<'static>]) -> Result<RootCertStore, AuthorityError> {
    let mut trust = RootCertStore::empty();
    for root in roots {
        trust.add(root.clone()).map_err(|error| AuthorityError::Certificate("root certificate", error.to_string()))?;
    }
    Ok(trust)
}

fn ia5(text: String) -> Result<Ia5String, AuthorityError> {
    Ia5String::try_from(text).map_err(|error| AuthorityError::Sign(error.to_string()))
}

/// A serial number that cannot be guessed: 126 random bits, positive and without a leading zero byte (RFC 5280, 4.1.2.2).
pub(super) fn serial() -> Result<[u8; 16], AuthorityError> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| AuthorityError::Sign("no random numbers".into()))?;
    let [first, ..] = &mut bytes;
    *first = (*first & 0x7f) | 0x40;
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Validity of a certificate.
pub(super) fn read_validity(what: &'static str, der: &CertificateDer<'_>) -> Result<Validity, AuthorityError> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|error| AuthorityError::Certificate(what, error.to_string()))?;
    let time = |time: x509_parser::time::ASN1Time| SystemTime::from(time.to_datetime());
    Ok(Validity { not_before: time(certificate.validity.not_before), not_after: time(certificate.validity.not_after) })
}

/// Validity of a certificate that may sign others.
pub(super) fn read_authority(der: &CertificateDer<'_>) -> Result<Validity, AuthorityError> {
    let unreadable = |error: String| AuthorityError::Certificate("issuing certificate", error);
    let (_, certificate) = X509Certificate::from_der(der).map_err(|error| unreadable(error.to_string()))?;
    let usage = certificate.key_usage().map_err(|error| unreadable(error.to_string()))?;
    if !certificate.is_ca() || usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
        return Err(AuthorityError::NotAnAuthority);
    }
    read_validity("issuing certificate", der)
}

#[cfg(test)]
mod tests;
