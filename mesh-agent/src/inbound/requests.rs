//! HTTP in front of a pod's application, where some policy asks for more than a connection shows: each request is judged before a byte of
//! it goes on, and the path that was judged is the path that is forwarded. What policy allows is then counted against the workload's limits.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::HeaderName;
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use mesh_model::identity::Identity;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::{Inbound, denied, dry_run, judge, revoked};
use crate::conn::{ClientAddr, Meter, ServerAddr};
use crate::ops::live::LiveConnection;
use crate::ops::metrics::requests::RequestProtocol;
use crate::ops::record::Connection;
use crate::ops::{ConnectionRecorder, RequestLine, RequestRecorder, trace};
use crate::outcome::{Outcome, RequestFailure};
use crate::policy::limits::{Counted, CountedRequest, Standing};
use crate::policy::{Live, Peer, Permit, Transport, decide};
use crate::route::body::{Ongoing, Original, ReplyBody, Seen, grpc_status};
use crate::route::detect::Protocol;
use crate::route::serve::{Service, serve};
use crate::route::{filter, first, matches, reply, request, upgrade};
use crate::upstream::bounds::Pending;
use crate::upstream::copy;
use crate::upstream::copy::pipe::End;
use crate::upstream::http::{ConnectionKey, HttpPools, IDLE, Lease, Ready, STREAMS, Terms, Unready};

/// For how long a client may be silent until it is taken for one whose server speaks first.
const SILENCE: Duration = Duration::from_secs(1);
const TERMS: Terms = Terms { idle: IDLE, max_requests: None, max_age: None, max_streams: Some(STREAMS) };
/// Connections to the application that may turn out to be closed before a new one is opened.
const STALE: u32 = 2;

/// What is known of a connection on which requests are judged.
pub struct Judged {
    /// To whom it leads.
    pub inbound: Inbound,
    /// Who calls.
    pub peer: Peer,
    /// By which way.
    pub transport: Transport,
    /// The client's own end, as far as the application is to see it.
    pub client: ClientAddr,
    /// The application.
    pub server: ServerAddr,
    /// For the records of its requests.
    pub connection: Connection,
    /// A connection to the application that nothing was sent on, if there is one already.
    pub application: Option<TcpStream>,
}

impl Judged {
    /// For how long a client may be silent until it is taken for one whose server speaks first. Where that could not be allowed anyway
    /// there is no hurry.
    pub fn silence(&self) -> Option<Duration> {
        let policy = self.inbound.pod.policy.borrow().clone();
        decide(&policy, &self.peer, self.server, self.transport).is_ok().then_some(SILENCE)
    }

    /// The decision about a connection that turns out to carry something else than HTTP: what policies ask of HTTP it cannot show.
    pub async fn whole(self, recorder: &mut ConnectionRecorder) -> Result<(Live, TcpStream), Outcome> {
        let live = self.inbound.judge(self.peer.clone(), self.server, self.transport, recorder)?;
        self.count()?;
        let application = match self.application {
            Some(application) => application,
            None => self.inbound.deliver(self.client, self.server).await?,
        };
        Ok((live, application))
    }

    /// Counts a connection that is no HTTP against the limits, as one request.
    fn count(&self) -> Result<(), Outcome> {
        let policy = self.inbound.pod.policy.borrow().clone();
        let Some(limits) = policy.limits() else { return Ok(()) };
        let now = self.inbound.worker.shared.telemetry.clock().now();
        limits.take(now, &Counted { source: self.source(), request: None })?;
        Ok(())
    }

    /// The client's proven identity.
    fn source(&self) -> Option<&Identity> {
        self.peer.identity.as_ref().filter(|_| self.transport == Transport::Tunnel)
    }
}

