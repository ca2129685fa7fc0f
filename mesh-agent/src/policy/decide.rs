//! The decision about one connection to one workload: first whether the transport is good enough, then what policy says. Pure.
//!
//! Only [`decide`] makes a [`Permit`], and forwarding needs one, so that nobody can forget to ask.

use std::fmt;
use std::sync::Arc;

use mesh_common::policy::Facts;
use mesh_common::verdict::NO_POLICY;
use mesh_model::identity::Identity;
use mesh_model::jwt::{JwtError, KeyRing};
use mesh_model::policy::http::{ConnectionDecision, ConnectionFacts, DenyReason, DryRunDenial, Headers, HttpPolicy, RequestFacts};
use mesh_model::policy::path::NormalPath;
use mesh_model::policy::request_authentication::KeyLocation;
use mesh_model::policy::{CompiledPolicy, MtlsMode, MtlsModes, SetInterner, compile};
use mesh_model::service::NamespacedName;
use mesh_model::snapshot::Snapshot;
use mesh_model::workload::Workload;

use super::limits::Limits;
use super::tokens::{Believed, Tokens};
use crate::conn::{ClientAddr, ServerAddr};

/// By which way a connection came.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Transport {
    /// Through mTLS, or from a pod of this node whose network namespace tells who it is: the peer's identity is proven.
    Tunnel,
    /// As it is: the peer may be anybody, whatever identity is claimed for it.
    Plaintext,
    /// From a process of the host outside the pods' cgroup: the kubelet's probes, which reach the application under every policy.
    HostProbe,
}

/// Who calls.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Peer {
    /// The proven identity. Counts only with [`Transport::Tunnel`].
    pub identity: Option<Identity>,
    /// The client's address.
    pub address: ClientAddr,
}

/// What is in force for one workload. Equal values decide equally.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct WorkloadPolicy(Inner);

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one a pod, and it is what is missing only for moments")]
enum Inner {
    Rules { modes: MtlsModes, compiled: CompiledPolicy, http: Option<HttpPolicy>, tokens: Option<Tokens>, limits: Option<Limits> },
    Missing { awaited: Arc<str> },
}

impl WorkloadPolicy {
    /// What a snapshot has in force for a workload, but its limits and keys that are fetched; see [`WorkloadPolicy::limited`] and
    /// [`WorkloadPolicy::keyed`].
    pub fn of(snapshot: &Snapshot, workload: &Workload, interner: &mut SetInterner) -> Self {
        let effective = snapshot.policies_for(workload);
        let (compiled, http) = (compile(&effective, interner), HttpPolicy::compile(&effective));
        let tokens = Tokens::of(snapshot.authentication_for(workload));
        WorkloadPolicy(Inner::Rules { modes: snapshot.mtls_modes(workload), compiled, http, tokens, limits: None })
    }

    /// From its parts, of policies that ask nothing of HTTP.
    pub fn new(modes: MtlsModes, compiled: CompiledPolicy) -> Self {
        WorkloadPolicy(Inner::Rules { modes, compiled, http: None, tokens: None, limits: None })
    }

    /// The same, with the limits of the workload.
    pub fn limited(mut self, of: Option<Limits>) -> Self {
        if let Inner::Rules { limits, .. } = &mut self.0 {
            *limits = of;
        }
        self
    }

    /// The same, with the places of the keys of tokens that are fetched; without it none of those issuers is believed.
    pub fn keyed(mut self, ring: &dyn Fn(&KeyLocation) -> Arc<dyn KeyRing>) -> Self {
        if let Inner::Rules { tokens, .. } = &mut self.0 {
            *tokens = tokens.take().map(|tokens| tokens.keyed(ring));
        }
        self
    }

    /// A workload whose rules are not there: everything is refused, but the host's probes. `awaited` says what is missing.
    pub fn missing(awaited: &str) -> Self {
        WorkloadPolicy(Inner::Missing { awaited: awaited.into() })
    }

    /// Whether something is asked of HTTP requests, or they are to be counted: connections must then be looked into, and only this agent can
    /// judge.
    pub fn asks_http(&self) -> bool {
        matches!(&self.0, Inner::Rules { http, tokens, limits, .. } if http.is_some() || tokens.is_some() || limits.is_some())
    }

    /// Whose tokens are believed, if anybody's.
    pub fn tokens(&self) -> Option<&Tokens> {
        match &self.0 {
            Inner::Rules { tokens, .. } => tokens.as_ref(),
            Inner::Missing { .. } => None,
        }
    }

    /// How many requests it takes, if that is limited.
    pub fn limits(&self) -> Option<&Limits> {
        match &self.0 {
            Inner::Rules { limits, .. } => limits.as_ref(),
            Inner::Missing { .. } => None,
        }
    }

