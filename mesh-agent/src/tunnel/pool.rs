//! Connections to peers' agents, kept for the next stream. One set of pools a worker; nothing here is shared between threads.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::{Future, poll_fn};
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use mesh_model::identity::Identity;
use mesh_model::workload::WorkloadUid;
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::counters::TunnelCounters;
use super::error::{HandshakeError, TunnelError};
use super::fast::link::{Link, LinkError, Received};
use super::hbone::client::{HboneConnection, Place};
use super::server::{OnDrop, prepare};
use super::settings::Settings;
use super::tls::handshake::{self, Protocol, Secured};
use super::tls::{CredentialSource, Credentials, CredentialsUnavailable};
use super::trust::{Proof, Trust};
use super::wire::Frame;
use crate::conn::TunnelAddr;

mod idle;

use idle::Idle;

/// How often idle connections are looked after.
const SWEEP: Duration = Duration::from_secs(1);
/// A destination without connections is forgotten after this long.
const FORGET: Duration = Duration::from_secs(60);
/// How long after a peer's agent ended a handshake without a word it is dialled again. One that is flooded lets go of the oldest handshakes,
/// honest ones among them.
const AGAIN: [Duration; 2] = [Duration::from_millis(10), Duration::from_millis(100)];
/// A connection that was heard of less than this ago is certainly alive.
const FRESH: Duration = Duration::from_secs(1);

/// Which connections can stand for one another.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct PoolKey {
    /// The client's pod: its successor at the same address has a namespace, and so sockets, of its own.
    pub client: WorkloadUid,
    /// The server's pod: of a successor at the same address, with the same identity, nothing says that it is not the one before.
    pub server: WorkloadUid,
    /// As whom we speak.
    pub identity: Identity,
    /// Who may be there; any of them. In a fixed order.
    pub expected: Arc<[Identity]>,
    /// Our own address: the client pod's.
    pub source: IpAddr,
    /// Where the tunnel ends.
    pub destination: TunnelAddr,
}

/// A future of a worker's thread.
pub type LocalFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// Opens TCP connections for tunnels: from the client pod's network namespace and address, with the agent's mark.
pub trait Dialer {
    /// Connects to `key.destination`. The pool bounds its time.
    fn dial<'a>(&'a self, key: &'a PoolKey) -> LocalFuture<'a, io::Result<TcpStream>>;
}

/// The pools of a worker. Clones are the same pools.
#[derive(Clone)]
pub struct Pools(Rc<Inner>);

struct Inner {
    dialer: Box<dyn Dialer>,
    credentials: Box<dyn CredentialSource>,
    settings: Arc<Settings>,
    counters: Arc<TunnelCounters>,
    destinations: RefCell<HashMap<PoolKey, Rc<RefCell<Destination>>>>,
    sweeping: Cell<bool>,
}

/// What must hold for a connection to be used again.
pub struct Terms {
    /// Why each end believes the other.
    pub trust: Trust,
    _open: Box<dyn std::any::Any>,
}

/// A connection of our own protocol, ready for a stream.
pub struct OwnConnection {
    /// The connection.
    pub link: Link,
    /// What must hold for it to be used again.
    pub terms: Terms,
    /// It was not heard of for a while: the peer may be gone.
    pub doubtful: bool,
}

/// A connection to open a stream on.
pub enum Connected {
    /// For this stream alone.
    Own(OwnConnection),
    /// Shared.
    Hbone(HboneConnection, Place, Trust),
}

struct Waiter {
    fresh: bool,
    deliver: oneshot::Sender<Result<Connected, TunnelError>>,
}

struct Shared {
    connection: HboneConnection,
    terms: Terms,
    used: Instant,
}

struct Destination {
    /// What the peer spoke the last time.
    protocol: Option<Protocol>,
    /// The one used last is at the end, and is used first.
    idle: VecDeque<Idle>,
    shared: Vec<Shared>,
    waiters: VecDeque<Waiter>,
    dialing: usize,
    /// Streams since the last sweep and in the time before it.
    opened: [usize; 2],
    used: Instant,
}

impl Pools {
    /// For a worker.
    pub fn new(
        dialer: impl Dialer + 'static,
        credentials: impl CredentialSource + 'static,
        settings: Arc<Settings>,
        counters: Arc<TunnelCounters>,
    ) -> Self {
        Pools(Rc::new(Inner {
            dialer: Box::new(dialer),
            credentials: Box::new(credentials),
            settings,
            counters,
            destinations: RefCell::default(),
            sweeping: Cell::new(false),
        }))
    }

