//! Which name is asked for when, and what it stands for meanwhile. Pure.
//!
//! A name is asked for again when its answer's time to live is over, within bounds. That a name has no address is an answer; that nobody
//! answers is none: then what is known stays in force, and it is asked again after pauses that grow.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv6Addr};
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
    /// The addresses of one family, maybe none. Of the other nobody could say.
    Half {
        /// Of the family that was answered for.
        addresses: Vec<IpAddr>,
        /// The other.
        failed: Family,
    },
    /// Nobody could say.
    Failed,
}

/// Which addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    /// Those of IPv4.
    V4,
    /// Those of IPv6.
    V6,
}

struct Entry {
    /// When to ask, if it is not being asked for.
    due: Option<Instant>,
    failures: u32,
    known: Option<Known>,
}

impl Entry {
    fn failed(&mut self, now: Instant) {
        let pause = RETRY.saturating_mul(1 << self.failures.min(5)).min(SLOWEST);
        self.failures = self.failures.saturating_add(1);
        self.due = Some(now + pause);
    }
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
        let known = |mut addresses: Vec<IpAddr>| {
            let mut seen = BTreeSet::new();
            addresses.retain(|ip| is_elsewhere(*ip) && seen.insert(*ip));
            Some(Known { addresses: addresses.into(), since: now })
        };
        match reply {
            Reply::Addresses(addresses, ttl) => {
                entry.failures = 0;
                entry.due = Some(now + ttl.clamp(SHORTEST, LONGEST));
                entry.known = known(addresses);
            }
            Reply::Half { mut addresses, failed } => {
                let before = entry.known.iter().flat_map(|known| known.addresses.iter().copied());
                addresses.extend(before.filter(|ip| ip.is_ipv4() == (failed == Family::V4)));
                // That there is nothing is not known before both have said so.
                if entry.known.is_some() || !addresses.is_empty() {
                    entry.known = known(addresses);
                }
                entry.failed(now);
            }
            Reply::Failed => entry.failed(now),
        }
    }

    /// The names that have been asked for, whatever came of it.
    pub fn asked(&self) -> HashSet<Arc<str>> {
        self.0.iter().filter(|(_, entry)| entry.known.is_some() || entry.failures > 0).map(|(name, _)| name.clone()).collect()
    }

    /// What the names stand for.
    pub fn known(&self) -> HashMap<Arc<str>, Known> {
        self.0.iter().filter_map(|(name, entry)| Some((name.clone(), entry.known.clone()?))).collect()
    }
}

/// fd00:ec2::254, of Amazon's machines.
const METADATA: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// Whether an address can be a host's elsewhere: whoever has a name must not thereby lead a client to itself, or to what its node alone is told.
fn is_elsewhere(ip: IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        // Beside the range, where a cloud's metadata are had.
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip == METADATA,
    };
    !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || link_local)
}

#[cfg(test)]
mod tests;
