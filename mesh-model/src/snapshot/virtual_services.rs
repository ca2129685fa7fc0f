//! VirtualServices, as tables of the Services that their hosts name. Where the Gateway API has a table already, that one stands.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::Snapshot;
use super::build::Sorted;
use super::traffic::names;
use crate::object::{Kind, Object};
use crate::problem::{Origin, Severity};
use crate::route::{RouteTable, Target};
use crate::service::{NamespacedName, Service};
use crate::virtual_service::{Declared, Destination, VirtualService};

/// A VirtualService that is for a Service.
#[derive(Clone, Copy)]
struct Candidate {
    /// Its number, by age.
    number: usize,
    /// Length of the host that it names the Service by: the longer is the nearer. All of the Service's names end alike.
    length: usize,
}

/// Tables that have been made; those for one port of Services that declare alike are the same.
type Tables = HashMap<(usize, u16, Declared), Option<Arc<RouteTable>>>;

struct Joining<'a> {
    placed: Vec<(&'a Origin, &'a Arc<VirtualService>)>,
    tables: Tables,
    /// Numbers of those that a table was taken from.
    used: BTreeSet<usize>,
    /// Numbers of those that a Service has been found for.
    found: BTreeSet<usize>,
    problems: Vec<(usize, Severity, String, String)>,
}

/// Fills the snapshot's routes with what VirtualServices say.
pub(super) fn join(snapshot: &mut Snapshot, sorted: &mut Sorted<'_>, previous: Option<&Snapshot>) {
    let mut placed: Vec<_> = sorted
        .all(Kind::VirtualService)
        .filter_map(|(origin, object)| match object {
            Object::VirtualService(rules) if rules.mesh => Some((origin, rules)),
            _ => None,
        })
        .collect();
    placed.sort_by_cached_key(|(_, rules)| (rules.created.unwrap_or(i64::MAX), rules.name.clone()));
    let mut joining = Joining { placed, tables: HashMap::new(), used: BTreeSet::new(), found: BTreeSet::new(), problems: Vec::new() };
    for (service, candidates) in candidates(snapshot, &joining) {
        joining.found.extend(candidates.iter().map(|candidate| candidate.number));
        joining.service(snapshot, &service, &candidates, previous);
    }
    joining.complain(snapshot, sorted);
}

/// By Service, those whose hosts name it.
fn candidates(snapshot: &Snapshot, joining: &Joining<'_>) -> Vec<(Arc<Service>, Vec<Candidate>)> {
    let mut by_host: HashMap<&str, Vec<usize>> = HashMap::new();
    for (number, (_, rules)) in joining.placed.iter().enumerate() {
        for host in &rules.hosts {
            by_host.entry(host).or_default().push(number);
        }
    }
    if by_host.is_empty() {
        return Vec::new();
    }
    let of = |service: &Arc<Service>| {
        let mut candidates: Vec<Candidate> = Vec::new();
        for name in names(&service.name.service_host()) {
            for number in by_host.get(name.as_str()).into_iter().flatten() {
                // By its longest host.
                if !candidates.iter().any(|candidate| candidate.number == *number) {
                    candidates.push(Candidate { number: *number, length: name.len() });
                }
            }
        }
        (!candidates.is_empty()).then(|| (service.clone(), candidates))
    };
    snapshot.services.values().filter_map(of).collect()
}

