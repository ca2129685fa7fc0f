//! HTTP connections to servers, kept for the next request. Each worker has its own; each belongs to one client pod, from whose address it
//! was opened.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::conn::ClientAddr;
use crate::outcome::{Outcome, RequestFailure};
use crate::route::body::RequestBody;
use crate::shared::Worker;
use crate::upstream::bounds::{Bounds, Pending, Place};
use crate::upstream::cluster::Clusters;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::{Request, Response};
use mesh_model::workload::WorkloadUid;

mod handshake;
mod key;
mod open;
mod yields;

use handshake::{handshake, told};
pub use key::{ConnectionKey, Server};
pub use open::Dial;
use yields::Yields;

pub mod opening;

use opening::{Openings, Turn};
pub use opening::{Ready, Unready};

/// How long an unused connection is kept where no DestinationRule says otherwise: less than servers usually do.
pub const IDLE: Duration = Duration::from_secs(55);
/// Requests at once on an HTTP/2 connection where no DestinationRule says otherwise: what servers are asked to allow at least (RFC 9113,
/// 6.5.2). More would wait inside of the library for their turn, and be lost there if the server closes the connection meanwhile.
pub const STREAMS: u32 = 100;
/// Unused connections that are kept for one server.
const MAX_IDLE: usize = 256;
const SWEEP: Duration = Duration::from_secs(5);

/// Spawns the tasks of HTTP/2 on the worker's own thread.
#[derive(Clone, Copy, Debug)]
pub struct Local;

impl<F: Future + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move {
            future.await;
        });
    }
}

/// For whom a connection is opened, as its peer is told.
#[derive(Clone, Debug)]
pub struct OnBehalf {
    /// The client application's own end.
    pub client: ClientAddr,
    /// The Service's host name.
    pub host: Option<Arc<str>>,
    /// W3C Trace Context.
    pub traceparent: Option<Arc<str>>,
}

enum Sender {
    Http1(http1::SendRequest<RequestBody>),
    Http2(http2::SendRequest<RequestBody>, Allowed),
}

/// How many requests at once the server of an HTTP/2 connection allows on it (`SETTINGS_MAX_CONCURRENT_STREAMS`), as far as it has said so.
type Allowed = Rc<Cell<usize>>;

/// How the connection under a sender ended, once it has.
type Fate = Rc<RefCell<Option<Outcome>>>;

/// Whether the tunnel below a connection is still good for another request.
type Holds = Rc<dyn Fn() -> bool>;

struct Connection {
    sender: Sender,
    fate: Fate,
    /// `None` without a tunnel.
    holds: Option<Holds>,
    served: u32,
    opened: Instant,
    /// Gives its place among the open ones back.
    place: Option<Rc<Place>>,
    /// Counts the request among those at once on an HTTP/2 connection.
    _stream: Option<Stream>,
}

struct Idle {
    connection: Connection,
    until: Instant,
}

/// What one worker keeps.
#[derive(Default)]
pub struct HttpPools {
    idle: RefCell<HashMap<ConnectionKey, Vec<Idle>>>,
    shared: RefCell<HashMap<ConnectionKey, Vec<Shared>>>,
    openings: Rc<Openings>,
    yields: Yields,
    closed: Cell<bool>,
}

/// An HTTP/2 connection that many requests use at once.
struct Shared {
    sender: http2::SendRequest<RequestBody>,
    allowed: Allowed,
    fate: Fate,
    holds: Option<Holds>,
    served: u32,
    opened: Instant,
    used: Instant,
    idle: Duration,
    place: Option<Rc<Place>>,
    streams: Rc<Streams>,
}

/// Requests at once on a connection.
struct Streams {
    open: Cell<u32>,
    /// To tell those who wait for one to end.
    bounds: Option<Arc<Bounds>>,
}

/// One of them.
struct Stream(Rc<Streams>);

impl Stream {
    fn open(streams: &Rc<Streams>) -> Stream {
        streams.open.set(streams.open.get() + 1);
        Stream(streams.clone())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get().saturating_sub(1));
        if let Some(bounds) = &self.0.bounds {
            bounds.has_room();
        }
    }
}

