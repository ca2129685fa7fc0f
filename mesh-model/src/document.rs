//! Text of manifests → documents, each with the line it stands on.
//!
//! A file is cut at its `---` lines before anything is parsed (YAML 1.2, 9.1.2: they end a document wherever they stand), so that a
//! document whose text is no YAML takes no other with it.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use crate::convert::{self, Converted, DEFAULT_NAMESPACE, Reading, convert};
use crate::object::{Kind, ObjectKey};
use crate::problem::{FieldPath, Finding, Origin, Problem, Severity};

mod locate;
mod yaml;

/// One object of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Document {
    /// Where it stands.
    pub origin: Origin,
    /// What it is.
    pub key: ObjectKey,
    /// What came of it; never [`Reading::Foreign`].
    pub reading: Reading,
}

/// What a file holds.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Parsed {
    /// The objects, understood or not, in the order of the file.
    pub documents: Vec<Document>,
    /// What is wrong with them.
    pub problems: Vec<Problem>,
    /// A part of the file is no YAML, and not even the name of the object in it could be made out: any object that the file had before
    /// may be the one.
    pub lost: bool,
}

/// Reads a file of any number of YAML documents; JSON is a part of YAML. Never fails as a whole.
pub fn parse_documents(file: &Path, text: &str) -> Parsed {
    let mut parsed = Parsed::default();
    let file: Arc<Path> = file.into();
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for chunk in yaml::split(text) {
        let place = Place { file: file.clone(), chunk };
        match yaml::to_value(place.chunk.text) {
            Ok(None) => {}
            Ok(Some(value)) => object(&mut parsed, &place, &FieldPath::default(), &value),
            Err(error) => unparsable(&mut parsed, &place, &error),
        }
    }
    parsed
}

/// A document's text and where it stands.
struct Place<'a> {
    file: Arc<Path>,
    chunk: yaml::Chunk<'a>,
}

impl Place<'_> {
    fn line(&self, path: &FieldPath) -> u32 {
        let inside = locate::line(self.chunk.text, path).or_else(|| locate::first_line(self.chunk.text));
        self.chunk.line + inside.unwrap_or(0)
    }

    fn origin(&self, line: u32) -> Origin {
        Origin::File { file: self.file.clone(), line }
    }
}

fn object(parsed: &mut Parsed, place: &Place<'_>, at: &FieldPath, value: &Value) {
    let kind = value.get("kind").and_then(Value::as_str).unwrap_or_default();
    // `List` and the typed lists that `kubectl get -o yaml` and the API server write.
    let of_list = kind.strip_suffix("List").filter(|of| of.is_empty() || Kind::from_name(of).is_some());
    if let (Some(_), Some(items)) = (of_list, value.get("items")) {
        let at = at.key("items");
        match items {
            Value::Array(items) => {
                for (i, item) in items.iter().enumerate() {
                    object(parsed, place, &at.index(i), item);
                }
            }
            Value::Null => {}
            _ => {
                parsed.lost = true;
                problem(parsed, place, &FieldPath::default(), "List", Finding::error(at, "is not a list of objects"));
            }
        }
        return;
    }
    let Converted { key, title, reading, findings } = convert(value);
    for finding in findings {
        problem(parsed, place, at, &title, finding);
    }
    match (key, reading) {
        (_, Reading::Foreign) => {}
        (Some(key), reading) => {
            // Without a name it may be any object of its kind; a policy then denies, so that nothing need be kept.
            parsed.lost |= key.name.is_empty() && !key.kind.is_security();
            parsed.documents.push(Document { origin: place.origin(place.line(at)), key, reading });
        }
        (None, _) => parsed.lost = true,
    }
}

fn problem(parsed: &mut Parsed, place: &Place<'_>, at: &FieldPath, title: &str, finding: Finding) {
    parsed.problems.push(Problem {
        severity: finding.severity,
        origin: place.origin(place.line(&finding.field.below(at))),
        object: title.into(),
        field: finding.field.to_string().into(),
        message: finding.message.into(),
    });
}

/// A document that is no YAML: kind and name are looked for in its lines, so that a policy that breaks is not taken for one removed.
fn unparsable(parsed: &mut Parsed, place: &Place<'_>, error: &yaml::YamlError) {
    let key = yaml::salvage(place.chunk.text).and_then(|found| {
        let kind = Kind::from_name(&found.kind)?;
        let namespace = match found.namespace {
            _ if !kind.namespaced() => String::new(),
            Some(namespace) => namespace,
            None => DEFAULT_NAMESPACE.into(),
        };
        Some(ObjectKey { kind, namespace: namespace.into(), name: found.name.unwrap_or_default().into() })
    });
    let effect = match &key {
        None => "every object that the file had before stays in force, unless another document of it says otherwise",
        Some(key) if key.kind == Kind::AuthorizationPolicy => "everything is denied to the workloads of its namespace",
        Some(key) if key.kind == Kind::PeerAuthentication => "STRICT is demanded in its namespace",
        Some(_) => "if the object was there before, it stays in force as it was",
    };
    parsed.problems.push(Problem {
        severity: Severity::Error,
        origin: place.origin(place.chunk.line + error.line),
        object: key.as_ref().map(ToString::to_string).unwrap_or_default().into(),
        field: "".into(),
        message: format!("is not valid YAML: {}; until it is mended, {effect}", error.message).into(),
    });
    match key {
        Some(key) => {
            parsed.lost |= key.name.is_empty() && !key.kind.is_security();
            let reading = convert::unparsable(&key);
            parsed.documents.push(Document { origin: place.origin(place.line(&FieldPath::default())), key, reading });
        }
        None => parsed.lost = true,
    }
}

#[cfg(test)]
mod tests;
