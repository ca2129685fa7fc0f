//! A connection to a Service for which some object asks for more than the kernel can do: what is spoken on it is found out, HTTP is taken
//! apart into requests, and anything else goes as a whole to an endpoint that the rules and policies choose.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_model::route::Target;
use mesh_model::snapshot::Snapshot;
use tokio::net::TcpStream;

use super::connection;
use super::relay::Relay;
use crate::agent::pods::LocalPod;
use crate::conn::{ClientAddr, OrigDst};
use crate::ops::Security;
use crate::ops::record::Connection;
use crate::outcome::Outcome;
use crate::route::asked::{self, Whole};
use crate::route::detect::{Declared, Protocol};
use crate::route::exchange::Client;
use crate::route::tables::Turns;
use crate::route::{first, serve};
use crate::shared::{Worker, reset};
use crate::upstream::cluster::{Chosen, Cluster, ClusterName, Missing, Wish};

/// For how long a client of a port that declares nothing may be silent until it is taken for one whose server speaks first.
const SILENCE: Duration = Duration::from_secs(1);
/// For a TLS client's hello.
const HELLO: Duration = Duration::from_secs(10);

/// What holds for a client of a Service's port, with the turns of its backends.
pub struct Asked {
    here: asked::Asked,
    turns: Option<Arc<Turns>>,
}

impl Asked {
    /// Of what is known to be asked for.
    pub fn of(worker: &Worker, pod: &LocalPod, here: asked::Asked) -> Asked {
        let turns = worker.shared.tables.get(&worker.shared.snapshot.load(), &here.service, here.port, &pod.workload.namespace);
        Asked { here, turns }
    }
}

/// What some object asks for, for this client; `None` if nothing does.
pub fn asked(worker: &Worker, pod: &LocalPod, snapshot: &Snapshot, dialled: SocketAddr) -> Option<Asked> {
    let workload = snapshot.workload(&pod.workload.uid).unwrap_or(&pod.workload);
    let here = asked::Asked::of(snapshot, workload, dialled)?;
    let turns = worker.shared.tables.get(snapshot, &here.service, here.port, &workload.namespace);
    Some(Asked { here, turns })
}

/// Serves it to its end.
pub async fn serve(worker: Rc<Worker>, pod: Arc<LocalPod>, application: TcpStream, client: ClientAddr, dialled: OrigDst, asked: Asked) {
    let here = &asked.here;
    let silence = match here.declared {
        // An HTTP client speaks first, and may take its time.
        Declared::Http | Declared::Http2 | Declared::Tls => None,
        Declared::Tcp | Declared::Unknown => Some(SILENCE),
    };
    let protocol = match here.is_looked_into() {
        false => Ok(Protocol::Opaque),
        true => first::protocol(&application, silence).await,
    };
    let protocol = match protocol {
        Ok(protocol) => protocol,
        // Gone before it said anything.
        Err(_) => return worker.shared.telemetry.refused(known(&worker, &pod, client, dialled, here), Outcome::ClientReset),
    };
    if here.is_taken_apart(protocol) {
        let http2 = protocol == Protocol::Http2;
        let known = known(&worker, &pod, client, dialled, here);
        let listed = worker.shared.telemetry.list(known.clone());
        let http = Client::new(worker.clone(), pod, client, dialled, here.service.clone(), here.port, http2, known);
        let live = listed.live().clone();
        serve::serve(application, http2, http, worker.shared.manners(), worker.drain_watch(), async move { live.closed().await }).await;
        return;
    }
    let name = match protocol {
        Protocol::Tls => first::server_name(&application, HELLO).await.ok().flatten(),
        _ => None,
    };
    self::whole(&worker, &pod, application, client, dialled, &asked, name.as_deref()).await;
}

/// What is known of it before it has a server.
fn known(worker: &Worker, pod: &LocalPod, client: ClientAddr, dialled: OrigDst, here: &asked::Asked) -> Connection {
    let mut known = connection(worker, pod, client, None, None);
    known.labels.service = Some(worker.shared.service(&here.service));
    known.labels.security = Security::Unknown;
    known.dialled = Some(dialled.0);
    known
}

/// Serves one that is not taken apart, to its end. `name` is the server name of its TLS.
pub async fn whole(
    worker: &Rc<Worker>,
    pod: &Arc<LocalPod>,
    application: TcpStream,
    client: ClientAddr,
    dialled: OrigDst,
    asked: &Asked,
    name: Option<&str>,
) {
    match backend(worker, pod, dialled, asked, name) {
        Ok((cluster, chosen)) => Relay { worker, pod, client, dialled, cluster: &cluster, chosen }.run(application).await,
        Err(outcome) => {
            reset(application);
            worker.shared.telemetry.refused(known(worker, pod, client, dialled, &asked.here), outcome);
        }
    }
}

/// The endpoint for a connection that is not parsed.
fn backend(
    worker: &Worker,
    pod: &LocalPod,
    dialled: OrigDst,
    asked: &Asked,
    name: Option<&str>,
) -> Result<(Arc<Cluster>, Chosen), Outcome> {
    let snapshot = worker.shared.snapshot.load();
    let no_backend = || asked.here.no_backend();
    let client = pod.current(&snapshot);
    let turn = match (asked.here.whole(&client, dialled.0.ip(), name)?, &asked.turns) {
        (Whole::Own(target), _) => Some(target),
        (Whole::Tcp(number, rule), Some(turns)) => turns.tcp(number, rule).map(|backend| backend.target.clone()),
        (Whole::Tls(number, rule), Some(turns)) => turns.tls(number, rule).map(|backend| backend.target.clone()),
        (_, None) => None,
    };
    let target = turn.ok_or_else(no_backend)?;
    let Target::Service { service, port, subset } = target else { return Err(no_backend()) };
    let name = ClusterName { service, port, subset, v4: dialled.0.is_ipv4() };
    let cluster = worker.shared.clusters.get(&snapshot, &client, &name).map_err(Missing::outcome)?;
    if let Some(outcome) = cluster.refusal() {
        return Err(outcome);
    }
    let host = &cluster.name.service;
    if host.is_entry() {
        pod.towards.load().connection(Instant::now(), &pod.workload, host)?;
    }
    let wish = Wish { dialled: Some(dialled.0), ..Wish::default() };
    let chosen = cluster.choose(Instant::now(), wish).ok_or(Outcome::NoEndpoint)?;
    Ok((cluster, chosen))
}
