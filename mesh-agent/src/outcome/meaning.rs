//! The table: one match over every outcome, without a wildcard, so that a new one cannot be forgotten.

use std::borrow::Cow;

use http::StatusCode;
use mesh_model::service::NamespacedName;
use tracing::Level;

use super::{Blame, ConnectFailure, DenyReason, HandshakeFailure, Meaning, Outcome, ResponseFlag, Side};

fn row(
    name: &'static str,
    flag: ResponseFlag,
    level: Level,
    status: StatusCode,
    blame: Blame,
    advice: impl Into<Cow<'static, str>>,
) -> Meaning {
    Meaning { name, flag, level, status, blame, advice: advice.into() }
}

pub(super) fn of(outcome: &Outcome) -> Meaning {
    use Blame::*;
    use ResponseFlag as F;
    const OK: StatusCode = StatusCode::OK;
    const BAD: StatusCode = StatusCode::BAD_REQUEST;
    const DENIED: StatusCode = StatusCode::UNAUTHORIZED;
    const AWAY: StatusCode = StatusCode::SERVICE_UNAVAILABLE;
    match outcome {
        Outcome::Completed => row("completed", F::None, Level::DEBUG, OK, Nobody, "Nothing to do."),
        Outcome::Aborted => row(
            "aborted",
            F::None,
            Level::DEBUG,
            OK,
            User,
            "One side sent a reset before both had closed: look at the client's time-outs and at the server's log, restarts and limits.",
        ),
        Outcome::ClientReset => row(
            "client_reset",
            F::DownstreamRemoteReset,
            Level::DEBUG,
            OK,
            User,
            "The client aborted: look at the client's own log and time-outs.",
        ),
        Outcome::ServerReset => row(
            "server_reset",
            F::UpstreamRemoteReset,
            Level::DEBUG,
            OK,
            User,
            "The server aborted: look at the server's own log, restarts and limits.",
        ),
        Outcome::PolicyDenied { reason, policy } => {
            row(reason.name(), F::Deny, Level::INFO, DENIED, reason.blame(), denied_advice(*reason, policy.as_ref()))
        }
        Outcome::MtlsRequired { policy } => row(
            "mtls_required",
            F::Deny,
            Level::INFO,
            DENIED,
            User,
            match policy {
                Some(policy) => Cow::Owned(format!(
                    "PeerAuthentication {policy} is STRICT: enrol the client (label nodemesh.dev/mesh: enabled) or make the port \
                     PERMISSIVE."
                )),
                None => Cow::Borrowed(
                    "mTLS is STRICT here: enrol the client (label nodemesh.dev/mesh: enabled) or make the port PERMISSIVE in a \
                     PeerAuthentication.",
                ),
            },
        ),
        Outcome::PolicyRevoked { reason, policy } => {
            row("policy_revoked", F::Deny, Level::INFO, DENIED, reason.blame(), denied_advice(*reason, policy.as_ref()))
        }
        Outcome::PodHeld { side, awaited } => row(
            match side {
                Side::Client => "source_held",
                Side::Server => "destination_held",
            },
            F::Deny,
            Level::WARN,
            AWAY,
            Us,
            format!(
                "The {side}'s pod is enrolled and still waits for {awaited}: look at /healthz/ready and /problems of the agent on its node."
            ),
        ),
        Outcome::UnknownPod => row(
            "unknown_pod",
            F::Deny,
            Level::WARN,
            DENIED,
            Us,
            "A process runs in the pods' cgroup in a network namespace that no pod announced: look whether the agent sees the pod \
             (/workloads) and whether the CNI plug-in is installed.",
        ),
        Outcome::Unregistered { .. } => row(
            "registry_only",
            F::Deny,
            Level::INFO,
            DENIED,
            User,
            "outboundTrafficPolicy is REGISTRY_ONLY (Mesh default): make a ServiceEntry for the host that the client's namespace knows, or \
             set ALLOW_ANY.",
        ),
        Outcome::Incomplete => row(
            "incomplete",
            F::Deny,
            Level::WARN,
            DENIED,
            Us,
            "A kernel map takes no more entries, so what is not in it may be in the mesh and is refused: look at the agent's log for the \
             map's name, and at nodemesh_kernel_map_full.",
        ),
        Outcome::UnknownDestination => row(
            "unknown_destination",
            F::NoCluster,
            Level::INFO,
            AWAY,
            Peer,
            "No workload here has that address: the caller's configuration may be older than the pod; compare /workloads on both nodes.",
        ),
        Outcome::OwnPort => row(
            "own_port",
            F::Deny,
            Level::INFO,
            AWAY,
            User,
            "Ports 15001, 15006 and 15008 belong to the mesh and can't be dialled through it: give the application another port.",
        ),
        Outcome::NoEndpoint => row(
            "no_endpoint",
            F::NoHealthyUpstream,
            Level::INFO,
            AWAY,
            User,
            "The Service has no ready endpoint: look at its selector and at the readiness of its pods.",
        ),
        Outcome::AddressFamily => row(
            "address_family",
            F::NoRoute,
            Level::INFO,
            AWAY,
            User,
            "The destination has no address of that IP family: look at the Service's ipFamilies and the pods' addresses.",
        ),
        Outcome::NoCertificate { .. } => row(
            "no_certificate",
            F::UpstreamConnectionFailure,
            Level::WARN,
            AWAY,
            Us,
            "The agent has no valid certificate for the pod: look at /certs here and at the log of the certificate authority.",
        ),
        Outcome::ConnectFailed { failure, .. } => connect_failed(*failure),
        Outcome::TunnelDialFailed { failure, .. } => dial_failed(*failure),
        Outcome::TunnelHandshakeFailed { failure, .. } => handshake_failed(*failure),
        Outcome::TunnelRefused { status, .. } => refused(*status),
        Outcome::TunnelLost { .. } => row(
            "tunnel_lost",
            F::UpstreamConnectionTermination,
            Level::INFO,
            AWAY,
            Peer,
            "The tunnel broke under the connection: look whether the peer's pod, agent or node restarted, and at the network between.",
        ),
        Outcome::PeerProtocol { .. } => row(
            "peer_protocol",
            F::DownstreamProtocolError,
            Level::INFO,
            BAD,
            Peer,
            "The peer does not speak the mesh's protocol properly: look what runs at its address and which version.",
        ),
        Outcome::PeerTimeout { .. } => row(
            "peer_timeout",
            F::DurationTimeout,
            Level::INFO,
            BAD,
            Peer,
            "The peer began and did not go on: look at the load of its node, for packet loss, or for a scanner.",
        ),
        Outcome::PeerStalled { side } => row(
            match side {
                Side::Client => "client_stalled",
                Side::Server => "server_stalled",
            },
            match side {
                Side::Client => F::DownstreamConnectionTermination,
                Side::Server => F::UpstreamTimeout,
            },
            Level::INFO,
            AWAY,
            Peer,
            format!("The {side} stopped reading: look whether its application hangs."),
        ),
        Outcome::IdleTimeout => row(
            "idle_timeout",
            F::IdleTimeout,
            Level::DEBUG,
            OK,
            User,
            "Nothing was sent for longer than the idle timeout: let the application send keepalives, or raise the timeout.",
        ),
        Outcome::Overload { limit } => row(
            "overload",
            F::UpstreamOverflow,
            Level::WARN,
            AWAY,
            User,
            format!("The limit {limit} is reached: raise it, or find who opens so many connections (/connections)."),
        ),
        Outcome::PodGone { side } => row(
            match side {
                Side::Client => "client_pod_gone",
                Side::Server => "server_pod_gone",
            },
            match side {
                Side::Client => F::DownstreamConnectionTermination,
                Side::Server => F::UpstreamConnectionTermination,
            },
            Level::DEBUG,
            AWAY,
            User,
            format!("The {side}'s pod was deleted: nothing to do, if that was meant."),
        ),
        Outcome::Drained => row(
            "drained",
            F::LocalReset,
            Level::INFO,
            AWAY,
            Us,
            "The agent was stopped and the connection outlived its drain time: raise the drain time if such connections must survive.",
        ),
        Outcome::ClosedByOperator => {
            row("closed_by_operator", F::LocalReset, Level::INFO, AWAY, User, "Someone closed it through the agent's admin endpoint.")
        }
        Outcome::Upstream(failure) => failure.meaning(),
        Outcome::Request(failure) => failure.meaning(),
        Outcome::Internal { .. } => row(
            "internal",
            F::LocalReset,
            Level::ERROR,
            AWAY,
            Us,
            "The agent failed: its log at this time says more; please report it with that log.",
        ),
    }
}

