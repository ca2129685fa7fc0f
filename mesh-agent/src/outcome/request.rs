//! How an HTTP request can fail, beside all the ways in which its connection can, and what its client is answered.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use http::StatusCode;
use mesh_model::service::NamespacedName;
use tracing::Level;

use super::{Blame, Meaning, Outcome, ResponseFlag};
use crate::policy::limits::{Refused, Standing};

/// How a request failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RequestFailure {
    /// The Service has routes, and none matches.
    NoRoute,
    /// The rule leads to something that is not there or cannot be done.
    InvalidRoute {
        /// Which rule, and what is wrong with it.
        detail: Arc<str>,
    },
    /// A rule injects this error.
    FaultInjected {
        /// The rule.
        rule: Arc<str>,
        /// HTTP status.
        status: u16,
        /// gRPC status, if it is to be that.
        grpc: Option<u16>,
    },
    /// A bound of a DestinationRule on connections, waiting requests, requests or retries was reached.
    Overflow {
        /// Which.
        bound: &'static str,
    },
    /// The retry that it needed is more than the Service's retry budget (XBackendTrafficPolicy) has left.
    RetryBudget,
    /// It took longer than the rule, or the client's `grpc-timeout`, allows.
    TimedOut,
    /// The time that the rule, or the client's `grpc-timeout`, allows was over while it still waited here for a connection.
    QueueTimedOut,
    /// The server, or the connection to it, ended without an answer.
    UpstreamClosed {
        /// The library's words.
        detail: Arc<str>,
    },
    /// The server does not speak HTTP as it should.
    UpstreamProtocol {
        /// The library's words.
        detail: Arc<str>,
    },
    /// It was answered with a failure after every attempt that the rule allows.
    RetriesUsedUp {
        /// The last answer's status.
        status: u16,
    },
    /// It was answered with a failure, and a bound on retries, or on what the host is sent, did not let it be tried again.
    RetryOverflow {
        /// The answer's status.
        status: u16,
    },
    /// The client's request cannot be understood, or could be understood in two ways.
    BadRequest {
        /// What is wrong with it.
        detail: Arc<str>,
    },
    /// Its client sent nothing of its body for too long.
    BodyTimedOut,
    /// A CONNECT, which is not forwarded.
    ConnectMethod,
    /// The connection was made for a host of a ServiceEntry, and the request names one that has none.
    Misdirected,
    /// A token of the request is not believed.
    Unauthenticated {
        /// Why, for the log.
        detail: Arc<str>,
        /// What the client is told.
        body: &'static str,
    },
    /// A budget of a RateLimit is used up. Of what is no HTTP: the connection's.
    RateLimited {
        /// The RateLimit.
        limit: NamespacedName,
        /// How its budget stands.
        standing: Standing,
    },
}

impl From<Refused> for Outcome {
    fn from(Refused { limit, standing }: Refused) -> Outcome {
        Outcome::Request(RequestFailure::RateLimited { limit, standing })
    }
}

impl RequestFailure {
    /// A server's answer that its client could not make anything of, and that would lead past everybody who judges.
    pub fn unasked_switch() -> Outcome {
        Outcome::Request(RequestFailure::UpstreamProtocol { detail: "the server switched protocols, which nobody had asked it for".into() })
    }

    /// What its client is answered.
    pub fn status(&self) -> StatusCode {
        match self {
            RequestFailure::NoRoute => StatusCode::NOT_FOUND,
            RequestFailure::InvalidRoute { .. } => StatusCode::INTERNAL_SERVER_ERROR,
            // The Gateway API's word for the budget, whatever the last attempt was answered.
            RequestFailure::Overflow { .. } | RequestFailure::RetryBudget | RequestFailure::UpstreamClosed { .. } => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            RequestFailure::UpstreamProtocol { .. } => StatusCode::BAD_GATEWAY,
            RequestFailure::TimedOut | RequestFailure::QueueTimedOut => StatusCode::GATEWAY_TIMEOUT,
            RequestFailure::RetriesUsedUp { status }
            | RequestFailure::RetryOverflow { status }
            | RequestFailure::FaultInjected { status, .. } => StatusCode::from_u16(*status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE),
            RequestFailure::BadRequest { .. } => StatusCode::BAD_REQUEST,
            RequestFailure::BodyTimedOut => StatusCode::REQUEST_TIMEOUT,
            RequestFailure::ConnectMethod => StatusCode::METHOD_NOT_ALLOWED,
            RequestFailure::Misdirected => StatusCode::MISDIRECTED_REQUEST,
            RequestFailure::Unauthenticated { .. } => StatusCode::UNAUTHORIZED,
            RequestFailure::RateLimited { .. } => StatusCode::TOO_MANY_REQUESTS,
        }
    }

