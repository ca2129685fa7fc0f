use std::path::Path;

use http::HeaderMap;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_model::document::parse_documents;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTracePartialSuccess, ExportTraceServiceResponse};
use parking_lot::Mutex;
use tonic::codegen::Service as _;
use tonic::{Request, Response};

use super::*;
use crate::ops::access::{AccessConfig, AccessFormat, AccessLevel};
use crate::ops::fixtures::{self, World};
use crate::ops::metrics::requests::RequestProtocol;
use crate::ops::trace::{Hop, Open};
use crate::ops::{RequestLine, RequestRecorder};
use crate::outcome::Outcome;

const LIMIT: Duration = Duration::from_secs(20);

/// Takes spans, and says what it is told to.
#[derive(Clone, Default)]
struct Collector {
    taken: Arc<Mutex<Vec<ResourceSpans>>>,
    refuse: Arc<Mutex<Vec<Code>>>,
    reject: i64,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(&self, request: Request<ExportTraceServiceRequest>) -> Result<Response<ExportTraceServiceResponse>, Status> {
        if let Some(code) = self.refuse.lock().pop() {
            return Err(Status::new(code, "not now"));
        }
        self.taken.lock().extend(request.into_inner().resource_spans);
        let partial = ExportTracePartialSuccess { rejected_spans: self.reject, error_message: "too old".into() };
        Ok(Response::new(ExportTraceServiceResponse { partial_success: (self.reject > 0).then_some(partial) }))
    }
}

impl Collector {
    /// Serves it on an address of its own.
    async fn serve(&self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let service = TraceServiceServer::new(self.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = service.clone();
                let answer = service_fn(move |request| service.clone().call(request));
                tokio::spawn(http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), answer));
            }
        });
        endpoint
    }

    fn spans(&self) -> usize {
        self.taken.lock().iter().flat_map(|of| &of.scope_spans).map(|scope| scope.spans.len()).sum()
    }
}

fn settings(tracing: &str) -> Arc<Snapshot> {
    let text = format!("apiVersion: nodemesh.dev/v1alpha1\nkind: Mesh\nmetadata: {{name: default}}\nspec: {{{tracing}}}\n");
    let parsed = parse_documents(Path::new("mesh.yaml"), &text);
    let snapshot = Snapshot::build(&parsed.documents, parsed.problems, None);
    assert_eq!(snapshot.problems(), []);
    Arc::new(snapshot)
}

fn world() -> World {
    fixtures::world(AccessConfig { level: AccessLevel::Off, format: AccessFormat::Json, rate: 1.0, burst: 1.0 })
}

/// A request of the world that has ended.
fn request(world: &World) {
    let headers = HeaderMap::new();
    let line = RequestLine {
        method: "GET".into(),
        path: "/".into(),
        authority: "cart".into(),
        protocol: RequestProtocol::Http,
        status: 200,
        grpc_status: None,
        route: None,
        attempts: 1,
    };
    let hop = Hop::of(&headers, world.telemetry.spans().sampler(), || (7, 8));
    let mut record = RequestRecorder::new(&world.telemetry, fixtures::connection(), line);
    record.span = Open::of(hop, &headers, false);
    record.finish(Outcome::Completed);
}

fn counted(world: &World, series: &str) -> u64 {
    let text = world.scrape();
    let line = text.lines().find(|line| line.starts_with(series)).unwrap_or_else(|| panic!("no {series}:\n{text}"));
    line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64
}

fn dropped(world: &World, reason: &str) -> u64 {
    counted(world, &format!("nodemesh_spans_dropped_total{{reason=\"{reason}\"}}"))
}

fn exporter() -> Exporter {
    Exporter { cluster: "east".into(), node: "n1".into() }
}

/// Runs an exporter by these settings while a test does something.
async fn exporting<T>(world: &World, settings: Arc<Snapshot>, work: impl AsyncFnOnce(&watch::Sender<Arc<Snapshot>>) -> T) -> T {
    let (change, snapshots) = watch::channel(settings);
    let run = exporter().run(world.telemetry.spans().clone(), snapshots);
    tokio::select! {
        () = run => unreachable!("it never ends"),
        done = async {
            // The exporter has the first turn.
            tokio::task::yield_now().await;
            work(&change).await
        } => done,
    }
}

