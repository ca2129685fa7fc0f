//! stub
use mesh_model::route::RetryPolicy;
use std::time::Instant;
pub enum Failure {
    Status { status: u16, grpc: Option<u16> },
    Connect,
    Refused,
    Reset { sent_any: bool },
    TryTimeout,
}
pub enum Next {
    Retry { at: Instant },
    GiveUp,
}
pub struct RetryState;
impl RetryState {
    pub fn new(_: &RetryPolicy, _: Option<Instant>) -> Self {
        RetryState
    }
    pub fn after(&mut self, _: Instant, _: Failure, _: u64) -> Next {
        Next::GiveUp
    }
    pub fn is_failure(&self, _: Failure) -> bool {
        false
    }
}
pub fn default_policy() -> RetryPolicy {
    RetryPolicy { attempts: 0, backoff: None, on: Default::default() }
}
