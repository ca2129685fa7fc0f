use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use kube::client::Body;
use mesh_model::document::Document;
use mesh_model::object::ObjectKey;
use mesh_model::problem::{ObjectOrigin, Problem, Severity};
use mesh_model::workload::PodNetworks;
use parking_lot::Mutex;

use super::*;
use crate::ca::testing::Answering;

const MESHES: &str = "/apis/gateway.networking.x-k8s.io/v1alpha1/xmeshes";

/// An API server with policies, and without the kind Mesh.
#[derive(Default)]
struct Server {
    policies: Mutex<Vec<Value>>,
    patched: Mutex<Vec<(String, Value)>>,
    conflict: std::sync::atomic::AtomicBool,
    /// Served at HTTPRoute's path, if any are.
    routes: Mutex<Vec<Value>>,
    /// Lists by path, beside all these.
    lists: Mutex<HashMap<&'static str, Vec<Value>>>,
    /// The objects of the kind XMesh, if that is installed.
    meshes: Mutex<Option<Vec<Value>>>,
    created: Mutex<Vec<Value>>,
    /// A path that nobody may write.
    forbidden: Mutex<Option<&'static str>>,
}

impl Server {
    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let answer =
            |code: StatusCode, value: Value| Response::builder().status(code).body(Body::from(value.to_string().into_bytes())).unwrap();
        let failed = |code: u16| json!({ "kind": "Status", "status": "Failure", "code": code, "reason": "x", "message": "no" });
        let path = head.uri.path().to_owned();
        match head.method {
            Method::GET if path == "/apis/security.istio.io/v1/authorizationpolicies" => {
                answer(StatusCode::OK, json!({ "metadata": {}, "items": &*self.policies.lock() }))
            }
            Method::GET if path == "/apis/security.istio.io/v1beta1/peerauthentications" => {
                answer(StatusCode::OK, json!({ "metadata": {}, "items": [{ "metadata": { "name": "p", "namespace": "shop" } }] }))
            }
            Method::GET if path == "/apis/gateway.networking.k8s.io/v1/httproutes" => {
                answer(StatusCode::OK, json!({ "metadata": {}, "items": &*self.routes.lock() }))
            }
            Method::GET if path == MESHES && self.meshes.lock().is_some() => {
                answer(StatusCode::OK, json!({ "metadata": {}, "items": &*self.meshes.lock() }))
            }
            Method::GET if self.lists.lock().contains_key(&*path) => {
                answer(StatusCode::OK, json!({ "metadata": {}, "items": self.lists.lock().get(&*path) }))
            }
            Method::GET => answer(StatusCode::NOT_FOUND, failed(404)),
            Method::POST if path == MESHES => {
                let sent: Value = serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap();
                self.created.lock().push(sent.clone());
                answer(StatusCode::CREATED, sent)
            }
            Method::PATCH if self.conflict.load(std::sync::atomic::Ordering::Relaxed) => answer(StatusCode::CONFLICT, failed(409)),
            Method::PATCH if *self.forbidden.lock() == Some(&path) => answer(StatusCode::FORBIDDEN, failed(403)),
            Method::PATCH => {
                let sent: Value = serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap();
                self.patched.lock().push((path, sent));
                answer(StatusCode::OK, json!({ "apiVersion": "x/v1", "kind": "X", "metadata": { "name": "x" } }))
            }
            other => panic!("{other} {path} is not among mesh-control's permissions"),
        }
    }
}

fn statuses(server: &Arc<Server>) -> Statuses {
    let answers = server.clone();
    let answering = Answering(move |request| {
        let server = answers.clone();
        async move { server.answer(request).await }
    });
    Statuses {
        client: Client::new(answering, "mesh"),
        lease: LeaseName { namespace: "mesh".into(), name: "lease".into() },
        leadership: watch::channel(Leadership::Leads(Instant::now())).1,
        snapshots: watch::channel(Arc::new(snapshot(Vec::new()))).1,
        book: watch::channel(Arc::default()).1,
        metrics: Arc::new(Metrics::new()),
    }
}

fn snapshot(problems: Vec<Problem>) -> Snapshot {
    Snapshot::build_on_node(std::iter::empty::<&Document>(), problems, &PodNetworks::default(), None)
}

/// Something among the objects of the mesh that is about a state of the policy shop/a.
fn problem(generation: i64) -> Problem {
    let key = ObjectKey { kind: Kind::AuthorizationPolicy, namespace: "shop".into(), name: "a".into() };
    let origin = ObjectOrigin { key, resource_version: "1".into(), generation: Some(generation) };
    Problem {
        severity: Severity::Warn,
        origin: Origin::Object(Arc::new(origin)),
        object: "AuthorizationPolicy shop/a".into(),
        field: "spec.selector".into(),
        message: "selects nothing".into(),
    }
}

