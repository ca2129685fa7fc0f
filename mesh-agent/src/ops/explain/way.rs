//! The way of a client in the mesh: what its agent, or the kernel, does with what it dials.

use std::net::{IpAddr, SocketAddr};

use http::request::Parts;
use mesh_model::backend::BackendTrafficPolicy;
use mesh_model::route::{Backend as Share, HttpRule, RouteTable, Target};
use mesh_model::service::{Discovery, NamespacedName};
use mesh_model::settings::OutboundTraffic;
use mesh_model::snapshot::Snapshot;
use mesh_model::traffic::{Balancer, Origination, TlsMode, TrafficPolicy};
use mesh_model::workload::Workload;

use super::find::Place;
use super::{At, Backend, Endpoint, Object, Question, Step, hop, server};
use crate::outcome::{Outcome, RequestFailure};
use crate::route::apply::{self, Applied, apply};
use crate::route::asked::{Asked, Whole};
use crate::route::detect::{Declared, Protocol};
use crate::route::{matches, request};
use crate::upstream::members::{ClusterName, Found, members, other_family, refusal, refusal_of_requests};

/// A question of a client in the mesh.
pub(super) struct Way<'s> {
    pub(super) snapshot: &'s Snapshot,
    pub(super) client: &'s Workload,
    pub(super) question: &'s Question,
    pub(super) request: Option<&'s Parts>,
}

/// What comes of one that is taken apart or not: its steps and where it goes.
type Ways<'v> = (&'v mut Vec<Step>, &'v mut Vec<Backend>);

