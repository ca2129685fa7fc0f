//! What the API server has said, and the mesh that follows from it. Pure: events in, snapshots out.
//!
//! - Nothing is in force before every kind has been listed once.
//! - A new list takes the place of the old one as a whole, when it is complete; until then the old one is in force.
//! - An object that is not understood is kept as it was last understood, as long as it is the same object. A policy that is not
//!   understood denies instead (see `mesh_model::convert`).

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_model::convert::{Converted, Provenance, Reading, convert_from};
use mesh_model::document::Document;
use mesh_model::object::{Kind, ObjectKey};
use mesh_model::problem::{ObjectOrigin, Origin, Problem, Severity};
use mesh_model::service::NamespacedName;
use mesh_model::snapshot::Snapshot;
use mesh_model::workload::PodNetworks;
use serde_json::{Map, Value, json};

/// What happened to a kind's objects. Objects are JSON of any form.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// A list begins; one that has begun before and is not complete is void.
    ListBegins,
    /// An object of the list.
    Listed(Value),
    /// The list is complete.
    ListEnds,
    /// An object is new or has changed.
    Applied(Value),
    /// An object is gone.
    Deleted(Value),
    /// The API server does not have the kind: there are no objects of it.
    Absent,
}

/// What follows from an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Effect {
    /// Nothing: what the mesh reads of the objects is as before.
    None,
    /// A new snapshot is due.
    Changed,
    /// It is not known which object this was about: the kind must be listed anew. A snapshot may be due too.
    Relist,
}

/// The objects, by kind.
#[derive(Debug)]
pub struct Store {
    kinds: BTreeMap<Kind, Shelf>,
    networks: Arc<PodNetworks>,
    problems: Vec<Problem>,
}

#[derive(Debug, Default)]
struct Shelf {
    /// It has been listed, or is known to be absent.
    known: bool,
    objects: Objects,
    listing: Option<Objects>,
}

/// An object that a new list says nothing new of is shared between both.
type Objects = BTreeMap<NamespacedName, Arc<Entry>>;

#[derive(Clone, Debug)]
struct Entry {
    /// Tells an object from an earlier one of the same name.
    uid: Box<str>,
    document: Document,
    problems: Box<[Problem]>,
}

impl Entry {
    /// Whether it says the same, whatever version of the object it was read from.
    fn says(&self, other: &Entry) -> bool {
        let heart = |problem: &Problem| (problem.severity, problem.field.clone(), problem.message.clone());
        self.document.reading == other.document.reading
            && self.uid == other.uid
            && self.problems.iter().map(heart).eq(other.problems.iter().map(heart))
    }
}

impl Store {
    /// Knows nothing yet of these kinds.
    pub fn new(kinds: impl IntoIterator<Item = Kind>) -> Store {
        Store { kinds: kinds.into_iter().map(|kind| (kind, Shelf::default())).collect(), networks: Arc::default(), problems: Vec::new() }
    }

    /// Takes an event of a kind. Kinds that the store was not made for are not taken.
    pub fn take(&mut self, kind: Kind, event: Event) -> Effect {
        let Some(shelf) = self.kinds.get_mut(&kind) else { return Effect::None };
        match event {
            Event::ListBegins => {
                shelf.listing = Some(Objects::new());
                Effect::None
            }
            Event::Listed(value) => {
                let (name, entry) = read(kind, value, |name| shelf.objects.get(name));
                let entry = match shelf.objects.get(&name) {
                    Some(before) if before.says(&entry) => before.clone(),
                    _ => Arc::new(entry),
                };
                shelf.listing.get_or_insert_default().insert(name, entry);
                Effect::None
            }
            Event::ListEnds => shelf.replace(),
            Event::Applied(value) => {
                let (name, entry) = read(kind, value, |name| shelf.objects.get(name));
                let unnamed = name.name.is_empty();
                if shelf.objects.get(&name).is_some_and(|before| before.says(&entry)) {
                    return if unnamed { Effect::Relist } else { Effect::None };
                }
                shelf.objects.insert(name, Arc::new(entry));
                if unnamed { Effect::Relist } else { Effect::Changed }
            }
            Event::Deleted(value) => match named(&value) {
                Some(name) => shelf.objects.remove(&name).map_or(Effect::None, |_| Effect::Changed),
                None => Effect::Relist,
            },
            Event::Absent => {
                let news = !shelf.known || !shelf.objects.is_empty();
                *shelf = Shelf { known: true, ..Shelf::default() };
                if news { Effect::Changed } else { Effect::None }
            }
        }
    }

    /// What the node knows of its pods' networks; true if that is news.
    pub fn set_networks(&mut self, networks: Arc<PodNetworks>) -> bool {
        let news = self.networks != networks;
        self.networks = networks;
        news
    }

