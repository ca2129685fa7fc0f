//! Asks mesh-control for this node's part of the budgets of Services (RateLimit, `scope: service`), again and again. No request waits for it:
//! it changes the buckets that requests take from.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_model::limit::WHOLE;
use mesh_proto::nodemesh::budgets_client::BudgetsClient;
use mesh_proto::nodemesh::{Budget, LendRequest, LendResponse};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Request};

use crate::link::{Answered, Link, LinkError};
use crate::ops::metrics::{Kind, Metrics};
use crate::policy::lending::Lent;
use crate::policy::limits::{LentBudget, Need, Registry};

/// Between two looks at what is needed and what has lapsed.
const LOOK: Duration = Duration::from_millis(250);
/// Longest time that an answer is waited for. Less than half of what loans live for: one answer may get lost.
const TIMEOUT: Duration = Duration::from_secs(1);
/// After a call that came to nothing.
const AGAIN: Duration = Duration::from_secs(1);
/// After the answer that nobody there lends.
const SELDOM: Duration = Duration::from_secs(60);
/// Longest life of a loan that is believed.
const LONGEST: Duration = Duration::from_secs(30);
/// Budgets that are asked for, at most; the others have their fair shares.
const MOST: usize = 1024;

/// When to ask. Pure.
#[derive(Debug, Default)]
struct Pace {
    asked: Option<Instant>,
    due: Option<Instant>,
    /// What was asked for the last time.
    known: HashSet<LentBudget>,
    /// Nobody lends: more need is no reason to ask.
    patient: bool,
}

impl Pace {
    /// Whether to ask now: when it is time, at once for what is new, and soon if more is needed than is held.
    fn is_due(&self, now: Instant, needs: &[(LentBudget, Need)]) -> bool {
        if needs.is_empty() {
            return false;
        }
        let soon = self.asked.is_none_or(|asked| now >= asked + LOOK);
        let pressing =
            |(name, need): &(LentBudget, Need)| !self.known.contains(name) || (need.demand > u64::from(need.holds) && need.holds < WHOLE);
        self.due.is_none_or(|due| now >= due) || (soon && !self.patient && needs.iter().any(pressing))
    }

    fn asks(&mut self, now: Instant, needs: &[(LentBudget, Need)]) {
        self.asked = Some(now);
        self.known = needs.iter().map(|(name, _)| name.clone()).collect();
    }

    fn again(&mut self, now: Instant, after: Duration, patient: bool) {
        self.due = Some(now + after);
        self.patient = patient;
    }
}

/// What calls came to.
#[derive(Debug, Default)]
pub struct Counts(Mutex<[u64; 3]>);

impl Counts {
    const NAMES: [&str; 3] = ["lent", "refused", "unreachable"];

    fn count(&self, result: usize) {
        if let Some(count) = self.0.lock().get_mut(result) {
            *count += 1;
        }
    }
}

/// Registers what calls came to.
pub fn collect(metrics: &Metrics, counts: &Arc<Counts>) {
    let counts = counts.clone();
    metrics.collect(move |samples| {
        let help = "Requests to mesh-control for parts of budgets, by what came of them.";
        let mut family = samples.family("nodemesh_rate_limit_loans_asked", help, Kind::Counter);
        for (name, count) in Counts::NAMES.iter().zip(*counts.0.lock()) {
            family.sample(&[("result", *name)], count as f64);
        }
    });
}

/// Asks for this node's budgets, until `stop`.
pub struct Lending {
    /// How mesh-control is called.
    pub link: Arc<Link>,
    /// The budgets.
    pub limits: Arc<Registry>,
    /// What calls come to.
    pub counts: Arc<Counts>,
    /// Cancelled: another agent has taken this one's place, and asks. What was lent lapses.
    pub stop: CancellationToken,
}

/// A call that is under way.
type Asking = Pin<Box<dyn Future<Output = (Call, Result<Answered<LendResponse>, LinkError>)>>>;

/// What was asked for, and when.
struct Call {
    turn: u64,
    names: Vec<LentBudget>,
    at: Instant,
}

