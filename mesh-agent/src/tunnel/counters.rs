//! What the tunnel counts. All workers add to one set.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::outcome::HandshakeFailure;

/// A counter, or a gauge where its field says so.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// One more.
    pub fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// One less, of a gauge.
    pub fn sub(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    /// The count.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counts of one role: of the dialling side or of the serving side.
#[derive(Debug, Default)]
pub struct RoleCounters {
    /// TCP connections for tunnels.
    pub connections: Count,
    /// Of them, those open (gauge).
    pub open: Count,
    /// Handshakes that succeeded.
    pub handshakes: Count,
    /// Handshakes that failed, by [`HandshakeFailure`] in the order of [`FAILURES`].
    pub handshakes_failed: [Count; FAILURES.len()],
    /// Streams asked for.
    pub streams: Count,
    /// Streams refused, by our handler or by the peer's agent.
    pub refused: Count,
    /// Connections given up because a PING was not answered.
    pub pings_lost: Count,
}

/// The handshake failures in the order in which they are counted.
pub const FAILURES: [HandshakeFailure; 8] = [
    HandshakeFailure::TimedOut,
    HandshakeFailure::NoPeerCertificate,
    HandshakeFailure::PeerCertificateTime,
    HandshakeFailure::PeerCertificateUntrusted,
    HandshakeFailure::TrustDomain,
    HandshakeFailure::UnexpectedIdentity,
    HandshakeFailure::OurCertificateRefused,
    HandshakeFailure::Protocol,
];

impl RoleCounters {
    /// Counts a failed handshake.
    pub fn handshake_failed(&self, failure: HandshakeFailure) {
        for (kind, count) in FAILURES.iter().zip(&self.handshakes_failed) {
            if *kind == failure {
                count.add();
            }
        }
    }

    /// The failed handshakes by kind.
    pub fn failures(&self) -> impl Iterator<Item = (HandshakeFailure, u64)> + '_ {
        FAILURES.iter().copied().zip(self.handshakes_failed.iter().map(Count::get))
    }
}

/// What the tunnel counts.
#[derive(Debug, Default)]
pub struct TunnelCounters {
    /// As the dialling side.
    pub client: RoleCounters,
    /// As the serving side.
    pub server: RoleCounters,
    /// Streams that found an open connection.
    pub reused: Count,
    /// Dials that failed.
    pub dials_failed: Count,
    /// Streams that were asked for a second time, because a reused connection turned out to be dead, and dials of a peer that let go of one.
    pub retried: Count,
    /// Idle connections in pools (gauge).
    pub idle: Count,
}