impl<'a> Joining<'a> {
    fn rules(&self, number: usize) -> Option<&'a Arc<VirtualService>> {
        self.placed.get(number).map(|(_, rules)| *rules)
    }

    fn service(&mut self, snapshot: &mut Snapshot, service: &Service, candidates: &[Candidate], previous: Option<&Snapshot>) {
        // Clients of these may have others than everybody else.
        let mut clients: BTreeSet<Arc<str>> = BTreeSet::new();
        for rules in candidates.iter().filter_map(|candidate| self.rules(candidate.number)) {
            clients.insert(rules.name.namespace.clone());
            clients.extend(rules.export_to.iter().cloned());
        }
        for port in &service.ports {
            let key = (service.name.clone(), port.port);
            let declared = Declared::of(port);
            let before = previous.and_then(|previous| previous.routes.get(&key));
            let everybody = self.best(snapshot, service, candidates, None, port.port, declared);
            let own: Vec<_> = clients
                .iter()
                .filter_map(|client| {
                    let best = self.best(snapshot, service, candidates, Some(client), port.port, declared)?;
                    let differs = everybody.as_ref().is_none_or(|(number, _)| *number != best.0);
                    differs.then_some((client, best))
                })
                .collect();
            let mut group = |number: usize, table: Arc<RouteTable>, there: bool, before: Option<&Arc<RouteTable>>| {
                if there {
                    let message =
                        format!("is not used for port {} of Service {}: a route of the Gateway API counts there", port.port, service.name);
                    self.problems.push((number, Severity::Warn, "spec.hosts".into(), message));
                    return None;
                }
                Some(before.filter(|before| **before == table).cloned().unwrap_or(table))
            };
            let standing = snapshot.routes.get(&key);
            let mut producer = None;
            if let Some((number, table)) = everybody.clone() {
                let there = standing.is_some_and(|routes| routes.producer.is_some());
                producer = group(number, table, there, before.and_then(|routes| routes.producer.as_ref()));
            }
            let mut consumers: BTreeMap<Arc<str>, Arc<RouteTable>> = BTreeMap::new();
            for (client, (number, table)) in own {
                let there = standing.is_some_and(|routes| routes.consumers.contains_key(client));
                let before = before.and_then(|routes| routes.consumers.get(client));
                if let Some(table) = group(number, table, there, before) {
                    consumers.insert(client.clone(), table);
                }
            }
            if producer.is_some() || !consumers.is_empty() {
                let routes = snapshot.routes.entry(key).or_default();
                routes.producer = routes.producer.take().or(producer);
                routes.consumers.extend(consumers);
            }
        }
    }

    /// The one that holds for the clients of a namespace, or for those of any (`None`), with its table: as in Istio one of the client's
    /// namespace goes before one of the Service's, and that before one of the root namespace; then the longest host, then the oldest.
    fn best(
        &mut self,
        snapshot: &Snapshot,
        service: &Service,
        candidates: &[Candidate],
        client: Option<&Arc<str>>,
        port: u16,
        declared: Declared,
    ) -> Option<(usize, Arc<RouteTable>)> {
        let root = &snapshot.settings.root_namespace;
        let rank = |rules: &VirtualService| match &rules.name.namespace {
            own if Some(own) == client => 0,
            own if *own == service.name.namespace => 1,
            own if own == root => 2,
            _ => 3,
        };
        let visible = |rules: &VirtualService| rules.export_to.is_empty() || client.is_some_and(|client| rules.export_to.contains(client));
        let mut ordered: Vec<_> = candidates
            .iter()
            .filter_map(|candidate| Some((candidate, self.rules(candidate.number)?)))
            .filter(|(_, rules)| visible(rules))
            .map(|(candidate, rules)| (rank(rules), std::cmp::Reverse(candidate.length), candidate.number))
            .collect();
        ordered.sort();
        ordered.into_iter().find_map(|(_, _, number)| {
            let table = self.table(snapshot, number, port, declared)?;
            self.used.insert(number);
            Some((number, table))
        })
    }

    fn table(&mut self, snapshot: &Snapshot, number: usize, port: u16, declared: Declared) -> Option<Arc<RouteTable>> {
        let rules = self.rules(number)?;
        let made = self.tables.entry((number, port, declared));
        made.or_insert_with(|| rules.table(port, declared, &|to| resolve(snapshot, rules, to, port)).map(Arc::new)).clone()
    }

    fn complain(mut self, snapshot: &Snapshot, sorted: &mut Sorted<'_>) {
        for (number, (_, rules)) in self.placed.iter().enumerate() {
            let mut say = |severity, field: &str, message: String| self.problems.push((number, severity, field.to_owned(), message));
            if !self.found.contains(&number) {
                say(
                    Severity::Info,
                    "spec.hosts",
                    "names no Service or ServiceEntry that exists: the rules are for nobody as long as there is none".into(),
                );
            } else if !self.used.contains(&number) {
                let message = "is not used: for each port of these hosts another VirtualService counts, or no rule is for the port";
                say(Severity::Warn, "spec.hosts", message.into());
            }
            for (field, to) in rules.destinations() {
                if let Err(reason) = destination(snapshot, rules, to) {
                    say(Severity::Warn, &field, format!("{reason}; its share of the requests is refused"));
                } else if let Some(subset) = &to.subset
                    && !has_subset(snapshot, rules, to, subset)
                {
                    let message = format!("names subset \"{subset}\", which no DestinationRule for {} has; its share is refused", to.host);
                    say(Severity::Warn, &field, message);
                }
            }
        }
        for (number, severity, field, message) in self.problems {
            if let Some((origin, rules)) = self.placed.get(number) {
                sorted.problem(severity, origin, format!("VirtualService {}", rules.name), &field, message);
            }
        }
    }
}

/// Whether clients that the rules are for have a subset; clients that are chosen by their labels are left aside.
fn has_subset(snapshot: &Snapshot, rules: &VirtualService, to: &Destination, subset: &str) -> bool {
    let Some(service) = snapshot.host(&rules.name.namespace, &to.host).map(|service| service.name.clone()) else { return false };
    let own = [rules.name.namespace.clone()];
    let clients = if rules.export_to.is_empty() { &own[..] } else { &rules.export_to };
    let has = |client| snapshot.rule_for(client, None, &service).is_some_and(|rule| rule.subsets.contains_key(subset));
    clients.iter().any(has)
}

/// The Service that a destination names and, where it names one, its port.
fn destination<'a>(snapshot: &'a Snapshot, rules: &VirtualService, to: &Destination) -> Result<&'a Arc<Service>, String> {
    let Some(service) = snapshot.host(&rules.name.namespace, &to.host) else {
        return Err(match NamespacedName::of_service_host(&to.host) {
            Some(name) => format!("names Service {name}, which does not exist"),
            None => format!("names {}, which is no host of a Service, nor of a ServiceEntry that the rules' namespace knows", to.host),
        });
    };
    let name = &service.name;
    match to.port {
        Some(port) if !service.ports.iter().any(|there| there.port == port) => {
            Err(format!("names port {port}, which Service {name} does not have"))
        }
        _ => Ok(service),
    }
}

fn resolve(snapshot: &Snapshot, rules: &VirtualService, to: &Destination, dialled: u16) -> Target {
    let service = match destination(snapshot, rules, to) {
        Ok(service) => service,
        Err(reason) => return Target::Invalid(format!("the rule {reason}").into()),
    };
    let port = match (to.port, service.ports.as_slice()) {
        (Some(port), _) => port,
        (None, ports) if ports.iter().any(|there| there.port == dialled) => dialled,
        (None, [only]) => only.port,
        (None, _) => {
            let reason = format!("the rule names no port, and Service {} has several, of which {dialled} is none", service.name);
            return Target::Invalid(reason.into());
        }
    };
    Target::Service { service: service.name.clone(), port, subset: to.subset.clone() }
}

#[cfg(test)]
mod tests;
