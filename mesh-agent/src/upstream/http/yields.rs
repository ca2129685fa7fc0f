//! Unused connections that are closed when somebody waits for their places (`maxConnections`), on whatever thread and for whatever server of
//! the cluster.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use super::{HttpPools, Idle, SWEEP, Shared};
use crate::upstream::bounds::{Bounds, Place};

/// Bounds under which a worker has connections, each watched by a task.
#[derive(Default)]
pub(super) struct Yields(RefCell<Vec<Arc<Bounds>>>);

fn counts(place: Option<&Rc<Place>>, bounds: &Arc<Bounds>) -> bool {
    place.is_some_and(|place| Arc::ptr_eq(place.bounds(), bounds))
}

impl HttpPools {
    /// A connection under bounds has become unused, or may without a further word: whoever waits looks whether it serves him; if it does
    /// not, it is closed for him.
    pub(super) fn may_yield(self: &Rc<Self>, bounds: Option<Arc<Bounds>>) {
        let Some(bounds) = bounds.filter(|bounds| bounds.is_bounded()) else { return };
        let mut watched = self.yields.0.borrow_mut();
        if !watched.iter().any(|known| Arc::ptr_eq(known, &bounds)) {
            watched.push(bounds.clone());
            let (pools, bounds) = (Rc::downgrade(self), bounds.clone());
            tokio::task::spawn_local(async move {
                loop {
                    let mut hungry = std::pin::pin!(bounds.hungry());
                    hungry.as_mut().enable();
                    match pools.upgrade() {
                        Some(pools) if pools.look(&bounds) => {}
                        _ => return,
                    }
                    // Now and then it is looked whether there is anything left to watch.
                    let _ = tokio::time::timeout(SWEEP, hungry).await;
                }
            });
        }
        drop(watched);
        bounds.has_room();
    }

    /// Closes what is to be closed. False if nothing is left under the bounds, which are no longer watched then.
    fn look(&self, bounds: &Arc<Bounds>) -> bool {
        while let Some(_yielding) = bounds.should_yield() {
            if !self.close_one(bounds) {
                break;
            }
        }
        let idle = self.idle.borrow().values().flatten().any(|idle| counts(idle.connection.place.as_ref(), bounds));
        let left = idle || self.shared.borrow().values().flatten().any(|shared| counts(shared.place.as_ref(), bounds));
        if !left {
            self.yields.0.borrow_mut().retain(|known| !Arc::ptr_eq(known, bounds));
        }
        left
    }

    /// Closes the connection that has been unused for longest. False if none is.
    fn close_one(&self, bounds: &Arc<Bounds>) -> bool {
        let oldest = |all: &[Idle]| all.iter().position(|idle| counts(idle.connection.place.as_ref(), bounds));
        let mut idle = self.idle.borrow_mut();
        let candidates = idle.iter_mut().filter_map(|(_, all)| oldest(all).map(|at| (at, all)));
        if let Some((at, all)) = candidates.min_by_key(|(at, all)| all.get(*at).map(|idle| idle.until)) {
            all.remove(at);
            return true;
        }
        let unused = |shared: &Shared| shared.streams.open.get() == 0 && counts(shared.place.as_ref(), bounds);
        for all in self.shared.borrow_mut().values_mut() {
            if let Some(at) = all.iter().position(unused) {
                all.remove(at);
                return true;
            }
        }
        false
    }
}
