//! `tls`. What is asked for in a way that cannot be done is refused as a whole: any other TLS would be a weaker one.

use std::sync::Arc;

use super::super::Input;
use super::super::fields::Fields;
use crate::problem::{FieldPath, Severity};
use crate::traffic::{Origination, TlsMode};

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
    let roots = "write caCertificates and, for MUTUAL, clientCertificate and privateKey: files that the agent can read";
    for (key, message) in [
        ("credentialName", format!("is not supported, since agents do not read Secrets; {roots}")),
        ("caCrl", "is not supported: certificates are not checked against a list of revoked ones; leave it out".into()),
        ("crl", "is not supported: certificates are not checked against a list of revoked ones; leave it out".into()),
    ] {
        let at = at(key, &map);
        if map.text(input, key).is_some() {
            input.error(at, message);
        }
    }
    let skip = at("insecureSkipVerify", &map);
    if map.boolean(input, "insecureSkipVerify") == Some(true) {
        input.error(skip, "is not supported: a certificate that nobody verifies proves nothing; write caCertificates with its roots");
    }
    let mode_at = at("mode", &map);
    let mode = map.text(input, "mode");
    let mut origination = Origination {
        sni: map.text(input, "sni").map(Into::into),
        subject_alt_names: map.texts(input, "subjectAltNames").into_iter().map(|(_, text)| text.into()).collect(),
        // `system` is what is taken without it.
        ca_certificates: map.text(input, "caCertificates").filter(|file| *file != "system").map(Into::into),
        client: None,
    };
    let (certificate_at, key_at) = (at("clientCertificate", &map), at("privateKey", &map));
    let certificate = map.text(input, "clientCertificate");
    let key = map.text(input, "privateKey");
    map.rest(input);
    if matches!(mode, Some("SIMPLE" | "MUTUAL")) {
        let message = "is not supported: TLS towards the application is not begun here, so everything sent to the host is refused";
        input.warn(mode_at.clone(), message);
    }
    match mode {
        // Protobuf's first value is what an absent one means.
        None | Some("DISABLE") => TlsMode::Disable,
        Some("ISTIO_MUTUAL") => {
            needless(input, [(certificate_at, certificate), (key_at, key)]);
            TlsMode::Mesh
        }
        Some("SIMPLE") => {
            needless(input, [(certificate_at, certificate), (key_at, key)]);
            TlsMode::Originate(origination)
        }
        Some("MUTUAL") => {
            for (at, file) in [(certificate_at, certificate), (key_at, key)] {
                if file.is_none() {
                    input.error(at, "is missing; mode MUTUAL needs the files of a certificate and of its key");
                }
            }
            origination.client = certificate.zip(key).map(|(certificate, key)| (certificate.into(), key.into()));
            TlsMode::Originate(origination)
        }
        Some(other) => {
            input.error(mode_at, format!("\"{other}\" is not a mode; write DISABLE, SIMPLE, MUTUAL or ISTIO_MUTUAL"));
            TlsMode::Disable
        }
    }
}

fn needless(input: &mut Input<'_>, files: [(FieldPath, Option<&str>); 2]) {
    for (at, file) in files {
        if file.is_some() {
            input.warn(at, "is not used in this mode; write mode MUTUAL, or leave it out");
        }
    }
}
