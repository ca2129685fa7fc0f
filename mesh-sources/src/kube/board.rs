//! Keeps the [`SourceStatus`], for the tasks that watch and for those who read it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_model::object::Kind;
use mesh_model::problem::{Origin, Problem, Severity};
use tokio::sync::watch;

use super::failure::Failed;
use super::limits::Heard;
use super::resource::resource_name;
use crate::status::{Failure, KindStatus, Progress, Reason, SourceStatus};

/// The status, to be written by many.
#[derive(Clone, Debug)]
pub(super) struct Board(Arc<watch::Sender<SourceStatus>>);

impl Board {
    pub(super) fn new(status: SourceStatus) -> Board {
        Board(Arc::new(watch::Sender::new(status)))
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<SourceStatus> {
        self.0.subscribe()
    }

    /// A list of the kind is complete.
    pub(super) fn listed(&self, kind: Kind) {
        self.change(kind, |status| {
            status.lists += 1;
            tracing::debug!(kind = kind.name(), "listed");
            let news = status.progress != Progress::Synced || status.failure.is_some();
            (status.progress, status.failure) = (Progress::Synced, None);
            news
        });
    }

    /// The kind is not served.
    pub(super) fn absent(&self, kind: Kind) {
        self.change(kind, |status| {
            let news = status.progress != Progress::Absent || status.failure.is_some();
            if status.progress != Progress::Absent {
                tracing::info!("the API server does not have {}: there are none until it does", resource_name(kind));
            }
            (status.progress, status.failure) = (Progress::Absent, None);
            news
        });
    }

    /// Something about the kind failed.
    pub(super) fn failed(&self, kind: Kind, failed: &Failed) {
        self.change(kind, |status| {
            *status.errors.entry(failed.reason).or_default() += 1;
            // To be told to list anew is no failure of anybody.
            if failed.reason == Reason::Expired {
                return false;
            }
            let before = status.failure.as_ref();
            if before.is_some_and(|before| before.reason == failed.reason && *before.message == *failed.message) {
                return false;
            }
            match failed.reason {
                Reason::Forbidden | Reason::Rejected | Reason::Malformed => tracing::error!("API server: {}", failed.message),
                _ => tracing::debug!(kind = kind.name(), reason = failed.reason.name(), "API server: {}", failed.message),
            }
            let since = before.map_or_else(Instant::now, |before| before.since);
            status.failure = Some(Failure { reason: failed.reason, message: failed.message.as_str().into(), since });
            true
        });
    }

    /// The objects in force of a kind have changed.
    pub(super) fn objects(&self, kind: Kind, count: usize) {
        self.change(kind, |status| {
            (status.objects, status.changed) = (count, Some(Instant::now()));
            false
        });
    }

    fn change(&self, kind: Kind, change: impl FnOnce(&mut KindStatus) -> bool) {
        self.0.send_if_modified(|status| {
            let news = status.kinds.get_mut(&kind).is_some_and(change);
            if news {
                connection(status);
            }
            news
        });
    }

    /// Who listens for a kind.
    pub(super) fn ear(&self, kind: Kind) -> Arc<dyn Heard> {
        Arc::new(Ear { board: self.clone(), kind })
    }
}

struct Ear {
    board: Board,
    kind: Kind,
}

impl Heard for Ear {
    fn answered(&self) {
        self.board.change(self.kind, |status| {
            let first = status.heard.replace(Instant::now()).is_none();
            status.failure.take().is_some() || first
        });
    }

