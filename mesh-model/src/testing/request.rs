//! HTTP requests at random, and what a policy's HTTP fields say of one: each field has texts that it is compared with, more of them where
//! a denial hangs on it.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Map, Value, json};

use super::generate;
use super::reference::{Flow, glob, ranges};
use crate::policy::http::{Claims, ConnectionFacts, Headers, RequestFacts};
use crate::policy::{EffectivePolicies, NormalPath, Operation, Source};

pub(super) const METHODS: &[&str] = &["GET", "POST", "PUT"];
pub(super) const HOSTS: &[&str] = &["a.example", "b.example:80", "[::1]", "A.EXAMPLE:81"];
pub(super) const PRINCIPALS: &[&str] = &["i/s", "j/t", "i/t"];
pub(super) const PATHS: &[&str] = &["/", "/a", "/a/b", "/a/b/c", "/b/", "/ab"];
pub(super) const TEMPLATES: &[&str] =
    &["/{*}", "/{**}", "/a/{*}", "/{*}/b", "/a/{**}", "/a/{**}/c", "/{**}/b", "/{*}/{**}", "/a/{*}/c", "/b/{**}/"];
pub(super) const WORDS: &[&str] = &["a", "b", "ab", "GET", "i/s", "a.example"];
pub(super) const KEYS: &[&str] = &[
    "request.headers[x]",
    "request.headers[X-B]",
    "request.headers[host]",
    "request.headers[:method]",
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
    "request.auth.claims[scope]",
    "request.auth.claims[groups]",
    "request.auth.claims[a][b]",
    "connection.sni",
];

/// A request on a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// The connection.
    pub flow: Flow,
    /// Its method.
    pub method: String,
    /// Its authority.
    pub host: Option<String>,
    /// Its path, in normal form.
    pub path: NormalPath<'static>,
    /// Its headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Server name of TLS.
    pub sni: Option<String>,
    /// What its token says.
    pub claims: Option<Claims>,
}

impl Headers for Request {
    fn each_value<'a>(&'a self, name: &str, each: &mut dyn FnMut(&'a [u8])) {
        self.headers.iter().filter(|(known, _)| known == name).for_each(|(_, value)| each(value.as_bytes()));
    }
}

/// Policies in force for one workload, and requests to it.
#[derive(Clone, Debug)]
pub struct RequestCase {
    /// The policies.
    pub policies: EffectivePolicies,
    /// The requests, at least one.
    pub requests: Vec<Request>,
}

/// Random cases.
pub fn request_case() -> impl Strategy<Value = RequestCase> {
    (generate::case(), vec(request(), 1..12)).prop_map(|(case, requests)| RequestCase { policies: case.policies, requests })
}

/// A random request.
pub fn request() -> impl Strategy<Value = Request> {
    let headers = vec((select(&["x", "x-b", "y"][..]), select(&["a", "b", "ab", "a,b", ""][..])), 0..4);
    let text = |some: f64, texts: &'static [&'static str]| prop::option::weighted(some, select(texts).prop_map(String::from));
    let hosts: &'static [&'static str] = &["a.example", "A.example:80", "b.example", "B.EXAMPLE.:80", "[::1]:80", "[::1]", "a.example."];
    // One that no operator of a template stands for.
    let path = prop_oneof![6 => select(PATHS), 1 => Just("/a/*/c")]
        .prop_filter_map("not a path", |path| NormalPath::of(path.as_bytes()).ok().map(NormalPath::into_owned));
    let rest = (path, headers, text(0.2, WORDS), prop::option::weighted(0.7, claims()));
    (generate::flow(), select(&["GET", "POST", "get"][..]), text(0.9, hosts), rest).prop_map(|(flow, method, host, rest)| {
        let (path, headers, sni, claims) = rest;
        let headers = headers.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Request { flow, method: method.into(), host, path, headers, sni, claims }
    })
}

fn claims() -> impl Strategy<Value = Claims> {
    let value = || {
        let value = [
            json!("a"),
            json!("ab"),
            json!("a b"),
            json!(["b", "a"]),
            json!(["x", 1]),
            json!(true),
            json!({"b": "a"}),
            json!({"b": ["b"]}),
        ];
        prop::option::weighted(0.6, select(value.to_vec()))
    };
    (select(&["i", "j", ""][..]), prop::option::of(select(&["s", "t"][..])), [value(), value(), value(), value(), value()]).prop_map(
        |(issuer, subject, [audience, presenter, scope, groups, nested])| {
            let subject = subject.map(Value::from);
            let all = [
                ("iss", Some(json!(issuer))),
                ("sub", subject),
                ("aud", audience),
                ("azp", presenter),
                ("scope", scope),
                ("groups", groups),
                ("a", nested),
            ];
            Claims::new(all.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect::<Map<_, _>>())
        },
    )
}

