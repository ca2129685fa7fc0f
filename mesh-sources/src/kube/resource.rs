//! Which resources are watched, and how.

use kube::core::{ApiResource, GroupVersionKind};
use kube::runtime::watcher;
use mesh_model::object::Kind;

/// The kinds that are watched. ServiceAccounts are not: an identity is made of the name that a pod bears.
pub(super) const WATCHED: [Kind; 18] = [
    Kind::Namespace,
    Kind::Node,
    Kind::Pod,
    Kind::Service,
    Kind::EndpointSlice,
    Kind::PeerAuthentication,
    Kind::AuthorizationPolicy,
    Kind::RequestAuthentication,
    Kind::Mesh,
    Kind::HttpRoute,
    Kind::GrpcRoute,
    Kind::TlsRoute,
    Kind::TcpRoute,
    Kind::VirtualService,
    Kind::DestinationRule,
    Kind::ServiceEntry,
    Kind::RateLimit,
    Kind::XBackendTrafficPolicy,
];

/// How a kind's first list is fetched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Listing {
    /// As a stream of objects out of the API server's cache (`sendInitialEvents`): no page is ever held whole, on either side.
    /// The cache of one of several API servers may be a little behind; the watch that goes on from there catches up.
    Streamed,
    /// In pages of the state that counts at that moment (no `resourceVersion`).
    Paged,
}

/// How a kind is listed where the server can do both. What decides over membership and policy is few objects, and must not be older
/// than what was in force before; the others are many.
pub(super) fn listing(kind: Kind) -> Listing {
    match kind {
        Kind::Pod | Kind::Node | Kind::Service | Kind::EndpointSlice => Listing::Streamed,
        _ => Listing::Paged,
    }
}

/// The resource of a kind, in each version in which it is read, the preferred one first.
pub fn resources(kind: Kind) -> Vec<ApiResource> {
    let versions = kind.api_versions().iter();
    versions
        .map(|api_version| {
            let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
            ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind.name()), plural(kind))
        })
        .collect()
}

/// `resource.group`, as RBAC and people name it.
pub(super) fn resource_name(kind: Kind) -> String {
    let group = kind.api_versions().first().and_then(|version| version.split_once('/')).map(|(group, _)| group);
    group.map_or_else(|| plural(kind).to_owned(), |group| format!("{}.{group}", plural(kind)))
}

/// Name of the kind in the API's paths.
pub(super) fn plural(kind: Kind) -> &'static str {
    match kind {
        Kind::Namespace => "namespaces",
        Kind::Node => "nodes",
        Kind::ServiceAccount => "serviceaccounts",
        Kind::Pod => "pods",
        Kind::Service => "services",
        Kind::EndpointSlice => "endpointslices",
        Kind::PeerAuthentication => "peerauthentications",
        Kind::AuthorizationPolicy => "authorizationpolicies",
        Kind::RequestAuthentication => "requestauthentications",
        Kind::Mesh => "meshes",
        Kind::HttpRoute => "httproutes",
        Kind::GrpcRoute => "grpcroutes",
        Kind::TlsRoute => "tlsroutes",
        Kind::TcpRoute => "tcproutes",
        Kind::VirtualService => "virtualservices",
        Kind::DestinationRule => "destinationrules",
        Kind::ServiceEntry => "serviceentries",
        Kind::RateLimit => "ratelimits",
        Kind::XBackendTrafficPolicy => "xbackendtrafficpolicies",
    }
}

/// The watch's parameters. `seconds` is how long one request may last before it is made anew.
pub(super) fn parameters(kind: Kind, listing: Listing, seconds: u32) -> watcher::Config {
    let config = watcher::Config::default().timeout(seconds);
    let config = match kind {
        // Finished pods are nobody any more, and some clusters keep thousands of them.
        Kind::Pod => config.fields("status.phase!=Succeeded,status.phase!=Failed"),
        _ => config,
    };
    match listing {
        Listing::Streamed => config.streaming_lists(),
        Listing::Paged => config,
    }
}
