//! How much of the agent one pod may have, so that none starves the node's others: its descriptors are all theirs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Descriptors that a pod may have for each connection that it may have: one to its application, and up to [`TUNNELS`].
const DESCRIPTORS: u64 = 1 + TUNNELS as u64;
/// Tunnels to a pod for each connection that it may have. Those that carry nothing wait in their dialler's pool for the next connection.
const TUNNELS: u32 = 3;
/// Of [`TUNNELS`], those beyond which each new one lets an old one go.
const KEPT_TUNNELS: u32 = 2;
/// The share of the descriptors that one pod may have by default: a quarter.
const SHARE: u64 = 4;

/// Every pod costs sockets, every connection two: the soft limit of a shell (1024) is not enough. Returns what is in force, `None` for no
/// limit.
pub fn raise_descriptor_limit() -> Option<u64> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "cannot raise the limit of open files to the hard limit");
    }
    getrlimit(Resource::Nofile).current
}

/// Connections that one pod may have by default, where the process may have so many descriptors (`None`: any number).
pub fn default_limit(descriptors: Option<u64>) -> u32 {
    let connections = descriptors.unwrap_or(u64::MAX) / DESCRIPTORS / SHARE;
    u32::try_from(connections).unwrap_or(u32::MAX).max(1)
}

/// Tunnels to a pod that may have so many connections; 0 stands for any number in both.
pub fn tunnels(connections: u32) -> Arc<Budget> {
    Budget::with_crowd(connections.saturating_mul(TUNNELS), connections.saturating_mul(KEPT_TUNNELS))
}

/// Places for one kind of thing of one pod, shared by all workers.
#[derive(Debug)]
pub struct Budget {
    /// 0: any number.
    limit: usize,
    /// More than this is a crowd; 0: none is.
    crowd: usize,
    used: AtomicUsize,
    full: AtomicBool,
}

/// No place is left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full {
    /// It is the first refusal since there was plenty: worth a line of the log.
    pub first: bool,
}

/// One of the places, given back when it is dropped.
#[derive(Debug)]
#[must_use = "dropping it gives the place back"]
pub struct Place(Arc<Budget>);

impl Budget {
    /// With so many places; 0 for any number.
    pub fn new(limit: u32) -> Arc<Self> {
        Self::with_crowd(limit, limit)
    }

    fn with_crowd(limit: u32, crowd: u32) -> Arc<Self> {
        let [limit, crowd] = [limit, crowd].map(|number| usize::try_from(number).unwrap_or(usize::MAX));
        Arc::new(Budget { limit, crowd, used: AtomicUsize::new(0), full: AtomicBool::new(false) })
    }

    /// Takes a place.
    pub fn take(self: &Arc<Self>) -> Result<Place, Full> {
        let room = |used: usize| (self.limit == 0 || used < self.limit).then(|| used.saturating_add(1));
        match self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room) {
            Ok(_) => Ok(Place(self.clone())),
            Err(_) => Err(Full { first: !self.full.swap(true, Ordering::Relaxed) }),
        }
    }

    /// Places that are taken.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether so many are taken that some should be given back.
    pub fn is_crowded(&self) -> bool {
        self.crowd > 0 && self.used() > self.crowd
    }

    /// All places, 0 for any number.
    pub fn limit(&self) -> usize {
        self.limit
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let budget = &self.0;
        let before = budget.used.fetch_sub(1, Ordering::Relaxed);
        // One that lingers at its limit is not told of again and again.
        if before <= budget.limit / 2 && budget.full.load(Ordering::Relaxed) {
            budget.full.store(false, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests;