/// Serves what comes through a tunnel, whatever it turns out to be.
pub async fn serve_pipe(stream: End, judged: Judged, connection: Arc<LiveConnection>) {
    let protocol = first::protocol_of_pipe(&stream, judged.silence()).await;
    if let Protocol::Http1 | Protocol::Http2 = protocol {
        serve_requests(stream, protocol, judged, std::future::pending()).await;
        return;
    }
    let opened = Live::open(judged.inbound.pod.policy.clone(), judged.peer.clone(), judged.server, judged.transport).map_err(denied);
    let opened = opened.and_then(|opened| judged.count().map(|()| opened));
    let Judged { inbound, client, server, application, .. } = judged;
    match opened {
        Ok((permit, mut live)) => {
            inbound.worker.shared.telemetry.metrics().agent.allowed();
            drop(permit);
            let application = match application {
                Some(application) => application,
                None => match inbound.deliver(client, server).await {
                    Ok(application) => application,
                    Err(outcome) => {
                        connection.close(outcome);
                        return stream.abort();
                    }
                },
            };
            let ending = async {
                let denial = live.revoked().await;
                connection.close(revoked(denial));
            };
            // The bytes are counted where they leave the tunnel.
            copy::relay(stream, application, &Meter::default(), ending, None).await;
        }
        Err(outcome) => {
            connection.close(outcome);
            stream.abort();
        }
    }
}

/// The requests of one connection. The application has as many connections as are needed for it, and none that others use.
struct Requests {
    judged: Judged,
    http2: bool,
    /// The connection that was opened before anything was known.
    first: Cell<Option<TcpStream>>,
    kept: Rc<HttpPools>,
    /// What became of the connection, if it was switched to another protocol.
    joined: Cell<Option<Joined>>,
}

/// A connection that goes on as another protocol.
struct Joined {
    /// Until it ends.
    task: JoinHandle<()>,
    /// Ends it.
    end: oneshot::Sender<Outcome>,
}

/// Serves a connection of which the first bytes are HTTP, also as what it is switched to, until it ends.
pub async fn serve_requests<T>(stream: T, protocol: Protocol, mut judged: Judged, ending: impl Future<Output = Outcome>) -> Option<Outcome>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let drain = judged.inbound.worker.drain_watch();
    let manners = judged.inbound.worker.shared.manners();
    let http2 = protocol == Protocol::Http2;
    let first = Cell::new(judged.application.take());
    let requests = Rc::new(Requests { judged, http2, first, kept: Rc::default(), joined: Cell::default() });
    let mut ending = std::pin::pin!(ending);
    let told = serve(stream, http2, requests.clone(), manners, drain, ending.as_mut()).await;
    requests.kept.close();
    if let (None, Some(Joined { mut task, end })) = (&told, requests.joined.take()) {
        tokio::select! {
            biased;
            _ = &mut task => {}
            outcome = ending => {
                let _ = end.send(outcome.clone());
                let _ = task.await;
                return Some(outcome);
            }
        }
    }
    told
}

impl Service for Requests {
    async fn answer(self: Rc<Self>, mut incoming: Request<Incoming>) -> Response<ReplyBody> {
        let theirs = hyper::upgrade::on(&mut incoming);
        let (mut parts, body) = incoming.into_parts();
        let grpc = reply::is_grpc(&parts.headers);
        let mut record = self.record(&parts, grpc);
        let seen = Seen::new(grpc);
        let mut standing = None;
        let mut protocol = None;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let asked = filter::upgrade_of(&parts.headers);
        // To be judged again by, once the connection is switched.
        let head = asked.as_ref().map(|_| parts.clone());
        let admitted = self.judge(&mut parts, &mut record, now).and_then(|permit| {
            // What policy adds makes it no other.
            protocol = request::take_upgrade(&mut parts.headers).filter(|to| Some(to) == asked.as_ref());
            standing = self.count(&parts, &record)?;
            Ok(permit)
        });
        let refused = match admitted {
            Ok(_permit) => {
                if let Some(span) = &record.span {
                    span.hop.write(&mut parts.headers);
                }
                // An application that ends a connection of HTTP/2 says what it has not looked at: that is sent again.
                let idle = self.judged.inbound.worker.shared.http_body_idle_timeout;
                let original = Original::new(body, seen.clone(), self.http2, idle);
                match self.send(&mut parts, &original, protocol.as_ref()).await {
                    Ok((response, lease)) => {
                        let switching = head.map(|head| (theirs, self.switched(head, now)));
                        let ongoing = Ongoing { record, seen, lease: Some(lease), on_end: None };
                        return self.respond(response, standing.as_ref(), ongoing, grpc, switching);
                    }
                    Err(outcome) => outcome,
                }
            }
            Err(outcome) => outcome,
        };
        let mut answer = reply::of_outcome(&refused, grpc);
        if let Some(standing) = &standing {
            reply::rate_limit(answer.headers_mut(), standing);
        }
        record.line.status = answer.status().as_u16();
        record.line.grpc_status = grpc_status(answer.headers()).filter(|_| grpc);
        record.presume(refused);
        let (head, bytes) = answer.into_parts();
        let whole = if parts.method == Method::HEAD { Bytes::new() } else { bytes };
        Response::from_parts(head, ReplyBody::whole(whole, Ongoing { record, seen, lease: None, on_end: None }))
    }
}

