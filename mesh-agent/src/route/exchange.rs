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
use mesh_model::snapshot::Snapshot;
use mesh_model::workload::Workload;

use super::apply::{self, Applied, apply};
use super::attempt::{self, Attempts};
use super::body::{Ongoing, Original, ReplyBody, Seen, grpc_status};
use super::matches;
use super::retry::default_policy;
use super::serve::{Current, Service};
use super::tables::Turns;
use super::{filter, reply, request, session};
use crate::agent::pods::LocalPod;
use crate::conn::{ClientAddr, OrigDst};
use crate::ops::metrics::requests::RequestProtocol;
use crate::ops::{Connection, RequestLine, RequestRecorder};
use crate::outcome::{Outcome, RequestFailure};
use crate::shared::Worker;
use crate::upstream::cluster::{Cluster, ClusterName, Missing};
use crate::upstream::members;

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

/// What the configuration has for the client.
pub struct Plan {
    snapshot: Arc<Snapshot>,
    workload: Arc<Workload>,
    turns: Option<Arc<Turns>>,
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

    fn plan(&self) -> Arc<Plan> {
        let snapshot = self.worker.shared.snapshot.load();
        self.plan.get(snapshot.version(), || {
            let workload = self.pod.current(&snapshot);
            let turns = self.worker.shared.tables.get(&snapshot, &self.service, self.port, &workload.namespace);
            Plan { snapshot: snapshot.clone(), workload, turns }
        })
    }

    /// Where requests to a Service's port, or a subset, go.
    pub(super) fn cluster(
        &self,
        plan: &Plan,
        service: &NamespacedName,
        port: u16,
        subset: Option<&Arc<str>>,
    ) -> Result<Arc<Cluster>, Missing> {
        // Of a Service with both families the client's is preferred, since its pod has an address of that for certain.
        let v4 = self.dialled.0.is_ipv4();
        let name = ClusterName { service: service.clone(), port, subset: subset.cloned(), v4 };
        let cluster = self.worker.shared.clusters.get(&plan.snapshot, &plan.workload, &name)?;
        match members::other_family(&self.pod.workload, v4).filter(|_| cluster.is_empty()) {
            Some(v4) => self.worker.shared.clusters.get(&plan.snapshot, &plan.workload, &ClusterName { v4, ..name }),
            None => Ok(cluster),
        }
    }
}

impl Client {
    /// Answers a request that goes nowhere.
    pub fn refuse(&self, incoming: Request<Incoming>, outcome: Outcome) -> Response<ReplyBody> {
        Exchange::new(self, incoming).0.refuse(outcome)
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
    seen: Rc<Seen>,
    grpc: bool,
    changes: ResponseChanges,
    upgrade: Option<(HeaderValue, hyper::upgrade::OnUpgrade)>,
    mirrors: Vec<Target>,
}

/// What a rule came to.
enum Routed {
    /// It goes there.
    Forward { backend: Backend, rule: Option<Arc<HttpRule>> },
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
        let record = RequestRecorder::new(&client.worker.shared.telemetry, client.connection.clone(), line);
        let upgrade = filter::upgrade_of(&parts.headers).map(|to| (to, upgrade));
        let seen = Seen::new(grpc);
        (Exchange { parts, record, seen, grpc, changes: ResponseChanges::default(), upgrade, mirrors: Vec::new() }, body)
    }

    async fn run(mut self, client: &Rc<Client>, body: Incoming) -> Response<ReplyBody> {
        let plan = client.plan();
        let routed = match request::settle(&mut self.parts) {
            Ok(()) => self.route(client, &plan).await,
            Err(outcome) => Err(outcome),
        };
        match routed {
            Ok(Routed::Answer(answer)) => self.answer(answer, None),
            Ok(Routed::Forward { backend, rule }) => self.forward(client, &plan, backend, rule, body).await,
            Err(outcome) => self.refuse(outcome),
        }
    }

