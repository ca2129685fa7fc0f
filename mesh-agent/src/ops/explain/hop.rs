//! How a connection gets to an endpoint: in the clear, within the kernel, or by mutual TLS.
//!
//! What connect() does is a kernel program; this follows it step by step (`mesh-ebpf/src/connect.rs`), with the rules from which its maps
//! are written.

use std::net::SocketAddr;
use std::sync::Arc;

use mesh_common::addr::{Addr, Endpoint};
use mesh_common::flow::Origin;
use mesh_model::policy::SetInterner;
use mesh_model::settings::SameNode;
use mesh_model::snapshot::Snapshot;
use mesh_model::workload::Workload;

use super::Encryption;
use super::find::own_end;
use crate::capture::accept::is_own_port;
use crate::capture::desired::{LeftToAgent, left_to_agent};
use crate::conn::ClientAddr;
use crate::outcome::{Outcome, Side};
use crate::policy::{Peer, Transport, WorkloadPolicy};
use crate::upstream::resolve::resolve;

/// A way to an endpoint.
pub(super) struct Hop<'s> {
    pub(super) address: SocketAddr,
    pub(super) workload: Option<&'s Arc<Workload>>,
    pub(super) encryption: Encryption,
    /// Why so.
    pub(super) reason: String,
    /// Whom the server's policies see, and by which way; nothing where none holds.
    pub(super) judged: Option<(Peer, Transport)>,
}

/// Whether the mesh's settings leave it alone.
pub(super) fn is_excluded(snapshot: &Snapshot, dialled: SocketAddr) -> bool {
    let settings = snapshot.settings();
    settings.excluded_ports.contains(&dialled.port()) || settings.excluded_cidrs.iter().any(|net| net.contains(&dialled.ip()))
}

/// In the clear, as the server's node sees it arrive.
pub(super) fn clear<'s>(snapshot: &'s Snapshot, address: SocketAddr, client: &ClientAddr, why: &str) -> Result<Hop<'s>, Outcome> {
    held(snapshot, address)?;
    let workload = snapshot.workload_at(address.ip());
    let enrolled = workload.is_some_and(|workload| workload.enrolled);
    if enrolled && is_own_port(address.port()) {
        return Err(Outcome::OwnPort);
    }
    let peer = Peer { identity: None, address: *client };
    let judged = enrolled.then_some((peer, Transport::Plaintext));
    Ok(Hop { address, workload, encryption: Encryption::Plaintext, reason: why.to_owned(), judged })
}

/// As connect() lets it go that the agent is not asked about.
pub(super) fn direct<'s>(snapshot: &'s Snapshot, client: &Workload, address: SocketAddr) -> Result<Hop<'s>, Outcome> {
    let passes = |workload, reason: &str| Hop { address, workload, encryption: Encryption::Plaintext, reason: reason.into(), judged: None };
    if client.addresses.contains(&address.ip()) {
        return Ok(passes(snapshot.workload_at(address.ip()), "it is the pod's own address, which is left alone"));
    }
    let is_held = snapshot.held().iter().any(|pod| pod.addresses.contains(&address.ip()));
    let workload = snapshot.workload_at(address.ip());
    let meshed = workload.filter(|workload| workload.enrolled);
    if meshed.is_none() && !is_held {
        return Ok(passes(workload, "the server is not in the mesh"));
    }
    if is_own_port(address.port()) {
        return Err(Outcome::OwnPort);
    }
    held(snapshot, address)?;
    let Some(server) = meshed else { return Err(Outcome::UnknownDestination) };
    if !client.addresses.iter().any(|own| own.is_ipv4() == address.is_ipv4()) {
        return Err(Outcome::AddressFamily);
    }
    if server.node != client.node {
        return Ok(meshed_hop(client, address, server, Encryption::MutualTls, across(server)));
    }
    let encrypts = |workload: &Workload| snapshot.same_node(&workload.namespace) == SameNode::Encrypt;
    let policy = WorkloadPolicy::of(snapshot, server, &mut SetInterner::default());
    let why = match left_to_agent(encrypts(client) || encrypts(server), &policy) {
        None => {
            let reason = format!("both pods are on node {}: it is judged at connect(), and no byte leaves the kernel", server.node);
            return Ok(meshed_hop(client, address, server, Encryption::Kernel, reason));
        }
        Some(LeftToAgent::Encrypt) => "the Mesh's sameNode, or a namespace, demands encryption within a node too",
        Some(LeftToAgent::AsksHttp) => "some policy of the server asks for more than the kernel sees",
        Some(LeftToAgent::Unfit) => "the server's policies are too long for the kernel, or ask for connections to be noted",
    };
    Ok(meshed_hop(client, address, server, Encryption::MutualTlsWithinNode, within(server, why)))
}