impl DenyReason {
    /// The name of a denial for this reason.
    fn name(self) -> &'static str {
        match self {
            DenyReason::DenyPolicy => "policy_denied",
            DenyReason::NoAllowPolicy => "no_allow_policy",
            DenyReason::InvalidPolicy => "invalid_policy",
            DenyReason::NoRules => "no_rules",
        }
    }

    fn blame(self) -> Blame {
        match self {
            DenyReason::DenyPolicy | DenyReason::NoAllowPolicy | DenyReason::InvalidPolicy => Blame::User,
            DenyReason::NoRules => Blame::Us,
        }
    }
}

fn denied_advice(reason: DenyReason, policy: Option<&NamespacedName>) -> Cow<'static, str> {
    match (reason, policy) {
        (DenyReason::DenyPolicy, Some(policy)) => {
            Cow::Owned(format!("AuthorizationPolicy {policy} (DENY) matches: change its rules if the call is meant to pass."))
        }
        (DenyReason::DenyPolicy, None) => Cow::Borrowed("A DENY AuthorizationPolicy matches: see /policies for those of the destination."),
        (DenyReason::NoAllowPolicy, _) => Cow::Borrowed(
            "ALLOW policies apply to the destination and none matches this source and port: add it to one of them (see /policies).",
        ),
        (DenyReason::InvalidPolicy, Some(policy)) => {
            Cow::Owned(format!("Policy {policy} can't be understood, so it denies what it selects: see /problems for the field."))
        }
        (DenyReason::InvalidPolicy, None) => {
            Cow::Borrowed("A policy can't be understood, so it denies what it selects: see /problems for the field.")
        }
        (DenyReason::NoRules, _) => {
            Cow::Borrowed("The destination's rules have not arrived at its node: look at /healthz/ready and /problems of the agent there.")
        }
    }
}

