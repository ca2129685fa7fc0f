//! Where requests and connections to a Service go: Gateway API routes with Service parents and Istio's VirtualServices as one kind of value.
//!
//! A table is what a Service's port has for the clients of one namespace. Its rules are in the order in which they are tried: the first
//! that matches is taken. An author's rule with several matches stands in it once for each.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

mod connection;
mod substitution;

pub use connection::{ConnectionScope, TcpRule, TlsRule};
pub use substitution::Substitution;

use crate::object::ObjectKey;
use crate::service::NamespacedName;

/// Who wrote a rule: for logs, metrics and explanations.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct RuleOrigin {
    /// The object.
    pub object: ObjectKey,
    /// Number of the rule within it, from 0.
    pub rule: usize,
    /// Its name, where it has one.
    pub name: Option<Arc<str>>,
}

impl fmt::Display for RuleOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{} rule {} ({name})", self.object, self.rule),
            None => write!(f, "{} rule {}", self.object, self.rule),
        }
    }
}

/// What a Service's port has for the clients of one namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RouteTable {
    /// HTTP requests. `grpc` tells that only gRPC was asked for: what no rule matches is then UNIMPLEMENTED instead of 404.
    Http {
        /// In the order in which they are tried.
        rules: Vec<Arc<HttpRule>>,
        /// All rules are a GRPCRoute's.
        grpc: bool,
    },
    /// TLS connections, by their server name.
    Tls(Vec<Arc<TlsRule>>),
    /// Connections. One that no rule is for goes to the Service that was dialled.
    Tcp(Vec<Arc<TcpRule>>),
}

/// A rule for HTTP requests, with one match.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HttpRule {
    /// Who wrote it.
    pub origin: RuleOrigin,
    /// Which requests it is for.
    pub matches: RequestMatch,
    /// What is done with them, in this order.
    pub filters: Vec<Filter>,
    /// Where they go; a filter that answers makes them unnecessary. Empty without such a filter: 500.
    pub backends: Vec<Backend>,
    /// From the request's arrival to the last byte of the response; `None` for no limit.
    pub timeout: Option<Duration>,
    /// The same for one attempt.
    pub try_timeout: Option<Duration>,
    /// When to try again; `None` for what holds without a rule.
    pub retry: Option<RetryPolicy>,
    /// Requests of one session go to one endpoint.
    pub session: Option<Session>,
}

/// Which requests a rule is for. Everything that is said must hold.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RequestMatch {
    /// The path, without the query.
    pub path: Option<PathMatch>,
    /// The path is compared without regard to case (Istio's `ignoreUriCase`; exact and prefix only).
    pub ignore_path_case: bool,
    /// The method.
    pub method: Option<TextMatch>,
    /// Headers by their name in lower case; of one that is repeated the values joined by `,`.
    pub headers: Vec<(Arc<str>, TextMatch)>,
    /// Headers that must not match so (Istio's `withoutHeaders`); absent ones fulfil it.
    pub without_headers: Vec<(Arc<str>, TextMatch)>,
    /// Query parameters, names exact; of a repeated one the first value.
    pub query: Vec<(Arc<str>, TextMatch)>,
    /// `http` or `https` (Istio); what a client sends in the clear to its agent is `http`.
    pub scheme: Option<TextMatch>,
    /// Host of the request, without its port.
    pub authority: Option<TextMatch>,
    /// Labels of the client's workload (Istio).
    pub source_labels: BTreeMap<String, String>,
    /// Namespace of the client's workload (Istio).
    pub source_namespace: Option<Arc<str>>,
}

/// How a path matches.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PathMatch {
    /// The whole path, with regard to case.
    Exact(Arc<str>),
    /// Whole segments (Gateway API): `/a` matches `/a`, `/a/` and `/a/b`, not `/ab`. Stored without a `/` at its end; the root is empty.
    Segments(Arc<str>),
    /// Any beginning (Istio).
    Prefix(Arc<str>),
    /// The whole path, by a pattern.
    Regex(Pattern),
}

/// How a text matches.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TextMatch {
    /// The whole text.
    Exact(Arc<str>),
    /// Its beginning.
    Prefix(Arc<str>),
    /// The whole text, by a pattern.
    Regex(Pattern),
    /// It is there.
    Present,
}

impl TextMatch {
    /// Whether a text that is there matches.
    pub fn matches(&self, text: &str) -> bool {
        match self {
            TextMatch::Exact(whole) => **whole == *text,
            TextMatch::Prefix(start) => text.starts_with(&**start),
            TextMatch::Regex(pattern) => pattern.is_match(text),
            TextMatch::Present => true,
        }
    }
}