/// For how long and how much a connection may be used.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Unused, it is closed after this long.
    pub idle: Duration,
    /// It is closed after so many requests.
    pub max_requests: Option<u32>,
    /// It is closed when it is idle after this long.
    pub max_age: Option<Duration>,
    /// Requests at once on an HTTP/2 connection.
    pub max_streams: Option<u32>,
}

/// A connection for one request.
pub struct Lease {
    pools: Rc<HttpPools>,
    key: ConnectionKey,
    terms: Terms,
    connection: Option<Connection>,
    /// Whether it has served before: then its server may have closed it without our knowledge.
    pub reused: bool,
}

/// Why a request got no answer.
pub struct SendFailure {
    /// The request, if no byte of it was sent.
    pub unsent: Option<Request<RequestBody>>,
    /// What is known of it.
    pub outcome: Outcome,
    /// The server refused the stream before it looked at it (REFUSED_STREAM, or GOAWAY with a lower number: RFC 9113, 6.8 and 8.7).
    pub refused: bool,
    /// It did so because it is about to close the connection (GOAWAY): over another the request may be sent at once.
    pub leaving: bool,
    /// The connection is closed: it was not the server's answer to this request.
    pub closed: bool,
}

impl HttpPools {
    /// Closes what has been unused for too long, and tells of endpoints that are used again, for as long as the worker lives.
    pub fn sweep(self: &Rc<Self>, clusters: Arc<Clusters>) {
        let pools = Rc::downgrade(self);
        tokio::task::spawn_local(async move {
            loop {
                tokio::time::sleep(SWEEP).await;
                let Some(pools) = pools.upgrade() else { return };
                let now = Instant::now();
                for (service, endpoint) in clusters.returned(now) {
                    tracing::info!(%service, %endpoint, "an endpoint that was left out is used again");
                }
                pools.expire(now);
            }
        });
    }

    /// Closes what is unused and has been for too long, or is good for no other request.
    fn expire(&self, now: Instant) {
        self.idle.borrow_mut().retain(|_, idle| {
            idle.retain(|idle| idle.until > now && idle.connection.serves());
            !idle.is_empty()
        });
        self.shared.borrow_mut().retain(|_, all| {
            all.retain(|shared| {
                let in_use = shared.streams.open.get() > 0;
                shared.serves() && (in_use || now.duration_since(shared.used) < shared.idle)
            });
            !all.is_empty()
        });
    }

    /// Nothing is kept from now on.
    pub fn close(&self) {
        self.closed.set(true);
        self.idle.borrow_mut().clear();
        self.shared.borrow_mut().clear();
    }

    /// Closes what a pod had.
    pub fn forget(&self, client: &WorkloadUid) {
        self.idle.borrow_mut().retain(|key, _| key.client != *client);
        self.shared.borrow_mut().retain(|key, _| key.client != *client);
    }

    /// A connection that is there already.
    pub fn take(self: &Rc<Self>, key: &ConnectionKey, terms: Terms) -> Option<Lease> {
        let now = Instant::now();
        let lease = |connection| Lease { pools: self.clone(), key: key.clone(), terms, connection: Some(connection), reused: true };
        if key.http2 {
            let mut all = self.shared.borrow_mut();
            let there = all.get_mut(key)?;
            there.retain(|shared| shared.serves() && !shared.used_up(&terms, now));
            // The first that has room, so that the others may grow old.
            // What the server does not allow would wait inside of the library.
            let has_room = |shared: &&mut Shared| {
                let open = shared.streams.open.get();
                terms.max_streams.is_none_or(|most| open < most) && usize::try_from(open).is_ok_and(|open| open < shared.allowed.get())
            };
            let Some(shared) = there.iter_mut().find(has_room) else {
                if there.is_empty() {
                    all.remove(key);
                }
                return None;
            };
            shared.served += 1;
            shared.used = now;
            return Some(lease(Connection {
                sender: Sender::Http2(shared.sender.clone(), shared.allowed.clone()),
                fate: shared.fate.clone(),
                holds: shared.holds.clone(),
                served: shared.served,
                opened: shared.opened,
                place: shared.place.clone(),
                _stream: Some(Stream::open(&shared.streams)),
            }));
        }
        let mut all = self.idle.borrow_mut();
        let idle = all.get_mut(key)?;
        // The one that was used last: the others may then grow old.
        while let Some(Idle { connection, until }) = idle.pop() {
            if until > now && connection.serves() {
                return Some(lease(connection));
            }
        }
        None
    }