impl Requests {
    fn record(&self, parts: &Parts, grpc: bool) -> RequestRecorder {
        let mut connection = self.judged.connection.clone();
        let telemetry = &self.judged.inbound.worker.shared.telemetry;
        let hop = trace::Hop::of(&parts.headers, telemetry.spans().sampler(), || (rand::random(), rand::random()));
        if hop.is_sampled() || hop.has_begun() {
            connection.trace_id = Some(hop.trace_id());
        }
        let line = RequestLine {
            method: parts.method.as_str().into(),
            path: parts.uri.path().into(),
            authority: matches::host_of(&parts.uri, &parts.headers).into(),
            protocol: if grpc { RequestProtocol::Grpc } else { RequestProtocol::Http },
            status: 0,
            grpc_status: None,
            route: None,
            attempts: 1,
        };
        let mut record = RequestRecorder::new(telemetry, connection, line);
        record.span = trace::Open::of(hop, &parts.headers, self.http2);
        record
    }

    /// Policy.
    fn judge(&self, parts: &mut Parts, record: &mut RequestRecorder, now: u64) -> Result<Permit, Outcome> {
        let Judged { inbound, peer, transport, server, .. } = &self.judged;
        let policy = inbound.pod.policy.borrow().clone();
        let permit = judge::request(&policy, peer, *server, *transport, parts, now)?;
        inbound.worker.shared.telemetry.metrics().agent.allowed();
        record.dry_run = dry_run(&permit);
        if record.dry_run.is_some() {
            inbound.worker.shared.telemetry.metrics().agent.dry_run_denial();
        }
        if let Some(policy) = permit.audited() {
            tracing::info!(%policy, client = %self.judged.client, %server, method = %parts.method, "a request matches an AUDIT policy");
        }
        Ok(permit)
    }

    fn switched(&self, head: Parts, now: u64) -> judge::Switched {
        let Judged { inbound, peer, transport, server, .. } = &self.judged;
        judge::Switched { policy: inbound.pod.policy.clone(), peer: peer.clone(), server: *server, transport: *transport, head, now }
    }

    /// Counts a request that policy allows against the limits, and says how the tightest of them stands.
    fn count(&self, parts: &Parts, record: &RequestRecorder) -> Result<Option<Standing>, Outcome> {
        let policy = self.judged.inbound.pod.policy.borrow().clone();
        let Some(limits) = policy.limits() else { return Ok(None) };
        let request = Some(CountedRequest { path: parts.uri.path(), headers: &parts.headers });
        Ok(limits.take(record.started(), &Counted { source: self.judged.source(), request })?)
    }

