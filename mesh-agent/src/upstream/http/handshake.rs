//! Where HTTP begins on a stream, and what its end means.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::{Allowed, Fate, Local, Sender};
use crate::outcome::{Outcome, RequestFailure};
use crate::shared::Worker;

/// What is left of a stream of which HTTP has let go is aborted after this long.
const FAREWELL: Duration = Duration::from_secs(5);

/// A stream whose end is told. What HTTP's own task ends with says nothing of it: streams of HTTP/2 go on after a GOAWAY, and what was
/// switched to another protocol has only begun.
struct Watched<T> {
    stream: T,
    _gone: oneshot::Sender<()>,
}

impl<T> Watched<T> {
    /// Cancels `over` a while after the stream has been let go.
    fn of(stream: T, over: CancellationToken) -> Self {
        let (gone, ended) = oneshot::channel();
        tokio::task::spawn_local(async move {
            // Nobody sends anything: it is dropped.
            let _ = ended.await;
            tokio::time::sleep(FAREWELL).await;
            over.cancel();
        });
        Watched { stream, _gone: gone }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// As [`handshake`], on a stream whose other half is ended by `over`: a while after HTTP, or what it was switched to, has let go of it.
pub(super) async fn handshake_until<T>(stream: T, http2: bool, worker: &Rc<Worker>, over: CancellationToken) -> Result<Sender, Outcome>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    handshake(Watched::of(stream, over), http2, worker).await
}

/// Begins HTTP on a stream.
pub(super) async fn handshake<T>(stream: T, http2: bool, worker: &Rc<Worker>) -> Result<Sender, Outcome>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let failed = |error: hyper::Error| Outcome::Request(RequestFailure::UpstreamProtocol { detail: error.to_string().into() });
    let io = TokioIo::new(stream);
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
        let mut connection = connection;
        let allowed: Allowed = Rc::new(Cell::new(connection.current_max_send_streams()));
        let told = allowed.clone();
        worker.connections.spawn_local(async move {
            // What went wrong is told to each request.
            let _ = std::future::poll_fn(|cx| {
                let done = Pin::new(&mut connection).poll(cx);
                told.set(connection.current_max_send_streams());
                done
            })
            .await;
        });
        return Ok(Sender::Http2(sender, allowed));
    }
    let (sender, connection) = http1::Builder::new()
        .max_headers(crate::route::serve::MAX_HEADER_COUNT)
        .max_buf_size(crate::route::serve::MAX_HEADERS as usize)
        .handshake(io)
        .await
        .map_err(failed)?;
    worker.connections.spawn_local(async move {
        let _ = connection.with_upgrades().await;
    });
    Ok(Sender::Http1(sender))
}

/// What is known of how the connection below HTTP ended, where that is more than that it did.
pub(super) fn told(fate: &Fate) -> Option<Outcome> {
    // The tunnel knows better than HTTP why there was no answer.
    fate.borrow().clone().filter(|outcome| !matches!(outcome, Outcome::Completed | Outcome::ClientReset | Outcome::ServerReset))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_is_held_on_to_is_not_ended() {
        let set = tokio::task::LocalSet::new();
        let held = async {
            let (stream, _other) = tokio::io::duplex(64);
            let over = CancellationToken::new();
            let watched = Watched::of(stream, over.clone());
            tokio::time::sleep(FAREWELL * 10).await;
            assert!(!over.is_cancelled());
            drop(watched);
            tokio::time::sleep(FAREWELL / 2).await;
            assert!(!over.is_cancelled());
            tokio::time::sleep(FAREWELL).await;
            assert!(over.is_cancelled());
        };
        set.run_until(held).await;
    }
}
