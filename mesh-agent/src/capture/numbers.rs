//! Small numbers that stand for names in the kernel's maps.
//!
//! An agent that adopts a predecessor's maps must not reuse a number for something else: entries of live connections still carry the
//! old ones. Each agent therefore counts from a random base of its own.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

/// Numbers for keys of one kind; a key keeps its number until it is retired, a retired number is not given again.
#[derive(Debug)]
pub struct Numbers<K> {
    next: u32,
    forward: HashMap<K, u32>,
    backward: HashMap<u32, K>,
}

/// Room that each agent has: 2^20 numbers.
const ROOM: u32 = 1 << 20;
/// Agents that can have room of their own.
const BLOCKS: u32 = 4094;

/// A base for [`Numbers::new`], from any random word.
pub fn base(random: u32) -> u32 {
    // Never 0, and never the last block, so that counting up does not wrap.
    (random % BLOCKS + 1) * ROOM
}

/// The block of numbers, as one agent has to itself, that a number is of.
pub fn block(number: u32) -> u32 {
    number / ROOM
}

/// As [`base`], in none of the blocks that are `taken`.
pub fn base_beside(random: u32, taken: &HashSet<u32>) -> u32 {
    let candidates = (0..BLOCKS).map(|step| base((random % BLOCKS).wrapping_add(step)));
    // Were all of them taken, numbers would meet whichever it is.
    candidates.into_iter().find(|candidate| !taken.contains(&block(*candidate))).unwrap_or_else(|| base(random))
}

impl<K: Clone + Eq + Hash> Numbers<K> {
    /// Counts up from `base`.
    pub fn new(base: u32) -> Self {
        Numbers { next: base, forward: HashMap::new(), backward: HashMap::new() }
    }

    /// The number of a key, a fresh one if it has none.
    pub fn number(&mut self, key: &K) -> u32 {
        if let Some(n) = self.forward.get(key) {
            return *n;
        }
        self.next = self.next.wrapping_add(1).max(1);
        self.forward.insert(key.clone(), self.next);
        self.backward.insert(self.next, key.clone());
        self.next
    }

    /// The number of a key that has one.
    pub fn get(&self, key: &K) -> Option<u32> {
        self.forward.get(key).copied()
    }

    /// The key of a number.
    pub fn key(&self, number: u32) -> Option<&K> {
        self.backward.get(&number)
    }

    /// Forgets every key that `keep` does not want.
    pub fn retain(&mut self, keep: impl Fn(&K) -> bool) {
        self.forward.retain(|k, _| keep(k));
        self.backward.retain(|_, k| keep(k));
    }

    /// Forgets every number that `keep` does not want.
    pub fn retain_numbers(&mut self, keep: impl Fn(u32) -> bool) {
        self.forward.retain(|_, number| keep(*number));
        self.backward.retain(|number, _| keep(*number));
    }
}

#[cfg(test)]
mod tests;