    /// The bounds.
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// The counts.
    pub fn counters(&self) -> &TunnelCounters {
        &self.0.counters
    }

    /// How many connections wait for streams.
    pub fn idle(&self) -> usize {
        self.0.destinations.borrow().values().map(|destination| destination.borrow().idle.len()).sum()
    }

    /// A connection to `key`'s destination: an idle one unless it must be `fresh`, else one that is dialled.
    pub async fn acquire(&self, key: &PoolKey, fresh: bool) -> Result<Connected, TunnelError> {
        // Whoever has lost its certificate gets no connection, however many are open.
        let current = self.current(key)?;
        let destination = self.destination(key);
        let waiting = {
            let mut state = destination.borrow_mut();
            state.used = Instant::now();
            let [now, _] = &mut state.opened;
            *now += 1;
            if !fresh && let Some(connected) = self.take(&mut state, &current) {
                self.0.counters.reused.add();
                let missing = self.missing_warm(&state);
                drop(state);
                self.dial(key, &destination, missing);
                return Ok(connected);
            }
            let (deliver, waiting) = oneshot::channel();
            state.waiters.push_back(Waiter { fresh, deliver });
            waiting
        };
        self.dial_for_waiters(key, &destination);
        waiting.await.unwrap_or_else(|_| Err(TunnelError::Lost("the worker is going away".into())))
    }

    /// Takes a connection back whose stream has ended in order, if it is still good for another: somebody may wait for one.
    pub fn put_back(&self, key: &PoolKey, link: Link, terms: Terms) {
        if !self.trusts(key, &terms.trust) {
            return;
        }
        let destination = self.destination(key);
        let mut state = destination.borrow_mut();
        let now = Instant::now();
        self.hand_out(&mut state, OwnConnection { link, terms, doubtful: false }, now, false);
    }

    /// Closes idle connections that speak for this identity.
    pub fn forget(&self, identity: &Identity) {
        self.forget_where(|key| key.identity == *identity);
    }

    /// Closes idle connections from this address, because its pod is gone.
    pub fn forget_source(&self, source: IpAddr) {
        self.forget_where(|key| key.source == source);
    }

    fn forget_where(&self, unwanted: impl Fn(&PoolKey) -> bool) {
        self.0.destinations.borrow_mut().retain(|key, destination| {
            let ours = unwanted(key);
            if ours {
                self.drain_idle(&mut destination.borrow_mut());
            }
            !ours || !destination.borrow().waiters.is_empty() || destination.borrow().dialing > 0
        });
    }

    fn drain_idle(&self, state: &mut Destination) {
        for _ in state.idle.drain(..) {
            self.0.counters.idle.sub();
        }
        state.shared.clear();
    }

    /// Whether a connection that was opened with this trust would still be used for another stream of `key`.
    pub fn trusts(&self, key: &PoolKey, trust: &Trust) -> bool {
        self.current(key).is_ok_and(|current| trust.holds(&current, SystemTime::now()))
    }

    fn current(&self, key: &PoolKey) -> Result<Arc<Credentials>, CredentialsUnavailable> {
        let current = self.0.credentials.current(&key.identity)?;
        if SystemTime::now() >= current.not_after() {
            return Err(CredentialsUnavailable("the certificate has expired".into()));
        }
        Ok(current)
    }

    fn destination(&self, key: &PoolKey) -> Rc<RefCell<Destination>> {
        if let Some(known) = self.0.destinations.borrow().get(key) {
            return known.clone();
        }
        let new = Rc::new(RefCell::new(Destination {
            protocol: None,
            idle: VecDeque::new(),
            shared: Vec::new(),
            waiters: VecDeque::new(),
            dialing: 0,
            opened: [0; 2],
            used: Instant::now(),
        }));
        self.0.destinations.borrow_mut().insert(key.clone(), new.clone());
        self.start_sweeping();
        new
    }

    /// An open connection that can take a stream now.
    fn take(&self, state: &mut Destination, current: &Credentials) -> Option<Connected> {
        let now = Instant::now();
        let wall = SystemTime::now();
        while let Some(mut idle) = state.idle.pop_back() {
            self.0.counters.idle.sub();
            if idle.terms.trust.holds(current, wall) && idle.hear(now) {
                let doubtful = now.duration_since(idle.heard) > FRESH;
                return Some(Connected::Own(OwnConnection { link: idle.link, terms: idle.terms, doubtful }));
            }
        }
        state.shared.retain(|shared| shared.connection.is_open() && shared.terms.trust.holds(current, wall));
        let shared = state.shared.iter_mut().find(|shared| shared.connection.has_room(&self.0.settings))?;
        shared.used = now;
        Some(Connected::Hbone(shared.connection.clone(), shared.connection.take_place(), shared.terms.trust.clone()))
    }

