//! RequestAuthentication (`security.istio.io`).

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde_json::Value;

use super::{Input, Reading, created, selector};
use crate::object::Object;
use crate::policy::request_authentication::{KeySource, OutputClaim, TokenHeader, check_url};
use crate::policy::{JwtRule, RequestAuthentication, Scope};
use crate::problem::{FieldPath, Finding, Severity};
use crate::service::NamespacedName;

const EFFECT: &str = "the object is not understood, and the workloads it selects refuse every request with a token";

#[derive(Deserialize)]
struct Wire {
    metadata: ObjectMeta,
    spec: Option<SpecWire>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct SpecWire {
    #[serde(rename = "selector")]
    _selector: Option<Value>,
    #[serde(rename = "targetRef")]
    _target_ref: Option<Value>,
    #[serde(rename = "targetRefs")]
    _target_refs: Option<Value>,
    jwt_rules: Option<Vec<RuleWire>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RuleWire {
    issuer: Option<String>,
    audiences: Option<Vec<String>>,
    #[serde(alias = "jwks_uri")]
    jwks_uri: Option<String>,
    jwks: Option<String>,
    from_headers: Option<Vec<HeaderWire>>,
    from_params: Option<Vec<String>>,
    from_cookies: Option<Vec<String>>,
    forward_original_token: Option<bool>,
    output_payload_to_header: Option<String>,
    output_claim_to_headers: Option<Vec<OutputWire>>,
    timeout: Option<String>,
}

#[derive(Deserialize)]
struct HeaderWire {
    name: Option<String>,
    prefix: Option<String>,
}

#[derive(Deserialize)]
struct OutputWire {
    header: Option<String>,
    claim: Option<String>,
}

pub(super) fn convert(input: &mut Input<'_>) -> Reading {
    let scope = selector::scope(input);
    let mut value = RequestAuthentication { name: input.name.clone(), created: None, scope, rules: Vec::new(), refused: None };
    if let Some((wire, unknown)) = input.read_strictly::<Wire>() {
        for field in unknown {
            if !field.starts_with(&FieldPath::of("spec")) {
                input.warn(field, super::UNKNOWN_FIELD);
            } else if !input.findings.iter().any(|finding| finding.field == field) {
                input.error(field, "is not a field of a RequestAuthentication that is known; check its spelling and place");
            }
        }
        value.created = created(&wire.metadata);
        let at = FieldPath::of("spec.jwtRules");
        for (i, rule) in wire.spec.unwrap_or_default().jwt_rules.unwrap_or_default().into_iter().enumerate() {
            value.rules.push(Arc::new(self::rule(input, &at.index(i), rule)));
        }
    }
    value.refused = input.first_error();
    for finding in input.findings.iter_mut().filter(|finding| finding.severity == Severity::Error) {
        finding.message = format!("{}; {EFFECT}", finding.message);
    }
    Reading::Good(Object::RequestAuthentication(Arc::new(value)))
}

/// A RequestAuthentication of which nothing but the name is known.
pub(super) fn refused(name: NamespacedName, why: &str) -> Reading {
    Reading::Good(Object::RequestAuthentication(Arc::new(RequestAuthentication {
        name,
        created: None,
        scope: Scope::Namespace,
        rules: Vec::new(),
        refused: Some(why.into()),
    })))
}

fn rule(input: &mut Input<'_>, at: &FieldPath, wire: RuleWire) -> JwtRule {
    let issuer: Arc<str> = wire.issuer.unwrap_or_default().into();
    if issuer.is_empty() {
        input.error(at.key("issuer"), "is missing; write whose tokens are believed, as their `iss` has it");
    }
    let keys = match (wire.jwks, wire.jwks_uri) {
        (Some(_), Some(_)) => {
            input.error(at.key("jwks"), "stands beside jwksUri, of which only one may be; remove one of them");
            KeySource::Discovery
        }
        (Some(jwks), None) => {
            let parsed = serde_json::from_str::<Value>(&jwks);
            if !parsed.is_ok_and(|set| set.get("keys").and_then(Value::as_array).is_some_and(|keys| !keys.is_empty())) {
                input.error(at.key("jwks"), "is no JSON Web Key Set; write {\"keys\": [{…}]}");
            }
            KeySource::Inline(jwks.into())
        }
        (None, Some(uri)) => {
            if let Err(why) = check_url(&uri) {
                input.error(at.key("jwksUri"), format!("\"{}\" {why}", shown(&uri)));
            }
            KeySource::Uri(uri.into())
        }
        (None, None) => {
            // OpenID Connect Discovery 1.0, 2: an issuer has no query either.
            if !issuer.is_empty() && (check_url(&issuer).is_err() || issuer.contains('?')) {
                input.error(at.clone(), "has neither jwks nor jwksUri, and the issuer is no URL to ask for its keys; write one of them");
            }
            KeySource::Discovery
        }
    };
    let mut from_headers = Vec::new();
    for (i, header) in wire.from_headers.unwrap_or_default().into_iter().enumerate() {
        let name = name(input, at.key("fromHeaders").index(i).key("name"), header.name);
        from_headers.push(TokenHeader { name, prefix: header.prefix.unwrap_or_default().into() });
    }
    let mut output_claims = Vec::new();
    for (i, output) in wire.output_claim_to_headers.unwrap_or_default().into_iter().enumerate() {
        let at = at.key("outputClaimToHeaders").index(i);
        let header = name(input, at.key("header"), output.header);
        let claim = output.claim.unwrap_or_default();
        if claim.is_empty() {
            input.error(at.key("claim"), "is missing; write the claim's name");
        }
        output_claims.push(OutputClaim { header, claim: claim.into() });
    }
    let output_payload_header = wire.output_payload_to_header.map(|text| name(input, at.key("outputPayloadToHeader"), Some(text)));
    let timeout = wire.timeout.and_then(|text| {
        let parsed = duration(&text);
        if parsed.is_none() {
            input.error(at.key("timeout"), format!("\"{text}\" is not a duration above zero; write e.g. 5s"));
        }
        parsed
    });
    let rule = JwtRule {
        issuer,
        audiences: texts(input, &at.key("audiences"), wire.audiences),
        keys,
        from_headers,
        from_params: texts(input, &at.key("fromParams"), wire.from_params),
        from_cookies: texts(input, &at.key("fromCookies"), wire.from_cookies),
        forward_original: wire.forward_original_token.unwrap_or_default(),
        output_payload_header,
        output_claims,
        timeout,
    };
    if rule.location().is_some_and(|location| location.is_clear()) {
        let message = "is asked without TLS: whoever stands between the issuer and mesh-control can have tokens of its own believed; \
                       write https:// if the issuer serves it";
        let field = if rule.keys == KeySource::Discovery { "issuer" } else { "jwksUri" };
        input.findings.push(Finding::info(at.key(field), message));
    }
    rule
}

/// As it may be told: without what may be a password.
fn shown(uri: &str) -> String {
    let shown = match uri.split_once('@') {
        Some((before, after)) if !before.is_empty() => format!("…@{after}"),
        _ => uri.to_owned(),
    };
    shown.chars().take(300).collect()
}

fn texts(input: &mut Input<'_>, at: &FieldPath, list: Option<Vec<String>>) -> Vec<Arc<str>> {
    let list = list.unwrap_or_default();
    for (i, _) in list.iter().enumerate().filter(|(_, text)| text.is_empty()) {
        input.error(at.index(i), "is empty; write a text or remove it");
    }
    list.into_iter().map(Arc::from).collect()
}

/// The name of a header, in lower case.
fn name(input: &mut Input<'_>, at: FieldPath, text: Option<String>) -> Arc<str> {
    let name = text.unwrap_or_default().to_ascii_lowercase();
    if name.is_empty() || !name.bytes().all(crate::policy::http::is_token) {
        input.error(at, format!("\"{name}\" is not the name of a header"));
    }
    name.into()
}

/// Numbers with units one after the other (`1m30s`), as Go and Kubernetes write them.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let letters = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        let seconds = match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total = total.checked_add(Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()?)?;
        rest = after;
    }
    (!total.is_zero()).then_some(total)
}
