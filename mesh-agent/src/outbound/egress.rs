//! A connection to what is neither a pod nor a Service: to a host of a ServiceEntry, on to what was dialled, or nowhere.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mesh_model::service::NamespacedName;
use tokio::net::TcpStream;

use super::{connection, routed};
use crate::agent::pods::LocalPod;
use crate::conn::{ClientAddr, OrigDst, ServerAddr};
use crate::names::FIRST_ANSWER;
use crate::ops::metrics::{Kind, Metrics};
use crate::ops::record::Connection;
use crate::ops::{Security, ServiceRef};
use crate::outcome::{ConnectFailure, Outcome};
use crate::route::detect::Protocol;
use crate::route::egress::{Dialled, Look, Way};
use crate::route::{first, serve};
use crate::shared::{Worker, outcome_of, reset};
use crate::upstream::{connect, copy};

mod requests;

/// For the head of a request or a TLS client's hello, once it has begun.
const HEAD: Duration = Duration::from_secs(10);

/// What became of connections.
#[derive(Default)]
pub struct EgressCounters {
    entry: AtomicU64,
    passed: AtomicU64,
    refused: AtomicU64,
}

impl EgressCounters {
    /// Registers them.
    pub fn collect(self: &Arc<Self>, metrics: &Metrics) {
        let counters = self.clone();
        metrics.collect(move |samples| {
            let help = "Connections to what is neither pod nor Service that the agent took, by what became of them; each host of one that carries \
                        requests counts, and each request that is refused.";
            let mut all = samples.family("nodemesh_egress_connections", help, Kind::Counter);
            let values = [("service_entry", &counters.entry), ("passed", &counters.passed), ("refused", &counters.refused)];
            for (result, value) in values {
                all.sample(&[("result", result)], value.load(Ordering::Relaxed) as f64);
            }
        });
    }
}

/// By the names that Istio gives them in metrics: what goes on to where it was dialled, and what is refused.
fn nobody(name: &str) -> ServiceRef {
    ServiceRef { name: NamespacedName { namespace: "".into(), name: name.into() }, host: "".into() }
}

/// Serves it to its end.
pub async fn serve(worker: Rc<Worker>, pod: Arc<LocalPod>, application: TcpStream, client: ClientAddr, dialled: OrigDst) {
    let known = |service: ServiceRef| {
        let mut known = connection(&worker, &pod, client, None, None);
        known.dialled = Some(dialled.0);
        known.labels.service = Some(service);
        known
    };
    let look = {
        let snapshot = worker.shared.snapshot.load();
        Dialled::of(&snapshot, &pod.current(&snapshot), dialled.0).look()
    };
    let protocol = match look {
        Look::No => Ok(Protocol::Opaque),
        Look::First(silence) => first::protocol(&application, silence).await,
    };
    let (protocol, host) = match protocol {
        Ok(Protocol::Http1) => (Protocol::Http1, first::http_host(&application, HEAD).await.ok().flatten()),
        Ok(Protocol::Tls) => (Protocol::Tls, first::server_name(&application, HEAD).await.ok().flatten()),
        Ok(other) => (other, None),
        // Gone before it said anything.
        Err(_) => return worker.shared.telemetry.refused(known(nobody(PASSTHROUGH)), Outcome::ClientReset),
    };
    // What an address stands for is to be asked before it is decided by it.
    let unsettled = {
        let snapshot = worker.shared.snapshot.load();
        Dialled::of(&snapshot, &pod.current(&snapshot), dialled.0).unsettled(protocol, host.as_deref())
    };
    worker.shared.names.settle(&unsettled, FIRST_ANSWER).await;
    // The configuration is not held on to for as long as the connection lives.
    let (way, stranger, names) = {
        let snapshot = worker.shared.snapshot.load();
        let workload = pod.current(&snapshot);
        let place = Dialled::of(&snapshot, &workload, dialled.0);
        let stranger = place.stranger().map(|service| worker.shared.service(&service.name));
        let way = place.way(&worker.shared.names, protocol, host.as_deref());
        let names = match &way {
            Way::Whole(here) => {
                snapshot.service(&here.service).and_then(|service| service.ports.iter().find(|port| port.port == here.port))
            }
            Way::Requests | Way::Pass | Way::Refuse(_) => None,
        };
        (way, stranger, names.and_then(|port| port.discovery.names()).cloned())
    };
    let counters = &worker.shared.egress;
    match way {
        Way::Whole(here) => {
            counters.entry.fetch_add(1, Ordering::Relaxed);
            worker.shared.names.settle(names.as_deref().unwrap_or_default(), FIRST_ANSWER).await;
            let asked = routed::Asked::of(&worker, &pod, here);
            routed::whole(&worker, &pod, application, client, dialled, &asked, host.as_deref()).await;
        }
        Way::Requests => {
            let http2 = protocol == Protocol::Http2;
            let known = known(nobody(BLACK_HOLE));
            let listed = worker.shared.telemetry.list(known.clone());
            let by_name = requests::ByName::new(worker.clone(), pod.clone(), client, dialled, http2, known);
            let live = listed.live().clone();
            serve::serve(application, http2, by_name, worker.shared.manners(), worker.drain_watch(), async move { live.closed().await })
                .await;
        }
        Way::Pass => {
            counters.passed.fetch_add(1, Ordering::Relaxed);
            let known = known(stranger.unwrap_or_else(|| nobody(PASSTHROUGH)));
            pass(&worker, &pod, application, dialled, known).await;
        }
        Way::Refuse(outcome) => {
            counters.refused.fetch_add(1, Ordering::Relaxed);
            reset(application);
            worker.shared.telemetry.refused(known(nobody(BLACK_HOLE)), outcome);
        }
    }
}

const PASSTHROUGH: &str = "PassthroughCluster";
const BLACK_HOLE: &str = "BlackHoleCluster";

/// On to what was dialled, as it is.
async fn pass(worker: &Rc<Worker>, pod: &Arc<LocalPod>, application: TcpStream, dialled: OrigDst, mut known: Connection) {
    known.server = Some(dialled.0);
    known.dialled = None;
    known.labels.security = Security::None;
    let recorder = worker.shared.telemetry.open(known);
    let Some(local) = pod.address(dialled.0.ip()) else {
        reset(application);
        return recorder.finish(Outcome::AddressFamily);
    };
    let upstream = match connect::plain(&pod.netns, local, ServerAddr(dialled.0), worker.shared.connect_timeout, None).await {
        Ok(upstream) => upstream,
        Err(error) => {
            reset(application);
            return recorder.finish(Outcome::ConnectFailed { failure: ConnectFailure::from_io(&error), detail: error.to_string().into() });
        }
    };
    let told = RefCell::new(None);
    let ending = async {
        *told.borrow_mut() = Some(recorder.live().closed().await);
    };
    // Nobody asked for an end to its silence.
    let ended = copy::relay(application, upstream, recorder.meter(), ending, None).await;
    recorder.finish(outcome_of(ended.how, told.take()));
}
