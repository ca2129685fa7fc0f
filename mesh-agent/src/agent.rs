//! Builds the parts, runs them, and takes them down in order.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::capture::cni::judge::Standings;
use crate::capture::cni::{self, installer, server};
use crate::capture::preflight::{self, Places};
use crate::config::{AfterHandover, Config, ConfigError, Required};
use crate::identity;
use crate::link::{Link, LinkError};
use crate::names;
use crate::ops::access::{AccessConfig, AccessFormat, AccessLog};
use crate::ops::clock::SystemClock;
use crate::ops::drain;
use crate::ops::log::{LogControl, LogFormat};
use crate::ops::metrics::server::MetricsEndpoint;
use crate::ops::metrics::{Kind, Metrics, MetricsConfig};
use crate::ops::ready::Readiness;
use crate::ops::record::Telemetry;
use crate::ops::trace::export::Exporter;
use crate::outcome::Outcome;
use crate::shared::Shared;
use crate::sources::Node;

pub mod adopted;
mod bequest;
pub mod budget;
pub mod cleanup;
pub mod control;
pub mod directory;
pub mod ended;
pub mod handover;
pub mod kernel;
mod keys;
mod lending;
pub mod lock;
mod pages;
pub mod pods;
mod reports;
pub mod revoke;
mod tenure;
pub mod workers;

use control::{Control, Reins, Views};
use handover::{Course, Door, Event, HandoverError, Place, Why};
use kernel::{Kernel, KernelError};
use keys::Kept;
use lending::Lending;
use pages::{admin, cni_pages, page};
use pods::Pods;
use tenure::{Tenure, succeed};
use workers::Workers;

