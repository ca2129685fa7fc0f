//! Measures the tunnel alone, over loopback: `cargo run --release -p mesh-agent --example tunnel`.
//!
//! Four threads: load, dialling agent, serving agent, application. The same load goes directly, through two plain relays, through our own
//! protocol and through HBONE. Figures are medians of the rounds; the ratio to the direct way is what tells. On a busy machine look at the
//! second table instead: processor time of all four together, in microseconds a request, connection or megabyte.

use std::error::Error;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use mesh_agent::conn::{Meter, TunnelAddr};
use mesh_agent::tunnel::pool::LocalFuture;
use mesh_agent::tunnel::{
    Accepted, Credentials, CredentialsUnavailable, Dialer, Handler, Incoming, OpenRequest, PoolKey, Pools, Refusal, Rejected, Server,
    Settings, TunnelCounters,
};
use mesh_agent::upstream::copy;
use mesh_model::identity::Identity;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls::RootCertStore;
use rustls::pki_types::PrivateKeyDer;
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{LocalSet, spawn_local};
use tokio_util::sync::CancellationToken;

type Fallible<T> = Result<T, Box<dyn Error + Send + Sync>>;

const REQUEST: usize = 100;
const RESPONSE: usize = 600;

fn main() -> Fallible<()> {
    let rounds: usize = std::env::args().nth(1).map_or(Ok(3), |text| text.parse())?;
    let time = Duration::from_millis(std::env::args().nth(2).map_or(Ok(1500), |text| text.parse())?);
    let only = std::env::args().nth(3);
    let trust = Arc::new(Trust::new()?);
    let application = serve_on("application", |listener| async move { accept(listener, answer).await })?;
    let plain_far = relay_on("plain-far", application)?;
    let plain = relay_on("plain-near", plain_far)?;
    let own = agents(application, &trust, true)?;
    let hbone = agents(application, &trust, false)?;
    let ways: Vec<_> = [("direct", application), ("plain relays", plain), ("nodemesh/1", own), ("hbone", hbone)]
        .into_iter()
        .filter(|(name, _)| *name == "direct" || only.as_deref().is_none_or(|only| name.contains(only)))
        .collect();
    let kinds = ["rps 1", "rps 32", "new/s", "Gbit/s up", "Gbit/s down"];
    let mut figures = vec![vec![Vec::new(); kinds.len()]; ways.len()];
    let mut costs = figures.clone();
    for _ in 0..rounds {
        for (way, (_, address)) in ways.iter().enumerate() {
            let loads =
                [(1, Kind::PingPong, 1.0), (32, Kind::PingPong, 1.0), (32, Kind::New, 1.0), (1, Kind::Up, 1e-6), (1, Kind::Down, 1e-6)];
            for (column, (connections, kind, unit)) in loads.into_iter().enumerate() {
                let before = processor_time()?;
                let rate = load(*address, connections, time, kind)?;
                let cost = (processor_time()? - before) * 1e6 / (rate * unit * time.as_secs_f64() * 1.2);
                let shown = if unit < 1.0 { rate * 8.0 / 1e9 } else { rate };
                for (table, figure) in [(&mut figures, shown), (&mut costs, cost)] {
                    if let Some(list) = table.get_mut(way).and_then(|row| row.get_mut(column)) {
                        list.push(figure);
                    }
                }
            }
        }
    }
    let names: Vec<_> = ways.iter().map(|(name, _)| *name).collect();
    show("rates", &names, &kinds, &mut figures);
    show("cost", &names, &kinds, &mut costs);
    Ok(())
}

fn show(title: &str, ways: &[&str], kinds: &[&str], table: &mut [Vec<Vec<f64>>]) {
    print!("{title:14}");
    kinds.iter().for_each(|kind| print!("{kind:>20}"));
    println!();
    let medians: Vec<Vec<f64>> = table.iter_mut().map(|row| row.iter_mut().map(|list| median(list)).collect()).collect();
    let direct = medians.first().cloned().unwrap_or_default();
    for (name, row) in ways.iter().zip(&medians) {
        print!("{name:14}");
        for (figure, direct) in row.iter().zip(&direct) {
            let text = if *figure > 1000.0 { format!("{figure:.0}") } else { format!("{figure:.2}") };
            print!("{:>20}", format!("{text} ({:.2})", figure / direct));
        }
        println!();
    }
}

