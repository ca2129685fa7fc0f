//! The certificates as a part of the agent: from settings to a running store.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_model::identity::Identity;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::chain::Certificate;
use super::client::CaClient;
use super::store::{Observer, RenewError, SecretStore, StoreSettings};
use crate::config::{CaSettings, Config};
use crate::link::Link;
use crate::ops::admin::{ActionError, Query};
use crate::ops::clock::SystemClock;
use crate::ops::metrics::agent::CertificateResult;
use crate::ops::metrics::{AgentMetrics, CertificateSample, Metrics};

/// How often the file of roots is looked at.
const LOOK: Duration = Duration::from_secs(5);
/// How long replicas of the authority may need to follow one another.
const REPLICAS: Duration = Duration::from_secs(60);

impl Observer for AgentMetrics {
    fn issued(&self, _: &Certificate) {
        self.certificate(CertificateResult::Issued);
    }

    fn failed(&self, _: &Identity, _: &RenewError) {
        self.certificate(CertificateResult::Failed);
    }
}

/// Starts the store with a client of the authority, in tasks of the agent, and shows it in the metrics.
pub fn start(config: &Config, ca: &CaSettings, link: &Arc<Link>, tasks: &mut JoinSet<&'static str>, metrics: &Metrics) -> SecretStore {
    let mut client = CaClient::new(link.clone());
    client.lifetime = config.certificate_lifetime;
    let (store, driver) =
        SecretStore::new(Arc::new(client), StoreSettings::default(), Box::new(metrics.agent.clone()), Arc::new(SystemClock));
    tasks.spawn(async move {
        driver.run().await;
        "certificates"
    });
    let (roots, renewing) = (ca.root.clone(), store.clone());
    tasks.spawn(async move {
        follow_roots(&roots, renewing).await;
        "roots of the certificate authority"
    });
    let shown = store.clone();
    metrics.collect_certificates(move || {
        let sample =
            |certificate: Arc<Certificate>| CertificateSample { identity: certificate.identity.clone(), not_after: certificate.not_after };
        shown.usable().into_iter().map(sample).collect()
    });
    store
}

/// Renews every certificate when the roots change: their trust comes with them. And once more a little later, for an authority of several
/// replicas: one that had not heard of the change yet may have answered with the roots from before.
async fn follow_roots(path: &Path, store: SecretStore) {
    let mut known = read(path).await;
    let mut again = None;
    loop {
        tokio::time::sleep(LOOK).await;
        let now = read(path).await;
        if again.is_some_and(|again| Instant::now() >= again) {
            again = None;
            store.force_renew_all();
        }
        // A file that is being replaced changes nothing.
        if now.is_some() && now != known {
            if known.is_some() {
                tracing::info!(path = %path.display(), "the roots of the certificate authority have changed; all certificates are renewed");
                store.force_renew_all();
                again = Some(Instant::now() + REPLICAS);
            }
            known = now;
        }
    }
}

async fn read(path: &Path) -> Option<Vec<u8>> {
    let path = path.to_owned();
    let read = tokio::task::spawn_blocking(move || std::fs::read(path).ok()).await;
    read.ok().flatten().filter(|bytes| !bytes.is_empty())
}

/// `POST certs/renew?identity=spiffe://…`, or of all without a parameter.
pub fn renew_action(store: &SecretStore, query: &Query) -> Result<Value, ActionError> {
    query.only(&["identity"])?;
    match query.parsed::<Identity>("identity", "spiffe://<trust domain>/ns/<namespace>/sa/<service account>")? {
        None => {
            store.force_renew_all();
            Ok(json!({ "renewing": "all" }))
        }
        Some(identity) if store.force_renew(&identity) => Ok(json!({ "renewing": identity.to_string() })),
        Some(identity) => Err(ActionError::NotFound(format!("no pod of this node has the identity {identity}"))),
    }
}
