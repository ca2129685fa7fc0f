//! Gateway API routes as their authors wrote them, each judged alone: conditions and changes are values already, Services are names still.

use std::sync::Arc;
use std::time::Duration;

use crate::object::ObjectKey;
use crate::route::{Filter, RequestMatch, RetryPolicy, Session};

/// Controller's name in the status of routes and meshes.
pub const CONTROLLER_NAME: &str = "nodemesh.dev/mesh";
/// Group of the routes and, unless they say otherwise, of their parents.
pub const GROUP: &str = "gateway.networking.k8s.io";
/// Group of ServiceEntries, and of the hosts that routes name as backends.
pub const ISTIO_GROUP: &str = "networking.istio.io";
/// Kind of a backend that is a host by its name, of a Service or a ServiceEntry (Istio's).
pub const HOSTNAME: &str = "Hostname";

/// A HTTPRoute, GRPCRoute, TLSRoute or TCPRoute; which one, its key tells.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RouteObject {
    /// Its name and kind.
    pub key: ObjectKey,
    /// `metadata.creationTimestamp`, seconds since 1970, if given.
    pub created: Option<i64>,
    /// `metadata.generation`, if given.
    pub generation: Option<i64>,
    /// What it is attached to, Services or not.
    pub parents: Vec<ParentRef>,
    /// What it does.
    pub rules: RouteRules,
}

/// What a route is attached to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ParentRef {
    /// Its number in `spec.parentRefs`.
    pub index: usize,
    /// Group of the parent's kind; the core group is empty.
    pub group: Arc<str>,
    /// The parent's kind.
    pub kind: Arc<str>,
    /// Its namespace: the route's own, unless said.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Name of its port; any if unsaid.
    pub section: Option<Arc<str>>,
    /// Number of its port; any if unsaid.
    pub port: Option<u16>,
}

impl ParentRef {
    /// Whether it is what the mesh serves; others are for other controllers.
    pub fn is_ours(&self) -> bool {
        is_ours(&self.group, &self.kind)
    }

    /// Whether it is a ServiceEntry (as in Istio), which stands for its hosts.
    pub fn is_entry(&self) -> bool {
        self.is_ours() && &*self.group == ISTIO_GROUP
    }
}

/// Whether the mesh serves parents of this kind: Services and ServiceEntries.
pub fn is_ours(group: &str, kind: &str) -> bool {
    matches!((group, kind), ("" | "core", "Service") | (ISTIO_GROUP, "ServiceEntry"))
}

/// A route's rules.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RouteRules {
    /// Of a HTTPRoute or a GRPCRoute.
    Requests(Vec<RequestRule>),
    /// Of a TLSRoute or a TCPRoute: there is one, since nothing would tell several apart.
    Connections {
        /// Server names of TLS; empty for all, and for TCP.
        hosts: Vec<Arc<str>>,
        /// The rule, with its number.
        rule: Option<ConnectionRule>,
    },
}

/// A rule for requests.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RequestRule {
    /// Its name.
    pub name: Option<Arc<str>>,
    /// For which requests, one of them sufficing; never empty.
    pub matches: Vec<RouteMatch>,
    /// What is done with them, in this order.
    pub filters: Vec<RouteFilter>,
    /// Where they go.
    pub backends: Vec<BackendRef>,
    /// For the whole request; `None` for no limit.
    pub timeout: Option<Duration>,
    /// For one attempt.
    pub try_timeout: Option<Duration>,
    /// When to try again.
    pub retry: Option<RetryPolicy>,
    /// Session persistence.
    pub session: Option<Session>,
    /// What could not be understood of it, if anything: what depends on that answers 500.
    pub fault: Option<RuleFault>,
}

/// A match of a rule.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RouteMatch {
    /// The requests, as far as it was understood.
    pub matches: RequestMatch,
    /// Of a GRPCRoute: characters of service and method, by which its matches are ranked.
    pub grpc: (usize, usize),
    /// Why it was not understood in full. Then nobody knows which of the requests it is for, so it is tried after all others: they keep
    /// what is theirs, and what is left and may have been meant is answered with 500.
    pub refused: Option<Arc<str>>,
}

/// A filter, of which a mirror's Service is a name still.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RouteFilter {
    /// One that needs nothing else.
    Ready(Filter),
    /// A copy goes elsewhere.
    Mirror {
        /// Where.
        to: ObjectRef,
        /// Of `share.1` requests `share.0` are copied.
        share: (u32, u32),
    },
    /// An `ExtensionRef`: the mesh has no kind that one could lead to, so its requests are answered with an error.
    Extension {
        /// What it leads to, in words.
        to: Arc<str>,
        /// Why they are.
        why: Arc<str>,
    },
}

/// Somewhere that requests or connections go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackendRef {
    /// Where.
    pub to: ObjectRef,
    /// Its share of the sum of all.
    pub weight: u32,
    /// What is done with requests that go there.
    pub filters: Vec<RouteFilter>,
}

/// Names an object that a route needs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObjectRef {
    /// Group of its kind; the core group is empty.
    pub group: Arc<str>,
    /// Its kind.
    pub kind: Arc<str>,
    /// Its namespace: the route's own, unless said.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Its port, which a Service must have.
    pub port: Option<u16>,
}

/// A rule for connections.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConnectionRule {
    /// Its name.
    pub name: Option<Arc<str>>,
    /// Where they go.
    pub backends: Vec<BackendRef>,
    /// What could not be understood of it: connections are then refused.
    pub fault: Option<RuleFault>,
}

/// What could not be understood of a rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RuleFault {
    /// Reason of the condition.
    pub reason: FaultReason,
    /// For people, with the field.
    pub message: Arc<str>,
}

/// Reasons of a rule's fault, as Gateway API's condition `Accepted` has them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum FaultReason {
    /// Filters that cannot be had together.
    IncompatibleFilters,
    /// Something that is not known, or not done.
    UnsupportedValue,
}
