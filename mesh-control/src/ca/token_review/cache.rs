//! Answers that are still good, and questions that are under way: a storm of one token asks once. Pure; time is passed in.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::{Outcome, TokenRefusal};
use crate::ca::authenticate::{Caller, Digest};

/// By the tokens' digests.
#[derive(Debug)]
pub(super) struct Cache {
    most: usize,
    known: HashMap<Digest, (Result<Caller, TokenRefusal>, Instant)>,
    asking: HashMap<Digest, watch::Receiver<Outcome>>,
}

/// How to come by an answer.
#[derive(Debug)]
pub(super) enum Begin {
    /// It is known.
    Known(Result<Caller, TokenRefusal>),
    /// Somebody asks already.
    Join(watch::Receiver<Outcome>),
    /// Ask, then [`Cache::done`], then tell the others.
    Ask(watch::Sender<Outcome>, watch::Receiver<Outcome>),
}

impl Cache {
    /// Remembers at most so many answers.
    pub(super) fn new(most: usize) -> Cache {
        Cache { most, known: HashMap::new(), asking: HashMap::new() }
    }

    pub(super) fn begin(&mut self, key: Digest, now: Instant) -> Begin {
        match self.known.get(&key) {
            Some((result, end)) if now < *end => return Begin::Known(result.clone()),
            Some(_) => drop(self.known.remove(&key)),
            None => {}
        }
        // Who panicked while asking left a channel that nobody will speak in.
        if let Some(asking) = self.asking.get(&key).filter(|asking| asking.has_changed().is_ok()) {
            return Begin::Join(asking.clone());
        }
        let (sender, receiver) = watch::channel(None);
        self.asking.insert(key, receiver.clone());
        Begin::Ask(sender, receiver)
    }

    /// Notes an answer, good for `keep`.
    pub(super) fn done(&mut self, key: Digest, result: Result<Caller, TokenRefusal>, now: Instant, keep: Duration) {
        self.asking.remove(&key);
        if keep.is_zero() || self.most == 0 {
            return;
        }
        if self.known.len() >= self.most {
            self.known.retain(|_, (_, end)| now < *end);
        }
        if self.known.len() >= self.most {
            // Refusals end first: a flood of them displaces itself.
            let soonest = self.known.iter().min_by_key(|(_, (_, end))| *end).map(|(key, _)| *key);
            if let Some(soonest) = soonest {
                self.known.remove(&soonest);
            }
        }
        self.known.insert(key, (result, now + keep));
    }
}
