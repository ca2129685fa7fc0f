use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::super::clock::SystemClock;
use super::super::metrics::server::MetricsEndpoint;
use super::super::metrics::tests::strict;
use super::super::metrics::{Metrics, MetricsConfig};
use super::super::ready::Readiness;
use super::*;

struct Server {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

async fn start(limits: Limits, handler: Arc<dyn Handler>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(serve(listener, limits, handler, async {
        let _ = stopped.await;
    }));
    Server { address, stop, task }
}

impl Server {
    async fn ask(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    }

    async fn get(&self, path: &str, headers: &str) -> String {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n")).await
    }

    async fn end(self) {
        self.stop.send(()).unwrap();
        self.task.await.unwrap();
    }
}

fn endpoint(readiness: &Readiness) -> Arc<dyn Handler> {
    let metrics = Arc::new(Metrics::new(MetricsConfig::default()));
    Arc::new(MetricsEndpoint::new(metrics, readiness.clone(), Arc::new(SystemClock)))
}

struct Echo;

impl Handler for Echo {
    fn answer(&self, _: SocketAddr, request: Received) -> Answer {
        Box::pin(async move { text(StatusCode::OK, request.into_body()) })
    }
}

#[tokio::test]
async fn metrics_and_health_are_served() {
    let readiness = Readiness::new();
    let blocker = readiness.block("certificates");
    let server = start(Limits::default(), endpoint(&readiness)).await;

    let answer = server.get("/metrics", "Accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.1\r\n").await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8"));
    strict::open_metrics(body);
    let answer = server.get("/metrics", "").await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"));
    strict::prometheus(body);

    let waiting = server.get("/healthz/ready", "").await;
    assert!(waiting.starts_with("HTTP/1.1 503") && waiting.ends_with("waiting for: certificates\n"), "{waiting}");
    drop(blocker);
    assert!(server.get("/healthz/ready", "").await.starts_with("HTTP/1.1 200"));
    assert!(server.get("/healthz/live", "").await.starts_with("HTTP/1.1 200"));
    assert!(server.get("/secrets", "").await.starts_with("HTTP/1.1 404"));
    assert!(server.ask("POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").await.starts_with("HTTP/1.1 405"));
    server.end().await;
}

#[tokio::test]
async fn nonsense_is_refused_and_the_next_is_served() {
    let server = start(Limits::default(), Arc::new(Echo)).await;
    for nonsense in ["\u{0}\u{1}\u{2}\r\n\r\n", "GET\r\n\r\n", "\u{16}\u{3}\u{1}", "GET / HTTP/9.9\r\n\r\n"] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(nonsense.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP/1.1 200"));
    }
    let endless = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "a".repeat(100_000));
    assert!(!server.ask(&endless).await.starts_with("HTTP/1.1 200"));
    assert!(server.get("/", "").await.starts_with("HTTP/1.1 200"));
    server.end().await;
}

#[tokio::test]
async fn a_body_is_bounded() {
    let server = start(Limits { body: 10, ..Limits::default() }, Arc::new(Echo)).await;
    let post = |body: &str| format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    assert!(server.ask(&post("0123456789")).await.ends_with("0123456789"));
    assert!(server.ask(&post("0123456789a")).await.starts_with("HTTP/1.1 413"));
    server.end().await;
}

#[tokio::test]
async fn those_who_dawdle_are_dropped() {
    let limits = Limits { head: Duration::from_millis(30), total: Duration::from_millis(60), connections: 1, ..Limits::default() };
    let server = start(limits, Arc::new(Echo)).await;
    // One that never finishes its head, and one that never finishes its body: each holds the only place.
    for begun in ["GET / HT", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab"] {
        let answer = server.ask(begun).await;
        assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    assert!(server.get("/", "").await.starts_with("HTTP/1.1 200"));
    server.end().await;
}

#[tokio::test]
async fn one_request_a_connection() {
    let server = start(Limits::default(), Arc::new(Echo)).await;
    let two = "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n";
    assert_eq!(server.ask(two).await.matches("HTTP/1.1").count(), 1);
    server.end().await;
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let taken = bind("127.0.0.1:0".parse().unwrap()).await.unwrap().local_addr().unwrap();
    let held = bind(taken).await.unwrap();
    let error = bind(taken).await.unwrap_err();
    assert!(error.to_string().starts_with(&format!("can't listen on {taken}: ")), "{error}");
    drop(held);
    assert!(bind("[::]:0".parse().unwrap()).await.is_ok());
}
