//! AuthorizationPolicy (`security.istio.io`).

use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde_json::Value;

use super::{DRY_RUN_ANNOTATIONS, Input, Reading, port, selector};
use crate::identity::Identity;
use crate::object::Object;
use crate::policy::http::{PathMatch, check_key};
use crate::policy::path::never_in_normal_path;
use crate::policy::{Action, AuthorizationPolicy, Condition, IdentityPattern, Operation, Rule, Scope, Source, StringMatch};
use crate::problem::FieldPath;
use crate::service::NamespacedName;

/// Said with each error: what follows from it.
const EFFECT: &str = "the policy is not understood and denies everything to the workloads it selects";

#[derive(Deserialize)]
struct Wire {
    /// Read for its form alone: what counts of it is read before, so that it counts in a policy that is not understood too.
    #[serde(rename = "metadata")]
    _metadata: ObjectMeta,
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
    #[serde(rename = "provider")]
    _provider: Option<Value>,
    action: Option<String>,
    rules: Option<Vec<RuleWire>>,
}

#[derive(Deserialize)]
struct RuleWire {
    from: Option<Vec<FromWire>>,
    to: Option<Vec<ToWire>>,
    when: Option<Vec<ConditionWire>>,
}

#[derive(Deserialize)]
struct FromWire {
    source: Option<SourceWire>,
}

#[derive(Deserialize)]
struct ToWire {
    operation: Option<OperationWire>,
}

