//! Bounds on what the clients of one workload have open towards one host: Envoy's circuit breakers with the limits of Istio's `connectionPool`.
//!
//! A permission to open something is a [`Guard`]: whoever holds it counts, and dropping it gives the place back, whichever way the request or
//! connection ends.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mesh_model::traffic::ConnectionPool;

#[cfg(test)]
mod tests;

/// In place of a limit: there is none.
const UNLIMITED: u64 = u64::MAX;

/// What is bounded.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Resource {
    /// Open connections.
    Connections,
    /// Requests that wait for a connection.
    Pending,
    /// Requests in flight, of HTTP/1 too.
    Requests,
    /// Retries in flight.
    Retries,
}

impl Resource {
    /// All of them.
    pub const ALL: [Resource; 4] = [Resource::Connections, Resource::Pending, Resource::Requests, Resource::Retries];

    /// For metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Resource::Connections => "connections",
            Resource::Pending => "pending",
            Resource::Requests => "requests",
            Resource::Retries => "retries",
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Resource::Connections => "connections",
            Resource::Pending => "pending requests",
            Resource::Requests => "requests",
            Resource::Retries => "retries",
        })
    }
}

/// A limit is reached: the connection or request is refused at once (Envoy's response flag `UO`), a retry is not made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the destination's limit of {resource} is reached (DestinationRule, connectionPool)")]
pub struct Overflow {
    /// Of what.
    pub resource: Resource,
}

/// What the clients of one workload have open towards one host. Clones count together.
#[derive(Clone, Debug)]
pub struct Circuit(Arc<Gauges>);

#[derive(Debug, Default)]
struct Gauges {
    connections: Gauge,
    pending: Gauge,
    requests: Gauge,
    retries: Gauge,
}

impl Gauges {
    fn of(&self, resource: Resource) -> &Gauge {
        match resource {
            Resource::Connections => &self.connections,
            Resource::Pending => &self.pending,
            Resource::Requests => &self.requests,
            Resource::Retries => &self.retries,
        }
    }
}

#[derive(Debug)]
struct Gauge {
    limit: AtomicU64,
    open: AtomicU64,
    refused: AtomicU64,
}

impl Default for Gauge {
    fn default() -> Self {
        Gauge { limit: AtomicU64::new(UNLIMITED), open: AtomicU64::new(0), refused: AtomicU64::new(0) }
    }
}

/// One that is open. Dropping it gives its place back.
#[must_use = "what is dropped does not count"]
#[derive(Debug)]
pub struct Guard {
    gauges: Arc<Gauges>,
    resource: Resource,
}

impl Guard {
    /// Of what.
    pub fn resource(&self) -> Resource {
        self.resource
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.gauges.of(self.resource).open.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Numbers of one resource, for metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Usage {
    /// Of what.
    pub resource: Resource,
    /// How many are open.
    pub open: u64,
    /// How many more may be; `None` without a limit.
    pub remaining: Option<u64>,
    /// The next one would be refused.
    pub tripped: bool,
    /// How many have been refused.
    pub refused: u64,
}

impl Circuit {
    /// One with nothing open.
    pub fn new(pool: &ConnectionPool) -> Circuit {
        let circuit = Circuit(Arc::default());
        circuit.set_limits(pool);
        circuit
    }

    /// Other limits for it. What is open stays so and counts, also if it is more than the limits allow from here on.
    pub fn set_limits(&self, pool: &ConnectionPool) {
        let limits = [
            (Resource::Connections, pool.max_connections),
            (Resource::Pending, pool.max_pending_requests),
            (Resource::Requests, pool.max_requests),
            (Resource::Retries, pool.max_retries),
        ];
        for (resource, limit) in limits {
            self.0.of(resource).limit.store(limit.map_or(UNLIMITED, u64::from), Ordering::Relaxed);
        }
    }

    /// Before a connection is opened.
    pub fn try_connection(&self) -> Result<Guard, Overflow> {
        self.take(Resource::Connections)
    }

    /// Before a request waits for a connection.
    pub fn try_pending(&self) -> Result<Guard, Overflow> {
        self.take(Resource::Pending)
    }

    /// Before a request is sent.
    pub fn try_request(&self) -> Result<Guard, Overflow> {
        self.take(Resource::Requests)
    }

    /// Before a request is sent again.
    pub fn try_retry(&self) -> Result<Guard, Overflow> {
        self.take(Resource::Retries)
    }

    /// Numbers of all resources, in the order of [`Resource::ALL`].
    pub fn open(&self) -> [Usage; 4] {
        Resource::ALL.map(|resource| {
            let gauge = self.0.of(resource);
            let open = gauge.open.load(Ordering::Acquire);
            let limit = Some(gauge.limit.load(Ordering::Relaxed)).filter(|limit| *limit != UNLIMITED);
            let remaining = limit.map(|limit| limit.saturating_sub(open));
            Usage { resource, open, remaining, tripped: remaining == Some(0), refused: gauge.refused.load(Ordering::Relaxed) }
        })
    }

    /// Whether there may be no more of them now.
    pub fn is_full(&self, resource: Resource) -> bool {
        let gauge = self.0.of(resource);
        gauge.open.load(Ordering::Acquire) >= gauge.limit.load(Ordering::Relaxed)
    }

    /// How many there are.
    pub fn count(&self, resource: Resource) -> u64 {
        self.0.of(resource).open.load(Ordering::Acquire)
    }

    fn take(&self, resource: Resource) -> Result<Guard, Overflow> {
        let gauge = self.0.of(resource);
        let limit = gauge.limit.load(Ordering::Relaxed);
        let more = |open: u64| (open < limit).then(|| open + 1);
        // Compared and exchanged, never added and taken back: a refused attempt must not make another one fail.
        match gauge.open.fetch_update(Ordering::AcqRel, Ordering::Acquire, more) {
            Ok(_) => Ok(Guard { gauges: self.0.clone(), resource }),
            Err(_) => {
                gauge.refused.fetch_add(1, Ordering::Relaxed);
                Err(Overflow { resource })
            }
        }
    }
}
