//! Rate limits of what one workload sends to hosts of ServiceEntries. Behind such a host no agent counts, so that its clients' do: each
//! attempt of a request, and each connection that is not taken apart, by whatever route it comes there.

use std::collections::HashMap;
use std::time::Instant;

use http::request::Parts;
use mesh_model::limit::AppliedLimit;
use mesh_model::policy::NormalPath;
use mesh_model::service::NamespacedName;
use mesh_model::snapshot::Snapshot;
use mesh_model::workload::Workload;

use super::limits::{Counted, CountedRequest, Limits, Refused, Registry, Standing};

/// The limits of one workload, by host. They hold on to their budgets, be there a connection or not.
#[derive(PartialEq, Eq, Debug, Default)]
pub struct Towards(HashMap<NamespacedName, Limits>);

impl Towards {
    /// Those that a snapshot has for a workload.
    pub fn of(snapshot: &Snapshot, workload: &Workload, registry: &Registry, now: Instant) -> Towards {
        let mut by_host: HashMap<NamespacedName, Vec<AppliedLimit>> = HashMap::new();
        for applied in snapshot.limits_towards_hosts(workload) {
            if let Some(host) = applied.towards.clone() {
                by_host.entry(host).or_default().push(applied);
            }
        }
        let limits = by_host.into_iter().filter_map(|(host, applied)| Some((host, registry.limits(now, &workload.uid, &applied)?)));
        Towards(limits.collect())
    }

    /// Takes a request of the budgets of the host that it goes to. Returns how the one with the least left stands, if it concerns any.
    ///
    /// # Errors
    /// One is used up.
    pub fn request(&self, now: Instant, client: &Workload, host: &NamespacedName, parts: &Parts) -> Result<Option<Standing>, Refused> {
        let Some(limits) = self.0.get(host) else { return Ok(None) };
        // What the host takes for a path is not known; the form in which the mesh judges paths is what is most likely meant.
        let path = NormalPath::of(parts.uri.path().as_bytes());
        let path = path.as_ref().map_or(parts.uri.path(), NormalPath::as_str);
        let request = Some(CountedRequest { path, headers: &parts.headers });
        limits.take(now, &Counted { source: Some(&client.identity), request })
    }

    /// As [`Towards::request`], of a connection that is no HTTP.
    ///
    /// # Errors
    /// A budget is used up.
    pub fn connection(&self, now: Instant, client: &Workload, host: &NamespacedName) -> Result<(), Refused> {
        let Some(limits) = self.0.get(host) else { return Ok(()) };
        limits.take(now, &Counted { source: Some(&client.identity), request: None }).map(drop)
    }
}
