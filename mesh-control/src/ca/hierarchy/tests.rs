use super::*;
use crate::ca::authority::{Authority, pem};
use crate::ca::testing::moment;
use crate::files::{SECRET, write};

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Dir {
        Dir(tempfile::tempdir().unwrap())
    }

    fn put(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        write(&path, text.as_bytes(), SECRET).unwrap();
        path
    }
}

fn open(given: Given) -> Result<Authority, AuthorityError> {
    Authority::new(given.signer.certificate, given.signer.key, given.chain, given.roots, moment())
}

#[test]
fn an_intermediate_lives_within_its_root_and_signs_leaves_only() {
    let root = make_root(moment()).unwrap();
    let limit = read_authority(&root.certificate).unwrap();
    let late = limit.not_after - Duration::from_secs(3600);
    let intermediate = make_intermediate(&root, late).unwrap();
    assert_eq!(read_authority(&intermediate.certificate).unwrap().not_after, limit.not_after);
    assert!(matches!(make_intermediate(&root, limit.not_after + Duration::from_secs(1)), Err(AuthorityError::NotValid)));
    let (_, parsed) = X509Certificate::from_der(&intermediate.certificate).unwrap();
    assert_eq!(parsed.basic_constraints().unwrap().unwrap().value.path_len_constraint, Some(0));
    let validity = read_authority(&make_intermediate(&root, moment()).unwrap().certificate).unwrap();
    assert!(!is_due(&validity, moment()) && is_due(&validity, validity.half()));
}

#[test]
fn files_in_istios_form() {
    let dir = Dir::new();
    let root = make_root(moment()).unwrap();
    let intermediate = make_intermediate(&root, moment()).unwrap();
    let files = CaFiles {
        certificate: dir.put("ca-cert.pem", &pem(&intermediate.certificate)),
        key: dir.put("ca-key.pem", &intermediate.key.serialize_pem()),
        roots: Some(dir.put("root-cert.pem", &pem(&root.certificate))),
        // As Istio's own makefile writes it: intermediate and root.
        chain: Some(dir.put("cert-chain.pem", &(pem(&intermediate.certificate) + &pem(&root.certificate)))),
    };
    let given = read(&files).unwrap();
    assert!(!given.may_have_intermediate);
    let authority = open(given).unwrap();
    assert_eq!(authority.intermediates(), [intermediate.certificate]);
    assert_eq!(authority.roots(), [root.certificate]);
}

#[test]
fn a_root_alone_is_enough_and_may_have_an_intermediate() {
    let dir = Dir::new();
    let root = make_root(moment()).unwrap();
    let certificate = dir.put("root-cert.pem", &pem(&root.certificate));
    let key = dir.put("root-key.pem", &root.key.serialize_pem());
    let given = read(&CaFiles { certificate, key, roots: None, chain: None }).unwrap();
    assert!(given.may_have_intermediate);
    assert_eq!(given.roots, [root.certificate]);
}

#[test]
fn keys_in_the_forms_that_openssl_writes() {
    // SEC 1, P-256, made by `openssl ecparam -genkey`; the certificate is made for it here.
    let dir = Dir::new();
    let sec1 = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n".to_owned() + &sec1();
    let key = dir.put("key.pem", &sec1);
    let read_back = read_key(&key).unwrap();
    let params = params("Test", IsCa::Ca(BasicConstraints::Unconstrained), moment(), moment() + INTERMEDIATE_LIFETIME).unwrap();
    let certificate = dir.put("cert.pem", &pem(params.self_signed(&read_back).unwrap().der()));
    open(read(&CaFiles { certificate, key, roots: None, chain: None }).unwrap()).unwrap();
}

/// The inner SEC 1 structure of a PKCS #8 key.
fn sec1() -> String {
    let pkcs8 = KeyPair::generate().unwrap().serialize_der();
    let at = pkcs8.windows(5).position(|w| w == [0x02, 0x01, 0x01, 0x04, 0x20]).unwrap();
    crate::files::pem("EC PRIVATE KEY", &pkcs8[at - 2..])
}

#[test]
fn errors_name_the_file() {
    let dir = Dir::new();
    let (root, other) = (make_root(moment()).unwrap(), make_root(moment()).unwrap());
    let intermediate = make_intermediate(&root, moment()).unwrap();
    let certificate = dir.put("ca-cert.pem", &pem(&intermediate.certificate));
    let key = dir.put("ca-key.pem", &intermediate.key.serialize_pem());
    let roots = dir.put("root-cert.pem", &pem(&root.certificate));
    let base = CaFiles { certificate: certificate.clone(), key, roots: Some(roots), chain: None };
    let error = |change: &dyn Fn(&mut CaFiles)| {
        let mut files = base.clone();
        change(&mut files);
        read(&files).unwrap_err().to_string()
    };
    assert!(read(&base).is_ok());
    assert!(error(&|f| f.certificate = dir.0.path().join("absent")).contains("absent"));
    assert!(error(&|f| f.key = certificate.clone()).contains("ca-cert.pem: holds no unencrypted private key"));
    assert!(
        error(&|f| f.key = dir.put("other.pem", &other.key.serialize_pem())).contains("ca-cert.pem: the key given with it is not its own")
    );
    assert!(error(&|f| f.roots = Some(dir.put("empty.pem", ""))).contains("empty.pem: holds no certificate"));
    assert!(error(&|f| f.roots = None).contains("--root-cert"));
    assert!(
        error(&|f| f.chain = Some(dir.put("bad.pem", "-----BEGIN CERTIFICATE-----\n*\n-----END CERTIFICATE-----\n")))
            .contains("bad.pem: is not PEM")
    );
    let mut strange = base.clone();
    strange.roots = Some(dir.put("strange.pem", &pem(&other.certificate)));
    assert!(matches!(open(read(&strange).unwrap()), Err(AuthorityError::Chain(_))));
}

#[test]
fn an_authority_with_an_rsa_key_signs() {
    let dir = Dir::new();
    let key = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
    let params = params("Test", IsCa::Ca(BasicConstraints::Constrained(0)), moment(), moment() + INTERMEDIATE_LIFETIME).unwrap();
    let certificate = dir.put("cert.pem", &pem(params.self_signed(&key).unwrap().der()));
    // PKCS #8 and, as older Istio writes it, PKCS #1: the content of the octet string at its end.
    let pkcs8 = key.serialize_der();
    let pkcs1 = crate::files::pem("RSA PRIVATE KEY", &pkcs8[26..]);
    for text in [key.serialize_pem(), pkcs1] {
        let given = read(&CaFiles { certificate: certificate.clone(), key: dir.put("key.pem", &text), roots: None, chain: None }).unwrap();
        assert!(!given.may_have_intermediate, "its path length allows none");
        open(given).unwrap();
    }
}