fn policy(spec: Value) -> Value {
    json!({ "metadata": { "name": "a", "namespace": "shop", "generation": 2, "resourceVersion": "9" }, "spec": spec })
}

#[tokio::test]
async fn each_policy_is_told_what_became_of_it() {
    let server = Arc::new(Server::default());
    server
        .policies
        .lock()
        .push(policy(json!({ "action": "ALLOW", "rules": [{ "from": [{ "source": { "ipBlocks": ["10.0.0.0/99"] } }] }] })));
    let statuses = statuses(&server);
    let (mut seen, start) = (Seen::default(), Instant::now());
    let both = snapshot(vec![problem(2), problem(1)]);
    assert!(statuses.reconcile(&both, &mut seen, start).await.unwrap(), "too new to be judged");
    assert_eq!(server.patched.lock().len(), 0);
    assert!(!statuses.reconcile(&both, &mut seen, start + RIPE).await.unwrap());
    let patched = std::mem::take(&mut *server.patched.lock());
    let paths: Vec<&str> = patched.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(
        paths,
        [
            "/apis/security.istio.io/v1beta1/namespaces/shop/peerauthentications/p/status",
            "/apis/security.istio.io/v1/namespaces/shop/authorizationpolicies/a/status"
        ]
    );
    assert_eq!(patched[0].1["status"]["conditions"][0]["status"], "True");
    let condition = &patched[1].1["status"]["conditions"][0];
    assert_eq!(
        (&condition["status"], &condition["reason"], &condition["observedGeneration"]),
        (&json!("False"), &json!("Invalid"), &json!(2))
    );
    let message = condition["message"].as_str().unwrap();
    assert!(message.starts_with("spec.rules[0].from[0].source.ipBlocks[0]: "), "{message}");
    assert_eq!(message.matches("selects nothing").count(), 1, "of this state only: {message}");
    // What is said is not said again.
    server.policies.lock()[0]["status"] = patched[1].1["status"].clone();
    statuses.reconcile(&snapshot(vec![problem(2)]), &mut seen, start + RIPE).await.unwrap();
    let paths: Vec<String> = server.patched.lock().iter().map(|(path, _)| path.clone()).collect();
    assert_eq!(paths, ["/apis/security.istio.io/v1beta1/namespaces/shop/peerauthentications/p/status"]);
}

#[tokio::test]
async fn an_object_that_changes_meanwhile_is_left_to_the_next_look() {
    let server = Arc::new(Server::default());
    server.policies.lock().push(policy(json!({})));
    server.conflict.store(true, std::sync::atomic::Ordering::Relaxed);
    let statuses = statuses(&server);
    let (mut seen, start) = (Seen::default(), Instant::now());
    for after in [Duration::ZERO, RIPE] {
        statuses.reconcile(&snapshot(Vec::new()), &mut seen, start + after).await.unwrap();
    }
    assert!(statuses.metrics.text().unwrap().contains("nodemesh_control_status_writes_total{result=\"conflict\"} 2"));
}

#[tokio::test]
async fn one_object_that_cannot_be_written_keeps_no_other_from_it() {
    let server = Arc::new(Server::default());
    server.policies.lock().push(policy(json!({})));
    *server.forbidden.lock() = Some("/apis/security.istio.io/v1beta1/namespaces/shop/peerauthentications/p/status");
    let statuses = statuses(&server);
    let (mut seen, start) = (Seen::default(), Instant::now());
    assert!(statuses.reconcile(&snapshot(Vec::new()), &mut seen, start).await.unwrap());
    statuses.reconcile(&snapshot(Vec::new()), &mut seen, start + RIPE).await.unwrap_err();
    assert_eq!(server.patched.lock().len(), 1, "the policy's");
}

