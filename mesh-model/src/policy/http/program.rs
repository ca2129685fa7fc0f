//! Policies in the form in which they are asked: patterns parsed, the mesh's own trust domain filled in.

use std::sync::Arc;

use ipnet::IpNet;

use super::template::PathMatch;
use crate::identity::TrustDomain;
use crate::policy::compile::own_trust_domain;
use crate::policy::{Action, AuthorizationPolicy, Condition, IdentityPattern, Operation, Rule, Source, StringMatch};
use crate::service::NamespacedName;

/// An AuthorizationPolicy.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Policy {
    pub(super) name: NamespacedName,
    pub(super) action: Action,
    pub(super) dry_run: bool,
    /// It could not be understood.
    pub(super) refused: bool,
    pub(super) rules: Vec<Steps>,
}

/// A rule: one conjunction of `from`, one of `to`, and all of `when`; an empty list holds.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Steps {
    pub(super) from: Vec<Vec<Test>>,
    pub(super) to: Vec<Vec<Test>>,
    pub(super) when: Vec<Test>,
}

/// One of `any` (if there are some) and none of `none`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Values<T> {
    pub(super) any: Vec<T>,
    pub(super) none: Vec<T>,
}

/// A question about one fact.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Test {
    Identity(Values<IdentityPattern>),
    /// The peer's address, by whichever field it is asked for.
    Source(Values<IpNet>),
    Destination(Values<IpNet>),
    Port(Values<u16>),
    Host(Values<StringMatch>),
    Method(Values<StringMatch>),
    Path(Values<PathMatch>),
    Header(Arc<str>, Values<StringMatch>),
    RequestPrincipal(Values<StringMatch>),
    Claim(Vec<Arc<str>>, Values<StringMatch>),
    Sni(Values<StringMatch>),
}

/// A value that is not one of its field: conversion has refused such a policy.
struct Misfit;

impl Policy {
    pub(super) fn of(policy: &AuthorizationPolicy, trust_domain: &TrustDomain) -> Policy {
        let builder = Builder { deny: policy.action == Action::Deny, trust_domain };
        let rules: Result<Vec<Steps>, Misfit> = policy.rules.iter().map(|rule| builder.rule(rule)).collect();
        let refused = policy.refused.is_some() || rules.is_err();
        let rules = rules.ok().filter(|_| !refused).unwrap_or_default();
        Policy { name: policy.name.clone(), action: policy.action, dry_run: policy.dry_run, refused, rules }
    }

    /// What it does: one that could not be understood denies, unless it only audits.
    pub(super) fn kind(&self) -> Action {
        match self.action {
            Action::Allow if self.refused => Action::Deny,
            action => action,
        }
    }
}

struct Builder<'a> {
    deny: bool,
    trust_domain: &'a TrustDomain,
}

impl Builder<'_> {
    fn rule(&self, rule: &Rule) -> Result<Steps, Misfit> {
        Ok(Steps {
            from: rule.from.iter().map(|source| self.source(source)).collect(),
            to: rule.to.iter().map(operation).collect::<Result<_, _>>()?,
            when: rule.when.iter().map(|condition| self.condition(condition)).collect::<Result<_, _>>()?,
        })
    }

    fn source(&self, source: &Source) -> Vec<Test> {
        use IdentityPattern as P;
        let wrap = |any: &[StringMatch], none: &[StringMatch], pattern: fn(StringMatch) -> P| {
            self.identity(any.iter().cloned().map(pattern).collect(), none.iter().cloned().map(pattern).collect())
        };
        let accounts = |names: &[NamespacedName]| names.iter().cloned().map(P::ServiceAccount).collect();
        // What is cheap and decides most comes first.
        let mut tests = Vec::new();
        tests.extend(values(&source.ip_blocks, &source.not_ip_blocks).map(Test::Source));
        tests.extend(values(&source.remote_ip_blocks, &source.not_remote_ip_blocks).map(Test::Source));
        tests.extend(wrap(&source.namespaces, &source.not_namespaces, P::Namespace));
        tests.extend(wrap(&source.principals, &source.not_principals, P::Principal));
        tests.extend(self.identity(accounts(&source.service_accounts), accounts(&source.not_service_accounts)));
        tests.extend(wrap(&source.trust_domains, &source.not_trust_domains, P::TrustDomain));
        tests.extend(values(&source.request_principals, &source.not_request_principals).map(Test::RequestPrincipal));
        tests
    }

    fn identity(&self, mut any: Vec<IdentityPattern>, mut none: Vec<IdentityPattern>) -> Option<Test> {
        let stricter = if self.deny { &mut any } else { &mut none };
        let own: Vec<_> = stricter.iter().filter_map(|pattern| own_trust_domain(pattern, self.trust_domain)).collect();
        stricter.extend(own);
        values(&any, &none).map(Test::Identity)
    }

    fn condition(&self, condition: &Condition) -> Result<Test, Misfit> {
        let both = |any: &[IpNet], none: &[IpNet]| Values { any: any.to_vec(), none: none.to_vec() };
        Ok(match condition {
            Condition::SourceIp(any, none) => Test::Source(both(any, none)),
            Condition::DestinationIp(any, none) => Test::Destination(both(any, none)),
            Condition::DestinationPort(any, none) => Test::Port(Values { any: any.clone(), none: none.clone() }),
            Condition::Identity(any, none) => {
                self.identity(any.clone(), none.clone()).unwrap_or(Test::Identity(Values { any: Vec::new(), none: Vec::new() }))
            }
            Condition::Http { key, values, not_values } => http(key, values, not_values)?,
        })
    }
}

