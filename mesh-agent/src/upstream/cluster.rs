//! A Service's port, or a subset of its pods, as somewhere that requests can be sent: who is there, how loaded and how well each is, and what
//! bounds hold. One for all workers; rebuilt when the endpoints or the policy change, with what was learnt of those that stay.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use mesh_model::backend::BackendTrafficPolicy;
use mesh_model::service::{Discovery, NamespacedName, Service, ServiceEndpoint, ServicePort};
use mesh_model::snapshot::Snapshot;
use mesh_model::traffic::{Balancer, TlsMode, TrafficPolicy, Trust};
use mesh_model::workload::{Workload, WorkloadUid};
use parking_lot::{Mutex, RwLock};

use super::balance::ewma::Ewma;
use super::balance::{Candidate, Load, LocalityName, Picker, SUBZONE, decisive};
use super::bounds::Bounds;
use super::circuit::Resource;
use super::health::{Event, Health, Observation};
use super::http::Server;
use super::members::{self, Found};
pub use super::members::{ClusterName, Missing};
use super::originate::{Credentials, Originator};
use crate::conn::ServerAddr;
use crate::names::Names;
use crate::outcome::Outcome;
use crate::route::detect::Declared;
use crate::route::retry::budget::Budget;

/// What is known of one endpoint's load.
struct Measured {
    in_flight: AtomicU32,
    latency: Ewma,
}

struct Member {
    server: Server,
    measured: Arc<Measured>,
    since: Option<Instant>,
}

/// See the module.
pub struct Cluster {
    /// Which one.
    pub name: ClusterName,
    /// What its port declares to speak.
    pub declared: Declared,
    /// What holds towards it.
    pub policy: Arc<TrafficPolicy>,
    /// What holds for its Service by whatever route and for whatever client.
    pub backend: Option<Arc<BackendTrafficPolicy>>,
    /// The retries that requests to its Service may have, together with those of other clusters of the Service.
    pub budget: Option<Arc<Budget>>,
    members: Vec<Member>,
    /// What was dialled is the only endpoint; its port, if that is another.
    dialled: Option<Option<u16>>,
    picker: Picker,
    health: Option<Arc<Health<SocketAddr>>>,
    bounds: Arc<Mutex<HashMap<WorkloadUid, Arc<Bounds>>>>,
    /// Names of which a server's certificate must have one where the policy says none: what a ServiceEntry has for it.
    alt_names: Vec<Arc<str>>,
    /// Of each namespace of clients.
    originators: Arc<Mutex<HashMap<Arc<str>, Arc<Originator>>>>,
}

/// An endpoint that was chosen, counted as busy until it is dropped.
pub struct Chosen {
    cluster: Arc<Cluster>,
    index: usize,
    /// Whom to connect to.
    pub server: Server,
}

/// What a request brings to the choice.
#[derive(Clone, Copy, Default)]
pub struct Wish<'a> {
    /// Hash of what the policy says is to be hashed.
    pub hash: Option<u64>,
    /// What the client dialled.
    pub dialled: Option<SocketAddr>,
    /// The endpoint of its session.
    pub session: Option<SocketAddr>,
    /// Numbers of endpoints that were tried already.
    pub tried: &'a [usize],
}

