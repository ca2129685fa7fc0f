//! How a relay ends: what the application and the peer are told, and whether the link can serve another stream.

use std::task::{Context, Poll, Waker};

use super::{ClientEnd, Opening, Prefix, Relay, Stop};
use crate::outcome::Side;
use crate::tunnel::error::TunnelError;
use crate::tunnel::fast::link::{Link, LinkError};
use crate::tunnel::settings::Settings;
use crate::tunnel::wire::Frame;
use crate::upstream::copy::How;

impl Relay<'_> {
    /// Ends an opened stream on either side.
    pub(super) fn end(self, stop: Stop) -> (How, Option<Link>) {
        let Relay { link, app, app_side, sent, peer_delivered, .. } = self;
        let peer_side = match app_side {
            Side::Client => Side::Server,
            Side::Server => Side::Client,
        };
        let how = match stop {
            Stop::Done => {
                // The peer may hold bytes of ours that its application does not take: they would hold up the next stream.
                let free = app_side == Side::Server || peer_delivered == sent;
                let link = (free && !link.going_away && link.is_between_streams()).then_some(link);
                return (How::Eof, link);
            }
            Stop::PeerAborted => How::Reset(peer_side),
            Stop::Lost(error) => lost(&error),
            Stop::AppReset => {
                abort(link);
                return (How::Reset(app_side), None);
            }
            Stop::Cancelled => {
                abort(link);
                How::Cancelled
            }
            Stop::Idle => {
                abort(link);
                How::Idle
            }
            Stop::Refused(_) | Stop::NotLookedAt | Stop::NoAnswer => How::Lost("the stream was never open".into()),
        };
        app.abort();
        (how, None)
    }

    /// Ends a stream of the dialling side, opened or not.
    pub(super) fn client_end(self, stop: Stop, reused: bool, settings: &Settings) -> ClientEnd {
        if self.opening != Opening::Awaited {
            let (how, link) = self.end(stop);
            return ClientEnd::Ended(how, link);
        }
        let Relay { mut link, app, app_eof, fin_queued, retained, .. } = self;
        let prefix = retained.map(|prefix| Prefix { eof: app_eof, ..prefix });
        let not_opened = |error, retry, link| ClientEnd::NotOpened { error, app, retry, link };
        match stop {
            Stop::Refused(refusal) => not_opened(TunnelError::Refused(refusal), None, close_refused(link, fin_queued)),
            Stop::NotLookedAt => not_opened(TunnelError::Lost("the peer's agent is going away".into()), prefix, None),
            // Whoever accepts on a reused link says so before anything is delivered, but its word may have been lost with the link. Only if
            // its kernel has not even acknowledged the request is it certain that nothing was delivered.
            Stop::Lost(error) if reused && !error.is_protocol() && link.channel().socket().has_unacknowledged() => {
                not_opened(error.into_tunnel_error(), prefix, None)
            }
            Stop::Lost(error) => not_opened(error.into_tunnel_error(), None, None),
            Stop::NoAnswer => {
                abort(link);
                not_opened(TunnelError::ResponseTimeout(settings.response_timeout), None, None)
            }
            Stop::PeerAborted => not_opened(TunnelError::Lost("the peer aborted it".into()), None, None),
            Stop::Done | Stop::AppReset | Stop::Cancelled | Stop::Idle => {
                abort(link);
                not_opened(TunnelError::Abandoned, None, None)
            }
        }
    }
}

pub(super) fn lost(error: &LinkError) -> How {
    How::Lost(error.to_string().into())
}

/// Ends the direction of a refused stream, if that can be written at once; the link can then serve another.
fn close_refused(mut link: Link, fin_queued: bool) -> Option<Link> {
    if link.going_away || (!fin_queued && !link.put(&Frame::Fin { delivered: 0 }).is_ok_and(|put| put)) {
        return None;
    }
    let mut cx = Context::from_waker(Waker::noop());
    matches!(link.poll_flush(&mut cx), Poll::Ready(Ok(()))).then_some(link)
}

/// Tells the peer that the stream was aborted, by a frame if it can be written at once, else by RST.
fn abort(mut link: Link) {
    let told = link.put(&Frame::Abort).is_ok_and(|put| put);
    let mut cx = Context::from_waker(Waker::noop());
    if !told || !matches!(link.poll_flush(&mut cx), Poll::Ready(Ok(()))) {
        link.abort();
    }
}
