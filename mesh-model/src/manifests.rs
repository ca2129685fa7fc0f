//! A set of manifest files, and what stays in force while one of them is broken.
//!
//! - A document that is not understood does not take its object out of the mesh: the version read before stays in force. A policy that
//!   is not understood denies instead, since the earlier version may be just what its author wants to be rid of.
//! - Where not even the name of the broken object can be made out, every object that the file had before stays.
//! - A file that cannot be read at all changes nothing.
//! - A document or a file that is removed takes its objects with it.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;

use crate::convert::Reading;
use crate::document::{Document, Parsed, parse_documents};
use crate::object::ObjectKey;
use crate::problem::{Origin, Problem, Severity};
use crate::snapshot::Snapshot;
use crate::workload::PodNetworks;

/// The files by path, each as it was last understood.
#[derive(Clone, Debug, Default)]
pub struct ManifestSet {
    files: BTreeMap<Arc<Path>, File>,
    problems: Vec<Problem>,
    networks: Arc<PodNetworks>,
}

#[derive(Clone, Debug, Default)]
struct File {
    documents: Vec<Document>,
    problems: Vec<Problem>,
}

impl ManifestSet {
    /// Takes a file's text in place of the one before.
    pub fn put(&mut self, path: &Path, text: &str) {
        let Parsed { mut documents, mut problems, lost } = parse_documents(path, text);
        let before = self.files.remove(path).unwrap_or_default();
        for document in &mut documents {
            if matches!(document.reading, Reading::Good(_)) {
                continue;
            }
            let good = |old: &&Document| old.key == document.key && matches!(old.reading, Reading::Good(_));
            if let Some(old) = before.documents.iter().find(good) {
                problems.push(note(document.origin.clone(), document.key.to_string(), "stays in force as it was read before".into()));
                *document = old.clone();
            }
        }
        if lost {
            let named: HashSet<ObjectKey> = documents.iter().map(|document| document.key.clone()).collect();
            let kept: Vec<Document> = before.documents.into_iter().filter(|old| !named.contains(&old.key)).collect();
            if !kept.is_empty() {
                let names: Vec<String> = kept.iter().map(|document| document.key.to_string()).collect();
                let message =
                    format!("objects of which the file says nothing readable stay in force as they were read before: {}", names.join(", "));
                problems.push(note(Origin::File { file: path.into(), line: 0 }, String::new(), message));
            }
            documents.extend(kept);
        }
        self.files.insert(path.into(), File { documents, problems });
    }

    /// Notes that a file cannot be read; what it held before stays in force.
    pub fn unreadable(&mut self, path: &Path, reason: &dyn Display) {
        let file = self.files.entry(path.into()).or_default();
        let message = format!("cannot be read: {reason}; the objects that it had before stay in force");
        let origin = Origin::File { file: path.into(), line: 0 };
        file.problems = vec![Problem { severity: Severity::Error, origin, object: "".into(), field: "".into(), message: message.into() }];
    }

    /// Forgets a file and its objects.
    pub fn remove(&mut self, path: &Path) {
        self.files.remove(path);
    }

    /// Paths of the files.
    pub fn paths(&self) -> impl Iterator<Item = &Arc<Path>> {
        self.files.keys()
    }

    /// What is wrong with the set as a whole, e.g. that its directory is gone; replaces what was said before.
    pub fn set_problems(&mut self, problems: Vec<Problem>) {
        self.problems = problems;
    }

    /// What the node knows of its pods' networks, for those of which the files do not say it.
    pub fn set_networks(&mut self, networks: Arc<PodNetworks>) {
        self.networks = networks;
    }

    /// The mesh that the files describe. What has not changed since `previous` is shared with it.
    pub fn snapshot(&self, previous: Option<&Snapshot>) -> Snapshot {
        let problems = self.problems.iter().chain(self.files.values().flat_map(|file| &file.problems)).cloned().collect();
        Snapshot::build_on_node(self.files.values().flat_map(|file| &file.documents), problems, &self.networks, previous)
    }
}

fn note(origin: Origin, object: String, message: String) -> Problem {
    Problem { severity: Severity::Warn, origin, object: object.into(), field: "".into(), message: message.into() }
}

#[cfg(test)]
mod tests;
