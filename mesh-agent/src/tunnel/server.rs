//! What peers' agents ask for. Everything is bounded, and nothing reaches an application before the [`Handler`] has said yes.

use std::cell::Cell;
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::StatusCode;
use mesh_model::identity::Identity;
use rustls::RootCertStore;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::counters::TunnelCounters;
use super::error::{HandshakeError, Refusal};
use super::fast::link::Link;
use super::queue::Queue;
use super::settings::Settings;
use super::tls::Credentials;
use super::tls::handshake::{self, Protocol, Secured};
use super::trust::Proof;
use super::wire::Open;
use super::{OWN_PORTS, fast, hbone};
use crate::conn::{ClientAddr, Meter, ServerAddr, TunnelAddr};
use crate::upstream::copy::Ended;
use crate::upstream::copy::socket::Socket;

/// A peer's request for a stream, as far as it could be understood. Only `peer`, `tcp_peer` and `server`'s address are known for certain;
/// everything else is what the peer says.
#[derive(Debug, Clone)]
pub struct Incoming {
    /// The peer's identity, from its certificate.
    pub peer: Identity,
    /// The other end of the tunnel's TCP connection.
    pub tcp_peer: SocketAddr,
    /// The application that is asked for. Its address is always the tunnel's own destination; the port is the peer's wish.
    pub server: ServerAddr,
    /// The client application's own end: a claim, good as the source address that the application sees, never for a decision.
    pub client: Option<ClientAddr>,
    /// The service that was dialled: a claim, good for a label.
    pub host: Option<Arc<str>>,
    /// `baggage`: a claim, good for labels.
    pub baggage: Option<Arc<str>>,
    /// `traceparent`: a claim.
    pub traceparent: Option<Arc<str>>,
    /// The number of the tunnel's connection among those of this worker.
    pub connection: u64,
    /// What is spoken in the tunnel.
    pub protocol: Protocol,
}

/// Leave to relay.
pub struct Accepted {
    /// The connection to the application, or to the part of this agent that stands before it.
    pub app: Socket,
    /// Where the bytes are counted.
    pub meter: Arc<Meter>,
    /// Ends the stream with an abort to both sides.
    pub cancel: CancellationToken,
    /// A description of the destination for the peer, as HBONE's `baggage`.
    pub baggage: Option<Arc<str>>,
    /// Called when the stream has ended; dropped without a call if the worker ends before.
    pub on_end: Box<dyn FnOnce(Ended)>,
}

/// A request that was refused before the handler could be asked, for the log.
#[derive(Debug)]
pub struct Rejected<'a> {
    /// The peer's identity, from its certificate.
    pub peer: &'a Identity,
    /// The other end of the tunnel's TCP connection.
    pub tcp_peer: SocketAddr,
    /// This end.
    pub local: TunnelAddr,
    /// The answer.
    pub refusal: &'a Refusal,
}

/// Judges requests and connects to applications.
pub trait Handler: 'static {
    /// Decides, and if the answer is yes connects to the application: 200 is only said once that connection stands. Must be bounded in
    /// time. The future is dropped if the peer gives up.
    fn connect(&self, incoming: Incoming) -> impl Future<Output = Result<Accepted, Refusal>>;

    /// The roots that are trusted now; `None` if this pod has no certificate any more: then nobody is believed.
    fn trusted(&self) -> Option<Arc<RootCertStore>>;

    /// Hears of a request that could not be put to [`connect`](Self::connect).
    fn rejected(&self, rejected: Rejected<'_>);
}

/// How a peer's connection ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServeError {
    /// It never came to be.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// It broke, or the peer broke the protocol; streams that were open have ended and said so themselves.
    #[error("{0}")]
    Connection(Arc<str>),
}

/// The serving side of a worker.
pub struct Server<H> {
    pub(super) handler: H,
    pub(super) settings: Arc<Settings>,
    pub(super) counters: Arc<TunnelCounters>,
    handshakes: Rc<Queue>,
    tunnels: Rc<Queue>,
    connections: Cell<u64>,
}

/// What is known of a peer's connection.
#[derive(Clone)]
pub struct Connection {
    peer: Identity,
    proof: Proof,
    tcp_peer: SocketAddr,
    local: TunnelAddr,
    number: u64,
    protocol: Protocol,
}

impl<H: Handler> Server<H> {
    /// One of a worker's, for one pod that it serves. All of a worker share the bound on handshakes, beside that of each.
    pub fn new(handler: H, settings: Arc<Settings>, counters: Arc<TunnelCounters>) -> Rc<Self> {
        Rc::new(Server { handler, settings, counters, handshakes: Rc::default(), tunnels: Rc::default(), connections: Cell::new(0) })
    }

    /// The tunnels that it serves: for letting the oldest give way to a new one.
    pub fn tunnels(&self) -> &Rc<Queue> {
        &self.tunnels
    }

