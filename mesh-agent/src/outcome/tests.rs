use std::collections::HashMap;

use super::*;

fn name(text: &str) -> NamespacedName {
    let (namespace, name) = text.split_once('/').unwrap();
    NamespacedName { namespace: namespace.into(), name: name.into() }
}

fn all() -> Vec<Outcome> {
    let detail: Arc<str> = "words".into();
    let mut all = vec![
        Outcome::Completed,
        Outcome::ClientReset,
        Outcome::ServerReset,
        Outcome::MtlsRequired { policy: Some(name("shop/strict")) },
        Outcome::MtlsRequired { policy: None },
        Outcome::PolicyRevoked { reason: DenyReason::NoAllowPolicy, policy: None },
        Outcome::PodHeld { side: Side::Client, awaited: detail.clone() },
        Outcome::PodHeld { side: Side::Server, awaited: detail.clone() },
        Outcome::UnknownPod,
        Outcome::Unregistered { host: None },
        Outcome::Unregistered { host: Some(detail.clone()) },
        Outcome::UnknownDestination,
        Outcome::OwnPort,
        Outcome::NoEndpoint,
        Outcome::AddressFamily,
        Outcome::NoCertificate { detail: detail.clone() },
        Outcome::TunnelRefused { status: 401, detail: None },
        Outcome::TunnelRefused { status: 400, detail: None },
        Outcome::TunnelRefused { status: 503, detail: Some(detail.clone()) },
        Outcome::TunnelLost { detail: detail.clone() },
        Outcome::PeerProtocol { detail: detail.clone() },
        Outcome::PeerTimeout { awaited: "TLS handshake" },
        Outcome::PeerStalled { side: Side::Client },
        Outcome::PeerStalled { side: Side::Server },
        Outcome::IdleTimeout,
        Outcome::Overload { limit: "connections of a pod" },
        Outcome::PodGone { side: Side::Client },
        Outcome::PodGone { side: Side::Server },
        Outcome::Drained,
        Outcome::ClosedByOperator,
        Outcome::Aborted,
        Outcome::Incomplete,
        Outcome::Internal { detail: detail.clone() },
    ];
    use UpstreamFailure as U;
    let (files, certificate) = (U::TlsFiles { detail: detail.clone() }, U::TlsCertificate { detail: detail.clone() });
    all.extend([files, certificate, U::TlsHandshake { detail: detail.clone() }, U::Expired].map(Outcome::Upstream));
    for reason in [DenyReason::DenyPolicy, DenyReason::NoAllowPolicy, DenyReason::InvalidPolicy, DenyReason::NoRules] {
        for policy in [None, Some(name("shop/only-frontend"))] {
            all.push(Outcome::PolicyDenied { reason, policy });
        }
    }
    use ConnectFailure as C;
    for failure in [C::Refused, C::TimedOut, C::Unreachable, C::Local, C::Other] {
        all.push(Outcome::ConnectFailed { failure, detail: detail.clone() });
        all.push(Outcome::TunnelDialFailed { failure, detail: detail.clone() });
    }
    use HandshakeFailure as H;
    for failure in [
        H::TimedOut,
        H::NoPeerCertificate,
        H::PeerCertificateTime,
        H::PeerCertificateUntrusted,
        H::TrustDomain,
        H::UnexpectedIdentity,
        H::OurCertificateRefused,
        H::Protocol,
    ] {
        all.push(Outcome::TunnelHandshakeFailed { failure, detail: detail.clone() });
    }
    let standing = crate::policy::limits::Standing { limit: 5, remaining: 0, reset: Default::default(), retry_after: None };
    all.push(Outcome::Request(RequestFailure::RateLimited { limit: name("shop/orders"), standing }));
    all.push(Outcome::Request(RequestFailure::RetryBudget));
    all.push(Outcome::Request(RequestFailure::QueueTimedOut));
    all
}

