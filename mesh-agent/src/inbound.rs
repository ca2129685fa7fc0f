//! A connection to a pod of this node, through a tunnel or as plaintext from outside the mesh: one call a step.

pub mod judge;
mod requests;

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use mesh_model::identity::Identity;
use rustls::RootCertStore;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::agent::budget::Place;
use crate::agent::pods::LocalPod;
use crate::capture::accept::is_own_port;
use crate::conn::{ClientAddr, ServerAddr, TunnelAddr};
use crate::ops::access::Direction;
use crate::ops::metrics::Refused;
use crate::ops::record::{Connection, DryRun};
use crate::ops::{ConnectionLabels, ConnectionRecorder, PeerInfo, Reporter, Security, trace};
use crate::outcome::{ConnectFailure, HandshakeFailure, Outcome};
use crate::policy::decide::decide_opening;
use crate::policy::{Denial, Live, Peer, Permit, Transport, decide};
use crate::route::detect::Protocol;
use crate::route::first;
use crate::shared::{Worker, outcome_of, reset};
use crate::tunnel::Refusal;
use crate::tunnel::server::{Accepted, Handler, Incoming, Rejected, ServeError, Server};
use crate::upstream::copy::pipe;
use crate::upstream::copy::socket::Socket;
use crate::upstream::{connect, copy};
use judge::denied;
use requests::{Judged, serve_requests};

/// What arrives for one pod on one worker.
pub struct Inbound {
    worker: Rc<Worker>,
    pod: Arc<LocalPod>,
}

/// A tunnel's serving side for one pod.
pub fn server(worker: &Rc<Worker>, pod: &Arc<LocalPod>) -> Rc<Server<Inbound>> {
    let inbound = Inbound { worker: worker.clone(), pod: pod.clone() };
    Server::new(inbound, worker.shared.tunnel.clone(), worker.shared.counters.clone())
}

/// Serves a tunnel until it ends; its streams come back through [`Handler::connect`].
pub async fn serve_tunnel(worker: Rc<Worker>, pod: Arc<LocalPod>, server: Rc<Server<Inbound>>, tcp: TcpStream, peer: SocketAddr) {
    let _place = match pod.tunnels.take() {
        Ok(place) => place,
        Err(full) => {
            let outcome = worker.shared.overload(&pod, Refused::Tunnel, full);
            tracing::debug!(%peer, pod = %pod.name(), reason = %outcome, "a tunnel is refused");
            return reset(tcp);
        }
    };
    let (local, credentials) = match (tcp.local_addr(), worker.credentials(&pod.workload.identity)) {
        (Ok(local), Ok(credentials)) => (TunnelAddr(local), credentials),
        (Err(error), _) => return tracing::debug!(%peer, %error, "a tunnel's connection was gone at once"),
        (_, Err(unavailable)) => {
            tracing::warn!(%peer, identity = %pod.workload.identity, %unavailable, "a tunnel is refused: there is no certificate to show");
            return reset(tcp);
        }
    };
    // One that carries nothing keeps a place that another may need: where there are too many, the oldest is told to end with its streams.
    let (_turn, crowded) = server.tunnels().enter(if pod.tunnels.is_crowded() { server.tunnels().len() } else { usize::MAX });
    let mut drain = worker.drain_watch();
    let mut gone = std::pin::pin!(pod.gone.cancelled());
    let drained = async {
        tokio::select! {
            () = drain.draining() => {}
            () = &mut gone => {}
            _ = crowded => {}
        }
    };
    match server.serve(tcp, local, credentials, drained).await {
        Ok(()) => {}
        Err(ServeError::Handshake(error)) => {
            let outcome = Outcome::TunnelHandshakeFailed { failure: error.failure(), detail: error.to_string().into() };
            // A port scan and a health check of a load balancer look like this; what shows a wrong certificate is worth a line.
            let level_worthy = !matches!(error.failure(), HandshakeFailure::Protocol | HandshakeFailure::TimedOut);
            if level_worthy {
                tracing::warn!(%peer, pod = %pod.name(), reason = %error, "a tunnel's handshake failed; {}", outcome.meaning().advice);
            } else {
                tracing::debug!(%peer, pod = %pod.name(), reason = %error, "a tunnel's handshake failed");
            }
        }
        Err(ServeError::Connection(reason)) => tracing::debug!(%peer, pod = %pod.name(), %reason, "a tunnel broke"),
    }
}

