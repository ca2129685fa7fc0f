//! A connection that goes as a whole to the endpoint that was chosen: directly or through a tunnel, with TLS of its own if that is asked for,
//! for as long as its DestinationRule lets it.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::connection;
use crate::agent::pods::LocalPod;
use crate::capture::accept;
use crate::conn::{ClientAddr, Meter, OrigDst, TunnelAddr};
use crate::ops::live::LiveConnection;
use crate::ops::record::ConnectionRecorder;
use crate::ops::{PeerInfo, Security, trace};
use crate::outcome::{ConnectFailure, Outcome, RequestFailure, UpstreamFailure};
use crate::shared::{Worker, outcome_of, reset};
use crate::tunnel::client::TunnelStream;
use crate::tunnel::{OpenRequest, PoolKey, TunnelError};
use crate::upstream::cluster::{Chosen, Cluster};
use crate::upstream::copy::pipe::{End, pair};
use crate::upstream::health::Observation;
use crate::upstream::originate::{Offer, Secured};
use crate::upstream::{connect, copy, resolve};

/// In how many parts the idle timeout is measured; it comes at most one part late.
const PARTS: u32 = 4;

/// A connection and where it goes.
pub(super) struct Relay<'a> {
    pub(super) worker: &'a Rc<Worker>,
    pub(super) pod: &'a Arc<LocalPod>,
    pub(super) client: ClientAddr,
    pub(super) dialled: OrigDst,
    pub(super) cluster: &'a Arc<Cluster>,
    pub(super) chosen: Chosen,
}

/// A stream to the server.
enum Stream {
    Tcp(TcpStream),
    /// Not yet asked for, or answered by the peer's agent already.
    Tunnel(Box<TunnelStream>),
}