#[tokio::test]
async fn rules_and_tokens_of_istios_kinds_are_told_what_became_of_them() {
    let server = Arc::new(Server::default());
    let object = |spec: Value| vec![json!({ "metadata": { "name": "a", "namespace": "shop", "generation": 2 }, "spec": spec })];
    server.lists.lock().extend([
        (
            "/apis/networking.istio.io/v1alpha3/destinationrules",
            object(json!({ "host": "web", "trafficPolicy": { "connectionPool": { "http": { "http1MaxPendingRequests": 100 } } } })),
        ),
        (
            "/apis/networking.istio.io/v1beta1/virtualservices",
            object(json!({ "hosts": ["web"], "http": [{ "route": [{ "destination": { "host": "web" } }], "delegate": { "name": "b" } }] })),
        ),
        (
            "/apis/networking.istio.io/v1/serviceentries",
            object(json!({ "hosts": ["a.example.com"], "ports": [{ "number": 80, "name": "http" }], "location": "MOON" })),
        ),
        ("/apis/security.istio.io/v1/requestauthentications", object(json!({ "jwtRules": [{ "issuer": "a", "jwks": "{}" }] }))),
    ]);
    let statuses = statuses(&server);
    let (mut seen, start) = (Seen::default(), Instant::now());
    for after in [Duration::ZERO, RIPE] {
        statuses.reconcile(&snapshot(Vec::new()), &mut seen, start + after).await.unwrap();
    }
    let patched = std::mem::take(&mut *server.patched.lock());
    let told: Vec<_> = patched
        .iter()
        .filter(|(path, _)| !path.contains("peerauthentications"))
        .map(|(path, sent)| {
            let condition = &sent["status"]["conditions"][0];
            let field = condition["message"].as_str().unwrap().split(": ").next().unwrap();
            assert_eq!(condition["type"], "Reconciled", "{path}");
            (path.as_str(), condition["reason"].as_str().unwrap(), field)
        })
        .collect();
    assert_eq!(
        told,
        [
            ("/apis/security.istio.io/v1/namespaces/shop/requestauthentications/a/status", "Invalid", "spec.jwtRules[0].jwks"),
            ("/apis/networking.istio.io/v1beta1/namespaces/shop/virtualservices/a/status", "Invalid", "spec.http[0].delegate"),
            ("/apis/networking.istio.io/v1alpha3/namespaces/shop/destinationrules/a/status", "Reconciled", "understood in whole"),
            ("/apis/networking.istio.io/v1/namespaces/shop/serviceentries/a/status", "Invalid", "spec.location"),
        ]
    );
}

#[tokio::test]
async fn a_route_is_told_of_its_parents() {
    let server = Arc::new(Server::default());
    let route = json!({
        "metadata": { "name": "r", "namespace": "shop", "generation": 2, "resourceVersion": "9" },
        "spec": { "parentRefs": [{ "group": "", "kind": "Service", "name": "web" }] },
    });
    server.routes.lock().push(route.clone());
    let mut document = route;
    document["apiVersion"] = json!("gateway.networking.k8s.io/v1");
    document["kind"] = json!("HTTPRoute");
    let parsed = mesh_model::document::parse_documents(std::path::Path::new("a.yaml"), &document.to_string());
    let mesh = Snapshot::build(&parsed.documents, parsed.problems, None);
    let statuses = statuses(&server);
    let (mut seen, start) = (Seen::default(), Instant::now());
    for after in [Duration::ZERO, RIPE] {
        statuses.reconcile(&mesh, &mut seen, start + after).await.unwrap();
    }
    let patched = server.patched.lock();
    let (path, sent) = patched.last().unwrap();
    assert_eq!(path, "/apis/gateway.networking.k8s.io/v1/namespaces/shop/httproutes/r/status");
    let entry = &sent["status"]["parents"][0];
    assert_eq!((&entry["controllerName"], &entry["conditions"][0]["reason"]), (&json!("nodemesh.dev/mesh"), &json!("NoMatchingParent")));
}

#[tokio::test]
async fn the_mesh_is_told_of_where_its_kind_is_installed() {
    let server = Arc::new(Server::default());
    let statuses = statuses(&server);
    let mut seen = Seen::default();
    statuses.reconcile(&snapshot(Vec::new()), &mut seen, Instant::now()).await.unwrap();
    assert!(seen.no_meshes && server.created.lock().is_empty());
    *server.meshes.lock() = Some(vec![json!({ "metadata": { "name": "x" }, "spec": { "controllerName": "example.com/x" } })]);
    statuses.reconcile(&snapshot(Vec::new()), &mut seen, Instant::now()).await.unwrap();
    assert_eq!(server.created.lock()[0]["spec"], json!({ "controllerName": "nodemesh.dev/mesh" }));
    let patched = std::mem::take(&mut *server.patched.lock());
    let paths: Vec<&str> = patched.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(paths, [format!("{MESHES}/nodemesh/status")], "another's is left alone");
    let mut made = server.created.lock()[0].clone();
    made["status"] = patched[0].1["status"].clone();
    *server.meshes.lock() = Some(vec![made]);
    statuses.reconcile(&snapshot(Vec::new()), &mut seen, Instant::now()).await.unwrap();
    assert!(server.patched.lock().is_empty() && server.created.lock().len() == 1, "what is said is not said again");
}
