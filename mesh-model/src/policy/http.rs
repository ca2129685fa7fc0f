//! AuthorizationPolicies judged on one HTTP request. Pure; the agent asks for each request, after [`HttpPolicy::connection`] let the
//! connection be opened.
//!
//! The order is that of [`mesh_common::verdict`]: any DENY that matches → deny; no ALLOW applies → allow; any ALLOW that matches → allow;
//! else deny. Policies in dry run are judged apart from it, and AUDIT only notes.
//!
//! Fields that a request may lack:
//!
//! | field | what it is compared with | where it is absent |
//! |---|---|---|
//! | `hosts` | authority as sent, and without its port and the dot at its end; case does not count | matches no value, so every `notHosts` |
//! | `methods` | the method; a stricter reading (below) ignores case | always there |
//! | `paths` | [`NormalPath`], without query | always there; `*` of OPTIONS is compared as it is |
//! | `request.headers[x]` | the lines joined by `,` as in Envoy; a stricter reading takes each line too | no value, every `notValues` |
//! | `requestPrincipals`, `request.auth.principal` | `<iss>/<sub>` of the token | no token, or one that lacks either: no value, every `not…` |
//! | `request.auth.audiences`, `.presenter` | each of `aud`, `azp` | no value, every `notValues` |
//! | `request.auth.claims[a][b]` | the text, or each of a list; of `scope` and `permission` each word | no value, every `notValues` |
//! | `remoteIpBlocks`, `remote.ip` | the peer's address: no hop before a request is trusted, whatever X-Forwarded-For says | always there |
//! | `connection.sni` | the server name of TLS | not known: an ALLOW rule that asks never matches, of a DENY rule the question is left out |
//!
//! An absent text matches every `not…` field for ALLOW and DENY alike, as in Istio: `notRequestPrincipals: ["*"]` is how one says
//! "without a token". What is not known, other than what is known to be absent, never widens.
//!
//! A reading is stricter for a DENY's positive and an ALLOW's `not…` fields: there, what some servers take for the same thing matches
//! too, for else a denial could be walked past by another spelling.

use std::net::IpAddr;

use crate::identity::Identity;
use crate::policy::path::NormalPath;
use crate::policy::{Action, AuthorizationPolicy, Condition, EffectivePolicies, Rule};
use crate::service::NamespacedName;

mod claims;
mod evaluate;
mod program;
mod template;

pub use claims::Claims;
pub use template::{ParsePathError, PathMatch};

pub(crate) use program::{check_key, is_token};

/// What is in force for the requests to a workload. Equal values decide equally.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct HttpPolicy {
    policies: Vec<program::Policy>,
}

/// What is known of a connection before a request is read.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionFacts<'a> {
    /// The peer's proven identity.
    pub identity: Option<&'a Identity>,
    /// The peer's address.
    pub source: IpAddr,
    /// The pod's address.
    pub destination: IpAddr,
    /// The pod's port.
    pub port: u16,
}

/// The headers of a request.
pub trait Headers {
    /// Calls `each` with every value of a header, one for each line, in their order. `name` is in lower case; headers' names have no case.
    fn each_value<'a>(&'a self, name: &str, each: &mut dyn FnMut(&'a [u8]));
}

/// What policies may ask of a request.
#[derive(Clone, Copy)]
pub struct RequestFacts<'a> {
    /// Its connection.
    pub connection: ConnectionFacts<'a>,
    /// The method.
    pub method: &'a str,
    /// The authority as sent: `:authority`, the target's, or the `Host` header's.
    pub host: Option<&'a str>,
    /// The path, which must be the one that is forwarded.
    pub path: &'a NormalPath<'a>,
    /// The headers.
    pub headers: &'a dyn Headers,
    /// Server name of TLS, where it is known.
    pub sni: Option<&'a str>,
    /// What the verified token says; `None` if the request has none.
    pub jwt: Option<&'a Claims>,
}

/// Why something is denied.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DenyReason {
    /// A DENY policy matches.
    DenyPolicy,
    /// ALLOW policies apply, and none matches.
    NoAllowPolicy,
    /// A policy that could not be understood denies what it selects.
    InvalidPolicy,
}

/// What the policies in dry run would have denied, were they enforced.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DryRunDenial<'p> {
    /// By this policy.
    Policy(&'p NamespacedName),
    /// There are ALLOW policies, and none matches.
    NoneAllows,
}

/// About a request.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[must_use]
pub struct Decision<'p> {
    /// Whether it may go on.
    pub allowed: bool,
    /// Why not; `None` if it may.
    pub reason: Option<DenyReason>,
    /// The policy that decided: the one that denies, or the first ALLOW policy that matches.
    pub policy: Option<&'p NamespacedName>,
    /// What dry run would have denied; only of what is allowed.
    pub dry_run: Option<DryRunDenial<'p>>,
    /// The first AUDIT policy that matches.
    pub audited: Option<&'p NamespacedName>,
}