impl Relay<'_> {
    /// Carries it to its end.
    pub(super) async fn run(self, application: TcpStream) {
        let Relay { worker, pod, client, dialled, cluster, chosen } = &self;
        let server = &chosen.server;
        let service = worker.shared.service(&cluster.name.service);
        let meshed = server.workload.as_ref().filter(|workload| workload.enrolled);
        let mut known = match meshed {
            Some(workload) => {
                let service = Some(cluster.name.service.clone());
                let target = resolve::Target { dialled: *dialled, server: server.address, workload: workload.clone(), service };
                connection(worker, pod, *client, None, Some(&target))
            }
            None => {
                let mut known = connection(worker, pod, *client, None, None);
                known.server = Some(server.address.0);
                known.dialled = Some(dialled.0);
                known.labels.service = Some(service.clone());
                known.labels.destination = PeerInfo { workload: server.workload.clone(), identity: None };
                known.labels.security = Security::None;
                known
            }
        };
        let trace = trace::TraceParent::new(rand::random(), rand::random());
        known.trace_id = Some(trace.trace_id());
        // There is no waiting for connections that are not parsed: over the bound they are refused at once.
        let Some(_place) = cluster.bounds(&pod.workload.uid).now() else {
            reset(application);
            let overflow = Outcome::Request(RequestFailure::Overflow { bound: "maxConnections" });
            return worker.shared.telemetry.refused(known, overflow);
        };
        let originator = cluster.originator(&pod.workload.namespace, &worker.shared.credentials);
        let tls = match originator {
            Some(originator) => match originator.secure(Instant::now(), None, &service.host).await {
                Ok(tls) => Some(tls),
                Err(outcome) => {
                    reset(application);
                    return worker.shared.telemetry.refused(known, outcome);
                }
            },
            None => None,
        };
        known.upstream_tls = tls.as_ref().map(|tls| tls.name().clone());
        let recorder = worker.shared.telemetry.open(known);
        let outcome = match self.carry(application, &recorder, tls, service.host, trace.to_string().into()).await {
            Ok(outcome) => outcome,
            Err(outcome) => {
                // A refusal by policy says nothing of the endpoint, nor does what is the client's own.
                if !outcome.is_denial() && !matches!(outcome, Outcome::ClientReset | Outcome::AddressFamily) {
                    self.observe(Observation::LocalFailure);
                }
                outcome
            }
        };
        recorder.finish(outcome);
    }

    fn observe(&self, observation: Observation) {
        crate::route::attempt::observe(self.worker, &self.chosen, Instant::now(), observation);
    }

    /// How it ended; an error is that there never was a connection, and the application has been told by an abort.
    async fn carry(
        &self,
        application: TcpStream,
        recorder: &ConnectionRecorder,
        tls: Option<Secured>,
        host: Arc<str>,
        traceparent: Arc<str>,
    ) -> Result<Outcome, Outcome> {
        let pool = &self.cluster.policy.pool;
        let limit = pool.connect_timeout.unwrap_or(self.worker.shared.connect_timeout);
        let deadline = Instant::now() + limit;
        let Some(local) = self.pod.address(self.chosen.server.address.0.ip()) else {
            reset(application);
            return Err(Outcome::AddressFamily);
        };
        let opened = match self.open(local, limit, host, traceparent).await {
            Ok(opened) => opened,
            Err(outcome) => {
                reset(application);
                return Err(outcome);
            }
        };
        let told = RefCell::new(None);
        let idle = pool.tcp_idle_timeout.or(self.worker.shared.tunnel.stream_idle_timeout);
        let ended = match (opened, tls) {
            (Stream::Tcp(server), None) => {
                self.observe(Observation::Success);
                let ending = ending(recorder.live(), pool.max_connection_duration, None, recorder.meter(), &told);
                copy::relay(application, server, recorder.meter(), ending, idle).await
            }
            (Stream::Tunnel(stream), None) => {
                // The tunnel has an idle timeout of its own, which is everybody's.
                let ending = ending(recorder.live(), pool.max_connection_duration, pool.tcp_idle_timeout, recorder.meter(), &told);
                // By then the peer's agent would have refused.
                let settled = self.worker.shared.tunnel.response_timeout;
                let relayed = stream.relay(application, recorder.meter(), ending);
                match self.settle(settled, relayed).await {
                    Ok(ended) => ended,
                    // It is not the endpoint's fault that somebody ended it before it stood.
                    Err(TunnelError::Abandoned) => return Ok(told.take().unwrap_or(Outcome::ClientReset)),
                    Err(error) => return Err(error.outcome()),
                }
            }
            (stream, Some(tls)) => {
                let over = CancellationToken::new();
                let ends = over.clone().drop_guard();
                let secured = match stream {
                    Stream::Tcp(server) => self.secure(tls, server, deadline, ends).await,
                    Stream::Tunnel(stream) => {
                        let (near, far) = pair();
                        let fate: Rc<RefCell<Option<Outcome>>> = Rc::default();
                        let told = fate.clone();
                        self.worker.connections.spawn_local(async move {
                            if let Err(error) = stream.relay(far, &Meter::default(), over.cancelled()).await {
                                *told.borrow_mut() = Some(error.outcome());
                            }
                        });
                        // A tunnel that was refused knows better why there is no TLS.
                        self.secure(tls, near, deadline, ends).await.map_err(|outcome| fate.take().unwrap_or(outcome))
                    }
                };
                let server = match secured {
                    Ok(server) => server,
                    Err(outcome) => {
                        reset(application);
                        return Err(outcome);
                    }
                };
                self.observe(Observation::Success);
                let ending = ending(recorder.live(), pool.max_connection_duration, None, recorder.meter(), &told);
                copy::relay(application, server, recorder.meter(), ending, idle).await
            }
        };
        Ok(outcome_of(ended.how, told.take()))
    }

    async fn open(&self, local: IpAddr, limit: Duration, host: Arc<str>, traceparent: Arc<str>) -> Result<Stream, Outcome> {
        let Relay { worker, pod, client, cluster, chosen, .. } = self;
        let server = &chosen.server;
        let pool = &cluster.policy.pool;
        let Some(workload) = server.workload.as_ref().filter(|workload| workload.enrolled) else {
            let connected = connect::plain(&pod.netns, local, server.address, limit, pool.keepalive.as_ref()).await;
            return connected
                .map(Stream::Tcp)
                .map_err(|error| Outcome::ConnectFailed { failure: ConnectFailure::from_io(&error), detail: error.to_string().into() });
        };
        let key = PoolKey {
            client: pod.workload.uid.clone(),
            server: workload.uid.clone(),
            identity: pod.workload.identity.clone(),
            expected: Arc::new([workload.identity.clone()]),
            source: local,
            destination: TunnelAddr(SocketAddr::new(server.address.0.ip(), accept::TUNNEL_PORT)),
        };
        let request = OpenRequest {
            target: server.address.0,
            client: Some(*client),
            host: Some(host),
            baggage: Some(worker.shared.baggage(pod)),
            traceparent: Some(traceparent),
        };
        let opening = worker.pools.open(key, request);
        let opened = match pool.connect_timeout {
            // The tunnel's own limits hold.
            None => opening.await,
            Some(limit) => tokio::time::timeout(limit, opening).await.map_err(|_| Outcome::TunnelDialFailed {
                failure: ConnectFailure::TimedOut,
                detail: "it was not there within connectTimeout".into(),
            })?,
        };
        opened.map(|stream| Stream::Tunnel(Box::new(stream))).map_err(|error| error.outcome())
    }

    /// Takes note that the server was reached once a tunnel's stream has stood for a while, or has ended in order.
    async fn settle<T, E>(&self, after: Duration, relayed: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let mut relayed = std::pin::pin!(relayed);
        let early = tokio::time::timeout(after, relayed.as_mut()).await;
        if !matches!(early, Ok(Err(_))) {
            self.observe(Observation::Success);
        }
        match early {
            Ok(ended) => ended,
            Err(_) => relayed.await,
        }
    }

    /// Begins TLS on a stream. What comes back is one end of a pipe, whose other is copied to and from the server. `ends` is what carries the
    /// stream: nothing does any longer once TLS has failed or was aborted.
    async fn secure<T>(&self, tls: Secured, io: T, deadline: Instant, ends: DropGuard) -> Result<End, Outcome>
    where
        T: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let agreed = tls.connect(Offer::Opaque, io, deadline).await;
        self.worker.shared.requests.secured(agreed.as_ref().ok().map(|agreed| agreed.resumed));
        let server = agreed?.stream;
        let (near, far) = pair();
        self.worker.connections.spawn_local(carry_secured(far, server, ends));
        Ok(near)
    }
}