impl Way<'_> {
    pub(super) fn explain(&self, place: &Place<'_>, steps: &mut Vec<Step>, backends: &mut Vec<Backend>) {
        let targets = place.targets();
        let direct = |address| {
            let hop = match hop::is_excluded(self.snapshot, address) {
                true => hop::clear(self.snapshot, address, &super::find::own_end(self.client, address), EXCLUDED),
                false => hop::direct(self.snapshot, self.client, address),
            };
            self.arrive(address, hop, self.request)
        };
        if let Some(outcome) = self.unregistered(place) {
            return steps.push(Step::failed(At::Capture, &outcome, self.request.is_some()));
        }
        let Place::Service { service, port, dialled } = place else {
            steps.push(Step::good(At::Capture, "pods are dialled by their own addresses: no route and no DestinationRule holds"));
            if targets.is_empty() {
                return steps.push(Step::failed(At::Backend, &Outcome::NoEndpoint, false));
            }
            return backends.push(Backend::whole(place.party().to_string(), targets.into_iter().map(direct).collect()));
        };
        if hop::is_excluded(self.snapshot, *dialled) {
            steps.push(Step::good(At::Capture, EXCLUDED));
            let clear = |address| {
                let client = super::find::own_end(self.client, address);
                self.arrive(address, hop::clear(self.snapshot, address, &client, EXCLUDED), self.request)
            };
            return backends.push(Backend::whole(place.party().to_string(), targets.into_iter().map(clear).collect()));
        }
        if service.entry.is_some() {
            let asked = Asked::of_port(self.snapshot, self.client, service, port);
            return self.asked(&asked, dialled.ip(), (steps, backends));
        }
        if let Some(asked) = Asked::of(self.snapshot, self.client, *dialled) {
            return self.asked(&asked, dialled.ip(), (steps, backends));
        }
        let routed = self.snapshot.is_routed(&service.name, port.port);
        steps.push(Step::good(
            At::Capture,
            match routed {
                true => "no route and no DestinationRule for the Service holds for this client",
                false => "no route and no DestinationRule is for the Service",
            },
        ));
        if targets.is_empty() {
            return steps.push(Step::failed(At::Backend, &Outcome::NoEndpoint, false));
        }
        let reach = |address| match routed {
            true => self.arrive(address, hop::captured(self.snapshot, self.client, *dialled, address), self.request),
            false => self.arrive(address, hop::direct(self.snapshot, self.client, address), self.request),
        };
        backends.push(Backend::whole(place.party().to_string(), targets.into_iter().map(reach).collect()));
    }

    /// Why an address is refused that is nobody's, if it is.
    fn unregistered(&self, place: &Place<'_>) -> Option<Outcome> {
        let Place::Direct { kind: "Address", targets, .. } = place else { return None };
        let only = self.snapshot.settings().outbound_traffic == OutboundTraffic::RegistryOnly;
        let known = |to: &SocketAddr| hop::is_excluded(self.snapshot, *to) || self.snapshot.service_of_stranger(*to).is_some();
        (only && !targets.iter().all(known)).then_some(Outcome::Unregistered { host: None })
    }

    fn arrive(&self, address: std::net::SocketAddr, hop: Result<hop::Hop<'_>, Outcome>, request: Option<&Parts>) -> Endpoint {
        match hop {
            Ok(hop) => server::endpoint(self.snapshot, hop, request, self.question),
            Err(outcome) => server::unreachable(self.snapshot, address, &outcome, false),
        }
    }

    /// A Service for which some object asks for more than the kernel can do.
    fn asked(&self, asked: &Asked, dialled: IpAddr, (steps, backends): Ways<'_>) {
        let why = match (&asked.table, asked.service.is_entry(), self.snapshot.backend_session(&asked.service)) {
            (Some(_), _, _) => "it has routes",
            (None, true, _) => "it is a ServiceEntry's host",
            (None, false, None) => "it has a DestinationRule",
            (None, false, Some(_)) => "its XBackendTrafficPolicy keeps sessions",
        };
        steps.push(Step::good(At::Capture, format!("the client's agent takes connections to Service {}: {why}", asked.service)));
        let whole = |what: &str| Step::good(At::Protocol, format!("{what}, so connections go as a whole"));
        if !asked.is_looked_into() {
            steps.push(whole(match asked.declared {
                Declared::Tcp => "the port declares TCP, which is not looked into",
                _ => "a TCPRoute has the port, which is then not looked into",
            }));
            return self.whole(asked, dialled, None, (steps, backends));
        }
        let parsed = asked.is_taken_apart(Protocol::Http1);
        match (self.request, parsed, asked.table.is_some()) {
            (Some(parts), true, _) => {
                steps.push(Step::good(At::Protocol, "HTTP is taken apart by the client's agent, and each request has its own way"));
                self.parsed(asked, dialled.is_ipv4(), parts.clone(), (steps, backends))
            }
            (None, true, true) if self.question.sni.is_none() => {
                let reason = "HTTP is taken apart by the client's agent, and each request is routed by itself; what is no HTTP goes to the \
                              Service that was dialled";
                steps.push(Step::unknown(At::Protocol, reason).mend("give --method and --path to ask about a request"));
                self.whole(asked, dialled, None, (steps, backends));
            }
            (None, true, _) => {
                let reason = "HTTP is taken apart by the client's agent; it goes to the Service that was dialled, as all else does";
                steps.push(Step::good(At::Protocol, reason));
                self.whole(asked, dialled, self.question.sni.as_deref(), (steps, backends));
            }
            (_, false, _) => {
                steps.push(whole("a TLSRoute has the port, for which only the server name of TLS counts"));
                self.whole(asked, dialled, self.question.sni.as_deref(), (steps, backends));
            }
        }
    }

    /// A connection that is not taken apart.
    fn whole(&self, asked: &Asked, dialled: IpAddr, server_name: Option<&str>, (steps, backends): Ways<'_>) {
        let v4 = dialled.is_ipv4();
        let (origin, shares) = match asked.whole(self.client, dialled, server_name) {
            Ok(Whole::Own(target)) => return backends.push(self.backend(&target, None, v4, Vec::new(), None)),
            Ok(Whole::Tcp(_, rule)) => (&rule.origin, &rule.backends),
            Ok(Whole::Tls(_, rule)) => (&rule.origin, &rule.backends),
            Err(outcome) => return steps.push(Step::failed(At::Route, &outcome, false)),
        };
        steps.push(Step::good(At::Route, "the rule of the port").by(Object::of_rule(origin)));
        let total = total(shares);
        if total == 0 {
            return steps.push(Step::failed(At::Backend, &asked.no_backend(), false).by(Object::of_rule(origin)));
        }
        for share in shares {
            backends.push(self.backend(&share.target, Some((share.weight, total)), v4, Vec::new(), None));
        }
    }

    /// A request that is taken from its connection.
    fn parsed(&self, asked: &Asked, v4: bool, mut parts: Parts, (steps, backends): Ways<'_>) {
        if let Err(outcome) = request::settle(&mut parts) {
            return steps.push(Step::failed(At::Protocol, &outcome, true));
        }
        request::trim(&mut parts.headers);
        let Some(RouteTable::Http { rules, .. }) = asked.table.as_deref() else {
            return backends.push(self.backend(&asked.own(), None, v4, Vec::new(), Some(parts)));
        };
        let Some((number, rule)) = matches::find_for(rules, &parts, self.client) else {
            let mut names: Vec<String> = rules.iter().map(|rule| rule.origin.object.to_string()).collect();
            names.dedup();
            let step = Step::failed(At::Route, &Outcome::Request(RequestFailure::NoRoute), true);
            return steps.push(Step { reason: format!("{}; routes of the port: {}", step.reason, names.join(", ")), ..step });
        };
        let reason = match &rule.origin.object.namespace {
            own if *own == asked.service.namespace => "of the rules that hold for every client, the first that matches",
            _ => "of the rules that the client's namespace has for itself, the first that matches",
        };
        let place = format!("{reason} (number {} of {})", number + 1, rules.len());
        steps.push(Step::good(At::Route, place).by(Object::of_rule(&rule.origin)));
        if !self.filters(&rule.filters, rule, asked.port, &mut parts, steps) {
            return;
        }
        let total = total(&rule.backends);
        if total == 0 {
            return steps.push(Step::failed(At::Backend, &apply::no_backend(rule), true).by(Object::of_rule(&rule.origin)));
        }
        for share in &rule.backends {
            let (mut on_way, mut parts) = (Vec::new(), parts.clone());
            let weight = Some((share.weight, total));
            if self.filters(&share.filters, rule, asked.port, &mut parts, &mut on_way) {
                backends.push(self.backend(&share.target, weight, v4, on_way, Some(parts)));
            } else {
                backends.push(Backend::of(target_name(&share.target), Some(share.weight), percent(weight), on_way, Vec::new()));
            }
        }
    }

    /// What a rule does with the request. False if it is not forwarded.
    fn filters(&self, filters: &[mesh_model::route::Filter], rule: &HttpRule, port: u16, parts: &mut Parts, steps: &mut Vec<Step>) -> bool {
        let by = || Object::of_rule(&rule.origin);
        let of = |(some, all): (u32, u32)| format!("{some} of {all} requests");
        for one in filters {
            let before = parts.clone();
            match apply(one, parts, rule, port) {
                Ok(Applied::Request) => steps.push(Step::good(At::Filter, changes(&before, parts)).by(by())),
                Ok(Applied::Response(_) | Applied::Cors(_)) => {}
                Ok(Applied::Mirror { target, share }) => {
                    steps.push(Step::good(At::Filter, format!("{} are copied to {}", of(share), target_name(target))).by(by()));
                }
                Ok(Applied::Delay { time, share }) => {
                    steps.push(Step::good(At::Filter, format!("{} wait {time:?} first", of(share))).by(by()));
                }
                Ok(Applied::Abort { error, share }) if share.0 >= share.1 => {
                    steps.push(Step::failed(At::Filter, &Outcome::Request(error), true).by(by()));
                    return false;
                }
                Ok(Applied::Abort { error, share }) => {
                    steps.push(Step::unknown(At::Filter, format!("{} are answered with {}", of(share), error.status())).by(by()));
                }
                Ok(Applied::Answer(answer)) => {
                    let to = answer.headers().get(http::header::LOCATION).and_then(|to| to.to_str().ok());
                    let to = to.map(|to| format!(", which leads to {to}")).unwrap_or_default();
                    let reason = format!("the client's agent answers it itself: {}{to}", answer.status());
                    steps.push(Step::good(At::Filter, reason).by(by()));
                    return false;
                }
                Err(outcome) => {
                    steps.push(Step::failed(At::Filter, &outcome, true).by(by()));
                    return false;
                }
            }
        }
        true
    }

    /// Where a share of it goes. `parts` is the request as it is forwarded, if it is taken apart.
    fn backend(&self, target: &Target, weight: Option<(u32, u32)>, v4: bool, mut steps: Vec<Step>, parts: Option<Parts>) -> Backend {
        let answered = parts.is_some();
        let done = |steps, endpoints| Backend::of(target_name(target), weight.map(|(own, _)| own), percent(weight), steps, endpoints);
        let (service, port, subset) = match target {
            Target::Service { service, port, subset } => (service, *port, subset),
            Target::Invalid(reason) => {
                let outcome = Outcome::Request(RequestFailure::InvalidRoute { detail: reason.clone() });
                steps.push(Step::failed(At::Backend, &outcome, answered));
                return done(steps, Vec::new());
            }
        };
        let name = ClusterName { service: service.clone(), port, subset: subset.clone(), v4 };
        let found = match Found::of(self.snapshot, self.client, &name) {
            Ok(found) => found,
            Err(missing) => {
                let why = missing.to_string();
                let step = Step::failed(At::Backend, &missing.outcome(), answered);
                steps.push(Step { reason: format!("{why}: {}", step.reason), ..step });
                return done(steps, Vec::new());
            }
        };
        let policy = self.snapshot.traffic(self.client, service, port, subset.as_deref());
        let secure = policy.as_ref().is_some_and(|policy| matches!(policy.tls, TlsMode::Originate(_)));
        let refusal = match policy.as_deref().unwrap_or(&TrafficPolicy::default()) {
            policy if answered => {
                let declared = Declared::of(&found.port.app_protocol, &found.port.name);
                refusal_of_requests(service, declared, policy)
            }
            policy => refusal(policy),
        };
        let good = policy.as_ref().map(|policy| Step::good(At::Traffic, describe(policy)));
        let refused = refusal.is_some();
        if let Some(step) = refusal.map(|outcome| Step::failed(At::Traffic, &outcome, answered)).or(good) {
            steps.push(if policy.is_some() { self.by_rule(step, service) } else { step });
        }
        if refused {
            return done(steps, Vec::new());
        }
        if let Some(policy) = self.snapshot.backend_policy(service).filter(|_| answered) {
            let step = Step::good(At::Traffic, describe_backend(policy));
            steps.push(step.by(Object::new("XBackendTrafficPolicy", &policy.name)));
        }
        let of = |v4| members(self.snapshot, &found.port.endpoints, found.labels, v4).collect::<Vec<_>>();
        let mut there = of(v4);
        if let (true, true, Some(other)) = (there.is_empty(), answered, other_family(self.client, v4)) {
            there = of(other);
        }
        let elsewhere = match &found.port.discovery {
            Discovery::Named => None,
            Discovery::Dialled { .. } => Some("the address that the client dials is the endpoint (resolution: NONE)".to_owned()),
            Discovery::Dns { names, .. } => {
                let names: Vec<String> = names.iter().map(|name| format!("{}:{}", name.host, name.port)).collect();
                Some(format!("the client's node looks its endpoints up: {}", names.join(", ")))
            }
        };
        if let Some(reason) = elsewhere.filter(|_| there.is_empty()) {
            steps.push(Step::unknown(At::Backend, reason));
            return done(steps, Vec::new());
        }
        if there.is_empty() {
            steps.push(Step::failed(At::Backend, &Outcome::NoEndpoint, answered));
            return done(steps, Vec::new());
        }
        let sent = match parts.map(forwarded).transpose() {
            Ok(sent) => sent,
            Err(outcome) => {
                steps.push(Step::failed(At::Backend, &outcome, answered));
                return done(steps, Vec::new());
            }
        };
        // Within TLS the server's agent sees no request.
        let request = sent.as_ref().or(self.request).filter(|_| !secure);
        let arrive = |(endpoint, workload): (&mesh_model::service::ServiceEndpoint, _)| {
            self.arrive(endpoint.address, hop::routed(self.client, endpoint.address, workload, secure), request)
        };
        done(steps, there.into_iter().map(arrive).collect())
    }

    fn by_rule(&self, step: Step, service: &NamespacedName) -> Step {
        match self.snapshot.destination_rule(self.client, service) {
            Some(rule) => step.by(Object::new("DestinationRule", &rule.name)),
            None => step,
        }
    }
}

