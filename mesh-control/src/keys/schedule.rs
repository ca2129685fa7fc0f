//! When to fetch what, and what came of it. Pure: time and chance are passed in.
//!
//! Both the places that are fetched from and the fetches at once are bounded, and shared among the namespaces whose policies ask for them: what
//! one of them names, however much and however slow, must not keep the others from their keys.

use std::collections::{BTreeMap, BTreeSet};
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

/// How a place is wanted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Want {
    /// The longest time that a rule gives a fetch.
    pub timeout: Duration,
    /// The namespaces of the policies that name it; one at least.
    pub namespaces: BTreeSet<Arc<str>>,
}

#[derive(Debug)]
struct Entry {
    want: Want,
    due: Instant,
    /// The namespace on whose account it is being fetched.
    running: Option<Arc<str>>,
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

/// Where the keys of a snapshot's rules come from.
pub fn wanted(snapshot: &Snapshot) -> BTreeMap<KeyLocation, Want> {
    let mut wanted: BTreeMap<KeyLocation, Want> = BTreeMap::new();
    // Of one that is not understood no token is believed anyway.
    for policy in snapshot.authentications().filter(|policy| policy.refused.is_none()) {
        for rule in &policy.rules {
            let Some(location) = rule.location() else { continue };
            let timeout = rule.timeout.unwrap_or(TIMEOUT).clamp(TIMEOUTS.0, TIMEOUTS.1);
            let want = wanted.entry(location).or_insert_with(|| Want { timeout, namespaces: BTreeSet::new() });
            want.timeout = timeout.max(want.timeout);
            want.namespaces.insert(policy.name.namespace.clone());
        }
    }
    wanted
}

impl Schedule {
    /// Of nothing yet.
    pub fn new(terms: Terms) -> Schedule {
        Schedule { terms, entries: BTreeMap::new(), left_out: Vec::new() }
    }

    /// Takes over what is wanted: what is new is due at once, what is no longer wanted is forgotten. If it is too much, the namespaces take
    /// places in turns, each first those that it has: one that has no more than its share loses none, whoever comes.
    pub fn follow(&mut self, wanted: &BTreeMap<KeyLocation, Want>, now: Instant) {
        let chosen = self.choose(wanted);
        self.entries.retain(|location, _| chosen.contains(location));
        self.left_out.clear();
        for (location, want) in wanted {
            if let Some(entry) = self.entries.get_mut(location) {
                entry.want = want.clone();
            } else if chosen.contains(location) {
                let entry = Entry { want: want.clone(), due: now, running: None, failures: 0, standing: Standing::default() };
                self.entries.insert(location.clone(), entry);
            } else {
                self.left_out.push(location.clone());
            }
        }
    }

    /// The places that there is room for.
    fn choose<'a>(&self, wanted: &'a BTreeMap<KeyLocation, Want>) -> BTreeSet<&'a KeyLocation> {
        let mut by_namespace: BTreeMap<&Arc<str>, Vec<(bool, &KeyLocation)>> = BTreeMap::new();
        for (location, want) in wanted {
            for namespace in &want.namespaces {
                by_namespace.entry(namespace).or_default().push((!self.entries.contains_key(location), location));
            }
        }
        let mut turns: Vec<(usize, bool, &KeyLocation)> = Vec::new();
        for mut places in by_namespace.into_values() {
            places.sort();
            turns.extend(places.into_iter().enumerate().map(|(turn, (is_new, location))| (turn, is_new, location)));
        }
        turns.sort();
        let mut chosen = BTreeSet::new();
        for (_, _, location) in turns {
            if chosen.len() < MOST {
                chosen.insert(location);
            }
        }
        chosen
    }

    /// The fetches that are due, at most `room` of them: in turns those of the namespace that has the fewest under way, and of those the
    /// one that waits longest. No namespace has more under way than half of what the others leave, so that there is room for one that
    /// comes. Each is to end in [`Schedule::done`].
    pub fn start(&mut self, now: Instant, room: usize) -> Vec<Job> {
        let mut under_way: BTreeMap<Arc<str>, usize> = BTreeMap::new();
        for namespace in self.entries.values().filter_map(|entry| entry.running.as_ref()) {
            *under_way.entry(namespace.clone()).or_default() += 1;
        }
        let (mut jobs, mut left) = (Vec::new(), room);
        while left > 0 {
            let own = |namespace: &Arc<str>| under_way.get(namespace).copied().unwrap_or_default();
            let next = self.entries.iter_mut().filter(|(_, entry)| entry.running.is_none() && entry.due <= now);
            let next = next.filter_map(|(location, entry)| {
                let namespace = entry.want.namespaces.iter().min_by_key(|namespace| own(namespace))?.clone();
                let has = own(&namespace);
                // With its own, what the others leave.
                let most = (left.saturating_add(has) / 2).max(1);
                (has < most).then_some((has, namespace, location, entry))
            });
            // The first in order, of those that are equal.
            let Some((_, namespace, location, entry)) = next.min_by_key(|(has, _, _, entry)| (*has, entry.due)) else { break };
            jobs.push(Job { location: location.clone(), timeout: entry.want.timeout });
            entry.running = Some(namespace.clone());
            *under_way.entry(namespace).or_default() += 1;
            left -= 1;
        }
        jobs
    }

    /// Whether a fetch from there is under way that anybody waits for.
    pub fn is_running(&self, location: &KeyLocation) -> bool {
        self.entries.get(location).is_some_and(|entry| entry.running.is_some())
    }

    /// When the next fetch becomes due, if none ends before. What is due already waits for an end.
    pub fn next(&self, now: Instant) -> Option<Instant> {
        self.entries.values().filter(|entry| entry.running.is_none() && entry.due > now).map(|entry| entry.due).min()
    }

    /// What came of a fetch, which ended `now`, at `at` by the clock. `chance` is between 0 and 1: it spreads the fetches of replicas.
    /// Returns whether anything but the time is other than before.
    pub fn done(&mut self, location: &KeyLocation, result: Result<Fetched, Arc<str>>, now: Instant, at: SystemTime, chance: f64) -> bool {
        // Not wanted any more.
        let Some(entry) = self.entries.get_mut(location) else { return false };
        entry.running = None;
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
        let full: Arc<str> = format!(
            "mesh-control fetches keys from {MOST} places at most, each namespace's share of them; name fewer in its RequestAuthentications"
        )
        .into();
        book.extend(self.left_out.iter().map(|location| (location.clone(), Standing { set: None, failure: Some(full.clone()) })));
        book
    }
}

#[cfg(test)]
mod tests;
