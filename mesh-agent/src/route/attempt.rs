//! Sending a request until there is an answer to pass on: endpoint, connection, attempt, and again while the rule allows.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{HeaderName, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response};
use hyper::body::Incoming;
use mesh_model::route::RetryPolicy;
use mesh_model::traffic::HashKey;
use mesh_model::workload::Workload;

use super::body::{Original, grpc_status};
use super::counters::RetryBound;
use super::detect::Declared;
use super::exchange::{Client, left};
use super::plan::Upstream;
use super::retry::{Failure, Next, RetryState, is_retriable};
use super::stage::{Deadlines, Stage, too_late};
use super::{request, session, upgrade};
use crate::ops::{PeerInfo, RequestRecorder, Security};
use crate::outcome::{Outcome, RequestFailure};
use crate::policy::limits::{Refused, Standing};
use crate::shared::Worker;
use crate::upstream::balance::hash as table;
use crate::upstream::bounds::Pending;
use crate::upstream::circuit::Guard;
use crate::upstream::cluster::{Chosen, Cluster, Wish};
use crate::upstream::health::{Event, Observation};
use crate::upstream::http::{ConnectionKey, Dial, IDLE, Lease, OnBehalf, Ready, STREAMS, SendFailure, Server, Terms, Unready};
use crate::upstream::originate::Offer;

/// Connections of the pool that may turn out to be closed before a new one is opened.
const STALE: u32 = 3;

/// What the attempts of one request have in common.
pub struct Attempts<'a> {
    /// Whose request it is.
    pub client: &'a Rc<Client>,
    /// Where it goes.
    pub upstream: &'a Upstream,
    /// Its head. The last attempt that there can be takes the headers out of it.
    pub parts: &'a mut Parts,
    /// Whether the head is needed after the last attempt, for a copy.
    pub copied: bool,
    /// Its body.
    pub original: &'a Original,
    /// What it asks to switch to.
    pub upgrade: Option<&'a HeaderValue>,
    /// When to try again.
    pub policy: &'a RetryPolicy,
    /// When it must have been answered in full.
    pub deadlines: Deadlines,
    /// How long one attempt may take.
    pub try_timeout: Option<Duration>,
    /// For the balancer.
    pub hash: Option<u64>,
    /// For the balancer.
    pub session: Option<SocketAddr>,
    /// Whether it is gRPC.
    pub grpc: bool,
}

/// An answer to pass on.
pub struct Done {
    /// Its head and body.
    pub response: Response<Incoming>,
    /// The connection it comes from.
    pub lease: Lease,
    /// When its last byte must have come.
    pub deadline: Option<Instant>,
    /// Who gave it.
    pub server: SocketAddr,
    /// How the tightest limit of what the host is sent stands.
    pub standing: Option<Standing>,
    /// How the request will have ended, if that is worth a remark.
    pub presumed: Option<Outcome>,
    /// To be called at its end.
    pub on_end: Box<dyn FnOnce(bool)>,
}

/// Why an attempt brought no answer.
pub(super) struct Failed {
    outcome: Outcome,
    failure: Option<Failure>,
    observation: Option<Observation>,
    /// It used a connection that had been closed meanwhile, and may be made again as if it had not been.
    stale: bool,
}

impl Failed {
    /// Another attempt would come to the same, and the endpoint is not to blame.
    fn at_once(outcome: Outcome) -> Failed {
        Failed { outcome, failure: None, observation: None, stale: false }
    }

    /// There was no connection to be had. Another server may have one.
    fn to_connect(outcome: Outcome, observation: Option<Observation>) -> Failed {
        match outcome.is_denial() {
            true => Failed::at_once(outcome),
            false => Failed { outcome, failure: Some(Failure::Connect), observation, stale: false },
        }
    }
}

impl From<Unready> for Failed {
    fn from(why: Unready) -> Failed {
        match why {
            Unready::Overflow => Failed::at_once(overflow("http1MaxPendingRequests")),
            // Who dialled tells of it: the endpoint failed once, however many waited.
            Unready::Failed(outcome) => Failed::to_connect(outcome, None),
        }
    }
}