/// Why a connection is left alone that the settings exclude.
const EXCLUDED: &str = "the Mesh excludes the port or the address, so it is left alone";

/// A request as its server's agent gets it.
fn forwarded(mut parts: Parts) -> Result<Parts, Outcome> {
    let upgrade = request::take_upgrade(&mut parts.headers);
    request::address(&mut parts, false, false, upgrade.as_ref())?;
    Ok(parts)
}

fn total(shares: &[Share]) -> u32 {
    shares.iter().fold(0, |sum, share| sum.saturating_add(share.weight))
}

fn percent(weight: Option<(u32, u32)>) -> f64 {
    weight.map_or(100.0, |(own, total)| f64::from(own) * 100.0 / f64::from(total.max(1)))
}

fn target_name(target: &Target) -> String {
    match target {
        Target::Service { service, port, subset: None } => format!("Service {service}:{port}"),
        Target::Service { service, port, subset: Some(subset) } => format!("Service {service}:{port} subset {subset}"),
        Target::Invalid(_) => "a backend that is not there".to_owned(),
    }
}

fn changes(before: &Parts, after: &Parts) -> String {
    let mut told = Vec::new();
    if before.uri.path() != after.uri.path() {
        told.push(format!("path {} becomes {}", before.uri.path(), after.uri.path()));
    }
    let host = |parts: &Parts| matches::host_of(&parts.uri, &parts.headers);
    if host(before) != host(after) {
        told.push(format!("host {} becomes {}", host(before), host(after)));
    }
    if told.is_empty() {
        told.push(if before.headers == after.headers { "nothing changes" } else { "headers change" }.to_owned());
    }
    told.join(", ")
}

