//! The whole: builds the parts, owns their tasks, ends them in order.

mod cluster;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use mesh_model::snapshot::Snapshot;
use mesh_proto::ca::istio_certificate_service_server::IstioCertificateServiceServer;
use mesh_proto::nodemesh::budgets_server::BudgetsServer;
use mesh_proto::nodemesh::keys_server::KeysServer;
use mesh_sources::{OpenError, Source, SourceSettings, SourceStatus};
use rcgen::KeyPair;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::PrivateKeyDer;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admin::Admin;
use crate::budgets::{self, BudgetService};
use crate::ca::authority::{AuthorityError, ServerName, Subject};
use crate::ca::hierarchy::HierarchyError;
use crate::ca::lifetime::Validity;
use crate::ca::objects::ObjectError;
use crate::ca::{Authenticator, Authority, CaService, Keeper, MeshInventory, NodeTokens, Objects, TokenReviews};
use crate::config::{AgentProof, Config};
use crate::files;
use crate::keys::{self, Book, Fetcher, KeysService, Terms, Upkeep};
use crate::leadership::{Election, Leadership};
use crate::metrics::Metrics;
use crate::ready::Readiness;
use crate::server::{self, Services};
use crate::status::Statuses;

/// How often the tokens' files are looked at.
const LOOK: Duration = Duration::from_millis(250);
/// How often the authority's own certificates are looked at.
const MAINTAIN: Duration = Duration::from_secs(30);
/// What is awaited from the start, for readiness; its reader begins once all else is there.
const CONFIGURATION: &str = "configuration";
/// What a call that has waited for news has left of a request's time for its answer.
const ANSWERING: Duration = Duration::from_secs(2);
/// Lifetime of the certificate that the server shows.
const SERVING_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Why it does not start, or ends.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// There is no authority.
    #[error("certificate authority: {0}")]
    Hierarchy(#[from] HierarchyError),
    /// The cluster does not give it.
    #[error("certificate authority: {0}")]
    Objects(#[from] ObjectError),
    /// The server has no certificate.
    #[error("serving certificate: {0}")]
    Serving(String),
    /// An address cannot be listened on.
    #[error("{setting} {address}: cannot listen: {error}")]
    Listen {
        /// The setting.
        setting: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        error: io::Error,
    },
    /// The roots cannot be written.
    #[error("--bundle-out {}: cannot be written: {error}", path.display())]
    Bundle {
        /// Where.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The configuration cannot be read.
    #[error(transparent)]
    Source(#[from] OpenError),
    /// A part ended that should not.
    #[error("{0} ended unexpectedly: {1}")]
    Ended(&'static str, String),
}

/// A running authority. [`Control::run`] ends it in order; dropped, it accepts nothing more, and connections that stand go with the runtime.
pub struct Control {
    ca_address: SocketAddr,
    admin_address: SocketAddr,
    keeper: Arc<Keeper>,
    metrics: Arc<Metrics>,
    stopping: CancellationToken,
    tasks: JoinSet<(&'static str, Result<(), String>)>,
}

impl Control {
    /// Builds and starts all parts. On a tokio runtime; it is serving when this returns.
    pub async fn start(config: Config) -> Result<Control, ControlError> {
        let now = SystemTime::now();
        // Nobody here needs a pod's network namespace.
        let source = Source::open(&config.mesh, None).await?;
        let (snapshots, status) = (source.subscribe(), source.status());
        let mut metrics = Metrics::new();
        metrics.show_source(status.clone());
        let (kept, book) = watch::channel(Arc::<Book>::default());
        keys::show(&mut metrics, book.clone());
        let metrics = Arc::new(metrics);
        let ready = Arc::new(Readiness::default());
        ready.wait_for(CONFIGURATION, "to be read");
        let mut tasks = JoinSet::new();
        let listen = |setting, address| async move {
            let failed = |error| ControlError::Listen { setting, address, error };
            let listener = TcpListener::bind(address).await.map_err(failed)?;
            let local = listener.local_addr().map_err(failed)?;
            Ok::<_, ControlError>((listener, local))
        };
        // First of all: whoever waits for an authority wants to know what it waits for itself.
        let (admin_listener, admin_address) = listen("--admin", config.admin).await?;
        let admin = Admin { metrics: metrics.clone(), ready: ready.clone() };
        tasks.spawn(async move {
            admin.serve(admin_listener).await;
            ("the operators' endpoint", Ok(()))
        });
        let kubeconfig = match &config.mesh {
            SourceSettings::Kubernetes { kubeconfig } => kubeconfig.as_deref(),
            SourceSettings::Manifests(_) => None,
        };
        let objects = match &config.objects {
            Some(names) => {
                let (client, _) = mesh_sources::kube::client(kubeconfig).await.map_err(OpenError::from)?;
                Some(Objects::new(client, names.clone()))
            }
            None => None,
        };
        let keeper = Arc::new(match &objects {
            Some(objects) => cluster::open(objects, &ready, now).await?,
            None => Keeper::open(&config.source, now)?,
        });
        let serving = Arc::new(Serving::new(config.names.clone(), &keeper.current(), now)?);
        let tls = server::tls(serving.clone()).map_err(|error| ControlError::Serving(error.to_string()))?;
        let (ca_listener, ca_address) = listen("--listen", config.listen).await?;
        // Written once the sockets stand: who waits for the file may connect.
        if let Some(path) = &config.bundle_out {
            files::write(path, keeper.current().roots_pem().as_bytes(), files::PUBLIC)
                .map_err(|error| ControlError::Bundle { path: path.clone(), error })?;
        }
        let inventory = Arc::new(MeshInventory::new(&snapshots.borrow()));
        let mut follower = None;
        let authenticator: Arc<dyn Authenticator> = match &config.agents {
            AgentProof::NodeTokens(path) => {
                let tokens = Arc::new(NodeTokens::open(path, now));
                let following = Follower { tokens: tokens.clone(), metrics: metrics.clone(), ready: ready.clone() };
                following.tell(true);
                follower = Some(following);
                tokens
            }
            AgentProof::TokenReview(settings) => {
                let (client, _) = mesh_sources::kube::client(kubeconfig).await.map_err(OpenError::from)?;
                Arc::new(TokenReviews::new(client, settings.clone()))
            }
        };
        note_expiry(&metrics, &keeper, &serving);
        let ca =
            CaService::new(keeper.clone(), authenticator.clone(), inventory.clone(), config.lifetimes, config.service, metrics.clone());
        // Whoever is alone leads.
        let (said, leadership) = watch::channel(match &config.lease {
            Some(_) => Leadership::Follows(None),
            None => Leadership::Leads(std::time::Instant::now()),
        });
        metrics.leader.set(i64::from(leadership.borrow().is_own()));
        let budgets = BudgetService::new(authenticator.clone(), leadership.clone(), snapshots.clone(), metrics.clone());
        let stopping = CancellationToken::new();
        let waiting = config.server.request.saturating_sub(ANSWERING);
        let keys = KeysService::new(authenticator, book.clone(), waiting, stopping.clone(), metrics.clone());
        let services = services(Arc::new(ca), budgets, keys, config.server.message);
        let (limits, counted, stop) = (config.server, metrics.clone(), stopping.clone());
        tasks.spawn(async move {
            let served = server::serve(ca_listener, tls, services, limits, counted, stop.cancelled()).await;
            ("the certificate service", served.map_err(|error| error.to_string()))
        });
        let (terms, fetcher) = (Terms::new(config.keys.refresh), Fetcher::new(config.keys.roots));
        tasks.spawn(Upkeep::new(terms, fetcher, snapshots.clone(), kept, metrics.clone()).run());
        tasks.spawn(await_source(snapshots.clone(), status, ready.clone()));
        if let Some(follower) = follower {
            tasks.spawn(async move { ("the follower of tokens", follower.run().await) });
        }
        tasks.spawn(async move {
            source.follow().await;
            ("the configuration source", Ok(()))
        });
        if let Some(lease) = config.lease {
            let (client, _) = mesh_sources::kube::client(kubeconfig).await.map_err(OpenError::from)?;
            let election =
                Election { client: client.clone(), lease: lease.clone(), advertised: config.advertise, metrics: metrics.clone() };
            tasks.spawn(election.run(said));
            let statuses = Statuses { client, lease, leadership, snapshots: snapshots.clone(), book, metrics: metrics.clone() };
            tasks.spawn(statuses.run());
        }
        tasks.spawn(take_snapshots(snapshots, inventory, metrics.clone()));
        if let Some(objects) = objects {
            tasks.spawn(cluster::follow(objects, keeper.clone(), serving.clone(), metrics.clone()));
        }
        tasks.spawn(maintain(keeper.clone(), serving, metrics.clone()));
        tracing::info!(ca = %ca_address, admin = %admin_address, "serving certificates");
        Ok(Control { ca_address, admin_address, keeper, metrics, stopping, tasks })
    }

    /// Where certificates are served.
    pub fn ca_address(&self) -> SocketAddr {
        self.ca_address
    }

    /// Where operators look.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// The authority in force.
    pub fn authority(&self) -> Arc<Authority> {
        self.keeper.current()
    }

    /// What is counted.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Runs until `stop` is ready, then lets requests end; an error if a part ends before.
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> Result<(), ControlError> {
        let early = tokio::select! {
            () = stop => None,
            ended = self.tasks.join_next() => ended,
        };
        self.stopping.cancel();
        let ended = |ended: Result<(&'static str, Result<(), String>), tokio::task::JoinError>| match ended {
            Ok((name, result)) => (name, result.err().unwrap_or_else(|| "without a word".into())),
            Err(error) => ("a task", error.to_string()),
        };
        if let Some(early) = early {
            let (name, why) = ended(early);
            return Err(ControlError::Ended(name, why));
        }
        tracing::info!("draining");
        // The server bounds its drain; the other tasks never end and go with the set.
        match self.tasks.join_next().await {
            None | Some(Ok(("the certificate service", Ok(())))) => {}
            Some(other) => {
                let (name, why) = ended(other);
                return Err(ControlError::Ended(name, why));
            }
        }
        tracing::info!("ended");
        Ok(())
    }
}

/// What is served to agents. Each call is judged by its head first: what nobody may send must not be kept.
fn services(ca: Arc<CaService>, budgets: BudgetService, keys: KeysService, longest: usize) -> Services {
    let (of_budgets, of_keys) = (budgets.gate(), keys.gate());
    let served = IstioCertificateServiceServer::from_arc(ca.clone())
        .max_decoding_message_size(longest)
        .max_encoding_message_size(server::MAX_ANSWER);
    let budgets = BudgetsServer::new(budgets).max_decoding_message_size(budgets::LONGEST).max_encoding_message_size(server::MAX_ANSWER);
    let keys = KeysServer::new(keys).max_decoding_message_size(keys::service::MAX_REQUEST).max_encoding_message_size(server::MAX_ANSWER);
    Services::default().behind(ca, "CreateCertificate", served).behind(of_budgets, "Lend", budgets).behind(of_keys, "Fetch", keys)
}

/// Not ready before the mesh is known: until then nothing is signed for anybody.
async fn await_source(
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    status: watch::Receiver<SourceStatus>,
    ready: Arc<Readiness>,
) -> (&'static str, Result<(), String>) {
    if mesh_sources::first_snapshot(&mut snapshots, status, |awaited| ready.wait_for(CONFIGURATION, awaited)).await.is_none() {
        return ("the configuration source", Err("ended before it was read".into()));
    }
    ready.done(CONFIGURATION);
    std::future::pending().await
}

/// Keeps the inventory in step with the configuration.
async fn take_snapshots(
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    inventory: Arc<MeshInventory>,
    metrics: Arc<Metrics>,
) -> (&'static str, Result<(), String>) {
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        inventory.take(&snapshot);
        metrics.identities.set(count(inventory.identities()));
        if snapshots.changed().await.is_err() {
            return ("the inventory", Err("nobody follows the configuration".into()));
        }
    }
}

fn count(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Follows the nodes' tokens.
struct Follower {
    tokens: Arc<NodeTokens>,
    metrics: Arc<Metrics>,
    ready: Arc<Readiness>,
}

impl Follower {
    async fn run(self) -> Result<(), String> {
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let tokens = self.tokens.clone();
            let looked = tokio::task::spawn_blocking(move || tokens.refresh(SystemTime::now()));
            let changed = looked.await.map_err(|error| error.to_string())?;
            self.tell(changed);
        }
    }

    fn tell(&self, changed: bool) {
        if changed {
            for problem in self.tokens.problems() {
                tracing::warn!(problem, "a node's token cannot be used");
            }
            tracing::info!(nodes = self.tokens.len(), "tokens of nodes read");
        }
        self.metrics.nodes.set(count(self.tokens.len()));
        if self.tokens.is_empty() {
            self.ready.wait_for("node tokens", self.tokens.problems().first().cloned().unwrap_or_else(|| "no node has one".into()));
        } else {
            self.ready.done("node tokens");
        }
    }
}

async fn maintain(keeper: Arc<Keeper>, serving: Arc<Serving>, metrics: Arc<Metrics>) -> (&'static str, Result<(), String>) {
    loop {
        tokio::time::sleep(MAINTAIN).await;
        let now = SystemTime::now();
        match keeper.maintain(now) {
            Ok(true) => tracing::info!("a new intermediate signs from here on"),
            Ok(false) => {}
            Err(error) => tracing::error!(%error, "the intermediate is due, but its successor cannot be made"),
        }
        if let Err(error) = serving.maintain(&keeper.current(), now) {
            tracing::error!(%error, "the server's own certificate is due, but its successor cannot be made");
        }
        note_expiry(&metrics, &keeper, &serving);
    }
}

fn note_expiry(metrics: &Metrics, keeper: &Keeper, serving: &Serving) {
    let authority = keeper.current();
    metrics.expires("root", authority.root_validity().not_after);
    metrics.expires("intermediate", authority.validity().not_after);
    metrics.expires("serving", serving.current.load().1.not_after);
}

/// The certificate that the server shows, renewed at half life.
#[derive(Debug)]
struct Serving {
    names: Vec<ServerName>,
    current: ArcSwap<(Arc<CertifiedKey>, Validity)>,
}

impl Serving {
    fn new(names: Vec<ServerName>, authority: &Authority, now: SystemTime) -> Result<Serving, ControlError> {
        let made = Serving::make(&names, authority, now).map_err(ControlError::Serving)?;
        Ok(Serving { names, current: ArcSwap::from_pointee(made) })
    }

    fn make(names: &[ServerName], authority: &Authority, now: SystemTime) -> Result<(Arc<CertifiedKey>, Validity), String> {
        let key = KeyPair::generate().map_err(|error| error.to_string())?;
        let issued = authority.sign(&key, Subject::Server(names), SERVING_LIFETIME, now).map_err(|e: AuthorityError| e.to_string())?;
        let chain = std::iter::once(issued.leaf).chain(authority.intermediates().iter().cloned()).collect();
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let certified = CertifiedKey::from_der(chain, key, &rustls::crypto::aws_lc_rs::default_provider());
        Ok((Arc::new(certified.map_err(|error| error.to_string())?), issued.validity))
    }

    fn maintain(&self, authority: &Authority, now: SystemTime) -> Result<(), String> {
        if now >= self.current.load().1.half() { self.renew(authority, now) } else { Ok(()) }
    }

    fn renew(&self, authority: &Authority, now: SystemTime) -> Result<(), String> {
        self.current.store(Arc::new(Serving::make(&self.names, authority, now)?));
        Ok(())
    }
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load().0.clone())
    }
}

#[cfg(test)]
mod tests;
