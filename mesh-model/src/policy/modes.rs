//! PeerAuthentications → whether a workload accepts plaintext, a port at a time.
//!
//! Levels, as Istio has them: the mesh (root namespace, no selector) < the namespace (no selector) < the workload (selector, in the
//! workload's own namespace). `UNSET` inherits from the next level below, at the end from the mesh's settings. Of several at one level
//! the oldest holds, by creation time, then by name.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::policy::{MtlsMode, PeerAuthentication, selects};
use crate::service::NamespacedName;

/// A mode, and who says so.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct PortMode {
    /// The mode.
    pub mode: MtlsMode,
    /// The PeerAuthentication that sets it; `None` for the mesh's settings.
    pub by: Option<NamespacedName>,
}

/// A workload's modes.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct MtlsModes {
    /// On every port not in [`MtlsModes::ports`].
    pub all: PortMode,
    /// Ports of the pod with a mode of their own.
    pub ports: BTreeMap<u16, PortMode>,
}

impl MtlsModes {
    /// The mode on a port of the pod, and who says so.
    pub fn on(&self, port: u16) -> &PortMode {
        self.ports.get(&port).unwrap_or(&self.all)
    }

    /// Folds what holds for a workload with these labels: `mesh` are the PeerAuthentications of the root namespace, `namespace` those
    /// of the workload's, `default` the mesh's setting.
    pub fn of(
        mesh: &[Arc<PeerAuthentication>],
        namespace: &[Arc<PeerAuthentication>],
        labels: &BTreeMap<String, String>,
        default: MtlsMode,
    ) -> MtlsModes {
        let here = |p: &&Arc<PeerAuthentication>| selects(&p.selector, labels);
        let wide = |p: &&Arc<PeerAuthentication>| p.selector.is_empty();
        if let Some(refused) = mesh.iter().filter(wide).chain(namespace.iter().filter(here)).find(|p| p.refused.is_some()) {
            let all = PortMode { mode: MtlsMode::Strict, by: Some(refused.name.clone()) };
            return MtlsModes { all, ports: BTreeMap::new() };
        }
        let own = oldest(namespace.iter().filter(|p| !wide(p) && here(p)));
        let levels = [oldest(mesh.iter().filter(wide)), oldest(namespace.iter().filter(wide)), own];
        let all = levels.into_iter().flatten().fold(PortMode { mode: default, by: None }, |below, p| match p.mode {
            Some(mode) => PortMode { mode, by: Some(p.name.clone()) },
            None => below,
        });
        let mut ports = BTreeMap::new();
        for (p, (port, mode)) in own.into_iter().flat_map(|p| p.ports.iter().map(move |entry| (p, entry))) {
            if let Some(mode) = *mode {
                ports.insert(*port, PortMode { mode, by: Some(p.name.clone()) });
            }
        }
        MtlsModes { all, ports }
    }
}

/// The one that holds at its level.
pub(crate) fn oldest<'a>(level: impl Iterator<Item = &'a Arc<PeerAuthentication>>) -> Option<&'a Arc<PeerAuthentication>> {
    level.min_by_key(|p| (p.created.unwrap_or(i64::MAX), p.name.clone()))
}

#[cfg(test)]
mod tests;
