//! A pair of connected streams inside one worker: where a tunnel's stream or a connection is not copied but read by this agent, one end
//! stands in for the application's socket. An abort of one end is an abort for the other, as with TCP.

use std::future::poll_fn;
use std::io::{self, IoSlice, IoSliceMut};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes under way in each direction.
const CAPACITY: usize = 64 << 10;

/// One direction.
#[derive(Debug, Default)]
struct Way {
    bytes: BytesMut,
    /// The writer has said its last.
    ended: bool,
    /// Nobody reads any more.
    unread: bool,
    /// One of the ends was aborted.
    aborted: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Way {
    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}

/// Both ends are used by one worker, so that nobody ever waits for the lock; HTTP libraries want streams that could move.
type Shared = Arc<Mutex<[Way; 2]>>;

/// One of the two ends. Dropped, it is closed in order.
#[derive(Debug)]
pub struct End {
    ways: Shared,
    first: bool,
}

/// Makes a pair.
pub fn pair() -> (End, End) {
    let ways = Shared::default();
    (End { ways: ways.clone(), first: true }, End { ways, first: false })
}

impl End {
    fn outgoing<T>(&self, with: impl FnOnce(&mut Way) -> T) -> T {
        let [first, second] = &mut *self.ways.lock();
        with(if self.first { first } else { second })
    }

    fn incoming<T>(&self, with: impl FnOnce(&mut Way) -> T) -> T {
        let [first, second] = &mut *self.ways.lock();
        with(if self.first { second } else { first })
    }

    /// Whether a read would return something; registers for waking if not.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.incoming(|way| {
            if way.aborted || way.ended || !way.bytes.is_empty() {
                return Poll::Ready(Ok(()));
            }
            way.reader = Some(cx.waker().clone());
            Poll::Pending
        })
    }

    /// Looks at what waits, and whether that is all there will be, until `decide` says something of it.
    pub fn poll_peek<T>(&self, cx: &mut Context<'_>, decide: impl FnOnce(&[u8], bool) -> Option<T>) -> Poll<io::Result<T>> {
        self.incoming(|way| {
            if way.aborted {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            match decide(&way.bytes, way.ended) {
                Some(decided) => Poll::Ready(Ok(decided)),
                None => {
                    way.reader = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
    }

    /// Reads into `bufs`; 0 is the end of the stream.
    pub fn poll_recv(&self, cx: &mut Context<'_>, bufs: &mut [IoSliceMut<'_>]) -> Poll<io::Result<usize>> {
        self.incoming(|way| match take(way, bufs) {
            Some(result) => Poll::Ready(result),
            None => {
                way.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        })
    }

    /// Reads without registering for anything; `None` if nothing is there.
    pub fn try_recv(&self, buf: &mut [u8]) -> Option<io::Result<usize>> {
        self.incoming(|way| take(way, &mut [IoSliceMut::new(buf)]))
    }

    /// Writes what there is room for.
    pub fn poll_send(&self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.outgoing(|way| {
            if way.aborted || way.ended || way.unread {
                return Poll::Ready(Err(gone(way)));
            }
            let mut room = CAPACITY.saturating_sub(way.bytes.len());
            if room == 0 {
                way.writer = Some(cx.waker().clone());
                return Poll::Pending;
            }
            let before = room;
            for buf in bufs {
                let part = buf.get(..buf.len().min(room)).unwrap_or_default();
                way.bytes.extend_from_slice(part);
                room -= part.len();
            }
            if let Some(reader) = way.reader.take() {
                reader.wake();
            }
            Poll::Ready(Ok(before - room))
        })
    }

    /// Waits for the other end to be aborted.
    pub fn poll_aborted(&self, cx: &mut Context<'_>) -> Poll<io::Error> {
        self.incoming(|way| poll_aborted(way, cx))
    }

    /// Resolves once one of the two ends is aborted, whoever has this one by then. To be awaited by the task that reads from it: there is one
    /// waker for both.
    pub fn aborted(&self) -> impl Future<Output = io::Error> + use<> {
        let (ways, first) = (self.ways.clone(), self.first);
        poll_fn(move |cx| {
            let [to_second, to_first] = &mut *ways.lock();
            poll_aborted(if first { to_first } else { to_second }, cx)
        })
    }

    /// Ends this direction.
    pub fn shutdown(&self) {
        self.outgoing(|way| {
            way.ended = true;
            way.wake();
        });
    }

    /// Whether the other end has not read every byte.
    pub fn has_unread(&self) -> bool {
        self.outgoing(|way| !way.bytes.is_empty())
    }

    /// Ends both directions at once, whatever is under way.
    pub fn abort(self) {
        for way in &mut *self.ways.lock() {
            way.aborted = true;
            way.wake();
        }
    }
}

fn poll_aborted(way: &mut Way, cx: &Context<'_>) -> Poll<io::Error> {
    if way.aborted {
        return Poll::Ready(io::ErrorKind::ConnectionReset.into());
    }
    way.reader = Some(cx.waker().clone());
    Poll::Pending
}

fn gone(way: &Way) -> io::Error {
    if way.aborted { io::ErrorKind::ConnectionReset.into() } else { io::ErrorKind::BrokenPipe.into() }
}

fn take(way: &mut Way, bufs: &mut [IoSliceMut<'_>]) -> Option<io::Result<usize>> {
    if way.aborted {
        return Some(Err(io::ErrorKind::ConnectionReset.into()));
    }
    if way.bytes.is_empty() {
        return way.ended.then_some(Ok(0));
    }
    let mut read = 0;
    for buf in bufs {
        let count = buf.len().min(way.bytes.len());
        if let Some(part) = buf.get_mut(..count) {
            way.bytes.copy_to_slice(part);
            read += count;
        }
    }
    if let Some(writer) = way.writer.take() {
        writer.wake();
    }
    Some(Ok(read))
}

impl Drop for End {
    fn drop(&mut self) {
        self.shutdown();
        self.incoming(|way| {
            way.unread = true;
            way.wake();
        });
    }
}

impl AsyncRead for End {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.incoming(|way| {
            if way.aborted {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            if way.bytes.is_empty() && !way.ended {
                way.reader = Some(cx.waker().clone());
                return Poll::Pending;
            }
            let count = buf.remaining().min(way.bytes.len());
            buf.put_slice(way.bytes.get(..count).unwrap_or_default());
            way.bytes.advance(count);
            if let Some(writer) = way.writer.take() {
                writer.wake();
            }
            Poll::Ready(Ok(()))
        })
    }
}

impl AsyncWrite for End {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_send(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.poll_send(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shutdown();
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests;
