//! DestinationRules, found by client and Service.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::Snapshot;
use super::build::Sorted;
use crate::object::{Kind, Object, ObjectKey};
use crate::policy::selects;
use crate::problem::{Origin, Severity};
use crate::service::NamespacedName;
use crate::traffic::{DestinationRule, TrafficPolicy};
use crate::workload::Workload;

mod merge;

/// The rules of the mesh.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Rules {
    /// By the namespace they stand in.
    by_namespace: HashMap<Arc<str>, Hosts>,
    /// Every host, to tell fast that nobody has a rule.
    all: HashSet<Arc<str>>,
}

/// By host; of one host first the rules for some workloads, then by age.
type Hosts = HashMap<Arc<str>, Vec<Arc<DestinationRule>>>;

/// What a rule may name a host by, the longest first: itself, and `*` in the place of more and more of it.
pub(super) fn names(host: &str) -> impl Iterator<Item = String> {
    let ends = host.match_indices('.').map(|(dot, _)| format!("*{}", host.get(dot..).unwrap_or_default()));
    std::iter::once(host.to_owned()).chain(ends).chain(["*".to_owned()])
}

impl Snapshot {
    /// How a client talks to a Service's port, or to a subset of it. `None` where no DestinationRule says anything. For a subset that
    /// the client does not have, see [`Snapshot::subset`], it is what holds for the whole Service.
    pub fn traffic(&self, client: &Workload, service: &NamespacedName, port: u16, subset: Option<&str>) -> Option<Arc<TrafficPolicy>> {
        let rule = self.destination_rule(client, service)?;
        let (ports, policy) = match subset.and_then(|name| rule.subsets.get(name)) {
            Some(subset) => (&subset.ports, &subset.policy),
            None => (&rule.ports, &rule.policy),
        };
        Some(ports.get(&port).unwrap_or(policy).clone())
    }

    /// The DestinationRule that holds for a client of a Service. As in Istio those of the client's namespace are asked first, then those
    /// of the Service's, then those of the root namespace; in each the longest host wins.
    pub fn destination_rule(&self, client: &Workload, service: &NamespacedName) -> Option<&Arc<DestinationRule>> {
        self.rule_for(&client.namespace, Some(&client.labels), service)
    }

    /// As [`Snapshot::destination_rule`], for any client of a namespace whose labels are not known.
    pub(super) fn rule_for(
        &self,
        client: &Arc<str>,
        labels: Option<&BTreeMap<String, String>>,
        service: &NamespacedName,
    ) -> Option<&Arc<DestinationRule>> {
        let root = &self.settings.root_namespace;
        let rules = &self.destination_rules.by_namespace;
        if rules.is_empty() {
            return None;
        }
        let host = service.service_host();
        let find = |namespace: &Arc<str>, fits: &dyn Fn(&DestinationRule) -> bool| {
            let hosts = rules.get(namespace)?;
            names(&host).find_map(|name| hosts.get(name.as_str())?.iter().find(|rule| fits(rule)))
        };
        let exported = |rule: &DestinationRule| rule.export_to.is_empty() || rule.export_to.contains(client);
        let selected = |rule: &DestinationRule| {
            // A selector is about the rule's own namespace.
            rule.selector.is_empty() || (rule.name.namespace == *client && labels.is_some_and(|labels| selects(&rule.selector, labels)))
        };
        // What the root namespace has for all must not go before the Service's own only because the client stands there too.
        let private = |rule: &DestinationRule| rule.export_to == [client.clone()] || !rule.selector.is_empty();
        find(client, &|rule| exported(rule) && selected(rule) && (client != root || private(rule)))
            .or_else(|| find(&service.namespace, &|rule| exported(rule) && selected(rule)))
            .or_else(|| find(root, &|rule| exported(rule) && selected(rule)))
    }

    /// Labels of the pods in a subset of a Service; `None` if the client has no such subset.
    pub fn subset(&self, client: &Workload, service: &NamespacedName, subset: &str) -> Option<&BTreeMap<String, String>> {
        Some(&self.destination_rule(client, service)?.subsets.get(subset)?.labels)
    }

