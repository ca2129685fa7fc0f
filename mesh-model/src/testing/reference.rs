//! AuthorizationPolicy evaluated as its specification reads, on the values and not on the program; simple, and sharing no matching
//! code with [`crate::policy`].

use std::net::IpAddr;

use ipnet::IpNet;
use mesh_common::policy::Facts;

use crate::identity::Identity;
use crate::policy::{Action, AuthorizationPolicy, Condition, EffectivePolicies, IdentityPattern, Operation, Rule, Source};
use crate::service::NamespacedName;

use super::request::Request;

/// A connection, as policy sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Flow {
    /// The caller's identity.
    pub identity: Option<Identity>,
    /// The caller's address.
    pub source: IpAddr,
    /// The pod's address.
    pub destination: IpAddr,
    /// The pod's port.
    pub port: u16,
}

impl Flow {
    /// The same for [`mesh_common::verdict`].
    pub fn facts(&self) -> Facts {
        Facts {
            source: self.source.into(),
            destination: self.destination.into(),
            port: self.port.into(),
            identified: self.identity.is_some().into(),
        }
    }
}

/// What enforcement of the policies in dry run would have denied.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DryRun {
    /// This DENY policy matches.
    Policy(NamespacedName),
    /// There are ALLOW policies, and none matches.
    NoneAllows,
}

/// The outcome.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// Whether the connection may go on.
    pub allowed: bool,
    /// The policy that decided.
    pub policy: Option<NamespacedName>,
    /// What would have been denied; only of what is allowed.
    pub dry_run: Option<DryRun>,
    /// The AUDIT policy that noted it.
    pub audited: Option<NamespacedName>,
}

/// Judges a connection of which nobody reads more.
pub fn judge(effective: &EffectivePolicies, flow: &Flow) -> Verdict {
    judge_any(effective, flow, None)
}

/// Judges an HTTP request.
pub fn judge_request(effective: &EffectivePolicies, request: &Request) -> Verdict {
    judge_any(effective, &request.flow, Some(request))
}

fn judge_any(effective: &EffectivePolicies, flow: &Flow, request: Option<&Request>) -> Verdict {
    let own = effective.trust_domain.as_str();
    let denies = |p: &AuthorizationPolicy| p.action != Action::Audit && (p.refused.is_some() || p.action == Action::Deny);
    let allows = |p: &AuthorizationPolicy| p.refused.is_none() && p.action == Action::Allow;
    let audits = |p: &AuthorizationPolicy| p.refused.is_none() && p.action == Action::Audit;
    let first = |dry_run: bool, kind: &dyn Fn(&AuthorizationPolicy) -> bool| {
        let found = effective.policies.iter().find(|p| p.dry_run == dry_run && kind(p) && matches(p, own, flow, request));
        found.map(|p| p.name.clone())
    };
    let any = |dry_run: bool| effective.policies.iter().any(|p| p.dry_run == dry_run && allows(p));
    let deny = first(false, &denies);
    let allow = first(false, &allows);
    let allowed = deny.is_none() && (allow.is_some() || !any(false));
    let dry_run = match first(true, &denies) {
        _ if !allowed => None,
        Some(policy) => Some(DryRun::Policy(policy)),
        None => (any(true) && allow.is_none() && first(true, &allows).is_none()).then_some(DryRun::NoneAllows),
    };
    let audited = first(false, &audits)
        .into_iter()
        .chain(first(true, &audits))
        .min_by_key(|name| effective.policies.iter().position(|p| p.name == *name));
    Verdict { allowed, policy: deny.or(allow), dry_run, audited }
}

fn matches(policy: &AuthorizationPolicy, own: &str, flow: &Flow, request: Option<&Request>) -> bool {
    if policy.refused.is_some() {
        return true;
    }
    let deny = policy.action == Action::Deny;
    policy.rules.iter().any(|rule| rule_matches(rule, deny, own, flow, request))
}

fn rule_matches(rule: &Rule, deny: bool, own: &str, flow: &Flow, request: Option<&Request>) -> bool {
    let caller = Caller { flow, request, deny, own };
    (rule.from.is_empty() || rule.from.iter().any(|source| caller.source(source)))
        && (rule.to.is_empty() || rule.to.iter().any(|operation| caller.operation(operation)))
        && rule.when.iter().all(|condition| caller.condition(condition))
}

struct Caller<'a> {
    flow: &'a Flow,
    request: Option<&'a Request>,
    deny: bool,
    own: &'a str,
}

