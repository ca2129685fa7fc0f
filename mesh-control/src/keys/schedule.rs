//! When to fetch what, and what came of it. Pure: time and chance are passed in.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use mesh_model::policy::request_authentication::KeyLocation;
use mesh_model::snapshot::Snapshot;

use super::fetch::Fetched;

/// Places that are fetched from, at most: whoever may write RequestAuthentications must not have this program ask without end.
pub const MOST: usize = 500;
/// Longest time for a fetch, where no rule says another (as Istio).
const TIMEOUT: Duration = Duration::from_secs(5);
/// The bounds of what rules may say.
const TIMEOUTS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));
/// After a first failure; it doubles with each more, up to [`SLOWEST`].
const AGAIN: Duration = Duration::from_secs(1);
const SLOWEST: Duration = Duration::from_secs(60);

/// How often.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Terms {
    /// From one fetch to the next; an issuer may ask for less by `Cache-Control: max-age`.
    pub refresh: Duration,
    /// The least that it may ask for.
    pub shortest: Duration,
}

impl Terms {
    /// With at most this from one fetch to the next; a minute at least, if it is more.
    pub fn new(refresh: Duration) -> Terms {
        Terms { refresh, shortest: refresh.min(Duration::from_secs(60)) }
    }
}

/// Keys as they were fetched, without what nobody needs of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeySet {
    /// JWKS.
    pub text: Arc<str>,
    /// Tells one content from another, whichever replica has it.
    pub version: Arc<str>,
    /// How many keys.
    pub keys: usize,
    /// When they were last seen to be so.
    pub fetched: SystemTime,
}

/// How it stands with one place.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Standing {
    /// What it gave last.
    pub set: Option<Arc<KeySet>>,
    /// Why the last attempt failed, if it did.
    pub failure: Option<Arc<str>>,
}

/// Every place that a RequestAuthentication names. `Default`: an attempt has not ended yet.
pub type Book = BTreeMap<KeyLocation, Standing>;

/// A fetch that is to begin.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Job {
    /// From where.
    pub location: KeyLocation,
    /// In which time.
    pub timeout: Duration,
}

#[derive(Debug)]
struct Entry {
    timeout: Duration,
    due: Instant,
    running: bool,
    failures: u32,
    standing: Standing,
}

/// The schedule.
#[derive(Debug)]
pub struct Schedule {
    terms: Terms,
    entries: BTreeMap<KeyLocation, Entry>,
    /// Those for which there is no room.
    left_out: Vec<KeyLocation>,
}

/// Where the keys of a snapshot's rules come from, and the longest time that a rule gives a fetch.
pub fn wanted(snapshot: &Snapshot) -> BTreeMap<KeyLocation, Duration> {
    let mut wanted: BTreeMap<KeyLocation, Duration> = BTreeMap::new();
    // Of one that is not understood no token is believed anyway.
    for rule in snapshot.authentications().filter(|policy| policy.refused.is_none()).flat_map(|policy| &policy.rules) {
        let Some(location) = rule.location() else { continue };
        let timeout = rule.timeout.unwrap_or(TIMEOUT).clamp(TIMEOUTS.0, TIMEOUTS.1);
        let longest = wanted.entry(location).or_insert(timeout);
        *longest = timeout.max(*longest);
    }
    wanted
}

impl Schedule {
    /// Of nothing yet.
    pub fn new(terms: Terms) -> Schedule {
        Schedule { terms, entries: BTreeMap::new(), left_out: Vec::new() }
    }

    /// Takes over what is wanted: what is new is due at once, what is no longer wanted is forgotten. If it is too much, those that were there
    /// before stay.
    pub fn follow(&mut self, wanted: &BTreeMap<KeyLocation, Duration>, now: Instant) {
        self.entries.retain(|location, _| wanted.contains_key(location));
        self.left_out.clear();
        for (location, timeout) in wanted {
            if let Some(entry) = self.entries.get_mut(location) {
                entry.timeout = *timeout;
            } else if self.entries.len() < MOST {
                let entry = Entry { timeout: *timeout, due: now, running: false, failures: 0, standing: Standing::default() };
                self.entries.insert(location.clone(), entry);
            } else {
                self.left_out.push(location.clone());
            }
        }
    }

    /// The fetches that are due, those that wait longest first, at most `room` of them. Each is to end in [`Schedule::done`].
    pub fn start(&mut self, now: Instant, room: usize) -> Vec<Job> {
        let mut due: Vec<(&KeyLocation, &mut Entry)> =
            self.entries.iter_mut().filter(|(_, entry)| !entry.running && entry.due <= now).collect();
        due.sort_by_key(|(_, entry)| entry.due);
        due.into_iter()
            .take(room)
            .map(|(location, entry)| {
                entry.running = true;
                Job { location: location.clone(), timeout: entry.timeout }
            })
            .collect()
    }

    /// When the next fetch is due, if none ends before.
    pub fn next(&self) -> Option<Instant> {
        self.entries.values().filter(|entry| !entry.running).map(|entry| entry.due).min()
    }

    /// What came of a fetch, which ended `now`, at `at` by the clock. `chance` is between 0 and 1: it spreads the fetches of replicas.
    /// Returns whether anything but the time is other than before.
    pub fn done(&mut self, location: &KeyLocation, result: Result<Fetched, Arc<str>>, now: Instant, at: SystemTime, chance: f64) -> bool {
        // Not wanted any more.
        let Some(entry) = self.entries.get_mut(location) else { return false };
        entry.running = false;
        let chance = chance.clamp(0.0, 1.0);
        let before = std::mem::take(&mut entry.standing);
        let version = |standing: &Standing| standing.set.as_ref().map(|set| set.version.clone());
        let had = version(&before);
        let wait = match result {
            Ok(fetched) => {
                entry.failures = 0;
                let Fetched { text, version, keys, max_age, .. } = fetched;
                entry.standing = Standing { set: Some(Arc::new(KeySet { text, version, keys, fetched: at })), failure: None };
                let asked = max_age.unwrap_or(self.terms.refresh).clamp(self.terms.shortest, self.terms.refresh);
                asked.mul_f64(0.9 + 0.1 * chance)
            }
            Err(failure) => {
                let wait = AGAIN.saturating_mul(1_u32.checked_shl(entry.failures).unwrap_or(u32::MAX)).min(SLOWEST);
                entry.failures = entry.failures.saturating_add(1);
                entry.standing = Standing { set: before.set, failure: Some(failure) };
                wait.mul_f64(0.5 + 0.5 * chance)
            }
        };
        entry.due = now + wait;
        before.failure != entry.standing.failure || had != version(&entry.standing)
    }

    /// How it stands with everything that is wanted.
    pub fn book(&self) -> Book {
        let mut book: Book = self.entries.iter().map(|(location, entry)| (location.clone(), entry.standing.clone())).collect();
        let full: Arc<str> =
            format!("mesh-control fetches keys from {MOST} places at most; name fewer of them in RequestAuthentications").into();
        book.extend(self.left_out.iter().map(|location| (location.clone(), Standing { set: None, failure: Some(full.clone()) })));
        book
    }
}

#[cfg(test)]
mod tests;