/// Plaintext that the kernel steered here instead of to the application: judged as whoever it is, which is nobody.
pub async fn serve_plaintext(worker: Rc<Worker>, pod: Arc<LocalPod>, client: TcpStream, peer: SocketAddr) {
    let Ok(server) = client.local_addr().map(ServerAddr) else { return };
    let client_address = ClientAddr(peer);
    let inbound = Inbound { worker, pod };
    let telemetry = inbound.worker.shared.telemetry.clone();
    let mut recorder = telemetry.open(inbound.connection(client_address, server, None, Security::None, None, None));
    if is_own_port(server.0.port()) {
        reset(client);
        return recorder.finish(Outcome::OwnPort);
    }
    // The mark is inherited from the SYN and does not survive the way between namespaces: this is a delivery of the agent's own.
    if socket2::SockRef::from(&client).mark().is_ok_and(|mark| mark == connect::MARK) {
        reset(client);
        return recorder.finish(Outcome::internal("the kernel did not know a delivery of the agent's own; see nodemesh_kernel_map_full"));
    }
    let peer = Peer { identity: None, address: client_address };
    // The client's connection ends in this namespace, so its four numbers are taken there: a second one of the same would have its
    // segments handed to the first. The application sees the client's address with another port.
    let from = ClientAddr(SocketAddr::new(client_address.0.ip(), 0));
    let opened = inbound.open(peer, from, server, Transport::Plaintext, Refused::Plaintext, &mut recorder).await;
    let Opened { _place, way } = match opened {
        Ok(opened) => opened,
        Err(outcome) => {
            reset(client);
            return recorder.finish(outcome);
        }
    };
    let connection = recorder.live().clone();
    let (mut live, application) = match way {
        Way::Whole(live, application) => (live, application),
        Way::Requests(judged) => {
            let protocol = match first::protocol(&client, judged.silence()).await {
                Ok(protocol) => protocol,
                Err(_) => return recorder.finish(Outcome::ClientReset),
            };
            if let Protocol::Http1 | Protocol::Http2 = protocol {
                let told = serve_requests(client, protocol, *judged, async move { connection.closed().await }).await;
                return recorder.finish(told.unwrap_or(Outcome::Completed));
            }
            match judged.whole(&mut recorder).await {
                Ok(whole) => whole,
                Err(outcome) => {
                    reset(client);
                    return recorder.finish(outcome);
                }
            }
        }
    };
    let reason = RefCell::new(None);
    let ending = async {
        let outcome = tokio::select! {
            outcome = connection.closed() => outcome,
            denial = live.revoked() => revoked(denial),
        };
        *reason.borrow_mut() = Some(outcome);
    };
    let idle = inbound.worker.shared.tunnel.stream_idle_timeout;
    let ended = copy::relay(client, application, recorder.meter(), ending, idle).await;
    recorder.finish(outcome_of(ended.how, reason.take()));
}

/// A connection that may be opened, and how it is judged from then on.
struct Opened {
    _place: Place,
    way: Way,
}

enum Way {
    /// It is allowed as a whole, as long as policy does not change.
    Whole(Live, TcpStream),
    /// Its requests are judged, each for itself.
    Requests(Box<Judged>),
}

