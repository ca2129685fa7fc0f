//! Which rule a request has: generated rules and requests, and a second matcher that compares texts in the simplest way, with a matcher
//! of its own for patterns.
#![no_main]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, LazyLock, Mutex};

use arbitrary::{Result, Unstructured};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use libfuzzer_sys::fuzz_target;
use mesh_agent::route::matches::{ClientView, RequestView, find, host_of};
use mesh_model::object::{Kind, ObjectKey};
use mesh_model::route::{HttpRule, PathMatch, Pattern, RequestMatch, RuleOrigin, TextMatch};

const PIECES: [&str; 12] = ["/", "/a", "/b", "a", "b", "A", "/ab", "//", ".", "%61", "%2F", "+"];
const WORDS: [&str; 10] = ["", "a", "b", "ab", "A", "a,b", "GET", "a.example", "a b", "b\u{e9}"];
const HOSTS: [&str; 8] = ["a.example", "A.Example:80", "[::1]", "[::1]:80", "b", "a.example:", "fd00::1", ""];
const NAMES: [&str; 3] = ["x", "x-b", "y"];
/// Of a pattern, so that the second matcher stays quick.
const DEPTH: u32 = 3;

/// A pattern, before it is written down.
enum Re {
    Text(char),
    Any,
    Both(Box<Re>, Box<Re>),
    Either(Box<Re>, Box<Re>),
    Many(Box<Re>),
}

impl Re {
    fn make(u: &mut Unstructured<'_>, depth: u32) -> Result<Re> {
        let kinds = if depth == 0 { 2 } else { 5 };
        Ok(match u.int_in_range(0..=kinds - 1)? {
            0 => Re::Text(*u.choose(&['a', 'b', '/', 'A', '.', '\u{e9}'])?),
            1 => Re::Any,
            2 => Re::Both(Box::new(Re::make(u, depth - 1)?), Box::new(Re::make(u, depth - 1)?)),
            3 => Re::Either(Box::new(Re::make(u, depth - 1)?), Box::new(Re::make(u, depth - 1)?)),
            _ => Re::Many(Box::new(Re::make(u, depth - 1)?)),
        })
    }

    fn write(&self) -> String {
        match self {
            Re::Text('.') => r"\.".into(),
            Re::Text(c) => c.to_string(),
            Re::Any => ".".into(),
            Re::Both(a, b) => format!("{}{}", a.write(), b.write()),
            Re::Either(a, b) => format!("(?:{}|{})", a.write(), b.write()),
            Re::Many(a) => format!("(?:{})*", a.write()),
        }
    }

    /// Where a match that begins at `from` may end.
    fn ends(&self, text: &[char], from: usize) -> BTreeSet<usize> {
        match self {
            Re::Text(c) => text.get(from).filter(|other| *other == c).map(|_| from + 1).into_iter().collect(),
            Re::Any => text.get(from).filter(|other| **other != '\n').map(|_| from + 1).into_iter().collect(),
            Re::Both(a, b) => a.ends(text, from).into_iter().flat_map(|middle| b.ends(text, middle)).collect(),
            Re::Either(a, b) => a.ends(text, from).union(&b.ends(text, from)).copied().collect(),
            Re::Many(a) => {
                let mut all = BTreeSet::from([from]);
                let mut new = vec![from];
                while let Some(at) = new.pop() {
                    new.extend(a.ends(text, at).into_iter().filter(|end| all.insert(*end)));
                }
                all
            }
        }
    }
}

/// The pattern of the mesh, which is compiled once: that takes longer than all the rest.
fn pattern(re: &Re) -> Pattern {
    const MOST: usize = 20_000;
    static COMPILED: LazyLock<Mutex<HashMap<String, Pattern>>> = LazyLock::new(Mutex::default);
    let mut compiled = COMPILED.lock().unwrap();
    if compiled.len() > MOST {
        compiled.clear();
    }
    let text = re.write();
    compiled.entry(text).or_insert_with_key(|text| Pattern::new(text).unwrap()).clone()
}

