//! The kernel's reports: a buffer that is emptied now and then, not one wake-up an event.

use std::path::Path;

use aya::maps::{MapData, RingBuf};
use mesh_common::event::Event;

use super::load::LoadError;
use super::maps;

/// The reading end. There must be only one.
pub struct Events(RingBuf<MapData>);

impl Events {
    /// Opens the pinned buffer.
    pub fn open(pins: &Path) -> Result<Self, LoadError> {
        maps::events(pins).map(Events)
    }

    /// Hands over what has come, at most `limit` records, so that a flood does not hold up its caller. True if more may be waiting.
    pub fn drain(&mut self, limit: usize, mut each: impl FnMut(Event)) -> bool {
        for _ in 0..limit {
            let Some(record) = self.0.next() else { return false };
            match mesh_common::pod::read_event(&record) {
                Some(event) => each(event),
                None => tracing::warn!(bytes = record.len(), "the kernel reported a record of another layout"),
            }
        }
        true
    }
}
