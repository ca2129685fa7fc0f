//! Who may talk to whom, and whether plaintext is accepted: Istio's AuthorizationPolicy and PeerAuthentication as values.
//!
//! The values say what the author wrote, HTTP fields included. [`mod@compile`] turns those in force for a workload into the program that
//! kernel and agent run on a connection, [`http`] into what the agent asks of each request; [`modes`] folds the PeerAuthentications into one answer a port, and
//! [`plaintext`] makes that a part of such a program.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;

use crate::identity::TrustDomain;
use crate::service::NamespacedName;

pub mod compile;
pub mod http;
pub mod modes;
pub mod path;
pub mod pattern;
pub mod plaintext;
pub mod request_authentication;
pub mod sets;

pub use compile::{CompiledPolicy, compile};
pub use http::HttpPolicy;
pub use modes::{MtlsModes, PortMode};
pub use path::NormalPath;
pub use pattern::{IdentityPattern, StringMatch};
pub use request_authentication::{JwtRule, RequestAuthentication};
pub use sets::{IdentityMatch, SetInterner};

/// What follows when a rule matches.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Action {
    /// The connection is denied, whatever else allows it.
    Deny,
    /// The connection is allowed; what no ALLOW policy of the workload matches is denied.
    Allow,
    /// It is noted in the log.
    Audit,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Action::Deny => "DENY",
            Action::Allow => "ALLOW",
            Action::Audit => "AUDIT",
        })
    }
}

/// Which workloads of its namespace a policy is about; of all namespaces if it stands in the root namespace.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Scope {
    /// All.
    Namespace,
    /// Those with these labels.
    Selector(BTreeMap<String, String>),
    /// The pods of these Services: those that the Service's selector matches or its EndpointSlices name, ready or not. The policy then
    /// holds for every connection to such a pod, by way of the Service or not, since a pod can be dialled directly.
    Services(Vec<Arc<str>>),
}

/// An AuthorizationPolicy.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct AuthorizationPolicy {
    /// Its name.
    pub name: NamespacedName,
    /// What follows when a rule matches.
    pub action: Action,
    /// Judged, counted and logged, not enforced.
    pub dry_run: bool,
    /// The workloads it is about.
    pub scope: Scope,
    /// Its rules: one that matches makes the policy match. None matches nothing.
    pub rules: Vec<Rule>,
    /// Why it could not be understood. It then denies everything to the workloads it is about, in place of its action and rules.
    pub refused: Option<Arc<str>>,
}

/// A rule: one of `from`, one of `to` and all of `when` must hold; an empty list holds.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Rule {
    /// Sources.
    pub from: Vec<Source>,
    /// Operations.
    pub to: Vec<Operation>,
    /// Conditions.
    pub when: Vec<Condition>,
}

/// Facts about the caller. Every non-empty field must hold: one of a plain field's values, none of a `not_` field's.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Source {
    /// `<trust domain>/ns/<namespace>/sa/<service account>`.
    pub principals: Vec<StringMatch>,
    /// As [`Source::principals`].
    pub not_principals: Vec<StringMatch>,
    /// Namespace of the identity.
    pub namespaces: Vec<StringMatch>,
    /// As [`Source::namespaces`].
    pub not_namespaces: Vec<StringMatch>,
    /// Namespace and name of the identity's service account.
    pub service_accounts: Vec<NamespacedName>,
    /// As [`Source::service_accounts`].
    pub not_service_accounts: Vec<NamespacedName>,
    /// Trust domain of the identity.
    pub trust_domains: Vec<StringMatch>,
    /// As [`Source::trust_domains`].
    pub not_trust_domains: Vec<StringMatch>,
    /// The client's address.
    pub ip_blocks: Vec<IpNet>,
    /// As [`Source::ip_blocks`].
    pub not_ip_blocks: Vec<IpNet>,
    /// HTTP: issuer and subject of a JWT.
    pub request_principals: Vec<StringMatch>,
    /// As [`Source::request_principals`].
    pub not_request_principals: Vec<StringMatch>,
    /// HTTP: the client's address as X-Forwarded-For or the PROXY protocol tell it. A TCP connection says nothing of the kind, so the
    /// field is treated as the HTTP ones are. No hop before a request is trusted, so that on one it is the peer's address.
    pub remote_ip_blocks: Vec<IpNet>,
    /// As [`Source::remote_ip_blocks`].
    pub not_remote_ip_blocks: Vec<IpNet>,
}