/// A regular expression of bounded size and linear time (RE2's syntax, as far as the `regex` crate has it). Equal if written alike.
#[derive(Clone)]
pub struct Pattern {
    text: Arc<str>,
    whole: regex::Regex,
}

/// Bytes that a compiled pattern may have.
const PATTERN_SIZE: usize = 256 << 10;

fn compile(text: &str) -> Result<regex::Regex, regex::Error> {
    regex::RegexBuilder::new(text).size_limit(PATTERN_SIZE).nest_limit(50).build()
}

/// What is wrong with a pattern, for people.
fn complaint(text: &str, error: &regex::Error) -> String {
    match error {
        regex::Error::CompiledTooBig(_) => format!("\"{text}\" is too large a pattern; make its repetitions smaller"),
        _ => format!("\"{text}\" is not a pattern that is understood (RE2's syntax, without look-around and back-references)"),
    }
}

impl Pattern {
    /// Compiles one that must match the whole text. The error says what is wrong with it.
    pub fn new(text: &str) -> Result<Pattern, String> {
        // By itself first: `a)|(b` is no pattern, and must not become one by the brackets that it is put into.
        let whole = compile(text).and_then(|_| compile(&format!("^(?:{text})$"))).map_err(|error| complaint(text, &error))?;
        Ok(Pattern { text: text.into(), whole })
    }

    /// Whether the whole text matches.
    pub fn is_match(&self, text: &str) -> bool {
        self.whole.is_match(text)
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}/", self.text)
    }
}

/// Where requests go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Backend {
    /// To whom.
    pub target: Target,
    /// Its share of the requests, of the sum of all; 0 is none.
    pub weight: u32,
    /// What is done with requests that go there, after the rule's own filters.
    pub filters: Vec<Filter>,
}

/// To whom requests go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// A Service's port. That it exists is checked when the table is made; that it has endpoints is not.
    Service {
        /// The Service.
        service: NamespacedName,
        /// Its port.
        port: u16,
        /// A DestinationRule's subset of its pods.
        subset: Option<Arc<str>>,
    },
    /// Something that is not there or may not be used: its share of the requests is answered with 500 (gRPC: UNAVAILABLE; connections are
    /// refused). The reason is for people.
    Invalid(Arc<str>),
}

/// Something that is done with a request or its response.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Filter {
    /// Headers of the request.
    RequestHeaders(HeaderEdit),
    /// Headers of the response.
    ResponseHeaders(HeaderEdit),
    /// Host and path of the request.
    Rewrite(Rewrite),
    /// The answer is a redirection.
    Redirect(Redirect),
    /// A copy of the request goes elsewhere; its answer is thrown away.
    Mirror {
        /// Where.
        target: Target,
        /// Of `share.1` requests `share.0` are copied.
        share: (u32, u32),
    },
    /// Cross-origin resource sharing.
    Cors(Cors),
    /// The answer is this.
    Respond {
        /// Status code.
        status: u16,
        /// Its body.
        body: Arc<[u8]>,
    },
    /// Requests wait first (fault injection).
    Delay {
        /// How long.
        time: Duration,
        /// Of `share.1` requests `share.0` do.
        share: (u32, u32),
    },
    /// The answer is an error (fault injection).
    Abort {
        /// HTTP status code, or gRPC's.
        fault: Fault,
        /// Of `share.1` requests `share.0` get it.
        share: (u32, u32),
    },
    /// One that is not supported or not understood: the answer is 500, since leaving it out is no answer. The reason is for people.
    Refuse(Arc<str>),
}

/// An injected error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// An HTTP status code.
    Http(u16),
    /// A gRPC status code.
    Grpc(u16),
}

/// Changes of headers: removed, then set, then added. Names are in lower case and valid, values valid.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HeaderEdit {
    /// The only value from now on.
    pub set: Vec<(Arc<str>, Arc<str>)>,
    /// One more value.
    pub add: Vec<(Arc<str>, Arc<str>)>,
    /// Gone.
    pub remove: Vec<Arc<str>>,
}

/// Changes of host and path.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rewrite {
    /// Host (`Host`, `:authority`).
    pub authority: Option<Arc<str>>,
    /// Path.
    pub path: Option<PathRewrite>,
}