/// As an agent brings it to the endpoint that the kernel chose of a Service that it has to be asked about.
pub(super) fn captured<'s>(
    snapshot: &'s Snapshot,
    client: &Workload,
    dialled: SocketAddr,
    address: SocketAddr,
) -> Result<Hop<'s>, Outcome> {
    let endpoint = |address: SocketAddr| Endpoint::new(Addr::from(address.ip()), address.port());
    let origin = Origin { dialled: endpoint(dialled), endpoint: endpoint(address), ..Origin::default() };
    let target = resolve(snapshot, &origin, |_| 0)?;
    match snapshot.workload(&target.workload.uid) {
        Some(server) => agent(client, address, server, "other clients have routes or a DestinationRule for the Service"),
        None => Err(Outcome::UnknownDestination),
    }
}

/// As an agent brings it to an endpoint that it chose itself; `secure`: with TLS of its own.
pub(super) fn routed<'s>(
    client: &Workload,
    address: SocketAddr,
    workload: Option<&'s Arc<Workload>>,
    secure: bool,
) -> Result<Hop<'s>, Outcome> {
    if let Some(server) = workload.filter(|workload| workload.enrolled) {
        return agent(client, address, server, "the agent has to choose the endpoint");
    }
    if !client.addresses.iter().any(|own| own.is_ipv4() == address.is_ipv4()) {
        return Err(Outcome::AddressFamily);
    }
    let (encryption, reason) = match secure {
        true => (Encryption::Tls, "the server is not in the mesh, and the DestinationRule asks for TLS"),
        false => (Encryption::Plaintext, "the server is not in the mesh"),
    };
    Ok(Hop { address, workload, encryption, reason: reason.to_owned(), judged: None })
}

fn agent<'s>(client: &Workload, address: SocketAddr, server: &'s Arc<Workload>, why: &str) -> Result<Hop<'s>, Outcome> {
    if is_own_port(address.port()) {
        return Err(Outcome::OwnPort);
    }
    if !client.addresses.iter().any(|own| own.is_ipv4() == address.is_ipv4()) {
        return Err(Outcome::AddressFamily);
    }
    Ok(match server.node == client.node {
        true => meshed_hop(client, address, server, Encryption::MutualTlsWithinNode, within(server, why)),
        false => meshed_hop(client, address, server, Encryption::MutualTls, across(server)),
    })
}

fn across(server: &Workload) -> String {
    format!("to the agent of node {}", if server.node.is_empty() { "?" } else { &server.node })
}

fn within(server: &Workload, why: &str) -> String {
    format!("both pods are on node {}, but {why}", server.node)
}

fn meshed_hop<'s>(client: &Workload, address: SocketAddr, server: &'s Arc<Workload>, encryption: Encryption, reason: String) -> Hop<'s> {
    let peer = Peer { identity: Some(client.identity.clone()), address: own_end(client, address) };
    Hop { address, workload: Some(server), encryption, reason, judged: Some((peer, Transport::Tunnel)) }
}

fn held(snapshot: &Snapshot, address: SocketAddr) -> Result<(), Outcome> {
    match snapshot.held().iter().find(|pod| pod.addresses.contains(&address.ip())) {
        Some(pod) => Err(Outcome::PodHeld { side: Side::Server, awaited: pod.reason.clone() }),
        None => Ok(()),
    }
}