/// About a connection that carries HTTP.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[must_use]
pub enum ConnectionDecision<'p> {
    /// It may be opened. This allows no request: each is to be decided.
    Open,
    /// Every request on it would be denied.
    Denied {
        /// Why.
        reason: DenyReason,
        /// The policy that denies.
        policy: Option<&'p NamespacedName>,
    },
}

impl HttpPolicy {
    /// `None` if no policy asks for anything of HTTP, since the connection's decision then is that of each request on it.
    pub fn compile(effective: &EffectivePolicies) -> Option<HttpPolicy> {
        effective.policies.iter().any(|policy| asks_http(policy)).then(|| HttpPolicy::always(effective))
    }

    fn always(effective: &EffectivePolicies) -> HttpPolicy {
        HttpPolicy { policies: effective.policies.iter().map(|policy| program::Policy::of(policy, &effective.trust_domain)).collect() }
    }

    /// Decides about a request.
    pub fn decide(&self, request: &RequestFacts<'_>) -> Decision<'_> {
        let found = self.walk(&request.connection, Some(request));
        let mut decision = Decision { allowed: true, reason: None, policy: None, dry_run: None, audited: found.audit };
        if let Some((policy, reason)) = found.deny {
            decision = Decision { allowed: false, reason: Some(reason), policy: Some(policy), ..decision };
        } else if found.allow.is_some() || !found.has_allow {
            decision.policy = found.allow;
            decision.dry_run = match found.dry_deny {
                Some(policy) => Some(DryRunDenial::Policy(policy)),
                None => (found.has_dry_allow && !found.dry_allow && found.allow.is_none()).then_some(DryRunDenial::NoneAllows),
            };
        } else {
            decision = Decision { allowed: false, reason: Some(DenyReason::NoAllowPolicy), ..decision };
        }
        decision
    }

    /// Whether a connection that may carry HTTP is to be opened at all: not if every request on it would be denied whatever it holds.
    pub fn connection(&self, connection: &ConnectionFacts<'_>) -> ConnectionDecision<'_> {
        let found = self.walk(connection, None);
        if let Some((policy, reason)) = found.deny {
            ConnectionDecision::Denied { reason, policy: Some(policy) }
        } else if found.has_allow && found.allow.is_none() {
            ConnectionDecision::Denied { reason: DenyReason::NoAllowPolicy, policy: None }
        } else {
            ConnectionDecision::Open
        }
    }

    /// Without a request, a DENY counts if it matches every one, an ALLOW if it may match one.
    fn walk(&self, connection: &ConnectionFacts<'_>, request: Option<&RequestFacts<'_>>) -> Found<'_> {
        let question = evaluate::Question::new(connection, request);
        let mut found = Found::default();
        for policy in &self.policies {
            // Only the first of each kind is named.
            match (policy.kind(), policy.dry_run) {
                (Action::Deny, false) if found.deny.is_none() => {
                    if question.certainly(policy) {
                        let reason = if policy.refused { DenyReason::InvalidPolicy } else { DenyReason::DenyPolicy };
                        found.deny = Some((&policy.name, reason));
                    }
                }
                (Action::Deny, true) if found.dry_deny.is_none() => {
                    found.dry_deny = question.certainly(policy).then_some(&policy.name);
                }
                (Action::Allow, false) => {
                    found.has_allow = true;
                    if found.allow.is_none() && question.possibly(policy) {
                        found.allow = Some(&policy.name);
                    }
                }
                (Action::Allow, true) => {
                    found.has_dry_allow = true;
                    found.dry_allow = found.dry_allow || question.possibly(policy);
                }
                (Action::Audit, _) if found.audit.is_none() => {
                    found.audit = question.certainly(policy).then_some(&policy.name);
                }
                (Action::Deny | Action::Audit, _) => {}
            }
        }
        found
    }
}

/// What matched, the first of each kind.
#[derive(Default)]
struct Found<'p> {
    deny: Option<(&'p NamespacedName, DenyReason)>,
    allow: Option<&'p NamespacedName>,
    has_allow: bool,
    dry_deny: Option<&'p NamespacedName>,
    dry_allow: bool,
    has_dry_allow: bool,
    audit: Option<&'p NamespacedName>,
}

/// Whether a policy asks for anything of HTTP: connections to the workloads that it is about are then looked into.
pub fn asks_http(policy: &AuthorizationPolicy) -> bool {
    policy.rules.iter().any(needs_http)
}

fn needs_http(rule: &Rule) -> bool {
    rule.from.iter().any(|source| source.needs_http())
        || rule.to.iter().any(|operation| operation.needs_http())
        || rule.when.iter().any(|condition| matches!(condition, Condition::Http { .. }))
}

#[cfg(test)]
mod tests;
