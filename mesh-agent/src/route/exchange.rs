//! One request on the client's side: a rule, its filters, a backend, an endpoint, as many attempts as are allowed, the response.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use mesh_model::route::{Backend, Filter, HttpRule, RouteTable, Session as Persistence, Target};
use mesh_model::service::NamespacedName;

use super::apply::{self, Applied, apply};
use super::attempt::{self, Attempts};
use super::body::{Deadline, Ongoing, Original, ReplyBody, Seen, grpc_status};
use super::matches;
use super::plan::Plan;
use super::retry::DEFAULT;
use super::serve::{Current, Service};
use super::stage::Deadlines;
use super::{filter, mirror, reply, request, session};
use crate::agent::pods::LocalPod;
use crate::conn::{ClientAddr, OrigDst};
use crate::ops::metrics::requests::RequestProtocol;
use crate::ops::{Connection, RequestLine, RequestRecorder, trace};
use crate::outcome::{Outcome, RequestFailure};
use crate::shared::Worker;

/// An application's connection to a Service, as its requests need it.
pub struct Client {
    /// Whose thread it is on.
    pub worker: Rc<Worker>,
    /// The client's pod.
    pub pod: Arc<LocalPod>,
    /// The application's own end.
    pub address: ClientAddr,
    /// What it dialled.
    pub dialled: OrigDst,
    /// The Service.
    pub service: NamespacedName,
    /// Its port.
    pub port: u16,
    /// Whether it speaks HTTP/2.
    pub http2: bool,
    /// What is known of the connection, with no server.
    pub connection: Connection,
    plan: Current<Plan>,
}

impl Client {
    /// One, of which nothing has been looked up.
    #[expect(clippy::too_many_arguments, reason = "one call site; each is a thing of its own")]
    pub fn new(
        worker: Rc<Worker>,
        pod: Arc<LocalPod>,
        address: ClientAddr,
        dialled: OrigDst,
        service: NamespacedName,
        port: u16,
        http2: bool,
        connection: Connection,
    ) -> Rc<Client> {
        Rc::new(Client { worker, pod, address, dialled, service, port, http2, connection, plan: Current::default() })
    }

    fn plan(&self) -> Rc<Plan> {
        let snapshot = self.worker.shared.snapshot.load();
        // What names stand for is no part of the configuration.
        self.plan.get((snapshot.version(), self.worker.shared.names.generation()), || Plan::of(&snapshot, self))
    }

    /// Answers a request that goes nowhere.
    pub fn refuse(&self, incoming: Request<Incoming>, outcome: Outcome) -> Response<ReplyBody> {
        Exchange::new(self, incoming).0.refuse(outcome)
    }

    /// Whether it dialled an IPv4 address.
    pub fn v4(&self) -> bool {
        self.dialled.0.is_ipv4()
    }
}

impl Service for Client {
    async fn answer(self: Rc<Self>, incoming: Request<Incoming>) -> Response<ReplyBody> {
        let (exchange, original) = Exchange::new(&self, incoming);
        exchange.run(&self, original).await
    }
}

/// Changes of the response that the rule asks for, in their order.
#[derive(Default)]
struct ResponseChanges {
    edits: Vec<mesh_model::route::HeaderEdit>,
    cors: HeaderMap,
    cookies: Vec<(HeaderName, HeaderValue)>,
}

/// A request under way.
pub struct Exchange {
    /// Its head.
    pub parts: Parts,
    /// Its record.
    pub record: RequestRecorder,
    hop: trace::Hop,
    seen: Rc<Seen>,
    grpc: bool,
    changes: ResponseChanges,
    upgrade: Option<(HeaderValue, hyper::upgrade::OnUpgrade)>,
    mirrors: Vec<Target>,
}

/// What a rule came to.
enum Routed<'p> {
    /// It goes there.
    Forward { backend: &'p Backend, rule: Option<&'p HttpRule> },
    /// This is the answer.
    Answer(Response<Bytes>),
}

