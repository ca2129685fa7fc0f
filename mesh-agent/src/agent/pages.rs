//! What operators see of the agent: its pages, and the endpoints that serve them.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use mesh_model::snapshot::Snapshot;
use mesh_sources::SourceStatus;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::capture::cni::judge::Standings;
use crate::capture::cni::{self, installer};
use crate::config::Config;
use crate::identity;
use crate::ops::admin::Admin;
use crate::ops::http;
use crate::ops::log::LogControl;
use crate::ops::record::Telemetry;
use crate::shared::Shared;

/// An endpoint for operators, until `stop` is cancelled; its task never ends then, as the agent goes on without it.
pub(super) fn page(
    tasks: &mut JoinSet<&'static str>,
    name: &'static str,
    listener: TcpListener,
    handler: Arc<dyn http::Handler>,
    stop: &CancellationToken,
) {
    let stop = stop.clone();
    super::spawn(tasks, name, async move {
        http::serve(listener, http::Limits::default(), handler, stop.cancelled()).await;
        if stop.is_cancelled() {
            std::future::pending().await
        }
    });
}

pub(super) fn admin(
    config: &Config,
    telemetry: &Arc<Telemetry>,
    log: LogControl,
    shared: &Arc<Shared>,
    status: watch::Receiver<Arc<serde_json::Value>>,
    source: watch::Receiver<SourceStatus>,
) -> Admin {
    let part = |key: &'static str| {
        let status = status.clone();
        move || status.borrow().get(key).cloned().unwrap_or_default()
    };
    let secrets = shared.secrets.clone();
    let problems = shared.clone();
    let keys = shared.keys.clone();
    let settings = serde_json::json!({ "flags": format!("{config:?}") });
    let mesh = shared.clone();
    Admin::new(telemetry.clone(), log)
        .provide("workloads", "pods of this node and what they wait for", part("workloads"))
        .provide("policies", "policy in force for each pod of this node", part("policies"))
        .provide("config", "configuration in force", move || {
            let snapshot: Arc<Snapshot> = mesh.snapshot.load_full();
            serde_json::json!({
                "version": snapshot.version(),
                "mesh": format!("{:?}", snapshot.settings()),
                "services": snapshot.services().map(|s| s.name.to_string()).collect::<Vec<_>>(),
                "workloads": snapshot.workloads().map(|w| format!("{}/{}", w.namespace, w.name)).collect::<Vec<_>>(),
                "agent": settings,
            })
        })
        .provide("problems", "what is wrong with the configuration", move || {
            problems
                .snapshot
                .load()
                .problems()
                .iter()
                .map(ToString::to_string)
                .chain(problems.keys.problems())
                .chain(problems.tls_problems())
                .collect()
        })
        .question("explain", crate::ops::explain::USAGE, {
            let mesh = shared.clone();
            move |query| crate::ops::explain::answer(&mesh.snapshot.load(), &mesh.keys, query)
        })
        .provide("jwks", "keys of issuers of tokens, and which are missing", move || keys.describe())
        .provide("source", "where the configuration comes from and how that fares", move || source.borrow().describe(Instant::now()))
        .provide("certs", "certificates", move || secrets.describe())
        .action("certs/renew", "?identity=spiffe://…: asks for a new certificate now", {
            let secrets = shared.secrets.clone();
            move |query| Box::pin(std::future::ready(identity::renew_action(&secrets, &query)))
        })
}

/// The CNI plug-in's page.
pub(super) fn cni_pages(
    admin: Admin,
    config: &Config,
    directory: &Path,
    standings: watch::Receiver<Arc<Standings>>,
    installed: watch::Receiver<installer::State>,
) -> Admin {
    let socket = cni::socket(directory);
    let wanted = config.cni_places().is_some();
    admin.provide("cni", "the CNI plug-in: where it is answered, whether it is on the node, what new pods wait for", move || {
        let standings = standings.borrow();
        let waiting = standings.pods.iter().filter_map(|(uid, standing)| match &standing.way {
            cni::judge::Way::Waits(awaited) => Some((uid.to_string(), serde_json::Value::from(&**awaited))),
            cni::judge::Way::Served | cni::judge::Way::Outside => None,
        });
        serde_json::json!({
            "socket": socket,
            "kernel": standings.unwritten,
            "waiting": waiting.collect::<serde_json::Map<_, _>>(),
            "plugin": if wanted { installed.borrow().describe() } else { serde_json::json!({ "state": "not asked for" }) },
        })
    })
}