    /// Finds the rule, and does what it says.
    async fn route(&mut self, client: &Client, plan: &Plan) -> Result<Routed, Outcome> {
        let own = || Backend {
            target: Target::Service { service: client.service.clone(), port: client.port, subset: None },
            weight: 1,
            filters: Vec::new(),
        };
        let Some(turns) = &plan.turns else { return Ok(Routed::Forward { backend: own(), rule: None }) };
        let RouteTable::Http { rules, .. } = &*turns.table else { return Ok(Routed::Forward { backend: own(), rule: None }) };
        let found = matches::find_for(rules, &self.parts, &plan.workload);
        let (number, rule) = found.ok_or(Outcome::Request(RequestFailure::NoRoute))?;
        self.record.line.route = Some(rule.origin.to_string().into());
        if let Some(answer) = self.filter(&rule.filters, rule, client.port).await? {
            return Ok(Routed::Answer(answer));
        }
        let backend = turns.http(number, rule).ok_or_else(|| apply::no_backend(rule))?.clone();
        if let Some(answer) = self.filter(&backend.filters, rule, client.port).await? {
            return Ok(Routed::Answer(answer));
        }
        Ok(Routed::Forward { backend, rule: Some(rule.clone()) })
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
        backend: Backend,
        rule: Option<Arc<HttpRule>>,
        body: Incoming,
    ) -> Response<ReplyBody> {
        let (service, port, subset) = match &backend.target {
            Target::Service { service, port, subset } => (service, *port, subset.as_ref()),
            Target::Invalid(reason) => {
                let detail = reason.clone();
                return self.refuse(Outcome::Request(RequestFailure::InvalidRoute { detail }));
            }
        };
        let cluster = match client.cluster(plan, service, port, subset) {
            Ok(cluster) => cluster,
            Err(missing) => return self.refuse(missing.outcome()),
        };
        if let Some(outcome) = cluster.refusal() {
            return self.refuse(outcome);
        }
        let upgrade = request::strip(&mut self.parts.headers);
        if self.record.connection.labels.service.as_ref().is_none_or(|known| known.name != *service) {
            self.record.connection.labels.service = Some(client.worker.shared.service(service));
        }
        continue_trace(&mut self.parts.headers, &mut self.record);
        let persistence = rule.as_ref().and_then(|rule| rule.session.as_ref());
        let now_unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let kept = persistence.and_then(|by| session::endpoint(by, &self.parts.headers, now_unix));
        let hash = attempt::hash(&cluster, &self.parts, client.address.0.ip(), &mut self.changes.cookies);
        let policy = rule.as_ref().and_then(|rule| rule.retry.clone()).unwrap_or_else(default_policy);
        let started = self.record.started();
        let grpc_timeout = self.grpc.then(|| request::grpc_timeout(&self.parts.headers)).flatten();
        let timeout = rule.as_ref().and_then(|rule| rule.timeout).into_iter().chain(grpc_timeout).min();
        let keep = upgrade.is_none() && (policy.attempts > 0 || !self.mirrors.is_empty());
        let original = Original::new(body, self.seen.clone(), keep);
        let deadline = timeout.map(|timeout| started + timeout);
        let attempts = Attempts {
            client,
            cluster: &cluster,
            parts: &self.parts,
            original: &original,
            upgrade: upgrade.as_ref(),
            policy: &policy,
            deadline,
            try_timeout: rule.as_ref().and_then(|rule| rule.try_timeout),
            hash,
            session: kept.map(|(endpoint, _)| endpoint),
            grpc: self.grpc,
        };
        let ended = attempts.run(&mut self.record).await;
        for target in std::mem::take(&mut self.mirrors) {
            attempt::mirror(client, plan, &target, &self.parts, &original);
        }
        let done = match ended {
            Ok(done) => done,
            Err(outcome) => return self.refuse(outcome),
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
        let attempt::Done { response, lease, deadline, on_end, .. } = done;
        let mut response = response;
        let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        let theirs = switched.then(|| hyper::upgrade::on(&mut response));
        let (mut parts, body) = response.into_parts();
        let protocol = parts.headers.get(http::header::UPGRADE).cloned();
        filter::strip_hop(&mut parts.headers);
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
            let ending = client.worker.drain_watch();
            client.worker.connections.spawn_local(super::upgrade::join(ours, theirs, ongoing, ending));
            return Response::from_parts(parts, ReplyBody::unrecorded(Bytes::new()));
        }
        Response::from_parts(parts, ReplyBody::incoming(body, ongoing, self.grpc, deadline.map(Into::into)))
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

/// Continues the client's trace, or begins one (W3C Trace Context).
fn continue_trace(headers: &mut HeaderMap, record: &mut RequestRecorder) {
    const NAME: HeaderName = HeaderName::from_static("traceparent");
    if let Some(id) = headers.get(NAME).and_then(|value| value.to_str().ok()).and_then(crate::ops::trace::trace_id) {
        record.connection.trace_id = Some(id);
        return;
    }
    let (id, parent) = crate::ops::trace::new(rand::random(), rand::random());
    if let Ok(value) = HeaderValue::from_str(&parent) {
        headers.insert(NAME, value);
    }
    record.connection.trace_id = Some(id);
}

/// Draws `share.0` of `share.1`.
fn drawn((numerator, denominator): (u32, u32)) -> bool {
    denominator > 0 && rand::random_range(0..denominator) < numerator
}

/// How long until `at`; nothing if it has passed.
pub(super) fn left(at: Instant) -> Duration {
    at.saturating_duration_since(Instant::now())
}
