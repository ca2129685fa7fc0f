//! A certificate authority, agents on loopback and applications behind them.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use mesh_model::identity::{Identity, TrustDomain};
use mesh_model::workload::WorkloadUid;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tokio_util::sync::CancellationToken;

use crate::conn::{ClientAddr, Meter, TunnelAddr};
use crate::tunnel::pool::LocalFuture;
use crate::tunnel::server::{Accepted, Handler, Incoming, Rejected, ServeError, Server};
use crate::tunnel::{
    Credentials, CredentialsUnavailable, Dialer, OpenRequest, PoolKey, Pools, Refusal, Settings, TunnelCounters, TunnelError,
};
use crate::upstream::copy::Ended;

/// Runs a test on one thread, as a worker is.
pub fn run<F: Future>(test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let bounded = async { tokio::time::timeout(Duration::from_secs(60), test).await.expect("the test takes too long") };
    LocalSet::new().block_on(&runtime, bounded)
}

pub fn identity(text: &str) -> Identity {
    format!("spiffe://{text}").parse().unwrap()
}

pub fn alice() -> Identity {
    identity("cluster.local/ns/shop/sa/alice")
}

pub fn bob() -> Identity {
    identity("cluster.local/ns/shop/sa/bob")
}

/// A root, an intermediate, and what they sign.
pub struct Ca {
    root: CertificateDer<'static>,
    intermediate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// What a leaf certificate should be like.
pub struct Leaf {
    pub uris: Vec<String>,
    pub not_before: OffsetDateTime,
    pub not_after: OffsetDateTime,
    pub usages: Vec<ExtendedKeyUsagePurpose>,
    pub self_signed: bool,
}

impl Leaf {
    pub fn of(identity: &Identity) -> Self {
        let now = OffsetDateTime::now_utc();
        Leaf {
            uris: vec![identity.to_string()],
            not_before: now - time::Duration::hours(1),
            not_after: now + time::Duration::hours(1),
            usages: vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
            self_signed: false,
        }
    }
}

fn authority() -> CertificateParams {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(rcgen::DnType::CommonName, format!("ca {}", rand::random::<u64>()));
    params
}

impl Ca {
    pub fn new() -> Self {
        let root_key = KeyPair::generate().unwrap();
        let root = authority();
        let root_der = root.self_signed(&root_key).unwrap().der().clone();
        let root = Issuer::new(root, root_key);
        let key = KeyPair::generate().unwrap();
        let params = authority();
        let intermediate = params.signed_by(&key, &root).unwrap().der().clone();
        Ca { root: root_der, intermediate, issuer: Issuer::new(params, key) }
    }

    pub fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
        Arc::new(roots)
    }

    /// While this authority's root is exchanged for another's.
    pub fn roots_and(&self, other: &Ca) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::clone(&self.roots());
        roots.add(other.root.clone()).unwrap();
        Arc::new(roots)
    }

    pub fn key(&self, leaf: &Leaf) -> Arc<CertifiedKey> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.not_before = leaf.not_before;
        params.not_after = leaf.not_after;
        params.extended_key_usages = leaf.usages.clone();
        params.subject_alt_names = leaf.uris.iter().map(|uri| SanType::URI(uri.as_str().try_into().unwrap())).collect();
        let chain = if leaf.self_signed {
            vec![params.self_signed(&key).unwrap().der().clone()]
        } else {
            vec![params.signed_by(&key, &self.issuer).unwrap().der().clone(), self.intermediate.clone()]
        };
        let private = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let signer = rustls::crypto::aws_lc_rs::sign::any_supported_type(&private).unwrap();
        Arc::new(CertifiedKey::new(chain, signer))
    }

    pub fn credentials(&self, identity: &Identity) -> Arc<Credentials> {
        self.credentials_of(&Leaf::of(identity))
    }

    pub fn credentials_of(&self, leaf: &Leaf) -> Arc<Credentials> {
        Arc::new(Credentials::new(self.key(leaf), self.roots(), &[]).unwrap())
    }

    /// With a certificate of this authority, trusting these.
    pub fn credentials_trusting(&self, identity: &Identity, roots: &Arc<RootCertStore>) -> Arc<Credentials> {
        Arc::new(Credentials::new(self.key(&Leaf::of(identity)), roots.clone(), &[]).unwrap())
    }

    pub fn credentials_with(&self, identity: &Identity, aliases: &[&str]) -> Arc<Credentials> {
        let aliases: Vec<TrustDomain> = aliases.iter().map(|alias| alias.parse().unwrap()).collect();
        Arc::new(Credentials::new(self.key(&Leaf::of(identity)), self.roots(), &aliases).unwrap())
    }
}

type Judge = Box<dyn Fn(&Incoming) -> Result<(), Refusal>>;

/// What a serving agent does and saw.
#[derive(Clone)]
pub struct App {
    inner: Rc<AppInner>,
}