#[tokio::test]
async fn spans_reach_the_collector_and_the_settings_are_followed() {
    let (world, first, second) = (world(), Collector::default(), Collector::default());
    let spans = world.telemetry.spans().clone();
    request(&world);
    assert!(spans.flush(LIMIT).await, "nothing is made before somebody asks for it");
    let (one, two) = (first.serve().await, second.serve().await);
    exporting(&world, settings(&format!("tracing: {{endpoint: '{one}', sampling: 100}}")), async |change| {
        while spans.sampler().is_none() {
            tokio::task::yield_now().await;
        }
        for _ in 0..3 {
            request(&world);
        }
        assert!(spans.flush(LIMIT).await);
        assert_eq!((first.spans(), counted(&world, "nodemesh_spans_exported_total")), (3, 3));
        let resource = first.taken.lock()[0].resource.clone().unwrap();
        assert!(format!("{resource:?}").contains("\"web\""), "{resource:?}");

        change.send_replace(settings(&format!("tracing: {{endpoint: '{two}', sampling: 0}}")));
        while spans.sampler() != Some(Sampler::new(0)) {
            tokio::task::yield_now().await;
        }
        request(&world);
        assert!(spans.flush(LIMIT).await);
        assert_eq!((first.spans(), second.spans()), (3, 0), "none is sampled");

        change.send_replace(settings(&format!("tracing: {{endpoint: '{two}', sampling: 100}}")));
        while spans.sampler() != Some(Sampler::new(1_000_000)) {
            tokio::task::yield_now().await;
        }
        request(&world);
        assert!(spans.flush(LIMIT).await);
        assert_eq!((first.spans(), second.spans()), (3, 1));

        change.send_replace(settings(""));
        while spans.sampler().is_some() {
            tokio::task::yield_now().await;
        }
        request(&world);
        assert!(spans.flush(LIMIT).await);
        assert_eq!((second.spans(), dropped(&world, "turned_off")), (1, 0));
    })
    .await;
}

#[tokio::test]
async fn what_the_collector_will_not_have_is_counted() {
    let (world, collector) = (world(), Collector { reject: 1, ..Collector::default() });
    let spans = world.telemetry.spans().clone();
    let endpoint = collector.serve().await;
    exporting(&world, settings(&format!("tracing: {{endpoint: '{endpoint}', sampling: 100}}")), async |_| {
        while spans.sampler().is_none() {
            tokio::task::yield_now().await;
        }
        request(&world);
        request(&world);
        assert!(spans.flush(LIMIT).await);
        assert_eq!((counted(&world, "nodemesh_spans_exported_total"), dropped(&world, "rejected")), (1, 1));
        // For good: it is not asked again.
        collector.refuse.lock().push(Code::InvalidArgument);
        request(&world);
        assert!(spans.flush(LIMIT).await);
        assert_eq!((dropped(&world, "export_failed"), collector.spans()), (1, 2));
        // For a moment.
        collector.refuse.lock().push(Code::Unavailable);
        request(&world);
        request(&world);
        assert!(spans.flush(LIMIT).await);
        assert_eq!((dropped(&world, "export_failed"), collector.spans()), (1, 4));
    })
    .await;
}

#[tokio::test]
async fn a_full_queue_makes_nobody_wait() {
    let world = world();
    let spans = world.telemetry.spans().clone();
    spans.set_sampler(Some(Sampler::new(1_000_000)));
    for _ in 0..10_000 {
        request(&world);
    }
    assert_eq!(dropped(&world, "queue_full"), 10_000 - 8192);
    assert!(!spans.flush(Duration::ZERO).await);
    // Nobody asks for them any more.
    exporting(&world, settings(""), async |_| assert!(spans.flush(LIMIT).await)).await;
    assert_eq!(dropped(&world, "turned_off"), 8192);
}