/// Change of a path. The query stays.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PathRewrite {
    /// The whole of it.
    Full(Arc<str>),
    /// What the rule's [`PathMatch::Segments`] or [`PathMatch::Prefix`] matched; with [`PathMatch::Exact`] the whole.
    Prefix(Arc<str>),
    /// Every part of it that a pattern matches (Istio's `uriRegexRewrite`).
    Regex(Substitution),
}

/// A redirection. What is not said stays as the request has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Redirect {
    /// `http` or `https`.
    pub scheme: Option<Arc<str>>,
    /// Host.
    pub host: Option<Arc<str>>,
    /// Port; with a scheme and without a port it is the scheme's own.
    pub port: Option<u16>,
    /// Path.
    pub path: Option<PathRewrite>,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// Cross-origin resource sharing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Cors {
    /// Origins that may ask: exact, or with `*` for the beginning of the host or for all.
    pub origins: Vec<OriginMatch>,
    /// Methods; `*` for all.
    pub methods: Vec<Arc<str>>,
    /// Headers of requests; `*` for all.
    pub headers: Vec<Arc<str>>,
    /// Headers of responses that scripts may see.
    pub expose: Vec<Arc<str>>,
    /// Whether requests may carry credentials.
    pub credentials: bool,
    /// How long a browser may remember the answer; `None` is not said.
    pub max_age: Option<Duration>,
}

/// Which origins may ask.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OriginMatch {
    /// Any.
    Any,
    /// `scheme://` and a host that ends so, with at least one character before it (`https://*.example.com`).
    Wildcard {
        /// With `://`.
        scheme: Arc<str>,
        /// What follows the star.
        suffix: Arc<str>,
    },
    /// As Istio writes it.
    Text(TextMatch),
}

/// When a failed attempt is made again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RetryPolicy {
    /// Attempts after the first.
    pub attempts: u32,
    /// Least wait before an attempt; the mean grows with each.
    pub backoff: Option<Duration>,
    /// After what.
    pub on: RetryOn,
}

/// After what an attempt is made again (the names are Envoy's `retry_on`).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RetryOn {
    /// Response codes.
    pub statuses: Vec<u16>,
    /// Any 5xx, a reset, or a lost connection.
    pub server_errors: bool,
    /// 502, 503 and 504.
    pub gateway_errors: bool,
    /// No connection could be had; the request was not sent.
    pub connect_failure: bool,
    /// The server refused the stream before looking at it.
    pub refused_stream: bool,
    /// The server or the connection ended without an answer.
    pub reset: bool,
    /// As [`RetryOn::reset`], if no byte of the request was sent.
    pub reset_before_request: bool,
    /// 409.
    pub retriable_4xx: bool,
    /// gRPC status codes.
    pub grpc: Vec<u16>,
}

/// Session persistence.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Session {
    /// By what.
    pub by: SessionBy,
    /// After which it ends, however it is used.
    pub absolute_timeout: Option<Duration>,
}

/// By what a session is known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SessionBy {
    /// A cookie of this name and path. `permanent` gives it the session's age, else it ends with the browser.
    Cookie {
        /// Name.
        name: Arc<str>,
        /// Path.
        path: Arc<str>,
        /// It carries an age.
        permanent: bool,
    },
    /// A header of this name.
    Header(Arc<str>),
}

/// The tables of a Service's port.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PortRoutes {
    /// For every client whose namespace has no own: routes of the Service's namespace.
    pub producer: Option<Arc<RouteTable>>,
    /// For the clients of a namespace, by what stands in it: it replaces the producer's.
    pub consumers: BTreeMap<Arc<str>, Arc<RouteTable>>,
}

impl PortRoutes {
    /// The table for a client of a namespace.
    pub fn table(&self, client_namespace: &str) -> Option<&Arc<RouteTable>> {
        self.consumers.get(client_namespace).or(self.producer.as_ref())
    }
}

/// What is to be said of a route in its status, about one parent.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ParentStatus {
    /// The route.
    pub route: ObjectKey,
    /// Number of the parent in `spec.parentRefs`.
    pub parent: usize,
    /// `Accepted`.
    pub accepted: ConditionStatus,
    /// `ResolvedRefs`.
    pub resolved: ConditionStatus,
    /// `PartiallyInvalid`, which is said only where it is so.
    pub partial: Option<ConditionStatus>,
    /// `metadata.generation` of the route that this is said of, if it has one.
    pub generation: Option<i64>,
}

/// A condition as Gateway API writes it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ConditionStatus {
    /// True or False.
    pub status: bool,
    /// In CamelCase, e.g. `BackendNotFound`.
    pub reason: &'static str,
    /// For people.
    pub message: Arc<str>,
}
