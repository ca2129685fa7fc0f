//! The gRPC service that lends budgets.

use std::sync::Arc;
use std::time::Instant;

use mesh_model::limit::Sharing;
use mesh_model::service::NamespacedName;
use mesh_model::snapshot::Snapshot;
use mesh_proto::LEADER;
use mesh_proto::nodemesh::budgets_server::Budgets;
use mesh_proto::nodemesh::{Budget, LendRequest, LendResponse, Loan, Need};
use parking_lot::Mutex;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::ledger::{AGAIN, Asked, BudgetId, LIFETIME, Ledger};
use crate::ca::authenticate::Authenticator;
use crate::ca::limit::Rate;
use crate::gate::Gate;
use crate::leadership::Leadership;
use crate::metrics::Metrics;

/// The service, in metrics and log.
const NAME: &str = "budgets";
/// Agents ask every quarter of a second at most.
const PER_NODE: Rate = Rate { per_second: 10.0, burst: 50.0 };
/// Calls of a node at once: an agent makes one after the other, and another agent may be about to take its place.
const AT_ONCE: usize = 2;
/// Budgets that one request may be about.
pub const MOST_NEEDS: usize = 1024;
/// Longest request.
pub const LONGEST: usize = 512 * 1024;

/// Lends budgets while this replica leads.
pub struct BudgetService {
    gate: Arc<Gate>,
    leadership: watch::Receiver<Leadership>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    ledger: Mutex<Option<Held>>,
    metrics: Arc<Metrics>,
}

/// What this replica has lent.
struct Held {
    /// Since when it leads.
    since: Instant,
    ledger: Ledger,
    /// When it was shown in the metrics.
    shown: Option<Instant>,
}

impl BudgetService {
    /// From its parts.
    pub fn new(
        authenticator: Arc<dyn Authenticator>,
        leadership: watch::Receiver<Leadership>,
        snapshots: watch::Receiver<Arc<Snapshot>>,
        metrics: Arc<Metrics>,
    ) -> BudgetService {
        let gate = Arc::new(Gate::new(NAME, authenticator, PER_NODE, metrics.clone()).at_once(AT_ONCE));
        BudgetService { gate, leadership, snapshots, ledger: Mutex::new(None), metrics }
    }

    /// Whom it lets in, to be asked before a call's body is read.
    pub fn gate(&self) -> Arc<Gate> {
        self.gate.clone()
    }

    /// Since when this replica leads; else who does.
    fn leads(&self) -> Result<Instant, Status> {
        let leader = match &*self.leadership.borrow() {
            Leadership::Leads(since) => return Ok(*since),
            Leadership::Follows(leader) => leader.clone(),
        };
        if self.ledger.lock().take().is_some() {
            self.metrics.lent(std::iter::empty());
        }
        match leader.as_deref().and_then(|leader| leader.parse().ok()) {
            Some(leader) => {
                let mut status = Status::failed_precondition("this replica of mesh-control does not lend: another leads");
                status.metadata_mut().insert(LEADER, leader);
                Err(status)
            }
            None => Err(Status::unavailable("this replica of mesh-control does not lend, and which one leads is not known")),
        }
    }

    fn answer(&self, node: &Arc<str>, asked: &LendRequest, since: Instant, now: Instant) -> LendResponse {
        let snapshot = self.snapshots.borrow().clone();
        let mut held = self.ledger.lock();
        let held = match &mut *held {
            Some(held) if held.since == since => held,
            other => other.insert(Held { since, ledger: Ledger::new(since), shown: None }),
        };
        let ledger = &mut held.ledger;
        let mut again = AGAIN;
        let mut loans = Vec::with_capacity(asked.needs.len());
        for need in &asked.needs {
            let loan = match may_ask(&snapshot, node, need) {
                Ok((id, sharing)) => {
                    let said = Asked {
                        session: asked.session,
                        turn: asked.turn,
                        answered: asked.answered,
                        demand: need.demand,
                        holds: need.holds,
                    };
                    let loan = ledger.ask(now, &id, node, sharing, said);
                    loan.map(|loan| {
                        again = again.min(loan.again);
                        Loan { parts: loan.parts, refused: String::new() }
                    })
                    .ok_or("is asked for by a request that came after a later one")
                }
                Err(why) => Err(why),
            };
            loans.push(loan.unwrap_or_else(|why| {
                self.metrics.called(NAME, "budget_refused");
                tracing::debug!(node = &**node, budget = ?need.budget, why, "a budget is not lent");
                Loan { parts: 0, refused: why.into() }
            }));
        }
        if held.shown.is_none_or(|shown| now.saturating_duration_since(shown) >= AGAIN) {
            held.shown = Some(now);
            ledger.sweep(now);
            self.metrics.lent(ledger.lent(now).map(|(id, parts)| (id.clone(), parts)));
        }
        let millis = |time: std::time::Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        LendResponse { loans, lifetime_ms: millis(LIFETIME), again_ms: millis(again) }
    }
}

/// The budget, if it is lent and holds for a workload of the node.
fn may_ask<'a>(snapshot: &'a Snapshot, node: &str, need: &Need) -> Result<(BudgetId, &'a Sharing), &'static str> {
    let Some(Budget { namespace, rate_limit, index, service }) = &need.budget else { return Err("is not named") };
    let namespace: Arc<str> = namespace.as_str().into();
    let limit = NamespacedName { namespace: namespace.clone(), name: rate_limit.as_str().into() };
    let service = NamespacedName { namespace, name: service.as_str().into() };
    let sharing = snapshot.sharing(&limit, &service).ok_or("is of no RateLimit with scope: service that is targeted at the Service")?;
    let index = usize::try_from(*index).unwrap_or(usize::MAX);
    let held = sharing.limit.limits.iter().find(|limit| limit.index == index).ok_or("is of no limit of the RateLimit")?;
    if !held.by.is_lent() {
        return Err("is one for each client or header value, which are not lent");
    }
    if !sharing.nodes.contains_key(node) {
        return Err("is of a Service that has no pod in the mesh on the node, or of a host that none there knows");
    }
    Ok((BudgetId { limit, index, service }, sharing))
}

#[tonic::async_trait]
impl Budgets for BudgetService {
    async fn lend(&self, request: Request<LendRequest>) -> Result<Response<LendResponse>, Status> {
        let node = self.gate.enter(&request).await?;
        let asked = request.get_ref();
        if asked.needs.len() > MOST_NEEDS {
            let status = Status::invalid_argument(format!("the request is about more than {MOST_NEEDS} budgets"));
            return Err(self.gate.refuse(&node, "too_many", status));
        }
        let since = self.leads().map_err(|status| self.gate.quietly("not_leader", status))?;
        if self.snapshots.borrow().version() == 0 {
            let status = Status::unavailable("the mesh's configuration has not been read yet; try again later");
            return Err(self.gate.quietly("not_read", status));
        }
        Ok(Response::new(self.answer(&node, asked, since, Instant::now())))
    }
}

#[cfg(test)]
mod tests;
