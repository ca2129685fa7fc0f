//! The names that ServiceEntries have in the place of addresses: looked up on the node, so that where a connection goes is what the node's
//! own name servers say, and never what a client makes up.
//!
//! [`table`] decides when which name is asked for and what of an answer counts; [`resolver`] asks.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use mesh_model::service::{Discovery, DnsEndpoint, ServiceEndpoint, ServicePort};
use mesh_model::snapshot::Snapshot;
use tokio::sync::watch;

use crate::ops::metrics::{Kind, Metrics};

pub mod resolver;
pub mod table;

/// Names that are looked up at once, at most; what is more is not looked up at all. Namespaces get their places in turn.
pub const MOST: usize = 1024;

/// What the names stand for at one moment.
#[derive(Default)]
struct Answers {
    /// Counts up with each change.
    generation: u64,
    by_name: HashMap<Arc<str>, Known>,
    /// Names that have been asked for at least once, whatever came of it.
    asked: HashSet<Arc<str>>,
}

/// What is known of a name.
#[derive(Clone, PartialEq, Debug)]
pub struct Known {
    /// In the order of the answer.
    pub addresses: Arc<[IpAddr]>,
    /// When a name server said so last.
    pub since: Instant,
}

/// The names in use, for everybody.
pub struct Names {
    answers: ArcSwap<Answers>,
    wanted: watch::Sender<Arc<BTreeSet<Arc<str>>>>,
    /// Counts up with each answer, and with each name that is found to have none, for those who wait.
    news: watch::Sender<u64>,
    left_out: ArcSwap<LeftOut>,
    answered: AtomicU64,
    failed: AtomicU64,
}

impl Default for Names {
    fn default() -> Self {
        let (wanted, _) = watch::channel(Arc::default());
        let (news, _) = watch::channel(0);
        Names {
            answers: ArcSwap::default(),
            wanted,
            news,
            left_out: ArcSwap::default(),
            answered: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        }
    }
}

/// Names by the namespace of the entries that have them.
pub type Wanted = BTreeMap<Arc<str>, BTreeSet<Arc<str>>>;

/// The names that the pods of a node may come to need: those of the entries that the namespace of one of them knows.
pub fn wanted(snapshot: &Snapshot, node: &str) -> Wanted {
    let local = snapshot.workloads().filter(|workload| workload.enrolled && *workload.node == *node);
    let namespaces: HashSet<&str> = local.map(|workload| &*workload.namespace).collect();
    let known = snapshot.entries().filter(|entry| namespaces.iter().any(|namespace| entry.is_known_to(namespace)));
    let mut all = Wanted::new();
    for entry in known {
        let names: Vec<_> = entry.ports.iter().filter_map(|port| port.discovery.names()).collect();
        if !names.is_empty() {
            let own = all.entry(entry.name.namespace.clone()).or_default();
            own.extend(names.iter().flat_map(|names| names.iter()).map(|name| name.host.clone()));
        }
    }
    all
}

/// So many of the names at most, taken from each namespace in turn, so that none with many of them leaves another without. Of one namespace
/// those come first that `in_use` says yes to: one that more is wanted of does not lose what it has.
fn shared_out(wanted: &Wanted, most: usize, in_use: impl Fn(&str) -> bool) -> BTreeSet<Arc<str>> {
    let in_order = |names: &BTreeSet<Arc<str>>| {
        let (first, others): (Vec<_>, Vec<_>) = names.iter().cloned().partition(|name| in_use(name));
        first.into_iter().chain(others)
    };
    let mut queues: Vec<_> = wanted.values().map(in_order).collect();
    let mut chosen = BTreeSet::new();
    while !queues.is_empty() && chosen.len() < most {
        queues.retain_mut(|queue| {
            // One that has its place through another namespace needs none of this one's.
            let next = queue.find(|name| !chosen.contains(name));
            next.is_some_and(|name| chosen.len() < most && chosen.insert(name))
        });
    }
    chosen
}

/// Names that there was no place for.
#[derive(Default)]
struct LeftOut {
    count: usize,
    /// One that several namespaces have counts for each of them.
    by_namespace: BTreeMap<Arc<str>, usize>,
}

impl LeftOut {
    fn of(wanted: &Wanted, chosen: &BTreeSet<Arc<str>>) -> LeftOut {
        let without = |names: &BTreeSet<Arc<str>>| names.difference(chosen).count();
        let all: BTreeSet<&Arc<str>> = wanted.values().flat_map(|names| names.difference(chosen)).collect();
        let by_namespace = wanted.iter().map(|(namespace, names)| (namespace.clone(), without(names))).filter(|(_, count)| *count > 0);
        LeftOut { count: all.len(), by_namespace: by_namespace.collect() }
    }
}

/// How long the first answer about a name is waited for.
pub const FIRST_ANSWER: Duration = Duration::from_secs(2);

impl Names {
    /// Says which names are to be looked up from now on.
    pub fn want(&self, wanted: &Wanted) {
        let answers = self.answers.load();
        let names = shared_out(wanted, MOST, |name| answers.by_name.get(name).is_some_and(|known| !known.addresses.is_empty()));
        let left_out = LeftOut::of(wanted, &names);
        let before = self.left_out.load();
        for (namespace, left_out) in left_out.by_namespace.iter().filter(|(namespace, _)| !before.by_namespace.contains_key(*namespace)) {
            tracing::warn!(
                %namespace, left_out, most = MOST,
                "ServiceEntries have more names than are looked up: hosts of the others have no endpoint"
            );
        }
        self.left_out.store(Arc::new(left_out));
        self.wanted.send_if_modified(|now| {
            let differs = **now != names;
            if differs {
                *now = Arc::new(names);
            }
            differs
        });
    }

