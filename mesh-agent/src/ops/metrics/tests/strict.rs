//! A strict reader of both text formats: whatever the specifications forbid is a panic.

use std::collections::{BTreeMap, HashSet};

#[derive(Debug, PartialEq)]
pub(crate) struct Sample {
    pub(crate) name: String,
    /// In the order in which they stand.
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) value: f64,
}

impl Sample {
    pub(crate) fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

#[derive(Debug, Default)]
pub(crate) struct Exposition {
    /// Family → type.
    pub(crate) families: BTreeMap<String, String>,
    pub(crate) samples: Vec<Sample>,
}

impl Exposition {
    /// The sum of the samples of that name that carry these labels.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.all(name, labels).map(|sample| sample.value).sum()
    }

    pub(crate) fn all<'a>(&'a self, name: &'a str, labels: &'a [(&'a str, &'a str)]) -> impl Iterator<Item = &'a Sample> {
        self.samples
            .iter()
            .filter(move |sample| sample.name == name && labels.iter().all(|(name, value)| sample.label(name) == Some(value)))
    }
}

pub(crate) fn open_metrics(text: &str) -> Exposition {
    let body = text.strip_suffix("# EOF\n").expect("ends with # EOF");
    parse(body, true)
}

pub(crate) fn prometheus(text: &str) -> Exposition {
    parse(text, false)
}

fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_') && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn parse(body: &str, open: bool) -> Exposition {
    assert!(body.is_empty() || body.ends_with('\n'));
    let mut out = Exposition::default();
    let (mut family, mut kind, mut helped) = (String::new(), String::new(), HashSet::new());
    let mut seen = HashSet::new();
    for line in body.lines() {
        assert!(!line.is_empty() && !line.contains('\r') && line == line.trim(), "{line:?}");
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("help");
            assert!(is_name(name) && helped.insert(name.to_owned()), "{line}");
            assert!(help.ends_with('.') && !help.ends_with(".."), "{line}");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, type_) = rest.split_once(' ').expect("type");
            assert!(is_name(name), "{line}");
            assert!(["counter", "gauge", "info", "histogram"].contains(&type_) && (open || type_ != "info"), "{line}");
            assert!(open || type_ != "counter" || name.ends_with("_total"), "{line}");
            assert!(!open || type_ != "counter" || !name.ends_with("_total"), "{line}");
            assert!(out.families.insert(name.to_owned(), type_.to_owned()).is_none(), "family {name} twice");
            (family, kind) = (name.to_owned(), type_.to_owned());
        } else {
            assert!(!line.starts_with('#'), "{line}");
            let sample = sample(line);
            let of_histogram =
                |name: &str| name.strip_prefix(&*family).filter(|rest| ["_bucket", "_sum", "_count"].contains(rest)).is_some();
            let expected = match (kind.as_str(), open) {
                ("counter", true) => format!("{family}_total"),
                ("info", true) => format!("{family}_info"),
                ("histogram", _) if of_histogram(&sample.name) => sample.name.clone(),
                _ => family.clone(),
            };
            assert_eq!(sample.name, expected, "a sample outside of its family");
            assert!(kind != "counter" || sample.value >= 0.0);
            let mut key: Vec<_> = sample.labels.clone();
            key.sort();
            key.dedup_by(|a, b| a.0 == b.0);
            assert_eq!(key.len(), sample.labels.len(), "a label twice: {line}");
            assert!(seen.insert((sample.name.clone(), key)), "a label set twice: {line}");
            out.samples.push(sample);
        }
    }
    out
}

fn sample(line: &str) -> Sample {
    let end = line.find(['{', ' ']).expect("a value");
    let (name, mut rest) = line.split_at(end);
    assert!(is_name(name), "{line}");
    let mut labels = Vec::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            let (label, after) = rest.split_once("=\"").expect("a label");
            assert!(is_name(label) && !label.starts_with("__"), "{line}");
            let mut value = String::new();
            let mut chars = after.char_indices();
            let end = loop {
                match chars.next().expect("a closing quote") {
                    (at, '"') => break at,
                    (_, '\\') => match chars.next().expect("an escape").1 {
                        'n' => value.push('\n'),
                        c @ ('"' | '\\') => value.push(c),
                        c => panic!("escape \\{c} in {line}"),
                    },
                    (_, c) => value.push(c),
                }
            };
            labels.push((label.to_owned(), value));
            rest = &after[end + 1..];
            match rest.as_bytes()[0] {
                b',' => rest = &rest[1..],
                b'}' => break,
                _ => panic!("{line}"),
            }
        }
        rest = &rest[1..];
    }
    let value = rest.strip_prefix(' ').expect("one blank");
    assert!(!value.contains(' '), "{line}");
    Sample { name: name.to_owned(), labels, value: value.parse().unwrap_or_else(|_| panic!("{line}")) }
}
