//! Whether a failed attempt is made again, and when: Envoy's `retry_on` conditions and backoff, Gateway API's minimum wait.
//!
//! Whether a request *can* be sent again (its body is still there, nothing of an answer has been passed on) is for the caller to know.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use mesh_model::route::{RetryOn, RetryPolicy};

pub mod budget;
#[cfg(test)]
mod tests;

/// Envoy's base interval, where a policy says nothing.
const BASE: Duration = Duration::from_millis(25);
/// The longest wait is so many times the base, as Envoy's default is.
const LONGEST: u32 = 10;

/// gRPC status codes of the default policy.
const CANCELLED: u16 = 1;
const UNAVAILABLE: u16 = 14;

/// [`default_policy`], made once.
pub static DEFAULT: LazyLock<RetryPolicy> = LazyLock::new(default_policy);

/// What holds without a rule: Istio's default, two more attempts after `connect-failure`, `refused-stream`,
/// `unavailable` and `cancelled`. Not after 503, which a server may have said after it did what was asked.
pub fn default_policy() -> RetryPolicy {
    RetryPolicy {
        attempts: 2,
        backoff: None,
        on: RetryOn { connect_failure: true, refused_stream: true, grpc: vec![UNAVAILABLE, CANCELLED], ..RetryOn::default() },
    }
}

/// How an attempt failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// The server answered: any status code, and gRPC's where the headers carry it (a response without a body).
    Status {
        /// HTTP status code.
        status: u16,
        /// gRPC status code.
        grpc: Option<u16>,
    },
    /// No connection could be had.
    Connect,
    /// The server refused the stream before it looked at it.
    Refused,
    /// The stream or connection ended without an answer.
    Reset {
        /// Any byte of the request was sent.
        sent_any: bool,
    },
    /// No answer came within the time for one attempt.
    TryTimeout,
}

/// What comes after a failed attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// Another attempt.
    Retry {
        /// Not before this.
        at: Instant,
    },
    /// The failure is the client's answer.
    GiveUp,
}

/// Whether a policy has an attempt made again after a failure.
///
/// As in Envoy 5xx and gateway-error cover an end without an answer, since that is answered with 503 or 504. A timed-out attempt is one of
/// these, and besides counts as the 504 it would be answered with, so that a list of codes (Gateway API has nothing else) can ask for it.
pub fn is_retriable(on: &RetryOn, failure: Failure) -> bool {
    let unanswered = on.server_errors || on.gateway_errors || on.reset;
    match failure {
        Failure::Status { status, grpc } => {
            on.statuses.contains(&status)
                || on.server_errors && (500..600).contains(&status)
                || on.gateway_errors && matches!(status, 502..=504)
                || on.retriable_4xx && status == 409
                || grpc.is_some_and(|grpc| on.grpc.contains(&grpc))
        }
        Failure::Connect => unanswered || on.connect_failure || on.reset_before_request,
        Failure::Refused => unanswered || on.refused_stream,
        Failure::Reset { sent_any } => unanswered || on.reset_before_request && !sent_any,
        Failure::TryTimeout => unanswered || on.statuses.contains(&504),
    }
}

/// The attempts of one request.
#[derive(Clone, Debug)]
pub struct RetryState<'a> {
    policy: &'a RetryPolicy,
    deadline: Option<Instant>,
    retries: u32,
}

impl<'a> RetryState<'a> {
    /// Before the first attempt. `deadline`: when the request as a whole times out.
    pub fn new(policy: &'a RetryPolicy, deadline: Option<Instant>) -> RetryState<'a> {
        RetryState { policy, deadline, retries: 0 }
    }

    /// Attempts after the first so far, with one that the last answer asked for.
    pub fn retries(&self) -> u32 {
        self.retries
    }

    /// What comes after an attempt that failed. `random`: 64 random bits.
    ///
    /// The wait is drawn from an interval that begins at 0 (or at the policy's `backoff`, which is a minimum) and doubles with each retry:
    /// full jitter, so that clients of a server that stumbled do not come back in step. No wait is longer than 10 times the base.
    pub fn after(&mut self, now: Instant, failure: Failure, random: u64) -> Next {
        if self.retries >= self.policy.attempts || !is_retriable(&self.policy.on, failure) {
            return Next::GiveUp;
        }
        let base = self.policy.backoff.unwrap_or(BASE);
        let least = self.policy.backoff.unwrap_or_default();
        let longest = base.saturating_mul(LONGEST).saturating_sub(least);
        let interval = base.saturating_mul(1u32.checked_shl(self.retries).unwrap_or(u32::MAX)).min(longest);
        let at = now.checked_add(least.saturating_add(part(interval, random)));
        match at.filter(|at| self.deadline.is_none_or(|deadline| *at < deadline)) {
            Some(at) => {
                self.retries += 1;
                Next::Retry { at }
            }
            None => Next::GiveUp,
        }
    }
}

/// A time from 0 to below `interval`.
fn part(interval: Duration, random: u64) -> Duration {
    let nanos = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(((u128::from(nanos) * u128::from(random)) >> 64) as u64)
}
