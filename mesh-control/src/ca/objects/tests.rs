use std::sync::atomic::{AtomicUsize, Ordering};

use ::kube::client::Body;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use serde_json::Value;

use super::super::testing::Answering;
use super::*;

/// An API server with one Secret and one ConfigMap, which locks optimistically.
#[derive(Default)]
struct Server {
    secret: Mutex<(u64, Value)>,
    bundle: Mutex<Value>,
    annotations: Mutex<serde_json::Map<String, Value>>,
    /// Whether the Secret may be read only.
    read_only: std::sync::atomic::AtomicBool,
    /// Writes by others that come before the next update.
    rivals: Mutex<Vec<Value>>,
    updates: AtomicUsize,
}

impl Server {
    fn objects(self: &Arc<Self>) -> Objects {
        let names = ObjectNames { namespace: "mesh".into(), secret: "ca".into(), bundle: "roots".into() };
        let server = self.clone();
        let answering = Answering(move |request| {
            let server = server.clone();
            async move { server.answer(request).await }
        });
        Objects::new(Client::new(answering, "mesh"), names)
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let sent: Value = serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap_or_default();
        let answer =
            |code: StatusCode, value: Value| Response::builder().status(code).body(Body::from(value.to_string().into_bytes())).unwrap();
        match (head.method, head.uri.path()) {
            (Method::GET, "/api/v1/namespaces/mesh/secrets/ca") => answer(StatusCode::OK, self.secret()),
            (Method::PUT, "/api/v1/namespaces/mesh/secrets/ca") => {
                if self.read_only.load(Ordering::Relaxed) {
                    let status = json!({ "kind": "Status", "status": "Failure", "code": 403, "reason": "Forbidden", "message": "no" });
                    return answer(StatusCode::FORBIDDEN, status);
                }
                self.updates.fetch_add(1, Ordering::Relaxed);
                let mut secret = self.secret.lock();
                if let Some(rival) = self.rivals.lock().pop() {
                    *secret = (secret.0 + 1, rival);
                }
                let version = sent["metadata"]["resourceVersion"].as_str().and_then(|version| version.parse::<u64>().ok());
                if version != Some(secret.0) {
                    let status = json!({ "kind": "Status", "status": "Failure", "code": 409, "reason": "Conflict", "message": "changed" });
                    return answer(StatusCode::CONFLICT, status);
                }
                *secret = (secret.0 + 1, sent["data"].clone());
                answer(StatusCode::OK, sent)
            }
            (Method::GET, "/api/v1/namespaces/mesh/configmaps/roots") => answer(StatusCode::OK, self.bundle()),
            (Method::PATCH, "/api/v1/namespaces/mesh/configmaps/roots") => {
                if let Some(annotations) = sent["metadata"]["annotations"].as_object() {
                    self.annotations.lock().extend(annotations.clone());
                } else {
                    *self.bundle.lock() = sent["data"].clone();
                }
                answer(StatusCode::OK, self.bundle())
            }
            other => panic!("{other:?} is not among mesh-control's permissions"),
        }
    }

    fn secret(&self) -> Value {
        let (version, data) = &*self.secret.lock();
        json!({ "metadata": { "name": "ca", "namespace": "mesh", "resourceVersion": version.to_string() }, "data": data })
    }

    fn bundle(&self) -> Value {
        let annotations = &*self.annotations.lock();
        json!({ "metadata": { "name": "roots", "namespace": "mesh", "annotations": annotations }, "data": &*self.bundle.lock() })
    }
}

fn data_of(root: &hierarchy::Signer) -> Value {
    serde_json::to_value(secret::written(root)).unwrap()
}

