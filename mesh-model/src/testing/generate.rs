//! Random policies and connections from small alphabets, so that about as many match as do not.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::{Flow, request};
use crate::identity::{Identity, TrustDomain};
use crate::policy::{
    Action, AuthorizationPolicy, Condition, EffectivePolicies, IdentityPattern, Operation, Rule, Scope, Source, StringMatch,
};
use crate::service::NamespacedName;

const DOMAINS: &[&str] = &["cluster.local", "prod.example"];
const NAMESPACES: &[&str] = &["a", "b", "ab"];
const ACCOUNTS: &[&str] = &["x", "y", "xy"];
const PORTS: &[u16] = &[80, 81, 443];
const ADDRESSES: &[&str] =
    &["10.0.0.1", "10.0.0.2", "10.0.1.1", "192.168.0.1", "fd00::1", "fd00::2", "2001:db8::1", "::1:2:3:4", "::fffe:a00:1"];

/// Policies in force for one workload, and connections to it.
#[derive(Clone, Debug)]
pub struct Case {
    /// The policies.
    pub policies: EffectivePolicies,
    /// The connections, at least one.
    pub flows: Vec<Flow>,
}

/// Random cases.
pub fn case() -> impl Strategy<Value = Case> {
    (domain(), vec(policy(), 0..6), vec(flow(), 1..12)).prop_map(|(trust_domain, policies, flows)| {
        // Distinct names, so that a decision names one policy.
        let policies = policies.into_iter().enumerate().map(|(i, policy)| {
            let name = NamespacedName { namespace: "a".into(), name: format!("p{i}").into() };
            Arc::new(AuthorizationPolicy { name, ..policy })
        });
        Case { policies: EffectivePolicies { trust_domain, policies: policies.collect() }, flows }
    })
}

/// A random policy, HTTP fields among the others, whose name is always the same.
pub fn policy() -> impl Strategy<Value = AuthorizationPolicy> {
    let action = prop_oneof![3 => Just(Action::Allow), 3 => Just(Action::Deny), 1 => Just(Action::Audit)];
    let refused = prop::option::weighted(0.05, Just(Arc::from("not understood")));
    (action, prop::bool::weighted(0.25), vec(rule(), 0..3), refused).prop_map(|(action, dry_run, rules, refused)| AuthorizationPolicy {
        name: NamespacedName { namespace: "a".into(), name: "p".into() },
        action,
        dry_run,
        scope: Scope::Namespace,
        rules,
        refused,
    })
}

/// A random connection.
pub fn flow() -> impl Strategy<Value = Flow> {
    (prop::option::weighted(0.8, identity()), address(), address(), select(PORTS)).prop_map(|(identity, source, destination, port)| Flow {
        identity,
        source,
        destination,
        port,
    })
}

/// A random identity.
pub fn identity() -> impl Strategy<Value = Identity> {
    (domain(), select(NAMESPACES), select(ACCOUNTS))
        .prop_filter_map("not an identity", |(domain, namespace, account)| Identity::new(domain, namespace, account).ok())
}

fn domain() -> impl Strategy<Value = TrustDomain> {
    select(DOMAINS).prop_filter_map("not a trust domain", |name| name.parse().ok())
}

fn address() -> impl Strategy<Value = IpAddr> {
    select(ADDRESSES).prop_filter_map("not an address", |text| text.parse().ok())
}

fn range() -> impl Strategy<Value = IpNet> {
    let bits = prop_oneof![Just(0u8), Just(1), Just(8), Just(24), Just(31), Just(32), Just(64), Just(80), Just(95), Just(96), Just(128)];
    (address(), bits).prop_filter_map("too many bits", |(address, bits)| Some(IpNet::new(address, bits).ok()?.trunc()))
}

/// A text as it is, or a part of it with a star.
fn pattern(text: impl Strategy<Value = String>) -> impl Strategy<Value = StringMatch> {
    (text, 0..8u8, any::<prop::sample::Index>()).prop_map(|(text, form, cut)| {
        let cut = cut.index(text.len());
        match (form, text.get(..cut), text.get(cut..)) {
            (0, _, _) => StringMatch::Present,
            (1 | 2, Some(start), _) if !start.is_empty() => StringMatch::Prefix(start.into()),
            (3 | 4, _, Some(end)) if !end.is_empty() => StringMatch::Suffix(end.into()),
            _ => StringMatch::Exact(text.into()),
        }
    })
}

fn principal() -> impl Strategy<Value = StringMatch> {
    pattern(identity().prop_map(|identity| identity.principal()))
}

fn namespace() -> impl Strategy<Value = StringMatch> {
    pattern(select(NAMESPACES).prop_map(String::from))
}

fn trust_domain() -> impl Strategy<Value = StringMatch> {
    pattern(select(DOMAINS).prop_map(String::from))
}