impl Cluster {
    fn build(snapshot: &Snapshot, spec: &Spec<'_>, previous: Option<&Cluster>, now: Instant) -> Cluster {
        let Spec { name, service, port, endpoints, policy, backend, budget, labels, from } = spec;
        let known = |address: &SocketAddr| previous.and_then(|previous| previous.members.iter().find(|m| m.server.address.0 == *address));
        let mut members = Vec::new();
        let mut candidates = Vec::new();
        for (endpoint, workload) in members::members(snapshot, endpoints, labels, name.v4) {
            let known = known(&endpoint.address);
            // What is there from the start is not new; what joins later is.
            let since = match (known, previous) {
                (Some(known), _) => known.since,
                (None, Some(_)) => Some(now),
                (None, None) => None,
            };
            let node = workload.and_then(|workload| snapshot.node(&workload.node));
            let traits = endpoint.traits.as_deref();
            let said = traits.map(|traits| (traits.region.clone(), traits.zone.clone())).filter(|(region, _)| !region.is_empty());
            candidates.push(Candidate {
                address: endpoint.address,
                weight: traits.map_or(1, |traits| traits.weight),
                locality: said.or_else(|| node.map(|node| (node.region.clone(), node.zone.clone()))).unwrap_or_default(),
                labels: match (workload, traits) {
                    (Some(workload), _) => (*workload.labels).clone(),
                    (None, Some(traits)) => traits.labels.clone(),
                    (None, None) => Default::default(),
                },
                since,
            });
            members.push(Member {
                server: Server { address: ServerAddr(endpoint.address), workload: workload.cloned() },
                measured: known.map_or_else(
                    || Arc::new(Measured { in_flight: AtomicU32::new(0), latency: Ewma::new(now) }),
                    |known| known.measured.clone(),
                ),
                since,
            });
        }
        let same_policy = previous.filter(|previous| *previous.policy == ***policy);
        let alt_names = service.entry.as_ref().map(|entry| entry.alt_names.clone()).unwrap_or_default();
        let same_tls = same_policy.filter(|previous| previous.alt_names == alt_names);
        let health = match same_policy.and_then(|previous| previous.health.clone()) {
            Some(health) => Some(health),
            None => policy.outlier.clone().map(|settings| Arc::new(Health::new(settings))),
        };
        if let Some(health) = &health {
            let addresses: Vec<SocketAddr> = members.iter().map(|member| member.server.address.0).collect();
            health.set_endpoints(&addresses);
        }
        let picker = Picker::new(&policy.balancer, &policy.locality, policy.warmup.as_ref(), from, candidates, policy.outlier.is_some());
        Cluster {
            name: (*name).clone(),
            declared: Declared::of(&port.app_protocol, &port.name),
            policy: (*policy).clone(),
            backend: backend.cloned(),
            budget: budget.clone(),
            members,
            dialled: match &port.discovery {
                Discovery::Dialled { target } => Some(*target),
                Discovery::Named | Discovery::Dns { .. } => None,
            },
            picker,
            health,
            bounds: same_policy.map(|previous| previous.bounds.clone()).unwrap_or_default(),
            alt_names,
            originators: same_tls.map(|previous| previous.originators.clone()).unwrap_or_default(),
        }
    }

    /// Whether its endpoints' pods are what a snapshot has.
    fn is_current(&self, snapshot: &Snapshot) -> bool {
        snapshot.held().is_empty()
            && self.members.iter().all(|member| match &member.server.workload {
                Some(workload) => snapshot.workload(&workload.uid).is_some_and(|now| Arc::ptr_eq(now, workload)),
                None => snapshot.workload_at(member.server.address.0.ip()).is_none(),
            })
    }

    /// Chooses an endpoint; `None` if there is none to choose.
    pub fn choose(self: &Arc<Self>, now: Instant, wish: Wish<'_>) -> Option<Chosen> {
        if let Some(target) = self.dialled {
            let dialled = wish.dialled?;
            let address = ServerAddr(SocketAddr::new(dialled.ip(), target.unwrap_or(dialled.port())));
            // It has no number: nothing is measured of it, and a retry may only go there again.
            return Some(Chosen { cluster: self.clone(), index: usize::MAX, server: Server { address, workload: None } });
        }
        let usable = |index: usize| match (&self.health, self.members.get(index)) {
            (Some(health), Some(member)) => health.usable(now, &member.server.address.0),
            (None, Some(_)) => true,
            (_, None) => false,
        };
        let session = wish.session.and_then(|session| self.members.iter().position(|member| member.server.address.0 == session));
        let index = match session.filter(|index| usable(*index) && !wish.tried.contains(index)) {
            Some(index) => index,
            None => {
                let load = |index: usize| match self.members.get(index) {
                    Some(member) => Load {
                        in_flight: member.measured.in_flight.load(Ordering::Relaxed),
                        ewma_micros: member.measured.latency.micros(now),
                    },
                    None => Load::default(),
                };
                self.picker.pick(now, wish.hash, wish.dialled, &mut rand::random::<u64>, &load, &usable, wish.tried)?.index
            }
        };
        let member = self.members.get(index)?;
        member.measured.in_flight.fetch_add(1, Ordering::Relaxed);
        Some(Chosen { cluster: self.clone(), index, server: member.server.clone() })
    }

