//! The bounds of one workload's clients towards a cluster, shared by all workers, and waiting for a connection under them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mesh_model::traffic::ConnectionPool;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::circuit::{Circuit, Guard, Overflow, Resource};

/// See the module.
pub struct Bounds {
    /// What is counted.
    pub circuit: Circuit,
    bounded: bool,
    /// A connection was closed, or is there to be used again.
    freed: Notify,
    /// Somebody waits for a place that an unused connection may hold.
    hungry: Notify,
    /// How many wait for a place: not all who wait for a connection do.
    seeking: AtomicU64,
    /// Unused connections that are being closed for those who wait.
    yielding: AtomicU64,
}

/// The place of an open connection.
pub struct Place {
    guard: Option<Guard>,
    bounds: Arc<Bounds>,
}

/// A request without a connection: from when it first waits for one it counts among those that do, whatever it waits for.
#[derive(Default)]
pub struct Pending {
    bounds: Option<Arc<Bounds>>,
    guard: Option<Guard>,
}

impl Pending {
    /// One that counts under bounds. By default it counts nowhere, and may always wait.
    pub fn under(bounds: &Arc<Bounds>) -> Pending {
        Pending { bounds: Some(bounds.clone()), guard: None }
    }

    /// To be called before it waits.
    ///
    /// # Errors
    /// Too many wait already.
    pub fn begin(&mut self) -> Result<(), Overflow> {
        if let (Some(bounds), None) = (&self.bounds, &self.guard) {
            self.guard = Some(bounds.circuit.try_pending()?);
        }
        Ok(())
    }
}

/// One who waits for a place.
struct Seeking<'a>(&'a AtomicU64);

impl<'a> Seeking<'a> {
    fn begin(all: &'a AtomicU64) -> Self {
        all.fetch_add(1, Ordering::AcqRel);
        Seeking(all)
    }
}

impl Drop for Seeking<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Bounds {
    /// With nothing open.
    pub fn new(pool: &ConnectionPool) -> Arc<Bounds> {
        Arc::new(Bounds {
            circuit: Circuit::new(pool),
            bounded: pool.max_connections.is_some(),
            freed: Notify::new(),
            hungry: Notify::new(),
            seeking: AtomicU64::new(0),
            yielding: AtomicU64::new(0),
        })
    }

    /// A place for a new connection, if there is one.
    pub fn now(self: &Arc<Self>) -> Option<Place> {
        let guard = self.circuit.try_connection().ok()?;
        Some(Place { guard: Some(guard), bounds: self.clone() })
    }

    /// Whether connections are bounded.
    pub fn is_bounded(&self) -> bool {
        self.bounded
    }

    /// A connection has become free, or one that several share has room: whoever waits looks again.
    pub fn has_room(&self) {
        self.freed.notify_waiters();
    }

    /// Returns once somebody waits for a place. To be enabled before [`Bounds::should_yield`] is asked, so that nobody is missed.
    pub fn hungry(&self) -> Notified<'_> {
        self.hungry.notified()
    }

    /// Whether an unused connection is to be closed, so that somebody who waits gets its place: only as many as wait, whoever else is asked.
    pub fn should_yield(self: &Arc<Self>) -> Option<Yielding> {
        let waiting = self.seeking.load(Ordering::Acquire);
        let one_more = |yielding: u64| (yielding < waiting && self.circuit.is_full(Resource::Connections)).then(|| yielding + 1);
        self.yielding.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).ok()?;
        Some(Yielding(self.clone()))
    }

    /// What `take` finds, or a place for a new connection, whichever comes first. Fails if too many wait already. Who is `spare` is given a
    /// place beyond the bound.
    pub async fn place<T>(
        self: &Arc<Self>,
        pending: &mut Pending,
        spare: impl Fn() -> bool,
        mut take: impl FnMut() -> Option<T>,
    ) -> Result<Result<T, Option<Place>>, Overflow> {
        let mut seeking = None;
        loop {
            // Made before the look, so that what is freed between the look and the wait is not missed.
            let mut freed = std::pin::pin!(self.freed.notified());
            freed.as_mut().enable();
            if let Some(taken) = take() {
                return Ok(Ok(taken));
            }
            match self.circuit.try_connection() {
                Ok(guard) => return Ok(Err(Some(Place { guard: Some(guard), bounds: self.clone() }))),
                Err(_) if spare() => return Ok(Err(None)),
                Err(_) => {}
            }
            pending.begin()?;
            seeking.get_or_insert_with(|| Seeking::begin(&self.seeking));
            self.hungry.notify_waiters();
            freed.await;
        }
    }
}

/// A place is being made free for somebody who waits. To be dropped when it is.
pub struct Yielding(Arc<Bounds>);

impl Drop for Yielding {
    fn drop(&mut self) {
        self.0.yielding.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Place {
    /// Under which bounds it counts.
    pub fn bounds(&self) -> &Arc<Bounds> {
        &self.bounds
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.guard.take());
        self.bounds.freed.notify_one();
    }
}

#[cfg(test)]
mod tests;