    /// The program and its sets, as the kernel gets them; `None` while the rules are missing.
    pub fn compiled(&self) -> Option<&CompiledPolicy> {
        match &self.0 {
            Inner::Rules { compiled, .. } => Some(compiled),
            Inner::Missing { .. } => None,
        }
    }

    /// Whether plaintext is accepted, by port; `None` while the rules are missing.
    pub fn modes(&self) -> Option<&MtlsModes> {
        match &self.0 {
            Inner::Rules { modes, .. } => Some(modes),
            Inner::Missing { .. } => None,
        }
    }
}

/// Proof that [`decide`] said yes.
#[derive(PartialEq, Eq, Debug)]
#[must_use = "a permit that is not used means that nothing is forwarded"]
pub struct Permit {
    policy: Option<NamespacedName>,
    dry_run: Option<DryRun>,
    audited: Option<NamespacedName>,
}

impl Permit {
    /// The ALLOW policy that matched; `None` if there is none to match.
    pub fn policy(&self) -> Option<&NamespacedName> {
        self.policy.as_ref()
    }

    /// What the policies in dry run would have denied, were they enforced.
    pub fn dry_run(&self) -> Option<&DryRun> {
        self.dry_run.as_ref()
    }

    /// The AUDIT policy that asks for the connection to be noted.
    pub fn audited(&self) -> Option<&NamespacedName> {
        self.audited.as_ref()
    }
}

/// What a policy in dry run would have done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DryRun {
    /// This DENY policy would have denied.
    Denied(NamespacedName),
    /// The ALLOW policies in dry run would have been all there are, and none matches.
    NotAllowed,
}

impl fmt::Display for DryRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DryRun::Denied(policy) => write!(f, "AuthorizationPolicy {policy} (in dry run) would deny it"),
            DryRun::NotAllowed => f.write_str("no AuthorizationPolicy in dry run would allow it"),
        }
    }
}

/// Why a connection may not go on.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{}", self.sentence())]
pub struct Denial {
    /// What said no.
    pub reason: DenialReason,
    /// The AuthorizationPolicy that denied, or the PeerAuthentication that demands mTLS, where one can be named.
    pub policy: Option<NamespacedName>,
}

/// What said no.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DenialReason {
    /// It came as plaintext where STRICT demands mTLS.
    MtlsRequired,
    /// It came through the tunnel without an identity.
    NoIdentity,
    /// A DENY policy matches.
    DenyPolicy,
    /// A policy that could not be understood denies what it selects.
    InvalidPolicy,
    /// ALLOW policies apply, and none matches.
    NoAllowPolicy,
    /// The workload's rules are not there; what is awaited.
    RulesMissing(Arc<str>),
    /// The workload is gone.
    WorkloadGone,
    /// The request's token is not believed.
    Token(JwtError),
}

impl Denial {
    fn new(reason: DenialReason) -> Self {
        Denial { reason, policy: None }
    }

    fn sentence(&self) -> String {
        let by = |kind: &str| self.policy.as_ref().map(|policy| format!("{kind} {policy}"));
        let policy = || by("AuthorizationPolicy").unwrap_or_else(|| "an AuthorizationPolicy".into());
        match &self.reason {
            DenialReason::MtlsRequired => {
                let who = by("PeerAuthentication").unwrap_or_else(|| "the mesh's default".into());
                format!("plaintext is refused: {who} demands mTLS (STRICT) on this port")
            }
            DenialReason::NoIdentity => "the peer proved no identity".into(),
            DenialReason::DenyPolicy => format!("{} denies it", policy()),
            DenialReason::InvalidPolicy => {
                format!(
                    "{} is not understood, and so denies everything to the workloads it selects; see the problems of the configuration",
                    policy()
                )
            }
            DenialReason::NoAllowPolicy => "no ALLOW policy of the workload matches".into(),
            DenialReason::RulesMissing(awaited) => format!("the workload's rules are not there yet: waiting for {awaited}"),
            DenialReason::WorkloadGone => "the workload is gone".into(),
            DenialReason::Token(error) => error.to_string(),
        }
    }
}

/// What a decision begins with: the rules are there, and the transport is good enough.
fn prelude<'a>(
    policy: &'a WorkloadPolicy,
    peer: &'a Peer,
    server: ServerAddr,
    transport: Transport,
) -> Result<(&'a CompiledPolicy, Option<&'a HttpPolicy>, Option<&'a Identity>), Denial> {
    let (modes, compiled, http) = match &policy.0 {
        Inner::Rules { modes, compiled, http, .. } => (modes, compiled, http),
        Inner::Missing { awaited } => return Err(Denial::new(DenialReason::RulesMissing(awaited.clone()))),
    };
    let identity = match (transport, &peer.identity) {
        (Transport::Tunnel, Some(identity)) => Some(identity),
        (Transport::Tunnel, None) => return Err(Denial::new(DenialReason::NoIdentity)),
        // What is claimed over plaintext is no evidence.
        (Transport::Plaintext | Transport::HostProbe, _) => None,
    };
    let mode = modes.on(server.0.port());
    if transport == Transport::Plaintext && mode.mode == MtlsMode::Strict {
        return Err(Denial { reason: DenialReason::MtlsRequired, policy: mode.by.clone() });
    }
    Ok((compiled, http.as_ref(), identity))
}