impl Exchange {
    fn new(client: &Client, incoming: Request<Incoming>) -> (Exchange, Incoming) {
        let mut incoming = incoming;
        let upgrade = hyper::upgrade::on(&mut incoming);
        let (parts, body) = incoming.into_parts();
        let grpc = reply::is_grpc(&parts.headers);
        let authority = match parts.uri.authority() {
            Some(authority) => authority.as_str().into(),
            None => parts.headers.get(http::header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default().into(),
        };
        let line = RequestLine {
            method: parts.method.as_str().into(),
            path: parts.uri.path().into(),
            authority,
            protocol: if grpc { RequestProtocol::Grpc } else { RequestProtocol::Http },
            status: 0,
            grpc_status: None,
            route: None,
            attempts: 0,
        };
        let telemetry = &client.worker.shared.telemetry;
        let hop = trace::Hop::of(&parts.headers, telemetry.spans().sampler(), || (rand::random(), rand::random()));
        let mut record = RequestRecorder::new(telemetry, client.connection.clone(), line);
        record.connection.trace_id = Some(hop.trace_id());
        record.span = trace::Open::of(hop, &parts.headers, client.http2);
        let upgrade = filter::upgrade_of(&parts.headers).map(|to| (to, upgrade));
        let seen = Seen::new(grpc);
        (Exchange { parts, record, hop, seen, grpc, changes: ResponseChanges::default(), upgrade, mirrors: Vec::new() }, body)
    }

    async fn run(mut self, client: &Rc<Client>, body: Incoming) -> Response<ReplyBody> {
        let plan = client.plan();
        let routed = match request::settle(&mut self.parts) {
            Ok(()) => {
                request::trim(&mut self.parts.headers);
                self.route(client, &plan).await
            }
            Err(outcome) => Err(outcome),
        };
        match routed {
            Ok(Routed::Answer(answer)) => self.answer(answer, None),
            Ok(Routed::Forward { backend, rule }) => self.forward(client, &plan, backend, rule, body).await,
            Err(outcome) => self.refuse(outcome),
        }
    }

    /// Finds the rule, and does what it says.
    async fn route<'p>(&mut self, client: &Client, plan: &'p Plan) -> Result<Routed<'p>, Outcome> {
        let own = Routed::Forward { backend: &plan.own, rule: None };
        let Some(turns) = &plan.turns else { return Ok(own) };
        let RouteTable::Http { rules, .. } = &*turns.table else { return Ok(own) };
        let found = matches::find_for(rules, &self.parts, &plan.workload);
        let (number, rule) = found.ok_or(Outcome::Request(RequestFailure::NoRoute))?;
        self.record.line.route = turns.origin(number);
        if let Some(answer) = self.filter(&rule.filters, rule, client.port).await? {
            return Ok(Routed::Answer(answer));
        }
        let backend = match self.backend_of_session(client, plan, rule) {
            Some(backend) => backend,
            None => turns.http(number, rule).ok_or_else(|| apply::no_backend(rule))?,
        };
        if let Some(answer) = self.filter(&backend.filters, rule, client.port).await? {
            return Ok(Routed::Answer(answer));
        }
        Ok(Routed::Forward { backend, rule: Some(rule) })
    }

    /// The backend that has the endpoint of the request's session: a session goes before the weights, be its backend's 0 (GEP-1619).
    fn backend_of_session<'r>(&self, client: &Client, plan: &Plan, rule: &'r HttpRule) -> Option<&'r Backend> {
        let (endpoint, _) = session::endpoint(rule.session.as_ref()?, &self.parts.headers, now_unix())?;
        rule.backends.iter().find(|backend| match &backend.target {
            Target::Service { service, port, subset } => plan
                .upstream(client, service, *port, subset.as_ref())
                .is_ok_and(|upstream| upstream.cluster.servers().any(|server| server.address.0 == endpoint)),
            Target::Invalid(_) => false,
        })
    }

    async fn filter(&mut self, filters: &[Filter], rule: &HttpRule, port: u16) -> Result<Option<Response<Bytes>>, Outcome> {
        for one in filters {
            match apply(one, &mut self.parts, rule, port)? {
                Applied::Request => {}
                Applied::Response(edit) => self.changes.edits.push(edit.clone()),
                Applied::Cors(headers) => self.changes.cors = headers,
                Applied::Mirror { target, share } => {
                    if drawn(share) {
                        self.mirrors.push(target.clone());
                    }
                }
                Applied::Delay { time, share } => {
                    if drawn(share) {
                        tokio::time::sleep(time).await;
                    }
                }
                Applied::Abort { error, share } => {
                    if drawn(share) {
                        return Err(Outcome::Request(error));
                    }
                }
                Applied::Answer(answer) => return Ok(Some(answer)),
            }
        }
        Ok(None)
    }

    async fn forward(
        mut self,
        client: &Rc<Client>,
        plan: &Plan,
        backend: &Backend,
        rule: Option<&HttpRule>,
        body: Incoming,
    ) -> Response<ReplyBody> {
        let (service, port, subset) = match &backend.target {
            Target::Service { service, port, subset } => (service, *port, subset.as_ref()),
            Target::Invalid(reason) => {
                let detail = reason.clone();
                return self.refuse(Outcome::Request(RequestFailure::InvalidRoute { detail }));
            }
        };
        let mut upstream = plan.upstream(client, service, port, subset);
        if upstream.as_ref().is_ok_and(|upstream| service.is_entry() && upstream.cluster.is_empty()) {
            // Its names may not have been asked for yet.
            plan.settle(client, service, port).await;
            upstream = client.plan().upstream(client, service, port, subset);
        }
        let upstream = match upstream {
            Ok(upstream) => upstream,
            Err(missing) => return self.refuse(missing.outcome()),
        };
        if let Some(outcome) = upstream.cluster.refusal_of_requests() {
            return self.refuse(outcome);
        }
        // A rule may have taken it out, but not made it another: that is what the client could make nothing of.
        let asked = self.upgrade.as_ref().map(|(to, _)| to);
        let upgrade = request::take_upgrade(&mut self.parts.headers).filter(|to| Some(to) == asked);
        if self.record.connection.labels.service.as_ref().is_none_or(|known| known.name != *service) {
            self.record.connection.labels.service = Some(client.worker.shared.service(service));
        }
        self.hop.write(&mut self.parts.headers);
        // The rule's goes before the Service's own (GEP-1619).
        let of_service = upstream.cluster.backend.as_ref().and_then(|backend| backend.session.as_ref());
        let persistence = rule.and_then(|rule| rule.session.as_ref()).or(of_service);
        let now_unix = now_unix();
        let kept = persistence.and_then(|by| session::endpoint(by, &self.parts.headers, now_unix));
        let hash = attempt::hash(&upstream.cluster, &self.parts, client.address.0.ip(), &mut self.changes.cookies);
        let policy = rule.and_then(|rule| rule.retry.as_ref()).unwrap_or(&DEFAULT);
        let started = self.record.started();
        let grpc_timeout = self.grpc.then(|| request::grpc_timeout(&self.parts.headers)).flatten();
        let keep = upgrade.is_none() && (policy.attempts > 0 || !self.mirrors.is_empty());
        let original = Original::new(body, self.seen.clone(), keep, client.worker.shared.http_body_idle_timeout);
        let at = |timeout: Option<Duration>| timeout.map(|timeout| started + timeout);
        let deadlines = Deadlines { rule: at(rule.and_then(|rule| rule.timeout)), client: at(grpc_timeout) };
        let attempts = Attempts {
            client,
            upstream: &upstream,
            parts: &mut self.parts,
            copied: !self.mirrors.is_empty(),
            original: &original,
            upgrade: upgrade.as_ref(),
            policy,
            deadlines,
            try_timeout: rule.and_then(|rule| rule.try_timeout),
            hash,
            session: kept.map(|(endpoint, _)| endpoint),
            grpc: self.grpc,
        };
        let ended = attempts.run(&mut self.record).await;
        for target in std::mem::take(&mut self.mirrors) {
            mirror::mirror(client, plan, &target, &self.parts, &original);
        }
        let done = match ended {
            Ok(done) => done,
            Err(outcome) => {
                original.supersede();
                return self.refuse(outcome);
            }
        };
        if let Some(by) = persistence {
            self.keep_session(by, done.server, kept, now_unix);
        }
        if let Some(outcome) = done.presumed.clone() {
            self.record.presume(outcome);
        }
        self.respond(client, done)
    }

    fn keep_session(&mut self, by: &Persistence, server: SocketAddr, kept: Option<(SocketAddr, Option<u64>)>, now: u64) {
        let until = kept.filter(|(endpoint, _)| *endpoint == server);
        if until.is_none() || matches!(by.by, mesh_model::route::SessionBy::Header(_)) {
            self.changes.cookies.extend(session::header(by, server, until.and_then(|(_, until)| until), now));
        }
    }

    fn respond(mut self, client: &Rc<Client>, done: attempt::Done) -> Response<ReplyBody> {
        let attempt::Done { mut response, lease, deadline, standing, on_end, .. } = done;
        let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        let theirs = switched.then(|| hyper::upgrade::on(&mut response));
        let (mut parts, body) = response.into_parts();
        let protocol = parts.headers.get(http::header::UPGRADE).cloned();
        filter::strip_hop(&mut parts.headers);
        // After what the server's own `Connection` names.
        if let Some(standing) = &standing {
            reply::rate_limit(&mut parts.headers, standing);
        }
        self.record.line.status = parts.status.as_u16();
        self.record.line.grpc_status = grpc_status(&parts.headers).filter(|_| self.grpc);
        self.change(&mut parts.headers);
        parts.version = Version::HTTP_11;
        let ongoing = Ongoing { record: self.record, seen: self.seen, lease: Some(lease), on_end: Some(on_end) };
        if let (Some(theirs), Some((_, ours))) = (theirs, self.upgrade) {
            parts.headers.insert(http::header::CONNECTION, HeaderValue::from_static("upgrade"));
            if let Some(protocol) = protocol {
                parts.headers.insert(http::header::UPGRADE, protocol);
            }
            let drain = client.worker.drain_watch();
            client.worker.connections.spawn_local(super::upgrade::join(ours, theirs, ongoing, drain, std::future::pending()));
            return Response::from_parts(parts, ReplyBody::unrecorded(Bytes::new()));
        }
        let deadline = deadline.map(|at| Deadline { at: at.into(), trailers: client.http2 });
        Response::from_parts(parts, ReplyBody::incoming(body, ongoing, self.grpc, deadline))
    }

    fn change(&mut self, headers: &mut HeaderMap) {
        for edit in &self.changes.edits {
            filter::edit(headers, edit);
        }
        for (name, value) in &self.changes.cors {
            if name == http::header::VARY {
                headers.append(name.clone(), value.clone())
            } else {
                headers.insert(name, value.clone()).is_some()
            };
        }
        for (name, value) in std::mem::take(&mut self.changes.cookies) {
            headers.append(name, value);
        }
    }

    /// Answers without a server.
    fn answer(mut self, mut answer: Response<Bytes>, outcome: Option<Outcome>) -> Response<ReplyBody> {
        self.change(answer.headers_mut());
        self.record.line.status = answer.status().as_u16();
        self.record.line.grpc_status = grpc_status(answer.headers()).filter(|_| self.grpc);
        self.record.presume(outcome.unwrap_or(Outcome::Completed));
        let (parts, bytes) = answer.into_parts();
        let whole = if self.parts.method == Method::HEAD { Bytes::new() } else { bytes };
        let ongoing = Ongoing { record: self.record, seen: self.seen, lease: None, on_end: None };
        Response::from_parts(parts, ReplyBody::whole(whole, ongoing))
    }

    fn refuse(self, outcome: Outcome) -> Response<ReplyBody> {
        let answer = match &outcome {
            Outcome::Request(RequestFailure::FaultInjected { status, grpc, .. }) if self.grpc || grpc.is_some() => {
                reply::of_grpc(grpc.unwrap_or_else(|| crate::outcome::request::grpc_of(*status)), "fault filter abort")
            }
            other => reply::of_outcome(other, self.grpc),
        };
        self.answer(answer, Some(outcome))
    }
}

/// Seconds since 1970, in which sessions have their ends.
fn now_unix() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Draws `share.0` of `share.1`.
fn drawn((numerator, denominator): (u32, u32)) -> bool {
    denominator > 0 && rand::random_range(0..denominator) < numerator
}

/// How long until `at`; nothing if it has passed.
pub(super) fn left(at: Instant) -> Duration {
    at.saturating_duration_since(Instant::now())
}
