//! Smooth weighted round robin, as nginx made it known: shares are exact, not true on average only.
//!
//! Every turn each entry's credit grows by its weight; the entry with the most is taken and pays the sum of all. Over as many turns as the
//! weights sum up to (divided by their greatest common divisor) each entry is taken exactly as often as its weight says, and its turns lie
//! apart. One sequence is shared by all worker threads: with one for each, a short run of requests could miss its shares by a turn per thread.

use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

#[cfg(test)]
mod tests;

/// Who is next, by weight.
#[derive(Debug)]
pub struct Sequence {
    /// Entries with a weight, by their number in the list that was given.
    entries: Vec<Entry>,
    /// All weights are equal: [`Sequence::next`] needs only a counter.
    equal: bool,
    turn: AtomicUsize,
    /// For each entry, in the same order. The sum of 2^32 weights of 32 bits fits.
    credits: Mutex<Vec<i64>>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    index: usize,
    weight: i64,
}

impl Sequence {
    /// One for these weights. Entries of weight 0 never have a turn.
    pub fn new(weights: &[u32]) -> Sequence {
        let divisor = weights.iter().fold(0, |divisor, weight| common_divisor(divisor, *weight)).max(1);
        let entries: Vec<Entry> = weights
            .iter()
            .enumerate()
            .filter(|(_, weight)| **weight > 0)
            .map(|(index, weight)| Entry { index, weight: i64::from(weight / divisor) })
            .collect();
        let equal = entries.iter().all(|entry| entry.weight == 1);
        let credits = Mutex::new(vec![0; entries.len()]);
        Sequence { entries, equal, turn: AtomicUsize::new(0), credits }
    }

    /// Index of the entry whose turn it is; `None` if no entry has a weight.
    pub fn next(&self) -> Option<usize> {
        if self.equal {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed).checked_rem(self.entries.len())?;
            return self.entries.get(turn).map(|entry| entry.index);
        }
        self.next_of(|_| true)
    }

    /// As [`Sequence::next`], among the entries that `eligible` accepts: they share by their weights alone, and as long as the same ones are
    /// accepted their shares are exact up to one turn. It is asked once for every entry, under the lock.
    pub fn next_of(&self, eligible: impl Fn(usize) -> bool) -> Option<usize> {
        let mut credits = self.credits.lock();
        let mut total = 0;
        let mut best: Option<(usize, &mut i64)> = None;
        for (entry, credit) in self.entries.iter().zip(credits.iter_mut()) {
            if !eligible(entry.index) {
                // What an entry saved up before it dropped out would be a burst when it comes back.
                *credit = 0;
                continue;
            }
            total += entry.weight;
            *credit += entry.weight;
            if best.as_ref().is_none_or(|(_, most)| *credit > **most) {
                best = Some((entry.index, credit));
            }
        }
        let (index, credit) = best?;
        *credit -= total;
        Some(index)
    }
}

fn common_divisor(mut a: u32, mut b: u32) -> u32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}
