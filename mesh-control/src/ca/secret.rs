//! An authority in a Secret: which of its keys hold what. Pure.
//!
//! Two forms are read, told by the names of the keys: cert-manager's and Kubernetes' own (`tls.crt`, `tls.key`, `ca.crt`), which is also what
//! is written here, and that of Istio's `cacerts` (`ca-cert.pem`, `ca-key.pem`, `root-cert.pem`, `cert-chain.pem`).

use std::collections::BTreeMap;

use k8s_openapi::ByteString;

use super::hierarchy::{HierarchyError, Pem, PemText, Signer};
use crate::files;

/// Names of the keys of one form.
pub(super) struct Form {
    pub(super) certificate: &'static str,
    pub(super) key: &'static str,
    pub(super) roots: &'static str,
    chain: Option<&'static str>,
}

/// What is written here.
pub(super) const TLS: Form = Form { certificate: "tls.crt", key: "tls.key", roots: "ca.crt", chain: None };
const CACERTS: Form = Form { certificate: "ca-cert.pem", key: "ca-key.pem", roots: "root-cert.pem", chain: Some("cert-chain.pem") };

/// What a Secret holds; `None` if it is empty, as the chart makes it.
///
/// # Errors
/// One of its keys is missing or no text; the error names Secret and key.
pub fn read(name: &str, data: &BTreeMap<String, ByteString>) -> Result<Option<Pem>, HierarchyError> {
    if data.values().all(|value| value.0.is_empty()) {
        return Ok(None);
    }
    let wrong = |message: String| HierarchyError::Content { path: format!("Secret {name}").into(), message };
    let has = |form: &Form| data.contains_key(form.certificate) || data.contains_key(form.key);
    let form = match (has(&CACERTS), has(&TLS)) {
        (true, false) => &CACERTS,
        (false, true) => &TLS,
        (true, true) => return Err(wrong("has the keys of both forms, tls.crt and ca-cert.pem: remove those that do not count".into())),
        (false, false) => {
            let keys: Vec<&str> = data.keys().map(String::as_str).collect();
            return Err(wrong(format!(
                "has neither tls.crt and tls.key (cert-manager's form) nor ca-cert.pem and ca-key.pem (that of Istio's cacerts), but {}",
                keys.join(", ")
            )));
        }
    };
    let text = |key: &str| -> Result<Option<PemText>, HierarchyError> {
        let Some(value) = data.get(key).filter(|value| !value.0.is_empty()) else { return Ok(None) };
        let text = String::from_utf8(value.0.clone()).map_err(|_| wrong(format!("key {key} is no text: put PEM there")))?;
        Ok(Some(PemText { place: format!("Secret {name}, key {key}").into(), text }))
    };
    let needed = |key: &str| text(key)?.ok_or_else(|| wrong(format!("has no key {key}: add it, in PEM")));
    Ok(Some(Pem {
        certificate: needed(form.certificate)?,
        key: needed(form.key)?,
        roots: text(form.roots)?,
        chain: form.chain.map(text).transpose()?.flatten(),
    }))
}

/// The keys of a Secret that keeps a root which was made here.
pub fn written(root: &Signer) -> BTreeMap<String, ByteString> {
    let certificate = files::pem("CERTIFICATE", &root.certificate);
    let entries = [(TLS.certificate, certificate.clone()), (TLS.key, root.key.serialize_pem()), (TLS.roots, certificate)];
    entries.into_iter().map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes()))).collect()
}

#[cfg(test)]
mod tests;
