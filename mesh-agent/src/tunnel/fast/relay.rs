//! The relay of one stream between an application and a link: one future for both directions, and per message and hop one read and one
//! write.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io::IoSlice;
use std::ops::Range;
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Duration;

use super::link::{Link, LinkError, Received};
use crate::conn::Meter;
use crate::outcome::Side;
use crate::tunnel::error::{Refusal, TunnelError};
use crate::tunnel::settings::Settings;
use crate::tunnel::tls::record::MAX_CONTENT;
use crate::tunnel::wire::{self, Frame, Open};
use crate::upstream::copy::idle::IdleTimer;
use crate::upstream::copy::socket::Socket;
use crate::upstream::copy::{How, TURN};

mod ending;

use ending::lost;

/// How many pieces are written to the application at once.
const PIECES: usize = 16;

/// The application's bytes that the peer has perhaps not seen.
#[derive(Debug, Default)]
pub struct Prefix {
    /// From the first one on.
    pub bytes: Vec<u8>,
    /// The application has ended its direction behind them.
    pub eof: bool,
}

/// What became of a stream on the dialling side.
pub enum ClientEnd {
    /// It was opened and ended. The link, if it can serve another stream.
    Ended(How, Option<Link>),
    /// It was not opened.
    NotOpened {
        /// Why.
        error: TunnelError,
        /// The application's stream, untouched but for what was read.
        app: Socket,
        /// What was read, if the peer has certainly or very probably not looked at the request: it can be asked for elsewhere.
        retry: Option<Prefix>,
        /// The link, if it can serve another stream.
        link: Option<Link>,
    },
}

/// Why the relay stopped.
enum Stop {
    Done,
    AppReset,
    PeerAborted,
    Lost(LinkError),
    Refused(Refusal),
    /// The peer takes no streams any more, and did not look at this one.
    NotLookedAt,
    Cancelled,
    Idle,
    NoAnswer,
}

impl From<LinkError> for Stop {
    fn from(error: LinkError) -> Self {
        Stop::Lost(error)
    }
}

#[derive(PartialEq)]
enum Opening {
    /// Both sides know that the stream stands.
    Done,
    /// The dialling side has not been answered.
    Awaited,
    /// The serving side's ACCEPT waits for company.
    Held,
}

struct Relay<'a> {
    link: Link,
    app: Socket,
    app_side: Side,
    meter: &'a Meter,
    opening: Opening,
    /// Of the dialling side until it is answered.
    retained: Option<Prefix>,
    max_retained: usize,
    must_retain: bool,
    waited_a_turn: bool,
    /// Opened bytes that the application has not taken yet.
    pieces: VecDeque<Range<usize>>,
    delivered: u64,
    fin_received: bool,
    peer_delivered: u64,
    app_shut: bool,
    sent: u64,
    app_eof: bool,
    fin_queued: bool,
    moved: bool,
}

/// The dialling side: asks for the stream together with whatever the application has said already, and relays it.
/// `reused` tells that the link has served a stream before and was quiet for a while: the peer may be gone without our knowledge.
#[expect(clippy::too_many_arguments, reason = "one call site; each is a thing of its own")]
pub async fn client(
    mut link: Link,
    app: Socket,
    mut open: Open,
    prefix: Prefix,
    reused: bool,
    meter: &Meter,
    cancel: impl Future<Output = ()>,
    settings: &Settings,
) -> ClientEnd {
    open.accept_at_once = reused;
    if let Err(error) = put_opening(&mut link, open, &prefix).await {
        return ClientEnd::NotOpened { error: error.into_tunnel_error(), app, retry: reused.then_some(prefix), link: None };
    }
    let mut relay = Relay::new(link, app, Side::Client, meter);
    relay.sent = prefix.bytes.len() as u64;
    relay.app_eof = prefix.eof;
    relay.waited_a_turn = !prefix.bytes.is_empty();
    relay.opening = Opening::Awaited;
    relay.max_retained = settings.max_retained;
    relay.must_retain = reused;
    relay.retained = Some(prefix);
    let stop = relay.run(cancel, settings.response_timeout, settings.stream_idle_timeout).await;
    relay.client_end(stop, reused, settings)
}

/// Queues OPEN and what is known to follow it. Writes only what does not fit a buffer.
async fn put_opening(link: &mut Link, open: Open, prefix: &Prefix) -> Result<(), LinkError> {
    link.put(&Frame::Open(open))?;
    for piece in prefix.bytes.chunks(MAX_CONTENT / 2) {
        for bytes in [&wire::data_header(piece.len())[..], piece] {
            if !link.channel().put(bytes)? {
                poll_fn(|cx| link.poll_flush(cx)).await?;
                link.channel().put(bytes)?;
            }
        }
    }
    Ok(())
}