#[tokio::test]
async fn an_empty_secret_is_filled_once_and_read_by_all() {
    let server = Arc::new(Server::default());
    let now = SystemTime::now();
    let first = server.objects().authority(now).await.unwrap();
    let second = server.objects().authority(now).await.unwrap();
    assert_eq!(first.signer.certificate, second.signer.certificate);
    assert_eq!(server.updates.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn of_two_that_fill_it_at_once_both_use_the_first() {
    let server = Arc::new(Server::default());
    let now = SystemTime::now();
    let rival = make_root(now).unwrap();
    server.rivals.lock().push(data_of(&rival));
    let given = server.objects().authority(now).await.unwrap();
    assert_eq!(given.signer.certificate, rival.certificate);
}

#[tokio::test]
async fn what_cannot_be_read_is_said_and_not_overwritten() {
    let server = Arc::new(Server::default());
    server.secret.lock().1 = json!({ "tls.crt": "eA==" });
    let error = server.objects().authority(SystemTime::now()).await.unwrap_err().to_string();
    assert!(error.contains("Secret mesh/ca: has no key tls.key"), "{error}");
    assert_eq!(server.updates.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_secret_that_somebody_empties_is_not_fought_over_for_ever() {
    let server = Arc::new(Server::default());
    server.rivals.lock().extend(std::iter::repeat_n(json!({}), 2 * ATTEMPTS));
    assert!(matches!(server.objects().authority(SystemTime::now()).await, Err(ObjectError::Restless(_))));
}

#[tokio::test]
async fn roots_are_published_where_others_are() {
    let server = Arc::new(Server::default());
    let objects = server.objects();
    assert!(objects.publish("one").await.unwrap());
    assert!(!objects.publish("one").await.unwrap());
    assert!(objects.publish("two").await.unwrap());
    assert_eq!(server.bundle()["data"][BUNDLE_KEY], "two");
}

#[tokio::test]
async fn no_root_is_made_while_agents_trust_another() {
    let server = Arc::new(Server::default());
    let root = make_root(SystemTime::now()).unwrap();
    server.objects().publish(&crate::files::pem("CERTIFICATE", &root.certificate)).await.unwrap();
    let error = server.objects().authority(SystemTime::now()).await.unwrap_err();
    assert!(matches!(error, ObjectError::Emptied { .. }) && !error.may_pass(), "{error}");
    assert_eq!(server.updates.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_users_empty_secret_is_said_to_be_theirs_to_fill() {
    let server = Arc::new(Server::default());
    server.read_only.store(true, Ordering::Relaxed);
    let error = server.objects().authority(SystemTime::now()).await.unwrap_err();
    assert!(matches!(&error, ObjectError::NotOurs(name) if name == "Secret mesh/ca"), "{error}");
}

impl Server {
    fn ask(&self, request: &str) {
        self.annotations.lock().insert(REQUEST.into(), request.into());
    }

    fn answered(&self) -> Value {
        serde_json::from_str(self.annotations.lock()[ANSWER_TO].as_str().unwrap()).unwrap()
    }
}

#[tokio::test]
async fn a_step_of_a_rotation_is_made_once_and_answered() {
    let server = Arc::new(Server::default());
    let now = SystemTime::now();
    let before = server.objects().authority(now).await.unwrap();
    assert_eq!(server.objects().rotate(now).await.unwrap(), None, "nobody asked");
    server.ask("prepare/one");
    server.objects().rotate(now).await.unwrap().unwrap();
    let answer = server.answered();
    assert_eq!((&answer["request"], &answer["state"]["phase"], answer.get("refused")), (&json!("one"), &json!("prepared"), None));
    assert_eq!(answer["state"]["old"], rotation::fingerprint(&before.signer.certificate));
    let (after, state) = server.objects().read().await.unwrap().unwrap();
    assert_eq!(state.request, "one");
    assert_eq!((after.roots.len(), &after.signer.certificate), (2, &before.signer.certificate));
    assert_eq!(server.objects().rotate(now).await.unwrap(), None, "answered already");
    // A replica that made the step and ended before it could answer.
    server.annotations.lock().remove(ANSWER_TO);
    server.objects().rotate(now).await.unwrap().unwrap();
    assert_eq!((server.answered(), server.updates.load(Ordering::Relaxed)), (answer, 2));
}

#[tokio::test]
async fn of_two_replicas_one_makes_the_step() {
    let server = Arc::new(Server::default());
    let now = SystemTime::now();
    server.objects().authority(now).await.unwrap();
    server.ask("prepare/one");
    let data: rotation::Data = serde_json::from_value(server.secret.lock().1.clone()).unwrap();
    let (rival, _) = rotation::step("mesh/ca", &data, Step::Prepare, "one", now).unwrap();
    server.rivals.lock().push(serde_json::to_value(&rival).unwrap());
    assert_eq!(server.objects().rotate(now).await.unwrap(), None);
    assert_eq!(server.objects().rotate(now).await.unwrap().unwrap().refused, None);
    assert_eq!(server.secret.lock().1, serde_json::to_value(&rival).unwrap());
}

#[tokio::test]
async fn a_step_that_cannot_be_made_is_answered_with_the_reason() {
    let server = Arc::new(Server::default());
    let now = SystemTime::now();
    server.objects().authority(now).await.unwrap();
    for (asked, said) in [
        ("revoke/a", "revoke does not follow"),
        ("rotate/b", "is not STEP/NAME"),
        ("prepare", "is not STEP/NAME"),
        ("prepare/<b>", "is not STEP/NAME"),
    ] {
        server.ask(asked);
        server.objects().rotate(now).await.unwrap().unwrap();
        assert!(server.answered()["refused"].as_str().unwrap().contains(said), "{asked}: {}", server.answered());
        assert_eq!(server.objects().rotate(now).await.unwrap(), None, "{asked}");
    }
    server.ask("prepare/c");
    server.objects().rotate(now).await.unwrap().unwrap();
    server.ask("activate/d");
    server.objects().rotate(now + Duration::from_secs(20)).await.unwrap().unwrap();
    let answer = server.answered();
    assert!((100..=101).contains(&answer["retryAfter"].as_u64().unwrap()) && answer["state"]["phase"] == "prepared", "{answer}");
    server.read_only.store(true, Ordering::Relaxed);
    server.ask("abort/e");
    server.objects().rotate(now).await.unwrap().unwrap();
    assert!(server.answered()["refused"].as_str().unwrap().starts_with("Secret mesh/ca is not the mesh's own to change"));
}