    /// The bounds for the clients of one workload.
    pub fn bounds(&self, client: &WorkloadUid) -> Arc<Bounds> {
        let mut all = self.bounds.lock();
        all.entry(client.clone()).or_insert_with(|| Bounds::new(&self.policy.pool)).clone()
    }

    /// What begins TLS towards it for the clients of a namespace, if its policy asks for that.
    pub fn originator(&self, namespace: &Arc<str>, credentials: &Arc<Credentials>) -> Option<Arc<Originator>> {
        let TlsMode::Originate(settings) = &self.policy.tls else { return None };
        let mut all = self.originators.lock();
        if let Some(known) = all.get(namespace) {
            return Some(known.clone());
        }
        let mut settings = settings.clone();
        if settings.subject_alt_names.is_empty() && settings.trust != Trust::Anybody {
            settings.subject_alt_names.clone_from(&self.alt_names);
        }
        let new = Arc::new(Originator::new(settings, namespace.clone(), credentials.clone(), Instant::now()));
        all.insert(namespace.clone(), new.clone());
        Some(new)
    }

    /// What is wrong with the files that TLS towards it needs, by the namespace of the clients.
    pub fn tls_problems(&self) -> Vec<(Arc<str>, Arc<str>)> {
        self.originators.lock().iter().filter_map(|(namespace, by)| Some((namespace.clone(), by.problem()?))).collect()
    }

    /// How many endpoints may be used, and how many are ejected.
    pub fn counts(&self, now: Instant) -> (usize, usize) {
        let ejected = self.health.as_ref().map_or(0, |health| health.ejected(now));
        (self.members.len().saturating_sub(ejected), ejected)
    }

    /// What is in use of each bound, and what it has refused, of all clients together.
    pub fn usage(&self) -> Vec<(&'static str, (u64, u64))> {
        let mut all: Vec<(&'static str, (u64, u64))> = Resource::ALL.iter().map(|resource| (resource.as_str(), (0, 0))).collect();
        for bounds in self.bounds.lock().values() {
            for (slot, usage) in all.iter_mut().zip(bounds.circuit.open()) {
                slot.1.0 += usage.open;
                slot.1.1 += usage.refused;
            }
        }
        all
    }

    /// Whether there is nobody to choose.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && self.dialled.is_none()
    }

    /// Its endpoints.
    pub fn servers(&self) -> impl Iterator<Item = &Server> {
        self.members.iter().map(|member| &member.server)
    }

    /// Whether requests go out as HTTP/2, given what the client speaks.
    pub fn http2(&self, client_http2: bool) -> bool {
        match self.declared {
            Declared::Http2 => true,
            _ => client_http2 || self.policy.pool.upgrade_to_http2,
        }
    }

    /// Why no request may be sent there.
    pub fn refusal_of_requests(&self) -> Option<Outcome> {
        members::refusal_of_requests(&self.name.service, self.declared, &self.policy)
    }

    /// Why nothing may be sent there: TLS that the policy asks for and that cannot be had is not left out.
    pub fn refusal(&self) -> Option<Outcome> {
        members::refusal(&self.policy)
    }

    /// Whether a hash decides.
    pub fn hashes(&self) -> Option<&mesh_model::traffic::HashKey> {
        match &self.policy.balancer {
            Balancer::Hash { key, .. } => Some(key),
            _ => None,
        }
    }
}

impl Chosen {
    /// Its number in the cluster, for [`Wish::tried`].
    pub fn index(&self) -> usize {
        self.index
    }

    /// Its Service.
    pub fn service(&self) -> &NamespacedName {
        &self.cluster.name.service
    }

    /// Tells how it went. An endpoint that is ejected for it, or comes back, is said.
    pub fn observe(&self, now: Instant, observation: Observation) -> Option<Event<SocketAddr>> {
        let health = self.cluster.health.as_ref()?;
        health.record(now, &self.server.address.0, observation)
    }

    /// Tells how long the head of the answer took.
    pub fn answered(&self, now: Instant, after: Duration) {
        if let Some(member) = self.cluster.members.get(self.index) {
            member.measured.latency.observe(now, after);
        }
    }
}

