//! The gRPC service: one request judged step by step, each refusal told, counted and logged.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use mesh_model::identity::Identity;
use mesh_proto::ca::istio_certificate_service_server::IstioCertificateService;
use mesh_proto::ca::{IstioCertificateRequest, IstioCertificateResponse};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use super::authenticate::{Authenticator, Caller, bearer};
use super::authority::{Issued, Subject};
use super::csr::{self, Csr};
use super::inventory::Inventory;
use super::keeper::Keeper;
use super::lifetime::Lifetimes;
use super::limit::{Limiter, Rate};
use super::refusal::{Blame, Refusal};
use crate::metrics::Metrics;
use crate::server::{Entered, Entering, Guard, Head, Peer};

/// Bounds of the service.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct ServiceLimits {
    /// Requests in work at once.
    pub concurrent: usize,
    /// How often a node may ask.
    pub per_node: Rate,
    /// How long a request waits for a pod that is not known yet: the node's agent may hear of a new pod before this authority does.
    pub patience: Duration,
}

impl Default for ServiceLimits {
    fn default() -> Self {
        // A node that starts with its 250 pods, each under an account of its own, is served at once.
        ServiceLimits { concurrent: 256, per_node: Rate { per_second: 20.0, burst: 500.0 }, patience: Duration::ZERO }
    }
}

/// Istio's certificate service.
pub struct CaService {
    keeper: Arc<Keeper>,
    authenticator: Arc<dyn Authenticator>,
    inventory: Arc<dyn Inventory>,
    lifetimes: Lifetimes,
    metrics: Arc<Metrics>,
    room: Semaphore,
    limiter: Mutex<Limiter>,
    patience: Duration,
    /// Who may wait: so that a node cannot pile up requests for pods that will never be.
    wait_limiter: Mutex<Limiter>,
    /// Who asks in vain without pause fills metrics, not disks.
    log_limiter: Mutex<Limiter>,
}

/// Lines of the log that tell of refusals: per node, and together for those who are nobody.
const REFUSAL_LINES: Rate = Rate { per_second: 5.0, burst: 100.0 };

/// Requests of a node that may wait for a pod to be known.
const WAITS: Rate = Rate { per_second: 10.0, burst: 256.0 };

impl CaService {
    /// From its parts.
    pub fn new(
        keeper: Arc<Keeper>,
        authenticator: Arc<dyn Authenticator>,
        inventory: Arc<dyn Inventory>,
        lifetimes: Lifetimes,
        limits: ServiceLimits,
        metrics: Arc<Metrics>,
    ) -> CaService {
        CaService {
            keeper,
            authenticator,
            inventory,
            lifetimes,
            metrics,
            room: Semaphore::new(limits.concurrent),
            limiter: Mutex::new(Limiter::new(limits.per_node)),
            patience: limits.patience,
            wait_limiter: Mutex::new(Limiter::new(WAITS)),
            log_limiter: Mutex::new(Limiter::new(REFUSAL_LINES)),
        }
    }

    /// The node whose agent asks, if it may ask: as its head was judged, or is now.
    async fn caller<T>(&self, request: &Request<T>, facts: &mut Facts) -> Result<Arc<str>, Refusal> {
        if let Some(Caller { node }) = request.extensions().get() {
            facts.node = Some(node.clone());
            return Ok(node.clone());
        }
        let _permit = self.room.try_acquire().map_err(|_| Refusal::Overloaded)?;
        let from = request.extensions().get::<Peer>().map(|peer| peer.0.ip().to_canonical());
        let Caller { node } = self.authenticator.authenticate(bearer(request.metadata())?, from).await?;
        facts.node = Some(node.clone());
        self.admit(&node)?;
        Ok(node)
    }

    /// Judges a request and signs. `facts` is filled as things become known, for the log.
    async fn answer(&self, request: &Request<IstioCertificateRequest>, facts: &mut Facts) -> Result<(Issued, Vec<String>), Refusal> {
        let node = self.caller(request, facts).await?;
        let permit = self.room.try_acquire().map_err(|_| Refusal::Overloaded)?;
        let asked = request.get_ref();
        let csr = csr::read(&asked.csr)?;
        let identity = identity(&csr, asked)?;
        facts.identity = Some(identity.clone());
        // Who waits takes nobody's room.
        drop(permit);
        self.await_pod(&node, &identity).await?;
        let _permit = self.room.try_acquire().map_err(|_| Refusal::Overloaded)?;
        let authority = self.keeper.current();
        let lifetime = self.lifetimes.grant(asked.validity_duration);
        let issued = authority.sign(&csr.key, Subject::Workload(&identity), lifetime, SystemTime::now())?;
        let chain = authority.response(&issued.leaf);
        Ok((issued, chain))
    }

