//! Keeps the book: follows the configuration, runs the fetches that are due, and says what came of them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use mesh_model::policy::request_authentication::KeyLocation;
use mesh_model::snapshot::Snapshot;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use super::fetch::{FetchError, Fetched, Fetcher};
use super::schedule::{Book, Schedule, Terms, wanted};
use crate::metrics::Metrics;

/// Fetches at once.
const ROOM: usize = 16;
/// Longest text of a failure, in characters.
const WORDS: usize = 600;

/// The upkeep of the book.
pub struct Upkeep {
    schedule: Schedule,
    fetcher: Arc<Fetcher>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    book: watch::Sender<Arc<Book>>,
    metrics: Arc<Metrics>,
}

type Ended = (KeyLocation, Result<Fetched, FetchError>);

impl Upkeep {
    /// Of the keys that the snapshots want.
    pub fn new(
        terms: Terms,
        fetcher: Fetcher,
        snapshots: watch::Receiver<Arc<Snapshot>>,
        book: watch::Sender<Arc<Book>>,
        metrics: Arc<Metrics>,
    ) -> Upkeep {
        Upkeep { schedule: Schedule::new(terms), fetcher: Arc::new(fetcher), snapshots, book, metrics }
    }

    /// Runs as long as the process.
    pub async fn run(mut self) -> (&'static str, Result<(), String>) {
        let mut fetches: JoinSet<Ended> = JoinSet::new();
        let mut running: HashMap<KeyLocation, AbortHandle> = HashMap::new();
        let mut fresh = true;
        loop {
            let now = Instant::now();
            if std::mem::take(&mut fresh) {
                let snapshot = self.snapshots.borrow_and_update().clone();
                self.schedule.follow(&wanted(&snapshot), now);
                // Whoever renames what is slow would have more under way than may be.
                running.retain(|location, fetch| {
                    let is_wanted = self.schedule.is_running(location);
                    if !is_wanted {
                        fetch.abort();
                    }
                    is_wanted
                });
                self.publish();
            }
            for job in self.schedule.start(now, ROOM.saturating_sub(fetches.len())) {
                let (fetcher, location) = (self.fetcher.clone(), job.location.clone());
                let fetch = fetches.spawn(async move {
                    let result = fetcher.fetch(&job.location, job.timeout).await;
                    (job.location, result)
                });
                running.insert(location, fetch);
            }
            // With no room, what is due waits for an end.
            let next = self.schedule.next(now).filter(|_| fetches.len() < ROOM);
            let due = async {
                match next {
                    Some(next) => tokio::time::sleep_until(next.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = self.snapshots.changed() => match changed {
                    Ok(()) => fresh = true,
                    Err(_) => return ("the keys of issuers", Err("nobody follows the configuration".into())),
                },
                Some(ended) = fetches.join_next() => match ended {
                    Ok(ended) => {
                        running.remove(&ended.0);
                        self.take(ended);
                    }
                    Err(error) if error.is_cancelled() => {}
                    Err(error) => return ("the keys of issuers", Err(error.to_string())),
                },
                () = due => {}
            }
        }
    }

    fn take(&mut self, (location, result): Ended) {
        self.metrics.jwks_fetched(result.as_ref().map_or_else(FetchError::result, |_| "ok"));
        let skipped = result.as_ref().map(|fetched| fetched.skipped.join("; ")).unwrap_or_default();
        let result = result.map_err(|error| error.to_string().chars().take(WORDS).collect::<String>().into());
        let failed: Option<Arc<str>> = result.as_ref().err().cloned();
        let changed = self.schedule.done(&location, result, Instant::now(), SystemTime::now(), rand::random());
        self.publish();
        if !changed {
            return;
        }
        let book = self.book.borrow();
        let set = book.get(&location).and_then(|standing| standing.set.clone());
        match (failed, set) {
            (None, Some(set)) => {
                tracing::info!(source = %location, keys = set.keys, version = &*set.version, left_out = skipped, "keys of an issuer fetched")
            }
            (Some(error), Some(set)) => {
                tracing::warn!(source = %location, %error, keys = set.keys, "an issuer's keys cannot be fetched anew: those from before stay in force")
            }
            (Some(error), None) => {
                tracing::warn!(source = %location, %error, "an issuer's keys cannot be fetched: no token of it is believed")
            }
            (None, None) => {}
        }
    }

    fn publish(&self) {
        let now = self.schedule.book();
        self.book.send_if_modified(|book| {
            let differs = **book != now;
            if differs {
                *book = Arc::new(now);
            }
            differs
        });
    }
}

#[cfg(test)]
mod tests;
