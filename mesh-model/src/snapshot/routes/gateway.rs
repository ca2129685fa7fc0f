//! Gateway API routes with Service parents (GAMMA, GEP-1294), and with ServiceEntry parents, as in Istio.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::order::{Age, precedence};
use super::resolve::{Resolved, condition, resolve};
use super::{Routes, attach};
use crate::gateway::{FaultReason, RouteObject, RouteRules, RuleFault};
use crate::object::{Kind, Object};
use crate::problem::{Origin, Severity};
use crate::route::{ConditionStatus, ParentStatus, RouteTable};
use crate::service::NamespacedName;
use crate::snapshot::Snapshot;
use crate::snapshot::build::Sorted;

const KINDS: [Kind; 4] = [Kind::GrpcRoute, Kind::HttpRoute, Kind::TlsRoute, Kind::TcpRoute];

/// Reasons for which a route is not accepted by a parent, as Gateway API spells them; the second is GEP-1294's.
const NO_PARENT: &str = "NoMatchingParent";
const CONFLICTED: &str = "Conflicted";

/// A Service's port and the clients that it is about: those of a namespace, or of all that have nothing of their own.
type Group = (NamespacedName, u16, Option<Arc<str>>);

/// A route's parent: number of the route, and of the parent among those of the route that are ours.
type Seat = (usize, usize);

struct Route<'a> {
    origin: &'a Origin,
    object: &'a RouteObject,
    resolved: Resolved,
    refs: ConditionStatus,
}

/// Fills the tables and says what is to be said in the routes' status.
pub(super) fn join(snapshot: &mut Snapshot, sorted: &mut Sorted<'_>, routes: &mut Routes) {
    let all: Vec<(&Origin, &RouteObject)> = KINDS
        .into_iter()
        .flat_map(|kind| sorted.all(kind))
        .filter_map(|(origin, object)| match object {
            Object::Route(route) if route.parents.iter().any(|parent| parent.is_ours()) => Some((origin, &**route)),
            _ => None,
        })
        .collect();
    let mut known = Vec::with_capacity(all.len());
    for (origin, object) in all {
        let (resolved, broken) = resolve(snapshot, object);
        for one in &broken {
            sorted.problem(Severity::Warn, origin, &object.key, &one.field, one.message.clone());
        }
        known.push(Route { origin, object, resolved, refs: condition(&broken) });
    }
    let mut seats = Seats::default();
    seats.take(snapshot, &attach::entries(sorted), &known);
    for ((service, port, consumer), group) in std::mem::take(&mut seats.groups) {
        let Some(table) = table(&known, &group, &mut seats.lost, port) else { continue };
        let tables = routes.entry((service, port)).or_default();
        match consumer {
            Some(namespace) => {
                tables.consumers.insert(namespace, Arc::new(table));
            }
            None => tables.producer = Some(Arc::new(table)),
        }
    }
    for (number, route) in known.iter().enumerate() {
        let (own, partial) = judge(route.object);
        for parent in route.object.parents.iter().filter(|parent| parent.is_ours()) {
            let seat = (number, parent.index);
            let accepted = seats.accepted(seat, &own);
            // What is wrong with the route itself has been said when it was read.
            if matches!(accepted.reason, NO_PARENT | CONFLICTED) {
                let field = format!("spec.parentRefs[{}]", parent.index);
                sorted.problem(Severity::Warn, route.origin, &route.object.key, &field, accepted.message.to_string());
            }
            snapshot.route_statuses.push(ParentStatus {
                route: route.object.key.clone(),
                parent: parent.index,
                accepted,
                resolved: route.refs.clone(),
                partial: partial.clone(),
                generation: route.object.generation,
            });
        }
    }
    snapshot.route_statuses.sort();
}

/// Which parents are attached where, and which are not.
#[derive(Default)]
struct Seats {
    groups: BTreeMap<Group, Vec<Seat>>,
    /// Ports of each.
    ports: HashMap<Seat, usize>,
    unattached: HashMap<Seat, String>,
    /// Ports that another route has, and the reason.
    lost: HashMap<Seat, Vec<String>>,
}

