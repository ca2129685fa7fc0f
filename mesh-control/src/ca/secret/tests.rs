use std::time::SystemTime;

use super::*;
use crate::ca::hierarchy::{self, make_intermediate, make_root};

fn data(entries: &[(&str, &str)]) -> BTreeMap<String, ByteString> {
    entries.iter().map(|(key, text)| ((*key).to_owned(), ByteString(text.as_bytes().to_vec()))).collect()
}

fn said(entries: &[(&str, &str)]) -> String {
    let read = read("mesh/ca", &data(entries)).and_then(|pem| pem.as_ref().map(hierarchy::given).transpose());
    read.unwrap_err().to_string()
}

#[test]
fn what_is_written_is_read_again() {
    let root = make_root(SystemTime::now()).unwrap();
    let given = hierarchy::given(&read("mesh/ca", &written(&root)).unwrap().unwrap()).unwrap();
    assert!(given.may_have_intermediate);
    assert_eq!(given.signer.certificate, root.certificate);
    assert_eq!(given.roots, [root.certificate]);
}

#[test]
fn an_empty_secret_holds_nothing() {
    assert!(read("mesh/ca", &BTreeMap::new()).unwrap().is_none());
    assert!(read("mesh/ca", &data(&[("tls.crt", ""), ("tls.key", "")])).unwrap().is_none());
}

#[test]
fn istios_form_is_read() {
    let now = SystemTime::now();
    let root = make_root(now).unwrap();
    let intermediate = make_intermediate(&root, now).unwrap();
    let pem = |der: &[u8]| files::pem("CERTIFICATE", der);
    let entries = [
        ("ca-cert.pem", pem(&intermediate.certificate)),
        ("ca-key.pem", intermediate.key.serialize_pem()),
        ("root-cert.pem", pem(&root.certificate)),
        ("cert-chain.pem", pem(&intermediate.certificate) + &pem(&root.certificate)),
    ];
    let entries: Vec<(&str, &str)> = entries.iter().map(|(key, text)| (*key, text.as_str())).collect();
    let given = hierarchy::given(&read("mesh/cacerts", &data(&entries)).unwrap().unwrap()).unwrap();
    assert!(!given.may_have_intermediate);
    assert_eq!(given.roots, [root.certificate]);
}

#[test]
fn what_cannot_be_read_names_secret_and_key() {
    assert!(said(&[("tls.crt", "x")]).contains("Secret mesh/ca: has no key tls.key"), "{}", said(&[("tls.crt", "x")]));
    assert!(said(&[("password", "x")]).contains("but password"));
    assert!(said(&[("tls.crt", "x"), ("ca-key.pem", "x")]).contains("both forms"));
    let text = said(&[("tls.crt", "x"), ("tls.key", "y")]);
    assert!(text.contains("Secret mesh/ca, key tls.crt: holds no certificate"), "{text}");
    let mut bytes = data(&[("tls.key", "x")]);
    bytes.insert("tls.crt".to_owned(), ByteString(vec![0xff, 0xfe]));
    assert!(read("mesh/ca", &bytes).unwrap_err().to_string().contains("key tls.crt is no text"));
}