impl Handler for Inbound {
    async fn connect(&self, incoming: Incoming) -> Result<Accepted, Refusal> {
        let claimed = incoming.client.map(|client| client.0);
        // The tunnel comes from the client pod's own namespace, so its address is the client's. The port is the peer's word, and only
        // good for what the application sees.
        let port = claimed.filter(|claimed| claimed.ip() == incoming.tcp_peer.ip()).map_or(0, |claimed| claimed.port());
        let client = ClientAddr(SocketAddr::new(incoming.tcp_peer.ip(), port));
        let telemetry = &self.worker.shared.telemetry;
        let peer = Peer { identity: Some(incoming.peer.clone()), address: client };
        let trace = incoming.traceparent.as_deref().and_then(trace::TraceParent::parse);
        let trace = trace.map(|trace| trace.trace_id());
        let host = incoming.host.as_deref();
        let connection = self.connection(client, incoming.server, Some(&incoming.peer), Security::MutualTls, trace, host);
        let mut recorder = telemetry.open(connection);
        match self.open(peer, client, incoming.server, Transport::Tunnel, Refused::Stream, &mut recorder).await {
            Ok(Opened { _place: place, way }) => {
                let baggage = Some(self.worker.shared.baggage(&self.pod));
                let connection = recorder.live().clone();
                Ok(match way {
                    Way::Whole(mut live, application) => {
                        let ending = async move {
                            tokio::select! {
                                outcome = connection.closed() => outcome,
                                denial = live.revoked() => revoked(denial),
                            }
                        };
                        Accepted { baggage, ..accepted(application, ending, recorder, place) }
                    }
                    Way::Requests(judged) => {
                        let (near, far) = pipe::pair();
                        self.worker.connections.spawn_local(requests::serve_pipe(far, *judged, connection.clone()));
                        Accepted { baggage, ..accepted(near, async move { connection.closed().await }, recorder, place) }
                    }
                })
            }
            Err(outcome) => {
                let refusal = Refusal::new(outcome.tunnel_status(), outcome.to_string());
                recorder.finish(outcome);
                Err(refusal)
            }
        }
    }

    fn trusted(&self) -> Option<Arc<RootCertStore>> {
        self.worker.credentials(&self.pod.workload.identity).ok().map(|credentials| credentials.roots().clone())
    }

    fn rejected(&self, rejected: Rejected<'_>) {
        let server = ServerAddr(rejected.local.0);
        let connection = self.connection(ClientAddr(rejected.tcp_peer), server, Some(rejected.peer), Security::MutualTls, None, None);
        let outcome = if rejected.refusal.status == http::StatusCode::SERVICE_UNAVAILABLE {
            Outcome::OwnPort
        } else {
            Outcome::PeerProtocol { detail: rejected.refusal.reason.clone() }
        };
        self.worker.shared.telemetry.refused(connection, outcome);
    }
}

impl Inbound {
    /// Judges a connection, and connects to the application if it may carry anything.
    async fn open(
        &self,
        peer: Peer,
        client: ClientAddr,
        server: ServerAddr,
        transport: Transport,
        refused: Refused,
        recorder: &mut ConnectionRecorder,
    ) -> Result<Opened, Outcome> {
        let policy = self.pod.policy.borrow().clone();
        if !policy.asks_http() {
            let live = self.judge(peer, server, transport, recorder)?;
            let place = self.place(refused)?;
            return Ok(Opened { _place: place, way: Way::Whole(live, self.deliver(client, server).await?) });
        }
        decide_opening(&policy, &peer, server, transport).map_err(denied)?;
        // Where only a request can be allowed, the application learns of the connection when one is. Where anything can, the client learns
        // at once if the application is not there.
        let at_once = decide(&policy, &peer, server, transport).is_ok();
        let place = self.place(refused)?;
        let application = if at_once { Some(self.deliver(client, server).await?) } else { None };
        let connection = recorder.live().connection.clone();
        let inbound = Inbound { worker: self.worker.clone(), pod: self.pod.clone() };
        Ok(Opened {
            _place: place,
            way: Way::Requests(Box::new(Judged { inbound, peer, transport, client, server, connection, application })),
        })
    }