fn connect_failed(failure: ConnectFailure) -> Meaning {
    use ResponseFlag as F;
    let (name, flag, level, blame, advice) = match failure {
        ConnectFailure::Refused => (
            "connect_refused",
            F::UpstreamConnectionFailure,
            Level::INFO,
            Blame::User,
            "The application does not listen on that port: look at its log and the Service's targetPort.",
        ),
        ConnectFailure::TimedOut => (
            "connect_timeout",
            F::UpstreamRetryLimit,
            Level::INFO,
            Blame::User,
            "The application did not accept in time: look whether it hangs or its backlog is full.",
        ),
        ConnectFailure::Unreachable => (
            "connect_unreachable",
            F::UpstreamConnectionFailure,
            Level::INFO,
            Blame::User,
            "There is no route to the destination: look whether the pod still exists and at the node's routes.",
        ),
        ConnectFailure::Local => (
            "connect_local",
            F::UpstreamConnectionFailure,
            Level::ERROR,
            Blame::Us,
            "The agent could not make or bind its socket: look at its capabilities, at the ip rule in the pod's network namespace and \
             for ports used up.",
        ),
        ConnectFailure::Other => (
            "connect_failed",
            F::UpstreamConnectionFailure,
            Level::WARN,
            Blame::User,
            "The connection to the application failed: the detail is the system's own word.",
        ),
    };
    row(name, flag, level, StatusCode::SERVICE_UNAVAILABLE, blame, advice)
}

