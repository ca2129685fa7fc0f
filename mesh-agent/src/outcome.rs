//! Every way a connection can end, in one list, and the one place that says what each means to those who look:
//! the metric's flag, the log level, the tunnel's status, whose fault it was and where to look.
//!
//! The flags are Envoy's (`%RESPONSE_FLAGS%`) where Envoy has one, so that boards and alerts made for Istio work. For a denial by policy
//! Envoy's TCP filter has none; Istio's own L4 data plane reports `DENY`, and so do we.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use http::StatusCode;
use mesh_common::event;
use mesh_model::service::NamespacedName;
use tracing::Level;

pub use request::RequestFailure;
pub use upstream::UpstreamFailure;

/// How a connection ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Both sides closed in order.
    Completed,
    /// The client's application, or the peer on its behalf, aborted.
    ClientReset,
    /// The server's application, or the peer on its behalf, aborted.
    ServerReset,
    /// Policy refused it before any byte reached the application.
    PolicyDenied {
        /// What about the policy said no.
        reason: DenyReason,
        /// The policy, where one can be named.
        policy: Option<NamespacedName>,
    },
    /// Plaintext arrived where PeerAuthentication demands mTLS.
    MtlsRequired {
        /// The PeerAuthentication, where one can be named.
        policy: Option<NamespacedName>,
    },
    /// It had been allowed; a changed policy no longer allows it.
    PolicyRevoked {
        /// What about the changed policy said no.
        reason: DenyReason,
        /// The policy, where one can be named.
        policy: Option<NamespacedName>,
    },
    /// A pod is enrolled but not yet served, so nothing may pass.
    PodHeld {
        /// Which of the two pods.
        side: Side,
        /// What is awaited, for the log.
        awaited: Arc<str>,
    },
    /// The client is a process below the pods' cgroup in a network namespace that nobody enrolled.
    UnknownPod,
    /// The mesh's outboundTrafficPolicy is REGISTRY_ONLY, and what was dialled is not in the registry.
    Unregistered {
        /// The host that the client named, if it named one. Its own word.
        host: Option<Arc<str>>,
    },
    /// The destination address belongs to no workload that this agent serves.
    UnknownDestination,
    /// One of the mesh's own ports was dialled.
    OwnPort,
    /// The Service has no ready endpoint.
    NoEndpoint,
    /// The pod or Service has no address of the family that was dialled.
    AddressFamily,
    /// No valid certificate for the pod's identity.
    NoCertificate {
        /// What the certificate store says.
        detail: Arc<str>,
    },
    /// The application behind a pod could not be connected to.
    ConnectFailed {
        /// In what way.
        failure: ConnectFailure,
        /// The system's words.
        detail: Arc<str>,
    },
    /// The tunnel's port on the other pod could not be connected to.
    TunnelDialFailed {
        /// In what way.
        failure: ConnectFailure,
        /// The system's words.
        detail: Arc<str>,
    },
    /// The TLS or HTTP/2 handshake of a tunnel failed.
    TunnelHandshakeFailed {
        /// In what way.
        failure: HandshakeFailure,
        /// The library's words.
        detail: Arc<str>,
    },
    /// The peer's data plane answered our CONNECT with a refusal.
    TunnelRefused {
        /// Its HTTP status.
        status: u16,
        /// Its own explanation, if it gave one. A claim by the peer.
        detail: Option<Arc<str>>,
    },
    /// The tunnel was lost under a living connection.
    TunnelLost {
        /// What was noticed.
        detail: Arc<str>,
    },
    /// The peer sent what the protocol does not allow.
    PeerProtocol {
        /// What was wrong with it.
        detail: Arc<str>,
    },
    /// The peer began a handshake or request and did not finish it in time.
    PeerTimeout {
        /// What it did not finish.
        awaited: &'static str,
    },
    /// One side took no bytes for longer than is allowed.
    PeerStalled {
        /// Which of the two.
        side: Side,
    },
    /// No byte passed either way for longer than is allowed.
    IdleTimeout,
    /// The kernel's maps lack something, so nobody can say whether what was dialled is in the mesh.
    Incomplete,
    /// A limit on connections was reached.
    Overload {
        /// Which limit.
        limit: &'static str,
    },
    /// The pod went away.
    PodGone {
        /// Which of the two pods.
        side: Side,
    },
    /// The agent drained and the deadline passed.
    Drained,
    /// An operator closed it through the admin endpoint.
    ClosedByOperator,
    /// One side aborted a connection that the kernel had judged; which one it does not say.
    Aborted,
    /// What a DestinationRule asks of the connection to the server failed, or ended it.
    Upstream(UpstreamFailure),
    /// An HTTP request failed.
    Request(RequestFailure),
    /// The agent could not do its work.
    Internal {
        /// What failed.
        detail: Arc<str>,
    },
}

