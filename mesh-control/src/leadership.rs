//! Which of the replicas leads: it writes the status of objects and lends budgets. A Lease tells.
//!
//! The holder of the Lease writes into it, beside its name, where agents reach it: `<name>_<host>:<port>`, as client-go joins a host's name
//! with what makes it one of several. The others read it there, and send agents to it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client};
use kube_lease_manager::{LeaseCreateMode, LeaseManager, LeaseManagerBuilder, LeaseManagerError};
use tokio::sync::watch;

use crate::config::LeaseName;
use crate::metrics::Metrics;

/// How long a replica leads without renewing, and how long before that it renews, seconds.
const DURATION: u64 = 15;
const GRACE: u64 = 5;
/// Before the next attempt at a Lease that cannot be had.
const AGAIN: Duration = Duration::from_secs(10);
/// Between two looks at who holds it, by a replica that does not.
const LOOK: Duration = Duration::from_secs(2);

/// Who leads, as one replica knows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Leadership {
    /// This replica, since a moment.
    Leads(Instant),
    /// Another, or none. Where agents reach the one that does, if it says so.
    Follows(Option<Arc<str>>),
}

impl Leadership {
    /// Whether it is this replica.
    pub fn is_own(&self) -> bool {
        matches!(self, Leadership::Leads(_))
    }
}

/// What it works with.
pub struct Election {
    /// The API server's.
    pub client: Client,
    /// Who holds it leads.
    pub lease: LeaseName,
    /// Where agents reach this replica.
    pub advertised: Option<SocketAddr>,
    /// Where leadership is shown.
    pub metrics: Arc<Metrics>,
}

impl Election {
    /// Runs as long as the process, and says who leads.
    pub async fn run(self, said: watch::Sender<Leadership>) -> (&'static str, Result<(), String>) {
        let mut complaint = String::new();
        loop {
            match self.manager().await {
                Ok(manager) => {
                    complaint.clear();
                    self.follow(manager, &said).await;
                }
                Err(error) => {
                    let error = error.to_string();
                    if error != complaint {
                        tracing::warn!(%error, lease = %self.lease, "nobody is elected to write the status of objects and to lend budgets; all else goes on");
                        complaint = error;
                    }
                }
            }
            self.say(&said, Leadership::Follows(None));
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn manager(&self) -> Result<LeaseManager, LeaseManagerError> {
        let builder = LeaseManagerBuilder::new(self.client.clone(), &*self.lease.name)
            .with_namespace(&*self.lease.namespace)
            .with_create_mode(LeaseCreateMode::UseExistent)
            .with_duration(DURATION)
            .with_grace(GRACE);
        // A pod's name.
        let name = std::env::var("HOSTNAME").ok().filter(|name| !name.is_empty());
        match (name, self.advertised) {
            (Some(name), Some(address)) => {
                builder.with_field_manager(format!("mesh-control-{name}")).with_identity(identity(&name, address)).build().await
            }
            (Some(name), None) => builder.with_identity(name).build().await,
            // The library makes one up.
            (None, _) => builder.build().await,
        }
    }

    /// Until the election itself ends.
    async fn follow(&self, manager: LeaseManager, said: &watch::Sender<Leadership>) {
        let (mut leads, _task) = manager.watch().await;
        loop {
            let own = *leads.borrow_and_update();
            let look = async {
                if own {
                    self.say(said, Leadership::Leads(Instant::now()));
                    return std::future::pending::<()>().await;
                }
                loop {
                    self.say(said, Leadership::Follows(self.leader().await));
                    tokio::time::sleep(LOOK).await;
                }
            };
            tokio::select! {
                changed = leads.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = look => {}
            }
        }
    }

    /// Where the holder of the Lease is reached. That it cannot be read now is no news: the next look may.
    async fn leader(&self) -> Option<Arc<str>> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), &self.lease.namespace);
        let lease = leases.get(&self.lease.name).await.ok()?;
        let own = self.advertised.map(|address| address.to_string());
        let leader = address(lease.spec?.holder_identity.as_deref()?)?;
        // A Lease that this replica had before it lost it leads nobody anywhere.
        (Some(&*leader) != own.as_deref()).then_some(leader)
    }

    fn say(&self, said: &watch::Sender<Leadership>, now: Leadership) {
        let own = now.is_own();
        self.metrics.leader.set(i64::from(own));
        said.send_if_modified(|before| {
            if own && before.is_own() || *before == now {
                return false;
            }
            if own != before.is_own() {
                tracing::info!(leader = own, "who leads the replicas has changed");
            }
            *before = now;
            true
        });
    }
}

fn identity(name: &str, address: SocketAddr) -> String {
    format!("{name}_{address}")
}

/// Where the holder of a Lease is reached, if its identity says so.
fn address(identity: &str) -> Option<Arc<str>> {
    let (_, address) = identity.rsplit_once('_')?;
    address.parse::<SocketAddr>().ok().map(|address| address.to_string().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_says_where_its_bearer_is_reached() {
        for text in ["10.0.0.7:15012", "[fd00::7]:15012"] {
            assert_eq!(address(&identity("mesh-control-5d9f-x2", text.parse().unwrap())).as_deref(), Some(text));
        }
        for other in ["", "mesh-control-5d9f-x2", "mesh-control_", "host_6f1c1f5e", "a_evil.example:1"] {
            assert_eq!(address(other), None, "{other}");
        }
    }
}
