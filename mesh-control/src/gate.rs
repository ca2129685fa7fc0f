//! What a service for agents asks of a call first: of which node it is, and whether that node asks too often.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tonic::{Request, Status};

use crate::ca::authenticate::{Authenticator, Caller, bearer};
use crate::ca::limit::{Limiter, Rate};
use crate::ca::refusal::{Blame, REASON, Refusal};
use crate::metrics::Metrics;
use crate::server::{Entered, Entering, Guard, Head, Peer};

mod places;

pub use places::Place;

use places::Places;

/// Calls whose token is looked at at once.
const CONCURRENT: usize = 256;
/// Lines of the log that tell of refusals: per node, and together for those who are nobody.
const REFUSAL_LINES: Rate = Rate { per_second: 1.0, burst: 20.0 };

/// The gate of one service.
pub struct Gate {
    service: &'static str,
    authenticator: Arc<dyn Authenticator>,
    room: Semaphore,
    limiter: Mutex<Limiter>,
    log_limiter: Mutex<Limiter>,
    /// The places of calls, where a node has few.
    places: Option<Arc<Places>>,
    metrics: Arc<Metrics>,
}

impl Guard for Gate {
    fn let_in<'a>(&'a self, head: &'a Head) -> Entering<'a> {
        Box::pin(async move {
            let node = self.enter(head).await?;
            let place = match &self.places {
                None => None,
                Some(places) => Some(places.enter(&node).ok_or_else(|| {
                    let status = Status::resource_exhausted(format!("node {node} does not read the answers to its calls"));
                    self.refuse(&node, "unread", status)
                })?),
            };
            Ok(Entered { caller: Caller { node }, place })
        })
    }

    fn overtaken(&self) -> Status {
        self.quietly("overtaken", Status::aborted("the node has made newer calls"))
    }
}

impl Gate {
    /// Of a service, by its name in metrics and log. `per_node`: how often a node may call it.
    pub fn new(service: &'static str, authenticator: Arc<dyn Authenticator>, per_node: Rate, metrics: Arc<Metrics>) -> Gate {
        Gate {
            service,
            authenticator,
            room: Semaphore::new(CONCURRENT),
            limiter: Mutex::new(Limiter::new(per_node)),
            log_limiter: Mutex::new(Limiter::new(REFUSAL_LINES)),
            places: None,
            metrics,
        }
    }

    /// With so many calls of a node at once; a newer one ends the oldest. In force where the gate is a service's [`Guard`].
    pub fn at_once(mut self, calls: usize) -> Gate {
        self.places = Some(Places::new(calls));
        self
    }

    /// The node whose agent calls: as its guard found, or else by its bearer token; else the status to answer, counted and logged.
    pub async fn enter<T>(&self, request: &Request<T>) -> Result<Arc<str>, Status> {
        if let Some(Caller { node }) = request.extensions().get() {
            return Ok(node.clone());
        }
        let mut node = None;
        match self.judge(request, &mut node).await {
            Ok(node) => {
                self.metrics.called(self.service, "let_in");
                Ok(node)
            }
            Err(refusal) => {
                let (reason, _, blame) = refusal.meaning();
                let peer = request.extensions().get::<Peer>().map(|peer| peer.0);
                let loudly = matches!(blame, Blame::Authority);
                self.tell(node.as_ref(), reason, || match loudly {
                    true => tracing::error!(service = self.service, ?peer, node = node.as_deref(), reason, %refusal, "call refused"),
                    false => tracing::warn!(service = self.service, ?peer, node = node.as_deref(), reason, %refusal, "call refused"),
                });
                Err(refusal.status())
            }
        }
    }

    /// A refusal of the service's own: its status, counted under a name that this program chose. It is logged no more often than a node may fill
    /// the log.
    pub fn refuse(&self, node: &Arc<str>, reason: &'static str, status: Status) -> Status {
        self.tell(Some(node), reason, || tracing::warn!(service = self.service, node = &**node, reason, %status, "call refused"));
        marked(reason, status)
    }

    /// As [`Gate::refuse`], of what is nobody's fault: counted and not logged.
    pub fn quietly(&self, reason: &'static str, status: Status) -> Status {
        self.metrics.called(self.service, reason);
        marked(reason, status)
    }

    fn tell(&self, node: Option<&Arc<str>>, reason: &'static str, log: impl FnOnce()) {
        self.metrics.called(self.service, reason);
        let asker = node.cloned().unwrap_or_default();
        let mut limiter = self.log_limiter.lock();
        let now = Instant::now();
        limiter.sweep(now);
        if limiter.admit(&asker, now) {
            drop(limiter);
            log();
        }
    }

    async fn judge<T>(&self, request: &Request<T>, asker: &mut Option<Arc<str>>) -> Result<Arc<str>, Refusal> {
        let _permit = self.room.try_acquire().map_err(|_| Refusal::Overloaded)?;
        let from = request.extensions().get::<Peer>().map(|peer| peer.0.ip().to_canonical());
        let Caller { node } = self.authenticator.authenticate(bearer(request.metadata())?, from).await?;
        *asker = Some(node.clone());
        let now = Instant::now();
        let mut limiter = self.limiter.lock();
        limiter.sweep(now);
        if limiter.admit(&node, now) { Ok(node) } else { Err(Refusal::TooOften((&*node).into())) }
    }
}

/// With its reason, by which it is known as this program's own.
fn marked(reason: &'static str, mut status: Status) -> Status {
    status.metadata_mut().insert(REASON, tonic::metadata::MetadataValue::from_static(reason));
    status
}

#[cfg(test)]
mod tests;
