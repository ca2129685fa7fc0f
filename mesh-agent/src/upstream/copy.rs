//! Copying between two TCP streams until both directions have ended: half-close is kept, an abort of one side becomes an abort of the other.
//!
//! One future polls both directions. It holds a buffer only while bytes are under way, and the buffer grows once a stream fills it.

use std::future::{Future, poll_fn};
use std::io::{self, IoSlice, IoSliceMut};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::conn::Meter;
use crate::outcome::Side;

pub mod buffer;
pub mod idle;
pub mod pipe;
pub mod socket;

use buffer::Buffer;
use idle::IdleTimer;
use socket::Socket;

/// How much one poll copies before other connections of the worker get their turn.
pub const TURN: usize = 1 << 20;

/// What became of a relayed connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ended {
    /// Bytes of the application from the client towards the server.
    pub from_client: u64,
    /// Bytes of the application from the server towards the client.
    pub to_client: u64,
    /// How it ended.
    pub how: How,
}

impl Ended {
    /// From the counts of `meter` and the manner of the end.
    pub fn new(meter: &Meter, how: How) -> Ended {
        let (from_client, to_client) = meter.read();
        Ended { from_client, to_client, how }
    }
}

/// How a relayed connection ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum How {
    /// Both sides closed in order.
    Eof,
    /// This side, or the peer on its behalf, aborted; the other side was told by an abort.
    Reset(Side),
    /// The caller's cancellation; both sides were aborted.
    Cancelled,
    /// No byte either way for the time allowed; both sides were aborted.
    Idle,
    /// The connection to the peer's agent broke; both sides were aborted.
    Lost(Arc<str>),
}

/// One direction.
struct Flow {
    buffer: Option<Buffer>,
    start: usize,
    end: usize,
    bulk: bool,
    eof: bool,
    done: bool,
}

enum Fault {
    /// The side that was read from or written to.
    Reset(Side),
}

/// Copies between the client's stream and the server's until both have ended, `cancel` resolves, or no byte passed for `idle`.
/// The bytes are counted in `meter` when they have been written.
pub async fn relay(
    client: impl Into<Socket>,
    server: impl Into<Socket>,
    meter: &Meter,
    cancel: impl Future<Output = ()>,
    idle: Option<Duration>,
) -> Ended {
    let mut client: Socket = client.into();
    let mut server: Socket = server.into();
    let mut up = Flow::new();
    let mut down = Flow::new();
    let mut cancel = pin!(cancel);
    let mut timer = pin!(IdleTimer::new(idle));
    let how = poll_fn(|cx| {
        if cancel.as_mut().poll(cx).is_ready() {
            return Poll::Ready(How::Cancelled);
        }
        let mut moved = 0;
        let mut count_up = |n: usize| {
            moved += n;
            meter.add_from_client(n as u64);
        };
        if let Err(Fault::Reset(side)) = up.poll(cx, &mut client, &mut server, Side::Client, &mut count_up) {
            return Poll::Ready(How::Reset(side));
        }
        let mut count_down = |n: usize| {
            moved += n;
            meter.add_to_client(n as u64);
        };
        if let Err(Fault::Reset(side)) = down.poll(cx, &mut server, &mut client, Side::Server, &mut count_down) {
            return Poll::Ready(How::Reset(side));
        }
        if up.done && down.done {
            return Poll::Ready(How::Eof);
        }
        if timer.as_mut().poll_expired(cx, moved > 0).is_ready() {
            return Poll::Ready(How::Idle);
        }
        Poll::Pending
    })
    .await;
    if how != How::Eof {
        client.abort();
        server.abort();
    }
    Ended::new(meter, how)
}

impl Flow {
    fn new() -> Flow {
        Flow { buffer: None, start: 0, end: 0, bulk: false, eof: false, done: false }
    }

    /// Moves what can be moved. Which side failed is told as the side that aborted.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Socket,
        to: &mut Socket,
        from_side: Side,
        count: &mut dyn FnMut(usize),
    ) -> Result<(), Fault> {
        let to_side = match from_side {
            Side::Client => Side::Server,
            Side::Server => Side::Client,
        };
        let mut turn = 0;
        while !self.done {
            while self.start < self.end {
                let Some(bytes) = self.buffer.as_deref().and_then(|b| b.get(self.start..self.end)) else { break };
                match to.poll_send(cx, &[IoSlice::new(bytes)]) {
                    Poll::Ready(Ok(n)) => {
                        self.start += n;
                        turn += n;
                        count(n);
                    }
                    Poll::Ready(Err(_)) => return Err(Fault::Reset(to_side)),
                    Poll::Pending => {
                        // Nobody reads from `from` while `to` is stalled: its abort would go unnoticed.
                        return match from.poll_aborted(cx) {
                            Poll::Ready(_) => Err(Fault::Reset(from_side)),
                            Poll::Pending => Ok(()),
                        };
                    }
                }
            }
            self.start = 0;
            self.end = 0;
            if self.eof {
                self.buffer = None;
                self.done = true;
                // Fails only if the other side is gone altogether, which its own direction reports.
                let _ = to.shutdown();
                break;
            }
            if turn >= TURN {
                cx.waker().wake_by_ref();
                break;
            }
            match self.fill(cx, from) {
                Poll::Ready(Ok(0)) => self.eof = true,
                Poll::Ready(Ok(n)) => self.end = n,
                Poll::Ready(Err(_)) => return Err(Fault::Reset(from_side)),
                Poll::Pending => {
                    self.buffer = None;
                    break;
                }
            }
        }
        Ok(())
    }

    fn fill(&mut self, cx: &mut Context<'_>, from: &mut Socket) -> Poll<io::Result<usize>> {
        if from.poll_readable(cx)?.is_pending() {
            return Poll::Pending;
        }
        if self.buffer.as_ref().is_none_or(|b| b.is_large() != self.bulk) {
            self.buffer = Some(Buffer::take(self.bulk));
        }
        let Some(buffer) = self.buffer.as_mut() else { return Poll::Pending };
        let polled = from.poll_recv(cx, &mut [IoSliceMut::new(buffer)]);
        if let Poll::Ready(Ok(n)) = polled {
            self.bulk = n >= buffer::SMALL;
        }
        polled
    }
}

#[cfg(test)]
mod tests;
