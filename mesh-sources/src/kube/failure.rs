//! What went wrong with a request → its class, words for an operator, and how to go on.

use std::error::Error as StdError;

use kube::runtime::watcher;
use mesh_model::object::Kind;

use super::limits::TimedOut;
use super::resource::resource_name;
use crate::status::Reason;

/// How a watch goes on after a failure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum GoOn {
    /// From where it was.
    Resume,
    /// With a new list.
    Relist,
    /// With a new list in pages: the server does not know how to stream one.
    RelistPaged,
}

/// A failure, classified.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Failed {
    pub(super) reason: Reason,
    pub(super) message: String,
    pub(super) go_on: GoOn,
}

/// A failed request that was not a watch.
pub(super) fn of_request(kind: Kind, error: &kube::Error) -> Failed {
    let reason = reason(error);
    Failed { reason, message: message(kind, reason, error), go_on: GoOn::Relist }
}

/// A failed list or watch. `streaming`: the list is being streamed and was not complete.
pub(super) fn of_watch(kind: Kind, error: &watcher::Error, streaming: bool) -> Failed {
    use watcher::Error as E;
    let (reason, message, go_on) = match error {
        E::InitialListFailed(error) => {
            let reason = reason(error);
            (reason, message(kind, reason, error), GoOn::Relist)
        }
        E::WatchStartFailed(error) => {
            let reason = reason(error);
            let go_on = match reason {
                Reason::Rejected | Reason::ServerError if streaming => GoOn::RelistPaged,
                // It is not known whether anything happened meanwhile that would still be told.
                Reason::Expired | Reason::NotFound | Reason::Forbidden | Reason::Rejected | Reason::Malformed => GoOn::Relist,
                Reason::Unreachable | Reason::Timeout | Reason::Unauthorized | Reason::Throttled | Reason::ServerError => GoOn::Resume,
            };
            (reason, message(kind, reason, error), go_on)
        }
        E::WatchError(status) => {
            let reason = of_code(status.code);
            // A server over an etcd that lacks what streaming needs says so within the stream, with 500.
            let cannot = streaming && matches!(reason, Reason::Rejected | Reason::ServerError);
            // The watch begins anew by itself if it is told that it is too old.
            (reason, of_status(kind, reason, status), if cannot { GoOn::RelistPaged } else { GoOn::Resume })
        }
        E::WatchFailed(error) => {
            let reason = reason(error);
            // An event that could not be read may have been any change.
            let go_on = if matches!(reason, Reason::Unreachable | Reason::Timeout) { GoOn::Resume } else { GoOn::Relist };
            (reason, message(kind, reason, error), go_on)
        }
        E::NoResourceVersion => (Reason::Malformed, format!("{}: an answer has no resourceVersion", resource_name(kind)), GoOn::Resume),
    };
    Failed { reason, message, go_on }
}

fn of_code(code: u16) -> Reason {
    match code {
        // The client takes JSON of any other form for a status without a code.
        0 => Reason::Malformed,
        401 => Reason::Unauthorized,
        403 => Reason::Forbidden,
        404 => Reason::NotFound,
        410 => Reason::Expired,
        429 => Reason::Throttled,
        400..=499 => Reason::Rejected,
        _ => Reason::ServerError,
    }
}

fn reason(error: &kube::Error) -> Reason {
    match error {
        kube::Error::Api(status) => of_code(status.code),
        kube::Error::Auth(_) => Reason::Unauthorized,
        kube::Error::SerdeError(_) | kube::Error::FromUtf8(_) | kube::Error::LinesCodecMaxLineLengthExceeded => Reason::Malformed,
        _ if causes(error).any(|cause| cause.is::<TimedOut>()) => Reason::Timeout,
        // An error of the layer that adds our token.
        _ if causes(error).any(|cause| cause.is::<kube::client::AuthError>()) => Reason::Unauthorized,
        _ => Reason::Unreachable,
    }
}

