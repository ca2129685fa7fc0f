use std::path::Path;

use futures_util::FutureExt as _;
use hyper_util::rt::TokioIo;
use mesh_model::document::parse_documents;
use mesh_model::service::NamespacedName;
use mesh_model::snapshot::Snapshot;
use tokio::io::DuplexStream;

use super::*;
use crate::conn::ServerAddr;

const TERMS: Terms = Terms { idle: IDLE, max_requests: None, max_age: None, max_streams: Some(STREAMS) };

/// Runs a test on one thread, as a worker is.
fn run<F: Future>(test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test)
}

/// Of requests between two pods in the mesh.
fn key(http2: bool) -> ConnectionKey {
    let pod = |name: &str, ip: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, uid: {name}, labels: {{nodemesh.dev/mesh: enabled}}}}\n\
             spec: {{nodeName: n1, serviceAccountName: {name}, containers: []}}\nstatus: {{podIP: {ip}}}\n"
        )
    };
    let parsed = parse_documents(Path::new("mesh.yaml"), &(pod("client", "10.0.1.1") + &pod("server", "10.0.2.1")));
    let snapshot = Snapshot::build(&parsed.documents, parsed.problems, None);
    let at = |ip: &str| snapshot.workload_at(ip.parse().unwrap()).unwrap().clone();
    let (client, workload) = (at("10.0.1.1"), at("10.0.2.1"));
    let server = Server { address: ServerAddr("10.0.2.1:8080".parse().unwrap()), workload: Some(workload.clone()) };
    ConnectionKey {
        client: client.uid.clone(),
        server: server.address.0,
        workload: Some(workload.uid.clone()),
        tunnel: server.tunnel_from(&client),
        http2,
        service: Some(NamespacedName { namespace: "shop".into(), name: "web".into() }),
        tls: None,
    }
}

/// A connection that has just been opened over a tunnel that is good for more as long as it says so, and the server's end of it.
async fn open(pools: &Rc<HttpPools>, key: &ConnectionKey, holds: Option<Holds>) -> (Lease, DuplexStream) {
    let (near, far) = tokio::io::duplex(1 << 16);
    let sender = if key.http2 {
        let (sender, connection) = http2::handshake(Local, TokioIo::new(near)).await.unwrap();
        tokio::task::spawn_local(connection);
        Sender::Http2(sender, Rc::new(Cell::new(usize::MAX)))
    } else {
        let (sender, connection) = http1::handshake(TokioIo::new(near)).await.unwrap();
        tokio::task::spawn_local(connection);
        Sender::Http1(sender)
    };
    (pools.lease(key.clone(), TERMS, sender, Fate::default(), holds, None, None), far)
}

/// How many connections are kept, once there is nothing left to be done.
async fn kept(pools: &HttpPools) -> usize {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    let idle: usize = pools.idle.borrow().values().map(Vec::len).sum();
    idle + pools.shared.borrow().values().map(Vec::len).sum::<usize>()
}

#[test]
fn a_connection_does_not_serve_once_nothing_new_may_begin_on_its_tunnel() {
    for http2 in [false, true] {
        run(async {
            let pools: Rc<HttpPools> = Rc::default();
            let key = key(http2);
            let valid = Rc::new(Cell::new(true));
            let over = || {
                let valid = valid.clone();
                Some(Rc::new(move || valid.get()) as Holds)
            };
            let (lease, _far) = open(&pools, &key, over()).await;
            lease.keep();
            assert_eq!(kept(&pools).await, 1);
            let running = pools.take(&key, TERMS).unwrap();
            valid.set(false);
            assert!(pools.take(&key, TERMS).is_none(), "HTTP/2: {http2}");
            assert!(!pools.shares(&key));
            assert!(!running.connection.as_ref().unwrap().is_closed(), "a request that is under way is not cut off");
            // It may be laid down again, and serves nobody.
            running.keep();
            kept(&pools).await;
            assert!(pools.take(&key, TERMS).is_none());
            assert_eq!(kept(&pools).await, 0);

            // One that nobody asks for is not kept either.
            valid.set(true);
            let (lease, _far) = open(&pools, &key, over()).await;
            lease.keep();
            assert_eq!(kept(&pools).await, 1);
            pools.expire(Instant::now());
            assert_eq!(kept(&pools).await, 1);
            valid.set(false);
            pools.expire(Instant::now());
            assert_eq!(kept(&pools).await, 0);
        });
    }
}

#[test]
fn without_a_tunnel_a_connection_serves_as_long_as_it_is_open() {
    for http2 in [false, true] {
        run(async {
            let pools: Rc<HttpPools> = Rc::default();
            let key = ConnectionKey { tunnel: None, ..key(http2) };
            let (lease, far) = open(&pools, &key, None).await;
            lease.keep();
            assert_eq!(kept(&pools).await, 1);
            pools.take(&key, TERMS).unwrap().keep();
            assert_eq!(kept(&pools).await, 1);
            drop(far);
            kept(&pools).await;
            assert!(pools.take(&key, TERMS).is_none(), "HTTP/2: {http2}");
        });
    }
}

#[test]
fn who_waited_for_a_server_that_speaks_http_1_opens_its_own() {
    run(async {
        let pools: Rc<HttpPools> = Rc::default();
        let key = key(true);
        let Ok(Ready::Open(Some(opening))) = pools.ready(&key, TERMS, &mut Pending::default()).await else { panic!("nobody else opens") };
        let mut pending = [Pending::default(), Pending::default()];
        let mut waiting = pending.each_mut().map(|pending| Box::pin(pools.ready(&key, TERMS, pending)));
        assert!(waiting.iter_mut().all(|one| one.as_mut().now_or_never().is_none()));
        let (lease, _far) = open(&pools, &ConnectionKey { http2: false, ..key.clone() }, None).await;
        opening.done(Ok(&lease));
        for one in waiting {
            assert!(matches!(one.now_or_never(), Some(Ok(Ready::OpenHttp1))));
        }
        // One of HTTP/2 they would have shared.
        let Ok(Ready::Open(Some(opening))) = pools.ready(&key, TERMS, &mut Pending::default()).await else { panic!("nobody else opens") };
        let mut pending = Pending::default();
        let mut waiting = Box::pin(pools.ready(&key, TERMS, &mut pending));
        assert!(waiting.as_mut().now_or_never().is_none());
        let (lease, _far) = open(&pools, &key, None).await;
        opening.done(Ok(&lease));
        assert!(matches!(waiting.now_or_never(), Some(Ok(Ready::Taken(_)))));
    });
}
