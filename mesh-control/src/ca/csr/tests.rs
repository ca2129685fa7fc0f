use rcgen::{
    CertificateParams, IsCa, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ECDSA_P521_SHA512, PKCS_ED25519, PublicKeyData,
    RsaKeySize, SanType,
};
use rustls_pki_types::CertificateSigningRequestDer;

use super::*;
use crate::ca::testing::csr;

const ID: &str = "spiffe://cluster.local/ns/shop/sa/cart";

fn key() -> KeyPair {
    KeyPair::generate().unwrap()
}

fn reason(pem: &str) -> &'static str {
    read(pem).map_or_else(|refusal| refusal.reason(), |_| "none")
}

#[test]
fn reads_a_request_as_agents_and_ztunnel_make_it() {
    let key = key();
    let read = read(&csr(&key, &[ID])).unwrap();
    assert_eq!(read.identity.unwrap().to_string(), ID);
    assert_eq!(read.key.der_bytes(), key.public_key_raw());
    assert!(super::read(&csr(&key, &[])).unwrap().identity.is_none());
}

#[test]
fn kinds_of_keys() {
    for (algorithm, fine) in
        [(&PKCS_ECDSA_P256_SHA256, true), (&PKCS_ECDSA_P384_SHA384, true), (&PKCS_ECDSA_P521_SHA512, false), (&PKCS_ED25519, false)]
    {
        let key = KeyPair::generate_for(algorithm).unwrap();
        assert_eq!(reason(&csr(&key, &[ID])), if fine { "none" } else { "key" }, "{algorithm:?}");
    }
    let rsa = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
    assert_eq!(reason(&csr(&rsa, &[ID])), "none");
}

#[test]
fn names() {
    assert_eq!(reason(&csr(&key(), &[ID, ID])), "names");
    assert_eq!(reason(&csr(&key(), &[ID, "spiffe://cluster.local/ns/shop/sa/admin"])), "names");
    for bad in ["spiffe://cluster.local/ns/shop", "https://cluster.local/ns/shop/sa/cart", "spiffe://cluster.local/ns/shop/sa/Cart"] {
        assert_eq!(reason(&csr(&key(), &[bad])), "not_an_identity", "{bad}");
    }
    let with = |change: &dyn Fn(&mut CertificateParams)| {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(ID.try_into().unwrap())];
        change(&mut params);
        params.serialize_request(&key()).unwrap().pem().unwrap()
    };
    assert_eq!(reason(&with(&|p| p.subject_alt_names.push(SanType::DnsName("a.b".try_into().unwrap())))), "names");
    assert_eq!(reason(&with(&|p| p.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained))), "names");
    assert_eq!(reason(&with(&|_| {})), "none", "a subject is not looked at");
}

#[test]
fn the_signature_must_be_by_the_key() {
    let der = CertificateSigningRequestDer::from_pem_slice(csr(&key(), &[ID]).as_bytes()).unwrap();
    let mut bytes = der.to_vec();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    assert_eq!(reason(&crate::files::pem("CERTIFICATE REQUEST", &bytes)), "csr_signature");
    // The identity is changed, of the same length.
    let mut bytes = der.to_vec();
    let at = bytes.windows(4).position(|w| w == b"cart").unwrap();
    bytes[at..at + 4].copy_from_slice(b"root");
    assert_eq!(reason(&crate::files::pem("CERTIFICATE REQUEST", &bytes)), "csr_signature");
}

#[test]
fn what_is_no_request() {
    let key = key();
    let good = csr(&key, &[ID]);
    for bad in [
        "",
        "nonsense",
        "-----BEGIN CERTIFICATE REQUEST-----\n",
        "-----BEGIN CERTIFICATE REQUEST-----\n!!!\n-----END CERTIFICATE REQUEST-----\n",
    ] {
        assert_eq!(reason(bad), "csr", "{bad}");
    }
    assert_eq!(reason(&good.replace("CERTIFICATE REQUEST", "CERTIFICATE")), "csr");
    assert_eq!(reason(&format!("{good}{good}")), "csr");
    assert_eq!(reason(&"x".repeat(MAX_LENGTH + 1)), "csr");
    let der = CertificateSigningRequestDer::from_pem_slice(good.as_bytes()).unwrap();
    let mut longer = der.to_vec();
    longer.push(0);
    assert_eq!(reason(&crate::files::pem("CERTIFICATE REQUEST", &longer)), "csr");
    // No truncation and no single changed byte gets anything but what was signed for.
    let want = (key.public_key_raw().to_vec(), Some(ID.to_owned()));
    for length in 0..der.len() {
        assert_ne!(reason(&crate::files::pem("CERTIFICATE REQUEST", &der[..length])), "none", "{length}");
    }
    for at in 0..der.len() {
        let mut bytes = der.to_vec();
        bytes[at] = bytes[at].wrapping_add(1);
        if let Ok(read) = read(&crate::files::pem("CERTIFICATE REQUEST", &bytes)) {
            assert_eq!((read.key.der_bytes().to_vec(), read.identity.map(|id| id.to_string())), want, "{at}");
        }
    }
}
