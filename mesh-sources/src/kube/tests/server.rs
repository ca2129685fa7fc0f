//! An API server over loopback: lists, pages, streams and watches objects, and can be told to misbehave.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

type Answer = Response<UnsyncBoxBody<Bytes, std::io::Error>>;

/// How a resource misbehaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Every request gets this status.
    Status(u16),
    /// Every list gets this status; watches are served.
    List(u16),
    /// No request is ever answered.
    Hang,
    /// Each page of a list takes a while.
    Slow(Duration),
    /// Watches get this status.
    Watch(u16),
    /// The answer to a list begins and never ends.
    HalfAList,
}

#[derive(Default)]
struct State {
    /// Objects by resource (path) and name.
    resources: HashMap<String, BTreeMap<String, Value>>,
    /// What happened, by resource: version, type, object.
    log: Vec<(u64, String, &'static str, Value)>,
    version: u64,
    /// Watches from before this version are told that they are too old.
    oldest: u64,
    faults: HashMap<String, Fault>,
    requests: Vec<String>,
    streaming: Streaming,
}

/// What the server does with the wish for a streamed list.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Streaming {
    #[default]
    Done,
    /// It has the feature switched off.
    Refused,
    /// It has the feature, but its store lacks what that needs.
    Failing,
}

/// The server. Ends with the value.
pub struct Server {
    state: Arc<Mutex<State>>,
    news: watch::Sender<u64>,
    /// Ends every connection when it changes.
    cut: watch::Sender<u64>,
    pub address: std::net::SocketAddr,
    task: Mutex<Option<JoinHandle<()>>>,
}

pub const NAMESPACES: &str = "/api/v1/namespaces";
pub const PODS: &str = "/api/v1/pods";
pub const POLICIES: &str = "/apis/security.istio.io/v1/authorizationpolicies";
pub const OLD_POLICIES: &str = "/apis/security.istio.io/v1beta1/authorizationpolicies";
const BUILTIN: [&str; 5] = [NAMESPACES, PODS, "/api/v1/nodes", "/api/v1/services", "/apis/discovery.k8s.io/v1/endpointslices"];