    async fn send(
        &self,
        parts: &mut Parts,
        original: &Original,
        protocol: Option<&http::HeaderValue>,
    ) -> Result<(Response<Incoming>, Lease), Outcome> {
        let idempotent = matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS);
        let mut stale = 0;
        loop {
            let mut lease = self.lease().await?;
            let reused = lease.reused && stale < STALE;
            let (mut head, ()) = Request::new(()).into_parts();
            head.method = parts.method.clone();
            head.uri = parts.uri.clone();
            // Over a new connection there is one attempt only.
            head.headers = if reused { parts.headers.clone() } else { std::mem::take(&mut parts.headers) };
            request::address(&mut head, self.http2, false, protocol)?;
            match lease.send(Request::from_parts(head, original.attempt())).await {
                Ok(response) if upgrade::is_unasked(&response, protocol) => {
                    return Err(RequestFailure::unasked_switch());
                }
                Ok(response) => {
                    original.answered();
                    return Ok((response, lease));
                }
                Err(failure) => {
                    if let Some(fault) = original.fault() {
                        self.judged.inbound.worker.shared.requests.body_broke(&fault);
                        return Err(fault);
                    }
                    let again = failure.unsent.is_some() || failure.leaving || failure.closed && idempotent && !original.has_begun();
                    if !(reused && original.can_repeat() && again) {
                        return Err(failure.outcome);
                    }
                    original.supersede();
                    stale += 1;
                }
            }
        }
    }

    async fn lease(&self) -> Result<Lease, Outcome> {
        let Judged { inbound, client, server, .. } = &self.judged;
        let client_uid = inbound.pod.workload.uid.clone();
        let key = ConnectionKey {
            client: client_uid,
            server: server.0,
            workload: None,
            tunnel: None,
            http2: self.http2,
            service: None,
            tls: None,
        };
        let opening = match self.kept.ready(&key, TERMS, &mut Pending::default()).await {
            Ok(Ready::Taken(lease)) => return Ok(lease),
            Ok(Ready::Open(opening)) => opening,
            // What is spoken here is not agreed on with anybody, and nothing bounds who waits.
            Ok(Ready::OpenHttp1) => None,
            Err(Unready::Overflow) => return Err(Outcome::internal("too many wait where any number may")),
            Err(Unready::Failed(outcome)) => return Err(outcome),
        };
        let opened = self.open(key, *client, *server).await;
        if let Some(opening) = opening {
            opening.done(opened.as_ref());
        }
        opened
    }

    async fn open(&self, key: ConnectionKey, client: ClientAddr, server: ServerAddr) -> Result<Lease, Outcome> {
        let inbound = &self.judged.inbound;
        let stream = match self.first.take() {
            Some(first) => first,
            // Of several the first has the client's own port.
            None => inbound.deliver(client, server).await?,
        };
        self.kept.over(&inbound.worker, key, stream, TERMS).await
    }

    fn respond(
        &self,
        mut response: Response<Incoming>,
        standing: Option<&Standing>,
        mut ongoing: Ongoing,
        grpc: bool,
        switching: Option<(OnUpgrade, judge::Switched)>,
    ) -> Response<ReplyBody> {
        let ours = (response.status() == StatusCode::SWITCHING_PROTOCOLS).then(|| hyper::upgrade::on(&mut response));
        let (mut parts, body) = response.into_parts();
        let protocol = parts.headers.get(http::header::UPGRADE).cloned();
        filter::strip_hop(&mut parts.headers);
        // After what the application's own `Connection` names.
        if let Some(standing) = standing {
            reply::rate_limit(&mut parts.headers, standing);
        }
        ongoing.record.line.status = parts.status.as_u16();
        ongoing.record.line.grpc_status = grpc_status(&parts.headers).filter(|_| grpc);
        parts.version = Version::HTTP_11;
        if let (Some(ours), Some((theirs, switched))) = (ours, switching) {
            parts.headers.insert(http::header::CONNECTION, http::HeaderValue::from_static("upgrade"));
            if let Some(protocol) = protocol {
                parts.headers.insert(HeaderName::from_static("upgrade"), protocol);
            }
            let worker = &self.judged.inbound.worker;
            let (end, ended) = oneshot::channel();
            let ending = async move {
                tokio::select! {
                    outcome = switched.revoked() => outcome,
                    Ok(outcome) = ended => outcome,
                }
            };
            let task = worker.connections.spawn_local(upgrade::join(theirs, ours, ongoing, worker.drain_watch(), ending));
            self.joined.set(Some(Joined { task, end }));
            return Response::from_parts(parts, ReplyBody::unrecorded(Bytes::new()));
        }
        Response::from_parts(parts, ReplyBody::incoming(body, ongoing, grpc, None))
    }
}
