//! Text of manifests → documents, each with the line it stands on.
//!
//! A file is cut at its `---` lines before anything is parsed (YAML 1.2, 9.1.2: they end a document wherever they stand), so that a
//! document whose text is no YAML takes no other with it.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use crate::convert::{self, Converted, Reading, convert};
use crate::object::{Kind, ObjectKey};
use crate::problem::{FieldPath, Finding, Origin, Problem, Severity};

mod locate;
mod salvage;
mod yaml;

use salvage::Salvaged;

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
        let place = Place { file: file.clone(), chunk, lines: true };
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
    /// Whether to look for the lines of fields; where not, the document's own stands for all.
    lines: bool,
}

/// Items of a list in a form whose items cannot be told apart by their lines, beyond which no lines are looked for.
const LONG_LIST: usize = 100;

impl Place<'_> {
    fn line(&self, path: &FieldPath) -> u32 {
        let inside = self.lines.then(|| locate::line(self.chunk.text, path)).flatten().or_else(|| locate::first_line(self.chunk.text));
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
                // To find a line is to read the text again: of a long list, only the item's own.
                let texts = yaml::items(place.chunk);
                for (i, item) in items.iter().enumerate() {
                    match texts.get(i).filter(|_| texts.len() == items.len()) {
                        Some((line, text)) => {
                            let chunk = yaml::Chunk { line: *line, text };
                            object(parsed, &Place { file: place.file.clone(), chunk, lines: place.lines }, &FieldPath::default(), item);
                        }
                        None => {
                            let lines = place.lines && items.len() <= LONG_LIST;
                            object(parsed, &Place { file: place.file.clone(), chunk: place.chunk, lines }, &at.index(i), item);
                        }
                    }
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

/// A document that is no YAML.
fn unparsable(parsed: &mut Parsed, place: &Place<'_>, error: &yaml::YamlError) {
    let (keys, lost) = match salvage::salvage(place.chunk.text) {
        Salvaged::Object(key) => (vec![key], false),
        Salvaged::Some(keys) => (keys, true),
    };
    let mut effects = Vec::new();
    for key in &keys {
        effects.push(match key.kind {
            Kind::AuthorizationPolicy => format!("everything is denied in namespace {}", key.namespace),
            Kind::RequestAuthentication => format!("every request with a token is refused in namespace {}", key.namespace),
            Kind::PeerAuthentication => format!("STRICT is demanded in namespace {}", key.namespace),
            _ => "the object stays in force as it was read before, if it was".into(),
        });
    }
    if lost {
        effects.push("objects that the file had before stay in force unless another document of it says otherwise".into());
    }
    let named = match keys.as_slice() {
        [key] if !lost => key.to_string(),
        _ => String::new(),
    };
    parsed.problems.push(Problem {
        severity: Severity::Error,
        origin: place.origin(place.chunk.line + error.line),
        object: named.into(),
        field: "".into(),
        message: format!("is not valid YAML: {}; until it is mended, {}", error.message, effects.join(", and ")).into(),
    });
    let origin = place.origin(place.line(&FieldPath::default()));
    parsed.lost |= lost;
    parsed.documents.extend(keys.into_iter().map(|key| {
        let reading = convert::unparsable(&key);
        Document { origin: origin.clone(), key, reading }
    }));
}

#[cfg(test)]
mod tests;
