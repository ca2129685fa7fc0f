//! Connections that are being opened and will serve many requests at once: whoever needs the same one waits for it instead of opening
//! another. A client that begins with a hundred streams would otherwise open a hundred connections, of which one is kept.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use tokio::sync::watch;

use super::ConnectionKey;
use crate::outcome::Outcome;

/// How it ended for the one who opens; `None` as long as it has not, or if that one was given up by its client.
type Told = Option<Result<(), Outcome>>;

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
    /// The other's attempt failed: with that.
    pub async fn turn(self: &Rc<Self>, key: &ConnectionKey) -> Result<Turn, Outcome> {
        let others = self.0.borrow().get(key).cloned();
        let Some(mut waiting) = others else {
            let (told, receiver) = watch::channel(None);
            self.0.borrow_mut().insert(key.clone(), receiver);
            return Ok(Turn::Mine(Opening { openings: self.clone(), key: key.clone(), told }));
        };
        match waiting.wait_for(Option::is_some).await.ok().and_then(|told| told.clone()) {
            Some(Err(outcome)) => Err(outcome),
            Some(Ok(())) | None => Ok(Turn::Over),
        }
    }
}

impl Opening {
    /// Tells the others how it ended.
    pub fn done(self, how: Result<(), Outcome>) {
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
