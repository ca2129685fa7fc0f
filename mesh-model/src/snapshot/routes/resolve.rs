//! A route's rules with their Services found, once for all ports that it is attached to.

use std::sync::Arc;

use super::order::{Order, TlsOrder};
use crate::gateway::{BackendRef, HOSTNAME, ISTIO_GROUP, ObjectRef, RequestRule, RouteFilter, RouteObject, RouteRules};
use crate::object::Kind;
use crate::route::{Backend, ConditionStatus, ConnectionScope, Filter, HttpRule, RuleOrigin, Target, TcpRule, TlsRule};
use crate::service::{Discovery, NamespacedName, Service};
use crate::snapshot::Snapshot;
use crate::traffic::TlsMode;

/// What stands in a table for one route.
pub(super) enum Resolved {
    Requests(Vec<(Order, Arc<HttpRule>)>),
    Tls(Vec<(TlsOrder, Arc<TlsRule>)>),
    Tcp(Arc<TcpRule>),
}

/// A reference that leads nowhere: reason of `ResolvedRefs`, the field, and the message.
pub(super) struct Broken {
    reason: &'static str,
    pub(super) field: String,
    pub(super) message: String,
}

/// References that are told in a condition; of the others there is the number.
const TOLD: usize = 10;

/// The condition `ResolvedRefs`.
pub(super) fn condition(broken: &[Broken]) -> ConditionStatus {
    let Some(first) = broken.first() else {
        return ConditionStatus { status: true, reason: "ResolvedRefs", message: "every reference leads somewhere".into() };
    };
    let mut lines: Vec<String> = broken.iter().take(TOLD).map(|one| format!("{}: {}", one.field, one.message)).collect();
    if let Some(more) = broken.len().checked_sub(TOLD).filter(|more| *more > 0) {
        lines.push(format!("and {more} more"));
    }
    ConditionStatus { status: false, reason: first.reason, message: lines.join("\n").into() }
}

/// Finds what a route's rules are about.
pub(super) fn resolve(snapshot: &Snapshot, route: &RouteObject) -> (Resolved, Vec<Broken>) {
    let requests = matches!(route.rules, RouteRules::Requests(_));
    let of_service = route.parents.iter().any(|parent| parent.is_ours() && !parent.is_entry());
    let mut resolver = Resolver { snapshot, namespace: &route.key.namespace, requests, of_service, broken: Vec::new() };
    let resolved = match &route.rules {
        RouteRules::Requests(rules) => {
            let mut found = Vec::new();
            for (number, rule) in rules.iter().enumerate() {
                resolver.requests(route, number, rule, &mut found);
            }
            Resolved::Requests(found)
        }
        RouteRules::Connections { hosts, rule } => {
            let origin = RuleOrigin { object: route.key.clone(), rule: 0, name: rule.as_ref().and_then(|rule| rule.name.clone()) };
            let backends = match rule {
                Some(rule) => match &rule.fault {
                    Some(fault) => vec![Backend { target: Target::Invalid(fault.message.clone()), weight: 1, filters: Vec::new() }],
                    None => resolver.backends("spec.rules[0].backendRefs", &rule.backends),
                },
                None => Vec::new(),
            };
            if route.key.kind == Kind::TlsRoute {
                let of = |host: Option<&Arc<str>>| {
                    let hosts = host.into_iter().cloned().collect();
                    let order = TlsOrder::of(route, host.map(|host| &**host));
                    (
                        order,
                        Arc::new(TlsRule { origin: origin.clone(), scope: ConnectionScope::default(), hosts, backends: backends.clone() }),
                    )
                };
                Resolved::Tls(if hosts.is_empty() { vec![of(None)] } else { hosts.iter().map(|host| of(Some(host))).collect() })
            } else {
                Resolved::Tcp(Arc::new(TcpRule { origin, scope: ConnectionScope::default(), backends }))
            }
        }
    };
    (resolved, resolver.broken)
}

struct Resolver<'a> {
    snapshot: &'a Snapshot,
    /// The route's.
    namespace: &'a Arc<str>,
    /// Whether it is about requests, as opposed to connections.
    requests: bool,
    /// Whether some parent is a Service.
    of_service: bool,
    broken: Vec<Broken>,
}

