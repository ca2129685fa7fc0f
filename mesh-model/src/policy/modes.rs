//! PeerAuthentications → whether a workload accepts plaintext, a port at a time.
//!
//! Levels, as Istio has them: the mesh (root namespace, no selector) < the namespace (no selector) < the workload (selector, in the
//! workload's own namespace). `UNSET` inherits from the next level below, at the end from the mesh's settings. Of several at one level
//! the oldest holds, by creation time, then by name.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::policy::{MtlsMode, PeerAuthentication, selects};

/// A workload's modes.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct MtlsModes {
    /// On every port not in [`MtlsModes::ports`].
    pub mode: MtlsMode,
    /// Ports with a mode of their own, where it differs.
    pub ports: BTreeMap<u16, MtlsMode>,
}

impl MtlsModes {
    /// The mode on a port of the pod.
    pub fn on(&self, port: u16) -> MtlsMode {
        self.ports.get(&port).copied().unwrap_or(self.mode)
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
        let refused = mesh.iter().filter(wide).chain(namespace.iter().filter(here)).any(|p| p.refused.is_some());
        if refused {
            return MtlsModes { mode: MtlsMode::Strict, ports: BTreeMap::new() };
        }
        let mut mode = default;
        for level in [oldest(mesh.iter().filter(wide)), oldest(namespace.iter().filter(wide))] {
            mode = level.and_then(|p| p.mode).unwrap_or(mode);
        }
        let Some(own) = oldest(namespace.iter().filter(|p| !wide(p) && here(p))) else {
            return MtlsModes { mode, ports: BTreeMap::new() };
        };
        mode = own.mode.unwrap_or(mode);
        let ports = own.ports.iter().map(|(port, of)| (*port, of.unwrap_or(mode))).filter(|(_, of)| *of != mode).collect();
        MtlsModes { mode, ports }
    }
}

/// The one that holds at its level.
pub(crate) fn oldest<'a>(level: impl Iterator<Item = &'a Arc<PeerAuthentication>>) -> Option<&'a Arc<PeerAuthentication>> {
    level.min_by_key(|p| (p.created.unwrap_or(i64::MAX), p.name.clone()))
}

#[cfg(test)]
mod tests;
