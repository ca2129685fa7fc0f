//! The access log: one line a finished connection. Which lines is settled first and cheaply; then the rate limit; only then is text made, and
//! handed to a thread of its own. The data path never waits for a log.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use mesh_model::service::NamespacedName;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::watch;

use super::metrics::agent::{AgentMetrics, LineResult};
use super::metrics::labels::PeerInfo;
use super::record::{Connection, DryRun};
use super::request::RequestLine;
use crate::outcome::Outcome;

mod limit;
mod line;
mod writer;

pub use limit::TokenBucket;
pub use writer::Writer;

/// Which connections have a line.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum AccessLevel {
    /// None.
    Off,
    /// Those that were denied.
    Denied,
    /// All.
    All,
}

impl AccessLevel {
    /// The words that are valid.
    pub const NAMES: &'static str = "off, denied, all";

    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            AccessLevel::Off => "off",
            AccessLevel::Denied => "denied",
            AccessLevel::All => "all",
        }
    }

    fn from_u8(value: u8) -> AccessLevel {
        match value {
            0 => AccessLevel::Off,
            1 => AccessLevel::Denied,
            _ => AccessLevel::All,
        }
    }
}

impl fmt::Display for AccessLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that is no level or format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{given}\" is not one of: {valid}")]
pub struct UnknownWord {
    given: String,
    valid: &'static str,
}

impl FromStr for AccessLevel {
    type Err = UnknownWord;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "off" => Ok(AccessLevel::Off),
            "denied" => Ok(AccessLevel::Denied),
            "all" => Ok(AccessLevel::All),
            _ => Err(UnknownWord { given: s.chars().take(64).collect(), valid: Self::NAMES }),
        }
    }
}

/// Form of the lines.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum AccessFormat {
    /// `key=value` pairs after the time.
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for AccessFormat {
    type Err = UnknownWord;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "text" => Ok(AccessFormat::Text),
            "json" => Ok(AccessFormat::Json),
            _ => Err(UnknownWord { given: s.chars().take(64).collect(), valid: "text, json" }),
        }
    }
}

/// As this node sees a connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Direction {
    /// From a pod of this node.
    Outbound,
    /// To a pod of this node.
    Inbound,
    /// Between two pods of this node, judged in the kernel.
    Local,
}

impl Direction {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Direction::Outbound => "outbound",
            Direction::Inbound => "inbound",
            Direction::Local => "local",
        }
    }
}

/// What a line is made from.
#[derive(Clone, Copy, Debug)]
pub struct AccessLine<'a> {
    /// When the connection ended.
    pub time: SystemTime,
    /// Whose it was.
    pub connection: &'a Connection,
    /// From the client, to the client.
    pub bytes: (u64, u64),
    /// How long it lived.
    pub duration: Duration,
    /// How it ended.
    pub outcome: &'a Outcome,
    /// Policy in dry run that would have denied it.
    pub dry_run: Option<&'a DryRun>,
    /// The request, where HTTP is parsed.
    pub request: Option<&'a RequestLine>,
}

/// Settings of the access log.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct AccessConfig {
    /// Level of the node.
    pub level: AccessLevel,
    /// Form.
    pub format: AccessFormat,
    /// Lines a second, of denials and of others each.
    pub rate: f64,
    /// Lines at once, of denials and of others each.
    pub burst: f64,
}

impl Default for AccessConfig {
    fn default() -> Self {
        AccessConfig { level: AccessLevel::Denied, format: AccessFormat::Text, rate: 200.0, burst: 1000.0 }
    }
}

struct Class {
    bucket: TokenBucket,
    suppressed: u64,
}

/// The access log of the node.
pub struct AccessLog {
    node: AtomicU8,
    overrides: ArcSwap<HashMap<NamespacedName, AccessLevel>>,
    read: watch::Sender<bool>,
    format: AccessFormat,
    /// Denials, others: a flood of the one must not hide the other.
    classes: [Mutex<Class>; 2],
    writer: Writer,
    suppressed: Counter,
    lost: Counter,
}

/// Most workloads with a level of their own.
const MAX_OVERRIDES: usize = 1000;

/// Too many workloads have a level of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{MAX_OVERRIDES} workloads have a level of their own already; set some to \"default\" first")]
pub struct TooManyOverrides;

impl AccessLog {
    /// A log that writes to `out` from a thread of its own. Fails if the thread can't be started.
    pub fn start(
        config: AccessConfig,
        out: impl std::io::Write + Send + 'static,
        metrics: &AgentMetrics,
        now: Instant,
    ) -> std::io::Result<AccessLog> {
        let lost = metrics.access_lines(LineResult::Lost);
        let writer = Writer::start(out, metrics.access_lines(LineResult::Written), lost.clone())?;
        let class = || Mutex::new(Class { bucket: TokenBucket::new(config.rate, config.burst, now), suppressed: 0 });
        Ok(AccessLog {
            node: AtomicU8::new(config.level as u8),
            overrides: ArcSwap::default(),
            read: watch::Sender::new(config.level == AccessLevel::All),
            format: config.format,
            classes: [class(), class()],
            writer,
            suppressed: metrics.access_lines(LineResult::Suppressed),
            lost,
        })
    }