impl Resolver<'_> {
    fn requests(&mut self, route: &RouteObject, number: usize, rule: &RequestRule, found: &mut Vec<(Order, Arc<HttpRule>)>) {
        let at = format!("spec.rules[{number}]");
        let filters = self.filters(&format!("{at}.filters"), &rule.filters);
        let backends = self.backends(&format!("{at}.backendRefs"), &rule.backends);
        let whole = HttpRule {
            origin: RuleOrigin { object: route.key.clone(), rule: number, name: rule.name.clone() },
            matches: Default::default(),
            filters,
            backends,
            timeout: rule.timeout,
            try_timeout: rule.try_timeout,
            retry: rule.retry.clone(),
            session: rule.session.clone(),
        };
        for (i, matched) in rule.matches.iter().enumerate() {
            let matches = matched.matches.clone();
            let rule = match &matched.refused {
                None => HttpRule { matches, ..whole.clone() },
                Some(why) => HttpRule { matches, filters: vec![Filter::Refuse(why.clone())], backends: Vec::new(), ..whole.clone() },
            };
            found.push((Order::of(route, number, i, matched), Arc::new(rule)));
        }
    }

    fn backends(&mut self, at: &str, backends: &[BackendRef]) -> Vec<Backend> {
        let mut found = Vec::with_capacity(backends.len());
        for (i, backend) in backends.iter().enumerate() {
            let at = format!("{at}[{i}]");
            let target = match self.target(&backend.to) {
                Ok(target) => target,
                Err((reason, message)) => {
                    let invalid = Target::Invalid(message.as_str().into());
                    let message = format!("{message}; its share is answered with errors");
                    self.broken.push(Broken { reason, field: at.clone(), message });
                    invalid
                }
            };
            let filters = self.filters(&format!("{at}.filters"), &backend.filters);
            found.push(Backend { target, weight: backend.weight, filters });
        }
        found
    }

    fn filters(&mut self, at: &str, filters: &[RouteFilter]) -> Vec<Filter> {
        let mut found = Vec::with_capacity(filters.len());
        for (i, filter) in filters.iter().enumerate() {
            match filter {
                RouteFilter::Ready(filter) => found.push(filter.clone()),
                RouteFilter::Extension { to, why } => {
                    let message = format!("leads to {to}, which is no filter that the mesh knows; its requests are answered with 500");
                    self.broken.push(Broken { reason: "InvalidKind", field: format!("{at}[{i}].extensionRef"), message });
                    found.push(Filter::Refuse(why.clone()));
                }
                RouteFilter::Mirror { to, share } => match self.target(to) {
                    Ok(target) => found.push(Filter::Mirror { target, share: *share }),
                    Err((reason, message)) => {
                        let field = format!("{at}[{i}].requestMirror.backendRef");
                        self.broken.push(Broken { reason, field, message: format!("{message}; nothing is copied there") });
                    }
                },
            }
        }
        found
    }

    fn target(&self, to: &ObjectRef) -> Result<Target, (&'static str, String)> {
        let missing = |message: String| ("BackendNotFound", message);
        let (service, what) = match (&*to.group, &*to.kind) {
            ("", "Service") => {
                let name = NamespacedName { namespace: to.namespace.clone(), name: to.name.clone() };
                let found = self.snapshot.service(&name).filter(|service| service.entry.is_none());
                let found = found.ok_or_else(|| missing(format!("Service {name} does not exist or is only a DNS name")))?;
                (found, format!("Service {name}"))
            }
            // As in Istio: what the route's namespace knows by that name, so that no ReferenceGrant is asked for.
            (ISTIO_GROUP, HOSTNAME) => {
                let found = self.snapshot.host(self.namespace, &to.name).ok_or_else(|| {
                    missing(format!("no Service or ServiceEntry that namespace {} knows has the host {}", self.namespace, to.name))
                })?;
                (found, format!("host {}", to.name))
            }
            _ => {
                let message = format!(
                    "{} {} is nothing that the mesh sends to; write a Service, or a {HOSTNAME} of group {ISTIO_GROUP}",
                    to.kind, to.name
                );
                return Err(("InvalidKind", message));
            }
        };
        let number = to.port.ok_or_else(|| missing(format!("no port of {what} is named; write one")))?;
        let port = service.ports.iter().find(|port| port.port == number);
        let port = port.ok_or_else(|| missing(format!("{what} has no TCP port {number}")))?;
        if self.of_service && matches!(port.discovery, Discovery::Dialled { .. }) {
            let message =
                format!("{what} has resolution NONE, by which the address counts that was dialled: the Service's; write STATIC or DNS");
            return Err(missing(message));
        }
        if self.requests && !speaks_http(&port.app_protocol) && !self.begins_tls(service, number) {
            let message = format!("port {number} of {what} speaks {}, which is not HTTP in the clear", port.app_protocol);
            let mend = if service.entry.is_some() { "; have a DestinationRule begin TLS towards it" } else { "" };
            return Err(("UnsupportedProtocol", message + mend));
        }
        Ok(Target::Service { service: service.name.clone(), port: number, subset: None })
    }

    /// Whether what is sent to a host's port by clients of the route's namespace has TLS begun for it.
    fn begins_tls(&self, service: &Service, port: u16) -> bool {
        let rule = self.snapshot.rule_for(self.namespace, None, &service.name).filter(|_| service.entry.is_some());
        rule.is_some_and(|rule| matches!(rule.ports.get(&port).unwrap_or(&rule.policy).tls, TlsMode::Originate(_)))
    }
}

/// Whether requests may be sent by an `appProtocol`: names of Kubernetes and of others that are not known are refused (GEP-1911), names
/// without a domain are the user's word, but for those that say TLS.
fn speaks_http(app_protocol: &str) -> bool {
    match app_protocol {
        "kubernetes.io/h2c" | "kubernetes.io/ws" => true,
        "https" | "tls" | "wss" => false,
        other => !other.contains('/'),
    }
}