impl Caller<'_> {
    fn source(&self, source: &Source) -> bool {
        let identity = self.flow.identity.as_ref();
        let principal = identity.map(Identity::principal);
        let namespace = identity.map(|i| i.namespace().to_string());
        let account = identity.map(|i| format!("{}/{}", i.namespace(), i.service_account()));
        let domain = identity.map(|i| i.trust_domain().to_string());
        // HTTP fields without a request: an ALLOW cannot match them, a DENY does not look at them.
        self.request.map_or(self.deny || !source.needs_http(), |request| request.source(source, self.deny))
            && self.texts(&source.principals, &source.not_principals, &principal)
            && self.texts(&source.namespaces, &source.not_namespaces, &namespace)
            && self.texts(&source.service_accounts, &source.not_service_accounts, &account)
            && self.texts(&source.trust_domains, &source.not_trust_domains, &domain)
            && ranges(&source.ip_blocks, &source.not_ip_blocks, self.flow.source)
    }

    fn operation(&self, operation: &Operation) -> bool {
        self.request.map_or(self.deny || !operation.needs_http(), |request| request.operation(operation, self.deny))
            && ports(&operation.ports, &operation.not_ports, self.flow.port)
    }

    fn condition(&self, condition: &Condition) -> bool {
        match condition {
            Condition::SourceIp(yes, no) => ranges(yes, no, self.flow.source),
            Condition::DestinationIp(yes, no) => ranges(yes, no, self.flow.destination),
            Condition::DestinationPort(yes, no) => ports(yes, no, self.flow.port),
            Condition::Identity(yes, no) => {
                (yes.is_empty() || yes.iter().any(|p| self.identity(p, self.deny))) && !no.iter().any(|p| self.identity(p, !self.deny))
            }
            Condition::Http { key, values, not_values } => {
                self.request.map_or(self.deny, |request| request.condition(key, values, not_values, self.deny))
            }
        }
    }

    fn identity(&self, pattern: &IdentityPattern, stricter: bool) -> bool {
        let Some(identity) = &self.flow.identity else { return false };
        let (pattern, text) = match pattern {
            IdentityPattern::Principal(p) => (p.to_string(), identity.principal()),
            IdentityPattern::Namespace(p) => (p.to_string(), identity.namespace().to_string()),
            IdentityPattern::ServiceAccount(name) => (name.to_string(), format!("{}/{}", identity.namespace(), identity.service_account())),
            IdentityPattern::TrustDomain(p) => (p.to_string(), identity.trust_domain().to_string()),
        };
        self.glob(&pattern, &text, stricter)
    }

    /// A positive field makes a DENY stricter, a negative one an ALLOW.
    fn texts<T: ToString>(&self, yes: &[T], no: &[T], text: &Option<String>) -> bool {
        let hit = |patterns: &[T], stricter: bool| {
            text.as_ref().is_some_and(|text| patterns.iter().any(|pattern| self.glob(&pattern.to_string(), text, stricter)))
        };
        (yes.is_empty() || hit(yes, self.deny)) && !hit(no, !self.deny)
    }

    fn glob(&self, pattern: &str, text: &str, stricter: bool) -> bool {
        let own_meant = match pattern.strip_prefix("cluster.local") {
            Some("") => Some(self.own.to_string()),
            Some(rest) if rest.starts_with('/') => Some(format!("{}{rest}", self.own)),
            _ => None,
        };
        glob(pattern, text) || (stricter && own_meant.is_some_and(|pattern| glob(&pattern, text)))
    }
}

/// By comparing characters: a star at an end stands for the rest.
pub(super) fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    match (pattern.as_slice(), text.as_slice()) {
        (['*'], _) => true,
        (['*', end @ ..], text) => text.iter().rev().zip(end.iter().rev()).filter(|(a, b)| a == b).count() == end.len(),
        ([start @ .., '*'], text) => text.iter().zip(start).filter(|(a, b)| a == b).count() == start.len(),
        (pattern, text) => pattern == text,
    }
}

pub(super) fn ranges(yes: &[IpNet], no: &[IpNet], ip: IpAddr) -> bool {
    (yes.is_empty() || yes.iter().any(|net| within(net, ip))) && !no.iter().any(|net| within(net, ip))
}

/// First and last address as numbers, and only of one family.
fn within(net: &IpNet, ip: IpAddr) -> bool {
    match (net, ip) {
        (IpNet::V4(net), IpAddr::V4(ip)) => (u32::from(net.network())..=u32::from(net.broadcast())).contains(&u32::from(ip)),
        (IpNet::V6(net), IpAddr::V6(ip)) => (u128::from(net.network())..=u128::from(net.broadcast())).contains(&u128::from(ip)),
        _ => false,
    }
}

fn ports(yes: &[u16], no: &[u16], port: u16) -> bool {
    (yes.is_empty() || yes.contains(&port)) && !no.contains(&port)
}
