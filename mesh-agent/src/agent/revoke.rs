//! Ending connections that the kernel let go directly and that policy no longer allows.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mesh_common::flow::{FlowKey, KIND_DIRECT};
use mesh_common::policy::Facts;
use mesh_model::identity::Identity;
use mesh_model::policy::CompiledPolicy;
use mesh_model::service::NamespacedName;

use crate::capture::maps::Flows;
use crate::sys::netns::NetNs;
use crate::sys::sockdiag::Destroyer;

/// What is known of a pod of this node.
pub struct Party {
    /// Its identity.
    pub identity: Identity,
    /// Its namespace.
    pub netns: Arc<NetNs>,
    /// What may reach it.
    pub policy: Arc<CompiledPolicy>,
    /// Whether it still belongs into the mesh and is served.
    pub ready: bool,
}

/// A direct connection that was ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ended {
    /// The client's end.
    pub client: SocketAddr,
    /// The server's end.
    pub server: SocketAddr,
    /// The policy that denies it, where one can be named.
    pub policy: Option<NamespacedName>,
}

/// Whether a direct connection may go on: both ends are still pods of this node, served, and the server's policy still allows it. The error
/// is the policy that denies it, where one can be named.
pub fn allowed(key: &FlowKey, parties: &HashMap<IpAddr, Arc<Party>>) -> Result<(), Option<NamespacedName>> {
    let find = |addr| parties.get(&IpAddr::from(addr)).filter(|party| party.ready);
    let (Some(client), Some(server)) = (find(key.source), find(key.destination)) else { return Err(None) };
    let facts = Facts { source: key.source, destination: key.destination, port: u32::from(key.destination_port.get()), identified: 1 };
    let decision = server.policy.decide(&facts, Some(&client.identity));
    if decision.allowed { Ok(()) } else { Err(server.policy.name(decision.policy).cloned()) }
}

/// Ends every direct connection that may not go on, in whichever namespace still exists; returns those.
pub fn sweep(flows: &mut Flows, parties: &HashMap<IpAddr, Arc<Party>>) -> Vec<Ended> {
    let direct = flows.live().filter(|(_, flow)| flow.kind == KIND_DIRECT);
    let doomed: Vec<_> = direct.filter_map(|(key, _)| Some((key, allowed(&key, parties).err()?))).collect();
    let mut ended = Vec::new();
    let mut destroyers: HashMap<u64, Destroyer> = HashMap::new();
    for (key, policy) in doomed {
        let before = ended.len();
        let client = SocketAddr::new(key.source.into(), key.source_port.get());
        let server = SocketAddr::new(key.destination.into(), key.destination_port.get());
        // Either end will do: the kernel tells the other with a reset.
        let ends = [(parties.get(&client.ip()), client, server), (parties.get(&server.ip()), server, client)];
        for (party, local, remote) in ends {
            let Some(party) = party else { continue };
            match destroy(&mut destroyers, &party.netns, local, remote) {
                Ok(true) => {
                    ended.push(Ended { client, server, policy });
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