    /// Whether the node may have the identity, now or within the patience.
    async fn await_pod(&self, node: &Arc<str>, identity: &Identity) -> Result<(), Refusal> {
        // Before the first look, so that no change is missed.
        let mut changes = self.inventory.changes();
        let first = self.inventory.may_sign(node, identity);
        if self.patience.is_zero() || !matches!(first, Err(Refusal::NotOnNode { .. } | Refusal::NotRead)) {
            return first;
        }
        let now = Instant::now();
        let may_wait = {
            let mut limiter = self.wait_limiter.lock();
            limiter.sweep(now);
            limiter.admit(node, now)
        };
        if !may_wait {
            return first;
        }
        let shown = async {
            while changes.changed().await.is_ok() {
                if self.inventory.may_sign(node, identity).is_ok() {
                    return;
                }
            }
            std::future::pending().await
        };
        // Whatever woke it, the inventory as it is then decides.
        let _ = tokio::time::timeout(self.patience, shown).await;
        self.inventory.may_sign(node, identity)
    }

    fn admit(&self, node: &Arc<str>) -> Result<(), Refusal> {
        let now = Instant::now();
        let mut limiter = self.limiter.lock();
        limiter.sweep(now);
        if limiter.admit(node, now) { Ok(()) } else { Err(Refusal::TooOften((&**node).into())) }
    }

    /// The status of a refusal, counted and logged.
    fn refuse<T>(&self, request: &Request<T>, facts: &Facts, refusal: &Refusal) -> Status {
        let (reason, _, blame) = refusal.meaning();
        self.metrics.refused(reason);
        let asker = facts.node.clone().unwrap_or_default();
        if !self.log_limiter.lock().admit(&asker, Instant::now()) {
            return refusal.status();
        }
        let (peer, node, identity) = (peer(request), facts.node(), facts.identity());
        match blame {
            Blame::Client => tracing::warn!(peer, node, identity, reason, %refusal, "certificate refused"),
            Blame::Authority => tracing::error!(peer, node, identity, reason, %refusal, "certificate refused"),
        }
        refusal.status()
    }
}

impl Guard for CaService {
    fn let_in<'a>(&'a self, head: &'a Head) -> Entering<'a> {
        Box::pin(async move {
            let mut facts = Facts::default();
            match self.caller(head, &mut facts).await {
                Ok(node) => Ok(Entered { caller: Caller { node }, place: None }),
                Err(refusal) => Err(self.refuse(head, &facts, &refusal)),
            }
        })
    }
}

/// Where a request comes from, for the log.
fn peer<T>(request: &Request<T>) -> String {
    request.extensions().get::<Peer>().map(|peer| peer.0.to_string()).unwrap_or_default()
}

#[derive(Default)]
struct Facts {
    node: Option<Arc<str>>,
    identity: Option<Identity>,
}

impl Facts {
    fn node(&self) -> &str {
        self.node.as_deref().unwrap_or_default()
    }

    fn identity(&self) -> String {
        self.identity.as_ref().map(Identity::to_string).unwrap_or_default()
    }
}

/// The identity that is asked for: in the request's names, in the metadata as ztunnel does, or the same in both.
fn identity(csr: &Csr, asked: &IstioCertificateRequest) -> Result<Identity, Refusal> {
    let impersonated = asked.impersonated_identity().map_err(|_| Refusal::Metadata)?;
    let impersonated: Option<Identity> = impersonated.map(str::parse).transpose()?;
    match (csr.identity.clone(), impersonated) {
        (Some(csr), Some(impersonated)) if csr != impersonated => {
            Err(Refusal::TwoIdentities { csr: Box::new(csr), impersonated: Box::new(impersonated) })
        }
        (Some(identity), _) | (None, Some(identity)) => Ok(identity),
        (None, None) => Err(Refusal::NoIdentity),
    }
}

#[tonic::async_trait]
impl IstioCertificateService for CaService {
    async fn create_certificate(&self, request: Request<IstioCertificateRequest>) -> Result<Response<IstioCertificateResponse>, Status> {
        let mut facts = Facts::default();
        match self.answer(&request, &mut facts).await {
            Ok((issued, cert_chain)) => {
                self.metrics.issued.inc();
                let seconds = issued.validity.not_after.duration_since(SystemTime::now()).unwrap_or_default().as_secs();
                let (peer, node, identity) = (peer(&request), facts.node(), facts.identity());
                tracing::info!(peer, node, identity, serial = issued.serial, valid_for_s = seconds, "certificate issued");
                Ok(Response::new(IstioCertificateResponse { cert_chain }))
            }
            Err(refusal) => Err(self.refuse(&request, &facts, &refusal)),
        }
    }
}

#[cfg(test)]
mod tests;