/// Copies between an application and its server behind TLS, to the end of both. A server that ends without TLS's own word for it may have
/// been cut off by somebody else: that is an abort, unless the application has ended first. One that has said its last may take no more, not even
/// our farewell: that is none. Once the application's side is aborted nobody waits for the server, which may be silent for ever. `ends` stands
/// for what carries the server's stream, which after an end in order comes to its own.
async fn carry_secured<T: AsyncRead + AsyncWrite>(far: End, server: T, ends: DropGuard) {
    let aborted = far.aborted();
    let (mut said, mut wanted) = tokio::io::split(far);
    let (mut answers, mut questions) = tokio::io::split(server);
    let whole = {
        let up = async {
            tokio::io::copy(&mut said, &mut questions).await?;
            questions.shutdown().await
        };
        let down = async {
            tokio::io::copy(&mut answers, &mut wanted).await?;
            wanted.shutdown().await
        };
        let (mut up, mut down) = (std::pin::pin!(up), std::pin::pin!(down));
        let both = async {
            tokio::select! {
                ended = &mut down => {
                    if ended.is_ok() {
                        let _ = up.await;
                    }
                    ended.is_ok()
                }
                // What is on its way back may still come whole. To whom has said goodbye many servers say none.
                parted = &mut up => match down.await {
                    Ok(()) => true,
                    Err(error) => parted.is_ok() && error.kind() == std::io::ErrorKind::UnexpectedEof,
                },
            }
        };
        tokio::select! {
            biased;
            _ = aborted => false,
            whole = both => whole,
        }
    };
    if whole {
        ends.disarm();
    } else {
        said.unsplit(wanted).abort();
    }
}

