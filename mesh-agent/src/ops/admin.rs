//! The admin endpoint on the node's loopback: what is in force, what lives, and a few levers.
//!
//! What the parts of the agent know comes in as providers, registered by name: a closure that makes a JSON value when asked. What they can do
//! comes in as actions. Reading is GET, changing is POST.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::header::{ALLOW, HeaderValue};
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::http::{Answer, Handler, Received, Reply, json as json_reply, text};
use super::log::LogControl;
use super::record::Telemetry;

mod connections;
mod guard;
mod levels;
mod query;

pub use query::Query;

/// Longest time that an action may take.
const ACTION_TIME: Duration = Duration::from_secs(20);

type Provide = Box<dyn Fn(&Query) -> Result<Value, ActionError> + Send + Sync>;

/// What an action gives.
pub type ActionFuture = Pin<Box<dyn Future<Output = Result<Value, ActionError>> + Send>>;

type Act = Box<dyn Fn(Query) -> ActionFuture + Send + Sync>;

/// Why an action was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ActionError {
    /// The request is wrong; the text says what is right.
    #[error("{0}")]
    BadRequest(String),
    /// What it names does not exist.
    #[error("{0}")]
    NotFound(String),
    /// It was tried and failed.
    #[error("{0}")]
    Failed(String),
}

