//! Istio's VirtualService as its author wrote it, and the table that a Service's port has by it.

use std::sync::Arc;
use std::time::Duration;

use crate::object::{Kind, ObjectKey};
use crate::route::{
    Backend, ConnectionScope, Filter, HttpRule, PathMatch, PathRewrite, RequestMatch, RetryPolicy, Rewrite, RouteTable, RuleOrigin, Target,
    TcpRule, TlsRule,
};
use crate::service::{NamespacedName, ServicePort};

/// A VirtualService.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VirtualService {
    /// Its name.
    pub name: NamespacedName,
    /// `metadata.creationTimestamp`, seconds since 1970, if given: of several for one host the oldest holds.
    pub created: Option<i64>,
    /// The hosts, in full and in lower case (`reviews.default.svc.cluster.local`), or with `*` first.
    pub hosts: Vec<Arc<str>>,
    /// Namespaces whose clients it is for (`exportTo`); empty for all. `.` is written out.
    pub export_to: Vec<Arc<str>>,
    /// It is for clients in the mesh: `gateways` is absent or names `mesh`.
    pub mesh: bool,
    /// Rules for requests, in the order in which they are tried.
    pub http: Vec<HttpRoute>,
    /// Rules for TLS connections, in the order in which they are tried.
    pub tls: Vec<ConnectionRoute>,
    /// Rules for connections, in the order in which they are tried.
    pub tcp: Vec<ConnectionRoute>,
}

/// A rule for requests.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HttpRoute {
    /// Number in `spec.http`, from 0.
    pub number: usize,
    /// Its name, where it has one.
    pub name: Option<Arc<str>>,
    /// Any of these. Empty: for no request of the mesh, as all are for gateways or could not be read.
    pub matches: Vec<HttpMatch>,
    /// What is done with requests, in this order.
    pub filters: Vec<Filter>,
    /// Change of host and path. A path is written as [`PathRewrite::Prefix`] or [`PathRewrite::Regex`].
    pub rewrite: Option<Rewrite>,
    /// Copies: where to, and of `.1` requests `.0`.
    pub mirrors: Vec<(Destination, (u32, u32))>,
    /// Where requests go.
    pub route: Vec<Share>,
    /// `timeout`; `None` for no limit.
    pub timeout: Option<Duration>,
    /// `retries.perTryTimeout`
    pub try_timeout: Option<Duration>,
    /// `retries`
    pub retry: Option<RetryPolicy>,
}

/// Which requests a rule is for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HttpMatch {
    /// Its name, where it has one.
    pub name: Option<Arc<str>>,
    /// The port that was dialled; any if unset.
    pub port: Option<u16>,
    /// What must hold of a request.
    pub request: RequestMatch,
}

/// A rule for connections.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ConnectionRoute {
    /// Number in `spec.tls` or `spec.tcp`, from 0.
    pub number: usize,
    /// Any of these. Empty: for no connection.
    pub matches: Vec<ConnectionMatch>,
    /// Where they go.
    pub route: Vec<Share>,
}

/// Which connections a rule is for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ConnectionMatch {
    /// Server names: exact, or `*.` and what they end with; empty for all.
    pub hosts: Vec<Arc<str>>,
    /// The port that was dialled; any if unset.
    pub port: Option<u16>,
    /// What else must hold.
    pub scope: ConnectionScope,
}

/// A part of what a rule is for, and where that goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Share {
    /// Where.
    pub destination: Destination,
    /// Of the sum of all.
    pub weight: u32,
    /// What is done with requests that go there.
    pub filters: Vec<Filter>,
}

/// Where requests go, as it was written.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Destination {
    /// Host in full and in lower case; as it was written if it is none.
    pub host: Arc<str>,
    /// A DestinationRule's subset.
    pub subset: Option<Arc<str>>,
    /// Port of the host; if unset the one that was dialled, or the host's only one.
    pub port: Option<u16>,
}

/// What a Service's port says about its protocol, by `appProtocol` or the beginning of its name as in Istio.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Declared {
    /// HTTP of any version, gRPC.
    Http,
    /// TLS that the client begins.
    Tls,
    /// Neither.
    Tcp,
    /// Nothing.
    Unsaid,
}

impl Declared {
    /// Of a port.
    pub fn of(port: &ServicePort) -> Declared {
        let word = match &*port.app_protocol {
            "" => port.name.split('-').next().unwrap_or_default(),
            said => said.strip_prefix("kubernetes.io/").unwrap_or(said),
        };
        match word.to_ascii_lowercase().as_str() {
            "http" | "http2" | "h2c" | "grpc" | "grpc-web" | "ws" => Declared::Http,
            "https" | "tls" | "wss" => Declared::Tls,
            "tcp" | "mongo" | "mysql" | "redis" => Declared::Tcp,
            _ => Declared::Unsaid,
        }
    }
}