    /// A connection that is there already, or soon: one for many requests is awaited if it is being opened. If none is, the caller opens
    /// it, and of such a one the others wait for it.
    ///
    /// # Errors
    /// What the one failed with who opened it, or too many wait already.
    pub async fn ready(self: &Rc<Self>, key: &ConnectionKey, terms: Terms, pending: &mut Pending) -> Result<Ready, Unready> {
        loop {
            if let Some(lease) = self.take(key, terms) {
                return Ok(Ready::Taken(lease));
            }
            // One that is soon used up is not worth waiting for.
            if !key.http2 || terms.max_requests.is_some() || self.closed.get() {
                return Ok(Ready::Open(None));
            }
            match self.openings.turn(key, pending).await? {
                Turn::Mine(opening) => return Ok(Ready::Open(Some(opening))),
                Turn::Http1 => return Ok(Ready::OpenHttp1),
                Turn::Over => {}
            }
        }
    }

    /// Whether there is an HTTP/2 connection that may be shared once it has room.
    pub fn shares(&self, key: &ConnectionKey) -> bool {
        key.http2 && self.shared.borrow().get(key).is_some_and(|all| !all.is_empty())
    }

    /// A lease of a connection that was opened elsewhere.
    pub async fn over(
        self: &Rc<Self>,
        worker: &Rc<Worker>,
        key: ConnectionKey,
        stream: tokio::net::TcpStream,
        terms: Terms,
    ) -> Result<Lease, Outcome> {
        let sender = handshake(stream, key.http2, worker).await?;
        Ok(self.lease(key, terms, sender, Fate::default(), None, None, None))
    }

    #[expect(clippy::too_many_arguments, reason = "two call sites; each is a thing of its own")]
    fn lease(
        self: &Rc<Self>,
        key: ConnectionKey,
        terms: Terms,
        sender: Sender,
        fate: Fate,
        holds: Option<Holds>,
        place: Option<Place>,
        bounds: Option<Arc<Bounds>>,
    ) -> Lease {
        let (now, place) = (Instant::now(), place.map(Rc::new));
        let mut stream = None;
        // One is enough where any number of requests may be on it; another that was opened meanwhile serves its own request alone.
        if let Sender::Http2(sender, allowed) = &sender
            && !self.closed.get()
            && (terms.max_streams.is_some() || !self.shares(&key))
        {
            let streams = Rc::new(Streams { open: Cell::new(0), bounds });
            stream = Some(Stream::open(&streams));
            let (sender, allowed, fate) = (sender.clone(), allowed.clone(), fate.clone());
            let (holds, place) = (holds.clone(), place.clone());
            let bounds = place.as_ref().map(|place| place.bounds().clone());
            let shared = Shared { sender, allowed, fate, holds, served: 1, opened: now, used: now, idle: terms.idle, place, streams };
            self.shared.borrow_mut().entry(key.clone()).or_default().push(shared);
            self.may_yield(bounds);
        }
        let connection = Connection { sender, fate, holds, served: 0, opened: now, place, _stream: stream };
        Lease { pools: self.clone(), key, terms, connection: Some(connection), reused: false }
    }
}

impl Shared {
    /// Whether it is good for another request, as far as that does not depend on who asks.
    fn serves(&self) -> bool {
        !self.sender.is_closed() && holds(self.holds.as_ref())
    }

    fn used_up(&self, terms: &Terms, now: Instant) -> bool {
        terms.max_requests.is_some_and(|most| self.served >= most) || terms.max_age.is_some_and(|age| now.duration_since(self.opened) > age)
    }
}

