//! How far an attempt has come, and whether its endpoint is to blame when its time is over. Pure.
//!
//! An endpoint that is blamed too often is left out for every pod of the node, so nothing counts against it that a client can bring about:
//! a deadline of the client's own, a body that it does not send to its end, or a wait for what other requests have in use.

use std::time::{Duration, Instant};

use crate::outcome::{Outcome, RequestFailure};
use crate::upstream::health::Observation;

/// How far an attempt has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Stage {
    /// It waits here, for its turn or for a place among the open connections: the endpoint has not been asked for anything.
    #[default]
    Queued,
    /// A connection is being opened for it.
    Dialling,
    /// It is being sent, or its answer is awaited.
    Sent,
}

impl Stage {
    /// How an attempt ends whose time is over at this stage.
    pub fn timed_out(self) -> Outcome {
        Outcome::Request(match self {
            Stage::Queued => RequestFailure::QueueTimedOut,
            Stage::Dialling | Stage::Sent => RequestFailure::TimedOut,
        })
    }
}

/// How a request ends whose time is over, given how its last attempt did: where that only waited, no server is said to have been slow.
pub fn too_late(last: Outcome) -> Outcome {
    match last {
        Outcome::Request(RequestFailure::QueueTimedOut) => last,
        _ => Outcome::Request(RequestFailure::TimedOut),
    }
}

/// When a request, or an attempt, must have been answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Deadlines {
    /// By the rule.
    pub rule: Option<Instant>,
    /// By the client (`grpc-timeout`).
    pub client: Option<Instant>,
}

impl Deadlines {
    /// The one that comes first.
    pub fn first(self) -> Option<Instant> {
        self.rule.into_iter().chain(self.client).min()
    }

    /// Those of an attempt that begins now and for which the rule gives so much time.
    #[must_use]
    pub fn of_attempt(self, began: Instant, timeout: Option<Duration>) -> Deadlines {
        let rule = timeout.map(|timeout| began + timeout).into_iter().chain(self.rule).min();
        Deadlines { rule, ..self }
    }

    /// What it says of the endpoint that the first of them has passed at this stage. `whole`: the client has sent the request's body to its
    /// end.
    pub fn passed(self, stage: Stage, whole: bool) -> Option<Observation> {
        let by_rule = self.rule.is_some() && self.rule == self.first();
        let owed = match stage {
            Stage::Queued => false,
            Stage::Dialling => true,
            Stage::Sent => whole,
        };
        (by_rule && owed).then_some(Observation::Timeout)
    }
}

#[cfg(test)]
mod tests;