fn dial_failed(failure: ConnectFailure) -> Meaning {
    use ResponseFlag as F;
    let (name, flag, level, blame, advice) = match failure {
        ConnectFailure::Refused => (
            "tunnel_refused_connection",
            F::UpstreamConnectionFailure,
            Level::WARN,
            Blame::Peer,
            "Nobody listens on the pod's tunnel port 15008: look whether the agent on its node runs and is ready.",
        ),
        ConnectFailure::TimedOut => (
            "tunnel_timeout",
            F::UpstreamRetryLimit,
            Level::WARN,
            Blame::Peer,
            "The pod's tunnel port 15008 does not answer: look for a NetworkPolicy or firewall that drops it, and at the other node.",
        ),
        ConnectFailure::Unreachable => (
            "tunnel_unreachable",
            F::UpstreamConnectionFailure,
            Level::WARN,
            Blame::Peer,
            "There is no route to the other pod: look at the pod network between the nodes.",
        ),
        ConnectFailure::Local => (
            "tunnel_local",
            F::UpstreamConnectionFailure,
            Level::ERROR,
            Blame::Us,
            "The agent could not make its socket in the pod's network namespace: look at its capabilities and for ports used up.",
        ),
        ConnectFailure::Other => (
            "tunnel_dial_failed",
            F::UpstreamConnectionFailure,
            Level::WARN,
            Blame::Peer,
            "The tunnel could not be connected: the detail is the system's own word.",
        ),
    };
    row(name, flag, level, StatusCode::SERVICE_UNAVAILABLE, blame, advice)
}

fn handshake_failed(failure: HandshakeFailure) -> Meaning {
    use ResponseFlag as F;
    let (name, blame, advice) = match failure {
        HandshakeFailure::TimedOut => (
            "handshake_timeout",
            Blame::Peer,
            "The peer did not finish the TLS handshake: look at the load of its node and for what runs on its port 15008.",
        ),
        HandshakeFailure::NoPeerCertificate => (
            "handshake_no_certificate",
            Blame::Peer,
            "The peer showed no certificate: it is not a mesh's data plane, or its agent has none yet (/certs there).",
        ),
        HandshakeFailure::PeerCertificateTime => (
            "handshake_certificate_time",
            Blame::Peer,
            "The peer's certificate is expired or not valid yet: look at renewal on its node (/certs) and at both nodes' clocks.",
        ),
        HandshakeFailure::PeerCertificateUntrusted => (
            "handshake_untrusted",
            Blame::User,
            "The peer's certificate leads to no root that is trusted here: look whether both nodes use the same certificate authority \
             (/certs on both).",
        ),
        HandshakeFailure::TrustDomain => (
            "handshake_trust_domain",
            Blame::User,
            "The peer belongs to another trust domain: set the same one on both, or name it as an alias.",
        ),
        HandshakeFailure::UnexpectedIdentity => (
            "handshake_unexpected_identity",
            Blame::Peer,
            "Another workload than expected answers at that address: the address may have been given to a new pod; compare /workloads \
             with the cluster.",
        ),
        HandshakeFailure::OurCertificateRefused => (
            "handshake_refused_ours",
            Blame::User,
            "The peer does not accept our certificate: look whether both nodes use the same roots and trust domain (/certs on both) \
             and at the clocks.",
        ),
        HandshakeFailure::Protocol => {
            ("handshake_protocol", Blame::Peer, "The peer does not speak TLS 1.3 with HTTP/2 there: look what listens on its port 15008.")
        }
    };
    row(name, F::UpstreamConnectionFailure, Level::WARN, StatusCode::SERVICE_UNAVAILABLE, blame, advice)
}

fn refused(status: u16) -> Meaning {
    use ResponseFlag as F;
    const AWAY: StatusCode = StatusCode::SERVICE_UNAVAILABLE;
    match status {
        401 | 403 => row(
            "denied_by_peer",
            F::Deny,
            Level::INFO,
            AWAY,
            Blame::User,
            "The destination's node refused by policy: its access log names the policy.",
        ),
        400..=499 => row(
            "rejected_by_peer",
            F::UpstreamProtocolError,
            Level::WARN,
            AWAY,
            Blame::Us,
            "The destination's node did not accept the request as it was made: look at its log; versions may not fit.",
        ),
        _ => row(
            "unavailable_at_peer",
            F::UpstreamConnectionFailure,
            Level::INFO,
            AWAY,
            Blame::User,
            "The destination's node could not reach the application: look whether it listens, and at that node's access log.",
        ),
    }
}
