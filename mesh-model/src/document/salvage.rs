//! What can be made out of a document that is no YAML, so that a policy that breaks is not taken for one that was removed.

use crate::convert::DEFAULT_NAMESPACE;
use crate::object::{Kind, ObjectKey};

use super::yaml;

/// What a broken document is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Salvaged {
    /// This object.
    Object(ObjectKey),
    /// Objects that cannot be told apart. Among them may be these security objects, named as far as they can be.
    Some(Vec<ObjectKey>),
}

/// Looks for the object of a document by its lines, as people write them: `kind:` at the margin, and a readable block `metadata:`.
/// Where that fails, for security objects anywhere in the text.
pub(super) fn salvage(text: &str) -> Salvaged {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with('#')).collect();
    match object(&lines) {
        Some(key) => Salvaged::Object(key),
        None => Salvaged::Some(security_objects(&lines.join("\n"))),
    }
}

fn object(lines: &[&str]) -> Option<ObjectKey> {
    let top = |key: &str| lines.iter().position(|line| line.strip_prefix(key).is_some_and(|rest| rest.starts_with(':')));
    let kind = yaml::to_value(lines.get(top("kind")?)?).ok()??;
    let kind = Kind::from_name(kind.get("kind")?.as_str()?)?;
    let start = top("metadata")?;
    let below = lines.iter().skip(start + 1).take_while(|line| line.is_empty() || line.starts_with([' ', '\t'])).count();
    let block = yaml::to_value(&lines.get(start..=start + below)?.join("\n")).ok()??;
    let metadata = block.get("metadata")?;
    let name = metadata.get("name")?.as_str()?;
    let namespace = match metadata.get("namespace") {
        _ if !kind.namespaced() => "",
        None => DEFAULT_NAMESPACE,
        Some(namespace) => namespace.as_str()?,
    };
    Some(ObjectKey { kind, namespace: namespace.into(), name: name.into() })
}

/// Each kind of security object that is mentioned, in each namespace that is mentioned: more than is meant rather than less.
fn security_objects(text: &str) -> Vec<ObjectKey> {
    let mut namespaces = values(text, "namespace");
    if namespaces.is_empty() {
        namespaces.push(DEFAULT_NAMESPACE);
    }
    let kinds = values(text, "kind").into_iter().filter_map(Kind::from_name).filter(|kind| kind.is_security());
    let mut keys: Vec<ObjectKey> = kinds
        .flat_map(|kind| namespaces.iter().map(move |namespace| ObjectKey { kind, namespace: (*namespace).into(), name: "".into() }))
        .collect();
    keys.sort();
    keys.dedup();
    keys
}

/// The words after `key:`, quoted or not.
fn values<'a>(text: &'a str, key: &str) -> Vec<&'a str> {
    let quotes = ['"', '\''];
    let part_of_name = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    let found = text.match_indices(key).filter_map(|(at, _)| {
        let (before, after) = (text.get(..at)?, text.get(at + key.len()..)?);
        if before.ends_with(part_of_name) {
            return None;
        }
        let value = after.trim_start_matches(quotes).trim_start().strip_prefix(':')?.trim_start().trim_start_matches(quotes);
        let end = value.find(|c| !part_of_name(c)).unwrap_or(value.len());
        value.get(..end).filter(|word| !word.is_empty())
    });
    found.collect()
}
