//! A connection that its client and server have switched to another protocol (RFC 9110, 7.8), such as WebSocket: copied until it ends.

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::body::Ongoing;
use crate::ops::drain::DrainWatch;
use crate::outcome::{Outcome, RequestFailure};

/// Copies between the two, once both have switched, until `ending` says how it ends.
pub async fn join(ours: OnUpgrade, theirs: OnUpgrade, mut ongoing: Ongoing, mut drain: DrainWatch, ending: impl Future<Output = Outcome>) {
    // The connection is no longer HTTP's and serves no other request, but has its place among the open ones until it ends.
    let lease = ongoing.lease.take();
    let copied = async {
        let (ours, theirs) = tokio::try_join!(ours, theirs).map_err(|error| error.to_string())?;
        let (mut ours, mut theirs) = (TokioIo::new(ours), TokioIo::new(theirs));
        tokio::io::copy_bidirectional(&mut ours, &mut theirs).await.map_err(|error| error.to_string())
    };
    let outcome = tokio::select! {
        copied = copied => match copied {
            Ok((up, down)) => {
                ongoing.record.totals.request_bytes = up;
                ongoing.record.totals.response_bytes = down;
                Outcome::Completed
            }
            Err(detail) => Outcome::Request(RequestFailure::UpstreamClosed { detail: detail.into() }),
        },
        () = drain.ending() => Outcome::Drained,
        outcome = ending => outcome,
    };
    drop(lease);
    if let Some(on_end) = ongoing.on_end.take() {
        on_end(true);
    }
    ongoing.record.finish(outcome);
}