/// Why the agent does not run.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Settings.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The node lacks something; a line each.
    #[error("this node cannot run the agent:\n{0}")]
    Lacks(String),
    /// The kernel's side.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Another agent of the instance.
    #[error(transparent)]
    Handover(#[from] HandoverError),
    /// The configuration.
    #[error(transparent)]
    Configuration(#[from] crate::sources::ConfigurationError),
    /// mesh-control.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The CNI plug-in's socket.
    #[error("{path}: {error} (--run-dir says where)")]
    Cni {
        /// Its path.
        path: PathBuf,
        /// What happened.
        error: io::Error,
    },
    /// A listener.
    #[error("cannot listen at {address} ({flag}): {error}")]
    Listen {
        /// Where.
        address: std::net::SocketAddr,
        /// The flag that says so.
        flag: &'static str,
        /// What happened.
        error: io::Error,
    },
    /// The system.
    #[error("{0}: {1}")]
    System(&'static str, io::Error),
    /// A part ended that must not.
    #[error("{0} ended unexpectedly")]
    Ended(String),
}

/// Every lack of this node; empty if it can run the agent.
pub fn lacks(config: &Config) -> Vec<preflight::Lack> {
    preflight::check(&Places::new(&config.cgroup_root, &config.pods_cgroup(), &config.bpffs))
}

/// Runs until SIGTERM or SIGINT, or until another agent has taken its place, then drains. An error means that it could not start, or that a part of it broke.
pub async fn run(config: Config, log: LogControl) -> Result<(), AgentError> {
    let required = config.required()?;
    let lacks = lacks(&config);
    if !lacks.is_empty() {
        return Err(AgentError::Lacks(lacks.iter().map(|lack| format!("- {lack}")).collect::<Vec<_>>().join("\n")));
    }
    let descriptors = budget::raise_descriptor_limit();
    let pod_limit = config.max_connections_per_pod.unwrap_or_else(|| budget::default_limit(descriptors));
    tracing::info!(descriptors, connections = pod_limit, "limits of this process and of one pod");
    let config = Config { max_connections_per_pod: Some(pod_limit), ..config };
    let directory = lock::directory(&config.run_dir, &config.instance).map_err(HandoverError::from)?;
    let place = handover::find(&directory).await?;
    let readiness = Readiness::new();
    let start = readiness.block("the start");
    match Agent::build(config, required, log, readiness, &directory, place).await {
        Ok(agent) => {
            drop(start);
            agent.serve().await
        }
        Err(error) => {
            start.never();
            Err(error)
        }
    }
}

/// What the container runtime says and nobody has taken up yet, at most; then it waits.
const TOLD: usize = 256;

struct Agent {
    config: Config,
    telemetry: Arc<Telemetry>,
    readiness: Readiness,
    trigger: drain::DrainTrigger,
    tenure: Tenure,
    events: mpsc::UnboundedReceiver<Event>,
    workers: Workers,
    workers_ended: workers::Ended,
    tasks: JoinSet<&'static str>,
}

impl Agent {
    async fn build(
        config: Config,
        required: Required,
        log: LogControl,
        readiness: Readiness,
        directory: &Path,
        place: Place,
    ) -> Result<Self, AgentError> {
        let metrics = Arc::new(Metrics::new(MetricsConfig { cluster: config.cluster.as_str().into(), ..MetricsConfig::default() }));
        let access = Arc::new(start_access_log(&config, &metrics)?);
        let telemetry = Telemetry::new(metrics.clone(), access);
        let (trigger, drain) = drain::new();
        let mut tasks = JoinSet::new();

        // Liveness and readiness can be asked for from the start, unless the agent before this one has the port.
        let endpoint = Arc::new(MetricsEndpoint::new(metrics.clone(), readiness.clone(), Arc::new(SystemClock)));
        let pages = CancellationToken::new();
        if matches!(place, Place::Free(_)) {
            let listener = bind(config.metrics_listen, "--metrics-listen", Duration::ZERO).await?;
            page(&mut tasks, "metrics endpoint", listener, endpoint.clone(), &pages);
        }

        let blocker = readiness.block("the configuration");
        let pods = readiness.block("the pods of this node");
        let node = Node { name: config.node.as_str().into(), proc: config.host_proc.clone(), kept: cni::kept(directory) };
        let (tell, told) = mpsc::channel(TOLD);
        let source = crate::sources::start(&required.source, node, told, &mut tasks, &metrics, &blocker).await?;
        drop(blocker);

        let exporter = Exporter { cluster: config.cluster.as_str().into(), node: config.node.as_str().into() };
        spawn(&mut tasks, "the exporter of spans", exporter.run(telemetry.spans().clone(), source.snapshots.clone()));

        let link = Arc::new(Link::new(config.link(&required.ca))?);
        let secrets = identity::start(&config, &required.ca, &link, &mut tasks, &metrics);
        let kept = Kept::of(directory);
        let left = keys::left(&kept);
        let issuers = keys::start(link.clone(), kept, &mut tasks, &metrics);
        issuers.expect(keys::needed(&source.first, &config.node));
        let mut kernel = Kernel::load(&config, &required.pods_cgroup)?;
        let (lock, predecessor) = match place {
            Place::Free(lock) => {
                keys::at_hand(&issuers, left, keys::AT_START).await;
                (lock, None)
            }
            Place::Taken(predecessor) => {
                let identities = Pods::of(&config, Arc::default(), Arc::default()).identities(&source.first);
                let taken = succeed(predecessor, directory, &secrets, identities, &issuers, left).await?;
                let listener = bind(config.metrics_listen, "--metrics-listen", handover::PATIENCE).await?;
                page(&mut tasks, "metrics endpoint", listener, endpoint, &pages);
                taken
            }
        };
        let (door, events) = Door::open(directory)?;
        kernel.take_over(predecessor.is_some())?;
        let shared = Arc::new(Shared::new(&config, source.first, telemetry.clone(), secrets.clone(), issuers, kernel.pins()));
        shared.collect(&metrics);
        if predecessor.is_some() {
            match bequest::take(directory, SystemTime::now()) {
                Ok(left) => shared.limits.take_over(Instant::now(), left),
                Err(error) => tracing::warn!(%error, "what is left of rate limits' budgets is not known: they begin full"),
            }
        }
        let reins = Reins::default();
        let counts = Arc::default();
        lending::collect(&metrics, &counts);
        let lending = Lending { link, limits: shared.limits.clone(), counts, stop: reins.stop.clone() };
        spawn(&mut tasks, "budgets of Services", lending.run());
        names::resolver::start(&mut tasks, &config.dns_server, shared.names.clone());
        let count = config.workers.map_or_else(default_workers, usize::from);
        let (workers, workers_ended) = Workers::start(count, &shared, &drain).map_err(|e| AgentError::System("starting workers", e))?;
        drop(drain);

        let (status_tx, status) = watch::channel(Arc::new(serde_json::Value::Null));
        let (standings_tx, standings) = watch::channel(Arc::<Standings>::default());
        let views = Views { status: status_tx, standings: standings_tx };
        let patience = if predecessor.is_some() { handover::PATIENCE } else { Duration::ZERO };
        let control = Control::new(config.clone(), shared.clone(), kernel, secrets.clone(), pods, views, predecessor)?;
        let (installed_tx, installed) = watch::channel(installer::State::default());
        let admin = admin(&config, &telemetry, log, &shared, status, source.status);
        let admin = cni_pages(admin, &config, directory, standings.clone(), installed);
        let listener = bind(config.admin_listen, "--admin-listen", patience).await?;
        page(&mut tasks, "admin endpoint", listener, Arc::new(admin), &pages);
        let (assign, limits) = (workers.handle(), shared.limits.clone());
        let held = reins.clone();
        let answers = server::Server {
            node: config.node.as_str().into(),
            proc: config.host_proc.clone(),
            patience: config.cni_timeout,
            snapshots: source.snapshots.clone(),
            standings,
            told: tell,
            metrics,
        };
        answer_cni(&mut tasks, &config, directory, answers, &readiness, installed_tx, &reins.stop)?;
        tasks.spawn_local(async move {
            control.run(source.snapshots, assign, held).await;
            "control loop"
        });
        let tenure = Tenure { lock: Some(lock), door: Some(door), reins, pages, limits, directory: directory.to_path_buf() };
        Ok(Agent { tenure, events, config, telemetry, readiness, trigger, workers, workers_ended, tasks })
    }

    async fn serve(mut self) -> Result<(), AgentError> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut term = signal(SignalKind::terminate()).map_err(|e| AgentError::System("SIGTERM", e))?;
        let mut int = signal(SignalKind::interrupt()).map_err(|e| AgentError::System("SIGINT", e))?;
        let mut course = Course::default();
        let end = loop {
            if let Some(why) = course.drain(Instant::now()) {
                break Ok(why);
            }
            let due = course.due();
            tokio::select! {
                _ = term.recv() => self.asked(&mut course),
                _ = int.recv() => self.asked(&mut course),
                Some(event) = self.events.recv() => self.tenure.heed(event, &mut course).await,
                () = reached(due) => {}
                ended = self.tasks.join_next() => break Err(match ended {
                    Some(Ok(name)) => name.to_owned(),
                    Some(Err(error)) => error.to_string(),
                    None => "everything".to_owned(),
                }),
                worker = self.workers_ended.recv() => break Err(format!("worker {}", worker.unwrap_or_default())),
            }
        };
        let limit = self.config.drain_time;
        match &end {
            Ok(Why::Asked) => tracing::info!(?limit, "asked to end: draining"),
            Ok(Why::HandedOver) => tracing::info!(?limit, "another agent serves this one's pods: draining"),
            Ok(Why::SuccessorGone) => {
                tracing::error!(?limit, "the agent that took over is gone and nobody serves new connections: draining")
            }
            Ok(Why::Stuck) => tracing::error!(?limit, "the control loop hangs: draining"),
            Ok(Why::SuccessorLate) => tracing::error!(?limit, "the agent that took over has not said that it serves: draining"),
            Err(part) => tracing::error!(%part, "a part of the agent ended unexpectedly: draining"),
        }
        let _draining = self.readiness.block("the end: the agent drains");
        let stays = self.config.after_handover == AfterHandover::Stay;
        // One that came during the drain is still to be heard.
        if self.finish(&mut course, end.is_ok()).await && stays && end.is_ok() && !course.is_asked() {
            tracing::info!("another agent has taken this one's place: waiting for SIGTERM (--after-handover=stay)");
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
        }
        match end {
            Ok(Why::Stuck) => Err(AgentError::Ended("the control loop".to_owned())),
            other => other.map(drop).map_err(AgentError::Ended),
        }
    }

    fn asked(&self, course: &mut Course) {
        let now = Instant::now();
        course.asked(now);
        if course.drain(now).is_none() {
            tracing::info!(limit = ?handover::SUCCESSION, "asked to end: serving on until the agent that starts has taken over");
        }
    }

    /// Connections may finish; those that have not by the deadline are ended. The kernel's programs stay: what is captured from now on is
    /// refused, until another agent takes over, which it may ask for even now. `whole`: every part still runs. Returns whether another has
    /// taken over.
    async fn finish(self, course: &mut Course, whole: bool) -> bool {
        let Agent { config, telemetry, trigger, workers, mut tenure, mut events, tasks: _tasks, .. } = self;
        // What waits at the listeners when they are closed must be taken care of first.
        if !tenure.stop_writing().await && whole {
            tracing::error!("the control loop does not stop: connections that wait to be accepted may be reset");
        }
        let live = telemetry.live().clone();
        let deadline = config.drain_time;
        // By the clock, not by a watch of the drain: it would be waited for.
        tokio::task::spawn_local(async move {
            tokio::time::sleep(deadline).await;
            live.close_where(&Outcome::Drained, |_| true);
        });
        let how = {
            let mut draining = std::pin::pin!(trigger.drain(config.drain_time, Duration::from_secs(2)));
            loop {
                tokio::select! {
                    how = &mut draining => break how,
                    Some(event) = events.recv() => tenure.heed(event, course).await,
                }
            }
        };
        tracing::info!(?how, "drained");
        if how != drain::Drained::Abandoned {
            workers.join();
        }
        telemetry.access().flush(Duration::from_secs(1));
        telemetry.spans().flush(Duration::from_secs(1)).await;
        course.is_released()
    }
}

async fn reached(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn start_access_log(config: &Config, metrics: &Metrics) -> Result<AccessLog, AgentError> {
    let format = config.access_log_format.unwrap_or(match config.log_format {
        LogFormat::Text => AccessFormat::Text,
        LogFormat::Json => AccessFormat::Json,
    });
    let rate = f64::from(config.access_log_rate);
    let settings = AccessConfig { level: config.access_log, format, rate, burst: rate * 5.0 };
    AccessLog::start(settings, io::stdout(), &metrics.agent, Instant::now()).map_err(|e| AgentError::System("starting the access log", e))
}

/// `patience`: how long whoever has the address is waited for.
async fn bind(address: std::net::SocketAddr, flag: &'static str, patience: Duration) -> Result<TcpListener, AgentError> {
    let deadline = tokio::time::Instant::now() + patience;
    loop {
        match TcpListener::bind(address).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            other => return other.map_err(|error| AgentError::Listen { address, flag, error }),
        }
    }
}

/// Answers the CNI plug-in, and only then puts it on the node, until `stop`; the tasks never end then, as the agent goes on without them.
fn answer_cni(
    tasks: &mut JoinSet<&'static str>,
    config: &Config,
    directory: &Path,
    answers: server::Server,
    readiness: &Readiness,
    installed: watch::Sender<installer::State>,
    stop: &CancellationToken,
) -> Result<(), AgentError> {
    let path = cni::socket(directory);
    let listener = server::bind(&path).map_err(|error| AgentError::Cni { path: path.clone(), error })?;
    let (metrics, installer) = (answers.metrics.clone(), config.cni_installer(&path));
    let stopped = stop.clone();
    spawn(tasks, "answers to the CNI plug-in", async move {
        answers.serve(listener, stopped.clone()).await;
        if stopped.is_cancelled() {
            std::future::pending().await
        }
    });
    let Some(installer) = installer else { return Ok(()) };
    let states = installed.subscribe();
    metrics.collect(move |samples| {
        let is = matches!(*states.borrow(), installer::State::Installed(_));
        let help = "Whether the CNI plug-in is in the node's network configuration: 1 or 0.";
        samples.family("nodemesh_cni_installed", help, Kind::Gauge).sample(&[], f64::from(u8::from(is)));
    });
    let (readiness, stop) = (readiness.clone(), stop.clone());
    spawn(tasks, "upkeep of the CNI plug-in", async move {
        installer.keep(readiness, installed, stop.clone()).await;
        if stop.is_cancelled() {
            std::future::pending().await
        }
    });
    Ok(())
}

fn spawn(tasks: &mut JoinSet<&'static str>, name: &'static str, task: impl Future<Output = ()> + 'static) {
    tasks.spawn_local(async move {
        task.await;
        name
    });
}

/// Seconds since 1970.
pub(crate) fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