/// The serving side: says that the stream stands, and relays it. The link is returned if it can serve another stream.
pub async fn server(
    mut link: Link,
    app: Socket,
    baggage: Option<String>,
    accept_at_once: bool,
    meter: &Meter,
    cancel: impl Future<Output = ()>,
    settings: &Settings,
) -> (How, Option<Link>) {
    if let Err(error) = link.put(&Frame::Accept { baggage }) {
        app.abort();
        return (lost(&error), None);
    }
    if accept_at_once && let Err(error) = poll_fn(|cx| link.poll_flush(cx)).await {
        app.abort();
        return (lost(&error), None);
    }
    let mut relay = Relay::new(link, app, Side::Server, meter);
    relay.opening = if accept_at_once { Opening::Done } else { Opening::Held };
    let stop = relay.run(cancel, settings.accept_delay, settings.stream_idle_timeout).await;
    relay.end(stop)
}

impl<'a> Relay<'a> {
    fn new(link: Link, app: Socket, app_side: Side, meter: &'a Meter) -> Self {
        Relay {
            link,
            app,
            app_side,
            meter,
            opening: Opening::Done,
            retained: None,
            max_retained: 0,
            must_retain: false,
            waited_a_turn: true,
            pieces: VecDeque::new(),
            delivered: 0,
            fin_received: false,
            peer_delivered: 0,
            app_shut: false,
            sent: 0,
            app_eof: false,
            fin_queued: false,
            moved: false,
        }
    }