impl Server {
    /// Serves the built-in kinds, with nothing in them.
    pub async fn start() -> Arc<Server> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let state = State { version: 100, ..State::default() };
        let server = Arc::new(Server {
            state: Arc::new(Mutex::new(state)),
            news: watch::Sender::new(0),
            cut: watch::Sender::new(0),
            address: listener.local_addr().unwrap(),
            task: Mutex::new(None),
        });
        for resource in BUILTIN {
            server.install(resource);
        }
        server.listen(listener);
        server
    }

    fn listen(self: &Arc<Self>, listener: TcpListener) {
        let server = Arc::downgrade(self);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let Some(server) = server.upgrade() else { return };
                let mut cut = server.cut.subscribe();
                let (state, news) = (server.state.clone(), server.news.subscribe());
                tokio::spawn(async move {
                    let service = service_fn(move |request| answer(state.clone(), news.clone(), request));
                    let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                    tokio::select! {
                        _ = connection => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        *self.task.lock().unwrap() = Some(task);
    }

    /// Stops: nobody listens any more, and every connection ends.
    pub async fn stop(&self) {
        let task = self.task.lock().unwrap().take().unwrap();
        task.abort();
        let _ = task.await;
        self.cut();
    }

    /// Listens again where it did.
    pub async fn resume(self: &Arc<Self>) {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(self.address).unwrap();
        self.listen(socket.listen(64).unwrap());
    }

    /// Ends every connection.
    pub fn cut(&self) {
        self.cut.send_modify(|count| *count += 1);
    }

    pub fn client(&self) -> ::kube::Client {
        let config = ::kube::Config::new(format!("http://{}", self.address).parse().unwrap());
        super::client::of_config(&config).unwrap()
    }

    fn change<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let result = change(&mut self.state.lock().unwrap());
        self.news.send_modify(|count| *count += 1);
        result
    }

    /// Begins to serve a resource.
    pub fn install(&self, resource: &str) {
        self.change(|state| {
            state.resources.entry(resource.into()).or_default();
        });
    }

    /// Ceases to serve a resource.
    pub fn uninstall(&self, resource: &str) {
        self.change(|state| drop(state.resources.remove(resource)));
        self.cut();
    }

    pub fn fault(&self, resource: &str, fault: impl Into<Option<Fault>>) {
        let fault = fault.into();
        self.change(|state| match fault {
            Some(fault) => drop(state.faults.insert(resource.into(), fault)),
            None => drop(state.faults.remove(resource)),
        });
    }

    pub fn streaming(&self, streaming: Streaming) {
        self.change(|state| state.streaming = streaming);
    }

    /// Makes or changes an object, by its own name.
    pub fn put(&self, resource: &str, mut object: Value) {
        self.change(|state| {
            state.version += 1;
            if let Some(metadata) = object.get_mut("metadata").filter(|metadata| metadata.is_object()) {
                metadata["resourceVersion"] = json!(state.version.to_string());
            }
            let name = name(&object);
            let before = state.resources.get_mut(resource).unwrap().insert(name, object.clone());
            let kind = if before.is_some() { "MODIFIED" } else { "ADDED" };
            state.log.push((state.version, resource.into(), kind, object));
        });
    }

    pub fn delete(&self, resource: &str, name: &str) {
        self.change(|state| {
            state.version += 1;
            let mut object = state.resources.get_mut(resource).unwrap().remove(name).unwrap();
            object["metadata"]["resourceVersion"] = json!(state.version.to_string());
            state.log.push((state.version, resource.into(), "DELETED", object));
        });
    }

    /// Changes without a trace in the log, as when nobody remembers what happened: watches from before are too old.
    pub fn compact(&self, change: impl FnOnce(&mut dyn FnMut(&str, &str, Option<Value>))) {
        self.change(|state| {
            state.version += 10;
            change(&mut |resource, name, object| {
                let objects = state.resources.get_mut(resource).unwrap();
                match object {
                    Some(object) => drop(objects.insert(name.into(), object)),
                    None => drop(objects.remove(name)),
                }
            });
            state.log.clear();
            state.oldest = state.version;
        });
        self.cut();
    }

    /// An event of this type and object, as it is, to every watch.
    pub fn event(&self, resource: &str, kind: &'static str, object: Value) {
        self.change(|state| {
            state.version += 1;
            state.log.push((state.version, resource.into(), kind, object));
        });
    }

    /// Requests so far that have all of these words.
    pub fn requests(&self, words: &[&str]) -> usize {
        let state = self.state.lock().unwrap();
        state.requests.iter().filter(|request| words.iter().all(|word| request.contains(word))).count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(task) = self.task.lock().unwrap().take() {
            task.abort();
        }
        self.cut();
    }
}

fn name(object: &Value) -> String {
    let text = |key: &str| object.get("metadata").and_then(|m| m.get(key)).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (namespace, name) = (text("namespace"), text("name"));
    if namespace.is_empty() { name } else { format!("{namespace}/{name}") }
}

fn status(code: u16, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "reason": "Test", "code": code})
}

fn whole(code: u16, value: &Value) -> Answer {
    let body = Full::new(Bytes::from(value.to_string())).map_err(|never: Infallible| match never {}).boxed_unsync();
    Response::builder().status(StatusCode::from_u16(code).unwrap()).body(body).unwrap()
}

