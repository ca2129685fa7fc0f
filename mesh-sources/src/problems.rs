//! One line in the log for each problem of the configuration, when it appears.

use std::collections::HashSet;

use mesh_model::problem::{Origin, Problem, Severity};
use mesh_model::snapshot::Snapshot;

/// Remembers what has been said.
#[derive(Debug, Default)]
pub(crate) struct ProblemLog {
    said: HashSet<Problem>,
}

impl ProblemLog {
    /// Logs the problems that the snapshot before did not have.
    pub(crate) fn tell(&mut self, snapshot: &Snapshot) {
        let present: HashSet<Problem> = snapshot.problems().iter().map(lasting).collect();
        for problem in snapshot.problems() {
            if self.said.contains(&lasting(problem)) {
                continue;
            }
            let file = problem.origin.file().map(|file| tracing::field::display(file.display()));
            let line = file.is_some().then(|| problem.origin.line().unwrap_or(0));
            let version = match &problem.origin {
                Origin::Object(object) => Some(&*object.resource_version),
                Origin::File { .. } | Origin::Api => None,
            };
            let (object, field, message) = (&*problem.object, &*problem.field, &*problem.message);
            match problem.severity {
                Severity::Error => tracing::error!(file, line, object, version, field, "configuration: {message}"),
                Severity::Warn => tracing::warn!(file, line, object, version, field, "configuration: {message}"),
                Severity::Info => tracing::info!(file, line, object, version, field, "configuration: {message}"),
            }
        }
        let mended = self.said.difference(&present).count();
        if mended > 0 {
            tracing::info!(mended, left = present.len(), "problems of the configuration are mended");
        }
        self.said = present;
    }
}

/// The problem without what changes while it stays the same one: an object's version does with every change of its status.
fn lasting(problem: &Problem) -> Problem {
    match problem.origin {
        Origin::Object(_) => Problem { origin: Origin::Api, ..problem.clone() },
        Origin::File { .. } | Origin::Api => problem.clone(),
    }
}
