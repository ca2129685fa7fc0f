//! Drain as tokens: a watch says "start", and a channel whose last sender is dropped says "done".
//! Whoever has work that should be finished holds a [`DrainWatch`]; new work is refused by those who see that it started.

use std::time::Duration;

use tokio::sync::{mpsc, watch};

/// Starts the drain and waits for its end. One a process.
pub struct DrainTrigger {
    start: watch::Sender<Phase>,
    held: mpsc::Sender<()>,
    done: mpsc::Receiver<()>,
}

/// Held by a task or connection; the drain lasts until all are dropped.
#[derive(Clone)]
pub struct DrainWatch {
    start: watch::Receiver<Phase>,
    _held: mpsc::Sender<()>,
}

/// How far the drain is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Phase {
    /// Business as usual.
    Serving,
    /// No new work; what runs may finish.
    Draining,
    /// The deadline has passed: what runs must end.
    Ending,
}

/// How a drain ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Drained {
    /// Everybody finished in time.
    Finished,
    /// Those left were told to end, and did.
    Ended,
    /// Somebody still holds on, even so.
    Abandoned,
}

/// A drain and the first of its watches.
pub fn new() -> (DrainTrigger, DrainWatch) {
    let (start, watch) = watch::channel(Phase::Serving);
    let (held, done) = mpsc::channel(1);
    (DrainTrigger { start, held: held.clone(), done }, DrainWatch { start: watch, _held: held })
}

impl DrainTrigger {
    /// Another watch.
    pub fn watch(&self) -> DrainWatch {
        DrainWatch { start: self.start.subscribe(), _held: self.held.clone() }
    }

    /// Tells everybody to finish, waits up to `deadline`, then tells everybody to end and waits up to `grace` more.
    pub async fn drain(self, deadline: Duration, grace: Duration) -> Drained {
        let DrainTrigger { start, held, mut done } = self;
        drop(held);
        start.send_replace(Phase::Draining);
        // Nobody sends: the channel only ever says that the last sender is gone.
        if tokio::time::timeout(deadline, done.recv()).await.is_ok() {
            return Drained::Finished;
        }
        start.send_replace(Phase::Ending);
        match tokio::time::timeout(grace, done.recv()).await {
            Ok(_) => Drained::Ended,
            Err(_) => Drained::Abandoned,
        }
    }
}

impl DrainWatch {
    /// Where the drain is.
    pub fn phase(&self) -> Phase {
        *self.start.borrow()
    }

    /// Returns once new work is no longer to be taken; also if the trigger is gone.
    pub async fn draining(&mut self) {
        self.reached(Phase::Draining).await;
    }

    /// Returns once what runs must end; also if the trigger is gone.
    pub async fn ending(&mut self) {
        self.reached(Phase::Ending).await;
    }

    async fn reached(&mut self, phase: Phase) {
        // An error means that the trigger was dropped without draining: the process ends, and so should we.
        let _ = self.start.wait_for(|now| *now >= phase).await;
    }
}

#[cfg(test)]
mod tests;