async fn answer(state: Arc<Mutex<State>>, news: watch::Receiver<u64>, request: Request<Incoming>) -> Result<Answer, Infallible> {
    let (path, query) = (request.uri().path().to_owned(), request.uri().query().unwrap_or_default().to_owned());
    let parameters: HashMap<String, String> =
        query.split('&').filter_map(|pair| pair.split_once('=')).map(|(key, value)| (key.into(), value.into())).collect();
    let parameter = |key: &str| parameters.get(key).map(String::as_str);
    let watch = parameter("watch") == Some("true");
    let (fault, served, streaming) = {
        let mut state = state.lock().unwrap();
        state.requests.push(format!("{path}?{query}"));
        (state.faults.get(&path).copied(), state.resources.contains_key(&path), state.streaming)
    };
    match fault {
        Some(Fault::Status(code)) => return Ok(whole(code, &status(code, "told to"))),
        Some(Fault::List(code)) if !watch => return Ok(whole(code, &status(code, "told to"))),
        Some(Fault::Watch(code)) if watch => return Ok(whole(code, &status(code, "told to"))),
        Some(Fault::Hang) => return std::future::pending().await,
        Some(Fault::Slow(time)) if !watch || parameter("sendInitialEvents").is_some() => tokio::time::sleep(time).await,
        _ => {}
    }
    if !served {
        let body = Full::new(Bytes::from_static(b"404 page not found\n")).map_err(|never: Infallible| match never {}).boxed_unsync();
        return Ok(Response::builder().status(404).body(body).unwrap());
    }
    if watch {
        let initial = parameter("sendInitialEvents") == Some("true");
        match streaming {
            Streaming::Refused if initial => {
                return Ok(whole(422, &status(422, "sendInitialEvents: Forbidden: the feature gate WatchList is off")));
            }
            Streaming::Failing if initial => {
                let message = "a watch stream was requested but the required storage feature RequestWatchProgress is disabled";
                return Ok(whole(200, &json!({"type": "ERROR", "object": status(500, message)})));
            }
            _ => {}
        }
        let version = parameter("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
        let half = fault == Some(Fault::HalfAList);
        return Ok(watching(state, news, path, version, initial, half));
    }
    let (limit, from) = (parameter("limit").map(|limit| limit.parse().unwrap()), parameter("continue"));
    let (list, end) = {
        let state = state.lock().unwrap();
        let objects: Vec<Value> = state.resources[&path].values().cloned().collect();
        let begin: usize = from.map_or(0, |from| from.parse().unwrap());
        let end = limit.map_or(objects.len(), |limit: usize| objects.len().min(begin + limit));
        let next = (end < objects.len()).then(|| end.to_string());
        let metadata = json!({"resourceVersion": state.version.to_string(), "continue": next.unwrap_or_default()});
        (json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": objects[begin..end]}), end)
    };
    let _ = end;
    if fault == Some(Fault::HalfAList) {
        let text = list.to_string();
        let half = Bytes::from(text[..text.len() / 2].to_owned());
        let frames = futures_util::stream::unfold(Some(half), |half| async move {
            match half {
                Some(half) => Some((Ok(Frame::data(half)), None)),
                None => std::future::pending().await,
            }
        });
        return Ok(Response::new(BodyExt::boxed_unsync(StreamBody::new(frames))));
    }
    Ok(whole(200, &list))
}

/// Sends events until nobody wants them.
fn watching(state: Arc<Mutex<State>>, mut news: watch::Receiver<u64>, path: String, from: u64, initial: bool, half: bool) -> Answer {
    let (sender, receiver) = mpsc::channel::<Value>(16);
    hyper::rt::Executor::execute(&TokioExecutor::new(), async move {
        let mut at = from;
        if initial {
            let (objects, version) = {
                let state = state.lock().unwrap();
                (state.resources[&path].values().cloned().collect::<Vec<_>>(), state.version)
            };
            for object in objects {
                if sender.send(json!({"type": "ADDED", "object": object})).await.is_err() {
                    return;
                }
            }
            if half {
                return std::future::pending().await;
            }
            at = version;
            let metadata = json!({"resourceVersion": version.to_string(), "annotations": {"k8s.io/initial-events-end": "true"}});
            let bookmark = json!({"type": "BOOKMARK", "object": {"kind": "X", "apiVersion": "v1", "metadata": metadata}});
            if sender.send(bookmark).await.is_err() {
                return;
            }
        }
        loop {
            let (events, too_old, now) = {
                let state = state.lock().unwrap();
                let events: Vec<Value> = state
                    .log
                    .iter()
                    .filter(|(version, resource, ..)| *version > at && *resource == path)
                    .map(|(_, _, kind, object)| json!({"type": kind, "object": object}))
                    .collect();
                (events, at < state.oldest, state.version)
            };
            if too_old {
                let _ = sender.send(json!({"type": "ERROR", "object": status(410, "too old resource version")})).await;
                return;
            }
            at = now;
            for event in events {
                if sender.send(event).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                changed = news.changed() => if changed.is_err() { return },
                () = sender.closed() => return,
            }
        }
    });
    let frames = futures_util::stream::unfold(receiver, |mut receiver| async move {
        let event = receiver.recv().await?;
        Some((Ok(Frame::data(Bytes::from(format!("{event}\n")))), receiver))
    });
    Response::new(BodyExt::boxed_unsync(StreamBody::new(frames)))
}
