//! Traces of requests (W3C Trace Context, OpenTelemetry): which trace a request belongs to, and the spans of those that are sampled.
//!
//! ```text
//! traceparent ─► Hop::of(sampler) ─► traceparent sent on, with this agent's span as the parent if the trace is sampled
//!                    └─► RequestRecorder ─ drop ─► Spans (bounded, never waits) ─► export ─► collector
//! ```
//! Where no collector is configured, or a trace is not sampled, nothing is made and `traceparent` goes on as it came.

use std::fmt;
use std::sync::Arc;

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};

pub mod export;
mod span;
mod spans;

pub use span::Finished;
pub use spans::Spans;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// `version-format` of the version that is written.
const LENGTH: usize = 55;
/// The flag `sampled`.
const SAMPLED: u8 = 1;
/// The flags that are known: `sampled`, and `random` of Level 2.
const FLAGS: u8 = 3;

/// What a `traceparent` says: the trace, the span that asks, and flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TraceParent {
    trace: u128,
    span: u64,
    flags: u8,
}

impl TraceParent {
    /// One that is not sampled. Ids of all zeros are none, so one is taken in their place.
    pub fn new(trace: u128, span: u64) -> TraceParent {
        TraceParent { trace: trace.max(1), span: span.max(1), flags: 0 }
    }

    /// Reads a header's value. A claim by the peer, so it must look like one: of a version that is not known yet as much counts as the
    /// specification says will stay.
    pub fn parse(text: &str) -> Option<TraceParent> {
        let bytes = text.as_bytes();
        let dashes = [2, 35, 52].iter().all(|at| bytes.get(*at) == Some(&b'-'));
        let version = hex(text.get(0..2)?)?;
        let ends = match bytes.get(LENGTH) {
            None => true,
            Some(next) => version > 0 && *next == b'-',
        };
        let (trace, span) = (hex(text.get(3..35)?)?, hex(text.get(36..52)?)?);
        let flags = hex(text.get(53..LENGTH)?)?;
        if !dashes || !ends || version == 0xff || trace == 0 || span == 0 {
            return None;
        }
        Some(TraceParent { trace, span: u64::try_from(span).ok()?, flags: u8::try_from(flags).ok()? & FLAGS })
    }

    /// Of a request. Two headers, or one that cannot be read, are none.
    pub fn of(headers: &HeaderMap) -> Option<TraceParent> {
        let mut all = headers.get_all(TRACEPARENT).iter();
        let only = all.next().filter(|_| all.next().is_none())?;
        TraceParent::parse(only.to_str().ok()?)
    }

    /// Whether the beginner of the trace wants its spans.
    pub fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// The trace's id as logs have it: 32 hexadecimal digits.
    pub fn trace_id(&self) -> Arc<str> {
        format!("{:032x}", self.trace).into()
    }
}

/// As a header's value.
impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, self.flags)
    }
}

/// Lower-case digits only.
fn hex(text: &str) -> Option<u128> {
    let fine = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    fine.then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

/// Which of the traces that begin here are sampled: by their id, so that everybody who decides by the same share decides alike
/// (OpenTelemetry's `TraceIdRatioBased`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sampler {
    /// Ids of which the lower 63 bits are below this are.
    below: u64,
}

impl Sampler {
    /// Of a million traces so many.
    pub fn new(per_million: u32) -> Sampler {
        let below = (u128::from(per_million.min(1_000_000)) << 63) / 1_000_000;
        Sampler { below: u64::try_from(below).unwrap_or(u64::MAX) }
    }

    /// Whether a trace is.
    pub fn takes(self, trace: u128) -> bool {
        (trace as u64 & (u64::MAX >> 1)) < self.below
    }
}

/// What one agent makes of a request's trace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hop {
    /// What is sent on.
    own: TraceParent,
    /// The span that asked.
    parent: Option<u64>,
    /// Whether a span is made here.
    sampled: bool,
}

impl Hop {
    /// Of a request with these headers. A trace that has begun is sampled if its `traceparent` says so, one that begins here if `sampler`
    /// takes it; without a sampler none is. `random` gives the ids of a trace and a span.
    pub fn of(headers: &HeaderMap, sampler: Option<Sampler>, random: impl FnOnce() -> (u128, u64)) -> Hop {
        match (TraceParent::of(headers), sampler) {
            (Some(theirs), Some(_)) if theirs.is_sampled() => {
                let (_, span) = random();
                Hop { own: TraceParent { span: span.max(1), ..theirs }, parent: Some(theirs.span), sampled: true }
            }
            (Some(theirs), _) => Hop { own: theirs, parent: Some(theirs.span), sampled: false },
            (None, sampler) => {
                let (trace, span) = random();
                let mut own = TraceParent::new(trace, span);
                let sampled = sampler.is_some_and(|sampler| sampler.takes(own.trace));
                own.flags = if sampled { SAMPLED } else { 0 };
                Hop { own, parent: None, sampled }
            }
        }
    }

    /// Whether the trace came with the request.
    pub fn has_begun(&self) -> bool {
        self.parent.is_some()
    }

    /// Whether a span is made here.
    pub fn is_sampled(&self) -> bool {
        self.sampled
    }

    /// As [`TraceParent::trace_id`].
    pub fn trace_id(&self) -> Arc<str> {
        self.own.trace_id()
    }

    /// Writes into a request's headers what is sent on. The `tracestate` of no trace goes.
    pub fn write(&self, headers: &mut HeaderMap) {
        if self.parent.is_none() {
            headers.remove(TRACESTATE);
        } else if !self.sampled && headers.contains_key(TRACEPARENT) {
            // As it came.
            return;
        }
        if let Ok(value) = HeaderValue::from_str(&self.own.to_string()) {
            headers.insert(TRACEPARENT, value);
        }
    }
}

/// A span under way, of a request that is sampled.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Open {
    /// Where it stands in its trace.
    pub hop: Hop,
    /// The `tracestate` that came with it.
    pub state: Option<Box<str>>,
    /// Whether its client speaks HTTP/2.
    pub http2: bool,
}

/// Longest `tracestate` that is told to the collector; the specification lets one be shortened beyond that.
const LONGEST_STATE: usize = 512;

impl Open {
    /// Of a request with these headers, if its trace is sampled.
    pub fn of(hop: Hop, headers: &HeaderMap, http2: bool) -> Option<Box<Open>> {
        if !hop.sampled {
            return None;
        }
        let state = headers.get(TRACESTATE).filter(|_| hop.parent.is_some()).and_then(|value| value.to_str().ok());
        let state = state.filter(|state| state.len() <= LONGEST_STATE).map(Box::from);
        Some(Box::new(Open { hop, state, http2 }))
    }
}

#[cfg(test)]
mod tests;