    /// Whether any client has a DestinationRule for the Service.
    pub fn has_traffic(&self, service: &NamespacedName) -> bool {
        let all = &self.destination_rules.all;
        !all.is_empty() && names(&service.service_host()).any(|name| all.contains(name.as_str()))
    }
}

/// Fills the snapshot's rules.
pub(super) fn join(snapshot: &mut Snapshot, sorted: &mut Sorted<'_>, previous: Option<&Snapshot>) {
    let mut placed: Vec<(&Origin, &Arc<DestinationRule>)> = sorted
        .all(Kind::DestinationRule)
        .filter_map(|(origin, object)| match object {
            Object::DestinationRule(rule) => Some((origin, rule)),
            _ => None,
        })
        .collect();
    placed.sort_by_cached_key(|(_, rule)| (rule.selector.is_empty(), rule.created.unwrap_or(i64::MAX), rule.name.clone()));
    let mut rules = Rules::default();
    for (origin, rule) in placed {
        unknown_host(snapshot, sorted, origin, rule);
        rules.all.insert(rule.host.clone());
        let there = rules.by_namespace.entry(rule.name.namespace.clone()).or_default().entry(rule.host.clone()).or_default();
        match there.iter_mut().find(|older| older.selector == rule.selector && older.export_to == rule.export_to) {
            Some(older) => {
                for (field, message) in merge::into(Arc::make_mut(older), rule) {
                    sorted.problem(Severity::Warn, origin, format!("DestinationRule {}", rule.name), field, message);
                }
            }
            None => there.push(rule.clone()),
        }
    }
    if let Some(previous) = previous {
        share(&mut rules, &previous.destination_rules);
    }
    snapshot.destination_rules = rules;
}

/// Puts what was there before in the place of what is equal to it.
fn share(rules: &mut Rules, previous: &Rules) {
    for (namespace, hosts) in &mut rules.by_namespace {
        let Some(before) = previous.by_namespace.get(namespace) else { continue };
        for (host, rules) in hosts {
            for rule in rules {
                let same = before.get(host).into_iter().flatten().find(|other| *other == rule);
                if let Some(same) = same {
                    *rule = same.clone();
                }
            }
        }
    }
}

fn unknown_host(snapshot: &Snapshot, sorted: &mut Sorted<'_>, origin: &Origin, rule: &DestinationRule) {
    if rule.host.starts_with('*') {
        return;
    }
    if snapshot.entries.has_host(&rule.host) {
        return;
    }
    let named = NamespacedName::of_service_host(&rule.host);
    if let Some(service) = &named {
        let key = ObjectKey { kind: Kind::Service, namespace: service.namespace.clone(), name: service.name.clone() };
        // One that is not understood has been complained of.
        if snapshot.services.contains_key(service) || sorted.unreadable.contains(&key) {
            return;
        }
    }
    let message = match named {
        Some(service) => format!("is Service {service}, which does not exist: the rule is for nobody as long as there is none"),
        None => match short_form(snapshot, &rule.host) {
            Some(service) => format!("is no Service's host: the rule is for nobody; write {}", service.service_host()),
            None => "is no host of a Service or ServiceEntry: the rule is for nobody".into(),
        },
    };
    sorted.problem(Severity::Info, origin, format!("DestinationRule {}", rule.name), "spec.host", message);
}

/// The Service that is meant by `<name>.<namespace>` or `<name>.<namespace>.svc`, which Istio does not take for one.
fn short_form(snapshot: &Snapshot, host: &str) -> Option<NamespacedName> {
    let (name, namespace) = host.strip_suffix(".svc").unwrap_or(host).split_once('.')?;
    let service = NamespacedName { namespace: namespace.into(), name: name.into() };
    snapshot.services.contains_key(&service).then_some(service)
}

#[cfg(test)]
mod tests;