type Texts = Option<Vec<String>>;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SourceWire {
    principals: Texts,
    not_principals: Texts,
    request_principals: Texts,
    not_request_principals: Texts,
    namespaces: Texts,
    not_namespaces: Texts,
    service_accounts: Texts,
    not_service_accounts: Texts,
    trust_domains: Texts,
    not_trust_domains: Texts,
    ip_blocks: Texts,
    not_ip_blocks: Texts,
    remote_ip_blocks: Texts,
    not_remote_ip_blocks: Texts,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OperationWire {
    hosts: Texts,
    not_hosts: Texts,
    ports: Texts,
    not_ports: Texts,
    methods: Texts,
    not_methods: Texts,
    paths: Texts,
    not_paths: Texts,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConditionWire {
    key: Option<String>,
    values: Texts,
    not_values: Texts,
}

pub(super) fn convert(input: &mut Input<'_>) -> Reading {
    // Whom it selects, whether it is in dry run and whether it only audits is read however bad the rest is.
    let scope = selector::scope(input);
    let dry_run = dry_run(input);
    let mut action = action(input.raw(&["spec", "action"]).and_then(Value::as_str)).unwrap_or(Action::Deny);
    let mut rules = Vec::new();
    if let Some((wire, unknown)) = input.read_strictly::<Wire>() {
        for field in unknown {
            if field.starts_with(&FieldPath::of("spec")) {
                // Below a selector it has been said already.
                if !input.findings.iter().any(|finding| finding.field == field) {
                    input.error(field, "is not a field of an AuthorizationPolicy that is known; check its spelling and place");
                }
            } else {
                input.warn(field, super::UNKNOWN_FIELD);
            }
        }
        let spec = wire.spec.unwrap_or_default();
        match self::action(spec.action.as_deref()) {
            Ok(read) => action = read,
            Err(message) => input.error(FieldPath::of("spec.action"), message),
        }
        let at = FieldPath::of("spec.rules");
        for (i, rule) in spec.rules.unwrap_or_default().into_iter().enumerate() {
            rules.push(self::rule(input, &at.index(i), rule));
        }
    }
    let refused = input.first_error();
    if refused.is_some() {
        rules.clear();
    }
    let effect = if action == Action::Audit { "the policy is not understood and notes nothing" } else { EFFECT };
    for finding in input.findings.iter_mut().filter(|finding| finding.severity == crate::problem::Severity::Error) {
        finding.message = format!("{}; {effect}", finding.message);
    }
    Reading::Good(Object::AuthorizationPolicy(Arc::new(AuthorizationPolicy {
        name: input.name.clone(),
        action,
        dry_run,
        scope,
        rules,
        refused,
    })))
}

/// A policy of which nothing but the name is known.
pub(super) fn refused(name: NamespacedName, why: &str) -> Reading {
    Reading::Good(Object::AuthorizationPolicy(Arc::new(AuthorizationPolicy {
        name,
        action: Action::Deny,
        dry_run: false,
        scope: Scope::Namespace,
        rules: Vec::new(),
        refused: Some(why.into()),
    })))
}

fn action(text: Option<&str>) -> Result<Action, String> {
    match text {
        None | Some("ALLOW") => Ok(Action::Allow),
        Some("DENY") => Ok(Action::Deny),
        Some("AUDIT") => Ok(Action::Audit),
        Some("CUSTOM") => Err("CUSTOM is not supported: there is no external authorizer to ask; write ALLOW, DENY or AUDIT".into()),
        Some(other) => Err(format!("\"{other}\" is not an action; write ALLOW, DENY or AUDIT")),
    }
}

fn dry_run(input: &mut Input<'_>) -> bool {
    let mut dry_run = false;
    for name in DRY_RUN_ANNOTATIONS {
        match input.raw(&["metadata", "annotations", name]) {
            None => {}
            Some(Value::String(text)) if text == "true" => dry_run = true,
            Some(Value::String(text)) if text == "false" => {}
            Some(_) => {
                let at = FieldPath::of("metadata.annotations").key(name);
                input.warn(at, "is neither \"true\" nor \"false\" (in quotes); the policy is enforced");
            }
        }
    }
    dry_run
}

fn rule(input: &mut Input<'_>, at: &FieldPath, wire: RuleWire) -> Rule {
    let mut rule = Rule::default();
    for (i, from) in wire.from.unwrap_or_default().into_iter().enumerate() {
        let at = at.key("from").index(i).key("source");
        let before = input.findings.len();
        match from.source.map(|wire| source(input, &at, wire)) {
            Some(source) if source != Source::default() => rule.from.push(source),
            // What was said could not be read, which has been reported.
            Some(_) if input.findings.len() > before => {}
            _ => input.error(at, "says nothing; write at least one field, or leave `from` out to match every source"),
        }
    }
    for (i, to) in wire.to.unwrap_or_default().into_iter().enumerate() {
        let at = at.key("to").index(i).key("operation");
        let before = input.findings.len();
        match to.operation.map(|wire| operation(input, &at, wire)) {
            Some(operation) if operation != Operation::default() => rule.to.push(operation),
            Some(_) if input.findings.len() > before => {}
            _ => input.error(at, "says nothing; write at least one field, or leave `to` out to match every operation"),
        }
    }
    for (i, when) in wire.when.unwrap_or_default().into_iter().enumerate() {
        rule.when.extend(condition(input, &at.key("when").index(i), when));
    }
    rule
}

fn source(input: &mut Input<'_>, at: &FieldPath, wire: SourceWire) -> Source {
    let namespace = input.name.namespace.clone();
    let account = |text: &str| service_account(text, &namespace);
    let mut read = Fields { input, at };
    Source {
        principals: read.principals("principals", wire.principals),
        not_principals: read.principals("notPrincipals", wire.not_principals),
        namespaces: read.each("namespaces", wire.namespaces, pattern),
        not_namespaces: read.each("notNamespaces", wire.not_namespaces, pattern),
        service_accounts: read.each("serviceAccounts", wire.service_accounts, account),
        not_service_accounts: read.each("notServiceAccounts", wire.not_service_accounts, account),
        trust_domains: read.each("trustDomains", wire.trust_domains, pattern),
        not_trust_domains: read.each("notTrustDomains", wire.not_trust_domains, pattern),
        ip_blocks: read.each("ipBlocks", wire.ip_blocks, range),
        not_ip_blocks: read.each("notIpBlocks", wire.not_ip_blocks, range),
        request_principals: read.each("requestPrincipals", wire.request_principals, pattern),
        not_request_principals: read.each("notRequestPrincipals", wire.not_request_principals, pattern),
        remote_ip_blocks: read.each("remoteIpBlocks", wire.remote_ip_blocks, range),
        not_remote_ip_blocks: read.each("notRemoteIpBlocks", wire.not_remote_ip_blocks, range),
    }
}

fn operation(input: &mut Input<'_>, at: &FieldPath, wire: OperationWire) -> Operation {
    let mut read = Fields { input, at };
    Operation {
        ports: read.each("ports", wire.ports, port_text),
        not_ports: read.each("notPorts", wire.not_ports, port_text),
        hosts: read.each("hosts", wire.hosts, pattern),
        not_hosts: read.each("notHosts", wire.not_hosts, pattern),
        methods: read.each("methods", wire.methods, pattern),
        not_methods: read.each("notMethods", wire.not_methods, pattern),
        paths: read.paths("paths", wire.paths),
        not_paths: read.paths("notPaths", wire.not_paths),
    }
}

fn condition(input: &mut Input<'_>, at: &FieldPath, wire: ConditionWire) -> Option<Condition> {
    let Some(key) = wire.key.filter(|key| !key.is_empty()) else {
        input.error(at.key("key"), "is missing; write what the condition is about, e.g. source.namespace");
        return None;
    };
    let (yes, no) = (wire.values, wire.not_values);
    if yes.iter().chain(&no).all(Vec::is_empty) {
        input.error(at.clone(), "has neither values nor notValues; write at least one");
        return None;
    }
    let namespace = input.name.namespace.clone();
    let mut read = Fields { input, at };
    let (values, not_values) = ("values", "notValues");
    Some(match key.as_str() {
        "source.ip" => Condition::SourceIp(read.each(values, yes, range), read.each(not_values, no, range)),
        "destination.ip" => Condition::DestinationIp(read.each(values, yes, range), read.each(not_values, no, range)),
        "destination.port" => Condition::DestinationPort(read.each(values, yes, port_text), read.each(not_values, no, port_text)),
        "source.principal" => {
            let mut of = |field, list| read.principals(field, list).into_iter().map(IdentityPattern::Principal).collect();
            Condition::Identity(of(values, yes), of(not_values, no))
        }
        "source.namespace" => {
            let one = |text: &str| pattern(text).map(IdentityPattern::Namespace);
            Condition::Identity(read.each(values, yes, one), read.each(not_values, no, one))
        }
        "source.serviceAccount" => {
            let one = |text: &str| service_account(text, &namespace).map(IdentityPattern::ServiceAccount);
            Condition::Identity(read.each(values, yes, one), read.each(not_values, no, one))
        }
        "source.trustDomain" => {
            let one = |text: &str| pattern(text).map(IdentityPattern::TrustDomain);
            Condition::Identity(read.each(values, yes, one), read.each(not_values, no, one))
        }
        // An address that cannot be read must not be one that matches nothing.
        "remote.ip" => {
            let one = |text: &str| range(text).map(|range| range.to_string().into());
            let (values, not_values) = (read.each(values, yes, one), read.each(not_values, no, one));
            Condition::Http { key: key.as_str().into(), values, not_values }
        }
        other => match check_key(other) {
            Some(Ok(())) => {
                let (values, not_values) = (read.each(values, yes, text), read.each(not_values, no, text));
                Condition::Http { key: other.into(), values, not_values }
            }
            Some(Err(why)) => {
                input.error(at.key("key"), format!("\"{other}\" {why}"));
                return None;
            }
            None => {
                input.error(at.key("key"), format!("\"{other}\" is not a key that is known"));
                return None;
            }
        },
    })
}

/// Lists of texts below one field.
struct Fields<'a, 'b> {
    input: &'a mut Input<'b>,
    at: &'a FieldPath,
}

impl Fields<'_, '_> {
    fn each<T>(&mut self, field: &str, texts: Texts, parse: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
        let mut values = Vec::new();
        for (i, text) in texts.unwrap_or_default().iter().enumerate() {
            match parse(text) {
                Ok(value) => values.push(value),
                Err(message) => self.input.error(self.at.key(field).index(i), message),
            }
        }
        values
    }

    fn principals(&mut self, field: &str, texts: Texts) -> Vec<StringMatch> {
        let values = self.each(field, texts, |text| pattern(text.strip_prefix("spiffe://").unwrap_or(text)));
        for (i, value) in values.iter().enumerate() {
            if let StringMatch::Exact(principal) = value
                && let Err(error) = format!("spiffe://{principal}").parse::<Identity>()
            {
                self.input.warn(self.at.key(field).index(i), format!("matches nobody: {error}"));
            }
        }
        values
    }

    fn paths(&mut self, field: &str, texts: Texts) -> Vec<Arc<str>> {
        let one = |text: &str| text.parse::<PathMatch>().map(|_| Arc::<str>::from(text)).map_err(|error| error.to_string());
        let values = self.each(field, texts, one);
        for (i, value) in values.iter().enumerate() {
            let piece = value.trim_matches('*');
            let why = never_in_normal_path(piece).or_else(|| {
                let anywhere = piece.starts_with('/') || piece.is_empty() || value.starts_with('*');
                (!anywhere).then_some("does not begin with `/`, as every path does")
            });
            if let Some(why) = why {
                let message = format!("\"{value}\" {why}: write the path as it is compared, in normal form");
                self.input.warn(self.at.key(field).index(i), message);
            }
        }
        values
    }
}

fn text(text: &str) -> Result<Arc<str>, String> {
    if text.is_empty() { Err("is empty; write the value, or `*` for any".into()) } else { Ok(text.into()) }
}

fn pattern(text: &str) -> Result<StringMatch, String> {
    text.parse().map_err(|error: crate::policy::pattern::ParsePatternError| error.to_string())
}

fn port_text(text: &str) -> Result<u16, String> {
    let number = text.parse().map_err(|_| format!("\"{text}\" is not a port; write a number from 1 to 65535 in quotes"))?;
    port(number)
}

fn service_account(text: &str, own: &str) -> Result<NamespacedName, String> {
    let (namespace, name) = text.split_once('/').unwrap_or((own, text));
    let fine = |part: &str| !part.is_empty() && !part.contains(['/', '*']);
    if fine(namespace) && fine(name) {
        Ok(NamespacedName { namespace: namespace.into(), name: name.into() })
    } else {
        Err(format!("\"{text}\" is not a service account; write <namespace>/<name>, or <name> for one of the policy's namespace"))
    }
}

/// An address or a range. One of IPv4 written as IPv6 (`::ffff:…`) is IPv4, as the addresses it is compared with are.
pub(crate) fn range(text: &str) -> Result<IpNet, String> {
    let net = text.parse::<IpNet>().or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from));
    let net = net.map_err(|_| format!("\"{text}\" is neither an address nor a range; write e.g. 10.1.2.3 or 10.1.0.0/16"))?.trunc();
    if let IpNet::V6(v6) = net
        && let (Some(v4), Some(prefix)) = (v6.addr().to_ipv4_mapped(), v6.prefix_len().checked_sub(96))
        && let Ok(mapped) = ipnet::Ipv4Net::new(v4, prefix)
    {
        return Ok(mapped.into());
    }
    Ok(net)
}
