//! Spans of requests, as a collector of OTLP gets to see them. A mesh of its own: what is sampled is a setting of the whole mesh.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_lab::manifests::authorization_policy;
use mesh_lab::netns;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Word;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use tonic::codegen::Service as _;

use super::*;

/// A span with the words of its attributes and of its resource's.
#[derive(Clone, Debug)]
struct Told {
    span: Span,
    words: BTreeMap<String, String>,
    resource: BTreeMap<String, String>,
}

impl Told {
    fn word(&self, key: &str) -> &str {
        self.words.get(key).map(String::as_str).unwrap_or_default()
    }
}

fn words(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let word = |attribute: &KeyValue| match attribute.value.as_ref().and_then(|value| value.value.clone()) {
        Some(Word::StringValue(text)) => text,
        other => other.map(|other| format!("{other:?}").replace("IntValue(", "").replace(')', "")).unwrap_or_default(),
    };
    attributes.iter().map(|attribute| (attribute.key.clone(), word(attribute))).collect()
}

/// A collector on a node.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Told>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let mut told = self.0.lock().unwrap();
        for of in request.into_inner().resource_spans {
            let resource = words(&of.resource.unwrap_or_default().attributes);
            let spans = of.scope_spans.into_iter().flat_map(|scope| scope.spans);
            told.extend(spans.map(|span| Told { words: words(&span.attributes), resource: resource.clone(), span }));
        }
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Listens on the node's own address until the process ends.
    fn serve(&self, cluster: &Cluster, node: &str, port: u16) {
        let node = cluster.node(node);
        let address = SocketAddr::new(node.addresses()[0], port);
        let listener = netns::within(&node.netns(), || TcpListener::bind(address)).unwrap().unwrap();
        listener.set_nonblocking(true).unwrap();
        let service = TraceServiceServer::new(self.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let service = service.clone();
                    let answer = service_fn(move |request| service.clone().call(request));
                    tokio::spawn(http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), answer));
                }
            });
        });
    }

    fn of(&self, path: &str) -> Vec<Told> {
        self.0.lock().unwrap().iter().filter(|told| told.word("url.path") == path).cloned().collect()
    }

    /// The client's and the server's span of the only request for a path.
    fn both(&self, path: &str) -> (Told, Told) {
        wait_until("both spans", LIMIT, || self.of(path).len() >= 2)
            .unwrap_or_else(|error| panic!("{error}: {:?}", self.0.lock().unwrap()));
        let all = self.of(path);
        assert_eq!(all.len(), 2, "{all:?}");
        let of =
            |kind: SpanKind| all.iter().find(|told| told.span.kind() == kind).cloned().unwrap_or_else(|| panic!("no {kind:?}: {all:?}"));
        (of(SpanKind::Client), of(SpanKind::Server))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn tracing(port: u16, sampling: u8) -> Value {
    settings(json!({ "tracing": { "endpoint": format!("http://172.31.0.1:{port}"), "sampling": sampling } }))
}

const SERVICE: &str = "http://10.97.9.1";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

#[test]
fn a_request_across_nodes_is_a_tree_of_spans() {
    let ground = ground(
        "trace",
        &[
            ("n1", PodSpec::new("shop", "client").label("app", "web")),
            ("n2", PodSpec::new("shop", "server").label("app", "cart").label("version", "v7")),
        ],
    );
    let retry = json!({ "codes": [503], "attempts": 2, "backoff": "10ms" });
    let mut to_cart = route("cart", &json!([{ "name": "all", "retry": retry, "backendRefs": [to("cart")] }]));
    to_cart["spec"]["parentRefs"][0]["port"] = json!(80);
    // The server's agent takes connections apart only where policy asks for it.
    let allow =
        authorization_policy("shop", "cart", &[("app", "cart")], "ALLOW", &json!([{ "to": [{ "operation": { "methods": ["GET"] } }] }]));
    ground.put("cart", &[service("shop", "cart", &["10.97.9.1"], "cart", &[("http", 80, 8080)]), to_cart, allow]);
    let cluster = ground.start();
    let _server = cluster.pod("server").serve_http("cart", 8080).unwrap();
    let client = cluster.pod("client");
    let get = |path: &str, more: &[&str]| client.curl(&[more, &[&format!("{SERVICE}{path}")]].concat()).unwrap();
    let seen = |path: &str, more: &[&str]| {
        let answer = get(path, more);
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.seen().all("traceparent").iter().map(|value| (*value).to_owned()).collect::<Vec<_>>()
    };

    // Off: a trace begins, unsampled, and one that has begun goes on as it is.
    let begun = seen("/off", &[]);
    assert!(begun.len() == 1 && begun[0].ends_with("-00"), "{begun:?}");
    let theirs = format!("traceparent: 00-{TRACE}-b7ad6b7169203331-01");
    assert_eq!(seen("/off", &["-H", &theirs]), [&theirs[13..]]);

    let collector = Collector::default();
    collector.serve(&cluster, "n1", 4317);
    cluster.apply("mesh", &[tracing(4317, 100)]);
    let wait_on = |wanted: &str| {
        let on = || ["n1", "n2"].iter().all(|node| cluster.agent(node).log().contains(wanted));
        wait_until("the exporters follow the settings", SOON, on).unwrap();
    };
    wait_on("spans of requests are exported");
    let sent_on = seen("/begun?token=secret", &["-H", "Authorization: Bearer secret"]);
    let (near, far) = collector.both("/begun");
    assert_eq!((near.span.parent_span_id.len(), near.span.name.as_str()), (0, "GET"), "{near:?}");
    assert_eq!((&far.span.trace_id, &far.span.parent_span_id), (&near.span.trace_id, &near.span.span_id), "{near:?} {far:?}");
    assert_eq!(sent_on, [format!("00-{}-{}-01", hex(&near.span.trace_id), hex(&far.span.span_id))]);
    assert_eq!((near.resource["service.name"].as_str(), far.resource["service.name"].as_str()), ("web", "cart"));
    assert_eq!((near.resource["k8s.node.name"].as_str(), far.resource["k8s.node.name"].as_str()), ("n1", "n2"));
    assert_eq!((far.resource["k8s.pod.name"].as_str(), far.resource["service.version"].as_str()), ("server", "v7"));
    let server = cluster.pod("server").ipv4().to_string();
    for (key, value) in [
        ("http.request.method", "GET"),
        ("http.response.status_code", "200"),
        ("server.address", "10.97.9.1"),
        ("server.port", "80"),
        ("network.peer.address", &server),
        ("nodemesh.destination.workload", "server"),
        ("nodemesh.destination.principal", "spiffe://cluster.local/ns/shop/sa/default"),
        ("nodemesh.route", "HTTPRoute shop/cart rule 0 (all)"),
        ("nodemesh.connection_security_policy", "mutual_tls"),
        ("nodemesh.response_flags", "-"),
    ] {
        assert_eq!(near.word(key), value, "{key} of {near:?}");
    }
    assert_eq!((far.word("client.address"), far.word("nodemesh.source.workload")), (&*client.ipv4().to_string(), "client"), "{far:?}");
    assert!(!format!("{near:?}{far:?}").contains("secret"), "{near:?} {far:?}");
    // The log names the same trace.
    let line = cluster.access("n2", &[("direction", "inbound"), ("path", "/begun")]);
    assert_eq!(text(&line, "trace_id"), hex(&far.span.trace_id), "{line}");

    // A trace that has begun goes on below the span that asks.
    let answer = get("/continued", &["-H", &theirs, "-H", "tracestate: congo=t61rcWkgMzE"]);
    assert_eq!(answer.seen().all("tracestate"), ["congo=t61rcWkgMzE"]);
    let (near, far) = collector.both("/continued");
    assert_eq!((hex(&near.span.trace_id), hex(&near.span.parent_span_id)), (TRACE.into(), "b7ad6b7169203331".into()));
    assert_eq!((near.span.trace_state.as_str(), &far.span.parent_span_id), ("congo=t61rcWkgMzE", &near.span.span_id));

    // Attempts and refusals.
    assert_eq!(get("/again?fails=1&key=a", &[]).status, 200);
    wait_until("a span of each attempt's server", LIMIT, || collector.of("/again").len() >= 3).unwrap();
    let all = collector.of("/again");
    let near = all.iter().find(|told| told.span.kind() == SpanKind::Client).unwrap();
    assert_eq!((near.word("http.request.resend_count"), near.span.status.is_none()), ("1", true), "{near:?}");
    let far: Vec<_> = all.iter().filter(|told| told.span.kind() == SpanKind::Server).collect();
    assert!(far.len() == 2 && far.iter().all(|told| told.span.parent_span_id == near.span.span_id), "{all:?}");
    assert_eq!(get("/denied", &["-X", "POST"]).status, 403);
    let (near, far) = collector.both("/denied");
    assert_eq!((near.word("error.type"), far.word("nodemesh.response_flags"), far.span.status.is_none()), ("403", "DENY", true), "{far:?}");

    // Not sampled by its beginner: as it is, and no span. What was put into the queue before the next one's spans would be here.
    let quiet = theirs.replace("-01", "-00");
    assert_eq!(seen("/quiet", &["-H", &quiet]), [&quiet[13..]]);
    seen("/after-quiet", &[]);
    collector.both("/after-quiet");
    assert_eq!(collector.of("/quiet").len(), 0);

    // None of those that begin here, and still those that are asked for.
    cluster.apply("mesh", &[tracing(4317, 0)]);
    wait_on("\"sampling_ppm\":0");
    assert!(seen("/none", &[])[0].ends_with("-00"));
    seen("/asked", &["-H", &theirs]);
    collector.both("/asked");
    assert_eq!(collector.of("/none").len(), 0);
    assert!(cluster.sum("n1", "nodemesh_spans_exported_total", &[]) >= 5.0, "{}", cluster.lines("n1", "nodemesh_spans"));
    assert_eq!(cluster.sum("n1", "nodemesh_spans_dropped_total", &[]), 0.0);

    // A collector that is away costs no request, and gets what waits for it once it is there.
    cluster.apply("mesh", &[tracing(4318, 100)]);
    wait_on("172.31.0.1:4318");
    for _ in 0..20 {
        seen("/away", &[]);
    }
    wait_on("the collector does not take spans");
    let late = Collector::default();
    late.serve(&cluster, "n1", 4318);
    wait_until("what waited", LIMIT, || late.of("/away").len() == 40).unwrap_or_else(|error| panic!("{error}: {}", late.of("/away").len()));
    assert_eq!(cluster.sum("n1", "nodemesh_spans_dropped_total", &[]), 0.0);
}
