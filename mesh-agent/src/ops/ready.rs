//! Readiness as tokens: each part that must come up holds a blocker; dropping it says that the part is ready.
//! The agent is ready when nobody holds one, and says by name whom it waits for until then.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

/// The agent's readiness. Clones are the same.
#[derive(Clone)]
pub struct Readiness {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    ready: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    next: u64,
    awaited: BTreeMap<u64, (String, Option<String>)>,
    remarks: BTreeMap<&'static str, String>,
}

/// Keeps the agent from being ready until dropped.
#[must_use = "dropping it marks the part ready"]
pub struct Blocker {
    id: u64,
    shared: Arc<Shared>,
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

impl Readiness {
    /// Ready as long as nobody blocks: take the first blocker before anybody may ask.
    pub fn new() -> Readiness {
        Readiness { shared: Arc::new(Shared { state: Mutex::default(), ready: watch::Sender::new(true) }) }
    }

    /// Blocks until the blocker is dropped. `what` completes the sentence "waiting for …".
    pub fn block(&self, what: impl Into<String>) -> Blocker {
        let mut state = self.shared.state.lock();
        let id = state.next;
        state.next += 1;
        state.awaited.insert(id, (what.into(), None));
        self.shared.ready.send_replace(false);
        Blocker { id, shared: self.shared.clone() }
    }

    /// What is awaited, in the order in which it was blocked; empty when ready.
    pub fn awaited(&self) -> Vec<String> {
        let state = self.shared.state.lock();
        state
            .awaited
            .values()
            .map(|(what, detail)| match detail {
                Some(detail) => format!("{what} ({detail})"),
                None => what.clone(),
            })
            .collect()
    }

    /// Notes what is wrong, and why, without being any less ready for it; `None`: it is no longer so.
    pub fn remark(&self, what: &'static str, why: Option<String>) {
        let mut state = self.shared.state.lock();
        match why {
            Some(why) => drop(state.remarks.insert(what, why)),
            None => drop(state.remarks.remove(what)),
        }
    }

    /// What is wrong.
    pub fn remarks(&self) -> Vec<String> {
        self.shared.state.lock().remarks.iter().map(|(what, why)| format!("{what}: {why}")).collect()
    }

    /// Whether nothing is awaited.
    pub fn is_ready(&self) -> bool {
        *self.shared.ready.borrow()
    }

    /// Returns once nothing is awaited.
    pub async fn ready(&self) {
        // The sender lives in self, so this can't fail.
        let _ = self.shared.ready.subscribe().wait_for(|ready| *ready).await;
    }
}

impl Blocker {
    /// Says how far it is, or why it is not further, in words.
    pub fn progress(&self, detail: impl Into<String>) {
        if let Some((_, told)) = self.shared.state.lock().awaited.get_mut(&self.id) {
            *told = Some(detail.into());
        }
    }

    /// Blocks for good: the part failed and will never be ready.
    pub fn never(self) {
        std::mem::forget(self);
    }
}

impl Drop for Blocker {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        let Some((what, _)) = state.awaited.remove(&self.id) else { return };
        if state.awaited.is_empty() {
            tracing::info!("{what}: done; the agent is ready");
            self.shared.ready.send_replace(true);
        } else {
            let rest: Vec<&str> = state.awaited.values().map(|(what, _)| what.as_str()).collect();
            tracing::info!("{what}: done; still waiting for {}", rest.join(", "));
        }
    }
}

#[cfg(test)]
mod tests;
