//! What the kernel tells the agent through the ring buffer.

use crate::addr::Endpoint;

/// A connection ended that the kernel had let through.
pub const EVENT_CLOSED: u32 = 1;
/// A connect() was refused.
pub const EVENT_DENIED: u32 = 2;
/// A connect() was let through that a dry-run policy would refuse.
pub const EVENT_DRY_RUN: u32 = 3;

/// [`Event::reason`]: a policy said no (`policy` names it).
pub const REASON_POLICY: u32 = 1;
/// No ALLOW policy matched.
pub const REASON_NO_ALLOW: u32 = 2;
/// The source pod is held.
pub const REASON_SOURCE_HELD: u32 = 3;
/// The destination pod is held.
pub const REASON_DESTINATION_HELD: u32 = 4;
/// A process in the pods' cgroup, in a network namespace nobody enrolled.
pub const REASON_UNKNOWN_POD: u32 = 5;
/// The service has no endpoint.
pub const REASON_NO_ENDPOINT: u32 = 6;
/// The pod has no address of the dialled family.
pub const REASON_FAMILY: u32 = 7;
/// The destination's rules are not in the kernel.
pub const REASON_NO_RULES: u32 = 8;
/// One of the mesh's own ports was dialled.
pub const REASON_OWN_PORT: u32 = 9;
/// The kernel's maps lack something, so that what it does not know may be in the mesh.
pub const REASON_INCOMPLETE: u32 = 10;
/// One more than the largest reason.
pub const REASONS: u32 = 11;

/// [`Event::flags`]: it is about plaintext that arrived for a pod, not about a connection of two pods of the node.
pub const EVENT_PLAINTEXT: u32 = 1;
/// [`Event::flags`]: one side aborted the connection (RST) before both had said their end.
pub const EVENT_ABORTED: u32 = 1 << 1;

/// A record of the ring buffer.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Event {
    /// Bytes from client to server.
    pub sent: u64,
    /// Bytes from server to client.
    pub received: u64,
    /// Nanoseconds.
    pub duration_ns: u64,
    /// One of `EVENT_*`.
    pub kind: u32,
    /// One of `REASON_*`.
    pub reason: u32,
    /// Source workload, 0 for unknown.
    pub source: u32,
    /// Destination workload, 0 for unknown.
    pub destination: u32,
    /// Service, 0 for none.
    pub service: u32,
    /// Number of the deciding policy ([`crate::policy::Op::policy`]), or of the dry-run policy.
    pub policy: u32,
    /// Client's end, as far as known.
    pub client: Endpoint,
    /// Server's end.
    pub server: Endpoint,
    /// What was dialled.
    pub dialled: Endpoint,
    /// `EVENT_PLAINTEXT`, `EVENT_ABORTED`.
    pub flags: u32,
}

/// Indices of `VERDICTS`, a per-CPU array of counters.
pub mod counter {
    /// Left alone.
    pub const PASS: u32 = 0;
    /// Judged in the kernel and let through.
    pub const DIRECT: u32 = 1;
    /// Handed to the agent.
    pub const AGENT: u32 = 2;
    /// Refused at connect(); see [`super::Event::reason`] for why.
    pub const DENY: u32 = 3;
    /// Incoming plaintext steered to the agent.
    pub const STEERED: u32 = 4;
    /// Incoming plaintext dropped because no listener of the agent was there.
    pub const DROPPED: u32 = 5;
    /// An entry could not be written because a map is full.
    pub const MAP_FULL: u32 = 6;
    /// An event was lost because the ring buffer is full.
    pub const EVENT_LOST: u32 = 7;
    /// Incoming plaintext judged in the kernel and left to the application.
    pub const PLAINTEXT: u32 = 8;
    /// First of one counter for each reason of refusal.
    pub const REASON_BASE: u32 = 16;
    /// Number of counters.
    pub const COUNT: u32 = REASON_BASE + super::REASONS;
}