    /// To the first who waits, or to the idle ones. `dialed`: for this very purpose.
    fn hand_out(&self, state: &mut Destination, mut connection: OwnConnection, now: Instant, dialed: bool) {
        let mut at = 0;
        while let Some(waiter) = state.waiters.get(at) {
            if waiter.fresh && !dialed {
                at += 1;
                continue;
            }
            let Some(waiter) = state.waiters.remove(at) else { break };
            match waiter.deliver.send(Ok(Connected::Own(connection))) {
                Ok(()) => return,
                Err(Ok(Connected::Own(back))) => connection = back,
                Err(_) => return,
            }
        }
        if state.idle.len() < self.0.settings.max_idle {
            self.0.counters.idle.add();
            state.idle.push_back(Idle::new(connection.link, connection.terms, now));
        }
    }

    /// How many connections should be dialled ahead.
    fn missing_warm(&self, state: &Destination) -> usize {
        let busy = state.opened.iter().sum::<usize>() > 1;
        if state.protocol != Some(Protocol::Own) || !busy || !state.idle.is_empty() {
            return 0;
        }
        self.0.settings.warm.saturating_sub(state.dialing)
    }

    fn dial_for_waiters(&self, key: &PoolKey, destination: &Rc<RefCell<Destination>>) {
        let missing = {
            let mut state = destination.borrow_mut();
            state.waiters.retain(|waiter| !waiter.deliver.is_closed());
            // Until it is known what the peer speaks, and if it speaks HTTP/2, one connection may serve all.
            let limit = if state.protocol == Some(Protocol::Own) { self.0.settings.max_dials.max(1) } else { 1 };
            state.waiters.len().min(limit).saturating_sub(state.dialing)
        };
        self.dial(key, destination, missing);
    }

    fn dial(&self, key: &PoolKey, destination: &Rc<RefCell<Destination>>, count: usize) {
        for _ in 0..count {
            destination.borrow_mut().dialing += 1;
            let (pools, key, destination) = (self.clone(), key.clone(), destination.clone());
            tokio::task::spawn_local(async move {
                let dialled = pools.connect(&key).await;
                pools.deliver(&destination, dialled);
                pools.dial_for_waiters(&key, &destination);
            });
        }
    }

    fn deliver(&self, destination: &Rc<RefCell<Destination>>, dialled: Result<(Dialled, Terms), TunnelError>) {
        let mut state = destination.borrow_mut();
        state.dialing -= 1;
        match dialled {
            Ok((Dialled::Own(link), terms)) => {
                state.protocol = Some(Protocol::Own);
                self.hand_out(&mut state, OwnConnection { link, terms, doubtful: false }, Instant::now(), true);
            }
            Ok((Dialled::Hbone(connection), terms)) => {
                state.protocol = Some(Protocol::Hbone);
                while connection.has_room(&self.0.settings) {
                    let Some(waiter) = state.waiters.pop_front() else { break };
                    let place = connection.take_place();
                    // Who no longer waits gives its place back by dropping it.
                    let _ = waiter.deliver.send(Ok(Connected::Hbone(connection.clone(), place, terms.trust.clone())));
                }
                state.shared.push(Shared { connection, terms, used: Instant::now() });
            }
            Err(error) => {
                self.0.counters.dials_failed.add();
                // One failure for all: dialling again for each would only make them wait in line for the same news.
                for waiter in state.waiters.drain(..) {
                    let _ = waiter.deliver.send(Err(error.clone()));
                }
            }
        }
    }

    /// Nothing of an application has been sent before a connection is there: it may be tried again.
    async fn connect(&self, key: &PoolKey) -> Result<(Dialled, Terms), TunnelError> {
        for pause in AGAIN {
            match self.connect_once(key).await {
                Err(TunnelError::Lost(_) | TunnelError::Handshake(HandshakeError::Closed(_))) => {
                    self.0.counters.retried.add();
                    tokio::time::sleep(pause).await;
                }
                other => return other,
            }
        }
        self.connect_once(key).await
    }