    /// What is wrong with the source as a whole, in place of what was said before; true if that is news.
    pub fn set_problems(&mut self, problems: Vec<Problem>) -> bool {
        let news = self.problems != problems;
        self.problems = problems;
        news
    }

    /// Whether every kind is known, so that a snapshot may be put in force.
    pub fn is_complete(&self) -> bool {
        self.kinds.values().all(|shelf| shelf.known)
    }

    /// Objects in force of a kind.
    pub fn count(&self, kind: Kind) -> usize {
        self.kinds.get(&kind).map_or(0, |shelf| shelf.objects.len())
    }

    /// The mesh that the objects describe; `None` before the store is complete. What has not changed since `previous` is shared with it.
    pub fn snapshot(&self, previous: Option<&Snapshot>) -> Option<Snapshot> {
        if !self.is_complete() {
            return None;
        }
        let entries = || self.kinds.values().flat_map(|shelf| shelf.objects.values());
        let problems = self.problems.iter().chain(entries().flat_map(|entry| &entry.problems)).cloned().collect();
        Some(Snapshot::build_on_node(entries().map(|entry| &entry.document), problems, &self.networks, previous))
    }
}

impl Shelf {
    /// Puts the list that has come in in the place of the objects in force.
    fn replace(&mut self) -> Effect {
        let Some(mut list) = self.listing.take() else { return Effect::None };
        let mut before = std::mem::take(&mut self.objects);
        let mut changed = !self.known;
        self.known = true;
        // Where one object could not even be named, it may be any of those that the list does not name.
        let lost = list.keys().any(|name| name.name.is_empty());
        for (name, entry) in &mut list {
            match before.remove(name) {
                Some(old) if Arc::ptr_eq(&old, entry) || old.says(entry) => *entry = old,
                _ => changed = true,
            }
        }
        if lost {
            list.append(&mut before);
        }
        changed |= !before.is_empty();
        self.objects = list;
        if changed { Effect::Changed } else { Effect::None }
    }
}

fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get("metadata")?.get(key)?.as_str()
}

/// The name of an object, if it has one.
fn named(value: &Value) -> Option<NamespacedName> {
    let name = text(value, "name").filter(|name| !name.is_empty())?;
    let namespace = match value.get("metadata").and_then(|metadata| metadata.get("namespace")) {
        None | Some(Value::Null) => "",
        Some(namespace) => namespace.as_str()?,
    };
    Some(NamespacedName { namespace: namespace.into(), name: name.into() })
}

/// Reads an object. `before` finds the one that is in force under the same name.
fn read<'b>(kind: Kind, mut value: Value, before: impl FnOnce(&NamespacedName) -> Option<&'b Arc<Entry>>) -> (NamespacedName, Entry) {
    if !value.is_object() {
        value = Value::Object(Map::new());
    }
    // In a list they stand at the list only.
    if let (Some(object), Some(version)) = (value.as_object_mut(), kind.api_versions().first()) {
        object.insert("kind".into(), json!(kind.name()));
        object.insert("apiVersion".into(), json!(version));
    }
    let Converted { key, title, mut reading, findings } = convert_from(&value, Provenance::ApiServer);
    let key = key.unwrap_or_else(|| ObjectKey { kind, namespace: "".into(), name: "".into() });
    let name = NamespacedName { namespace: key.namespace.clone(), name: key.name.clone() };
    let origin = Origin::Object(Arc::new(ObjectOrigin {
        key: key.clone(),
        resource_version: text(&value, "resourceVersion").unwrap_or_default().into(),
        generation: value.get("metadata").and_then(|metadata| metadata.get("generation")).and_then(Value::as_i64),
    }));
    let title: Arc<str> = title.into();
    let problem = |severity, field: String, message: String| Problem {
        severity,
        origin: origin.clone(),
        object: title.clone(),
        field: field.into(),
        message: message.into(),
    };
    let mut problems: Vec<Problem> =
        findings.into_iter().map(|finding| problem(finding.severity, finding.field.to_string(), finding.message)).collect();
    let uid: Box<str> = text(&value, "uid").unwrap_or_default().into();
    let mut document_origin = origin.clone();
    if matches!(reading, Reading::Cautious(_) | Reading::Unreadable)
        && let Some(old) = before(&name)
        && old.uid == uid
        && matches!(old.document.reading, Reading::Good(_))
    {
        problems.push(problem(Severity::Warn, String::new(), "stays in force as it was read before".into()));
        reading = old.document.reading.clone();
        document_origin = old.document.origin.clone();
    }
    (name, Entry { uid, document: Document { origin: document_origin, key, reading }, problems: problems.into() })
}

#[cfg(test)]
mod tests;
