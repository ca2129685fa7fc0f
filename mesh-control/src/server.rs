//! The gRPC endpoint: TLS, and bounds for everything a client could use up.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::stream;
use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::server::ResolvesServerCert;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::metrics::Metrics;

mod counted;
mod guard;
mod services;

pub use guard::{Entered, Entering, Guard, Head};
pub use services::Services;

/// Calls of a connection at once. An agent has eight for certificates, one for keys and one for budgets.
const STREAMS: u32 = 16;

/// Bounds of the endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ServerLimits {
    /// Connections at once.
    pub connections: usize,
    /// Connections at once from one address.
    pub per_address: usize,
    /// Longest TLS handshake.
    pub handshake: Duration,
    /// Longest time without a byte from the client; PINGs are sent at a third of it.
    pub idle: Duration,
    /// Longest time for a request, its body included.
    pub request: Duration,
    /// Longest life of a connection; the client then makes another.
    pub age: Duration,
    /// Longest message to the certificate service.
    pub message: usize,
    /// Longest time that a drain may take.
    pub drain: Duration,
}

impl Default for ServerLimits {
    fn default() -> Self {
        ServerLimits {
            connections: 4096,
            per_address: 64,
            handshake: Duration::from_secs(5),
            idle: Duration::from_secs(60),
            request: Duration::from_secs(10),
            age: Duration::from_secs(1800),
            // A request for a key of RSA with 8192 bits has 4 KiB.
            message: 16 * 1024,
            drain: Duration::from_secs(10),
        }
    }
}

/// The client's address; an extension of each request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer(pub SocketAddr);

/// Settings of TLS: versions 1.3 and 1.2, HTTP/2 only, no client certificate (clients have none yet: they come for one).
pub fn tls(certificate: Arc<dyn ResolvesServerCert>) -> Result<Arc<ServerConfig>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// Longest answer of any service.
pub const MAX_ANSWER: usize = 1 << 20;

/// Serves until `stop` is ready; then lets requests end, no longer than [`ServerLimits::drain`].
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    services: Services,
    limits: ServerLimits,
    metrics: Arc<Metrics>,
    stop: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let (sender, receiver) = mpsc::channel(64);
    let stopping = tokio_util::sync::CancellationToken::new();
    let accepting = accept(listener, TlsAcceptor::from(tls), limits, metrics.clone(), sender);
    let incoming = stream::unfold(receiver, |mut receiver| async move { Some((Ok::<_, io::Error>(receiver.recv().await?), receiver)) });
    let serving = tonic::transport::Server::builder()
        .timeout(limits.request)
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(64 * 1024)
        .initial_connection_window_size(256 * 1024)
        .max_connection_age(limits.age)
        .max_connection_age_grace(limits.request)
        .http2_keepalive_interval(Some(limits.idle / 3))
        .http2_keepalive_timeout(Some(limits.idle / 3))
        .serve_with_incoming_shutdown(counted::Counted::new(services, metrics), incoming, stopping.cancelled());
    tokio::pin!(serving, accepting, stop);
    tokio::select! {
        result = &mut serving => return result,
        () = &mut accepting => {}
        () = &mut stop => {}
    }
    stopping.cancel();
    match tokio::time::timeout(limits.drain, serving).await {
        Ok(result) => result,
        Err(_) => {
            tracing::warn!("connections did not end within {} s and are cut", limits.drain.as_secs());
            Ok(())
        }
    }
}

/// Accepts and hands on what has finished its handshake. Never ends by itself; dropped, it closes the listener and the handshakes.
async fn accept(listener: TcpListener, tls: TlsAcceptor, limits: ServerLimits, metrics: Arc<Metrics>, done: mpsc::Sender<Connection>) {
    let room = Arc::new(Semaphore::new(limits.connections));
    let addresses = Arc::new(Addresses::default());
    let mut handshakes = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = handshakes.join_next() => continue,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // File descriptors are used up, or the like: the listener stands, so wait a little for better times.
                metrics.connection("accept_failed");
                tracing::warn!(%error, "can't accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(permit) = room.clone().try_acquire_owned() else {
            metrics.connection("too_many");
            tracing::debug!(%peer, "connection refused: there are {} already", limits.connections);
            continue;
        };
        let Some(place) = addresses.enter(peer.ip(), limits.per_address) else {
            metrics.connection("too_many_from_address");
            tracing::debug!(%peer, "connection refused: its address has {} already", limits.per_address);
            continue;
        };
        let (tls, metrics, done) = (tls.clone(), metrics.clone(), done.clone());
        handshakes.spawn(async move {
            let _ = stream.set_nodelay(true);
            match tokio::time::timeout(limits.handshake, tls.accept(stream)).await {
                Ok(Ok(stream)) => {
                    metrics.connection("accepted");
                    metrics.open.inc();
                    let held = Held { metrics, _permit: permit, _place: place };
                    let idle = Box::pin(tokio::time::sleep(limits.idle));
                    let _ = done.send(Connection { stream, peer, idle, limit: limits.idle, _held: held }).await;
                }
                Ok(Err(error)) => {
                    metrics.connection("handshake_failed");
                    tracing::debug!(%peer, %error, "TLS handshake failed");
                }
                Err(_) => {
                    metrics.connection("handshake_timeout");
                    tracing::debug!(%peer, "TLS handshake was not done within {} s", limits.handshake.as_secs_f32());
                }
            }
        });
    }
}

/// How many connections each address has.
#[derive(Default)]
struct Addresses(Mutex<HashMap<IpAddr, usize>>);

impl Addresses {
    fn enter(self: &Arc<Self>, address: IpAddr, most: usize) -> Option<Place> {
        let mut counts = self.0.lock();
        let count = counts.entry(address).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Place { addresses: self.clone(), address })
    }
}

/// One connection's place among those of its address.
struct Place {
    addresses: Arc<Addresses>,
    address: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.addresses.0.lock();
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

/// What a connection gives back when it is gone.
struct Held {
    metrics: Arc<Metrics>,
    _permit: OwnedSemaphorePermit,
    _place: Place,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.metrics.open.dec();
    }
}

/// A connection after its handshake, which fails when the client is silent for too long.
struct Connection {
    stream: TlsStream<TcpStream>,
    peer: SocketAddr,
    idle: Pin<Box<Sleep>>,
    limit: Duration,
    _held: Held,
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        Peer(self.peer)
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if read.is_ready() {
            let until = Instant::now() + self.limit;
            self.idle.as_mut().reset(until);
            return read;
        }
        ready!(self.idle.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client was silent for too long")))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffers: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