struct AppInner {
    target: SocketAddr,
    trusted: RefCell<Option<Arc<RootCertStore>>>,
    judge: RefCell<Judge>,
    delay: Cell<Duration>,
    pub asked: RefCell<Vec<Incoming>>,
    pub rejected: RefCell<Vec<Refusal>>,
    pub ended: Rc<RefCell<Vec<Ended>>>,
    pub cancel: RefCell<CancellationToken>,
}

impl App {
    pub fn at(target: SocketAddr) -> Self {
        App {
            inner: Rc::new(AppInner {
                target,
                trusted: RefCell::default(),
                judge: RefCell::new(Box::new(|_| Ok(()))),
                delay: Cell::default(),
                asked: RefCell::default(),
                rejected: RefCell::default(),
                ended: Rc::default(),
                cancel: RefCell::default(),
            }),
        }
    }

    pub fn judge(&self, judge: impl Fn(&Incoming) -> Result<(), Refusal> + 'static) {
        *self.inner.judge.borrow_mut() = Box::new(judge);
    }

    /// Those of the agent's credentials until this is called.
    pub fn trust(&self, roots: Option<Arc<RootCertStore>>) {
        *self.inner.trusted.borrow_mut() = roots;
    }

    pub fn delay(&self, delay: Duration) {
        self.inner.delay.set(delay);
    }

    pub fn asked(&self) -> Vec<Incoming> {
        self.inner.asked.borrow().clone()
    }

    pub fn rejected(&self) -> Vec<Refusal> {
        self.inner.rejected.borrow().clone()
    }

    pub fn ended(&self) -> Vec<Ended> {
        self.inner.ended.borrow().clone()
    }

    /// Waits until so many streams have ended here.
    pub async fn ended_all(&self, count: usize) -> Vec<Ended> {
        until(|| self.inner.ended.borrow().len() >= count).await;
        self.ended()
    }

    pub fn cancel(&self) {
        self.inner.cancel.take().cancel();
    }
}

impl Handler for App {
    async fn connect(&self, incoming: Incoming) -> Result<Accepted, Refusal> {
        self.inner.asked.borrow_mut().push(incoming.clone());
        tokio::time::sleep(self.inner.delay.get()).await;
        (self.inner.judge.borrow())(&incoming)?;
        let app = TcpStream::connect(self.inner.target)
            .await
            .map_err(|error| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, format!("the application: {error}")))?;
        app.set_nodelay(true).unwrap();
        let ended = self.inner.ended.clone();
        Ok(Accepted {
            app: app.into(),
            meter: Arc::new(Meter::default()),
            cancel: self.inner.cancel.borrow().clone(),
            baggage: Some("k8s.namespace.name=shop".into()),
            on_end: Box::new(move |end| ended.borrow_mut().push(end)),
        })
    }

    fn trusted(&self) -> Option<Arc<RootCertStore>> {
        self.inner.trusted.borrow().clone()
    }

    fn rejected(&self, rejected: Rejected<'_>) {
        self.inner.rejected.borrow_mut().push(rejected.refusal.clone());
    }
}

/// Waits for something to become true, without a fixed time.
pub async fn until(mut condition: impl FnMut() -> bool) {
    for _ in 0..20_000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("it never became true");
}

/// A serving agent.
pub struct Agent {
    pub address: TunnelAddr,
    pub counters: Arc<TunnelCounters>,
    pub results: Rc<RefCell<Vec<Result<(), ServeError>>>>,
    pub drain: CancellationToken,
    pub accepting: JoinHandle<()>,
    pub connections: Rc<RefCell<Vec<JoinHandle<()>>>>,
}

impl Agent {
    pub async fn start(app: &App, credentials: Arc<Credentials>, settings: Settings) -> Agent {
        Agent::start_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), app, credentials, settings).await
    }

    pub async fn start_at(at: SocketAddr, app: &App, credentials: Arc<Credentials>, settings: Settings) -> Agent {
        app.trust(Some(credentials.roots().clone()));
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(at).unwrap();
        let listener = socket.listen(4096).unwrap();
        let address = TunnelAddr(listener.local_addr().unwrap());
        let counters = Arc::new(TunnelCounters::default());
        let server = Server::new(app.clone(), Arc::new(settings), counters.clone());
        let results = Rc::new(RefCell::new(Vec::new()));
        let drain = CancellationToken::new();
        let connections = Rc::new(RefCell::new(Vec::new()));
        let (serving, seen, draining, tasks) = (server, results.clone(), drain.clone(), connections.clone());
        let accepting = spawn_local(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let (server, credentials, seen, drain) = (serving.clone(), credentials.clone(), seen.clone(), draining.clone());
                let task = spawn_local(async move {
                    let result = server.serve(tcp, address, credentials, async move { drain.cancelled().await }).await;
                    seen.borrow_mut().push(result);
                });
                tasks.borrow_mut().push(task);
            }
        });
        Agent { address, counters, results, drain, accepting, connections }
    }

    /// As `kill -9` does: every socket is gone.
    pub fn kill(&self) {
        self.accepting.abort();
        for task in self.connections.borrow().iter() {
            task.abort();
        }
    }

    pub async fn first_result(&self) -> Result<(), ServeError> {
        until(|| !self.results.borrow().is_empty()).await;
        self.results.borrow()[0].clone()
    }
}

