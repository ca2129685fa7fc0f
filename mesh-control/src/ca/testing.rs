//! What tests of several modules need.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls_pki_types::CertificateDer;

use super::authority::Authority;
use super::hierarchy::{make_intermediate, make_root};

/// A fixed moment.
pub(crate) fn moment() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

/// A fresh root and intermediate, made at `now`.
pub(crate) fn authority(now: SystemTime) -> Authority {
    let root = make_root(now).unwrap();
    let intermediate = make_intermediate(&root, now).unwrap();
    Authority::new(intermediate.certificate, intermediate.key, Vec::new(), vec![root.certificate], now).unwrap()
}

/// A request by `key` for URIs.
pub(crate) fn csr(key: &KeyPair, uris: &[&str]) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
    params.serialize_request(key).unwrap().pem().unwrap()
}

/// Certificates in PEM.
pub(crate) fn certificates(pem: &str) -> Vec<CertificateDer<'static>> {
    use rustls_pki_types::pem::PemObject;
    CertificateDer::pem_slice_iter(pem.as_bytes()).map(Result::unwrap).collect()
}
