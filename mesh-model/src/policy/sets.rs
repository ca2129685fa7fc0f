//! Identity sets: what policies ask of a caller's identity, folded into numbered questions.
//!
//! The agent answers a question by its patterns; the kernel by a table of members, which user space fills for the identities it knows.

use std::collections::HashMap;
use std::sync::Arc;

use crate::identity::Identity;
use crate::policy::IdentityPattern;

/// A set of identities. Made in a normal form, so that sets written alike are equal.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct IdentityMatch {
    all: Vec<Vec<IdentityPattern>>,
    none: Vec<IdentityPattern>,
}

impl IdentityMatch {
    /// The identities that match one pattern of each list in `all`, and none in `none`.
    pub fn new(mut all: Vec<Vec<IdentityPattern>>, mut none: Vec<IdentityPattern>) -> Self {
        for list in all.iter_mut().chain([&mut none]) {
            list.sort();
            list.dedup();
        }
        all.sort();
        all.dedup();
        IdentityMatch { all, none }
    }

    /// Whether the identity is in the set.
    pub fn matches(&self, identity: &Identity) -> bool {
        self.matches_principal(identity, &identity.principal())
    }

    /// As [`IdentityMatch::matches`], with the identity's [`Identity::principal`] made by the caller once for many sets.
    pub fn matches_principal(&self, identity: &Identity, principal: &str) -> bool {
        let hit = |pattern: &IdentityPattern| pattern.matches(identity, principal);
        self.all.iter().all(|list| list.iter().any(hit)) && !self.none.iter().any(hit)
    }
}

/// Gives equal sets equal numbers. A number stands for its set as long as anybody but the interner holds the set.
#[derive(Debug, Default)]
pub struct SetInterner {
    numbers: HashMap<Arc<IdentityMatch>, u32>,
    sets: HashMap<u32, Arc<IdentityMatch>>,
    last: u32,
}

impl SetInterner {
    /// The set's number, never 0, and the shared set.
    pub fn intern(&mut self, set: IdentityMatch) -> (u32, Arc<IdentityMatch>) {
        if let Some((shared, number)) = self.numbers.get_key_value(&set) {
            return (*number, shared.clone());
        }
        // Numbers come round after 2^32 sets; those in use are stepped over.
        loop {
            self.last = self.last.wrapping_add(1);
            if self.last != 0 && !self.sets.contains_key(&self.last) {
                break;
            }
        }
        let shared = Arc::new(set);
        self.numbers.insert(shared.clone(), self.last);
        self.sets.insert(self.last, shared.clone());
        (self.last, shared)
    }

    /// Forgets the sets that no compiled policy holds any longer, and returns their numbers, which may then be given again.
    pub fn sweep(&mut self) -> Vec<u32> {
        // Two holders are the interner's own maps.
        let gone: Vec<u32> = self.sets.iter().filter(|(_, set)| Arc::strong_count(set) <= 2).map(|(number, _)| *number).collect();
        for number in &gone {
            if let Some(set) = self.sets.remove(number) {
                self.numbers.remove(&set);
            }
        }
        gone
    }

    /// Every set with its number, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Arc<IdentityMatch>)> {
        self.sets.iter().map(|(number, set)| (*number, set))
    }
}

#[cfg(test)]
mod tests;