    /// Serves a connection that was accepted on `local`, the pod's address and the tunnel port, as the identity of `credentials`, until it
    /// ends. When `drain` resolves the peer is told to go elsewhere; streams that are open go on, and are ended by their own
    /// [`Accepted::cancel`] or by dropping this future. To be run as a task of the worker's `LocalSet`.
    pub async fn serve(
        self: Rc<Self>,
        tcp: TcpStream,
        local: TunnelAddr,
        credentials: Arc<Credentials>,
        drain: impl Future<Output = ()>,
    ) -> Result<(), ServeError> {
        self.counters.server.connections.add();
        self.counters.server.open.add();
        let counters = self.counters.clone();
        let _open = OnDrop(|| counters.server.open.sub());
        let secured = match self.handshake(tcp, &credentials).await {
            Ok(done) => {
                self.counters.server.handshakes.add();
                done
            }
            Err(error) => {
                self.counters.server.handshake_failed(error.failure());
                return Err(error.into());
            }
        };
        // Nothing of it is needed any more, and it may be replaced long before the connection ends.
        drop(credentials);
        let (Secured { channel, protocol, peer, proof }, tcp_peer) = secured;
        let number = self.connections.get() + 1;
        self.connections.set(number);
        let connection = Connection { peer, proof, tcp_peer, local, number, protocol };
        match protocol {
            Protocol::Own => fast::serve::serve(self, Link::new(channel), connection, drain)
                .await
                .map_err(|e| ServeError::Connection(e.to_string().into())),
            Protocol::Hbone => {
                hbone::server::serve(self, channel, connection, drain).await.map_err(|e| ServeError::Connection(e.to_string().into()))
            }
        }
    }

    async fn handshake(&self, tcp: TcpStream, credentials: &Credentials) -> Result<(Secured, SocketAddr), HandshakeError> {
        let config = credentials.server_config(self.settings.own_protocol).map_err(|e| HandshakeError::from_tls(&e))?;
        let tcp_peer = tcp.peer_addr().map_err(|e| HandshakeError::from_io(&e))?;
        prepare(&tcp, &self.settings).map_err(|e| HandshakeError::from_io(&e))?;
        let (_own, crowded_here) = self.handshakes.enter(self.settings.max_pod_handshakes);
        let (_place, crowded) = HANDSHAKES.with(|handshakes| handshakes.enter(self.settings.max_handshakes));
        tokio::select! {
            biased;
            result = handshake::accept(tcp, config, credentials.roots()) => Ok((result?, tcp_peer)),
            _ = crowded_here => Err(HandshakeError::Crowded),
            _ = crowded => Err(HandshakeError::Crowded),
            () = tokio::time::sleep(self.settings.server_handshake_timeout) => Err(HandshakeError::TimedOut),
        }
    }

    pub(super) fn reject(&self, connection: &Connection, refusal: &Refusal) {
        self.handler.rejected(Rejected { peer: &connection.peer, tcp_peer: connection.tcp_peer, local: connection.local, refusal });
    }
}

impl Connection {
    /// Whether what the peer proved at the handshake still holds.
    pub fn is_valid(&self, handler: &impl Handler) -> bool {
        handler.trusted().is_some_and(|trusted| self.proof.holds(&trusted, SystemTime::now()))
    }

    /// This end.
    pub fn local(&self) -> TunnelAddr {
        self.local
    }

    /// A request of our own protocol.
    pub(super) fn incoming_own(&self, open: Open) -> Result<Incoming, Refusal> {
        let mut incoming = self.incoming(open.port)?;
        incoming.client = open.client.map(ClientAddr);
        incoming.host = open.host.map(Arc::from);
        incoming.baggage = open.baggage.map(Arc::from);
        incoming.traceparent = open.traceparent.map(Arc::from);
        Ok(incoming)
    }

    /// A request for a port of this connection's own destination.
    pub(super) fn incoming(&self, port: u16) -> Result<Incoming, Refusal> {
        if port == 0 {
            return Err(Refusal::new(StatusCode::BAD_REQUEST, "port 0 cannot be connected to"));
        }
        if OWN_PORTS.contains(&port) {
            return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, format!("port {port} is the mesh's own")));
        }
        Ok(Incoming {
            peer: self.peer.clone(),
            tcp_peer: self.tcp_peer,
            server: ServerAddr(SocketAddr::new(self.local.0.ip(), port)),
            client: None,
            host: None,
            baggage: None,
            traceparent: None,
            connection: self.number,
            protocol: self.protocol,
        })
    }
}

/// What every tunnel's socket wants: no delay, and the kernel's word if the peer is gone in mid-stream.
pub(super) fn prepare(tcp: &TcpStream, settings: &Settings) -> std::io::Result<()> {
    let socket = SockRef::from(tcp);
    socket.set_tcp_nodelay(true)?;
    let unanswered = settings.ping_timeout.as_secs().checked_div(settings.ping_interval.as_secs().max(1)).unwrap_or(1).clamp(1, 10);
    let keepalive = TcpKeepalive::new()
        .with_time(settings.ping_interval.max(Duration::from_secs(1)))
        .with_interval(settings.ping_interval.max(Duration::from_secs(1)))
        .with_retries(unanswered as u32);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(settings.ping_timeout))
}

thread_local! {
    /// Handshakes under way on this worker. Honest ones take milliseconds, so the oldest are those that don't finish.
    static HANDSHAKES: Rc<Queue> = Rc::default();
}

/// Runs when it goes out of scope, also if the future around it is dropped.
pub struct OnDrop<F: FnMut()>(pub F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
