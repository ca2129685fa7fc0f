//! An idle timeout that reads no clock while bytes pass.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// In how many parts the timeout is measured; it comes at most one part late.
const PARTS: u32 = 4;

/// Expires when nothing moved for the time given; never, if none was given.
#[derive(Debug)]
pub struct IdleTimer {
    part: Option<(Duration, Pin<Box<Sleep>>)>,
    quiet: u32,
    moved: bool,
}

impl IdleTimer {
    /// With the time allowed.
    pub fn new(idle: Option<Duration>) -> Self {
        let part = idle.map(|idle| (idle / PARTS, Box::pin(tokio::time::sleep(idle / PARTS))));
        IdleTimer { part, quiet: 0, moved: false }
    }

    /// Tells whether something has `moved` since the last call, and hears whether the time is over.
    pub fn poll_expired(mut self: Pin<&mut Self>, cx: &mut Context<'_>, moved: bool) -> Poll<()> {
        let this = &mut *self;
        this.moved |= moved;
        let Some((part, sleep)) = &mut this.part else { return Poll::Pending };
        while sleep.as_mut().poll(cx).is_ready() {
            this.quiet = if this.moved { 0 } else { this.quiet + 1 };
            this.moved = false;
            if this.quiet >= PARTS {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(Instant::now() + *part);
        }
        Poll::Pending
    }
}