    /// `opening_limit` bounds the time until the stream is open on this side: for the answer of the peer, or for sending ours.
    async fn run(&mut self, cancel: impl Future<Output = ()>, opening_limit: Duration, idle: Option<Duration>) -> Stop {
        let mut cancel = pin!(cancel);
        let mut idle = pin!(IdleTimer::new(idle));
        // Costs nothing unless it is polled.
        let mut opening = pin!(tokio::time::sleep(opening_limit));
        poll_fn(|cx| {
            if cancel.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Stop::Cancelled);
            }
            if let Err(stop) = self.poll_inbound(cx).and_then(|()| self.poll_outbound(cx)) {
                return Poll::Ready(stop);
            }
            if self.is_done() {
                return Poll::Ready(Stop::Done);
            }
            if self.opening != Opening::Done && opening.as_mut().poll(cx).is_ready() {
                if self.opening == Opening::Awaited {
                    return Poll::Ready(Stop::NoAnswer);
                }
                self.opening = Opening::Done;
                if let Err(stop) = self.poll_outbound(cx) {
                    return Poll::Ready(stop);
                }
            }
            if idle.as_mut().poll_expired(cx, std::mem::take(&mut self.moved)).is_ready() {
                return Poll::Ready(Stop::Idle);
            }
            Poll::Pending
        })
        .await
    }

    fn is_done(&self) -> bool {
        self.fin_received && self.app_shut && self.fin_queued && !self.link.has_output()
    }

    /// From the link to the application.
    fn poll_inbound(&mut self, cx: &mut Context<'_>) -> Result<(), Stop> {
        let mut turn = 0;
        loop {
            while !self.pieces.is_empty() {
                match self.poll_deliver(cx) {
                    Poll::Ready(Ok(n)) => turn += n,
                    Poll::Ready(Err(_)) => return Err(Stop::AppReset),
                    // Nobody reads the link while the application is stalled: the peer's abort would go unnoticed.
                    Poll::Pending => {
                        return match self.link.channel().socket().poll_aborted(cx) {
                            Poll::Ready(error) => Err(Stop::Lost(LinkError::Channel(error.into()))),
                            Poll::Pending => Ok(()),
                        };
                    }
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
            self.gather()?;
            if self.pieces.is_empty() && !self.fin_received {
                match self.link.channel().poll_fill(cx) {
                    Poll::Ready(result) => result.map_err(LinkError::from)?,
                    Poll::Pending => return Ok(()),
                }
            }
        }
    }

    /// Takes what has been read apart, as far as one write carries.
    fn gather(&mut self) -> Result<(), Stop> {
        while self.pieces.len() < PIECES && !self.fin_received {
            match self.link.next_received()? {
                Some(Received::Data(place)) if self.opening != Opening::Awaited => self.pieces.push_back(place),
                Some(Received::Data(_)) => return Err(LinkError::Unexpected("data before the stream was accepted").into()),
                Some(Received::Frame(frame)) => self.take_frame(frame)?,
                None => break,
            }
        }
        Ok(())
    }

    fn take_frame(&mut self, frame: Frame) -> Result<(), Stop> {
        match frame {
            Frame::Fin { delivered } if self.opening != Opening::Awaited => {
                self.fin_received = true;
                self.peer_delivered = delivered;
            }
            Frame::Accept { .. } if self.opening == Opening::Awaited => {
                self.opening = Opening::Done;
                self.retained = None;
            }
            Frame::Refuse { status, reason } if self.opening == Opening::Awaited => {
                return Err(Stop::Refused(Refusal::new(status, reason)));
            }
            Frame::Abort => return Err(Stop::PeerAborted),
            Frame::GoAway => {
                self.link.going_away = true;
                if self.opening == Opening::Awaited {
                    return Err(Stop::NotLookedAt);
                }
            }
            // Without room the question goes unanswered; the bytes under way answer it as well.
            Frame::Ping(data) => {
                self.link.put(&Frame::Pong(data))?;
            }
            Frame::Pong(_) => {}
            Frame::Ready | Frame::Open(_) | Frame::Accept { .. } | Frame::Refuse { .. } | Frame::Fin { .. } => {
                return Err(LinkError::Unexpected("a frame that has no place in a stream").into());
            }
        }
        Ok(())
    }

    fn poll_deliver(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<usize>> {
        let mut slices: [IoSlice<'_>; PIECES] = std::array::from_fn(|_| IoSlice::new(&[]));
        let mut count = 0;
        for (slice, place) in slices.iter_mut().zip(&self.pieces) {
            *slice = IoSlice::new(self.link.bytes(place.clone()));
            count += 1;
        }
        let polled = self.app.poll_send(cx, slices.get(..count).unwrap_or_default());
        if let Poll::Ready(Ok(n)) = polled {
            let mut left = n;
            while let Some(place) = self.pieces.front_mut() {
                if left < place.len() {
                    place.start += left;
                    break;
                }
                left -= place.len();
                self.pieces.pop_front();
            }
            self.delivered += n as u64;
            self.moved = true;
            match self.app_side {
                Side::Client => self.meter.add_to_client(n as u64),
                Side::Server => self.meter.add_from_client(n as u64),
            }
        }
        polled
    }

    /// From the application to the link.
    fn poll_outbound(&mut self, cx: &mut Context<'_>) -> Result<(), Stop> {
        let mut turn = 0;
        loop {
            while !self.app_eof && self.link.channel().has_room() {
                let Some(limit) = self.read_limit()? else { break };
                match self.link.poll_put_from(cx, &mut self.app, limit) {
                    Poll::Ready(Ok(Ok(0))) => self.app_eof = true,
                    Poll::Ready(Ok(Ok(n))) => {
                        turn += n;
                        self.count_sent(n);
                    }
                    Poll::Ready(Ok(Err(error))) => return Err(error.into()),
                    Poll::Ready(Err(_)) => return Err(Stop::AppReset),
                    Poll::Pending => break,
                }
            }
            if self.app_eof && !self.fin_queued {
                self.fin_queued = self.link.put(&Frame::Fin { delivered: self.delivered })?;
            }
            if !self.link.channel().has_output() || self.should_wait(cx) {
                return Ok(());
            }
            match self.link.poll_flush(cx) {
                Poll::Ready(result) => result?,
                // Nobody reads from the application while the peer is stalled: its abort would go unnoticed.
                Poll::Pending if !self.app_eof => {
                    return match self.app.poll_aborted(cx) {
                        Poll::Ready(_) => Err(Stop::AppReset),
                        Poll::Pending => Ok(()),
                    };
                }
                Poll::Pending => return Ok(()),
            }
            if turn >= TURN {
                cx.waker().wake_by_ref();
                return Ok(());
            }
        }
    }

    /// How much may be read from the application at once; `None` if nothing may until the peer has answered.
    fn read_limit(&mut self) -> Result<Option<usize>, Stop> {
        let Some(retained) = &self.retained else { return Ok(Some(usize::MAX)) };
        if retained.bytes.len() >= self.max_retained {
            if self.must_retain {
                return Ok(None);
            }
            self.retained = None;
            return Ok(Some(usize::MAX));
        }
        // So little that the record stays unsealed, to be copied from.
        let mut fits = MAX_CONTENT.saturating_sub(self.link.channel().unsealed().len() + wire::HEADER + 1);
        if fits < MAX_CONTENT / 8 {
            self.link.channel().seal().map_err(LinkError::from)?;
            fits = MAX_CONTENT - wire::HEADER - 1;
        }
        Ok(Some(fits.min(self.max_retained - retained.bytes.len())))
    }

    fn count_sent(&mut self, n: usize) {
        self.sent += n as u64;
        self.moved = true;
        match self.app_side {
            Side::Client => self.meter.add_from_client(n as u64),
            Side::Server => self.meter.add_to_client(n as u64),
        }
        if self.opening == Opening::Held {
            self.opening = Opening::Done;
        }
        if let Some(retained) = &mut self.retained {
            let unsealed = self.link.channel().unsealed();
            match unsealed.len().checked_sub(n).and_then(|at| unsealed.get(at..)) {
                Some(copied) => retained.bytes.extend_from_slice(copied),
                None => self.retained = None,
            }
        }
    }

    /// Whether what is queued should wait for more: OPEN for one turn of the worker, so that bytes which are about to arrive travel with
    /// it; ACCEPT for the application's first bytes.
    fn should_wait(&mut self, cx: &mut Context<'_>) -> bool {
        if self.opening == Opening::Held && !self.fin_queued {
            return true;
        }
        if !self.waited_a_turn {
            self.waited_a_turn = true;
            if self.sent == 0 && !self.fin_queued {
                // Comes back after the worker has looked for events.
                let _ = pin!(tokio::task::yield_now()).poll(cx);
                return true;
            }
        }
        false
    }
}
