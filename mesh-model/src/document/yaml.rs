//! YAML text → [`serde_json::Value`], a document at a time.

use serde::Deserialize;
use serde_json::{Map, Number, Value};
use serde_yaml_ng::Value as Yaml;

/// Text of one document.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Chunk<'a> {
    /// 1-based line in the file of the text's first line.
    pub(super) line: u32,
    pub(super) text: &'a str,
}

/// Why a text is no document.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct YamlError {
    /// 0-based line in the text.
    pub(super) line: u32,
    pub(super) message: String,
}

/// Cuts a file at its document markers.
pub(super) fn split(text: &str) -> Vec<Chunk<'_>> {
    let mut chunks = Vec::new();
    let (mut start, mut start_line, mut offset) = (0, 1, 0);
    for (line, number) in text.split_inclusive('\n').zip(1u32..) {
        let marker = ["---", "..."]
            .into_iter()
            .find(|m| line.strip_prefix(m).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n'])));
        if marker.is_some() {
            chunks.push(Chunk { line: start_line, text: text.get(start..offset).unwrap_or_default() });
            // A document may begin on the line of its marker.
            start = offset + 3;
            start_line = number;
        }
        offset += line.len();
    }
    chunks.push(Chunk { line: start_line, text: text.get(start..).unwrap_or_default() });
    // Before a marker may stand comments and directives, which are no document.
    chunks.retain(|chunk| chunk.text.lines().any(|line| !matches!(line.trim_start().chars().next(), None | Some('#' | '%'))));
    chunks
}

/// The texts of a list's items, each a document of its own by its indentation, where the list is written as people and `kubectl` do: a
/// dash a line below `items:` at the margin. Empty where it is not.
pub(super) fn items(chunk: Chunk<'_>) -> Vec<(u32, String)> {
    let mut items: Vec<(u32, String)> = Vec::new();
    let mut lines = chunk.text.split_inclusive('\n').zip(chunk.line..).skip_while(|(line, _)| line.trim_end() != "items:").skip(1);
    let mut indent: Option<usize> = None;
    for (line, number) in &mut lines {
        let depth = line.len() - line.trim_start_matches(' ').len();
        let content = line.trim_start();
        let dash = content.starts_with("- ") || content.trim_end() == "-";
        if dash && *indent.get_or_insert(depth) == depth {
            items.push((number, line.replacen('-', " ", 1)));
        } else if content.is_empty() || content.starts_with('#') || indent.is_some_and(|indent| depth > indent) {
            if let Some((_, item)) = items.last_mut() {
                item.push_str(line);
            }
        } else {
            break;
        }
    }
    items
}

/// The document's value; `None` for an empty one.
pub(super) fn to_value(text: &str) -> Result<Option<Value>, YamlError> {
    let yaml = Yaml::deserialize(serde_yaml_ng::Deserializer::from_str(text)).map_err(|error| YamlError {
        line: error.location().map_or(0, |at| u32::try_from(at.line()).unwrap_or(u32::MAX).saturating_sub(1)),
        message: error.to_string(),
    })?;
    match json(yaml).map_err(|message| YamlError { line: 0, message })? {
        Value::Null => Ok(None),
        value => Ok(Some(value)),
    }
}

fn json(yaml: Yaml) -> Result<Value, String> {
    Ok(match yaml {
        Yaml::Null => Value::Null,
        Yaml::Bool(b) => Value::Bool(b),
        Yaml::Number(n) => {
            let integer = n.as_i64().map(Number::from).or_else(|| n.as_u64().map(Number::from));
            let number = integer.or_else(|| n.as_f64().and_then(Number::from_f64));
            Value::Number(number.ok_or_else(|| format!("{n} is a number that JSON does not have"))?)
        }
        Yaml::String(s) => Value::String(s),
        Yaml::Sequence(list) => Value::Array(list.into_iter().map(json).collect::<Result<_, _>>()?),
        Yaml::Mapping(mapping) => {
            let mut map = Map::new();
            for (key, value) in mapping {
                let key = match key {
                    Yaml::String(s) => s,
                    // `8080:` and `true:` are texts to Kubernetes.
                    Yaml::Number(n) => n.to_string(),
                    Yaml::Bool(b) => b.to_string(),
                    _ => return Err("a key is neither a text nor a number".into()),
                };
                if map.contains_key(&key) {
                    return Err(format!("the key \"{key}\" stands there twice"));
                }
                map.insert(key, json(value)?);
            }
            Value::Object(map)
        }
        Yaml::Tagged(tagged) => return Err(format!("the tag {} is not supported", tagged.tag)),
    })
}