fn message(kind: Kind, reason: Reason, error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => of_status(kind, reason, status),
        // Its own words are of Rust's types; the innermost are the system's.
        _ => match causes(error).last() {
            Some(cause) if reason == Reason::Malformed => format!("{}: the answer cannot be read: {cause}", resource_name(kind)),
            Some(cause) => cause.to_string(),
            None => error.to_string(),
        },
    }
}

fn of_status(kind: Kind, reason: Reason, status: &kube::core::Status) -> String {
    let what = resource_name(kind);
    let said = if status.message.is_empty() { &status.reason } else { &status.message };
    // Somebody else's page may be anything.
    let said: String = said.chars().take(300).collect();
    match reason {
        Reason::Forbidden => {
            format!("permission to list and watch {what} in the whole cluster is missing; grant it by a ClusterRole ({said})")
        }
        Reason::Unauthorized => format!("the API server does not accept our credentials ({said})"),
        Reason::NotFound => format!("{what} is not served ({said})"),
        Reason::Malformed => format!("{what}: an event has a form that is not known"),
        _ => format!("{what}: {} {said}", status.code),
    }
}

fn causes<'e>(error: &'e (dyn StdError + 'static)) -> impl Iterator<Item = &'e (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error| (*error).source())
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    fn api(code: u16) -> kube::Error {
        kube::Error::Api(Box::new(Status { code, message: "words".into(), ..Status::default() }))
    }

    #[test]
    fn failures_are_told_apart() {
        let kind = Kind::AuthorizationPolicy;
        for (code, reason) in [
            (401, Reason::Unauthorized),
            (403, Reason::Forbidden),
            (404, Reason::NotFound),
            (410, Reason::Expired),
            (0, Reason::Malformed),
            (422, Reason::Rejected),
            (429, Reason::Throttled),
            (500, Reason::ServerError),
            (503, Reason::ServerError),
        ] {
            assert_eq!(of_request(kind, &api(code)).reason, reason);
        }
        let late = kube::Error::Service(Box::new(TimedOut("the answer", std::time::Duration::from_secs(1))));
        assert_eq!(of_request(kind, &late).reason, Reason::Timeout);
        let refused = kube::Error::Service(Box::new(std::io::Error::from(std::io::ErrorKind::ConnectionRefused)));
        assert_eq!(of_request(kind, &refused).reason, Reason::Unreachable);
    }

    #[test]
    fn a_missing_permission_is_named() {
        let message = of_request(Kind::AuthorizationPolicy, &api(403)).message;
        assert!(message.contains("authorizationpolicies.security.istio.io") && message.contains("ClusterRole"), "{message}");
    }

    #[test]
    fn what_may_have_been_missed_is_listed_anew() {
        use watcher::Error as E;
        let go_on = |error: E, streaming| of_watch(Kind::Pod, &error, streaming).go_on;
        assert_eq!(go_on(E::WatchStartFailed(api(410)), false), GoOn::Relist);
        assert_eq!(go_on(E::WatchStartFailed(api(503)), false), GoOn::Resume);
        assert_eq!(go_on(E::WatchStartFailed(api(422)), true), GoOn::RelistPaged);
        assert_eq!(go_on(E::WatchStartFailed(api(422)), false), GoOn::Relist);
        assert_eq!(go_on(E::WatchStartFailed(api(500)), true), GoOn::RelistPaged);
        let told = |code| E::WatchError(Box::new(Status { code, ..Status::default() }));
        assert_eq!(go_on(told(500), true), GoOn::RelistPaged);
        assert_eq!(go_on(told(500), false), GoOn::Resume);
        assert_eq!(go_on(told(410), true), GoOn::Resume);
        let garbage = || kube::Error::SerdeError(serde_json::from_str::<u8>("x").unwrap_err());
        assert_eq!(go_on(E::WatchFailed(garbage()), false), GoOn::Relist);
        let broken = kube::Error::ReadEvents(std::io::Error::from(std::io::ErrorKind::ConnectionReset));
        assert_eq!(go_on(E::WatchFailed(broken), false), GoOn::Resume);
    }
}