impl Request {
    /// The same for [`crate::policy::HttpPolicy::decide`].
    pub fn facts(&self) -> RequestFacts<'_> {
        RequestFacts {
            connection: ConnectionFacts {
                identity: self.flow.identity.as_ref(),
                source: self.flow.source,
                destination: self.flow.destination,
                port: self.flow.port,
            },
            method: &self.method,
            host: self.host.as_deref(),
            path: &self.path,
            headers: self,
            sni: self.sni.as_deref(),
            jwt: self.claims.as_ref(),
        }
    }

    pub(super) fn source(&self, source: &Source, deny: bool) -> bool {
        field(&source.request_principals, &source.not_request_principals, deny, &self.texts("request.auth.principal"))
            && ranges(&source.remote_ip_blocks, &source.not_remote_ip_blocks, self.flow.source)
    }

    pub(super) fn operation(&self, operation: &Operation, deny: bool) -> bool {
        let path =
            |yes: &[std::sync::Arc<str>], lenient: bool| yes.iter().any(|pattern| path_matches(pattern, self.path.as_str(), lenient));
        host(&operation.hosts, &operation.not_hosts, self.host.as_deref())
            && field(&operation.methods, &operation.not_methods, deny, &self.texts("request.headers[:method]"))
            && (operation.paths.is_empty() || path(&operation.paths, deny))
            && !path(&operation.not_paths, !deny)
    }

    pub(super) fn condition(&self, key: &str, yes: &[std::sync::Arc<str>], no: &[std::sync::Arc<str>], deny: bool) -> bool {
        match key {
            "remote.ip" => {
                let nets = |texts: &[std::sync::Arc<str>]| texts.iter().filter_map(|text| text.parse().ok()).collect::<Vec<_>>();
                ranges(&nets(yes), &nets(no), self.flow.source)
            }
            "request.headers[host]" => host(yes, no, self.host.as_deref()),
            "connection.sni" if self.sni.is_none() => deny,
            "connection.sni" => {
                let lower = |texts: &[std::sync::Arc<str>]| texts.iter().map(|text| text.to_lowercase()).collect::<Vec<_>>();
                field(&lower(yes), &lower(no), deny, &(self.sni.iter().map(|name| name.to_lowercase()).collect(), Vec::new()))
            }
            key => field(yes, no, deny, &self.texts(key)),
        }
    }

    /// What a field is compared with, and what it is compared with besides where that is the stricter reading.
    fn texts(&self, key: &str) -> (Vec<String>, Vec<String>) {
        let claim = |path: &[&str]| {
            let value = path.iter().try_fold(Value::Object(self.claims.as_ref()?.payload().clone()), |value, key| value.get(key).cloned());
            let list = match value? {
                Value::Array(list) => list,
                one => vec![one],
            };
            let texts: Vec<String> = list.iter().filter_map(Value::as_str).map(String::from).collect();
            let others = list.iter().filter(|value| value.is_boolean() || value.is_number()).map(Value::to_string).collect();
            Some((texts, others))
        };
        let lines = |name: &str| {
            let lines: Vec<String> = self.headers.iter().filter(|(known, _)| known == name).map(|(_, value)| value.clone()).collect();
            if lines.is_empty() { (Vec::new(), Vec::new()) } else { (vec![lines.join(",")], lines) }
        };
        match key {
            "request.headers[x]" => lines("x"),
            "request.headers[X-B]" => lines("x-b"),
            "request.headers[:method]" => (vec![self.method.clone()], vec![self.method.to_uppercase()]),
            "request.auth.principal" => {
                let one = |name: &str| claim(&[name]).and_then(|(texts, _)| texts.first().cloned()).filter(|text| !text.is_empty());
                (one("iss").zip(one("sub")).map(|(issuer, subject)| format!("{issuer}/{subject}")).into_iter().collect(), Vec::new())
            }
            "request.auth.audiences" => claim(&["aud"]).unwrap_or_default(),
            "request.auth.presenter" => claim(&["azp"]).unwrap_or_default(),
            "request.auth.claims[groups]" => claim(&["groups"]).unwrap_or_default(),
            "request.auth.claims[a][b]" => claim(&["a", "b"]).unwrap_or_default(),
            "request.auth.claims[scope]" => {
                let is_text = self.claims.as_ref().is_some_and(|claims| claims.payload().get("scope").is_some_and(Value::is_string));
                let (texts, others) = claim(&["scope"]).unwrap_or_default();
                if !is_text {
                    return (texts, others);
                }
                (texts.iter().flat_map(|text| text.split_whitespace()).map(String::from).collect(), texts)
            }
            _ => (Vec::new(), Vec::new()),
        }
    }
}

/// Patterns and texts compared in full, those of methods (which the alphabets have in upper case) as they are.
fn field<P: ToString>(yes: &[P], no: &[P], deny: bool, texts: &(Vec<String>, Vec<String>)) -> bool {
    let hit = |patterns: &[P], stricter: bool| {
        let texts: Vec<&String> = texts.0.iter().chain(texts.1.iter().filter(|_| stricter)).collect();
        patterns.iter().any(|pattern| texts.iter().any(|text| glob(&pattern.to_string(), text)))
    };
    (yes.is_empty() || hit(yes, deny)) && !hit(no, !deny)
}

fn host<P: ToString>(yes: &[P], no: &[P], host: Option<&str>) -> bool {
    let mut names = Vec::new();
    if let Some(host) = host.map(str::to_lowercase) {
        let port = regex::Regex::new(r"\.?(:\d+)?$");
        names.extend(port.ok().map(|port| port.replace(&host, "").into_owned()));
        names.push(host);
    }
    let hit = |patterns: &[P]| patterns.iter().any(|pattern| names.iter().any(|name| glob(&pattern.to_string().to_lowercase(), name)));
    (yes.is_empty() || hit(yes)) && !hit(no)
}

/// By a regular expression.
fn path_matches(pattern: &str, path: &str, lenient: bool) -> bool {
    if !pattern.contains('{') {
        return glob(pattern, path);
    }
    let character = if lenient { "" } else { "*" };
    let mut expression = regex::escape(pattern).replace(r"\{\*\}", &format!("[^/{character}]+"));
    if lenient {
        expression = expression.replace(r"/\{\*\*\}/", "(?:/.*)?/");
    }
    let any = if lenient { ".*" } else { "[^*]*" };
    expression = expression.replace(r"\{\*\*\}", any);
    regex::Regex::new(&format!("^{expression}$")).is_ok_and(|expression| expression.is_match(path))
}
