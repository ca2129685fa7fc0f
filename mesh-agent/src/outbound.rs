//! A captured connection of a pod of this node, from its first byte to its last: one call a step.

pub mod egress;
mod relay;
mod routed;

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use mesh_common::flow::{ORIGIN_OUTSIDE, Origin};
use tokio::net::TcpStream;

use crate::agent::pods::LocalPod;
use crate::capture::accept;
use crate::conn::{ClientAddr, OrigDst, TunnelAddr};
use crate::ops::access::Direction;
use crate::ops::metrics::Refused;
use crate::ops::record::Connection;
use crate::ops::{ConnectionLabels, PeerInfo, Reporter, Security, trace};
use crate::outcome::Outcome;
use crate::shared::{Worker, outcome_of_tunnelled, reset};
use crate::tunnel::{OpenRequest, PoolKey};
use crate::upstream::resolve::{Target, resolve};

/// Serves it.
pub async fn serve(worker: Rc<Worker>, pod: Arc<LocalPod>, application: TcpStream, client: SocketAddr) {
    let client = ClientAddr(client);
    // Held from the start, refused once it is known what is refused.
    let place = pod.connections.take();
    let origin = accept::origin(&worker.origins, pod.netns.cookie(), client.0).await;
    if let Some(origin) = &origin {
        let dialled = SocketAddr::from(origin.dialled);
        let asked = match origin.flags & ORIGIN_OUTSIDE {
            0 => routed::asked(&worker, &pod, &worker.shared.snapshot.load(), dialled),
            _ => None,
        };
        if let (Some(asked), Ok(_)) = (asked, &place) {
            return routed::serve(worker, pod, application, client, OrigDst(dialled), asked).await;
        }
        if origin.flags & ORIGIN_OUTSIDE != 0 && !worker.shared.snapshot.load().is_pods(dialled.ip()) {
            return match place {
                Ok(_place) => egress::serve(worker, pod, application, client, OrigDst(dialled)).await,
                Err(full) => {
                    reset(application);
                    let outcome = worker.shared.overload(&pod, Refused::Outbound, full);
                    worker.shared.telemetry.refused(connection(&worker, &pod, client, Some(origin), None), outcome);
                }
            };
        }
    }
    match origin.ok_or(Outcome::UnknownDestination).and_then(|origin| target(&worker, &origin)) {
        Ok(target) => match place {
            Ok(_place) => tunnel(&worker, &pod, application, client, target).await,
            Err(full) => {
                reset(application);
                let outcome = worker.shared.overload(&pod, Refused::Outbound, full);
                worker.shared.telemetry.refused(connection(&worker, &pod, client, None, Some(&target)), outcome);
            }
        },
        Err(outcome) => {
            reset(application);
            worker.shared.telemetry.refused(connection(&worker, &pod, client, origin.as_ref(), None), outcome);
        }
    }
}

fn target(worker: &Worker, origin: &Origin) -> Result<Target, Outcome> {
    resolve(&worker.shared.snapshot.load(), origin, |candidates| rand::random_range(0..candidates.max(1)))
}

async fn tunnel(worker: &Worker, pod: &LocalPod, application: TcpStream, client: ClientAddr, target: Target) {
    let trace = trace::TraceParent::new(rand::random(), rand::random());
    let connection = Connection { trace_id: Some(trace.trace_id()), ..connection(worker, pod, client, None, Some(&target)) };
    let recorder = worker.shared.telemetry.open(connection);
    let Some(local) = pod.address(target.server.0.ip()) else {
        reset(application);
        return recorder.finish(Outcome::AddressFamily);
    };
    let key = PoolKey {
        client: pod.workload.uid.clone(),
        server: target.workload.uid.clone(),
        identity: pod.workload.identity.clone(),
        expected: Arc::new([target.workload.identity.clone()]),
        source: local,
        destination: TunnelAddr(SocketAddr::new(target.server.0.ip(), accept::TUNNEL_PORT)),
    };
    let request = OpenRequest {
        target: target.server.0,
        client: Some(client),
        host: target.service.as_ref().map(|service| worker.shared.service(service).host),
        baggage: Some(worker.shared.baggage(pod)),
        traceparent: Some(trace.to_string().into()),
    };
    let stream = match worker.pools.open(key, request).await {
        Ok(stream) => stream,
        Err(error) => {
            reset(application);
            return recorder.finish(error.outcome());
        }
    };
    let told = RefCell::new(None);
    let ending = async {
        *told.borrow_mut() = Some(recorder.live().closed().await);
    };
    let ended = stream.relay(application, recorder.meter(), ending).await;
    recorder.finish(outcome_of_tunnelled(ended, told.take()));
}

/// What is known of it, for those who look.
fn connection(worker: &Worker, pod: &LocalPod, client: ClientAddr, origin: Option<&Origin>, target: Option<&Target>) -> Connection {
    let dialled = target.map(|target| target.dialled.0).or_else(|| origin.map(|origin| SocketAddr::from(origin.dialled)));
    let server = target.map(|target| target.server.0);
    Connection {
        labels: ConnectionLabels {
            reporter: Reporter::Source,
            source: PeerInfo { workload: Some(pod.current(&worker.shared.snapshot.load())), identity: Some(pod.workload.identity.clone()) },
            destination: target.map_or_else(PeerInfo::default, |target| PeerInfo {
                workload: Some(target.workload.clone()),
                identity: Some(target.workload.identity.clone()),
            }),
            service: target.and_then(|target| target.service.as_ref()).map(|name| worker.shared.service(name)),
            security: if target.is_some() { Security::MutualTls } else { Security::Unknown },
        },
        direction: Direction::Outbound,
        client: client.0,
        server,
        dialled: dialled.filter(|dialled| Some(*dialled) != server),
        trace_id: None,
        upstream_tls: None,
    }
}