    /// Room for one more connection. What policy denies is not asked for it: it costs next to nothing, and its denial says more.
    fn place(&self, refused: Refused) -> Result<Place, Outcome> {
        self.pod.connections.take().map_err(|full| self.worker.shared.overload(&self.pod, refused, full))
    }

    /// Policy. Without the permit that it gives nothing is forwarded.
    fn judge(&self, peer: Peer, server: ServerAddr, transport: Transport, recorder: &mut ConnectionRecorder) -> Result<Live, Outcome> {
        let (permit, live) = Live::open(self.pod.policy.clone(), peer, server, transport).map_err(denied)?;
        recorder.allowed(dry_run(&permit));
        if let Some(policy) = permit.audited() {
            tracing::info!(%policy, connection = ?recorder.live().connection.client, server = %server, "a connection matches an AUDIT policy");
        }
        Ok(live)
    }

    async fn deliver(&self, client: ClientAddr, server: ServerAddr) -> Result<TcpStream, Outcome> {
        connect::deliver(&self.pod.netns, client.0, server, self.worker.shared.connect_timeout)
            .await
            .map_err(|error| Outcome::ConnectFailed { failure: ConnectFailure::from_io(&error), detail: error.to_string().into() })
    }

    /// What is known of it, for those who look. `host` is what the peer says was dialled.
    fn connection(
        &self,
        client: ClientAddr,
        server: ServerAddr,
        identity: Option<&Identity>,
        security: Security,
        trace_id: Option<Arc<str>>,
        host: Option<&str>,
    ) -> Connection {
        let snapshot = self.worker.shared.snapshot.load();
        // By plaintext an address may be anybody's; with a certificate, the workload must be one of that identity.
        let source = snapshot.workload_at(client.0.ip()).filter(|w| identity.is_none_or(|identity| *identity == w.identity));
        Connection {
            labels: ConnectionLabels {
                reporter: Reporter::Destination,
                source: PeerInfo { workload: source.cloned(), identity: identity.cloned() },
                destination: PeerInfo { workload: Some(self.pod.current(&snapshot)), identity: Some(self.pod.workload.identity.clone()) },
                service: host.and_then(|host| self.worker.shared.claimed_service(&snapshot, host, server.0)),
                security,
            },
            direction: Direction::Inbound,
            client: client.0,
            server: Some(server.0),
            dialled: None,
            trace_id,
            upstream_tls: None,
        }
    }
}

/// Leave to relay; the record is closed and the place given back when the stream ends.
fn accepted(
    app: impl Into<Socket>,
    ending: impl Future<Output = Outcome> + 'static,
    recorder: ConnectionRecorder,
    place: Place,
) -> Accepted {
    let cancel = CancellationToken::new();
    let over = CancellationToken::new();
    let reason = Rc::new(RefCell::new(None));
    let meter = recorder.meter().clone();
    let (told, cancelled, finished) = (reason.clone(), cancel.clone(), over.clone());
    let ended = over.drop_guard();
    tokio::task::spawn_local(async move {
        let outcome = tokio::select! {
            () = finished.cancelled() => return,
            outcome = ending => outcome,
        };
        *told.borrow_mut() = Some(outcome);
        cancelled.cancel();
    });
    let on_end = Box::new(move |end: copy::Ended| {
        drop((ended, place));
        recorder.finish(outcome_of(end.how, reason.take()));
    });
    Accepted { app: app.into(), meter, cancel, baggage: None, on_end }
}

/// What a denial is called of a connection that had been allowed.
pub fn revoked(denial: Denial) -> Outcome {
    withdrawn(denied(denial))
}

/// The same, of a denial as it ends what is new.
fn withdrawn(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::PolicyDenied { reason, policy } => Outcome::PolicyRevoked { reason, policy },
        other => other,
    }
}

fn dry_run(permit: &Permit) -> Option<DryRun> {
    permit.dry_run().map(|dry_run| match dry_run {
        crate::policy::DryRun::Denied(policy) => DryRun::Policy(policy.clone()),
        crate::policy::DryRun::NotAllowed => DryRun::NoAllowPolicy,
    })
}
