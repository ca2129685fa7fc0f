//! A connection that its client and server have switched to another protocol (RFC 9110, 7.8), such as WebSocket: copied until it ends.

use std::cell::Cell;

use http::header::{HeaderValue, UPGRADE};
use http::{Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_util::io::InspectReader;

use super::body::Ongoing;
use crate::ops::drain::DrainWatch;
use crate::outcome::{Outcome, RequestFailure};

/// Whether a server switches although it was not asked to, or to something else than it was asked to, or does not say to what: its client
/// would read what follows as something that it is not. Of several that were asked for any will do; their names have no case.
pub fn is_unasked<B>(response: &Response<B>, asked: Option<&HeaderValue>) -> bool {
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return false;
    }
    let Some(asked) = asked else { return true };
    let is_asked = |protocol: &[u8]| protocols(asked).any(|other| other.eq_ignore_ascii_case(protocol));
    let mut named = response.headers().get_all(UPGRADE).iter().flat_map(protocols).peekable();
    named.peek().is_none() || !named.all(is_asked)
}

fn protocols(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|protocol| !protocol.is_empty())
}

/// Copies between the two, once both have switched, until `ending` says how it ends.
pub async fn join(ours: OnUpgrade, theirs: OnUpgrade, mut ongoing: Ongoing, mut drain: DrainWatch, ending: impl Future<Output = Outcome>) {
    // The connection is no longer HTTP's and serves no other request, but has its place among the open ones until it ends.
    let lease = ongoing.lease.take();
    // Counted as they are read, since it may be ended in the middle.
    let (up, down) = (Cell::new(0), Cell::new(0));
    let count = |count: &Cell<u64>, bytes: &[u8]| count.set(count.get() + bytes.len() as u64);
    let copied = async {
        let (ours, theirs) = tokio::try_join!(ours, theirs).map_err(|error| error.to_string())?;
        let mut ours = InspectReader::new(TokioIo::new(ours), |bytes: &[u8]| count(&up, bytes));
        let mut theirs = InspectReader::new(TokioIo::new(theirs), |bytes: &[u8]| count(&down, bytes));
        tokio::io::copy_bidirectional(&mut ours, &mut theirs).await.map_err(|error| error.to_string())
    };
    let outcome = tokio::select! {
        copied = copied => match copied {
            Ok(_) => Outcome::Completed,
            Err(detail) => Outcome::Request(RequestFailure::UpstreamClosed { detail: detail.into() }),
        },
        () = drain.ending() => Outcome::Drained,
        outcome = ending => outcome,
    };
    ongoing.record.totals.request_bytes = up.get();
    ongoing.record.totals.response_bytes = down.get();
    drop(lease);
    if let Some(on_end) = ongoing.on_end.take() {
        on_end(true);
    }
    ongoing.record.finish(outcome);
}

#[cfg(test)]
mod tests;
