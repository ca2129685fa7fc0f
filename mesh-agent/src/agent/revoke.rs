//! Ending connections that the kernel judged and that policy no longer allows.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mesh_common::flow::{FlowEntry, FlowKey, KIND_DIRECT, KIND_PLAINTEXT};
use mesh_model::identity::Identity;

use crate::capture::maps::Flows;
use crate::conn::{ClientAddr, ServerAddr};
use crate::inbound::revoked;
use crate::outcome::{Outcome, Side};
use crate::policy::{Peer, Transport, WorkloadPolicy, decide};
use crate::sys::netns::NetNs;
use crate::sys::sockdiag::Destroyer;

/// What is known of a pod of this node.
pub struct Party {
    /// Its identity.
    pub identity: Identity,
    /// Its namespace.
    pub netns: Arc<NetNs>,
    /// What may reach it.
    pub policy: Arc<WorkloadPolicy>,
    /// Whether it still belongs into the mesh and is served.
    pub ready: bool,
}

/// The ends that a connection judged in the kernel may have.
#[derive(Default)]
pub struct Parties {
    /// Pods of this node that belong into the mesh, by address.
    pub meshed: HashMap<IpAddr, Arc<Party>>,
    /// Addresses of this node's pods that don't.
    pub outside: HashSet<IpAddr>,
}

/// A connection that was ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ended {
    /// Its two ends.
    pub key: FlowKey,
    /// What the kernel knew of it.
    pub flow: FlowEntry,
    /// Why.
    pub outcome: Outcome,
}

/// Whether a connection judged in the kernel may go on. A direct one (`KIND_DIRECT`): both ends are still pods of this node, served, and the
/// server's policy still allows it. Plaintext (`KIND_PLAINTEXT`): the server's mTLS mode and policy still allow a client without an identity,
/// or the server has left the mesh. The error is what is to be said of its end.
pub fn allowed(kind: u32, key: &FlowKey, parties: &Parties) -> Result<(), Outcome> {
    let find = |addr, side| match parties.meshed.get(&IpAddr::from(addr)) {
        Some(party) if party.ready => Ok(party),
        Some(_) => Err(Outcome::PodHeld { side, awaited: "its certificate or sockets".into() }),
        None => Err(Outcome::PodGone { side }),
    };
    let address = ClientAddr(SocketAddr::new(key.source.into(), key.source_port.get()));
    let (peer, transport) = if kind == KIND_DIRECT {
        (Peer { identity: Some(find(key.source, Side::Client)?.identity.clone()), address }, Transport::Tunnel)
    } else if parties.outside.contains(&key.destination.into()) {
        return Ok(());
    } else {
        (Peer { identity: None, address }, Transport::Plaintext)
    };
    let server = find(key.destination, Side::Server)?;
    let at = ServerAddr(SocketAddr::new(key.destination.into(), key.destination_port.get()));
    decide(&server.policy, &peer, at, transport).map(drop).map_err(revoked)
}

/// Ends every connection judged in the kernel that may not go on, in whichever namespace still exists; returns those.
pub fn sweep(flows: &mut Flows, parties: &Parties) -> Vec<Ended> {
    let judged = flows.live().filter(|(_, flow)| matches!(flow.kind, KIND_DIRECT | KIND_PLAINTEXT));
    let doomed: Vec<_> = judged.filter_map(|(key, flow)| Some((key, flow, allowed(flow.kind, &key, parties).err()?))).collect();
    let mut ended = Vec::new();
    let mut destroyers: HashMap<u64, Destroyer> = HashMap::new();
    for (key, flow, outcome) in doomed {
        let before = ended.len();
        let client = SocketAddr::new(key.source.into(), key.source_port.get());
        let server = SocketAddr::new(key.destination.into(), key.destination_port.get());
        // Either end will do: the kernel tells the other with a reset.
        let ends = [(parties.meshed.get(&client.ip()), client, server), (parties.meshed.get(&server.ip()), server, client)];
        for (party, local, remote) in ends {
            let Some(party) = party else { continue };
            match destroy(&mut destroyers, &party.netns, local, remote) {
                Ok(true) => {
                    ended.push(Ended { key, flow, outcome });
                    break;
                }
                Ok(false) => {}
                Err(error) => tracing::error!(%client, %server, %error, "cannot end a connection that policy no longer allows"),
            }
        }
        // Nobody has such a socket: the entry is all that is left, and it must not open the way to somebody else.
        if ended.len() == before
            && let Err(error) = flows.forget_flow(&key)
        {
            tracing::error!(%client, %server, %error, "cannot forget a connection that is gone");
        }
    }
    ended
}

fn destroy(open: &mut HashMap<u64, Destroyer>, netns: &NetNs, local: SocketAddr, remote: SocketAddr) -> std::io::Result<bool> {
    use std::collections::hash_map::Entry;
    let destroyer = match open.entry(netns.cookie()) {
        Entry::Occupied(entry) => entry.into_mut(),
        Entry::Vacant(entry) => entry.insert(Destroyer::new(netns)?),
    };
    destroyer.destroy(local, remote)
}

#[cfg(test)]
mod tests;