    /// Counts up whenever a name comes to stand for something else.
    pub fn generation(&self) -> u64 {
        self.answers.load().generation
    }

    /// The endpoints of a port now. Addresses of pods are theirs.
    pub fn endpoints<'p>(&self, snapshot: &Snapshot, port: &'p ServicePort) -> Cow<'p, [ServiceEndpoint]> {
        let Discovery::Dns { names, first } = &port.discovery else { return Cow::Borrowed(&port.endpoints) };
        let answers = self.answers.load();
        let mut all = port.endpoints.clone();
        for name in names.iter() {
            let addresses = answers.by_name.get(&name.host).map(|known| &*known.addresses).unwrap_or_default();
            let chosen = addresses.iter().enumerate().filter(|(index, ip)| {
                // One of each family: a client can reach only one of them, perhaps.
                !first || !addresses.iter().take(*index).any(|other| other.is_ipv4() == ip.is_ipv4())
            });
            for (_, ip) in chosen {
                let address = SocketAddr::new(*ip, name.port);
                // What stands for a Service are its pods: behind its address nobody would know them.
                match snapshot.behind(address) {
                    Some(behind) => all.extend(behind.iter().cloned()),
                    None => all.push(ServiceEndpoint {
                        address,
                        workload: snapshot.workload_at(*ip).map(|workload| workload.uid.clone()),
                        traits: name.traits.clone(),
                    }),
                }
            }
        }
        all.sort_by_key(|endpoint| endpoint.address);
        all.dedup_by_key(|endpoint| endpoint.address);
        Cow::Owned(all)
    }

    /// Waits until each of these names has been asked for once, for `limit` at most: an entry that has just been made is not without
    /// endpoints only because nobody has looked yet.
    pub async fn settle(&self, names: &[DnsEndpoint], limit: Duration) {
        let known = || {
            let answers = self.answers.load();
            names.iter().all(|name| answers.asked.contains(&name.host))
        };
        if known() {
            return;
        }
        let mut news = self.news.subscribe();
        let waiting = async { while !known() && news.changed().await.is_ok() {} };
        // Who is not known by then has no endpoint.
        let _ = tokio::time::timeout(limit, waiting).await;
    }

    /// Whether a name server has ever said what a name stands for.
    pub fn knows(&self, name: &str) -> bool {
        self.answers.load().by_name.contains_key(name)
    }

    /// Whether an address is one that the port's endpoints have, on whichever port: a client dials the port of the entry.
    pub fn stands_for(&self, port: &ServicePort, address: IpAddr) -> bool {
        let address = address.to_canonical();
        if port.endpoints.iter().any(|endpoint| endpoint.address.ip() == address) {
            return true;
        }
        let Discovery::Dns { names, .. } = &port.discovery else { return false };
        let answers = self.answers.load();
        names.iter().any(|name| answers.by_name.get(&name.host).is_some_and(|known| known.addresses.contains(&address)))
    }

    /// Puts what names stand for in force.
    pub(crate) fn publish(&self, by_name: HashMap<Arc<str>, Known>, asked: HashSet<Arc<str>>) {
        let before = self.answers.load();
        let same = |known: &HashMap<Arc<str>, Known>| {
            known.len() == by_name.len()
                && by_name.iter().all(|(name, now)| known.get(name).is_some_and(|then| then.addresses == now.addresses))
        };
        let generation = before.generation + u64::from(!same(&before.by_name));
        let news = generation != before.generation || asked != before.asked;
        self.answers.store(Arc::new(Answers { generation, by_name, asked }));
        if news {
            self.news.send_modify(|count| *count += 1);
        }
    }

    /// Registers what is counted.
    pub fn collect(self: &Arc<Self>, metrics: &Metrics) {
        let names = self.clone();
        metrics.collect(move |samples| {
            let (answers, left_out) = (names.answers.load(), names.left_out.load());
            let (wanted, now) = (names.wanted.borrow().clone(), Instant::now());
            let known = wanted.iter().filter_map(|name| answers.by_name.get(name));
            let oldest = known.clone().map(|known| now.saturating_duration_since(known.since)).max().unwrap_or_default();
            let with = known.filter(|known| !known.addresses.is_empty()).count();
            let mut all = samples.family(
                "nodemesh_dns_names",
                "Names of ServiceEntries that are looked up, by whether they stand for addresses.",
                Kind::Gauge,
            );
            all.sample(&[("state", "resolved")], with as f64);
            all.sample(&[("state", "unresolved")], wanted.len().saturating_sub(with) as f64);
            all.sample(&[("state", "left_out")], left_out.count as f64);
            let help = "Names of ServiceEntries that are not looked up because there are too many, by the entries' namespace.";
            let mut without = samples.family("nodemesh_dns_names_left_out", help, Kind::Gauge);
            for (namespace, count) in &left_out.by_namespace {
                without.sample(&[("namespace", namespace)], *count as f64);
            }
            let mut lookups = samples.family("nodemesh_dns_lookups", "Lookups of such names, by result.", Kind::Counter);
            lookups.sample(&[("result", "answered")], names.answered.load(Ordering::Relaxed) as f64);
            lookups.sample(&[("result", "failed")], names.failed.load(Ordering::Relaxed) as f64);
            let help = "Age of the oldest answer that is in use, in seconds.";
            samples.family("nodemesh_dns_oldest_answer_seconds", help, Kind::Gauge).sample(&[], oldest.as_secs_f64());
        });
    }
}

#[cfg(test)]
mod tests;
