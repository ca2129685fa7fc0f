//! Every way in which a tunnel's stream can fail to open, and what each means as an outcome.

use std::io;
use std::sync::Arc;

use http::StatusCode;
use rustls::AlertDescription;

use super::tls::CredentialsUnavailable;
use super::verify::VerifyError;
use crate::outcome::{ConnectFailure, HandshakeFailure, Outcome};

/// A refusal: the HTTP status of `hbone` and why. From a peer, the reason is a claim.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("refused with status {status}: {reason}")]
pub struct Refusal {
    /// 401 policy, 400 not understood, 503 not to be had.
    pub status: StatusCode,
    /// For the log of the other side, at most a few hundred bytes.
    pub reason: Arc<str>,
}

impl Refusal {
    /// With a reason.
    pub fn new(status: StatusCode, reason: impl Into<Arc<str>>) -> Self {
        Refusal { status, reason: reason.into() }
    }
}

/// Why a stream could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TunnelError {
    /// There is no valid certificate for our own identity.
    #[error("no certificate to show: {0}")]
    Credentials(#[from] CredentialsUnavailable),
    /// The peer's tunnel port could not be connected to.
    #[error("cannot connect to the peer's tunnel port: {detail}")]
    Dial {
        /// In what way.
        failure: ConnectFailure,
        /// The system's words.
        detail: Arc<str>,
    },
    /// The TLS handshake failed.
    #[error("TLS handshake with the peer failed: {0}")]
    Handshake(#[from] HandshakeError),
    /// The peer's agent refused the stream.
    #[error("the peer's agent {0}")]
    Refused(Refusal),
    /// The peer's agent did not answer in time.
    #[error("the peer's agent did not answer the request for a stream within {0:?}")]
    ResponseTimeout(std::time::Duration),
    /// The connection broke before the peer's agent had answered.
    #[error("the tunnel broke before the stream was accepted: {0}")]
    Lost(Arc<str>),
    /// The peer does not keep to the protocol.
    #[error("the peer broke the tunnel's protocol: {0}")]
    Protocol(Arc<str>),
    /// The application, or the caller on its behalf, gave up before the peer had answered.
    #[error("given up before the stream was accepted")]
    Abandoned,
}

/// Why a TLS handshake failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// Not finished in time.
    #[error("not finished in time")]
    TimedOut,
    /// Dropped in favour of newer ones.
    #[error("dropped: too many handshakes were under way")]
    Crowded,
    /// What the peer showed is not accepted here.
    #[error("the peer's certificate is not accepted: {0}")]
    Peer(#[from] VerifyError),
    /// The peer ended it with an alert; `advice` says what that usually means.
    #[error("the peer ended it with the alert {alert:?}: {advice}", advice = advice(*alert))]
    Alert {
        /// The alert (RFC 8446 6.2).
        alert: AlertDescription,
    },
    /// The peer closed the connection.
    #[error("the peer closed the connection: {0}")]
    Closed(Arc<str>),
    /// The bytes are not the TLS that was expected.
    #[error("{0}")]
    Protocol(Arc<str>),
}

impl HandshakeError {
    /// From what the TLS library reports.
    pub fn from_tls(error: &rustls::Error) -> HandshakeError {
        match error {
            rustls::Error::AlertReceived(alert) => HandshakeError::Alert { alert: *alert },
            other => match VerifyError::from_tls(other) {
                Some(refused) => HandshakeError::Peer(refused),
                None => HandshakeError::Protocol(other.to_string().into()),
            },
        }
    }

    /// From what the socket reports.
    pub fn from_io(error: &io::Error) -> HandshakeError {
        HandshakeError::Closed(error.to_string().into())
    }

    /// The kind that metrics and logs count.
    pub fn failure(&self) -> HandshakeFailure {
        match self {
            HandshakeError::TimedOut | HandshakeError::Crowded => HandshakeFailure::TimedOut,
            HandshakeError::Peer(refused) => match refused {
                VerifyError::Missing => HandshakeFailure::NoPeerCertificate,
                VerifyError::Expired | VerifyError::NotYetValid => HandshakeFailure::PeerCertificateTime,
                VerifyError::UnknownIssuer | VerifyError::Purpose | VerifyError::NoIdentity(_) | VerifyError::Invalid(_) => {
                    HandshakeFailure::PeerCertificateUntrusted
                }
                VerifyError::TrustDomain { .. } => HandshakeFailure::TrustDomain,
                VerifyError::Identity { .. } => HandshakeFailure::UnexpectedIdentity,
            },
            HandshakeError::Alert { alert } if concerns_certificate(*alert) => HandshakeFailure::OurCertificateRefused,
            HandshakeError::Alert { .. } | HandshakeError::Closed(_) | HandshakeError::Protocol(_) => HandshakeFailure::Protocol,
        }
    }
}

impl TunnelError {
    /// A failed dial.
    pub fn dial(error: &io::Error) -> TunnelError {
        TunnelError::Dial { failure: ConnectFailure::from_io(error), detail: error.to_string().into() }
    }

    /// The outcome of a connection that came to this.
    pub fn outcome(&self) -> Outcome {
        let detail = || Arc::<str>::from(self.to_string());
        match self {
            TunnelError::Credentials(unavailable) => Outcome::NoCertificate { detail: unavailable.0.clone() },
            TunnelError::Dial { failure, detail } => Outcome::TunnelDialFailed { failure: *failure, detail: detail.clone() },
            TunnelError::Handshake(error) => Outcome::TunnelHandshakeFailed { failure: error.failure(), detail: error.to_string().into() },
            TunnelError::Refused(refusal) => {
                let detail = (!refusal.reason.is_empty()).then(|| refusal.reason.clone());
                Outcome::TunnelRefused { status: refusal.status.as_u16(), detail }
            }
            TunnelError::ResponseTimeout(_) => Outcome::PeerTimeout { awaited: "the answer to the request for a stream" },
            TunnelError::Lost(_) => Outcome::TunnelLost { detail: detail() },
            TunnelError::Protocol(_) => Outcome::PeerProtocol { detail: detail() },
            TunnelError::Abandoned => Outcome::ClientReset,
        }
    }
}

fn concerns_certificate(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::CertificateRequired
            | AlertDescription::DecryptError
    )
}

fn advice(alert: AlertDescription) -> &'static str {
    match alert {
        AlertDescription::CertificateExpired => "to its clock our certificate is expired or not valid yet",
        AlertDescription::UnknownCA => "our certificate does not chain to a root that it trusts",
        AlertDescription::CertificateUnknown | AlertDescription::AccessDenied => {
            "it does not accept our identity, such as its trust domain"
        }
        AlertDescription::CertificateRequired => "it saw no certificate of ours",
        AlertDescription::UnsupportedCertificate => "our certificate is not meant for this purpose",
        AlertDescription::NoApplicationProtocol => "it speaks neither HBONE nor our own protocol there",
        AlertDescription::ProtocolVersion | AlertDescription::HandshakeFailure => "it does not speak the TLS 1.3 that the mesh demands",
        _ => "see the log of the other node's agent",
    }
}