impl Lending {
    /// Never ends.
    pub async fn run(self) {
        let session: u64 = rand::random();
        let (mut turn, mut answered) = (0_u64, 0_u64);
        let (mut pace, mut said) = (Pace::default(), Said::default());
        let mut asking: Option<Asking> = None;
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let answer = async {
                match &mut asking {
                    Some(asking) => asking.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = looks.tick() => {
                    let now = Instant::now();
                    let mut needs = self.limits.needs(now);
                    needs.truncate(MOST);
                    if asking.is_none() && !self.stop.is_cancelled() && pace.is_due(now, &needs) {
                        turn += 1;
                        pace.asks(now, &needs);
                        asking = Some(self.ask(LendRequest { session, turn, answered, needs: Vec::new() }, needs, now));
                    }
                }
                (call, answer) = answer => {
                    asking = None;
                    if answer.is_ok() {
                        answered = call.turn;
                    }
                    let now = Instant::now();
                    let (after, patient) = self.take(call, now, answer, &mut said);
                    pace.again(now, after, patient);
                }
            }
        }
    }

    fn ask(&self, mut message: LendRequest, needs: Vec<(LentBudget, Need)>, now: Instant) -> Asking {
        let link = self.link.clone();
        message.needs = needs.iter().map(|(name, need)| wire(name, need)).collect();
        let call = Call { turn: message.turn, names: needs.into_iter().map(|(name, _)| name).collect(), at: now };
        Box::pin(async move {
            let method = |channel: Channel, request: Request<LendRequest>| async move { BudgetsClient::new(channel).lend(request).await };
            (call, link.call_leader(TIMEOUT, message, method).await)
        })
    }

    /// Takes an answer: when to ask again, and whether not to before.
    fn take(&self, call: Call, now: Instant, answer: Result<Answered<LendResponse>, LinkError>, said: &mut Said) -> (Duration, bool) {
        match answer {
            Ok(Answered { message, .. }) => {
                self.counts.count(0);
                let lifetime = Duration::from_millis(message.lifetime_ms.into()).min(LONGEST);
                let mut refusal = None;
                let loans = call.names.into_iter().zip(message.loans).filter_map(|(name, loan)| {
                    if !loan.refused.is_empty() {
                        refusal.get_or_insert_with(|| format!("the budget of {} for {} {}", name.limit, name.service, loan.refused));
                        return None;
                    }
                    Some((name, Lent::answered(loan.parts, call.at, now, lifetime, LOOK)))
                });
                self.limits.lend(now, loans);
                said.say(refusal);
                (Duration::from_millis(message.again_ms.into()).max(LOOK), false)
            }
            Err(LinkError::Refused { code: Code::Unimplemented, .. }) => {
                self.counts.count(1);
                said.say_at_once("the certificate authority is none that lends budgets");
                (SELDOM, true)
            }
            Err(error) => {
                self.counts.count(if matches!(error, LinkError::Refused { .. }) { 1 } else { 2 });
                said.say(Some(error.to_string()));
                (AGAIN, true)
            }
        }
    }
}

fn wire(name: &LentBudget, need: &Need) -> mesh_proto::nodemesh::Need {
    let budget = Budget {
        namespace: name.limit.namespace.to_string(),
        rate_limit: name.limit.name.to_string(),
        index: u32::try_from(name.index).unwrap_or(u32::MAX),
        service: name.service.name.to_string(),
    };
    mesh_proto::nodemesh::Need { budget: Some(budget), demand: need.demand, holds: need.holds }
}

/// Says once what is wrong, and that it is over. What has passed by the next answers, as mesh-control reads what the agent has read, is not said.
#[derive(Default)]
struct Said {
    wrong: u32,
    told: bool,
}

impl Said {
    /// How often something is wrong before it is said.
    const PATIENCE: u32 = 3;

    fn say(&mut self, wrong: Option<String>) {
        match wrong {
            None => {
                if std::mem::take(self).told {
                    tracing::info!("rate limits of Services: mesh-control lends budgets again");
                }
            }
            Some(wrong) => {
                self.wrong = self.wrong.saturating_add(1);
                if self.wrong >= Self::PATIENCE && !std::mem::replace(&mut self.told, true) {
                    tracing::warn!("rate limits of Services: this node has its fair share of each budget that it is not lent: {wrong}");
                }
            }
        }
    }

    /// Of what will not pass.
    fn say_at_once(&mut self, wrong: &str) {
        self.wrong = Self::PATIENCE;
        self.say(Some(wrong.to_owned()));
    }
}

#[cfg(test)]
mod tests;
