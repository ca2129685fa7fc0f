//! Who holds what of each budget. Pure: the moment is passed in.
//!
//! A share grows only out of what nobody else may hold. Another holds what it said when it asked last, or what it was answered, whichever is
//! more, until it asks again or its loan lapses. After that it counts with the fair share of its node, which its agent then has by itself.
//! Agents keep the other half: a loan lapses for them no later than here, and one that was below the fair share is kept for as long again,
//! until what was lent of the rest has lapsed too. How long that is an agent counts from an answer that it got, so whoever has not said for as
//! long as a loan lives that he got one counts with his fair share at least.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_model::limit::{Sharing, WHOLE};
use mesh_model::service::NamespacedName;

use super::split::{Claim, split};

/// How long a share is lent for.
pub const LIFETIME: Duration = Duration::from_secs(3);
/// When agents are to ask again: as a rule, and while shares move.
pub const AGAIN: Duration = Duration::from_secs(1);
/// As [`AGAIN`], while somebody has less than he needs or gives something back.
pub const SOON: Duration = Duration::from_millis(250);
/// Of its fair share, what a node keeps that asks for nothing, so that its next requests need not wait: one in so many.
const KEPT: u64 = 100;
/// What is lent above the demand, which is a little different every time: one in so many.
const ABOVE: u64 = 100;

/// Names a budget.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct BudgetId {
    /// The RateLimit.
    pub limit: NamespacedName,
    /// The place of the limit in it.
    pub index: usize,
    /// The Service.
    pub service: NamespacedName,
}

/// What an agent says of a budget. In parts of [`WHOLE`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asked {
    /// Which life of the agent it is.
    pub session: u64,
    /// Higher with each request of the session.
    pub turn: u64,
    /// The latest turn of which it has the answer.
    pub answered: u64,
    /// What was asked for in a budget's time.
    pub demand: u64,
    /// What it holds.
    pub holds: u32,
}

/// What it gets, for [`LIFETIME`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Loan {
    /// In parts of [`WHOLE`].
    pub parts: u32,
    /// When to ask again.
    pub again: Duration,
}

/// The ledger of a replica since it began to lead.
#[derive(Debug)]
pub struct Ledger {
    /// Until then somebody else's loans may be about.
    calm: Instant,
    books: HashMap<BudgetId, HashMap<Arc<str>, Account>>,
}

/// What a node holds, as far as can be known.
#[derive(Clone, Copy, Debug)]
struct Account {
    session: u64,
    turn: u64,
    demand: u64,
    holds: u32,
    lent: u32,
    /// When it asked.
    at: Instant,
    /// When it made the latest request of which it has said that it got the answer.
    confirmed: Option<Instant>,
}

impl Account {
    fn is_live(&self, now: Instant) -> bool {
        now < self.at + LIFETIME
    }

    /// At most, of one whose fair share this is.
    fn held(&self, now: Instant, fair: u32) -> u32 {
        let held = self.holds.max(self.lent);
        match self.confirmed {
            Some(at) if now < at + LIFETIME => held,
            _ => held.max(fair),
        }
    }
}

impl Ledger {
    /// An empty one: whoever led before lent nothing after `now`.
    pub fn new(now: Instant) -> Ledger {
        // A second for an answer that is under way.
        Ledger { calm: now + LIFETIME + Duration::from_secs(1), books: HashMap::new() }
    }

    /// Lends a node what it needs and nobody else may hold. `None`: the request is older than one that was answered.
    pub fn ask(&mut self, now: Instant, id: &BudgetId, node: &Arc<str>, sharing: &Sharing, asked: Asked) -> Option<Loan> {
        let book = self.books.entry(id.clone()).or_default();
        book.retain(|_, account| account.is_live(now));
        let fair = sharing.fair(node).parts();
        let (mut asked, mut confirmed) = (asked, None);
        if let Some(known) = book.get(node) {
            if known.session == asked.session && known.turn >= asked.turn {
                return None;
            }
            if known.session != asked.session {
                // The agent before this one may hold what it was lent.
                asked.holds = asked.holds.max(known.held(now, fair));
            } else if known.turn == asked.answered {
                confirmed = Some(known.at);
            } else {
                confirmed = known.confirmed;
            }
        }
        let need = |demand: u64, fair: u32| (demand.saturating_add(demand / ABOVE)).max(u64::from(fair) / KEPT).max(1);
        let own = need(asked.demand, fair);
        // Whoever cannot be lent anything has its own: endpoints that are no pods of the mesh, and nodes whose agents do not ask.
        let mut pool = u64::from(WHOLE);
        let mut free = u64::from(WHOLE);
        let counted: u32 = sharing.nodes.values().sum();
        let strangers = u64::from(WHOLE) * u64::from(sharing.ready.saturating_sub(counted)) / u64::from(sharing.ready.max(1));
        pool = pool.saturating_sub(strangers);
        free = free.saturating_sub(strangers);
        let mut claims = vec![Claim { weight: fair.into(), need: own }];
        for (other, &ready) in sharing.nodes.iter().filter(|(other, _)| *other != node) {
            let fair = sharing.fair(other).parts();
            match book.get(other) {
                Some(account) => {
                    claims.push(Claim { weight: u64::from(fair), need: need(account.demand, fair) });
                    free = free.saturating_sub(account.held(now, fair).into());
                }
                None if ready > 0 => {
                    pool = pool.saturating_sub(fair.into());
                    free = free.saturating_sub(fair.into());
                }
                None => {}
            }
        }
        for (_, account) in book.iter().filter(|(other, _)| *other != node && !sharing.nodes.contains_key(*other)) {
            // Its pods are gone, and its loan will lapse.
            let held = u64::from(account.held(now, 0));
            pool = pool.saturating_sub(held);
            free = free.saturating_sub(held);
        }
        let target = split(pool, &claims).first().copied().unwrap_or_default();
        let mut parts = u32::try_from(target.min(free)).unwrap_or(WHOLE);
        if now < self.calm {
            parts = asked.holds.min(fair);
        }
        let wanting = claims.iter().map(|claim| claim.need).sum::<u64>() > pool || u64::from(parts) < target;
        let moving = wanting || parts < asked.holds;
        book.insert(
            node.clone(),
            Account { session: asked.session, turn: asked.turn, demand: asked.demand, holds: asked.holds, lent: parts, at: now, confirmed },
        );
        Some(Loan { parts, again: if moving { SOON } else { AGAIN } })
    }

    /// Parts of each budget that are lent at the moment.
    pub fn lent(&self, now: Instant) -> impl Iterator<Item = (&BudgetId, u64)> {
        self.books.iter().map(move |(id, book)| {
            let live = book.values().filter(move |account| account.is_live(now));
            (id, live.map(|account| u64::from(account.lent)).sum())
        })
    }

    /// Forgets budgets of which nothing is lent any more.
    pub fn sweep(&mut self, now: Instant) {
        self.books.retain(|_, book| {
            book.retain(|_, account| account.is_live(now));
            !book.is_empty()
        });
    }
}

#[cfg(test)]
mod tests;