/// A condition on a text, for both matchers.
enum Text {
    Exact(String),
    Prefix(String),
    Regex(Re),
    Present,
}

impl Text {
    fn make(u: &mut Unstructured<'_>, words: &[&str]) -> Result<Text> {
        let word = u.choose(words)?.to_string();
        Ok(match u.int_in_range(0..=19)? {
            0..=7 => Text::Exact(word),
            8..=15 => Text::Prefix(word),
            16 => Text::Regex(Re::make(u, DEPTH)?),
            _ => Text::Present,
        })
    }

    fn real(&self) -> TextMatch {
        match self {
            Text::Exact(text) => TextMatch::Exact(text.as_str().into()),
            Text::Prefix(text) => TextMatch::Prefix(text.as_str().into()),
            Text::Regex(re) => TextMatch::Regex(pattern(re)),
            Text::Present => TextMatch::Present,
        }
    }

    /// Of bytes that are no text it can only be said that they are there.
    fn holds(&self, bytes: &[u8]) -> bool {
        let chars: Option<Vec<char>> = std::str::from_utf8(bytes).ok().map(|text| text.chars().collect());
        match (self, chars) {
            (Text::Present, _) => true,
            (Text::Exact(whole), Some(chars)) => chars.iter().collect::<String>() == *whole,
            (Text::Prefix(start), Some(chars)) => chars.iter().take(start.chars().count()).collect::<String>() == *start,
            (Text::Regex(re), Some(chars)) => re.ends(&chars, 0).contains(&chars.len()),
            (_, None) => false,
        }
    }
}

enum Path {
    Exact(String),
    Segments(String),
    Prefix(String),
    Regex(Re),
}

