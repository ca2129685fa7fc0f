//! The serving side.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use h2::Reason;
use http::{Method, Response};
use mesh_lab::Pod;
use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::certificate::{Authority, Shown, uris};
use super::{LIMIT, provider};

/// What an independent server does with a CONNECT.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Answer {
    /// 200 with `baggage`, then sends back what it gets.
    Echo,
    /// A refusal, as ztunnel makes it.
    Status(u16),
    /// 200, then RST_STREAM(CANCEL) at the first bytes.
    Abort,
}

/// What an independent server saw.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: Method,
    pub authority: String,
    pub headers: http::HeaderMap,
    pub client: Vec<String>,
    pub sni: Option<String>,
    /// How the client ended its direction: None while it has not, otherwise an abort's reason or an end in order.
    pub end: Option<Result<(), Reason>>,
}

/// A server of an independent data plane in a pod's namespace, on the tunnel's port. Ends with this value.
pub struct Server {
    seen: Arc<Mutex<Vec<Seen>>>,
    connections: Arc<Mutex<usize>>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    /// Starts it. `answer` says what to do with a CONNECT to a port.
    pub fn start(pod: &Pod, authority: &Authority, shown: &Shown, answer: impl Fn(u16) -> Answer + Send + Copy + 'static) -> Self {
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(authority.roots()), provider()).build().unwrap();
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(shown.chain.clone(), shown.key.clone_key())
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let connections: Arc<Mutex<usize>> = Arc::default();
        let (heard, counted) = (seen.clone(), connections.clone());
        Self::run(pod, move |tcp| {
            let (acceptor, seen, connections) = (acceptor.clone(), heard.clone(), counted.clone());
            async move {
                let Ok(stream) = acceptor.accept(tcp).await else { return };
                *connections.lock().unwrap() += 1;
                serve(stream, answer, seen).await;
            }
        })
        .with(seen, connections)
    }

    /// One that does with a connection whatever the caller thinks of.
    pub fn run<F: Future<Output = ()> + 'static>(pod: &Pod, each: impl Fn(TcpStream) -> F + Send + 'static) -> Self {
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (listening, heard) = std::sync::mpsc::channel();
        let (netns, at) = (pod.netns(), SocketAddr::new(pod.ipv4().into(), 15008));
        let work = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime, async move {
                let listener = TcpListener::bind(at).await.unwrap();
                listening.send(()).unwrap();
                let accept = async {
                    loop {
                        if let Ok((tcp, _)) = listener.accept().await {
                            tokio::task::spawn_local(each(tcp));
                        }
                    }
                };
                tokio::select! { _ = stopped => {}, () = accept => {} }
            });
        };
        let thread = std::thread::spawn(move || mesh_lab::netns::within(&netns, work).unwrap());
        heard.recv_timeout(LIMIT).expect("it listens");
        Server { seen: Arc::default(), connections: Arc::default(), stop: Some(stop), thread: Some(thread) }
    }

    fn with(mut self, seen: Arc<Mutex<Vec<Seen>>>, connections: Arc<Mutex<usize>>) -> Self {
        (self.seen, self.connections) = (seen, connections);
        self
    }

    /// The requests that came.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// The requests that came for a port.
    pub fn seen_at(&self, port: u16) -> Vec<Seen> {
        let suffix = format!(":{port}");
        self.seen().into_iter().filter(|seen| seen.authority.ends_with(&suffix)).collect()
    }

    /// How many tunnels stood.
    pub fn connections(&self) -> usize {
        *self.connections.lock().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(
    stream: tokio_rustls::server::TlsStream<TcpStream>,
    answer: impl Fn(u16) -> Answer + Copy + 'static,
    seen: Arc<Mutex<Vec<Seen>>>,
) {
    let (_, session) = stream.get_ref();
    let client = session.peer_certificates().and_then(|chain| chain.first()).map(uris).unwrap_or_default();
    let sni = session.server_name().map(str::to_owned);
    let handshake =
        h2::server::Builder::new().initial_window_size(4 << 20).initial_connection_window_size(16 << 20).handshake::<_, Bytes>(stream);
    let Ok(mut connection) = handshake.await else { return };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let (head, mut body) = request.into_parts();
        let authority = head.uri.authority().map(ToString::to_string).unwrap_or_default();
        let port = head.uri.port_u16().unwrap_or_default();
        let number = {
            let mut seen = seen.lock().unwrap();
            seen.push(Seen { method: head.method, authority, headers: head.headers, client: client.clone(), sni: sni.clone(), end: None });
            seen.len() - 1
        };
        let seen = seen.clone();
        let what = answer(port);
        tokio::task::spawn_local(async move {
            let status = if let Answer::Status(status) = what { status } else { 200 };
            let mut response = Response::builder().status(status);
            if status == 200 {
                response = response.header("baggage", "k8s.namespace.name=foreign,service.name=foreign");
            }
            let refused = status != 200;
            let Ok(mut up) = respond.send_response(response.body(()).unwrap(), refused) else { return };
            if refused {
                // Dropping the body before its end makes the library add RST_STREAM(NO_ERROR).
                return;
            }
            let end = loop {
                match body.data().await {
                    Some(Ok(data)) => {
                        let _ = body.flow_control().release_capacity(data.len());
                        if what == Answer::Abort {
                            up.send_reset(Reason::CANCEL);
                            break Ok(());
                        }
                        let _ = up.send_data(data, false);
                    }
                    None => {
                        let _ = up.send_data(Bytes::new(), true);
                        break Ok(());
                    }
                    Some(Err(error)) => break Err(error.reason().unwrap_or(Reason::INTERNAL_ERROR)),
                }
            };
            seen.lock().unwrap()[number].end = Some(end);
        });
    }
}
