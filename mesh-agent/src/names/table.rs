//! Which name is asked for when, and what it stands for meanwhile. Pure.
//!
//! A name is asked for again when its answer's time to live is over, within bounds. That a name has no address is an answer; that nobody
//! answers is none: then what is known stays in force, and it is asked again after pauses that grow.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Known;

/// An answer counts for so long at least, however short its time to live is.
pub const SHORTEST: Duration = Duration::from_secs(5);
/// And for so long at most.
pub const LONGEST: Duration = Duration::from_secs(300);
/// The first pause after a failure; it doubles up to [`SLOWEST`].
pub const RETRY: Duration = Duration::from_secs(1);
/// The longest pause between failures.
pub const SLOWEST: Duration = Duration::from_secs(30);

/// What came of a lookup.
#[derive(Clone, PartialEq, Debug)]
pub enum Reply {
    /// The addresses, maybe none, and how long that holds.
    Addresses(Vec<IpAddr>, Duration),
    /// Nobody could say.
    Failed,
}

struct Entry {
    /// When to ask, if it is not being asked for.
    due: Option<Instant>,
    failures: u32,
    known: Option<Known>,
}

/// The names.
#[derive(Default)]
pub struct Table(HashMap<Arc<str>, Entry>);

impl Table {
    /// Takes names on, to be asked for at once, and lets go of the others.
    pub fn want(&mut self, now: Instant, names: &BTreeSet<Arc<str>>) {
        self.0.retain(|name, _| names.contains(name));
        for name in names {
            self.0.entry(name.clone()).or_insert(Entry { due: Some(now), failures: 0, known: None });
        }
    }

    /// Up to so many names that are to be asked for now, those that wait the longest first. Each is to be told of in [`Table::heard`].
    pub fn due(&mut self, now: Instant, most: usize) -> Vec<Arc<str>> {
        let mut due: Vec<(Instant, Arc<str>)> =
            self.0.iter().filter_map(|(name, entry)| Some((entry.due.filter(|due| *due <= now)?, name.clone()))).collect();
        due.sort();
        due.truncate(most);
        for (_, name) in &due {
            if let Some(entry) = self.0.get_mut(name) {
                entry.due = None;
            }
        }
        due.into_iter().map(|(_, name)| name).collect()
    }

    /// When the next name is to be asked for.
    pub fn next(&self) -> Option<Instant> {
        self.0.values().filter_map(|entry| entry.due).min()
    }

    /// Takes a reply down. That of a name that is not wanted any more is not heeded.
    pub fn heard(&mut self, now: Instant, name: &str, reply: Reply) {
        let Some(entry) = self.0.get_mut(name) else { return };
        match reply {
            Reply::Addresses(mut addresses, ttl) => {
                let mut seen = BTreeSet::new();
                addresses.retain(|ip| is_elsewhere(*ip) && seen.insert(*ip));
                entry.failures = 0;
                entry.due = Some(now + ttl.clamp(SHORTEST, LONGEST));
                entry.known = Some(Known { addresses: addresses.into(), since: now });
            }
            Reply::Failed => {
                let pause = RETRY.saturating_mul(1 << entry.failures.min(5)).min(SLOWEST);
                entry.failures = entry.failures.saturating_add(1);
                entry.due = Some(now + pause);
            }
        }
    }

    /// What the names stand for.
    pub fn known(&self) -> HashMap<Arc<str>, Known> {
        self.0.iter().filter_map(|(name, entry)| Some((name.clone(), entry.known.clone()?))).collect()
    }
}

/// Whether an address can be a host's elsewhere: whoever has a name must not thereby lead a client to itself.
fn is_elsewhere(ip: IpAddr) -> bool {
    !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast())
}

#[cfg(test)]
mod tests;
