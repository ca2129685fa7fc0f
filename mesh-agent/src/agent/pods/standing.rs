//! Where each pod stands, for those who ask whether it may start.

use std::collections::HashMap;
use std::sync::Arc;

use mesh_model::snapshot::Snapshot;

use super::Pods;
use crate::capture::cni::judge::{Standing, Standings, Way};
use crate::sys::netns::{Inode, NetNs};

impl Pods {
    /// Where every pod stands. `unwritten`: why the kernel does not know of all of it.
    pub fn standings(&self, snapshot: &Snapshot, unwritten: Option<Arc<str>>) -> Standings {
        let mut pods = HashMap::with_capacity(self.entries.len() + self.outside.len());
        let reasons = snapshot.held().iter().map(|held| (&held.uid, &held.reason));
        for (uid, reason) in reasons {
            let netns = self.held.get(uid).and_then(inode);
            pods.insert(uid.clone(), Standing { netns, way: Way::Waits(format!("the mend of its manifest: {reason}").into()) });
        }
        for (uid, netns) in &self.outside {
            pods.insert(uid.clone(), Standing { netns: inode(netns), way: Way::Outside });
        }
        for (uid, entry) in &self.entries {
            let way = if entry.served.is_some() { Way::Served } else { Way::Waits(entry.awaited.as_str().into()) };
            pods.insert(uid.clone(), Standing { netns: entry.netns.as_deref().and_then(inode), way });
        }
        Standings { pods, unwritten }
    }
}

fn inode(netns: &NetNs) -> Option<Inode> {
    netns.inode().ok()
}