impl ActionError {
    fn status(&self) -> StatusCode {
        match self {
            ActionError::BadRequest(_) => StatusCode::BAD_REQUEST,
            ActionError::NotFound(_) => StatusCode::NOT_FOUND,
            ActionError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

struct Entry<T> {
    what: String,
    run: T,
}

/// The admin endpoint: build it, then serve it with [`super::http::serve`].
pub struct Admin {
    telemetry: Arc<Telemetry>,
    log: LogControl,
    providers: BTreeMap<String, Entry<Provide>>,
    actions: BTreeMap<String, Entry<Act>>,
}

impl Admin {
    /// With `/`, `/version`, `/connections` and `/log`.
    pub fn new(telemetry: Arc<Telemetry>, log: LogControl) -> Admin {
        let admin = Admin { telemetry: telemetry.clone(), log: log.clone(), providers: BTreeMap::new(), actions: BTreeMap::new() };
        let access = telemetry.access().clone();
        admin
            .provide(
                "version",
                "version of the agent",
                || json!({ "component": "mesh-agent", "version": env!("CARGO_PKG_VERSION"), "arch": std::env::consts::ARCH }),
            )
            .action("connections/close", "?id=N: ends a connection", move |query| {
                Box::pin(std::future::ready(connections::close(&telemetry, &query)))
            })
            .action("log", levels::USAGE, move |query| Box::pin(std::future::ready(levels::change(&log, &access, &query))))
    }

    /// Adds `GET /name`. `what` is a word of explanation for the index. A later one of the same name takes the place of the earlier.
    pub fn provide(self, name: &str, what: &str, value: impl Fn() -> Value + Send + Sync + 'static) -> Admin {
        self.question(name, what, move |query| query.only(&[]).map(|()| value()))
    }

    /// Adds `GET /name?…`, whose value depends on its parameters. It must name every parameter it doesn't know ([`Query::only`]).
    pub fn question(
        mut self,
        name: &str,
        what: &str,
        answer: impl Fn(&Query) -> Result<Value, ActionError> + Send + Sync + 'static,
    ) -> Admin {
        self.providers.insert(name.to_owned(), Entry { what: what.to_owned(), run: Box::new(answer) });
        self
    }

    /// Adds `POST /name?…`. The action must name every parameter it doesn't know ([`Query::only`]) and is given 20 s.
    pub fn action(mut self, name: &str, what: &str, act: impl Fn(Query) -> ActionFuture + Send + Sync + 'static) -> Admin {
        self.actions.insert(name.to_owned(), Entry { what: what.to_owned(), run: Box::new(act) });
        self
    }

    fn index(&self) -> Value {
        let mut get: BTreeMap<String, &str> =
            self.providers.iter().map(|(name, entry)| (format!("/{name}"), entry.what.as_str())).collect();
        get.insert("/connections".into(), connections::USAGE);
        get.insert("/log".into(), "levels in force");
        let post: BTreeMap<String, &str> = self.actions.iter().map(|(name, entry)| (format!("/{name}"), entry.what.as_str())).collect();
        json!({ "GET": get, "POST": post })
    }

    fn get(&self, name: &str, query: &Query) -> Result<Value, ActionError> {
        match name {
            "" => Ok(self.index()),
            "connections" => connections::list(&self.telemetry, query),
            "log" => levels::show(&self.log, self.telemetry.access(), query),
            _ => {
                let provider = self.providers.get(name).ok_or_else(|| unknown(name))?;
                (provider.run)(query)
            }
        }
    }

    fn exists(&self, name: &str, method: &Method) -> bool {
        match *method {
            Method::POST => self.actions.contains_key(name),
            _ => matches!(name, "" | "connections" | "log") || self.providers.contains_key(name),
        }
    }
}

/// The admin endpoint was given an address that others can reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the admin endpoint has no password and may only listen on the loopback: {0} is not; use 127.0.0.1:{port} or [::1]:{port}", port = .0.port())]
pub struct NotLoopback(pub SocketAddr);

/// Whether the admin endpoint may listen there.
pub fn check_listen(address: SocketAddr) -> Result<SocketAddr, NotLoopback> {
    if address.ip().to_canonical().is_loopback() { Ok(address) } else { Err(NotLoopback(address)) }
}

fn unknown(name: &str) -> ActionError {
    ActionError::NotFound(format!("there is no /{}; GET / lists what there is", name.chars().take(100).collect::<String>()))
}

fn reply(result: Result<Value, ActionError>) -> Reply {
    match result {
        Ok(value) => json_reply(StatusCode::OK, &value),
        Err(error) => json_reply(error.status(), &json!({ "error": error.to_string() })),
    }
}

fn wrong_method(allowed: &'static str) -> Reply {
    let mut reply = json_reply(StatusCode::METHOD_NOT_ALLOWED, &json!({ "error": format!("this answers to {allowed}") }));
    reply.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    reply
}

impl Handler for Admin {
    fn answer(&self, peer: SocketAddr, request: Received) -> Answer {
        let ready = |reply: Reply| -> Answer { Box::pin(std::future::ready(reply)) };
        if let Err(refusal) = guard::check(peer, request.headers()) {
            tracing::warn!(%peer, %refusal, "a request to the admin endpoint was refused");
            return ready(text(StatusCode::FORBIDDEN, format!("{refusal}\n")));
        }
        let name = request.uri().path().trim_matches('/');
        let query = match Query::parse(request.uri().query().unwrap_or_default()) {
            Ok(query) => query,
            Err(error) => return ready(reply(Err(error))),
        };
        match *request.method() {
            Method::GET | Method::HEAD => {
                if !self.exists(name, &Method::GET) && self.exists(name, &Method::POST) {
                    return ready(wrong_method("POST"));
                }
                ready(reply(self.get(name, &query)))
            }
            Method::POST => match self.actions.get(name) {
                Some(action) => {
                    tracing::info!(%peer, action = name, ?query, "asked through the admin endpoint");
                    let acting = (action.run)(query);
                    Box::pin(async move {
                        let late =
                            |_| Err(ActionError::Failed(format!("not done within {} s; it may still be going on", ACTION_TIME.as_secs())));
                        reply(tokio::time::timeout(ACTION_TIME, acting).await.unwrap_or_else(late))
                    })
                }
                None if self.exists(name, &Method::GET) => ready(wrong_method("GET, HEAD")),
                None => ready(reply(Err(unknown(name)))),
            },
            _ => ready(wrong_method("GET, HEAD, POST")),
        }
    }
}

#[cfg(test)]
mod tests;