/// A request, as policies look at it.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    /// Its method.
    pub method: &'a str,
    /// The authority as sent.
    pub host: Option<&'a str>,
    /// The path that is forwarded.
    pub path: &'a NormalPath<'a>,
    /// Its headers.
    pub headers: &'a dyn Headers,
}

/// Decides whether a connection may be opened on which requests are to be judged each by [`decide_request`]. A yes permits none of them.
pub fn decide_opening(policy: &WorkloadPolicy, peer: &Peer, server: ServerAddr, transport: Transport) -> Result<(), Denial> {
    let (_, http, identity) = prelude(policy, peer, server, transport)?;
    let Some(http) = http else { return decide(policy, peer, server, transport).map(drop) };
    match http.connection(&facts_of(peer, server, identity)) {
        ConnectionDecision::Open => Ok(()),
        ConnectionDecision::Denied { reason, policy } => Err(Denial { reason: reason_of(reason), policy: policy.cloned() }),
    }
}

/// Decides about a request on a connection to `server`.
pub fn decide_request(
    policy: &WorkloadPolicy,
    peer: &Peer,
    server: ServerAddr,
    transport: Transport,
    asked: Asked<'_>,
    token: &Believed,
) -> Result<Permit, Denial> {
    let (_, http, identity) = prelude(policy, peer, server, transport)?;
    // What is in force no longer asks for anything of HTTP: the connection's decision is the request's.
    let Some(http) = http else { return decide(policy, peer, server, transport) };
    let Asked { method, host, path, headers } = asked;
    let facts = RequestFacts { connection: facts_of(peer, server, identity), method, host, path, headers, sni: None, jwt: token.claims() };
    let decision = http.decide(&facts);
    if let Some(reason) = decision.reason.filter(|_| !decision.allowed) {
        return Err(Denial { reason: reason_of(reason), policy: decision.policy.cloned() });
    }
    if !decision.allowed {
        return Err(Denial::new(DenialReason::NoAllowPolicy));
    }
    let dry_run = decision.dry_run.map(|denial| match denial {
        DryRunDenial::Policy(policy) => DryRun::Denied(policy.clone()),
        DryRunDenial::NoneAllows => DryRun::NotAllowed,
    });
    Ok(Permit { policy: decision.policy.cloned(), dry_run, audited: decision.audited.cloned() })
}

fn facts_of<'a>(peer: &Peer, server: ServerAddr, identity: Option<&'a Identity>) -> ConnectionFacts<'a> {
    ConnectionFacts {
        identity,
        source: peer.address.0.ip().to_canonical(),
        destination: server.0.ip().to_canonical(),
        port: server.0.port(),
    }
}

fn reason_of(reason: DenyReason) -> DenialReason {
    match reason {
        DenyReason::DenyPolicy => DenialReason::DenyPolicy,
        DenyReason::NoAllowPolicy => DenialReason::NoAllowPolicy,
        DenyReason::InvalidPolicy => DenialReason::InvalidPolicy,
    }
}

/// Decides about a connection to `server`, which is the workload that `policy` is in force for.
pub fn decide(policy: &WorkloadPolicy, peer: &Peer, server: ServerAddr, transport: Transport) -> Result<Permit, Denial> {
    if transport == Transport::HostProbe {
        return Ok(Permit { policy: None, dry_run: None, audited: None });
    }
    let (compiled, _, identity) = prelude(policy, peer, server, transport)?;
    let facts = Facts {
        source: peer.address.0.ip().to_canonical().into(),
        destination: server.0.ip().to_canonical().into(),
        port: server.0.port().into(),
        identified: identity.is_some().into(),
    };
    let decision = compiled.decide(&facts, identity);
    let named = compiled.name(decision.policy).cloned();
    if !decision.allowed {
        let reason = match decision.policy {
            0 => DenialReason::NoAllowPolicy,
            number if compiled.refused.binary_search(&number).is_ok() => DenialReason::InvalidPolicy,
            _ => DenialReason::DenyPolicy,
        };
        return Err(Denial { reason, policy: named });
    }
    let dry_run = match decision.dry_run {
        0 => None,
        NO_POLICY => Some(DryRun::NotAllowed),
        number => compiled.name(number).cloned().map(DryRun::Denied),
    };
    let audited = compiled.name(compiled.audited(&facts, identity)).cloned();
    Ok(Permit { policy: named, dry_run, audited })
}

#[cfg(test)]
pub(crate) mod tests;