/// What about policy said no.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DenyReason {
    /// A DENY policy matched.
    DenyPolicy,
    /// ALLOW policies apply to the workload and none matched.
    NoAllowPolicy,
    /// A policy that applies could not be understood, which denies.
    InvalidPolicy,
    /// The workload's rules have not arrived, which denies.
    NoRules,
}

/// One side of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Side {
    /// Who dialled.
    Client,
    /// Who was dialled.
    Server,
}

/// Why connect() failed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ConnectFailure {
    /// ECONNREFUSED: nobody listens.
    Refused,
    /// No answer in time.
    TimedOut,
    /// No route, or the network is down.
    Unreachable,
    /// The socket itself could not be made or bound: the node's fault, not the destination's.
    Local,
    /// Anything else the system said.
    Other,
}

/// Why a tunnel's handshake failed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum HandshakeFailure {
    /// Not finished in time.
    TimedOut,
    /// The peer showed no certificate.
    NoPeerCertificate,
    /// Its certificate is expired or not valid yet.
    PeerCertificateTime,
    /// Its certificate does not chain to a root we trust.
    PeerCertificateUntrusted,
    /// Its certificate is of a trust domain we don't know.
    TrustDomain,
    /// It is a valid identity, but not one of those expected there.
    UnexpectedIdentity,
    /// It refused our certificate.
    OurCertificateRefused,
    /// It does not speak TLS 1.3 with `h2`, or broke off.
    Protocol,
}

/// Whose matter an outcome is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Blame {
    /// Nobody's: an ordinary end.
    Nobody,
    /// The other end of the wire misbehaved or is away.
    Peer,
    /// The mesh does what it was told to: configuration, policy, the application.
    User,
    /// The agent or its node.
    Us,
}

/// Envoy's response flags that an L4 data plane needs; the value of the label `response_flags`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ResponseFlag {
    /// `-`: nothing to remark.
    None,
    /// `DENY`: refused by policy.
    Deny,
    /// `UF`: upstream connection failure.
    UpstreamConnectionFailure,
    /// `UC`: upstream connection termination.
    UpstreamConnectionTermination,
    /// `UR`: upstream remote reset.
    UpstreamRemoteReset,
    /// `UPE`: upstream protocol error.
    UpstreamProtocolError,
    /// `UH`: no healthy upstream.
    NoHealthyUpstream,
    /// `UO`: upstream overflow.
    UpstreamOverflow,
    /// `URX`: upstream retries or connect attempts used up.
    UpstreamRetryLimit,
    /// `UT`: upstream request timeout.
    UpstreamTimeout,
    /// `NC`: no cluster, here: no such destination.
    NoCluster,
    /// `NR`: no route.
    NoRoute,
    /// `DR`: downstream remote reset.
    DownstreamRemoteReset,
    /// `DC`: downstream connection termination.
    DownstreamConnectionTermination,
    /// `DPE`: downstream protocol error.
    DownstreamProtocolError,
    /// `DT`: a duration was exceeded.
    DurationTimeout,
    /// `SI`: idle timeout.
    IdleTimeout,
    /// `LR`: reset by this data plane.
    LocalReset,
    /// `FI`: an injected error.
    FaultInjected,
    /// `RL`: over a rate limit.
    RateLimited,
}

