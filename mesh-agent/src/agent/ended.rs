//! Connections judged in the kernel that the agent ended, until the kernel's own record of their end comes: it knows their bytes, and only the agent
//! knows why. Pure.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use mesh_common::addr::Endpoint;
use mesh_common::event::{EVENT_CLOSED, EVENT_PLAINTEXT, Event};
use mesh_common::flow::{FlowEntry, FlowKey, KIND_PLAINTEXT};

use super::revoke::Ended;
use crate::outcome::Outcome;

/// How long the kernel's record is waited for. It is written while the connection is ended, and may be lost.
const PATIENCE: Duration = Duration::from_secs(2);

struct Waiting {
    flow: FlowEntry,
    outcome: Outcome,
    since: Instant,
}

/// What is waited for.
#[derive(Default)]
pub struct EndedFlows(HashMap<FlowKey, Waiting>);

impl EndedFlows {
    /// Notes a connection that was ended just now.
    pub fn note(&mut self, ended: &Ended, now: Instant) {
        self.0.insert(ended.key, Waiting { flow: ended.flow, outcome: ended.outcome.clone(), since: now });
    }

    /// Why the connection of the kernel's record ended, if it was the agent that ended it.
    pub fn settle(&mut self, event: &Event) -> Option<Outcome> {
        if self.0.is_empty() || event.kind != EVENT_CLOSED {
            return None;
        }
        let key = FlowKey {
            source: event.client.addr,
            destination: event.server.addr,
            source_port: event.client.port,
            destination_port: event.server.port,
        };
        self.0.remove(&key).map(|waiting| waiting.outcome)
    }

    /// Those of which no record came in time, as one without bytes. `boot_ns` is the kernel's time (`CLOCK_MONOTONIC`).
    pub fn overdue(&mut self, now: Instant, boot_ns: u64) -> Vec<(Event, Outcome)> {
        let late = |_: &FlowKey, waiting: &mut Waiting| now.saturating_duration_since(waiting.since) >= PATIENCE;
        self.0.extract_if(late).map(|(key, waiting)| (record(&key, &waiting, now, boot_ns), waiting.outcome)).collect()
    }
}

fn record(key: &FlowKey, waiting: &Waiting, now: Instant, boot_ns: u64) -> Event {
    let flow = &waiting.flow;
    let waited = u64::try_from(now.saturating_duration_since(waiting.since).as_nanos()).unwrap_or(u64::MAX);
    Event {
        kind: EVENT_CLOSED,
        source: flow.source,
        destination: flow.destination,
        service: flow.service,
        policy: flow.policy,
        client: Endpoint { addr: key.source, port: key.source_port, pad: [0; 2] },
        server: Endpoint { addr: key.destination, port: key.destination_port, pad: [0; 2] },
        dialled: flow.dialled,
        flags: if flow.kind == KIND_PLAINTEXT { EVENT_PLAINTEXT } else { 0 },
        duration_ns: boot_ns.saturating_sub(flow.started_ns).saturating_sub(waited),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests;
