//! Trace ids (W3C Trace Context).

use std::sync::Arc;

/// A new trace, not sampled: its id, and the `traceparent` by which the other node's log names the same. All zeros are no id.
pub fn new(trace: u128, span: u64) -> (Arc<str>, Arc<str>) {
    let id = format!("{:032x}", trace.max(1));
    let parent = format!("00-{id}-{:016x}-00", span.max(1));
    (id.into(), parent.into())
}

/// The trace id of a `traceparent` (W3C Trace Context, 3.2): `00-<32 hex>-<16 hex>-<2 hex>`, hex digits in lower case and no id all
/// zeros. A later version may have more behind that. A claim by the peer, so it must look like one.
pub fn trace_id(traceparent: &str) -> Option<Arc<str>> {
    let mut parts = traceparent.splitn(5, '-');
    let mut hex = |digits: usize| parts.next().filter(|part| part.len() == digits && part.bytes().all(is_hex_digit));
    let (version, id, parent, _flags) = (hex(2)?, hex(32)?, hex(16)?, hex(2)?);
    let more = parts.next().is_some();
    let is_id = |id: &str| id.bytes().any(|digit| digit != b'0');
    (version != "ff" && !(version == "00" && more) && is_id(id) && is_id(parent)).then(|| id.into())
}

fn is_hex_digit(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

#[cfg(test)]
mod tests;
