//! Keys of issuers that mesh-control fetches: a slot for each place they come from, which policies hold and the link to mesh-control fills.
//!
//! A slot lives as long as some policy has it. What it holds stays until something newer comes, however long the issuer or mesh-control is
//! away; until the first keys come no token is believed by it.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use mesh_model::jwt::{Jwks, KeyRing};
use mesh_model::policy::request_authentication::KeyLocation;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::ops::metrics::{Kind, Metrics};

/// The keys of one place.
#[derive(Debug)]
pub struct Slot {
    location: KeyLocation,
    held: ArcSwap<Held>,
}

/// What a slot holds.
#[derive(Debug)]
enum Held {
    Keys(KeySet),
    /// Why there are none.
    None {
        why: Arc<str>,
        told: bool,
    },
}

/// Keys as mesh-control fetched them.
#[derive(Clone, Debug)]
pub struct KeySet {
    /// Tells one content from another.
    pub version: Arc<str>,
    /// When they were fetched, by mesh-control's clock.
    pub fetched: SystemTime,
    /// The keys.
    pub jwks: Arc<Jwks>,
    /// As mesh-control wrote them.
    pub text: Arc<str>,
}

impl Slot {
    fn new(location: KeyLocation) -> Slot {
        let held = Held::None { why: "mesh-control has not given them yet".into(), told: false };
        Slot { location, held: ArcSwap::from_pointee(held) }
    }

    /// From where its keys come.
    pub fn location(&self) -> &KeyLocation {
        &self.location
    }

    /// The keys that it holds.
    pub fn set(&self) -> Option<KeySet> {
        match &**self.held.load() {
            Held::Keys(set) => Some(set.clone()),
            Held::None { .. } => None,
        }
    }

    /// Why it holds none, if it is mesh-control that says so.
    pub fn told(&self) -> Option<Arc<str>> {
        match &**self.held.load() {
            Held::None { why, told: true } => Some(why.clone()),
            Held::None { .. } | Held::Keys(_) => None,
        }
    }

    /// Whether mesh-control has said what is to be had: keys, or why there are none.
    pub fn is_settled(&self) -> bool {
        matches!(&**self.held.load(), Held::Keys(_) | Held::None { told: true, .. })
    }

    /// Takes newer keys.
    pub fn fill(&self, set: KeySet) {
        self.held.store(Arc::new(Held::Keys(set)));
    }

    /// Notes why there are no keys; those that it holds stay. `told`: mesh-control says so, else it could not be asked, which leaves standing
    /// what it said before. Returns whether that is news.
    pub fn fail(&self, text: &str, told: bool) -> bool {
        match &**self.held.load() {
            Held::Keys(_) => return false,
            Held::None { why, told: before } if (*before && !told) || (**why == *text && told == *before) => return false,
            Held::None { .. } => {}
        }
        self.held.store(Arc::new(Held::None { why: text.into(), told }));
        true
    }
}

impl KeyRing for Slot {
    fn keys(&self) -> Result<Arc<Jwks>, Arc<str>> {
        match &**self.held.load() {
            Held::Keys(set) => Ok(set.jwks.clone()),
            Held::None { why, .. } => Err(why.clone()),
        }
    }
}

/// The slots that this node's policies have.
#[derive(Debug)]
pub struct KeyStore {
    slots: Mutex<BTreeMap<KeyLocation, Weak<Slot>>>,
    /// Those that policies are about to have.
    expected: Mutex<Vec<Arc<Slot>>>,
    changes: watch::Sender<u64>,
    told: watch::Sender<u64>,
}

impl Default for KeyStore {
    fn default() -> Self {
        KeyStore { slots: Mutex::default(), expected: Mutex::default(), changes: watch::Sender::new(0), told: watch::Sender::new(0) }
    }
}

impl KeyStore {
    /// The slot of a place, made if there is none.
    pub fn slot(&self, location: &KeyLocation) -> Arc<Slot> {
        let mut slots = self.slots.lock();
        if let Some(slot) = slots.get(location).and_then(Weak::upgrade) {
            return slot;
        }
        let slot = Arc::new(Slot::new(location.clone()));
        slots.insert(location.clone(), Arc::downgrade(&slot));
        drop(slots);
        self.changes.send_modify(|count| *count += 1);
        slot
    }

    /// Makes the slots of places that policies are about to have; they stay until the next [`KeyStore::sweep`].
    pub fn expect(&self, locations: impl IntoIterator<Item = KeyLocation>) {
        let slots: Vec<Arc<Slot>> = locations.into_iter().map(|location| self.slot(&location)).collect();
        self.expected.lock().extend(slots);
    }

    /// The slot of a place, if a policy of this node has it.
    pub fn find(&self, location: &KeyLocation) -> Option<Arc<Slot>> {
        self.slots.lock().get(location).and_then(Weak::upgrade)
    }

    /// Every slot, by place.
    pub fn slots(&self) -> Vec<Arc<Slot>> {
        self.slots.lock().values().filter_map(Weak::upgrade).collect()
    }

    /// Forgets what no policy has.
    pub fn sweep(&self) {
        self.expected.lock().clear();
        self.slots.lock().retain(|_, slot| slot.strong_count() > 0);
    }

    /// Counts up when a slot is made.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Wakes those who wait in [`KeyStore::settled`]: something was put into slots.
    pub fn tell(&self) {
        self.told.send_modify(|count| *count += 1);
    }

    /// Returns once mesh-control has said of every slot what is to be had.
    pub async fn settled(&self) {
        let mut told = self.told.subscribe();
        // The sender lives in self, so this can't fail.
        while !self.slots().iter().all(|slot| slot.is_settled()) && told.changed().await.is_ok() {}
    }

    /// What is wrong, in words: the places of which mesh-control says that there are no keys.
    pub fn problems(&self) -> Vec<String> {
        let wrong = |slot: Arc<Slot>| {
            Some(format!("RequestAuthentications: no token is believed by the keys of {}: {}", slot.location(), slot.told()?))
        };
        self.slots().into_iter().filter_map(wrong).collect()
    }

    /// For operators: what each slot holds.
    pub fn describe(&self) -> Value {
        let one = |slot: Arc<Slot>| {
            let set = slot.set();
            json!({
                "source": slot.location().to_string(),
                "keys": set.as_ref().map_or(0, |set| set.jwks.len()),
                "version": set.as_ref().map(|set| set.version.to_string()),
                "fetchedUnixSeconds": set.as_ref().map(|set| set.fetched.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()),
                "missing": slot.keys().err().as_deref(),
            })
        };
        self.slots().into_iter().map(one).collect()
    }
}

/// Registers what the slots show. Their places are many people's words, so they are no labels.
pub fn collect(metrics: &Metrics, store: &Arc<KeyStore>) {
    let store = store.clone();
    metrics.collect(move |samples| {
        let slots = store.slots();
        let held = slots.iter().filter(|slot| slot.set().is_some()).count();
        let help = "Places from which the issuers' keys of this node's policies come, by whether there are keys.";
        let mut family = samples.family("nodemesh_jwks_sources", help, Kind::Gauge);
        family.sample(&[("state", "held")], held as f64);
        family.sample(&[("state", "missing")], (slots.len() - held) as f64);
    });
}

#[cfg(test)]
mod tests;
