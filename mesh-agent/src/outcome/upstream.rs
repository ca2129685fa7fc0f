//! How a connection to a server can fail, or end, because of what a DestinationRule asks of it.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use http::StatusCode;
use tracing::Level;

use super::{Blame, Meaning, ResponseFlag};

/// How it failed or ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum UpstreamFailure {
    /// What TLS towards the server needs, roots or a certificate, cannot be had.
    TlsFiles {
        /// Which file, and what is wrong with it.
        detail: Arc<str>,
    },
    /// A DestinationRule demands TLS towards a server of which it is not known whether it is the one that was dialled.
    TlsUnknown {
        /// Why, and what to do.
        detail: Arc<str>,
    },
    /// The server's certificate is not accepted.
    TlsCertificate {
        /// The library's words.
        detail: Arc<str>,
    },
    /// The TLS handshake with the server failed for another reason.
    TlsHandshake {
        /// The library's words.
        detail: Arc<str>,
    },
    /// It has lasted as long as `maxConnectionDuration` allows.
    Expired,
}

impl UpstreamFailure {
    pub(super) fn meaning(&self) -> Meaning {
        use ResponseFlag as F;
        let (name, flag, level, advice): (_, _, _, &'static str) = match self {
            UpstreamFailure::TlsFiles { .. } => (
                "upstream_tls_files",
                F::UpstreamConnectionFailure,
                Level::WARN,
                "The DestinationRule's tls names files that the agent can't use: mount them into the agent, below --credentials.",
            ),
            UpstreamFailure::TlsUnknown { .. } => (
                "upstream_tls_unknown",
                F::UpstreamConnectionFailure,
                Level::WARN,
                "What a DestinationRule wants encrypted is not sent in the clear: see the reason, and at the agent's name servers (--dns-server).",
            ),
            UpstreamFailure::TlsCertificate { .. } => (
                "upstream_tls_certificate",
                F::UpstreamConnectionFailure,
                Level::INFO,
                "The server's certificate is not what the DestinationRule's tls demands: look at its sni, subjectAltNames (or the ServiceEntry's) and caCertificates.",
            ),
            UpstreamFailure::TlsHandshake { .. } => (
                "upstream_tls_handshake",
                F::UpstreamConnectionFailure,
                Level::INFO,
                "The server does not speak TLS as the DestinationRule's tls demands: look what listens there, and at the server's log.",
            ),
            UpstreamFailure::Expired => (
                "max_connection_duration",
                F::DurationTimeout,
                Level::DEBUG,
                "It lasted as long as the DestinationRule's maxConnectionDuration allows: nothing to do, if that was meant.",
            ),
        };
        Meaning { name, flag, level, status: StatusCode::SERVICE_UNAVAILABLE, blame: Blame::User, advice: Cow::Borrowed(advice) }
    }
}

impl fmt::Display for UpstreamFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UpstreamFailure::TlsFiles { detail } => write!(f, "TLS towards the server can't be begun: {detail}"),
            UpstreamFailure::TlsUnknown { detail } => write!(f, "it is not known whether TLS is demanded: {detail}"),
            UpstreamFailure::TlsCertificate { detail } => write!(f, "the server's certificate is not accepted: {detail}"),
            UpstreamFailure::TlsHandshake { detail } => write!(f, "TLS towards the server failed: {detail}"),
            UpstreamFailure::Expired => write!(f, "it lasted as long as it may"),
        }
    }
}
