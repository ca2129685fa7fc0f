//! Which rule is tried before which, of all that are for one port (`HTTPRouteRule.matches`, `GRPCRouteRule.matches`).
//!
//! Where Gateway API leaves it open: a path's pattern stands between exact paths and prefixes, as with most that implement it, a longer
//! pattern before a shorter one.

use std::cmp::Reverse;
use std::sync::Arc;

use crate::gateway::{RouteMatch, RouteObject};
use crate::object::Kind;
use crate::route::PathMatch;

/// Place of a rule; the least is tried first.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Order {
    /// What is not understood in full comes last.
    refused: bool,
    rank: [Reverse<usize>; 5],
    age: Age,
    rule: usize,
    found: usize,
}

/// Older routes go before younger ones, then by name. One without a date is younger than all that have one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Age {
    created: i64,
    namespace: Arc<str>,
    name: Arc<str>,
}

impl Age {
    pub(super) fn of(route: &RouteObject) -> Age {
        Age { created: route.created.unwrap_or(i64::MAX), namespace: route.key.namespace.clone(), name: route.key.name.clone() }
    }
}

impl Order {
    /// Of a rule's match, both by number.
    pub(super) fn of(route: &RouteObject, rule: usize, found: usize, matched: &RouteMatch) -> Order {
        let matches = &matched.matches;
        let rank = if route.key.kind == Kind::GrpcRoute {
            [matched.grpc.0, matched.grpc.1, matches.headers.len(), 0, 0]
        } else {
            let (class, length) = match &matches.path {
                Some(PathMatch::Exact(path)) => (2, path.chars().count()),
                Some(PathMatch::Regex(pattern)) => (1, pattern.as_str().chars().count()),
                Some(PathMatch::Segments(path) | PathMatch::Prefix(path)) => (0, path.chars().count()),
                None => (0, 0),
            };
            [class, length, usize::from(matches.method.is_some()), matches.headers.len(), matches.query.len()]
        };
        Order { refused: matched.refused.is_some(), rank: rank.map(Reverse), age: Age::of(route), rule, found }
    }
}

/// Place of a TLS rule: exact server names, then longer endings before shorter ones, then any name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct TlsOrder {
    wildcard: bool,
    length: Reverse<usize>,
    age: Age,
}

impl TlsOrder {
    /// Of a route for a server name; `None` is any.
    pub(super) fn of(route: &RouteObject, host: Option<&str>) -> TlsOrder {
        let wildcard = host.is_none_or(|host| host.starts_with("*."));
        TlsOrder { wildcard, length: Reverse(host.map_or(0, str::len)), age: Age::of(route) }
    }
}

/// Of the kinds of route on one port, for one group of clients, one is in force: the first (GEP-1294).
pub(super) fn precedence(kind: Kind) -> u8 {
    match kind {
        Kind::GrpcRoute => 0,
        Kind::HttpRoute => 1,
        Kind::TlsRoute => 2,
        _ => 3,
    }
}
