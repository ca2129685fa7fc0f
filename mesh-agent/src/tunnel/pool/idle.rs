//! A connection of our own protocol that waits for its next stream.

use std::task::{Context, Poll, Waker};
use std::time::Instant;

use super::Terms;
use crate::tunnel::counters::TunnelCounters;
use crate::tunnel::fast::link::{Link, Received};
use crate::tunnel::settings::Settings;
use crate::tunnel::wire::Frame;

/// An idle connection. Nobody waits on its socket: it is looked at when it is wanted and by the sweep.
pub struct Idle {
    /// The connection.
    pub link: Link,
    /// What must hold for it to be used again.
    pub terms: Terms,
    /// When the peer was heard of last.
    pub heard: Instant,
    since: Instant,
    asked: Option<Instant>,
}

impl Idle {
    /// Idle from `now` on, and heard of just now.
    pub fn new(link: Link, terms: Terms, now: Instant) -> Self {
        Idle { link, terms, heard: now, since: now, asked: None }
    }

    /// Takes note of what has come in. False if the connection cannot be used any more.
    pub fn hear(&mut self, now: Instant) -> bool {
        loop {
            match self.link.next_received() {
                Ok(Some(Received::Frame(Frame::Pong(_)))) => {
                    self.heard = now;
                    self.asked = None;
                }
                Ok(Some(_)) | Err(_) => return false,
                Ok(None) => match self.link.channel().try_fill() {
                    Ok(true) => {}
                    Ok(false) => return true,
                    Err(_) => return false,
                },
            }
        }
    }

    /// Asks whether the peer lives when it has been quiet. False if the connection should be closed.
    pub fn look_after(&mut self, now: Instant, settings: &Settings, counters: &TunnelCounters) -> bool {
        if !self.hear(now) || now.duration_since(self.since) >= settings.pool_idle_timeout {
            return false;
        }
        match self.asked {
            Some(asked) if now.duration_since(asked) >= settings.ping_timeout => {
                counters.client.pings_lost.add();
                false
            }
            None if now.duration_since(self.heard) >= settings.ping_interval => {
                self.asked = Some(now);
                let asked = self.link.put(&Frame::Ping([0; 8])).is_ok_and(|put| put);
                let mut cx = Context::from_waker(Waker::noop());
                asked && matches!(self.link.poll_flush(&mut cx), Poll::Ready(Ok(())))
            }
            _ => true,
        }
    }
}