impl Attempts<'_> {
    /// Makes them.
    pub async fn run(mut self, record: &mut RequestRecorder) -> Result<Done, Outcome> {
        let worker = &self.client.worker;
        let Upstream { cluster, bounds, .. } = self.upstream;
        let place = bounds.circuit.try_request().map_err(|_| overflow("http2MaxRequests"))?;
        let mut standing = self.count(Instant::now())?;
        let mut retries = RetryState::new(self.policy, self.deadlines.first());
        if let Some(budget) = &cluster.budget {
            budget.request(Instant::now());
        }
        let mut tried: Vec<usize> = Vec::new();
        let mut stale = 0;
        let mut retrying: Option<Guard> = None;
        loop {
            let wish = Wish { hash: self.hash, dialled: Some(self.client.dialled.0), session: self.session, tried: &tried };
            let Some(chosen) = cluster.choose(Instant::now(), wish) else { return Err(Outcome::NoEndpoint) };
            record.line.attempts += 1;
            record.connection.server = Some(chosen.server.address.0);
            self.name(record, chosen.server.workload.as_ref());
            let began = Instant::now();
            let deadlines = self.deadlines.of_attempt(began, self.try_timeout);
            let again = retries.retries() < self.policy.attempts;
            let tls = &mut record.connection.upstream_tls;
            let result = self.attempt(&chosen, deadlines, again, stale < STALE, tls).await;
            let now = Instant::now();
            let at = match result {
                Ok((response, lease, sent)) => {
                    // Without the time for a connection, which says nothing of the server's load.
                    chosen.answered(now, now.duration_since(sent));
                    let status = response.status().as_u16();
                    observe(
                        worker,
                        &chosen,
                        now,
                        match status {
                            ..500 => Observation::Success,
                            _ => Observation::Status(status),
                        },
                    );
                    let grpc = self.grpc.then(|| grpc_status(response.headers())).flatten();
                    let next = self.next(&mut retries, now, Failure::Status { status, grpc });
                    match self.bounded(next, now, &mut retrying, &mut standing) {
                        // The rule takes it for a failure and there is another attempt.
                        Ok(Some(at)) => at,
                        // What a budget does not let is an answer of its own (GEP-3388).
                        Err(RetryBound::Budget) => return Err(Outcome::Request(RequestFailure::RetryBudget)),
                        // As in Envoy the answer is passed on if there may be no other.
                        refused => {
                            let failed = record.line.attempts > 1 && is_retriable(&self.policy.on, Failure::Status { status, grpc });
                            let presumed = match refused {
                                Err(_) => Some(RequestFailure::RetryOverflow { status }),
                                Ok(_) => failed.then_some(RequestFailure::RetriesUsedUp { status }),
                            };
                            let presumed = presumed.map(Outcome::Request);
                            let server = chosen.server.address.0;
                            self.original.answered();
                            let original = self.original.clone();
                            let on_end = Box::new(move |whole: bool| {
                                drop((chosen, place, retrying));
                                if !whole {
                                    // A server whose answer is given up gets no more of the request either.
                                    original.supersede();
                                }
                            });
                            return Ok(Done { response, lease, deadline: deadlines.first(), server, standing, presumed, on_end });
                        }
                    }
                }
                Err(failed) => {
                    if let Some(observation) = failed.observation {
                        observe(worker, &chosen, now, observation);
                    }
                    if failed.stale {
                        self.original.supersede();
                        stale += 1;
                        record.line.attempts -= 1;
                        continue;
                    }
                    if self.deadlines.first().is_some_and(|deadline| now >= deadline) {
                        return Err(too_late(failed.outcome));
                    }
                    let next = failed.failure.map_or(Next::GiveUp, |failure| self.next(&mut retries, now, failure));
                    match self.bounded(next, now, &mut retrying, &mut standing) {
                        Ok(Some(at)) => at,
                        Err(RetryBound::Budget) => return Err(Outcome::Request(RequestFailure::RetryBudget)),
                        Ok(None) | Err(RetryBound::MaxRetries | RetryBound::RateLimit) => return Err(failed.outcome),
                    }
                }
            };
            // Before anything is waited for: the server may go on reading, and what it reads would be lost to the next.
            self.original.supersede();
            tried.push(chosen.index());
            drop(chosen);
            worker.shared.requests.retried();
            tokio::time::sleep(left(at)).await;
        }
    }

    /// When to try again, if so and if the bounds on retries let it: which of them does not. `standing` is then as it stands after that one.
    fn bounded(
        &self,
        next: Next,
        now: Instant,
        retrying: &mut Option<Guard>,
        standing: &mut Option<Standing>,
    ) -> Result<Option<Instant>, RetryBound> {
        let Next::Retry { at } = next else { return Ok(None) };
        let Upstream { cluster, bounds, .. } = self.upstream;
        // One that is under way already counts no more.
        drop(retrying.take());
        let guard = bounds.circuit.try_retry().map_err(|_| RetryBound::MaxRetries);
        let within = |_: &Guard| cluster.budget.as_ref().is_none_or(|budget| budget.try_retry(now));
        let guard = guard.and_then(|guard| Some(guard).filter(within).ok_or(RetryBound::Budget));
        match guard.and_then(|guard| self.count(now).map(|counted| (guard, counted)).map_err(|_| RetryBound::RateLimit)) {
            Ok((guard, counted)) => (*retrying, *standing) = (Some(guard), counted),
            Err(bound) => {
                self.client.worker.shared.requests.retry_refused(bound);
                return Err(bound);
            }
        }
        Ok(Some(at))
    }

    /// Takes an attempt of what may go to the host, if that is one of a ServiceEntry.
    fn count(&self, now: Instant) -> Result<Option<Standing>, Refused> {
        count(self.client, &self.upstream.cluster, now, self.parts)
    }

    fn next(&self, retries: &mut RetryState<'_>, now: Instant, failure: Failure) -> Next {
        if !self.original.can_repeat() || self.upgrade.is_some() {
            return Next::GiveUp;
        }
        retries.after(now, failure, rand::random())
    }

    fn name(&self, record: &mut RequestRecorder, workload: Option<&Arc<Workload>>) {
        let labels = &mut record.connection.labels;
        let meshed = workload.filter(|workload| workload.enrolled);
        labels.security = if meshed.is_some() { Security::MutualTls } else { Security::None };
        labels.destination = PeerInfo { workload: workload.cloned(), identity: meshed.map(|workload| workload.identity.clone()) };
    }

    /// One attempt. `again`: whether its failure may be followed by another; `may_be_stale`: whether a connection that turns out to be
    /// closed may.
    async fn attempt(
        &mut self,
        chosen: &Chosen,
        deadlines: Deadlines,
        again: bool,
        may_be_stale: bool,
        tls_name: &mut Option<Arc<str>>,
    ) -> Result<(Response<Incoming>, Lease, Instant), Failed> {
        // Of the request, whatever an attempt may take.
        if self.deadlines.first().is_some_and(|deadline| left(deadline).is_zero()) {
            return Err(Failed::at_once(Outcome::Request(RequestFailure::TimedOut)));
        }
        let http2 = self.upstream.cluster.http2(self.client.http2) && self.upgrade.is_none();
        let (original, stage) = (self.original, Cell::default());
        let work = async {
            let mut lease = lease(self.client, self.upstream, &chosen.server, http2, &self.parts.headers, tls_name, &stage).await?;
            let reused = lease.reused;
            let needed = self.copied || (again && self.upgrade.is_none()) || (reused && may_be_stale);
            let mut head = self.head(needed);
            request::address(&mut head, lease.http2(), tls_name.is_some(), self.upgrade).map_err(Failed::at_once)?;
            let began = Instant::now();
            stage.set(Stage::Sent);
            match lease.send(Request::from_parts(head, self.original.attempt())).await {
                Ok(response) if upgrade::is_unasked(&response, self.upgrade) => Err(Failed::at_once(RequestFailure::unasked_switch())),
                Ok(response) => Ok((response, lease, began)),
                Err(failure) => Err(self.failed(failure, reused && may_be_stale)),
            }
        };
        match deadlines.first() {
            None => work.await,
            Some(deadline) => tokio::time::timeout(left(deadline), work).await.unwrap_or_else(|_| {
                Err(Failed {
                    outcome: stage.get().timed_out(),
                    failure: Some(Failure::TryTimeout),
                    observation: deadlines.passed(stage.get(), original.has_ended()),
                    stale: false,
                })
            }),
        }
    }

    /// The head for an attempt; without a copy of its headers if nothing can need them again. Extensions stay behind: they belong to the
    /// client's own connection.
    fn head(&mut self, needed: bool) -> Parts {
        let (mut head, ()) = Request::new(()).into_parts();
        head.method = self.parts.method.clone();
        head.uri = self.parts.uri.clone();
        head.headers = if needed { self.parts.headers.clone() } else { std::mem::take(&mut self.parts.headers) };
        head
    }

    fn failed(&self, failure: SendFailure, reused: bool) -> Failed {
        let SendFailure { unsent, outcome, refused, leaving, closed } = failure;
        // Its client broke the request off: no other server would see more of it, and this one is not to blame.
        if let Some(outcome) = self.original.fault() {
            self.client.worker.shared.requests.body_broke(&outcome);
            return Failed::at_once(outcome);
        }
        if outcome.is_denial() {
            return Failed::at_once(outcome);
        }
        // What is idempotent may be sent again over another connection if this one turns out to be closed (RFC 9110, 9.2.2). An answer, be it
        // that there is none, is not that.
        let idempotent = closed
            && matches!(self.parts.method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE)
            && !self.original.has_begun();
        if reused && self.original.can_repeat() && (unsent.is_some() || leaving || idempotent) {
            return Failed { outcome, failure: None, observation: None, stale: true };
        }
        let failure = if refused {
            Failure::Refused
        } else if unsent.is_some() || never_arrived(&outcome) {
            Failure::Connect
        } else {
            Failure::Reset { sent_any: true }
        };
        let observation = Some(Observation::LocalFailure);
        Failed { outcome, failure: Some(failure), observation, stale: false }
    }
}