fn account() -> impl Strategy<Value = NamespacedName> {
    (select(NAMESPACES), select(ACCOUNTS)).prop_map(|(namespace, name)| NamespacedName { namespace: namespace.into(), name: name.into() })
}

/// Mostly absent, as fields are.
fn some<T: Clone + std::fmt::Debug + 'static>(value: impl Strategy<Value = T> + 'static) -> BoxedStrategy<Vec<T>> {
    prop_oneof![5 => Just(Vec::new()), 2 => vec(value, 1..4)].boxed()
}

/// Positive and negative values.
fn both<T, S>(value: fn() -> S) -> (BoxedStrategy<Vec<T>>, BoxedStrategy<Vec<T>>)
where
    T: Clone + std::fmt::Debug + 'static,
    S: Strategy<Value = T> + 'static,
{
    (some(value()), some(value()))
}

/// Rarer than other fields, so that there are enough rules without them.
fn http(texts: &'static [&'static str]) -> (BoxedStrategy<Vec<StringMatch>>, BoxedStrategy<Vec<StringMatch>>) {
    let list = |often| {
        let value = || pattern(select(texts).prop_map(String::from));
        prop_oneof![often => Just(Vec::new()), 1 => vec(value(), 1..4)].boxed()
    };
    (list(9), list(12))
}

fn paths() -> BoxedStrategy<Vec<Arc<str>>> {
    let plain = pattern(select(request::PATHS).prop_map(String::from)).prop_map(|pattern| Arc::from(pattern.to_string()));
    prop_oneof![8 => Just(Vec::new()), 1 => vec(plain, 1..4), 1 => vec(select(request::TEMPLATES).prop_map(Arc::from), 1..3)].boxed()
}

fn source() -> impl Strategy<Value = Source> {
    let identity = (both(principal), both(namespace), both(account), both(trust_domain));
    let remote = prop_oneof![8 => Just(Vec::new()), 1 => vec(range(), 1..3)];
    (identity, both(range), http(request::PRINCIPALS), remote).prop_map(|(identity, ip, jwt, remote)| {
        let (principals, namespaces, accounts, domains) = identity;
        Source {
            principals: principals.0,
            not_principals: principals.1,
            namespaces: namespaces.0,
            not_namespaces: namespaces.1,
            service_accounts: accounts.0,
            not_service_accounts: accounts.1,
            trust_domains: domains.0,
            not_trust_domains: domains.1,
            ip_blocks: ip.0,
            not_ip_blocks: ip.1,
            request_principals: jwt.0,
            not_request_principals: jwt.1,
            remote_ip_blocks: remote,
            ..Source::default()
        }
    })
}

fn operation() -> impl Strategy<Value = Operation> {
    let port = || select(PORTS);
    let all = (both(port), http(request::METHODS), http(request::HOSTS), paths(), paths());
    all.prop_map(|(ports, methods, hosts, paths, not_paths)| Operation {
        ports: ports.0,
        not_ports: ports.1,
        methods: methods.0,
        not_methods: methods.1,
        hosts: hosts.0,
        not_hosts: hosts.1,
        paths,
        not_paths,
    })
}

fn condition() -> impl Strategy<Value = Condition> {
    fn about() -> impl Strategy<Value = IdentityPattern> {
        prop_oneof![
            principal().prop_map(IdentityPattern::Principal),
            namespace().prop_map(IdentityPattern::Namespace),
            account().prop_map(IdentityPattern::ServiceAccount),
            trust_domain().prop_map(IdentityPattern::TrustDomain),
        ]
    }
    let port = || select(PORTS);
    prop_oneof![
        3 => both(range).prop_map(|(yes, no)| Condition::SourceIp(yes, no)),
        3 => both(range).prop_map(|(yes, no)| Condition::DestinationIp(yes, no)),
        3 => both(port).prop_map(|(yes, no)| Condition::DestinationPort(yes, no)),
        6 => both(about).prop_map(|(yes, no)| Condition::Identity(yes, no)),
        4 => http_condition(),
    ]
}

fn http_condition() -> impl Strategy<Value = Condition> {
    let texts = || some(pattern(select(request::WORDS).prop_map(String::from)).prop_map(|pattern| Arc::<str>::from(pattern.to_string())));
    let ranges = || some(range().prop_map(|range| Arc::<str>::from(range.to_string())));
    let of = |key: &str, (values, not_values)| Condition::Http { key: key.into(), values, not_values };
    prop_oneof![
        8 => (select(request::KEYS), (texts(), texts())).prop_map(move |(key, values)| of(key, values)),
        1 => (ranges(), ranges()).prop_map(move |values| of("remote.ip", values)),
    ]
}

fn rule() -> impl Strategy<Value = Rule> {
    (vec(source(), 0..3), vec(operation(), 0..3), vec(condition(), 0..3)).prop_map(|(from, to, when)| Rule { from, to, when })
}