impl VirtualService {
    /// What a Service's port has by it; `None` if no rule is for the port. `resolve` says who stands behind a destination.
    ///
    /// Of the three lists the one counts that fits what the port says about its protocol; where it says nothing, the first that has a
    /// rule for it.
    pub fn table(&self, port: u16, declared: Declared, resolve: &dyn Fn(&Destination) -> Target) -> Option<RouteTable> {
        let http = || {
            let rules: Vec<_> = self.http.iter().flat_map(|route| self.http_rules(route, port, resolve)).collect();
            (!rules.is_empty()).then_some(RouteTable::Http { rules, grpc: false })
        };
        let tls = || {
            let rules: Vec<_> = self.tls.iter().flat_map(|route| self.tls_rules(route, port, resolve)).collect();
            (!rules.is_empty()).then_some(RouteTable::Tls(rules))
        };
        let tcp = || {
            let rules: Vec<_> = self.tcp.iter().flat_map(|route| self.tcp_rules(route, port, resolve)).collect();
            (!rules.is_empty()).then_some(RouteTable::Tcp(rules))
        };
        match declared {
            Declared::Http => http(),
            Declared::Tls => tls().or_else(tcp),
            Declared::Tcp => tcp(),
            Declared::Unsaid => http().or_else(tls).or_else(tcp),
        }
    }

    /// The destinations that rules name, each with the path of its field.
    pub fn destinations(&self) -> Vec<(String, &Destination)> {
        let mut all = Vec::new();
        for route in &self.http {
            all.extend(named("http", route.number, &route.route));
            all.extend(route.mirrors.iter().map(|(to, _)| (format!("spec.http[{}].mirror", route.number), to)));
        }
        for (list, routes) in [("tls", &self.tls), ("tcp", &self.tcp)] {
            for route in routes {
                all.extend(named(list, route.number, &route.route));
            }
        }
        all
    }

    fn origin(&self, rule: usize, name: Option<Arc<str>>) -> RuleOrigin {
        let object = ObjectKey { kind: Kind::VirtualService, namespace: self.name.namespace.clone(), name: self.name.name.clone() };
        RuleOrigin { object, rule, name }
    }

    fn http_rules(&self, route: &HttpRoute, port: u16, resolve: &dyn Fn(&Destination) -> Target) -> Vec<Arc<HttpRule>> {
        let matches: Vec<_> = route.matches.iter().filter(|one| fits(one.port, port)).collect();
        if matches.is_empty() {
            return Vec::new();
        }
        let backends = backends(&route.route, resolve);
        let mirror = |(to, share): &(Destination, (u32, u32))| Filter::Mirror { target: resolve(to), share: *share };
        let mirrors: Vec<_> = route.mirrors.iter().map(mirror).collect();
        let rule = |one: &HttpMatch| {
            let mut matches = one.request.clone();
            let mut filters = route.filters.clone();
            filters.extend(route.rewrite.as_ref().map(|rewrite| Filter::Rewrite(fitting(rewrite, &mut matches))));
            filters.extend(mirrors.iter().cloned());
            let name = match (&route.name, &one.name) {
                (Some(rule), Some(one)) => Some(format!("{rule}.{one}").into()),
                (rule, one) => rule.as_ref().or(one.as_ref()).cloned(),
            };
            Arc::new(HttpRule {
                origin: self.origin(route.number, name),
                matches,
                filters,
                backends: backends.clone(),
                timeout: route.timeout,
                try_timeout: route.try_timeout,
                retry: route.retry.clone(),
                session: None,
            })
        };
        matches.into_iter().map(rule).collect()
    }

    fn tls_rules(&self, route: &ConnectionRoute, port: u16, resolve: &dyn Fn(&Destination) -> Target) -> Vec<Arc<TlsRule>> {
        let matches = route.matches.iter().filter(|one| fits(one.port, port));
        let rule = |one: &ConnectionMatch| TlsRule {
            origin: self.origin(route.number, None),
            scope: one.scope.clone(),
            hosts: one.hosts.clone(),
            backends: backends(&route.route, resolve),
        };
        matches.map(|one| Arc::new(rule(one))).collect()
    }

    fn tcp_rules(&self, route: &ConnectionRoute, port: u16, resolve: &dyn Fn(&Destination) -> Target) -> Vec<Arc<TcpRule>> {
        let matches = route.matches.iter().filter(|one| fits(one.port, port));
        let rule = |one: &ConnectionMatch| TcpRule {
            origin: self.origin(route.number, None),
            scope: one.scope.clone(),
            backends: backends(&route.route, resolve),
        };
        matches.map(|one| Arc::new(rule(one))).collect()
    }
}

fn named<'a>(list: &str, number: usize, route: &'a [Share]) -> impl Iterator<Item = (String, &'a Destination)> {
    route.iter().enumerate().map(move |(i, share)| (format!("spec.{list}[{number}].route[{i}].destination"), &share.destination))
}

fn fits(wanted: Option<u16>, port: u16) -> bool {
    wanted.is_none_or(|wanted| wanted == port)
}

fn backends(route: &[Share], resolve: &dyn Fn(&Destination) -> Target) -> Vec<Backend> {
    let backend = |share: &Share| Backend { target: resolve(&share.destination), weight: share.weight, filters: share.filters.clone() };
    route.iter().map(backend).collect()
}

/// A rewrite as it acts on what a rule matches. Of a path that is not matched by its beginning Istio replaces either all or, where it is
/// not matched at all, the `/` it begins with.
fn fitting(rewrite: &Rewrite, matches: &mut RequestMatch) -> Rewrite {
    let mut rewrite = rewrite.clone();
    if let Some(PathRewrite::Prefix(by)) = &rewrite.path {
        match &matches.path {
            Some(PathMatch::Prefix(_) | PathMatch::Segments(_) | PathMatch::Exact(_)) => {}
            Some(PathMatch::Regex(_)) => rewrite.path = Some(PathRewrite::Full(by.clone())),
            None => matches.path = Some(PathMatch::Prefix("/".into())),
        }
    }
    rewrite
}