impl Connection {
    fn is_closed(&self) -> bool {
        match &self.sender {
            Sender::Http1(sender) => sender.is_closed(),
            Sender::Http2(sender, _) => sender.is_closed(),
        }
    }

    /// Whether it is good for another request.
    fn serves(&self) -> bool {
        !self.is_closed() && holds(self.holds.as_ref())
    }
}

/// Whether nothing below a connection speaks against another request: without a tunnel nothing does.
fn holds(below: Option<&Holds>) -> bool {
    below.is_none_or(|holds| holds())
}

impl Lease {
    /// Whether HTTP/2 is spoken on it.
    pub fn http2(&self) -> bool {
        self.key.http2
    }

    /// Sends a request and waits for the head of its response.
    pub async fn send(&mut self, request: Request<RequestBody>) -> Result<Response<Incoming>, SendFailure> {
        let Some(connection) = &mut self.connection else {
            return Err(SendFailure {
                unsent: Some(request),
                outcome: Outcome::internal("a connection was used twice"),
                refused: false,
                leaving: false,
                closed: false,
            });
        };
        connection.served += 1;
        let sent = match &mut connection.sender {
            Sender::Http1(sender) => {
                if let Err(error) = sender.ready().await {
                    return Err(failure(&connection.fate, Some(request), &error));
                }
                sender.try_send_request(request).await
            }
            Sender::Http2(sender, _) => {
                if let Err(error) = sender.ready().await {
                    return Err(failure(&connection.fate, Some(request), &error));
                }
                sender.try_send_request(request).await
            }
        };
        sent.map_err(|mut error| {
            let unsent = error.take_message();
            failure(&connection.fate, unsent, error.error())
        })
    }

    /// Keeps the connection for the next request, once it is ready for one.
    pub fn keep(mut self) {
        let Some(mut connection) = self.connection.take() else { return };
        let Terms { idle, max_requests, max_age, .. } = self.terms;
        let old = max_age.is_some_and(|age| connection.opened.elapsed() > age);
        if self.pools.closed.get() || old || max_requests.is_some_and(|most| connection.served >= most) {
            return;
        }
        // One for many requests is in the pool as long as it lives.
        if matches!(connection.sender, Sender::Http2(..)) {
            return;
        }
        let (pools, key) = (self.pools.clone(), self.key.clone());
        tokio::task::spawn_local(async move {
            let Sender::Http1(sender) = &mut connection.sender else { return };
            if sender.ready().await.is_err() || pools.closed.get() {
                return;
            }
            let bounds = connection.place.as_ref().map(|place| place.bounds().clone());
            {
                let mut all = pools.idle.borrow_mut();
                let kept = all.entry(key).or_default();
                if kept.len() < MAX_IDLE {
                    kept.push(Idle { connection, until: Instant::now() + idle });
                }
            }
            pools.may_yield(bounds);
        });
    }
}

fn failure(fate: &Fate, unsent: Option<Request<RequestBody>>, error: &hyper::Error) -> SendFailure {
    let of_http2 = std::error::Error::source(error).and_then(|source| source.downcast_ref::<h2::Error>());
    // The library ends with a GOAWAY of the server only the streams that this says were not looked at.
    let leaving = of_http2.is_some_and(|error| error.is_go_away() && error.is_remote());
    let refused = leaving || of_http2.and_then(h2::Error::reason) == Some(h2::Reason::REFUSED_STREAM);
    let outcome = match told(fate) {
        Some(outcome) => outcome,
        None if error.is_parse() => Outcome::Request(RequestFailure::UpstreamProtocol { detail: error.to_string().into() }),
        None => {
            let detail = std::error::Error::source(error).map_or_else(|| error.to_string(), |source| format!("{error}: {source}"));
            Outcome::Request(RequestFailure::UpstreamClosed { detail: detail.into() })
        }
    };
    let closed = !of_http2.is_some_and(h2::Error::is_reset) && !error.is_parse();
    SendFailure { unsent, outcome, refused, leaving, closed }
}

#[cfg(test)]
mod tests;
