//! Where HTTP begins on a stream, and what its end means.

use std::rc::Rc;
use std::time::Duration;

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use super::{Fate, Local, Sender};
use crate::outcome::{Outcome, RequestFailure};
use crate::shared::Worker;

/// What is left of a connection whose HTTP is over is aborted after this long.
const FAREWELL: Duration = Duration::from_secs(5);

/// Begins HTTP on a stream; its task ends the stream's other half, `over`, a while after HTTP has ended.
pub(super) async fn handshake<T>(stream: T, http2: bool, worker: &Rc<Worker>, over: CancellationToken) -> Result<Sender, Outcome>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let failed = |error: hyper::Error| Outcome::Request(RequestFailure::UpstreamProtocol { detail: error.to_string().into() });
    let io = TokioIo::new(stream);
    let after = |over: CancellationToken| async move {
        tokio::time::sleep(FAREWELL).await;
        over.cancel();
    };
    if http2 {
        let (sender, connection) = http2::Builder::new(Local)
            .timer(TokioTimer::new())
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .max_header_list_size(crate::route::serve::MAX_HEADERS)
            .keep_alive_interval(Some(worker.shared.tunnel.ping_interval))
            .keep_alive_timeout(worker.shared.tunnel.ping_timeout)
            .handshake(io)
            .await
            .map_err(failed)?;
        worker.connections.spawn_local(async move {
            // What went wrong is told to each request.
            let _ = connection.await;
            tokio::task::spawn_local(after(over));
        });
        return Ok(Sender::Http2(sender));
    }
    let (sender, connection) = http1::Builder::new()
        .max_headers(crate::route::serve::MAX_HEADER_COUNT)
        .max_buf_size(crate::route::serve::MAX_HEADERS as usize)
        .handshake(io)
        .await
        .map_err(failed)?;
    worker.connections.spawn_local(async move {
        let _ = connection.with_upgrades().await;
        tokio::task::spawn_local(after(over));
    });
    Ok(Sender::Http1(sender))
}

/// What is known of how the connection below HTTP ended, where that is more than that it did.
pub(super) fn told(fate: &Fate) -> Option<Outcome> {
    // The tunnel knows better than HTTP why there was no answer.
    fate.borrow().clone().filter(|outcome| !matches!(outcome, Outcome::Completed | Outcome::ClientReset | Outcome::ServerReset))
}