type Source = Rc<RefCell<Result<Arc<Credentials>, CredentialsUnavailable>>>;

struct Loopback(Rc<Cell<usize>>);

impl Dialer for Loopback {
    fn dial<'a>(&'a self, key: &'a PoolKey) -> LocalFuture<'a, std::io::Result<TcpStream>> {
        self.0.set(self.0.get() + 1);
        Box::pin(TcpStream::connect(key.destination.0))
    }
}

/// A dialling agent.
#[derive(Clone)]
pub struct Client {
    pub pools: Pools,
    pub key: PoolKey,
    pub credentials: Source,
    pub dials: Rc<Cell<usize>>,
    pub counters: Arc<TunnelCounters>,
}

impl Client {
    pub fn new(destination: TunnelAddr, credentials: Arc<Credentials>, expected: &[Identity], settings: Settings) -> Client {
        let dials = Rc::new(Cell::new(0));
        let key = PoolKey {
            client: WorkloadUid("client".into()),
            server: WorkloadUid("server".into()),
            identity: credentials.identity().clone(),
            expected: expected.into(),
            source: IpAddr::V4(Ipv4Addr::LOCALHOST),
            destination,
        };
        let credentials: Source = Rc::new(RefCell::new(Ok(credentials)));
        let current = credentials.clone();
        let counters = Arc::new(TunnelCounters::default());
        let pools = Pools::new(Loopback(dials.clone()), move |_: &Identity| current.borrow().clone(), Arc::new(settings), counters.clone());
        Client { pools, key, credentials, dials, counters }
    }

    pub fn request(&self) -> OpenRequest {
        OpenRequest {
            target: SocketAddr::new(self.key.destination.0.ip(), 80),
            client: Some(ClientAddr("10.1.2.3:45678".parse().unwrap())),
            host: Some("web.shop.svc.cluster.local".into()),
            baggage: Some("k8s.namespace.name=shop,service.name=alice".into()),
            traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00".into()),
        }
    }

    /// An application's connection, relayed through the tunnel.
    pub async fn dial(&self) -> Dialled {
        self.dial_cancelled_by(CancellationToken::new()).await
    }

    pub async fn dial_cancelled_by(&self, cancel: CancellationToken) -> Dialled {
        let (app, accepted) = pair().await;
        let client = self.clone();
        let meter = Arc::new(Meter::default());
        let counted = meter.clone();
        let task = spawn_local(async move {
            let stream = client.pools.open(client.key.clone(), client.request()).await?;
            stream.relay(accepted, &counted, cancel.cancelled()).await
        });
        Dialled { app, task, meter }
    }
}

/// An application's connection through the tunnel.
pub struct Dialled {
    pub app: TcpStream,
    pub task: JoinHandle<Result<Ended, TunnelError>>,
    pub meter: Arc<Meter>,
}

impl Dialled {
    pub async fn end(self) -> Result<Ended, TunnelError> {
        self.task.await.unwrap()
    }

    /// Sends, half-closes, and reads to the end.
    pub async fn exchange(mut self, request: &[u8]) -> (Vec<u8>, Result<Ended, TunnelError>) {
        let (mut read, mut write) = self.app.split();
        let mut answer = Vec::new();
        let send = async {
            write.write_all(request).await?;
            write.shutdown().await
        };
        let (sent, received) = tokio::join!(send, read.read_to_end(&mut answer));
        let _ = (sent, received);
        (answer, self.task.await.unwrap())
    }
}

/// Two ends of a loopback connection.
pub async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (dialled, accepted) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    let (dialled, accepted) = (dialled.unwrap(), accepted.unwrap().0);
    dialled.set_nodelay(true).unwrap();
    accepted.set_nodelay(true).unwrap();
    (dialled, accepted)
}

/// An application that does `serve` with each connection.
pub async fn application<F: Future<Output = ()> + 'static>(serve: impl Fn(TcpStream) -> F + 'static) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    spawn_local(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            tcp.set_nodelay(true).unwrap();
            spawn_local(serve(tcp));
        }
    });
    address
}

/// An application that sends back what it gets.
pub async fn echo() -> SocketAddr {
    application(|mut tcp| async move {
        let (mut read, mut write) = tcp.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.shutdown().await;
    })
    .await
}

/// Both protocols, as settings of the dialling side.
pub fn protocols() -> [Settings; 2] {
    [Settings::default(), Settings { own_protocol: false, ..Settings::default() }]
}

/// Two agents that trust each other: an application behind bob's, alice's towards it.
pub async fn two(target: SocketAddr, settings: Settings) -> (App, Agent, Client) {
    let ca = Ca::new();
    let app = App::at(target);
    let agent = Agent::start(&app, ca.credentials(&bob()), Settings::default()).await;
    let client = Client::new(agent.address, ca.credentials(&alice()), &[bob()], settings);
    (app, agent, client)
}