/// Takes a request of what a client's pod may send to a host of a ServiceEntry.
pub(super) fn count(client: &Client, cluster: &Cluster, now: Instant, parts: &Parts) -> Result<Option<Standing>, Refused> {
    let host = &cluster.name.service;
    if !host.is_entry() {
        return Ok(None);
    }
    client.pod.towards.load().request(now, &client.pod.workload, host, parts)
}

/// A connection to the endpoint: one of the pool, or a new one if there may be one more, or the first that becomes free. `tls_name` is told the
/// server's name if TLS is begun here, `stage` that a connection is dialled.
pub(super) async fn lease(
    client: &Rc<Client>,
    upstream: &Upstream,
    server: &Server,
    http2: bool,
    headers: &HeaderMap,
    tls_name: &mut Option<Arc<str>>,
    stage: &Cell<Stage>,
) -> Result<Lease, Failed> {
    let (worker, pod, Upstream { cluster, bounds, .. }) = (&client.worker, &client.pod, upstream);
    let pool = &cluster.policy.pool;
    let host = worker.shared.service(&cluster.name.service).host;
    let originator = cluster.originator(&pod.workload.namespace, &worker.shared.credentials);
    let mut tls = match &originator {
        Some(originator) => {
            let now = Instant::now();
            let authority = headers.get(http::header::HOST).and_then(|host| host.to_str().ok());
            let secured = originator.secure(now, authority, &host).await.map_err(Failed::at_once)?;
            *tls_name = Some(secured.name().clone());
            Some((secured, originator.offer(now, http2, cluster.declared == Declared::Http2)))
        }
        None => None,
    };
    // Where HTTP/2 would be no use to offer, HTTP/1.1 is spoken.
    let mut http2 = http2 && tls.as_ref().is_none_or(|(_, offer)| *offer != Offer::Http1);
    let mut key = ConnectionKey {
        client: pod.workload.uid.clone(),
        server: server.address.0,
        workload: server.workload.as_ref().map(|workload| workload.uid.clone()),
        tunnel: server.tunnel_from(&pod.workload),
        http2,
        service: Some(cluster.name.service.clone()),
        tls: tls.as_ref().map(|(secured, _)| secured.key()),
    };
    let terms = Terms {
        idle: pool.http_idle_timeout.unwrap_or(IDLE),
        max_requests: pool.max_requests_per_connection,
        max_age: pool.max_connection_duration,
        max_streams: pool.max_concurrent_streams.or(Some(STREAMS)),
    };
    let mut pending = Pending::under(bounds);
    let opening = match worker.http.ready(&key, terms, &mut pending).await? {
        Ready::Taken(lease) => return Ok(lease),
        Ready::Open(opening) => opening,
        Ready::OpenHttp1 => {
            (http2, key.http2) = (false, false);
            if let Some((_, offer)) = &mut tls {
                *offer = Offer::Http1;
            }
            None
        }
    };
    // A bounded number of connections is shared by all workers; one for HTTP/2 each of them may always have.
    let spare = || http2 && !worker.http.shares(&key);
    let place = match bounds.place(&mut pending, spare, || worker.http.take(&key, terms)).await.map_err(Unready::from)? {
        Ok(lease) => return Ok(lease),
        Err(place) => place,
    };
    drop(pending);
    let traceparent = headers.get("traceparent").and_then(|value| value.to_str().ok()).map(Arc::from);
    let dial = Dial {
        worker,
        pod,
        key,
        server,
        behalf: OnBehalf { client: client.address, host: Some(host), traceparent },
        terms,
        limit: pool.connect_timeout.unwrap_or(worker.shared.connect_timeout),
        keepalive: pool.keepalive.as_ref(),
        tls,
        place,
        bounds: terms.max_streams.map(|_| bounds.clone()),
    };
    stage.set(Stage::Dialling);
    let opened = worker.http.open(dial).await;
    // Before others are told that it is over: what they open is to be what the server speaks.
    if let Some(originator) = originator.filter(|_| http2 && opened.as_ref().is_ok_and(|lease| !lease.http2())) {
        originator.chose_http1(Instant::now());
    }
    if let Some(opening) = opening {
        opening.done(opened.as_ref());
    }
    opened.map_err(|outcome| Failed::to_connect(outcome, Some(Observation::LocalFailure)))
}

