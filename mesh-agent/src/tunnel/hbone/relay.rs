//! The relay of one stream between an application and an HTTP/2 stream.

use std::future::{Future, poll_fn};
use std::io::{IoSlice, IoSliceMut};
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};

use crate::conn::Meter;
use crate::outcome::Side;
use crate::tunnel::fast::relay::Prefix;
use crate::upstream::copy::buffer::Buffer;
use crate::upstream::copy::idle::IdleTimer;
use crate::upstream::copy::socket::Socket;
use crate::upstream::copy::{How, TURN};

/// What is asked of flow control at once.
const CHUNK: usize = 16 << 10;
const BULK_CHUNK: usize = 128 << 10;

struct Relay<'a> {
    app: Socket,
    app_side: Side,
    send: SendStream<Bytes>,
    recv: RecvStream,
    meter: &'a Meter,
    /// From the peer, not yet taken by the application.
    pending: Bytes,
    fin_received: bool,
    app_shut: bool,
    /// Read from the application before there was a stream.
    prefix: Bytes,
    app_eof: bool,
    fin_sent: bool,
    bulk: bool,
    moved: bool,
}

enum Stop {
    AppReset,
    PeerAborted,
    Lost(String),
}

/// Relays until both directions have ended. An abort of the application becomes RST_STREAM(CANCEL), and the other way round.
#[expect(clippy::too_many_arguments, reason = "two call sites; each is a thing of its own")]
pub async fn relay(
    app: Socket,
    app_side: Side,
    send: SendStream<Bytes>,
    recv: RecvStream,
    prefix: Prefix,
    meter: &Meter,
    cancel: impl Future<Output = ()>,
    idle: Option<Duration>,
) -> How {
    let mut relay = Relay {
        app,
        app_side,
        send,
        recv,
        meter,
        pending: Bytes::new(),
        fin_received: false,
        app_shut: false,
        prefix: prefix.bytes.into(),
        app_eof: prefix.eof,
        fin_sent: false,
        bulk: false,
        moved: false,
    };
    let mut cancel = pin!(cancel);
    let mut idle = pin!(IdleTimer::new(idle));
    let how = poll_fn(|cx| {
        if cancel.as_mut().poll(cx).is_ready() {
            return Poll::Ready(How::Cancelled);
        }
        let stop = relay.poll_inbound(cx).and_then(|()| relay.poll_outbound(cx)).and_then(|()| relay.poll_reset(cx));
        match stop {
            Err(Stop::AppReset) => return Poll::Ready(How::Reset(app_side)),
            Err(Stop::PeerAborted) => {
                return Poll::Ready(How::Reset(match app_side {
                    Side::Client => Side::Server,
                    Side::Server => Side::Client,
                }));
            }
            Err(Stop::Lost(why)) => return Poll::Ready(How::Lost(why.into())),
            Ok(()) => {}
        }
        if relay.app_shut && relay.fin_sent {
            return Poll::Ready(How::Eof);
        }
        if idle.as_mut().poll_expired(cx, std::mem::take(&mut relay.moved)).is_ready() {
            return Poll::Ready(How::Idle);
        }
        Poll::Pending
    })
    .await;
    match how {
        How::Eof => {}
        How::Reset(side) if side == app_side => relay.send.send_reset(Reason::CANCEL),
        _ => {
            relay.send.send_reset(Reason::CANCEL);
            relay.app.abort();
        }
    }
    how
}

