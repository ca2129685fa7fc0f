//! The bounds of one workload's clients towards a cluster, shared by all workers, and waiting for a connection under them.

use std::sync::Arc;

use tokio::sync::Notify;

use super::circuit::{Circuit, Guard};
use mesh_model::traffic::ConnectionPool;

/// See the module.
pub struct Bounds {
    /// What is counted.
    pub circuit: Circuit,
    bounded: bool,
    /// A connection was closed.
    freed: Notify,
    /// Somebody waits for a place that an unused connection holds.
    hungry: Notify,
}

/// The place of an open connection.
pub struct Place {
    guard: Option<Guard>,
    bounds: Arc<Bounds>,
}

impl Bounds {
    /// With nothing open.
    pub fn new(pool: &ConnectionPool) -> Arc<Bounds> {
        Arc::new(Bounds {
            circuit: Circuit::new(pool),
            bounded: pool.max_connections.is_some(),
            freed: Notify::new(),
            hungry: Notify::new(),
        })
    }

    /// A place for a new connection, if there is one.
    pub fn now(self: &Arc<Self>) -> Option<Place> {
        let guard = self.circuit.try_connection().ok()?;
        Some(Place { guard: Some(guard), bounds: self.clone() })
    }

    /// A request on a connection that several share has ended: whoever waits for room looks again.
    pub fn stream_ended(&self) {
        self.freed.notify_waiters();
    }

    /// What `take` finds, or a place for a new connection, whichever comes first. Fails if too many wait already. Who is `spare` is given a
    /// place beyond the bound.
    pub async fn place<T>(
        self: &Arc<Self>,
        spare: impl Fn() -> bool,
        mut take: impl FnMut() -> Option<T>,
    ) -> Result<Result<T, Option<Place>>, ()> {
        let mut waiting = None;
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
            if waiting.is_none() {
                waiting = Some(self.circuit.try_pending().map_err(drop)?);
            }
            self.hungry.notify_one();
            freed.await;
        }
    }
}

impl Place {
    /// Returns once somebody needs the place of an unused connection more; never where connections are not bounded.
    pub async fn wanted(&self) {
        if self.bounds.bounded {
            self.bounds.hungry.notified().await;
        } else {
            std::future::pending().await
        }
    }

    /// Whether it may ever be wanted.
    pub fn is_bounded(&self) -> bool {
        self.bounds.bounded
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