    async fn connect_once(&self, key: &PoolKey) -> Result<(Dialled, Terms), TunnelError> {
        let settings = &self.0.settings;
        let credentials = self.current(key)?;
        let config = credentials.client_config(&key.expected, settings.own_protocol).map_err(|e| HandshakeError::from_tls(&e))?;
        let tcp = match tokio::time::timeout(settings.connect_timeout, self.0.dialer.dial(key)).await {
            Ok(dialled) => dialled.map_err(|e| TunnelError::dial(&e))?,
            Err(_) => return Err(TunnelError::dial(&io::ErrorKind::TimedOut.into())),
        };
        self.0.counters.client.connections.add();
        self.0.counters.client.open.add();
        let counters = self.0.counters.clone();
        let open = Box::new(OnDrop(move || counters.client.open.sub()));
        prepare(&tcp, settings).map_err(|e| TunnelError::dial(&e))?;
        let shaken = tokio::time::timeout(settings.client_handshake_timeout, self.handshake(tcp, config, &credentials, key));
        let (dialled, peer) = match shaken.await.unwrap_or(Err(HandshakeError::TimedOut.into())) {
            Ok(done) => done,
            Err(error) => {
                if let TunnelError::Handshake(error) = &error {
                    self.0.counters.client.handshake_failed(error.failure());
                }
                return Err(error);
            }
        };
        self.0.counters.client.handshakes.add();
        Ok((dialled, Terms { trust: Trust::new(&credentials, peer), _open: open }))
    }

    /// Includes the peer's word that it accepts our certificate, where the protocol has one: TLS 1.3 ends the client's handshake before that.
    async fn handshake(
        &self,
        tcp: TcpStream,
        config: Arc<rustls::ClientConfig>,
        credentials: &Credentials,
        key: &PoolKey,
    ) -> Result<(Dialled, Proof), TunnelError> {
        let Secured { channel, protocol, proof, .. } = handshake::connect(tcp, config, credentials.roots(), key.destination.0.ip()).await?;
        let dialled = match protocol {
            Protocol::Own => {
                let mut link = Link::new(channel);
                match poll_fn(|cx| link.poll_next(cx)).await {
                    Ok(Received::Frame(Frame::Ready)) => {}
                    Ok(_) => return Err(LinkError::Unexpected("the first frame is not READY").into_tunnel_error()),
                    Err(error) => return Err(error.into_tunnel_error()),
                }
                Dialled::Own(link)
            }
            Protocol::Hbone => {
                Dialled::Hbone(HboneConnection::start(channel, self.0.settings.clone(), self.0.counters.clone(), || {}).await?)
            }
        };
        Ok((dialled, proof))
    }

    fn start_sweeping(&self) {
        if self.0.sweeping.replace(true) {
            return;
        }
        let pools = Rc::downgrade(&self.0);
        tokio::task::spawn_local(async move {
            loop {
                tokio::time::sleep(SWEEP).await;
                let Some(inner) = pools.upgrade() else { break };
                if !Pools(inner).sweep() {
                    break;
                }
            }
        });
    }

    /// Looks after what is idle. False if there is nothing left to look after.
    fn sweep(&self) -> bool {
        let now = Instant::now();
        let wall = SystemTime::now();
        let settings = &self.0.settings;
        let mut destinations = self.0.destinations.borrow_mut();
        destinations.retain(|key, destination| {
            let Ok(mut state) = destination.try_borrow_mut() else { return true };
            let state = &mut *state;
            let [new, old] = &mut state.opened;
            (*old, *new) = (*new, 0);
            let current = self.current(key).ok();
            let holds = |terms: &Terms| current.as_ref().is_some_and(|current| terms.trust.holds(current, wall));
            state.idle.retain_mut(|idle| {
                let keep = holds(&idle.terms) && idle.look_after(now, settings, &self.0.counters);
                if !keep {
                    self.0.counters.idle.sub();
                }
                keep
            });
            state.shared.retain_mut(|shared| {
                if shared.connection.streams() > 0 {
                    shared.used = now;
                }
                shared.connection.is_open() && holds(&shared.terms) && now.duration_since(shared.used) < settings.pool_idle_timeout
            });
            let empty = state.idle.is_empty() && state.shared.is_empty() && state.waiters.is_empty() && state.dialing == 0;
            !empty || now.duration_since(state.used) < FORGET
        });
        let busy = !destinations.is_empty();
        self.0.sweeping.set(busy);
        busy
    }
}

enum Dialled {
    Own(Link),
    Hbone(HboneConnection),
}
