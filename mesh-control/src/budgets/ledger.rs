//! Who holds what of each budget. Pure: the moment is passed in.
//!
//! A share grows only out of what nobody else may hold. Another holds what it said when it asked last, or what it was answered, whichever is
//! more, until it asks again or its loan lapses. After that it counts with the fair share of its node, which its agent then has by itself.
//! Agents keep the other half: a loan lapses for them no later than here, and one that was below the fair share is kept for as long again,
//! until what was lent of the rest has lapsed too. How long that is an agent counts from an answer that it got, so whoever has not said for as
//! long as a loan lives that he got one counts with his fair share at least.
//!
//! Whoever has no ready pod has by itself what is nobody's: the fair shares of the others are the whole. It counts with what was lent to it.
//!
//! What an agent says is not proven. It is believed as far as an agent can speak the truth: whoever has not been lent more than its fair
//! share for as long as a loan lives holds no more than that, whatever it says. Only what was lent before this ledger began it cannot know,
//! and believes what it is told until that must have lapsed.

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
/// The highest demand that is of any matter: that of a thousand budgets.
const MOST_DEMAND: u64 = 1000 * WHOLE as u64;
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
#[derive(Clone, Debug)]
struct Account {
    session: u64,
    turn: u64,
    demand: u64,
    /// What it says that it holds.
    holds: u32,
    lent: u32,
    /// When it asked.
    at: Instant,
    /// When it made the latest request of which it has said that it got the answer.
    confirmed: Option<Instant>,
    had: Had,
}

impl Account {
    fn is_live(&self, now: Instant) -> bool {
        now < self.at + LIFETIME
    }

    /// At most, of one whose fair share this is. Before the `calm` others' loans may be about.
    fn held(&self, now: Instant, calm: Instant, fair: u32) -> u32 {
        let most = if now < calm { WHOLE } else { self.had.most(now).max(fair) };
        let held = self.holds.min(most).max(self.lent);
        match self.confirmed {
            Some(at) if now < at + LIFETIME => held,
            _ => held.max(fair),
        }
    }
}

/// What a node was lent each time that it asked, or had by itself of what is shared: as long as it lives, and as far as it is more than what
/// came after it. So the first is the largest.
#[derive(Clone, Default, Debug)]
struct Had(Vec<(Instant, u32)>);

impl Had {
    fn add(&mut self, now: Instant, parts: u32) {
        self.0.retain(|&(at, more)| now < at + LIFETIME && more > parts);
        self.0.push((now, parts));
    }

    /// The largest part that may still be held.
    fn most(&self, now: Instant) -> u32 {
        self.0.iter().find(|&&(at, _)| now < at + LIFETIME).map_or(0, |&(_, parts)| parts)
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
        let (calm, fair) = (self.calm, sharing.fair(node).parts());
        let (mut asked, mut confirmed, mut had) = (asked, None, Had::default());
        if let Some(known) = book.get(node) {
            if known.session == asked.session && known.turn >= asked.turn {
                return None;
            }
            if known.session != asked.session {
                // The agent before this one may hold what it was lent.
                asked.holds = asked.holds.max(known.held(now, calm, fair));
            } else if known.turn == asked.answered {
                confirmed = Some(known.at);
            } else {
                confirmed = known.confirmed;
            }
            had = known.had.clone();
        }
        let most = if now < calm { WHOLE } else { had.most(now).max(fair) };
        asked.holds = asked.holds.min(most);
        asked.demand = asked.demand.min(MOST_DEMAND);
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
                    let own = if ready > 0 { fair } else { 0 };
                    free = free.saturating_sub(account.held(now, calm, own).into());
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
            let held = u64::from(account.held(now, calm, 0));
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
        let is_ready = sharing.nodes.get(node).is_some_and(|&ready| ready > 0);
        had.add(now, if is_ready { parts.max(fair) } else { parts });
        let Asked { session, turn, demand, holds, .. } = asked;
        book.insert(node.clone(), Account { session, turn, demand, holds, lent: parts, at: now, confirmed, had });
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
