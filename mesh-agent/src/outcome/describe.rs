//! What happened, in a line each.

use std::fmt;

use mesh_model::service::NamespacedName;

use super::{DenyReason, Outcome};

pub(super) fn describe(outcome: &Outcome, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let deny = |f: &mut fmt::Formatter<'_>, reason: &DenyReason, policy: &Option<NamespacedName>| match (reason, policy) {
        (DenyReason::DenyPolicy, Some(policy)) => write!(f, "denied by policy {policy}"),
        (DenyReason::DenyPolicy, None) => write!(f, "denied by a policy"),
        (DenyReason::NoAllowPolicy, _) => write!(f, "no ALLOW policy matches"),
        (DenyReason::InvalidPolicy, Some(policy)) => write!(f, "policy {policy} can't be understood"),
        (DenyReason::InvalidPolicy, None) => write!(f, "a policy can't be understood"),
        (DenyReason::NoRules, _) => write!(f, "the destination's rules are not there"),
    };
    match outcome {
        Outcome::Completed => write!(f, "completed"),
        Outcome::Aborted => write!(f, "one side aborted it"),
        Outcome::Incomplete => write!(f, "the kernel's maps are incomplete, so the destination cannot be told from one in the mesh"),
        Outcome::ClientReset => write!(f, "the client reset the connection"),
        Outcome::ServerReset => write!(f, "the server reset the connection"),
        Outcome::PolicyDenied { reason, policy } => deny(f, reason, policy),
        Outcome::MtlsRequired { policy: Some(policy) } => write!(f, "plaintext refused, PeerAuthentication {policy} demands mTLS"),
        Outcome::MtlsRequired { policy: None } => write!(f, "plaintext refused, mTLS is demanded"),
        Outcome::PolicyRevoked { reason, policy } => {
            write!(f, "no longer allowed: ")?;
            deny(f, reason, policy)
        }
        Outcome::PodHeld { side, awaited } => write!(f, "the {side}'s pod is held until there is {awaited}"),
        Outcome::UnknownPod => write!(f, "the client's pod is unknown"),
        Outcome::Unregistered { host: Some(host) } => {
            write!(f, "outboundTrafficPolicy REGISTRY_ONLY: no ServiceEntry that the client's namespace knows has host {host} on this port")
        }
        Outcome::Unregistered { host: None } => {
            write!(f, "outboundTrafficPolicy REGISTRY_ONLY: no pod, Service or ServiceEntry that the client's namespace knows is there")
        }
        Outcome::UnknownDestination => write!(f, "no workload here has the destination's address"),
        Outcome::OwnPort => write!(f, "the port belongs to the mesh"),
        Outcome::NoEndpoint => write!(f, "the service has no ready endpoint"),
        Outcome::AddressFamily => write!(f, "the destination has no address of that family"),
        Outcome::NoCertificate { detail } => write!(f, "no certificate for the pod: {detail}"),
        Outcome::ConnectFailed { detail, .. } => write!(f, "can't connect to the application: {detail}"),
        Outcome::TunnelDialFailed { detail, .. } => write!(f, "can't connect to the tunnel: {detail}"),
        Outcome::TunnelHandshakeFailed { detail, .. } => write!(f, "the tunnel's handshake failed: {detail}"),
        Outcome::TunnelRefused { status, detail: Some(detail) } => write!(f, "the peer refused with {status}: {detail}"),
        Outcome::TunnelRefused { status, detail: None } => write!(f, "the peer refused with {status}"),
        Outcome::TunnelLost { detail } => write!(f, "the tunnel was lost: {detail}"),
        Outcome::PeerProtocol { detail } => write!(f, "protocol error of the peer: {detail}"),
        Outcome::PeerTimeout { awaited } => write!(f, "the peer did not finish the {awaited} in time"),
        Outcome::PeerStalled { side } => write!(f, "the {side} stopped reading"),
        Outcome::IdleTimeout => write!(f, "idle for too long"),
        Outcome::Overload { limit } => write!(f, "limit reached: {limit}"),
        Outcome::PodGone { side } => write!(f, "the {side}'s pod is gone"),
        Outcome::Drained => write!(f, "the agent stopped"),
        Outcome::ClosedByOperator => write!(f, "closed by an operator"),
        Outcome::Upstream(failure) => write!(f, "{failure}"),
        Outcome::Request(failure) => write!(f, "{failure}"),
        Outcome::Internal { detail } => write!(f, "internal error: {detail}"),
    }
}
