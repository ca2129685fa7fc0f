//! What operators see: metrics, access log, readiness, drain, the admin endpoint. It observes the data path and decides nothing there.
//!
//! ```text
//! open(labels) ─► ConnectionRecorder ── meter ◄── whoever copies bytes
//!                    │ finish(outcome) or Drop
//!                    ├─► metrics   istio_tcp_*, nodemesh_policy_decisions        ─► :15020/metrics
//!                    ├─► access    one line                                      ─► writer thread ─► stdout
//!                    ├─► trace    a span, if its trace is sampled                ─► exporter ─► collector (requests)
//!                    └─► live      removed from the list of living connections   ─► :15000/connections
//! ```

pub mod access;
pub mod admin;
pub mod clock;
pub mod drain;
pub mod explain;
#[cfg(test)]
pub(crate) mod fixtures;
pub mod http;
pub mod live;
pub mod log;
pub mod metrics;
pub mod ready;
pub mod record;
pub mod request;
pub mod trace;

pub use live::LiveConnections;
pub use metrics::labels::{ConnectionLabels, PeerInfo, Reporter, Security, ServiceRef};
pub use record::{Connection, ConnectionRecorder, Telemetry};
pub use request::{RequestLine, RequestRecorder};