impl ResponseFlag {
    /// All, in the order of their numbers.
    pub const ALL: [ResponseFlag; 20] = [
        ResponseFlag::None,
        ResponseFlag::Deny,
        ResponseFlag::UpstreamConnectionFailure,
        ResponseFlag::UpstreamConnectionTermination,
        ResponseFlag::UpstreamRemoteReset,
        ResponseFlag::UpstreamProtocolError,
        ResponseFlag::NoHealthyUpstream,
        ResponseFlag::UpstreamOverflow,
        ResponseFlag::UpstreamRetryLimit,
        ResponseFlag::UpstreamTimeout,
        ResponseFlag::NoCluster,
        ResponseFlag::NoRoute,
        ResponseFlag::DownstreamRemoteReset,
        ResponseFlag::DownstreamConnectionTermination,
        ResponseFlag::DownstreamProtocolError,
        ResponseFlag::DurationTimeout,
        ResponseFlag::IdleTimeout,
        ResponseFlag::LocalReset,
        ResponseFlag::FaultInjected,
        ResponseFlag::RateLimited,
    ];

    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            ResponseFlag::None => "-",
            ResponseFlag::Deny => "DENY",
            ResponseFlag::UpstreamConnectionFailure => "UF",
            ResponseFlag::UpstreamConnectionTermination => "UC",
            ResponseFlag::UpstreamRemoteReset => "UR",
            ResponseFlag::UpstreamProtocolError => "UPE",
            ResponseFlag::NoHealthyUpstream => "UH",
            ResponseFlag::UpstreamOverflow => "UO",
            ResponseFlag::UpstreamRetryLimit => "URX",
            ResponseFlag::UpstreamTimeout => "UT",
            ResponseFlag::NoCluster => "NC",
            ResponseFlag::NoRoute => "NR",
            ResponseFlag::DownstreamRemoteReset => "DR",
            ResponseFlag::DownstreamConnectionTermination => "DC",
            ResponseFlag::DownstreamProtocolError => "DPE",
            ResponseFlag::DurationTimeout => "DT",
            ResponseFlag::IdleTimeout => "SI",
            ResponseFlag::LocalReset => "LR",
            ResponseFlag::FaultInjected => "FI",
            ResponseFlag::RateLimited => "RL",
        }
    }
}

/// What an outcome means to those who look.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Meaning {
    /// A name in snake case, the same for ever: `outcome` of the access log, `reason` of `nodemesh_*` metrics.
    pub name: &'static str,
    /// Metric label.
    pub flag: ResponseFlag,
    /// Level of the diagnostic log; the access log has its own switch.
    pub level: Level,
    /// What the tunnel's server answers, where the tunnel has not been answered yet. `OK` where it has.
    pub status: StatusCode,
    /// Whose matter it is.
    pub blame: Blame,
    /// Where the operator should look, a sentence.
    pub advice: Cow<'static, str>,
}

impl Outcome {
    /// What it means.
    pub fn meaning(&self) -> Meaning {
        meaning::of(self)
    }

    /// The tunnel's answer.
    pub fn tunnel_status(&self) -> StatusCode {
        self.meaning().status
    }

    /// Whether the mesh refused it because of policy or because it could not judge: what the access log always shows.
    pub fn is_denial(&self) -> bool {
        match self {
            Outcome::PolicyDenied { .. }
            | Outcome::MtlsRequired { .. }
            | Outcome::PolicyRevoked { .. }
            | Outcome::PodHeld { .. }
            | Outcome::UnknownPod
            | Outcome::Unregistered { .. }
            | Outcome::Incomplete
            | Outcome::Request(RequestFailure::Unauthenticated { .. })
            | Outcome::OwnPort => true,
            Outcome::Completed
            | Outcome::ClientReset
            | Outcome::ServerReset
            | Outcome::UnknownDestination
            | Outcome::NoEndpoint
            | Outcome::AddressFamily
            | Outcome::NoCertificate { .. }
            | Outcome::ConnectFailed { .. }
            | Outcome::TunnelDialFailed { .. }
            | Outcome::TunnelHandshakeFailed { .. }
            | Outcome::TunnelLost { .. }
            | Outcome::PeerProtocol { .. }
            | Outcome::PeerTimeout { .. }
            | Outcome::PeerStalled { .. }
            | Outcome::IdleTimeout
            | Outcome::Overload { .. }
            | Outcome::PodGone { .. }
            | Outcome::Drained
            | Outcome::ClosedByOperator
            | Outcome::Aborted
            | Outcome::Upstream(_)
            | Outcome::Request(_)
            | Outcome::Internal { .. } => false,
            // The other node's policy spoke: here too it is a denial, though its policy cannot be named.
            Outcome::TunnelRefused { status, .. } => matches!(status, 401 | 403),
        }
    }

