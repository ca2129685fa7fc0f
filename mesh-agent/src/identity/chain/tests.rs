use rcgen::{ExtendedKeyUsagePurpose, IsCa};

use super::super::testing::{Authority, CART, WEB, id, moment, names};
use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn try_with(change: impl FnOnce(&mut CertificateParams)) -> Result<Certificate, ChainError> {
    let authority = Authority::new("a");
    let (key, csr) = request(&id(CART)).unwrap();
    accept(&id(CART), &key, authority.sign(&csr, moment() - HOUR, moment() + HOUR, change), moment())
}

#[test]
fn takes_what_is_right() {
    let certificate = try_with(|params| params.serial_number = Some(vec![0x0a, 0xbc].into())).unwrap();
    assert_eq!((certificate.identity.to_string().as_str(), certificate.serial.as_str()), (CART, "0abc"));
    assert_eq!((certificate.not_before, certificate.not_after), (moment() - HOUR, moment() + HOUR));
    assert_eq!((certificate.roots.len(), certificate.key.cert.len()), (1, 1));
    certificate.key.keys_match().unwrap();
    assert_eq!((certificate.root.as_ref(), certificate.trusted.len()), (certificate.trusted.first(), 1));
}

#[test]
fn tells_which_root_it_leads_to_and_which_are_trusted() {
    let (authority, other) = (Authority::new("a"), Authority::new("b"));
    let (key, csr) = request(&id(CART)).unwrap();
    let mut chain = authority.sign(&csr, moment() - HOUR, moment() + HOUR, |_| {});
    chain.roots.insert(0, other.root.clone());
    chain.roots.push(vec![1, 2].into());
    let certificate = accept(&id(CART), &key, chain, moment()).unwrap();
    assert_eq!(certificate.trusted, [fingerprint(&other.root), fingerprint(&authority.root)]);
    assert_eq!(certificate.root, Some(fingerprint(&authority.root)));
}

#[test]
fn refuses_what_is_anothers() {
    let identity = |names_: &[&str]| try_with(|params| names(params, names_)).unwrap_err();
    assert!(matches!(identity(&[WEB]), ChainError::Identity { .. }));
    assert!(matches!(identity(&["spiffe://elsewhere/ns/shop/sa/cart"]), ChainError::Identity { .. }));
    assert_eq!(identity(&[CART, WEB]), ChainError::Names(SpiffeError::Several));
    assert_eq!(identity(&[]), ChainError::Names(SpiffeError::Absent));
    let authority = Authority::new("a");
    let (key, _) = request(&id(CART)).unwrap();
    let (_, others_csr) = request(&id(CART)).unwrap();
    let others = authority.sign(&others_csr, moment() - HOUR, moment() + HOUR, |_| {});
    assert_eq!(accept(&id(CART), &key, others, moment()).unwrap_err(), ChainError::Key);
}

#[test]
fn refuses_what_is_not_valid_now() {
    let authority = Authority::new("a");
    let (key, csr) = request(&id(CART)).unwrap();
    let at = |from, to| accept(&id(CART), &key, authority.sign(&csr, from, to, |_| {}), moment()).map(drop);
    assert!(matches!(at(moment() + HOUR, moment() + 2 * HOUR), Err(ChainError::Time("not valid yet"))));
    assert!(matches!(at(moment() - 2 * HOUR, moment() - HOUR), Err(ChainError::Time("expired"))));
    assert!(matches!(at(moment() - HOUR, moment()), Err(ChainError::Time("expired"))));
    at(moment(), moment() + HOUR).unwrap();
}

#[test]
fn refuses_what_leads_to_no_root_or_is_not_for_both_roles() {
    let authority = Authority::new("a");
    let (key, csr) = request(&id(CART)).unwrap();
    let good = authority.sign(&csr, moment() - HOUR, moment() + HOUR, |_| {});
    let accept = |chain: IssuedChain| accept(&id(CART), &key, chain, moment()).map(drop);
    let other = Authority::new("b").root;
    accept(IssuedChain { roots: vec![other.clone(), good.roots[0].clone(), good.roots[0].clone()], ..good.clone() }).unwrap();
    assert!(matches!(accept(IssuedChain { roots: vec![other], ..good.clone() }), Err(ChainError::Chain("client", _))));
    assert!(matches!(accept(IssuedChain { roots: vec![], ..good.clone() }), Err(ChainError::Roots(_))));
    assert!(matches!(accept(IssuedChain { roots: vec![vec![1, 2].into()], ..good.clone() }), Err(ChainError::Roots(_))));
    accept(IssuedChain { roots: vec![vec![1, 2].into(), good.roots[0].clone()], ..good.clone() }).unwrap();
    assert_eq!(accept(IssuedChain { certificates: vec![], ..good.clone() }), Err(ChainError::Empty));
    assert!(matches!(accept(IssuedChain { certificates: vec![vec![0; 10].into()], ..good }), Err(ChainError::Malformed(_))));
    let usage = |usage: ExtendedKeyUsagePurpose| try_with(|params| params.extended_key_usages = vec![usage]).unwrap_err();
    assert!(matches!(usage(ExtendedKeyUsagePurpose::ServerAuth), ChainError::Chain("client", _)));
    assert!(matches!(usage(ExtendedKeyUsagePurpose::ClientAuth), ChainError::Chain("server", _)));
    let authority = try_with(|params| params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained));
    assert!(matches!(authority.unwrap_err(), ChainError::Chain("client", _)));
}

#[test]
fn every_request_has_a_key_of_its_own() {
    let [a, b] = [(), ()].map(|()| request(&id(CART)).unwrap().0);
    assert_ne!(a.public_key_raw(), b.public_key_raw());
    assert_eq!(a.algorithm(), &rcgen::PKCS_ECDSA_P256_SHA256);
}