impl Drop for Chosen {
    fn drop(&mut self) {
        if let Some(member) = self.cluster.members.get(self.index) {
            member.measured.in_flight.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

struct Spec<'a> {
    name: &'a ClusterName,
    service: &'a Service,
    port: &'a ServicePort,
    endpoints: &'a [ServiceEndpoint],
    policy: &'a Arc<TrafficPolicy>,
    backend: Option<&'a Arc<BackendTrafficPolicy>>,
    budget: Option<Arc<Budget>>,
    labels: &'a BTreeMap<String, String>,
    from: &'a LocalityName,
}

struct Slot {
    /// Of the snapshot that it was last compared with.
    version: u64,
    /// Of the names that it was last compared with.
    generation: u64,
    /// That it was made from.
    service: Arc<Service>,
    /// Those that names stood for; `None` where there are no names.
    resolved: Option<Vec<ServiceEndpoint>>,
    labels: BTreeMap<String, String>,
    from: LocalityName,
    cluster: Arc<Cluster>,
}

/// What clients have a cluster by: its name, where their policy lies, and those of their labels that are decisive under it.
type Key = (ClusterName, usize, BTreeMap<String, String>);

/// The clusters in use. Two clients have one in common if the same policy holds for both and finds the same endpoints near them.
#[derive(Default)]
pub struct Clusters {
    slots: RwLock<HashMap<Key, Slot>>,
    none: Arc<TrafficPolicy>,
    /// By Service: its clusters share one.
    budgets: Mutex<HashMap<NamespacedName, Arc<Budget>>>,
    names: Arc<Names>,
}

impl Clusters {
    /// None yet; names stand for what these say.
    pub fn new(names: Arc<Names>) -> Clusters {
        Clusters { names, ..Clusters::default() }
    }

    /// Where a client's requests to a Service's port, or a subset, go.
    pub fn get(&self, snapshot: &Snapshot, client: &Workload, name: &ClusterName) -> Result<Arc<Cluster>, Missing> {
        // Of those that share one not all may know the host.
        members::known(snapshot, client, name)?;
        let policy = snapshot.traffic(client, &name.service, name.port, name.subset.as_deref()).unwrap_or_else(|| self.none.clone());
        // Policies are shared as long as they are the same, so the place tells them apart; the slot keeps its own alive.
        let key = (name.clone(), Arc::as_ptr(&policy) as usize, decisive(&policy.locality, &client.labels));
        // Read first: endpoints that are newer than it says do no harm.
        let generation = self.names.generation();
        let is_current = |slot: &&Slot| slot.version == snapshot.version() && (slot.generation == generation || slot.resolved.is_none());
        if let Some(slot) = self.slots.read().get(&key).filter(is_current) {
            return Ok(slot.cluster.clone());
        }
        let Found { service, port, labels } = Found::of(snapshot, client, name)?;
        let endpoints = self.names.endpoints(snapshot, port);
        let resolved = matches!(port.discovery, Discovery::Dns { .. }).then(|| endpoints.to_vec());
        let node = snapshot.node(&client.node);
        let from = LocalityName {
            region: node.map(|node| node.region.clone()).unwrap_or_default(),
            zone: node.map(|node| node.zone.clone()).unwrap_or_default(),
            subzone: key.2.get(SUBZONE).map(|subzone| subzone.as_str().into()).unwrap_or_default(),
            labels: key.2.clone(),
        };
        let mut slots = self.slots.write();
        // Another policy's pointer may have been given again: what was learnt is carried over by name.
        let previous = slots.get(&key).map(|slot| slot.cluster.clone());
        if let Some(slot) = slots.get(&key).filter(is_current) {
            return Ok(slot.cluster.clone());
        }
        if let Some(slot) = slots.get_mut(&key)
            && Arc::ptr_eq(&slot.service, service)
            && slot.resolved == resolved
            && slot.labels == *labels
            && slot.from == from
            && slot.cluster.backend.as_ref() == snapshot.backend_policy(&name.service)
            && slot.cluster.is_current(snapshot)
        {
            slot.version = snapshot.version();
            slot.generation = generation;
            return Ok(slot.cluster.clone());
        }
        let (backend, budget) = (snapshot.backend_policy(&name.service), self.budget(snapshot, &name.service, Instant::now()));
        let spec = Spec { name, service, port, endpoints: &endpoints, policy: &policy, backend, budget, labels, from: &from };
        // A policy that was read anew is another pointer and says the same: what was learnt under it goes on. Under another policy at least
        // the endpoints are known.
        let named = || slots.iter().filter(|((other, ..), _)| other == name).map(|(_, slot)| &slot.cluster);
        let previous = previous.or_else(|| named().find(|cluster| *cluster.policy == *policy).or_else(|| named().next()).cloned());
        let cluster = Arc::new(Cluster::build(snapshot, &spec, previous.as_deref(), Instant::now()));
        let made_from = Slot {
            version: snapshot.version(),
            generation,
            service: service.clone(),
            resolved,
            labels: labels.clone(),
            from,
            cluster: cluster.clone(),
        };
        slots.insert(key, made_from);
        Ok(cluster)
    }

    /// The retry budget of a Service: the same while it says the same.
    fn budget(&self, snapshot: &Snapshot, service: &NamespacedName, now: Instant) -> Option<Arc<Budget>> {
        let settings = snapshot.retry_budget(service)?;
        let mut budgets = self.budgets.lock();
        if let Some(budget) = budgets.get(service).filter(|budget| budget.settings() == settings) {
            return Some(budget.clone());
        }
        let budget = Arc::new(Budget::new(settings.clone(), now));
        budgets.insert(service.clone(), budget.clone());
        Some(budget)
    }

    /// Lets go of what no longer exists, or is under a policy that nobody has any more while another has taken its place. What nobody has
    /// asked for since the last configuration stays: who is ejected, slow or new is not forgotten because something else was changed.
    pub fn sweep(&self, snapshot: &Snapshot) {
        self.budgets.lock().retain(|service, _| snapshot.retry_budget(service).is_some());
        let mut slots = self.slots.write();
        let mut newest: HashMap<ClusterName, u64> = HashMap::new();
        for ((name, ..), slot) in slots.iter() {
            let version = newest.entry(name.clone()).or_default();
            *version = slot.version.max(*version);
        }
        slots.retain(|(name, _, labels), slot| {
            let is_newest = newest.get(name).is_none_or(|version| slot.version >= *version);
            let in_use = Arc::strong_count(&slot.cluster) > 1 || Arc::strong_count(&slot.cluster.policy) > 1;
            // Of labels that change with each version of a client there would be ever more.
            let alike = |client: &Arc<Workload>| decisive(&slot.cluster.policy.locality, &client.labels) == *labels;
            let has_clients = labels.is_empty() || Arc::strong_count(&slot.cluster) > 1 || snapshot.workloads().any(alike);
            snapshot.service(&name.service).is_some() && (is_newest || in_use) && has_clients
        });
    }

    /// Lets go of what a client that is gone had in use.
    pub fn forget(&self, client: &WorkloadUid) {
        for slot in self.slots.read().values() {
            slot.cluster.bounds.lock().remove(client);
        }
    }

    /// The endpoints whose time of being left out is over, each told once.
    pub fn returned(&self, now: Instant) -> Vec<(NamespacedName, SocketAddr)> {
        let mut all = Vec::new();
        for cluster in self.all() {
            let events = cluster.health.as_ref().map(|health| health.tick(now)).unwrap_or_default();
            all.extend(events.into_iter().filter_map(|event| match event {
                Event::Returned { key, .. } => Some((cluster.name.service.clone(), key)),
                Event::Ejected { .. } => None,
            }));
        }
        all
    }

    /// The clusters now. Of those that differ in their clients' labels alone it is the newest: they share what is counted.
    pub fn all(&self) -> Vec<Arc<Cluster>> {
        let slots = self.slots.read();
        let mut all: Vec<(&Key, &Slot)> = slots.iter().collect();
        all.sort_unstable_by_key(|(_, slot)| slot.version);
        let newest: HashMap<_, _> = all.into_iter().map(|((name, policy, _), slot)| ((name, policy), &slot.cluster)).collect();
        newest.into_values().cloned().collect()
    }
}

#[cfg(test)]
mod tests;
