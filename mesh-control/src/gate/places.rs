//! How many calls of a node are under way at once. Of too many the newest count: an agent that begins anew has left the old ones behind.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// Answers that a node may leave unread: each is kept until it is read, or its connection ends.
pub(super) const MOST_UNREAD: usize = 8;

/// The places of all nodes.
#[derive(Debug)]
pub(super) struct Places {
    most: usize,
    nodes: Mutex<HashMap<Arc<str>, Calls>>,
}

/// Calls of a node.
#[derive(Default, Debug)]
struct Calls {
    /// The number of the latest.
    last: u64,
    /// Those that are not answered yet, the oldest first.
    waiting: VecDeque<(u64, CancellationToken)>,
    /// How many are answered, and their answers not read.
    unread: usize,
}

impl Places {
    /// So many for each node, at least one.
    pub(super) fn new(most: usize) -> Arc<Places> {
        Arc::new(Places { most: most.max(1), nodes: Mutex::default() })
    }

    /// A place for a call, if need be that of the oldest. `None`: the node does not read its answers.
    pub(super) fn enter(self: &Arc<Self>, node: &Arc<str>) -> Option<Place> {
        let mut nodes = self.nodes.lock();
        let calls = nodes.entry(node.clone()).or_default();
        if calls.unread >= MOST_UNREAD {
            return None;
        }
        while calls.waiting.len() >= self.most
            && let Some((_, over)) = calls.waiting.pop_front()
        {
            over.cancel();
        }
        calls.last += 1;
        let (number, over) = (calls.last, CancellationToken::new());
        calls.waiting.push_back((number, over.clone()));
        Some(Place { places: self.clone(), node: node.clone(), number, over, is_unread: false })
    }
}

/// The place of one call; given back when it is dropped.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    node: Arc<str>,
    number: u64,
    over: CancellationToken,
    is_unread: bool,
}

impl Place {
    /// Ready once a newer call has taken the place.
    pub async fn overtaken(&self) {
        self.over.cancelled().await;
    }

    /// The call is answered. To be kept until the answer is read.
    #[must_use]
    pub fn answered(mut self) -> Place {
        if !std::mem::replace(&mut self.is_unread, true)
            && let Some(calls) = self.places.nodes.lock().get_mut(&self.node)
        {
            calls.waiting.retain(|(number, _)| *number != self.number);
            calls.unread += 1;
        }
        self
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut nodes = self.places.nodes.lock();
        let Some(calls) = nodes.get_mut(&self.node) else { return };
        if self.is_unread {
            calls.unread = calls.unread.saturating_sub(1);
        } else {
            calls.waiting.retain(|(number, _)| *number != self.number);
        }
        if calls.unread == 0 && calls.waiting.is_empty() {
            nodes.remove(&self.node);
        }
    }
}

#[cfg(test)]
mod tests;
