//! `spec.tracing` of a Mesh. One that is not understood in whole turns no spans on: they must not go where nobody meant them to.

use std::net::SocketAddr;

use serde_json::Value;

use super::super::Input;
use super::super::fields::Fields;
use crate::problem::{FieldPath, Severity};
use crate::settings::Tracing;

/// Percent, where nothing is said; as in Istio.
const SAMPLING: f64 = 1.0;
/// OTLP over gRPC.
const USUAL_PORT: u16 = 4317;

/// Reads it; `None`, with an error, if something is wrong.
pub(super) fn read(input: &mut Input<'_>, value: &Value) -> Option<Tracing> {
    if value.is_null() {
        return None;
    }
    let before = input.findings.len();
    let mut fields = Fields::of(input, FieldPath::of("spec.tracing"), value)?;
    let at = fields.at.key("endpoint");
    let sampling = fields.decimal(input, "sampling", 0.0..=100.0).unwrap_or(SAMPLING);
    if !fields.has("endpoint") {
        input.error(at.clone(), format!("is missing; write where the collector is, as http://collector.observability:{USUAL_PORT}"));
    }
    let text = fields.text(input, "endpoint").unwrap_or_default();
    fields.rest(input);
    if let Err(message) = check(text) {
        input.error(at, format!("\"{text}\" {message}; no spans are made until it is mended"));
    }
    let failed = input.findings.iter().skip(before).any(|finding| finding.severity == Severity::Error);
    // A percentage has four decimals then.
    let sampling_ppm = (sampling * 10_000.0).round() as u32;
    (!failed).then(|| Tracing { endpoint: text.trim_end_matches('/').into(), sampling_ppm })
}

/// Whether it is the address of a collector.
fn check(text: &str) -> Result<(), String> {
    let usual = format!("write e.g. http://collector.observability:{USUAL_PORT}");
    let authority = match text.split_once("://") {
        Some(("http", rest)) => rest.strip_suffix('/').unwrap_or(rest),
        Some(("https", _)) => return Err(format!("asks for TLS, which is not done towards a collector; {usual}")),
        _ => return Err(format!("is not the address of a collector; {usual}")),
    };
    if authority.contains('@') {
        return Err(format!("has a user's name in it, and none is sent; {usual}"));
    }
    if authority.contains(['/', '?', '#']) {
        return Err(format!("has a path, and OTLP over gRPC (which is spoken, not OTLP over HTTP) has none; {usual}"));
    }
    if authority.parse::<SocketAddr>().is_ok_and(|address| address.port() != 0) {
        return Ok(());
    }
    let Some((host, port)) = authority.rsplit_once(':') else { return Err(format!("names no port; {usual}")) };
    if !port.parse::<u16>().is_ok_and(|port| port != 0) {
        return Err(format!("names no port from 1 to 65535; {usual}"));
    }
    let fine = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    match host.len() <= 253 && host.strip_suffix('.').unwrap_or(host).split('.').all(fine) {
        true => Ok(()),
        false => Err(format!("names no host; {usual}")),
    }
}

#[cfg(test)]
mod tests;