    /// The policy that decided, where there is one to name.
    pub fn policy(&self) -> Option<&NamespacedName> {
        match self {
            Outcome::PolicyDenied { policy, .. } | Outcome::MtlsRequired { policy } | Outcome::PolicyRevoked { policy, .. } => {
                policy.as_ref()
            }
            _ => None,
        }
    }

    /// The RateLimit that it was over.
    pub fn rate_limit(&self) -> Option<&NamespacedName> {
        match self {
            Outcome::Request(RequestFailure::RateLimited { limit, .. }) => Some(limit),
            _ => None,
        }
    }

    /// From a refusal at connect() that the kernel reported: `reason` is one of `mesh_common::event::REASON_*`.
    pub fn from_kernel_refusal(reason: u32, policy: Option<NamespacedName>) -> Outcome {
        let held = |side| Outcome::PodHeld { side, awaited: Arc::from("its rules, certificate or sockets") };
        match reason {
            event::REASON_POLICY => Outcome::PolicyDenied { reason: DenyReason::DenyPolicy, policy },
            event::REASON_NO_ALLOW => Outcome::PolicyDenied { reason: DenyReason::NoAllowPolicy, policy },
            event::REASON_NO_RULES => Outcome::PolicyDenied { reason: DenyReason::NoRules, policy },
            event::REASON_SOURCE_HELD => held(Side::Client),
            event::REASON_DESTINATION_HELD => held(Side::Server),
            event::REASON_UNKNOWN_POD => Outcome::UnknownPod,
            event::REASON_NO_ENDPOINT => Outcome::NoEndpoint,
            event::REASON_FAMILY => Outcome::AddressFamily,
            event::REASON_OWN_PORT => Outcome::OwnPort,
            event::REASON_INCOMPLETE => Outcome::Incomplete,
            other => Outcome::Internal { detail: format!("the kernel refused for reason {other}, unknown to this agent").into() },
        }
    }

    /// An internal failure, from anything that prints.
    pub fn internal(detail: impl fmt::Display) -> Outcome {
        Outcome::Internal { detail: detail.to_string().into() }
    }
}

impl HandshakeFailure {
    /// In snake case, for metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            HandshakeFailure::TimedOut => "timed_out",
            HandshakeFailure::NoPeerCertificate => "no_peer_certificate",
            HandshakeFailure::PeerCertificateTime => "peer_certificate_time",
            HandshakeFailure::PeerCertificateUntrusted => "peer_certificate_untrusted",
            HandshakeFailure::TrustDomain => "trust_domain",
            HandshakeFailure::UnexpectedIdentity => "unexpected_identity",
            HandshakeFailure::OurCertificateRefused => "our_certificate_refused",
            HandshakeFailure::Protocol => "protocol",
        }
    }
}

impl ConnectFailure {
    /// From what connect() or socket setup returned.
    pub fn from_io(error: &std::io::Error) -> ConnectFailure {
        use std::io::ErrorKind as K;
        match error.kind() {
            K::ConnectionRefused | K::ConnectionReset => ConnectFailure::Refused,
            K::TimedOut => ConnectFailure::TimedOut,
            K::HostUnreachable | K::NetworkUnreachable | K::NetworkDown => ConnectFailure::Unreachable,
            K::AddrInUse | K::AddrNotAvailable | K::PermissionDenied | K::OutOfMemory => ConnectFailure::Local,
            _ => ConnectFailure::Other,
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Side::Client => "client",
            Side::Server => "server",
        })
    }
}

impl fmt::Display for Outcome {
    /// What happened, in a line; [`Meaning::advice`] says what to do.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        describe::describe(self, f)
    }
}

mod describe;
mod meaning;
pub mod request;
#[cfg(test)]
mod tests;
pub mod upstream;
