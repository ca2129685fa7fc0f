use mesh_model::identity::TrustDomain;

use super::*;
use crate::ca::hierarchy::{Signer, make_intermediate, make_root};
use crate::ca::testing::{authority, certificates, moment};

const HOUR: Duration = Duration::from_secs(3600);

fn cart() -> Identity {
    Identity::new(TrustDomain::default(), "shop", "cart").unwrap()
}

fn verify(authority: &Authority, issued: &Issued, at: SystemTime, usage: KeyUsage) -> Result<(), webpki::Error> {
    let leaf = EndEntityCert::try_from(&issued.leaf)?;
    let time = UnixTime::since_unix_epoch(at.duration_since(SystemTime::UNIX_EPOCH).unwrap());
    let trust = &authority.trust.roots;
    leaf.verify_for_usage(ALL_VERIFICATION_ALGS, trust, authority.intermediates(), time, usage, None, None).map(drop)
}

#[test]
fn a_workloads_certificate_says_what_it_should_and_no_more() {
    let authority = authority(moment());
    let key = KeyPair::generate().unwrap();
    let issued = authority.sign(&key, Subject::Workload(&cart()), 24 * HOUR, moment()).unwrap();
    for usage in [KeyUsage::client_auth(), KeyUsage::server_auth()] {
        verify(&authority, &issued, moment(), usage).unwrap();
    }
    let (_, leaf) = X509Certificate::from_der(&issued.leaf).unwrap();
    let san = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(san.critical && leaf.subject().iter().next().is_none());
    assert_eq!(format!("{:?}", san.value.general_names), format!("[URI({:?})]", cart().to_string()));
    let usage = leaf.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.digital_signature() && usage.value.flags == 1);
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.client_auth && extended.server_auth && !extended.any && !extended.code_signing);
    assert!(!leaf.is_ca() && leaf.basic_constraints().unwrap().is_some());
    assert_eq!(leaf.public_key().subject_public_key.data.as_ref(), key.public_key_raw());
    assert_eq!(leaf.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect::<String>(), issued.serial);
    assert_eq!(read_validity("leaf", &issued.leaf).unwrap(), issued.validity);
}

#[test]
fn two_certificates_for_one_key_differ_in_serial() {
    let authority = authority(moment());
    let key = KeyPair::generate().unwrap();
    let [a, b] = [(), ()].map(|()| authority.sign(&key, Subject::Workload(&cart()), HOUR, moment()).unwrap());
    assert_ne!(a.serial, b.serial);
}

#[test]
fn is_over_when_it_says_so_and_not_before() {
    let authority = authority(moment());
    let key = KeyPair::generate().unwrap();
    let issued = authority.sign(&key, Subject::Workload(&cart()), HOUR, moment()).unwrap();
    let at = |time| verify(&authority, &issued, time, KeyUsage::client_auth()).is_ok();
    assert!(at(moment() - Duration::from_secs(59)) && at(moment() + HOUR));
    assert!(!at(moment() - Duration::from_secs(62)) && !at(moment() + HOUR + Duration::from_secs(2)));
}

#[test]
fn a_leaf_never_outlives_its_issuer() {
    let authority = authority(moment());
    let key = KeyPair::generate().unwrap();
    let end = authority.validity().not_after;
    let issued = authority.sign(&key, Subject::Workload(&cart()), 24 * HOUR, end - HOUR).unwrap();
    assert_eq!(issued.validity.not_after, end);
    assert!(matches!(authority.sign(&key, Subject::Workload(&cart()), HOUR, end + HOUR), Err(AuthorityError::NotValid)));
}

#[test]
fn a_servers_certificate_is_no_clients() {
    let authority = authority(moment());
    let key = KeyPair::generate().unwrap();
    let names = [ServerName::Dns("mesh-control.nodemesh-system.svc".into()), ServerName::Ip([127, 0, 0, 1].into())];
    let issued = authority.sign(&key, Subject::Server(&names), HOUR, moment()).unwrap();
    verify(&authority, &issued, moment(), KeyUsage::server_auth()).unwrap();
    assert!(verify(&authority, &issued, moment(), KeyUsage::client_auth()).is_err());
    let leaf = EndEntityCert::try_from(&issued.leaf).unwrap();
    for (name, fine) in [("mesh-control.nodemesh-system.svc", true), ("127.0.0.1", true), ("other.svc", false), ("127.0.0.2", false)] {
        assert_eq!(leaf.verify_is_valid_for_subject_name(&name.try_into().unwrap()).is_ok(), fine, "{name}");
    }
}

#[test]
fn the_response_is_leaf_intermediate_roots() {
    let authority = authority(moment());
    let key = KeyPair::generate().unwrap();
    let issued = authority.sign(&key, Subject::Workload(&cart()), HOUR, moment()).unwrap();
    let response = authority.response(&issued.leaf);
    assert_eq!(response.len(), 3);
    assert_eq!(certificates(&response[0]), [issued.leaf]);
    assert_eq!(certificates(&response[1]), authority.intermediates());
    assert_eq!(certificates(&response[2]), authority.roots());
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let now = moment();
    let (root, other) = (make_root(now).unwrap(), make_root(now).unwrap());
    let make = || make_intermediate(&root, now).unwrap();
    let new = |Signer { certificate, key }: Signer, roots| Authority::new(certificate, key, Vec::new(), roots, now).map(drop);
    new(make(), vec![root.certificate.clone()]).unwrap();
    new(make(), vec![other.certificate.clone(), root.certificate.clone()]).unwrap();
    assert!(matches!(new(make(), vec![other.certificate.clone()]), Err(AuthorityError::Chain(_))));
    assert!(matches!(new(make(), vec![]), Err(AuthorityError::NoRoot)));
    let wrong_key = Signer { certificate: make().certificate, key: KeyPair::generate().unwrap() };
    assert!(matches!(new(wrong_key, vec![root.certificate.clone()]), Err(AuthorityError::Chain(_))));
    let authority = authority(now);
    let key = KeyPair::generate().unwrap();
    let leaf = authority.sign(&key, Subject::Workload(&cart()), HOUR, now).unwrap().leaf;
    assert!(matches!(new(Signer { certificate: leaf, key }, vec![root.certificate.clone()]), Err(AuthorityError::NotAnAuthority)));
}

#[test]
fn a_root_may_sign_by_itself() {
    let root = make_root(moment()).unwrap();
    let roots = vec![root.certificate.clone()];
    let authority = Authority::new(root.certificate, root.key, Vec::new(), roots, moment()).unwrap();
    assert!(authority.intermediates().is_empty());
    let key = KeyPair::generate().unwrap();
    let issued = authority.sign(&key, Subject::Workload(&cart()), HOUR, moment()).unwrap();
    verify(&authority, &issued, moment(), KeyUsage::client_auth()).unwrap();
    assert_eq!(authority.response(&issued.leaf).len(), 2);
}