#[test]
fn names_are_words_and_tell_kinds_apart() {
    let mut flags: HashMap<&str, ResponseFlag> = HashMap::new();
    let mut kinds: HashMap<&str, std::mem::Discriminant<Outcome>> = HashMap::new();
    for outcome in all() {
        let meaning = outcome.meaning();
        assert!(meaning.name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{}", meaning.name);
        // A name stands for one flag and for one kind of end.
        assert_eq!(*flags.entry(meaning.name).or_insert(meaning.flag), meaning.flag, "{outcome:?}");
        let kind = std::mem::discriminant(&outcome);
        assert_eq!(*kinds.entry(meaning.name).or_insert(kind), kind, "{outcome:?}");
    }
    assert!(flags.len() > 40);
}

#[test]
fn each_has_a_sentence_and_a_line() {
    for outcome in all() {
        let meaning = outcome.meaning();
        assert!(meaning.advice.ends_with('.'), "{outcome:?}: {}", meaning.advice);
        let line = outcome.to_string();
        assert!(!line.is_empty() && !line.contains('\n'));
    }
}

#[test]
fn the_tunnel_answers_as_hbone_says() {
    let status = |outcome: Outcome| outcome.tunnel_status().as_u16();
    assert_eq!(status(Outcome::PolicyDenied { reason: DenyReason::DenyPolicy, policy: None }), 401);
    assert_eq!(status(Outcome::PeerProtocol { detail: "no port".into() }), 400);
    assert_eq!(status(Outcome::OwnPort), 503);
    assert_eq!(status(Outcome::UnknownDestination), 503);
    assert_eq!(status(Outcome::ConnectFailed { failure: ConnectFailure::Refused, detail: "".into() }), 503);
    assert_eq!(status(Outcome::PodHeld { side: Side::Server, awaited: "".into() }), 503);
}

#[test]
fn denials_bear_the_denial_flag() {
    for outcome in all() {
        assert_eq!(outcome.is_denial(), outcome.meaning().flag == ResponseFlag::Deny, "{outcome:?}");
    }
}

#[test]
fn the_policy_is_named() {
    let outcome = Outcome::PolicyDenied { reason: DenyReason::DenyPolicy, policy: Some(name("shop/no-cron")) };
    assert_eq!(outcome.policy(), Some(&name("shop/no-cron")));
    assert_eq!(outcome.to_string(), "denied by policy shop/no-cron");
    assert!(outcome.meaning().advice.contains("shop/no-cron"));
}

#[test]
fn every_reason_of_the_kernel_is_understood() {
    let mut names = Vec::new();
    for reason in 1..event::REASONS {
        let outcome = Outcome::from_kernel_refusal(reason, None);
        assert!(!matches!(outcome, Outcome::Internal { .. }), "reason {reason}");
        names.push(outcome.meaning().name);
    }
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len() as u32, event::REASONS - 1, "reasons must stay apart in metrics");
    assert!(matches!(Outcome::from_kernel_refusal(99, None), Outcome::Internal { .. }));
}

#[test]
fn flags_are_numbered_as_listed() {
    for (number, flag) in ResponseFlag::ALL.into_iter().enumerate() {
        assert_eq!(flag as usize, number);
    }
}

#[test]
fn system_errors_are_sorted() {
    use std::io::{Error, ErrorKind};
    assert_eq!(ConnectFailure::from_io(&Error::from(ErrorKind::ConnectionRefused)), ConnectFailure::Refused);
    assert_eq!(ConnectFailure::from_io(&Error::from(ErrorKind::TimedOut)), ConnectFailure::TimedOut);
    assert_eq!(ConnectFailure::from_io(&Error::from(ErrorKind::HostUnreachable)), ConnectFailure::Unreachable);
    assert_eq!(ConnectFailure::from_io(&Error::from(ErrorKind::AddrNotAvailable)), ConnectFailure::Local);
    assert_eq!(ConnectFailure::from_io(&Error::other("?")), ConnectFailure::Other);
}