    fn more(&self) {
        self.board.change(self.kind, |status| {
            status.heard = Some(Instant::now());
            false
        });
    }
}

/// Whether a failure says that the server cannot be used, or only that it refuses or lacks something.
fn cuts_off(failure: &Failure) -> bool {
    !matches!(failure.reason, Reason::Forbidden | Reason::NotFound | Reason::Rejected | Reason::Malformed | Reason::Expired)
}

/// Draws the conclusion from the kinds: connected if the server was heard of, and no kind is cut off from it.
fn connection(status: &mut SourceStatus) {
    let cut_off = status.kinds.values().filter_map(|kind| kind.failure.as_ref()).find(|failure| cuts_off(failure));
    let reached = |kind: &KindStatus| kind.heard.is_some() || kind.failure.as_ref().is_some_and(|failure| !cuts_off(failure));
    let connected = cut_off.is_none() && status.kinds.values().any(reached);
    let failure = cut_off.map(|failure| failure.message.clone());
    if connected != status.connected {
        status.since = Instant::now();
        if connected {
            tracing::info!(server = %status.place, "connected to the API server");
        }
    }
    if let Some(why) = failure.as_ref().filter(|_| status.connected || status.failure.is_none()) {
        let in_force = status.kinds.values().all(|kind| kind.progress != Progress::Awaited);
        let then = if in_force { "what was read before stays in force" } else { "nothing is in force before it answers" };
        tracing::warn!(server = %status.place, "the API server cannot be used: {why}; {then}, and it is tried again");
    }
    (status.connected, status.failure) = (connected, failure);
}

/// What is wrong with the source, for a snapshot; and when to look again. A short interruption, as every upgrade of the API server brings,
/// and every kind that is removed, is no problem before `grace` is over.
pub(super) fn problems(status: &SourceStatus, grace: Duration, now: Instant) -> (Vec<Problem>, Option<Instant>) {
    let problem = |message: String| Problem {
        severity: Severity::Error,
        origin: Origin::Api,
        object: "".into(),
        field: "".into(),
        message: message.into(),
    };
    let whole = status.failure.iter().map(|why| (status.since, format!("cannot be used: {why}")));
    let kinds = status.kinds.values().filter_map(|kind| kind.failure.as_ref()).filter(|failure| !cuts_off(failure));
    let kinds = kinds.map(|failure| (failure.since, failure.message.to_string()));
    let (ripe, unripe): (Vec<_>, Vec<_>) = whole.chain(kinds).partition(|(since, _)| *since + grace <= now);
    let again = unripe.into_iter().map(|(since, _)| since + grace).min();
    let mut problems: Vec<Problem> =
        ripe.into_iter().map(|(_, message)| problem(format!("{message}; what was read before stays in force"))).collect();
    problems.sort();
    problems.dedup();
    (problems, again)
}

#[cfg(test)]
mod tests {
    use super::super::failure::GoOn;
    use super::*;

    fn failed(reason: Reason) -> Failed {
        Failed { reason, message: reason.name().into(), go_on: GoOn::Resume }
    }

    #[test]
    fn one_kind_that_is_cut_off_is_a_lost_connection_and_a_refusal_is_none() {
        let board = Board::new(SourceStatus::new("kubernetes", "https://a".into(), [Kind::Pod, Kind::Node]));
        let status = board.subscribe();
        assert!(!status.borrow().connected);
        board.ear(Kind::Pod).answered();
        assert!(status.borrow().connected);
        board.failed(Kind::Node, &failed(Reason::Forbidden));
        assert!(status.borrow().connected);
        board.failed(Kind::Pod, &failed(Reason::Unreachable));
        assert!(!status.borrow().connected);
        assert_eq!(status.borrow().failure.as_deref(), Some("unreachable"));
        let since = status.borrow().since;
        board.failed(Kind::Pod, &failed(Reason::Timeout));
        assert_eq!(status.borrow().since, since);
        board.ear(Kind::Pod).answered();
        assert!(status.borrow().connected);
        assert_eq!(status.borrow().kinds[&Kind::Pod].errors[&Reason::Timeout], 1);
    }

    #[test]
    fn a_short_interruption_is_no_problem() {
        let board = Board::new(SourceStatus::new("kubernetes", "https://a".into(), [Kind::Pod, Kind::Node]));
        for kind in [Kind::Pod, Kind::Node] {
            board.ear(kind).answered();
            board.failed(kind, &failed(Reason::ServerError));
        }
        let (status, grace) = (board.subscribe(), Duration::from_secs(5));
        let status = status.borrow();
        let (none, again) = problems(&status, grace, status.since);
        assert_eq!((none.len(), again), (0, Some(status.since + grace)));
        let (one, again) = problems(&status, grace, status.since + grace);
        assert_eq!((one.len(), again), (1, None));
        drop(status);
        board.failed(Kind::Node, &failed(Reason::Forbidden));
        let status = board.subscribe();
        let status = status.borrow();
        assert_eq!(problems(&status, grace, status.since).0, []);
        let (both, again) = problems(&status, grace, Instant::now() + grace);
        assert_eq!((both.len(), again), (2, None), "{both:?}");
    }

    #[test]
    fn what_is_awaited_is_said_with_its_reason() {
        let board = Board::new(SourceStatus::new("kubernetes", "https://a".into(), [Kind::Pod, Kind::AuthorizationPolicy]));
        board.listed(Kind::Pod);
        board.failed(Kind::AuthorizationPolicy, &failed(Reason::Forbidden));
        let awaited = board.subscribe().borrow().awaited().unwrap();
        assert_eq!(awaited, "the first list of AuthorizationPolicy from https://a: forbidden");
        board.listed(Kind::AuthorizationPolicy);
        assert_eq!(board.subscribe().borrow().awaited(), None);
    }
}