impl Seats {
    fn take(&mut self, snapshot: &Snapshot, entries: &attach::Entries, routes: &[Route<'_>]) {
        for (number, route) in routes.iter().enumerate() {
            let own = &route.object.key.namespace;
            for parent in route.object.parents.iter().filter(|parent| parent.is_ours()) {
                let seat = (number, parent.index);
                match attach::places(snapshot, entries, own, parent) {
                    Ok(places) => {
                        self.ports.insert(seat, places.iter().map(|(_, ports)| ports.len()).sum());
                        for (service, ports) in places {
                            let consumer = (*own != service.namespace).then(|| own.clone());
                            for port in ports {
                                self.groups.entry((service.clone(), port, consumer.clone())).or_default().push(seat);
                            }
                        }
                    }
                    Err(message) => {
                        self.unattached.insert(seat, message);
                    }
                }
            }
        }
    }

    fn accepted(&self, seat: Seat, own: &ConditionStatus) -> ConditionStatus {
        if let Some(message) = self.unattached.get(&seat) {
            let message = format!("{message}: the route has no effect there");
            return ConditionStatus { status: false, reason: NO_PARENT, message: message.into() };
        }
        let lost = self.lost.get(&seat).map(Vec::as_slice).unwrap_or_default();
        if !lost.is_empty() && self.ports.get(&seat) == Some(&lost.len()) {
            return ConditionStatus { status: false, reason: CONFLICTED, message: lost.join("\n").into() };
        }
        if lost.is_empty() || !own.status {
            return own.clone();
        }
        let message = format!("in force on other ports, but: {}", lost.join("\n"));
        ConditionStatus { message: message.into(), ..own.clone() }
    }
}

/// The table of a group. Of its routes those of one kind are in force, and of TCPRoutes the oldest; the others are told so.
fn table(routes: &[Route<'_>], group: &[Seat], lost: &mut HashMap<Seat, Vec<String>>, port: u16) -> Option<RouteTable> {
    let of = |seat: &Seat| routes.get(seat.0);
    let kind = group.iter().filter_map(of).map(|route| route.object.key.kind).min_by_key(|kind| precedence(*kind))?;
    let best = group.iter().filter_map(of).filter(|route| route.object.key.kind == kind).min_by_key(|route| Age::of(route.object))?;
    let (mut requests, mut tls, mut tcp) = (Vec::new(), Vec::new(), None);
    let mut seen = HashSet::new();
    for seat in group {
        let Some(route) = of(seat) else { continue };
        if route.object.key.kind != kind {
            let message = format!("port {port} is {}'s: {} goes before {}", best.object.key, kind.name(), route.object.key.kind.name());
            lost.entry(*seat).or_default().push(message);
            continue;
        }
        if kind == Kind::TcpRoute && route.object.key != best.object.key {
            let message = format!("port {port} is {}'s, which is older (or before it by name)", best.object.key);
            lost.entry(*seat).or_default().push(message);
            continue;
        }
        // Two parents of a route may mean one port.
        if !seen.insert(seat.0) {
            continue;
        }
        match &route.resolved {
            Resolved::Requests(rules) => requests.extend(rules),
            Resolved::Tls(rules) => tls.extend(rules),
            Resolved::Tcp(rule) => tcp = Some(rule.clone()),
        }
    }
    match kind {
        Kind::GrpcRoute | Kind::HttpRoute => {
            requests.sort_by_key(|(order, _)| order);
            let rules = requests.into_iter().map(|(_, rule)| rule.clone()).collect();
            Some(RouteTable::Http { rules, grpc: kind == Kind::GrpcRoute })
        }
        Kind::TlsRoute => {
            tls.sort_by_key(|(order, _)| order);
            Some(RouteTable::Tls(tls.into_iter().map(|(_, rule)| rule.clone()).collect()))
        }
        _ => tcp.map(|rule| RouteTable::Tcp(vec![rule])),
    }
}

/// Rules that are told in a condition.
const TOLD: usize = 10;

/// `Accepted` and `PartiallyInvalid` by what the route says itself.
fn judge(route: &RouteObject) -> (ConditionStatus, Option<ConditionStatus>) {
    let faults: Vec<&RuleFault> = match &route.rules {
        RouteRules::Requests(rules) => rules.iter().filter_map(|rule| rule.fault.as_ref()).collect(),
        RouteRules::Connections { rule, .. } => rule.iter().filter_map(|rule| rule.fault.as_ref()).collect(),
    };
    let count = match &route.rules {
        RouteRules::Requests(rules) => rules.len(),
        RouteRules::Connections { .. } => 1,
    };
    let good = ConditionStatus { status: true, reason: "Accepted", message: "in force".into() };
    let Some(worst) = faults.iter().map(|fault| fault.reason).min() else { return (good, None) };
    let told: Vec<&str> = faults.iter().take(TOLD).map(|fault| &*fault.message).collect();
    let told = told.join("\n");
    match worst {
        FaultReason::IncompatibleFilters => (ConditionStatus { status: false, reason: "IncompatibleFilters", message: told.into() }, None),
        FaultReason::UnsupportedValue if faults.len() == count => {
            (ConditionStatus { status: false, reason: "UnsupportedValue", message: told.into() }, None)
        }
        FaultReason::UnsupportedValue => {
            // The start of the text is the standard's.
            let message = format!(
                "Dropped Rule: {} of {count} rules are not understood; what they are for is answered with errors: {told}",
                faults.len()
            );
            (good, Some(ConditionStatus { status: true, reason: "UnsupportedValue", message: message.into() }))
        }
    }
}