/// What a client may notice of a policy.
fn describe(policy: &TrafficPolicy) -> String {
    let balancer = match &policy.balancer {
        Balancer::LeastRequest => "the less loaded of two endpoints",
        Balancer::RoundRobin => "one endpoint after the other",
        Balancer::Random => "any endpoint",
        Balancer::Passthrough => "the endpoint that was dialled",
        Balancer::Hash { .. } => "the endpoint that a hash tells",
    };
    let tls = match &policy.tls {
        TlsMode::Originate(Origination { client: Some(_), .. }) => "; TLS with a certificate of its own is begun towards the server",
        TlsMode::Originate(_) => "; TLS is begun towards the server",
        TlsMode::Mesh | TlsMode::Disable | TlsMode::Refuse(_) => "",
    };
    let outlier = if policy.outlier.is_some() { "; endpoints that fail are left out for a while" } else { "" };
    let pool = &policy.pool;
    let bounds = [("connections", pool.max_connections), ("requests", pool.max_requests), ("pending requests", pool.max_pending_requests)];
    let bounds: Vec<String> = bounds.iter().filter_map(|(what, bound)| Some(format!("at most {} {what}", (*bound)?))).collect();
    let bounds = if bounds.is_empty() { String::new() } else { format!("; {}", bounds.join(", ")) };
    format!("{balancer}{outlier}{bounds}{tls}")
}

/// What a client may notice of a Service's own policy.
fn describe_backend(policy: &BackendTrafficPolicy) -> String {
    let budget = policy.retry_budget.as_ref().map(|budget| {
        let (percent, interval, minimum, each) = (budget.percent, budget.interval, budget.minimum, budget.minimum_interval);
        format!("retries are at most {percent}% of the requests of {interval:?}, or {minimum} in {each:?}, of all clients of the node")
    });
    let session = policy.session.as_ref().map(|_| "requests of one session go to one endpoint, unless the rule says otherwise".to_owned());
    let told: Vec<String> = budget.into_iter().chain(session).collect();
    if told.is_empty() { "nothing changes".to_owned() } else { told.join("; ") }
}