impl Relay<'_> {
    fn poll_inbound(&mut self, cx: &mut Context<'_>) -> Result<(), Stop> {
        let mut turn = 0;
        loop {
            while !self.pending.is_empty() {
                match self.app.poll_send(cx, &[IoSlice::new(&self.pending)]) {
                    Poll::Ready(Ok(n)) => {
                        turn += n;
                        self.moved = true;
                        self.pending.advance(n);
                        // Only what the application took makes room for more.
                        self.recv.flow_control().release_capacity(n).map_err(lost)?;
                        match self.app_side {
                            Side::Client => self.meter.add_to_client(n as u64),
                            Side::Server => self.meter.add_from_client(n as u64),
                        }
                    }
                    Poll::Ready(Err(_)) => return Err(Stop::AppReset),
                    Poll::Pending => return Ok(()),
                }
            }
            if self.fin_received {
                if !self.app_shut {
                    self.app_shut = true;
                    // Fails only if the application has gone altogether, which reading from it tells.
                    let _ = self.app.shutdown();
                }
                return Ok(());
            }
            if turn >= TURN {
                cx.waker().wake_by_ref();
                return Ok(());
            }
            match self.recv.poll_data(cx) {
                Poll::Ready(Some(Ok(data))) => self.pending = data,
                Poll::Ready(Some(Err(error))) => return Err(stop(error)),
                Poll::Ready(None) => self.fin_received = true,
                Poll::Pending => return Ok(()),
            }
        }
    }

    fn poll_outbound(&mut self, cx: &mut Context<'_>) -> Result<(), Stop> {
        let mut turn = 0;
        while !self.fin_sent {
            if self.prefix.is_empty() {
                if self.app_eof {
                    self.send.send_data(Bytes::new(), true).map_err(stop)?;
                    self.fin_sent = true;
                    return Ok(());
                }
                match self.app.poll_readable(cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(_)) => return Err(Stop::AppReset),
                    Poll::Pending => break,
                }
            }
            let wanted = if self.prefix.is_empty() { if self.bulk { BULK_CHUNK } else { CHUNK } } else { self.prefix.len() };
            let Some(room) = self.poll_room(cx, wanted)? else {
                // Nobody reads from the application while the peer is stalled: its abort would go unnoticed.
                return match self.app.poll_aborted(cx) {
                    Poll::Ready(_) => Err(Stop::AppReset),
                    Poll::Pending => Ok(()),
                };
            };
            if !self.prefix.is_empty() {
                let piece = self.prefix.split_to(room.min(self.prefix.len()));
                self.send.send_data(piece, false).map_err(stop)?;
                continue;
            }
            let mut buffer = Buffer::take(self.bulk);
            let space = room.min(wanted).min(buffer.len());
            let read = match self.app.poll_recv(cx, &mut [IoSliceMut::new(buffer.get_mut(..space).unwrap_or_default())]) {
                Poll::Ready(Ok(n)) => n,
                Poll::Ready(Err(_)) => return Err(Stop::AppReset),
                Poll::Pending => break,
            };
            self.bulk = read == space && read >= CHUNK;
            if read == 0 {
                self.app_eof = true;
                continue;
            }
            self.send.send_data(Bytes::copy_from_slice(buffer.get(..read).unwrap_or_default()), false).map_err(stop)?;
            self.moved = true;
            match self.app_side {
                Side::Client => self.meter.add_from_client(read as u64),
                Side::Server => self.meter.add_to_client(read as u64),
            }
            turn += read;
            if turn >= TURN {
                cx.waker().wake_by_ref();
                return Ok(());
            }
        }
        // A silent stream must not sit on the connection's window.
        if !self.fin_sent {
            self.send.reserve_capacity(0);
        }
        Ok(())
    }

    /// How many bytes flow control lets pass now.
    fn poll_room(&mut self, cx: &mut Context<'_>, wanted: usize) -> Result<Option<usize>, Stop> {
        self.send.reserve_capacity(wanted);
        loop {
            let room = self.send.capacity();
            if room > 0 {
                return Ok(Some(room));
            }
            match self.send.poll_capacity(cx) {
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(error))) => return Err(stop(error)),
                Poll::Ready(None) => return Err(Stop::Lost("the stream is closed".into())),
                Poll::Pending => return Ok(None),
            }
        }
    }

    /// Hears of RST_STREAM also while nothing can be read or sent.
    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Result<(), Stop> {
        if self.fin_sent && self.fin_received {
            return Ok(());
        }
        match self.send.poll_reset(cx) {
            // The peer has said all and wants to hear no more (RFC 9113 8.1); if there was more to say, that is an abort.
            Poll::Ready(Ok(Reason::NO_ERROR)) if self.fin_sent => Ok(()),
            Poll::Ready(Ok(_)) => Err(Stop::PeerAborted),
            Poll::Ready(Err(error)) => Err(stop(error)),
            Poll::Pending => Ok(()),
        }
    }
}

fn lost(error: h2::Error) -> Stop {
    Stop::Lost(error.to_string())
}

fn stop(error: h2::Error) -> Stop {
    if error.is_reset() && error.is_remote() { Stop::PeerAborted } else { lost(error) }
}
