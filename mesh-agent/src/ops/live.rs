//! The connections that live: for the admin endpoint, for counting their bytes while they are open, and for ending them.
//!
//! Sharded by number, so that workers seldom meet; an entry is put in and taken out in constant time.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::metrics::Series;
use super::record::Connection;
use crate::conn::Meter;
use crate::outcome::Outcome;

const SHARDS: usize = 16;

/// A connection that lives.
#[derive(Debug)]
pub struct LiveConnection {
    /// Its number, unique in this process.
    pub id: u64,
    /// What is known of it.
    pub connection: Connection,
    /// When it was opened.
    pub started: Instant,
    meter: Arc<Meter>,
    pub(super) series: Arc<Series>,
    counted: [AtomicU64; 2],
    closing: OnceLock<Outcome>,
    notify: Notify,
}

impl LiveConnection {
    /// The bytes it has carried.
    pub fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    /// Asks its owner to end it; the first to ask decides the outcome.
    pub fn close(&self, outcome: Outcome) {
        if self.closing.set(outcome).is_ok() {
            self.notify.notify_waiters();
        }
    }

    /// The outcome with which it is to end, if somebody asked.
    pub fn closing(&self) -> Option<&Outcome> {
        self.closing.get()
    }

    /// Returns once somebody asks to end it, with the outcome to record. To be raced against the copying.
    pub async fn closed(&self) -> Outcome {
        loop {
            // Made before the look, so that a call between the look and the wait is not missed.
            let notified = self.notify.notified();
            if let Some(outcome) = self.closing.get() {
                return outcome.clone();
            }
            notified.await;
        }
    }

    /// Adds to the series what was carried since the last time. Any number of callers at once count each byte once.
    pub(super) fn count_bytes(&self) {
        let (from_client, to_client) = self.meter.read();
        let [counted_from, counted_to] = &self.counted;
        let new = |counted: &AtomicU64, now: u64| now.saturating_sub(counted.fetch_max(now, Ordering::Relaxed));
        self.series.add_bytes(new(counted_from, from_client), new(counted_to, to_client));
    }
}

/// All connections of the agent that live.
#[derive(Debug, Default)]
pub struct LiveConnections {
    next: AtomicU64,
    shards: [Mutex<HashMap<u64, Arc<LiveConnection>>>; SHARDS],
}

impl LiveConnections {
    fn shard(&self, id: u64) -> &Mutex<HashMap<u64, Arc<LiveConnection>>> {
        let [first, ..] = &self.shards;
        self.shards.get(id as usize % SHARDS).unwrap_or(first)
    }

    pub(super) fn insert(&self, connection: Connection, meter: Arc<Meter>, series: Arc<Series>, started: Instant) -> Arc<LiveConnection> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let live = Arc::new(LiveConnection {
            id,
            connection,
            started,
            meter,
            series,
            counted: [const { AtomicU64::new(0) }; 2],
            closing: OnceLock::new(),
            notify: Notify::new(),
        });
        self.shard(id).lock().insert(id, live.clone());
        live
    }

    pub(super) fn remove(&self, id: u64) {
        self.shard(id).lock().remove(&id);
    }

    /// The one of that number.
    pub fn get(&self, id: u64) -> Option<Arc<LiveConnection>> {
        self.shard(id).lock().get(&id).cloned()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.shards.iter().all(|shard| shard.lock().is_empty())
    }

    /// Those that `wanted` picks, no more than `limit`, and how many it picked in all; the oldest first.
    pub fn select(&self, limit: usize, wanted: impl Fn(&LiveConnection) -> bool) -> (Vec<Arc<LiveConnection>>, usize) {
        let mut picked: Vec<_> =
            self.shards.iter().flat_map(|shard| shard.lock().values().filter(|live| wanted(live)).cloned().collect::<Vec<_>>()).collect();
        let total = picked.len();
        picked.sort_unstable_by_key(|live| live.id);
        picked.truncate(limit);
        (picked, total)
    }

    /// Asks the owners of those that `wanted` picks to end them; says how many were asked.
    pub fn close_where(&self, outcome: &Outcome, wanted: impl Fn(&LiveConnection) -> bool) -> usize {
        let (picked, total) = self.select(usize::MAX, wanted);
        for live in picked {
            live.close(outcome.clone());
        }
        total
    }

    /// Adds to the metrics what living connections carried since the last time.
    pub fn count_bytes(&self) {
        for shard in &self.shards {
            for live in shard.lock().values() {
                live.count_bytes();
            }
        }
    }
}

#[cfg(test)]
mod tests;