fn operation(operation: &Operation) -> Result<Vec<Test>, Misfit> {
    let paths = |texts: &[Arc<str>]| texts.iter().map(|text| text.parse().map_err(|_| Misfit)).collect::<Result<Vec<PathMatch>, _>>();
    let mut tests = Vec::new();
    tests.extend(values(&operation.ports, &operation.not_ports).map(Test::Port));
    tests.extend(values(&operation.methods, &operation.not_methods).map(Test::Method));
    tests.extend(values(&paths(&operation.paths)?, &paths(&operation.not_paths)?).map(Test::Path));
    tests.extend(values(&operation.hosts, &operation.not_hosts).map(Test::Host));
    Ok(tests)
}

fn values<T: Clone>(any: &[T], none: &[T]) -> Option<Values<T>> {
    (!any.is_empty() || !none.is_empty()).then(|| Values { any: any.to_vec(), none: none.to_vec() })
}

/// What a key of `when` asks about a request.
enum Key {
    RemoteIp,
    Sni,
    Principal,
    Claim(Vec<Arc<str>>),
    Host,
    Method,
    Header(Arc<str>),
}

fn http(key: &str, any: &[Arc<str>], none: &[Arc<str>]) -> Result<Test, Misfit> {
    let texts = |list: &[Arc<str>]| list.iter().map(|text| StringMatch::of_condition(text)).collect();
    let both = || Values { any: texts(any), none: texts(none) };
    Ok(match parse_key(key).map_err(|_| Misfit)? {
        Key::RemoteIp => {
            let nets = |list: &[Arc<str>]| list.iter().map(|text| range(text)).collect::<Result<Vec<_>, _>>();
            Test::Source(Values { any: nets(any)?, none: nets(none)? })
        }
        Key::Sni => Test::Sni(both()),
        Key::Principal => Test::RequestPrincipal(both()),
        Key::Claim(path) => Test::Claim(path, both()),
        Key::Host => Test::Host(both()),
        Key::Method => Test::Method(both()),
        Key::Header(name) => Test::Header(name, both()),
    })
}

fn range(text: &str) -> Result<IpNet, Misfit> {
    crate::convert::range(text).map_err(|_| Misfit)
}

/// Whether `key` asks something of a request: `None` if it is no such key, and in words why not if it is one but not well formed.
pub(crate) fn check_key(key: &str) -> Option<Result<(), &'static str>> {
    match parse_key(key) {
        Ok(_) => Some(Ok(())),
        Err("") => None,
        Err(why) => Some(Err(why)),
    }
}

/// An error that is empty: it is no key of HTTP.
fn parse_key(key: &str) -> Result<Key, &'static str> {
    let claim = |name: &str| Key::Claim(vec![name.into()]);
    match key {
        "remote.ip" => return Ok(Key::RemoteIp),
        "connection.sni" => return Ok(Key::Sni),
        "request.auth.principal" => return Ok(Key::Principal),
        "request.auth.audiences" => return Ok(claim("aud")),
        "request.auth.presenter" => return Ok(claim("azp")),
        _ => {}
    }
    let bracketed = |start: &str| key.strip_prefix(start).and_then(|rest| rest.strip_prefix('['));
    let inner = |rest: Option<&str>| rest.and_then(|rest| rest.strip_suffix(']')).map(str::to_owned);
    if let Some(rest) = bracketed("request.headers") {
        let name = inner(Some(rest)).ok_or("does not end with `]`")?.to_ascii_lowercase();
        return match name.as_str() {
            // Envoy has both as one.
            ":authority" | "host" => Ok(Key::Host),
            ":method" => Ok(Key::Method),
            ":path" => Err("is not supported; write operation.paths"),
            name if !name.is_empty() && name.bytes().all(is_token) => Ok(Key::Header(name.into())),
            _ => Err("does not name a header in its brackets"),
        };
    }
    if let Some(rest) = bracketed("request.auth.claims") {
        let inner = inner(Some(rest)).ok_or("does not end with `]`")?;
        let path: Vec<Arc<str>> = inner.split("][").map(Arc::from).collect();
        let fine = |name: &Arc<str>| !name.is_empty() && !name.contains(['[', ']']);
        return if path.iter().all(fine) { Ok(Key::Claim(path)) } else { Err("does not name a claim in each pair of brackets") };
    }
    Err("")
}

/// RFC 9110, 5.6.2.
pub(crate) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
