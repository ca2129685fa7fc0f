//! Things under way on one thread, of which the oldest gives way when there are too many.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use tokio::sync::oneshot;

use super::server::OnDrop;

/// The queue, oldest first.
#[derive(Default)]
pub struct Queue {
    waiting: RefCell<VecDeque<(u64, oneshot::Sender<()>)>>,
    next: Cell<u64>,
}

impl Queue {
    /// How many there are that have not been told to give way.
    pub fn len(&self) -> usize {
        self.waiting.borrow().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Joins a queue of at most `limit`, and no less than one. The guard leaves it; the receiver hears of having to give way.
    pub fn enter(self: &Rc<Self>, limit: usize) -> (OnDrop<impl FnMut() + use<>>, oneshot::Receiver<()>) {
        let (crowd, crowded) = oneshot::channel();
        let number = self.next.get();
        self.next.set(number + 1);
        let mut waiting = self.waiting.borrow_mut();
        while waiting.len() >= limit.max(1) {
            if let Some((_, oldest)) = waiting.pop_front() {
                let _ = oldest.send(());
            }
        }
        waiting.push_back((number, crowd));
        drop(waiting);
        let this = self.clone();
        let leave = move || {
            let mut waiting = this.waiting.borrow_mut();
            if let Ok(at) = waiting.binary_search_by_key(&number, |(number, _)| *number) {
                waiting.remove(at);
            }
        };
        (OnDrop(leave), crowded)
    }
}