struct Rule {
    path: Option<Path>,
    ignore_case: bool,
    method: Option<Text>,
    headers: Vec<(&'static str, Text)>,
    without: Vec<(&'static str, Text)>,
    query: Vec<(&'static str, Text)>,
    authority: Option<Text>,
    namespace: Option<&'static str>,
    label: Option<&'static str>,
}

fn some<'a, T>(u: &mut Unstructured<'a>, make: impl FnOnce(&mut Unstructured<'a>) -> Result<T>) -> Result<Option<T>> {
    if u.ratio(1u8, 3u8)? { make(u).map(Some) } else { Ok(None) }
}

fn text(u: &mut Unstructured<'_>) -> Result<String> {
    let mut text = String::new();
    for _ in 0..u.int_in_range(0..=4)? {
        text.push_str(u.choose(&PIECES)?);
    }
    Ok(text)
}

fn pairs(u: &mut Unstructured<'_>) -> Result<Vec<(&'static str, Text)>> {
    let mut pairs = Vec::new();
    while pairs.len() < 3 && u.ratio(1u8, 4u8)? {
        pairs.push((*u.choose(&NAMES)?, Text::make(u, &WORDS)?));
    }
    Ok(pairs)
}

impl Rule {
    fn make(u: &mut Unstructured<'_>) -> Result<Rule> {
        let path = |u: &mut Unstructured<'_>| {
            Ok(match u.int_in_range(0..=9)? {
                0..=2 => Path::Exact(format!("/{}", text(u)?)),
                3..=5 => Path::Segments(format!("/{}", text(u)?).trim_end_matches('/').to_owned()),
                6..=8 => Path::Prefix(text(u)?),
                _ => Path::Regex(Re::make(u, DEPTH)?),
            })
        };
        Ok(Rule {
            path: some(u, path)?,
            ignore_case: u.arbitrary()?,
            method: some(u, |u| Text::make(u, &["GET", "POST", "get", "PO"]))?,
            headers: pairs(u)?,
            without: pairs(u)?,
            query: pairs(u)?,
            authority: some(u, |u| Text::make(u, &["a.example", "a.", "[::1]", "b", "fd00:", ""]))?,
            namespace: some(u, |u| u.choose(&["shop", "away"]).copied())?,
            label: some(u, |u| u.choose(&["one", "two"]).copied())?,
        })
    }

    fn real(&self) -> RequestMatch {
        let pairs = |pairs: &[(&'static str, Text)]| pairs.iter().map(|(name, text)| (Arc::from(*name), text.real())).collect();
        RequestMatch {
            path: self.path.as_ref().map(|path| match path {
                Path::Exact(text) => PathMatch::Exact(text.as_str().into()),
                Path::Segments(text) => PathMatch::Segments(text.as_str().into()),
                Path::Prefix(text) => PathMatch::Prefix(text.as_str().into()),
                Path::Regex(re) => PathMatch::Regex(pattern(re)),
            }),
            ignore_path_case: self.ignore_case && matches!(self.path, Some(Path::Exact(_) | Path::Prefix(_))),
            method: self.method.as_ref().map(Text::real),
            headers: pairs(&self.headers),
            without_headers: pairs(&self.without),
            query: pairs(&self.query),
            scheme: None,
            authority: self.authority.as_ref().map(Text::real),
            source_labels: self.label.iter().map(|label| ("app".to_owned(), (*label).to_owned())).collect(),
            source_namespace: self.namespace.map(Arc::from),
        }
    }

    fn holds(&self, request: &Request) -> bool {
        let case = |text: &str| if self.ignore_case { text.to_ascii_lowercase() } else { text.to_owned() };
        let chars: Vec<char> = request.path.chars().collect();
        let path = match &self.path {
            None => true,
            Some(Path::Exact(whole)) => case(whole) == case(&request.path),
            Some(Path::Prefix(start)) => case(&request.path).find(&case(start)) == Some(0),
            Some(Path::Segments(start)) => format!("{}/", request.path).starts_with(&format!("{start}/")),
            Some(Path::Regex(re)) => re.ends(&chars, 0).contains(&chars.len()),
        };
        let header = |name: &str| {
            let values: Vec<&[u8]> = request.headers.iter().filter(|(key, _)| *key == name).map(|(_, value)| &**value).collect();
            (!values.is_empty()).then(|| values.join(&b','))
        };
        let parameter = |name: &str| request.parameters().into_iter().find(|(key, _)| key == name).map(|(_, value)| value);
        path && self.method.as_ref().is_none_or(|text| text.holds(request.method.as_bytes()))
            && self.headers.iter().all(|(name, text)| header(name).is_some_and(|value| text.holds(&value)))
            && !self.without.iter().any(|(name, text)| header(name).is_some_and(|value| text.holds(&value)))
            && self.query.iter().all(|(name, text)| parameter(name).is_some_and(|value| text.holds(value.as_bytes())))
            && self.authority.as_ref().is_none_or(|text| text.holds(request.host().as_bytes()))
            && self.namespace.is_none_or(|namespace| namespace == request.namespace)
            && self.label.is_none_or(|label| label == request.label)
    }
}

struct Request {
    method: &'static str,
    path: String,
    query: Option<String>,
    authority: &'static str,
    absolute: bool,
    headers: Vec<(&'static str, Vec<u8>)>,
    namespace: &'static str,
    label: &'static str,
}

impl Request {
    fn make(u: &mut Unstructured<'_>) -> Result<Request> {
        let mut headers = Vec::new();
        while headers.len() < 5 && u.ratio(1u8, 2u8)? {
            let value = if u.ratio(1u8, 8u8)? { vec![b'a', 0xff] } else { u.choose(&WORDS)?.as_bytes().to_vec() };
            headers.push((*u.choose(&NAMES)?, value));
        }
        let query = |u: &mut Unstructured<'_>| {
            let mut query = String::new();
            for _ in 0..u.int_in_range(0..=8)? {
                query.push_str(u.choose(&["x", "y", "=", "&", "a", "b", "%61", "x=", "+", "%", "%e", "%c3%a9", "x-b="])?);
            }
            Ok(query)
        };
        Ok(Request {
            method: u.choose(&["GET", "POST", "get"])?,
            path: format!("/{}", text(u)?),
            query: some(u, query)?,
            authority: u.choose(&HOSTS)?,
            absolute: u.arbitrary()?,
            headers,
            namespace: u.choose(&["shop", "away"])?,
            label: u.choose(&["one", "two", "three"])?,
        })
    }

    /// Names and values of the query, decoded as HTML forms are.
    fn parameters(&self) -> Vec<(String, String)> {
        let decode = |text: &str| {
            let bytes = text.as_bytes();
            let (mut decoded, mut at) = (Vec::new(), 0);
            while at < bytes.len() {
                let digits = bytes.get(at + 1..at + 3).and_then(|digits| std::str::from_utf8(digits).ok());
                let digits = digits.filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
                match (bytes[at], digits) {
                    (b'%', Some(digits)) => {
                        decoded.push(u8::from_str_radix(digits, 16).unwrap());
                        at += 2;
                    }
                    (b'+', _) => decoded.push(b' '),
                    (other, _) => decoded.push(other),
                }
                at += 1;
            }
            String::from_utf8_lossy(&decoded).into_owned()
        };
        let all = self.query.as_deref().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        all.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).map(|(key, value)| (decode(key), decode(value))).collect()
    }

    /// The host without its port, if what stands behind the last colon is one.
    fn host(&self) -> String {
        let lower = self.authority.to_lowercase();
        let digits = lower.trim_end_matches(|c: char| c.is_ascii_digit());
        match digits.strip_suffix(':') {
            Some(host) if !host.contains(':') || host.ends_with(']') => host.to_owned(),
            _ => lower,
        }
    }
}

fn run(u: &mut Unstructured<'_>) -> Result<()> {
    let request = Request::make(u)?;
    let mut rules = Vec::new();
    while rules.len() < 8 && (rules.is_empty() || u.ratio(3u8, 4u8)?) {
        rules.push(Rule::make(u)?);
    }
    let query = request.query.as_ref().map(|query| format!("?{query}")).unwrap_or_default();
    let target = format!("{}{query}", request.path);
    let mut headers = HeaderMap::new();
    let absolute = format!("http://{}{target}", request.authority).parse::<Uri>().ok().filter(|_| request.absolute);
    if absolute.is_none() {
        headers.insert(http::header::HOST, HeaderValue::from_static(request.authority));
    }
    let Ok(uri) = absolute.map_or_else(|| target.parse::<Uri>(), Ok) else { return Ok(()) };
    for (name, value) in &request.headers {
        headers.append(HeaderName::from_static(name), HeaderValue::from_bytes(value).unwrap());
    }
    let host = host_of(&uri, &headers);
    assert_eq!(host, request.host());
    let table: Vec<Arc<HttpRule>> = rules
        .iter()
        .map(|rule| {
            Arc::new(HttpRule {
                origin: RuleOrigin {
                    object: ObjectKey { kind: Kind::HttpRoute, namespace: "shop".into(), name: "r".into() },
                    rule: 0,
                    name: None,
                },
                matches: rule.real(),
                filters: Vec::new(),
                backends: Vec::new(),
                timeout: None,
                try_timeout: None,
                retry: None,
                session: None,
            })
        })
        .collect();
    let method: Method = request.method.parse().unwrap();
    let view = RequestView { method: &method, uri: &uri, host: &host, headers: &headers };
    let labels = BTreeMap::from([("app".to_owned(), request.label.to_owned())]);
    let found = find(&table, view, ClientView { labels: &labels, namespace: request.namespace }).map(|(index, _)| index);
    let expected = rules.iter().position(|rule| rule.holds(&request));
    let named = |index: Option<usize>| index.map(|index| &table[index].matches);
    assert_eq!(found, expected, "{uri} {headers:?}: {:?} instead of {:?}", named(found), named(expected));
    Ok(())
}

fuzz_target!(|bytes: &[u8]| {
    // Too few bytes are no case.
    let _ = run(&mut Unstructured::new(bytes));
});