/// Whether the server can have seen nothing of it, whatever was written.
fn never_arrived(outcome: &Outcome) -> bool {
    matches!(
        outcome,
        Outcome::ConnectFailed { .. }
            | Outcome::TunnelDialFailed { .. }
            | Outcome::TunnelHandshakeFailed { .. }
            | Outcome::TunnelRefused { .. }
            | Outcome::NoCertificate { .. }
            | Outcome::AddressFamily
            | Outcome::Upstream(_)
    )
}

fn overflow(bound: &'static str) -> Outcome {
    Outcome::Request(RequestFailure::Overflow { bound })
}

/// Tells the cluster, and log and metrics if that has a consequence.
pub fn observe(worker: &Worker, chosen: &Chosen, now: Instant, observation: Observation) {
    match chosen.observe(now, observation) {
        Some(Event::Ejected { key, reason, until, times }) => {
            worker.shared.requests.ejected(reason);
            let seconds = until.saturating_duration_since(now).as_secs();
            tracing::warn!(
                service = %chosen.service(), endpoint = %key, reason = reason.as_str(), seconds, times,
                "an endpoint is left out for a while because of how it answers"
            );
        }
        // Those are told when they are looked for.
        Some(Event::Returned { .. }) | None => {}
    }
}

/// The hash that the cluster's policy asks for; a cookie that it makes for a client without one is added to `cookies`.
pub fn hash(cluster: &Cluster, parts: &Parts, client: IpAddr, cookies: &mut Vec<(HeaderName, HeaderValue)>) -> Option<u64> {
    match cluster.hashes()? {
        HashKey::Header(name) => parts.headers.get(&**name).map(|value| table::hash(value.as_bytes())),
        HashKey::SourceIp => Some(table::hash_ip(client)),
        HashKey::Query(name) => {
            let query = parts.uri.query().unwrap_or_default();
            form_urlencoded::parse(query.as_bytes()).find(|(key, _)| *key == **name).map(|(_, value)| table::hash(value.as_bytes()))
        }
        HashKey::Cookie { name, path, ttl } => match session::cookie(&parts.headers, name) {
            Some(value) => Some(table::hash(value.as_bytes())),
            None => {
                let ttl = (*ttl)?;
                let value = format!("{:032x}", rand::random::<u128>());
                let age = (!ttl.is_zero()).then_some(ttl);
                cookies.push((http::header::SET_COOKIE, session::set_cookie(name, &value, path, age)?));
                Some(table::hash(value.as_bytes()))
            }
        },
    }
}

#[cfg(test)]
mod tests;
