//! `tls`. What is asked for in a way that cannot be done is refused as a whole: any other TLS would be a weaker one.

use std::sync::Arc;

use super::super::Input;
use super::super::fields::Fields;
use super::super::host::{alt_names, is_host};
use crate::problem::{FieldPath, Severity};
use crate::traffic::{ClientCertificate, Origination, TlsMode, Trust};

const EFFECT: &str = "connections to the host are refused until it is mended";

/// Takes `tls` of a policy; `None` if it is not there.
pub(super) fn tls(input: &mut Input<'_>, policy: &mut Fields<'_>) -> Option<TlsMode> {
    let (at, value) = policy.take("tls")?;
    let before = input.findings.len();
    let mode = Fields::of(input, at, value).map(|map| mode(input, map));
    let mut first: Option<Arc<str>> = None;
    for finding in input.findings.iter_mut().skip(before).filter(|finding| finding.severity == Severity::Error) {
        first.get_or_insert_with(|| format!("{} {}", finding.field, finding.message).into());
        finding.message = format!("{}; {EFFECT}", finding.message);
    }
    Some(match (first, mode) {
        (None, Some(mode)) => mode,
        (first, _) => TlsMode::Refuse(first.unwrap_or_else(|| "tls is not understood".into())),
    })
}

fn mode(input: &mut Input<'_>, mut map: Fields<'_>) -> TlsMode {
    let at = |key: &str, map: &Fields<'_>| map.at.key(key);
    for key in ["caCrl", "crl"] {
        let at = at(key, &map);
        if map.text(input, key).is_some() {
            input.error(at, "is not supported: certificates are not checked against a list of revoked ones; leave it out");
        }
    }
    let mode_at = at("mode", &map);
    let mode = map.text(input, "mode");
    let sni_at = at("sni", &map);
    let sni = map.text(input, "sni");
    let (certificate_at, key_at) = (at("clientCertificate", &map), at("privateKey", &map));
    let certificate = map.text(input, "clientCertificate");
    let key = map.text(input, "privateKey");
    let ca_at = at("caCertificates", &map);
    // `system` is what is taken without it.
    let ca = map.text(input, "caCertificates").filter(|file| *file != "system");
    let (names, wrong) = alt_names(input, &mut map);
    let (skip_at, skip) = (at("insecureSkipVerify", &map), map.boolean(input, "insecureSkipVerify").unwrap_or(false));
    let credential_at = at("credentialName", &map);
    let credential = map.text(input, "credentialName");
    map.rest(input);
    let mutual = match mode {
        // Protobuf's first value is what an absent one means.
        None | Some("DISABLE") => return TlsMode::Disable,
        Some("ISTIO_MUTUAL") => {
            needless(input, [(certificate_at, certificate), (key_at, key)]);
            return TlsMode::Mesh;
        }
        Some("SIMPLE") => {
            needless(input, [(certificate_at.clone(), certificate), (key_at.clone(), key)]);
            false
        }
        Some("MUTUAL") => true,
        Some(other) => {
            input.error(mode_at, format!("\"{other}\" is not a mode; write DISABLE, SIMPLE, MUTUAL or ISTIO_MUTUAL"));
            return TlsMode::Disable;
        }
    };
    if sni.is_some_and(|name| !is_host(name)) {
        input.error(sni_at, "is no host name; write the one that the server has a certificate for");
    }
    let mut origination = Origination { sni: sni.map(|name| name.to_ascii_lowercase().into()), ..Origination::default() };
    if let Some(name) = credential {
        if !is_name(name) {
            input.error(credential_at.clone(), format!("\"{name}\" is no Secret's name; write the name of one of the client's namespace"));
        }
        if ca.is_some() || (mutual && (certificate.is_some() || key.is_some())) {
            input.error(credential_at, "stands beside files (caCertificates, clientCertificate, privateKey); leave one or the other out");
        }
        origination.trust = Trust::Credential(name.into());
    } else if let Some(file) = ca {
        absolute(input, &ca_at, file);
        origination.trust = Trust::File(file.into());
    }
    if mutual {
        origination.client = match credential {
            Some(name) => Some(ClientCertificate::Credential(name.into())),
            None => files(input, (certificate_at, certificate), (key_at, key)),
        };
    }
    if !skip {
        wrong.into_iter().for_each(|(at, message)| input.error(at, message));
        origination.subject_alt_names = names;
    } else {
        let message = "lets anybody who answers at the address read and change what is sent; write caCertificates with the server's roots";
        input.warn(skip_at, message);
        origination.trust = Trust::Anybody;
    }
    TlsMode::Originate(origination)
}

/// The files of MUTUAL.
fn files(
    input: &mut Input<'_>,
    (certificate_at, certificate): (FieldPath, Option<&str>),
    (key_at, key): (FieldPath, Option<&str>),
) -> Option<ClientCertificate> {
    for (at, file) in [(&certificate_at, certificate), (&key_at, key)] {
        match file {
            None => {
                input.error(at.clone(), "is missing; mode MUTUAL needs credentialName, or the files of a certificate and of its key");
            }
            Some(file) => absolute(input, at, file),
        }
    }
    let (certificate, key) = certificate.zip(key)?;
    Some(ClientCertificate::Files { certificate: certificate.into(), key: key.into() })
}

fn absolute(input: &mut Input<'_>, at: &FieldPath, file: &str) {
    if !file.starts_with('/') || file.contains('\0') {
        input.error(at.clone(), format!("\"{file}\" is not the path of a file; write the whole of it, from / on"));
    }
}

/// Whether it is what Kubernetes lets an object be called. No path can be made of it.
fn is_name(name: &str) -> bool {
    let fine = |label: &str| !label.is_empty() && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    name.len() <= 253 && name.split('.').all(fine)
}

fn needless(input: &mut Input<'_>, files: [(FieldPath, Option<&str>); 2]) {
    for (at, file) in files {
        if file.is_some() {
            input.warn(at, "is not used in this mode; write mode MUTUAL, or leave it out");
        }
    }
}