    pub(super) fn meaning(&self) -> Meaning {
        use ResponseFlag as F;
        let (name, flag, blame, advice): (_, _, _, &'static str) = match self {
            RequestFailure::NoRoute => (
                "no_route",
                F::NoRoute,
                Blame::User,
                "The Service has routes and none of them matches: add a rule that does, or one for all other requests.",
            ),
            RequestFailure::InvalidRoute { .. } => (
                "invalid_route",
                F::NoCluster,
                Blame::User,
                "A rule leads to something that is not there: the status of the route (ResolvedRefs) and /problems name it.",
            ),
            RequestFailure::FaultInjected { .. } => (
                "fault_injected",
                F::FaultInjected,
                Blame::User,
                "A rule injects this error: remove its fault when the experiment is over.",
            ),
            RequestFailure::Overflow { .. } => (
                "upstream_overflow",
                F::UpstreamOverflow,
                Blame::User,
                "A bound of the DestinationRule's connectionPool was reached: the servers are too slow or too few, or the bound is too low.",
            ),
            RequestFailure::RetryBudget => (
                "retry_budget",
                F::UpstreamOverflow,
                Blame::User,
                "So many requests fail that retries have used up the budget of the Service's XBackendTrafficPolicy: look at the servers first.",
            ),
            RequestFailure::TimedOut => (
                "request_timeout",
                F::UpstreamTimeout,
                Blame::User,
                "The server took longer than the route's timeout, or the client's deadline, allows.",
            ),
            RequestFailure::QueueTimedOut => (
                "request_queue_timeout",
                F::UpstreamTimeout,
                Blame::User,
                "No server was asked: until its time was over it waited for a connection that others have in use, or that is being opened. \
                 Raise maxConnections or maxConcurrentStreams of the DestinationRule's connectionPool, or allow more time.",
            ),
            RequestFailure::UpstreamClosed { .. } => (
                "upstream_closed",
                F::UpstreamConnectionTermination,
                Blame::User,
                "The server closed the connection without an answer: look at its log and whether it was restarted.",
            ),
            RequestFailure::UpstreamProtocol { .. } => (
                "upstream_protocol",
                F::UpstreamProtocolError,
                Blame::User,
                "The server's answer is no HTTP: look what listens there, and at the appProtocol of the Service's port.",
            ),
            RequestFailure::RetriesUsedUp { .. } => {
                ("retries_used_up", F::UpstreamRetryLimit, Blame::User, "Every attempt failed: look at the servers' logs.")
            }
            // Envoy passes the answer on with this flag.
            RequestFailure::RetryOverflow { .. } => (
                "retry_overflow",
                F::UpstreamOverflow,
                Blame::User,
                "The DestinationRule's maxRetries, or a RateLimit of the ServiceEntry, did not let it be tried again \
                 (nodemesh_request_retry_refusals_total says which): look at the servers' logs, or raise it.",
            ),
            RequestFailure::BadRequest { .. } => (
                "bad_request",
                F::DownstreamProtocolError,
                Blame::Peer,
                "The client sent what HTTP does not allow, or what two readers could understand differently.",
            ),
            RequestFailure::Unauthenticated { .. } => (
                "unauthenticated",
                F::Deny,
                Blame::Peer,
                "The token is not one that a RequestAuthentication of the workload believes: look at its issuer, audience, time and keys.",
            ),
            RequestFailure::RateLimited { .. } => (
                "rate_limited",
                F::RateLimited,
                Blame::User,
                "A RateLimit's budget is used up (rate_limit names it): let the client ask less often, or raise requests or burst.",
            ),
            RequestFailure::BodyTimedOut => (
                "request_body_timeout",
                F::IdleTimeout,
                Blame::Peer,
                "The client sent nothing of its request's body for --http-body-idle-timeout: look at what holds it up.",
            ),
            RequestFailure::Misdirected => (
                "misdirected",
                F::NoRoute,
                Blame::Peer,
                "A connection to a host of a ServiceEntry carries requests for that host and others with entries: the client is to make another.",
            ),
            RequestFailure::ConnectMethod => {
                ("connect_method", F::DownstreamProtocolError, Blame::Peer, "CONNECT is for proxies; the mesh needs none to be named.")
            }
        };
        Meaning { name, flag, level: Level::DEBUG, status: StatusCode::SERVICE_UNAVAILABLE, blame, advice: Cow::Borrowed(advice) }
    }
}

