//! Trace ids (W3C Trace Context).

use std::sync::Arc;

/// A new trace, not sampled: its id, and the `traceparent` by which the other node's log names the same. All zeros are no id.
pub fn new(trace: u128, span: u64) -> (Arc<str>, Arc<str>) {
    let id = format!("{:032x}", trace.max(1));
    let parent = format!("00-{id}-{:016x}-00", span.max(1));
    (id.into(), parent.into())
}

/// The trace id of a `traceparent` (`00-<32 hex>-<16 hex>-<2 hex>`). A claim by the peer, so it must look like one.
pub fn trace_id(traceparent: &str) -> Option<Arc<str>> {
    let id = traceparent.split('-').nth(1)?;
    (id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit())).then(|| id.into())
}
