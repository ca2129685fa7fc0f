//! Readiness: what is still awaited, by name.

use std::collections::BTreeMap;

use parking_lot::Mutex;

/// What the authority waits for before it can serve. Ready when nothing is left.
#[derive(Debug, Default)]
pub struct Readiness {
    awaited: Mutex<BTreeMap<&'static str, String>>,
}

impl Readiness {
    /// `what` is awaited, because of `detail`.
    pub fn wait_for(&self, what: &'static str, detail: impl Into<String>) {
        let detail = detail.into();
        let before = self.awaited.lock().insert(what, detail.clone());
        if before.as_ref() != Some(&detail) {
            tracing::warn!(what, detail, "not ready");
        }
    }

    /// `what` is there.
    pub fn done(&self, what: &'static str) {
        let mut awaited = self.awaited.lock();
        if awaited.remove(what).is_some() && awaited.is_empty() {
            tracing::info!(last = what, "ready");
        }
    }

    /// What is awaited and why, a line each; empty when ready.
    pub fn awaited(&self) -> Vec<String> {
        self.awaited.lock().iter().map(|(what, detail)| format!("{what}: {detail}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_what_is_awaited() {
        let ready = Readiness::default();
        assert!(ready.awaited().is_empty());
        ready.wait_for("tokens", "no node has one");
        ready.wait_for("manifests", "gone");
        assert_eq!(ready.awaited(), ["manifests: gone", "tokens: no node has one"]);
        ready.done("manifests");
        ready.done("tokens");
        ready.done("tokens");
        assert!(ready.awaited().is_empty());
    }
}