impl fmt::Display for RequestFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RequestFailure::NoRoute => write!(f, "no rule of the Service's routes matches"),
            RequestFailure::InvalidRoute { detail } => write!(f, "the route leads nowhere: {detail}"),
            RequestFailure::FaultInjected { rule, .. } => write!(f, "an error that {rule} injects"),
            RequestFailure::Overflow { bound } => write!(f, "bound reached: {bound}"),
            RequestFailure::RetryBudget => write!(f, "an attempt failed, and the Service's retry budget is used up"),
            RequestFailure::TimedOut => write!(f, "the request took too long"),
            RequestFailure::QueueTimedOut => write!(f, "the request waited too long for a connection, and no server was asked"),
            RequestFailure::UpstreamClosed { detail } => write!(f, "the server gave no answer: {detail}"),
            RequestFailure::UpstreamProtocol { detail } => write!(f, "the server's answer is no HTTP: {detail}"),
            RequestFailure::RetriesUsedUp { status } => write!(f, "every attempt failed, the last with {status}"),
            RequestFailure::RetryOverflow { status } => write!(f, "answered with {status}, and a bound does not let it be tried again"),
            RequestFailure::BadRequest { detail } => write!(f, "{detail}"),
            RequestFailure::Unauthenticated { detail, .. } => write!(f, "{detail}"),
            RequestFailure::RateLimited { limit, .. } => write!(f, "over RateLimit {limit}"),
            RequestFailure::BodyTimedOut => write!(f, "the request's body took too long"),
            RequestFailure::ConnectMethod => write!(f, "CONNECT is not forwarded"),
            RequestFailure::Misdirected => write!(f, "the request is for a host without a ServiceEntry, on a connection to one with"),
        }
    }
}

impl Outcome {
    /// What the client of a request is answered that ended so before there was an answer.
    pub fn http_status(&self) -> StatusCode {
        match self {
            Outcome::Request(failure) => failure.status(),
            Outcome::Internal { .. } => StatusCode::INTERNAL_SERVER_ERROR,
            // What Istio's BlackHoleCluster answers.
            Outcome::Unregistered { .. } => StatusCode::BAD_GATEWAY,
            denial if denial.is_denial() => StatusCode::FORBIDDEN,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The same as a gRPC status (Envoy's mapping of local replies; a missing backend is UNAVAILABLE by the Gateway API).
    pub fn grpc_status(&self) -> u16 {
        match self {
            Outcome::Request(RequestFailure::NoRoute) => 12,
            Outcome::Request(RequestFailure::TimedOut | RequestFailure::QueueTimedOut) => 4,
            Outcome::Request(RequestFailure::InvalidRoute { .. }) => 14,
            Outcome::Request(RequestFailure::BadRequest { .. }) => 13,
            Outcome::Request(RequestFailure::RateLimited { .. }) => 8,
            other => grpc_of(other.http_status().as_u16()),
        }
    }
}

/// gRPC's status for an HTTP status that stands in its place.
pub fn grpc_of(status: u16) -> u16 {
    match status {
        200 => 0,
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}