impl Source {
    /// Whether a field can only be judged on an HTTP request.
    pub fn needs_http(&self) -> bool {
        !(self.request_principals.is_empty()
            && self.not_request_principals.is_empty()
            && self.remote_ip_blocks.is_empty()
            && self.not_remote_ip_blocks.is_empty())
    }
}

/// Facts about what is called; fields as in [`Source`].
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Operation {
    /// The server's (pod) port.
    pub ports: Vec<u16>,
    /// As [`Operation::ports`].
    pub not_ports: Vec<u16>,
    /// HTTP: authority.
    pub hosts: Vec<StringMatch>,
    /// As [`Operation::hosts`].
    pub not_hosts: Vec<StringMatch>,
    /// HTTP: method.
    pub methods: Vec<StringMatch>,
    /// As [`Operation::methods`].
    pub not_methods: Vec<StringMatch>,
    /// HTTP: path, as written; may have `{*}` and `{**}`.
    pub paths: Vec<Arc<str>>,
    /// As [`Operation::paths`].
    pub not_paths: Vec<Arc<str>>,
}

impl Operation {
    /// Whether a field can only be judged on an HTTP request.
    pub fn needs_http(&self) -> bool {
        !(self.hosts.is_empty()
            && self.not_hosts.is_empty()
            && self.methods.is_empty()
            && self.not_methods.is_empty()
            && self.paths.is_empty()
            && self.not_paths.is_empty())
    }
}

/// A condition of `when`: one of `values` (if there are any) and none of `not_values`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Condition {
    /// `source.ip`.
    SourceIp(Vec<IpNet>, Vec<IpNet>),
    /// `destination.ip`: the pod's address.
    DestinationIp(Vec<IpNet>, Vec<IpNet>),
    /// `destination.port`: the pod's port.
    DestinationPort(Vec<u16>, Vec<u16>),
    /// `source.principal`, `source.namespace`, `source.serviceAccount`, `source.trustDomain`.
    Identity(Vec<IdentityPattern>, Vec<IdentityPattern>),
    /// `request.*`, `remote.ip` and `connection.sni`: what a TCP connection that nobody parses does not show.
    Http {
        /// The key, as written.
        key: Arc<str>,
        /// The values.
        values: Vec<Arc<str>>,
        /// The values that must not be.
        not_values: Vec<Arc<str>>,
    },
}

/// Whether plaintext is accepted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum MtlsMode {
    /// Plaintext is refused.
    Strict,
    /// Plaintext and mTLS are accepted.
    #[default]
    Permissive,
    /// Clients are told not to use mTLS; a server accepts both, as under [`MtlsMode::Permissive`].
    Disable,
}

impl fmt::Display for MtlsMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MtlsMode::Strict => "STRICT",
            MtlsMode::Permissive => "PERMISSIVE",
            MtlsMode::Disable => "DISABLE",
        })
    }
}

/// A PeerAuthentication. Absent modes (`UNSET`) inherit.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct PeerAuthentication {
    /// Its name.
    pub name: NamespacedName,
    /// `metadata.creationTimestamp`, seconds since 1970, if given: of several at one level the oldest holds.
    pub created: Option<i64>,
    /// Labels of the workloads it is about; empty for all of its namespace (of the mesh, in the root namespace).
    pub selector: BTreeMap<String, String>,
    /// `mtls.mode`.
    pub mode: Option<MtlsMode>,
    /// `portLevelMtls`, by the pod's port.
    pub ports: BTreeMap<u16, Option<MtlsMode>>,
    /// Why it could not be understood. It then demands STRICT on every port of the workloads it is about, above all others.
    pub refused: Option<Arc<str>>,
}

/// The AuthorizationPolicies that hold for a workload, in the order in which they are named as the reason of a decision.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct EffectivePolicies {
    /// The mesh's own trust domain: `cluster.local` in a policy may mean it (see [`mod@compile`]).
    pub trust_domain: TrustDomain,
    /// The policies: those of the root namespace first, then by name.
    pub policies: Vec<Arc<AuthorizationPolicy>>,
}

/// Whether `labels` has every pair of `selector`; an empty selector matches all.
pub fn selects(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests;