    /// Level of the node.
    pub fn level(&self) -> AccessLevel {
        AccessLevel::from_u8(self.node.load(Ordering::Relaxed))
    }

    /// Changes the level of the node.
    pub fn set_level(&self, level: AccessLevel) {
        self.node.store(level as u8, Ordering::Relaxed);
        self.settle();
    }

    /// Whether a connection that was no denial may have a line, at the node's level or at a workload's: what is worth reporting of them.
    /// Follows the levels.
    pub fn reads_all(&self) -> watch::Receiver<bool> {
        self.read.subscribe()
    }

    fn settle(&self) {
        self.read.send_if_modified(|read| {
            let now = self.level() == AccessLevel::All || self.overrides.load().values().any(|level| *level == AccessLevel::All);
            std::mem::replace(read, now) != now
        });
    }

    /// Workloads with a level of their own.
    pub fn overrides(&self) -> Arc<HashMap<NamespacedName, AccessLevel>> {
        self.overrides.load_full()
    }

    /// Gives a workload (a pod, or the Deployment or the like that it belongs to) a level of its own, or takes it away.
    /// It need not exist yet.
    pub fn set_override(&self, workload: NamespacedName, level: Option<AccessLevel>) -> Result<(), TooManyOverrides> {
        let mut full = false;
        self.overrides.rcu(|now| {
            let mut next = HashMap::clone(now);
            full = false;
            match level {
                Some(level) => {
                    full = next.len() >= MAX_OVERRIDES && !next.contains_key(&workload);
                    if !full {
                        next.insert(workload.clone(), level);
                    }
                }
                None => {
                    next.remove(&workload);
                }
            }
            next
        });
        self.settle();
        if full { Err(TooManyOverrides) } else { Ok(()) }
    }

    /// The level that holds for a connection: of its workloads the more talkative, else the node's.
    fn level_for(&self, connection: &Connection) -> AccessLevel {
        let overrides = self.overrides.load();
        if overrides.is_empty() {
            return self.level();
        }
        let of = |peer: &PeerInfo| {
            let workload = peer.workload.as_ref()?;
            let named = |name: &Arc<str>| overrides.get(&NamespacedName { namespace: workload.namespace.clone(), name: name.clone() });
            named(&workload.name).or_else(|| named(&workload.canonical.workload)).copied()
        };
        of(&connection.labels.source).max(of(&connection.labels.destination)).unwrap_or_else(|| self.level())
    }

    /// Writes the line of a finished connection, if its level and the rate allow.
    pub fn record(&self, line: &AccessLine<'_>, now: Instant) {
        let denial = line.outcome.is_denial();
        let wanted = match self.level_for(line.connection) {
            AccessLevel::Off => false,
            AccessLevel::Denied => denial || line.dry_run.is_some(),
            AccessLevel::All => true,
        };
        if !wanted {
            return;
        }
        let [denials, others] = &self.classes;
        let suppressed = {
            let mut class = if denial { denials } else { others }.lock();
            if !class.bucket.take(now) {
                class.suppressed += 1;
                self.suppressed.inc();
                return;
            }
            std::mem::take(&mut class.suppressed)
        };
        if suppressed > 0 {
            self.writer.send(line::suppressed(self.format, line.time, denial, suppressed));
        }
        self.writer.send(line::write(self.format, line));
    }

    /// Whether the line of a connection that was no denial would be left out now, by the node's level or by the rate; if so it is counted as
    /// left out. For records that come by the thousand, of which making a line to throw away costs more than all else.
    pub fn leaves_out(&self, now: Instant) -> bool {
        if !self.overrides.load().is_empty() {
            return false;
        }
        if self.level() != AccessLevel::All {
            return true;
        }
        let [_, others] = &self.classes;
        let mut class = others.lock();
        if class.bucket.has(now) {
            return false;
        }
        class.suppressed += 1;
        self.suppressed.inc();
        true
    }

    /// Waits until what was recorded so far is written, up to `deadline`; says whether it was. Blocks: for the end of the process.
    pub fn flush(&self, deadline: Duration) -> bool {
        self.writer.flush(deadline)
    }

    /// Lines that were lost because the writer was behind.
    pub fn lost(&self) -> u64 {
        self.lost.get()
    }
}

#[cfg(test)]
mod tests;
