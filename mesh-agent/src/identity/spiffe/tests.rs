use rcgen::{CertificateParams, KeyPair, SanType};

use super::super::testing::{CART, WEB, id, names};
use super::*;

fn with(change: impl FnOnce(&mut CertificateParams)) -> Result<Identity, SpiffeError> {
    let mut params = CertificateParams::default();
    change(&mut params);
    identity_of(params.self_signed(&KeyPair::generate().unwrap()).unwrap().der())
}

#[test]
fn the_only_uri_is_the_identity() {
    assert_eq!(with(|p| names(p, &[CART])), Ok(id(CART)));
    let beside_a_name = with(|p| {
        names(p, &[CART]);
        p.subject_alt_names.push(SanType::DnsName("cart.shop".try_into().unwrap()));
    });
    assert_eq!(beside_a_name, Ok(id(CART)));
}

#[test]
fn what_names_no_identity() {
    assert_eq!(with(|_| {}), Err(SpiffeError::Absent));
    assert_eq!(with(|p| p.subject_alt_names.push(SanType::DnsName("a".try_into().unwrap()))), Err(SpiffeError::Absent));
    assert_eq!(with(|p| names(p, &[CART, WEB])), Err(SpiffeError::Several));
    assert!(matches!(with(|p| names(p, &["https://a/b"])), Err(SpiffeError::NotAnIdentity(_))));
    for bytes in [&b""[..], b"\x30", b"\x30\x03\x02\x01\x01", &[0xff; 64]] {
        assert!(matches!(identity_of(bytes), Err(SpiffeError::Malformed(_))));
    }
}