/// Resolves when the connection is to end, and tells why: somebody says so, it has lasted for `most`, or nothing was carried for `idle`.
async fn ending(
    live: &Arc<LiveConnection>,
    most: Option<Duration>,
    idle: Option<Duration>,
    meter: &Meter,
    told: &RefCell<Option<Outcome>>,
) {
    let outcome = tokio::select! {
        outcome = live.closed() => outcome,
        () = after(most) => Outcome::Upstream(UpstreamFailure::Expired),
        () = quiet(meter, idle) => Outcome::IdleTimeout,
    };
    *told.borrow_mut() = Some(outcome);
}

async fn after(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

/// Resolves when a meter has stood still for a time.
async fn quiet(meter: &Meter, idle: Option<Duration>) {
    let Some(idle) = idle else { return std::future::pending().await };
    let part = (idle / PARTS).max(Duration::from_millis(1));
    let (mut seen, mut still) = (meter.read(), 0);
    while still < PARTS {
        tokio::time::sleep(part).await;
        let read = meter.read();
        still = if read == seen { still + 1 } else { 0 };
        seen = read;
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use tokio::io::{AsyncReadExt as _, ReadBuf};

    use super::*;

    /// Bytes that are there, then an end in order or none; takes nothing.
    struct Deaf(&'static [u8], bool);

    impl AsyncRead for Deaf {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            let said = std::mem::take(&mut self.0);
            buffer.put_slice(said);
            let cut = said.is_empty() && !self.1;
            Poll::Ready(if cut { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) })
        }
    }

    impl AsyncWrite for Deaf {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Err(io::ErrorKind::NotConnected.into()))
        }
    }

    #[tokio::test]
    async fn a_server_that_has_said_its_last_needs_to_take_no_more_and_one_that_is_cut_off_is_an_abort() {
        for (in_order, wanted) in [(true, true), (false, false)] {
            let (mut near, far) = pair();
            near.write_all(b"too late").await.unwrap();
            AsyncWriteExt::shutdown(&mut near).await.unwrap();
            let over = CancellationToken::new();
            carry_secured(far, Deaf(b"answer", in_order), over.clone().drop_guard()).await;
            assert_eq!(over.is_cancelled(), !wanted, "after an end in order the tunnel has still to carry the last of it");
            let mut read = Vec::new();
            assert_eq!(near.read_to_end(&mut read).await.is_ok(), wanted);
            assert!(!wanted || read == b"answer");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_abort_of_the_application_ends_the_servers_connection_however_silent_it_is() {
        // Before it has said anything, while the server takes nothing, and after its last word.
        for (says, ended) in [(0, false), (200_000, false), (5, true)] {
            let (mut near, far) = pair();
            let (server, mut peer) = tokio::io::duplex(1000);
            let over = CancellationToken::new();
            let carrying = carry_secured(far, server, over.clone().drop_guard());
            let application = async move {
                let saying = async {
                    near.write_all(&vec![7; says]).await.unwrap();
                    if ended {
                        AsyncWriteExt::shutdown(&mut near).await.unwrap();
                    }
                    std::future::pending::<()>().await;
                };
                assert!(tokio::time::timeout(Duration::from_secs(1), saying).await.is_err());
                near.abort();
            };
            let both = async { tokio::join!(carrying, application) };
            tokio::time::timeout(Duration::from_secs(60), both).await.expect("it ends with the application");
            assert!(over.is_cancelled(), "{says}");
            let mut read = Vec::new();
            peer.read_to_end(&mut read).await.unwrap();
            assert!(read.len() <= says, "the server sees the end");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_meter_that_stands_still_is_noticed_and_one_that_moves_is_not() {
        let meter = Meter::default();
        let begin = tokio::time::Instant::now();
        let idle = Some(Duration::from_secs(4));
        let moving = async {
            for _ in 0..10 {
                tokio::time::sleep(Duration::from_secs(3)).await;
                meter.add_to_client(1);
            }
            std::future::pending::<()>().await
        };
        tokio::select! {
            () = quiet(&meter, idle) => {}
            () = moving => unreachable!(),
        }
        let took = begin.elapsed();
        assert!((Duration::from_secs(34)..=Duration::from_secs(35)).contains(&took), "{took:?}");
        assert!(tokio::time::timeout(Duration::from_secs(1000), quiet(&meter, None)).await.is_err());
    }
}