/// Seconds that this process has used so far: fields 14 and 15 of `/proc/self/stat`, in hundredths.
fn processor_time() -> Fallible<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let behind_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks: Vec<f64> = behind_name.split_whitespace().skip(11).take(2).filter_map(|text| text.parse().ok()).collect();
    Ok(ticks.iter().sum::<f64>() / 100.0)
}

fn median(list: &mut [f64]) -> f64 {
    list.sort_by(f64::total_cmp);
    list.get(list.len() / 2).copied().unwrap_or_default()
}

/// Runs `main` on a thread of its own and hands it a listener; returns the listener's address.
fn serve_on<F: Future<Output = ()> + 'static>(name: &str, main: impl FnOnce(TcpListener) -> F + Send + 'static) -> Fallible<SocketAddr> {
    let (tell, told) = mpsc::channel();
    thread::Builder::new().name(name.into()).spawn(move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        LocalSet::new().block_on(&runtime, async {
            let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await else { return };
            if let Ok(address) = listener.local_addr() {
                let _ = tell.send(address);
            }
            main(listener).await;
        });
    })?;
    Ok(told.recv()?)
}

async fn accept<F: Future<Output = ()> + 'static>(listener: TcpListener, serve: impl Fn(TcpStream) -> F) {
    while let Ok((tcp, _)) = listener.accept().await {
        let _ = tcp.set_nodelay(true);
        spawn_local(serve(tcp));
    }
}

