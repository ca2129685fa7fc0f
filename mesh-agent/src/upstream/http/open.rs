//! Opening a connection for HTTP: directly or through a tunnel, and with TLS of its own if that is asked for.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_model::traffic::Keepalive;
use mesh_model::workload::Workload;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use super::handshake::{handshake, handshake_until, told};
use super::{ConnectionKey, Fate, Holds, HttpPools, Lease, OnBehalf, Server, Terms};
use crate::agent::pods::LocalPod;
use crate::capture::accept;
use crate::conn::{Meter, ServerAddr, TunnelAddr};
use crate::outcome::{ConnectFailure, Outcome};
use crate::shared::{Worker, outcome_of};
use crate::tunnel::{OpenRequest, PoolKey, Validity};
use crate::upstream::bounds::{Bounds, Place};
use crate::upstream::originate::{Offer, Secured};
use crate::upstream::{connect, copy};

/// What opening a connection takes.
pub struct Dial<'a> {
    /// Whose thread it is on.
    pub worker: &'a Rc<Worker>,
    /// The client's pod.
    pub pod: &'a LocalPod,
    /// Which one.
    pub key: ConnectionKey,
    /// Whom to connect to.
    pub server: &'a Server,
    /// On whose behalf.
    pub behalf: OnBehalf,
    /// For how long and how much it may be used.
    pub terms: Terms,
    /// For connecting, with the handshake of TLS.
    pub limit: Duration,
    /// Of a connection that no tunnel carries.
    pub keepalive: Option<&'a Keepalive>,
    /// TLS that is begun here, and what is offered to speak in it.
    pub tls: Option<(Secured, Offer)>,
    /// Its place among the open ones.
    pub place: Option<Place>,
    /// To tell those who wait for a request to end, where requests at once are bounded.
    pub bounds: Option<Arc<Bounds>>,
}

/// A stream to a server.
trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

impl HttpPools {
    /// Opens a connection.
    ///
    /// # Errors
    /// It cannot be had, or what TLS towards the server demands of it does not hold.
    pub async fn open(self: &Rc<Self>, dial: Dial<'_>) -> Result<Lease, Outcome> {
        let Dial { worker, pod, mut key, server, behalf, terms, limit, keepalive, tls, place, bounds } = dial;
        let deadline = Instant::now() + limit;
        let fate: Fate = Rc::default();
        let local = pod.address(server.address.0.ip()).ok_or(Outcome::AddressFamily)?;
        let over = CancellationToken::new();
        let ends = over.clone().drop_guard();
        let mut holds = None;
        let tunnel = match &server.workload {
            Some(workload) if workload.enrolled => {
                let (near, validity) = tunnel(worker, pod, workload, server.address, local, behalf, &fate, over.clone()).await?;
                holds = Some(Rc::new(move || validity.holds()) as Holds);
                Some(near)
            }
            _ => None,
        };
        let plain = async || {
            connect::plain(&pod.netns, local, server.address, limit, keepalive)
                .await
                .map_err(|error| Outcome::ConnectFailed { failure: ConnectFailure::from_io(&error), detail: error.to_string().into() })
        };
        let sender = match (tunnel, tls) {
            (Some(near), None) => handshake_until(near, key.http2, worker, over).await?,
            (None, None) => handshake(plain().await?, key.http2, worker).await?,
            (tunnel, Some((tls, offer))) => {
                let io: Box<dyn Io> = match tunnel {
                    Some(near) => Box::new(near),
                    None => Box::new(plain().await?),
                };
                let agreed = tls.connect(offer, io, deadline).await;
                worker.shared.requests.secured(agreed.as_ref().ok().map(|agreed| agreed.resumed));
                let agreed = agreed.map_err(|outcome| told(&fate).unwrap_or(outcome))?;
                key.http2 = agreed.http2;
                handshake_until(agreed.stream, agreed.http2, worker, over).await?
            }
        };
        ends.disarm();
        Ok(self.lease(key, terms, sender, fate, holds, place, bounds))
    }
}

/// One end of a pipe, at whose other a stream of a tunnel to the server is relayed until `over`, and whether more may begin on it.
#[expect(clippy::too_many_arguments, reason = "one call site; each is a thing of its own")]
async fn tunnel(
    worker: &Rc<Worker>,
    pod: &LocalPod,
    workload: &Workload,
    server: ServerAddr,
    local: IpAddr,
    behalf: OnBehalf,
    fate: &Fate,
    over: CancellationToken,
) -> Result<(copy::pipe::End, Validity), Outcome> {
    let key = PoolKey {
        client: pod.workload.uid.clone(),
        server: workload.uid.clone(),
        identity: pod.workload.identity.clone(),
        expected: Arc::new([workload.identity.clone()]),
        source: local,
        destination: TunnelAddr(SocketAddr::new(server.0.ip(), accept::TUNNEL_PORT)),
    };
    let request = OpenRequest {
        target: server.0,
        client: Some(behalf.client),
        host: behalf.host,
        baggage: Some(worker.shared.baggage(pod)),
        traceparent: behalf.traceparent,
    };
    let stream = worker.pools.open(key, request).await.map_err(|error| error.outcome())?;
    let validity = stream.validity();
    let (near, far) = copy::pipe::pair();
    let told = fate.clone();
    worker.connections.spawn_local(async move {
        let meter = Meter::default();
        let ended = stream.relay(far, &meter, over.cancelled()).await;
        *told.borrow_mut() = Some(match ended {
            Ok(ended) => outcome_of(ended.how, Some(Outcome::Completed)),
            Err(error) => error.outcome(),
        });
    });
    Ok((near, validity))
}
