//! Connections that are being opened and will serve many requests at once: whoever needs the same one waits for it instead of opening
//! another. A client that begins with a hundred streams would otherwise open a hundred connections, of which one is kept.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use tokio::sync::watch;

use super::{ConnectionKey, Lease};
use crate::outcome::Outcome;
use crate::upstream::bounds::Pending;
use crate::upstream::circuit::Overflow;

/// How it ended for the one who opens, as in [`Opening::done`]; `None` as long as it has not, or if that one was given up by its client.
type Told = Option<Result<bool, Outcome>>;

/// See the module.
#[derive(Default)]
pub struct Openings(RefCell<HashMap<ConnectionKey, watch::Receiver<Told>>>);

/// Whose turn it is to open a connection.
#[expect(clippy::large_enum_variant, reason = "it lives for a moment, once for a connection that is opened")]
pub enum Turn {
    /// The caller's.
    Mine(Opening),
    /// Another's, who has succeeded, or has been given up: look for its connection again.
    Over,
    /// Another's, with whom the server agreed on HTTP/1.1: there is nothing to share.
    Http1,
}

/// What there is for a request.
pub enum Ready {
    /// A connection.
    Taken(Lease),
    /// Nothing; the caller opens one, for which others may wait.
    Open(Option<Opening>),
    /// Nothing; the caller opens one for itself, in HTTP/1.1, as its server has just agreed on with another.
    OpenHttp1,
}

/// Why there is nothing.
#[derive(Clone, Debug)]
pub enum Unready {
    /// Too many wait already.
    Overflow,
    /// Another's attempt to open one failed, with this. It is for that other to say so of the server: there was one attempt.
    Failed(Outcome),
}

impl From<Overflow> for Unready {
    fn from(_: Overflow) -> Unready {
        Unready::Overflow
    }
}

/// The right to open a connection that others wait for. Dropping it lets the next of them.
pub struct Opening {
    openings: Rc<Openings>,
    key: ConnectionKey,
    told: watch::Sender<Told>,
}

impl Openings {
    /// Waits for the one who opens such a connection, or makes the caller that one.
    ///
    /// # Errors
    /// The other's attempt failed, or too many wait already.
    pub async fn turn(self: &Rc<Self>, key: &ConnectionKey, pending: &mut Pending) -> Result<Turn, Unready> {
        let others = self.0.borrow().get(key).cloned();
        let Some(mut waiting) = others else {
            let (told, receiver) = watch::channel(None);
            self.0.borrow_mut().insert(key.clone(), receiver);
            return Ok(Turn::Mine(Opening { openings: self.clone(), key: key.clone(), told }));
        };
        pending.begin()?;
        match waiting.wait_for(Option::is_some).await.ok().and_then(|told| told.clone()) {
            Some(Err(outcome)) => Err(Unready::Failed(outcome)),
            Some(Ok(false)) => Ok(Turn::Http1),
            Some(Ok(true)) | None => Ok(Turn::Over),
        }
    }
}

impl Opening {
    /// Tells the others how it ended: whether HTTP/2 was agreed on, if there is a connection.
    pub fn done(self, opened: Result<&Lease, &Outcome>) {
        self.tell(opened.map(Lease::http2).map_err(Outcome::clone));
    }

    fn tell(self, how: Result<bool, Outcome>) {
        self.told.send_replace(Some(how));
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.openings.0.borrow_mut().remove(&self.key);
    }
}

#[cfg(test)]
mod tests;