/// The application: the first byte says what is wanted.
async fn answer(mut tcp: TcpStream) {
    let mut buffer = vec![0; 256 << 10];
    let mut have = 0;
    let response = [7; RESPONSE];
    loop {
        let Some(space) = buffer.get_mut(have..) else { return };
        match tcp.read(space).await {
            Ok(n) if n > 0 => have += n,
            _ => return,
        }
        match buffer.first() {
            Some(b'u') => have = 1,
            Some(b'd') => while tcp.write_all(&buffer).await.is_ok() {},
            _ => {
                while have >= REQUEST {
                    have -= REQUEST;
                    if tcp.write_all(&response).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

fn relay_on(name: &str, to: SocketAddr) -> Fallible<SocketAddr> {
    serve_on(name, move |listener| async move {
        accept(listener, move |tcp| async move {
            let Ok(server) = TcpStream::connect(to).await else { return };
            let _ = server.set_nodelay(true);
            copy::relay(tcp, server, &Meter::default(), std::future::pending(), None).await;
        })
        .await;
    })
}

struct Trust {
    credentials: [Arc<Credentials>; 2],
}

impl Trust {
    fn new() -> Fallible<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key)?;
        let mut roots = RootCertStore::empty();
        roots.add(root.der().clone())?;
        let roots = Arc::new(roots);
        let issuer = Issuer::new(params, key);
        let one = |name: &str| -> Fallible<Arc<Credentials>> {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::new(vec![])?;
            params.subject_alt_names = vec![SanType::URI(format!("spiffe://cluster.local/ns/bench/sa/{name}").as_str().try_into()?)];
            let leaf = params.signed_by(&key, &issuer)?.der().clone();
            let private = PrivateKeyDer::try_from(key.serialize_der())?;
            let signer = rustls::crypto::aws_lc_rs::sign::any_supported_type(&private)?;
            Ok(Arc::new(Credentials::new(Arc::new(CertifiedKey::new(vec![leaf], signer)), roots.clone(), &[])?))
        };
        Ok(Trust { credentials: [one("client")?, one("server")?] })
    }
}

struct Deliver(SocketAddr, Arc<RootCertStore>);

impl Handler for Deliver {
    async fn connect(&self, _: Incoming) -> Result<Accepted, Refusal> {
        let app = TcpStream::connect(self.0).await.map_err(|e| Refusal::new(http::StatusCode::SERVICE_UNAVAILABLE, e.to_string()))?;
        let _ = app.set_nodelay(true);
        Ok(Accepted { app: app.into(), meter: Arc::default(), cancel: CancellationToken::new(), baggage: None, on_end: Box::new(|_| {}) })
    }

    fn trusted(&self) -> Option<Arc<RootCertStore>> {
        Some(self.1.clone())
    }

    fn rejected(&self, rejected: Rejected<'_>) {
        eprintln!("rejected: {}", rejected.refusal);
    }
}

struct Loopback;

impl Dialer for Loopback {
    fn dial<'a>(&'a self, key: &'a PoolKey) -> LocalFuture<'a, std::io::Result<TcpStream>> {
        Box::pin(TcpStream::connect(key.destination.0))
    }
}

/// Two agents before the application; the address of the dialling one.
fn agents(application: SocketAddr, trust: &Trust, own_protocol: bool) -> Fallible<SocketAddr> {
    let settings = Arc::new(Settings { own_protocol, ..Settings::default() });
    let [client, server] = trust.credentials.clone();
    let expected: Arc<[Identity]> = Arc::new([server.identity().clone()]);
    let serving = settings.clone();
    let far = serve_on("server-agent", move |listener| async move {
        let Ok(local) = listener.local_addr() else { return };
        let agent = Server::new(Deliver(application, server.roots().clone()), serving, Arc::default());
        accept(listener, move |tcp| {
            let (agent, server) = (agent.clone(), server.clone());
            async move {
                if let Err(error) = agent.serve(tcp, TunnelAddr(local), server, std::future::pending()).await {
                    eprintln!("server: {error}");
                }
            }
        })
        .await;
    })?;
    serve_on("client-agent", move |listener| async move {
        let counters: Arc<TunnelCounters> = Arc::default();
        let identity = client.identity().clone();
        let current = move |_: &Identity| -> Result<Arc<Credentials>, CredentialsUnavailable> { Ok(client.clone()) };
        let pools = Rc::new(Pools::new(Loopback, current, settings, counters));
        accept(listener, move |tcp| {
            let pools = pools.clone();
            let key = PoolKey {
                client: mesh_model::workload::WorkloadUid("client".into()),
                server: mesh_model::workload::WorkloadUid("server".into()),
                identity: identity.clone(),
                expected: expected.clone(),
                source: IpAddr::V4(Ipv4Addr::LOCALHOST),
                destination: TunnelAddr(far),
            };
            async move {
                let request =
                    OpenRequest { target: SocketAddr::new(far.ip(), 80), client: None, host: None, baggage: None, traceparent: None };
                let stream = match pools.open(key, request).await {
                    Ok(stream) => stream,
                    Err(error) => return eprintln!("client: {error}"),
                };
                if let Err(error) = stream.relay(tcp, &Meter::default(), std::future::pending()).await {
                    eprintln!("client: {error}");
                }
            }
        })
        .await;
    })
}

#[derive(Clone, Copy)]
enum Kind {
    PingPong,
    New,
    Up,
    Down,
}

/// Requests, or bytes, a second.
fn load(to: SocketAddr, connections: usize, time: Duration, kind: Kind) -> Fallible<f64> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let warm = time / 5;
    LocalSet::new().block_on(&runtime, async move {
        let begin = Instant::now();
        let tasks: Vec<_> = (0..connections).map(|_| spawn_local(one(to, kind, begin + warm, begin + warm + time))).collect();
        let mut sum = 0;
        for task in tasks {
            sum += task.await??;
        }
        Ok(sum as f64 / time.as_secs_f64())
    })
}

async fn one(to: SocketAddr, kind: Kind, from: Instant, until: Instant) -> Fallible<usize> {
    let mut count = 0;
    let mut buffer = vec![0; 256 << 10];
    let connect = || async {
        let tcp = TcpStream::connect(to).await?;
        tcp.set_nodelay(true)?;
        Ok::<_, std::io::Error>(tcp)
    };
    let mut tcp = connect().await?;
    let first = match kind {
        Kind::Up => b'u',
        Kind::Down => b'd',
        Kind::PingPong | Kind::New => b'r',
    };
    if matches!(kind, Kind::Up | Kind::Down) {
        tcp.write_all(&[first]).await?;
    }
    loop {
        let now = Instant::now();
        if now >= until {
            return Ok(count);
        }
        let done = match kind {
            Kind::PingPong | Kind::New => {
                tcp.write_all(&[b'r'; REQUEST]).await?;
                tcp.read_exact(buffer.get_mut(..RESPONSE).unwrap_or_default()).await?;
                if matches!(kind, Kind::New) {
                    tcp = connect().await?;
                }
                1
            }
            Kind::Up => tcp.write(&buffer).await?,
            Kind::Down => match tcp.read(&mut buffer).await? {
                0 => return Err("the application closed".into()),
                n => n,
            },
        };
        if now >= from {
            count += done;
        }
    }
}
