//! Records for the agent.

use mesh_common::event::{Event, counter};

use crate::maps::{EVENTS, count};

const BPF_RB_NO_WAKEUP: u64 = 1;

/// Reserves a record of a kind, lets `fill` complete it in place (an event is too large for the stack) and hands it to the agent.
/// If the buffer is full it is lost and counted. Never wakes the agent: it polls.
#[inline(always)]
pub fn send(kind: u32, fill: impl FnOnce(&mut Event)) {
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else {
        count(counter::EVENT_LOST);
        return;
    };
    entry.write(Event { kind, ..Event::default() });
    // SAFETY: written in full just above.
    fill(unsafe { entry.assume_init_mut() });
    entry.submit(BPF_RB_NO_WAKEUP);
}
