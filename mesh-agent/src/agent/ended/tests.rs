use mesh_common::addr::{Addr, Port};

use super::*;
use crate::outcome::DenyReason;

fn ended(port: u16) -> Ended {
    let key = FlowKey {
        source: Addr::v4([10, 0, 0, 1]),
        destination: Addr::v4([10, 0, 0, 2]),
        source_port: Port::new(port),
        destination_port: Port::new(80),
    };
    let dialled = Endpoint::new(Addr::v4([10, 96, 0, 1]), 80);
    let flow =
        FlowEntry { kind: KIND_PLAINTEXT, source: 1, destination: 2, service: 3, started_ns: 1_000, dialled, ..FlowEntry::default() };
    Ended { key, flow, outcome: Outcome::PolicyRevoked { reason: DenyReason::NoAllowPolicy, policy: None } }
}

fn event(ended: &Ended) -> Event {
    Event {
        kind: EVENT_CLOSED,
        client: Endpoint { addr: ended.key.source, port: ended.key.source_port, pad: [0; 2] },
        server: Endpoint { addr: ended.key.destination, port: ended.key.destination_port, pad: [0; 2] },
        ..Event::default()
    }
}

#[test]
fn the_kernels_record_is_told_why_once() {
    let (now, mut flows) = (Instant::now(), EndedFlows::default());
    let (one, another) = (ended(1), ended(2));
    flows.note(&one, now);
    assert_eq!(flows.settle(&event(&another)), None, "another's end");
    assert_eq!(flows.settle(&Event { kind: mesh_common::event::EVENT_DENIED, ..event(&one) }), None);
    assert_eq!(flows.settle(&event(&one)), Some(one.outcome.clone()));
    assert_eq!(flows.settle(&event(&one)), None);
    assert_eq!(flows.overdue(now + PATIENCE, 0), []);
}

#[test]
fn one_without_a_record_is_told_of_in_time() {
    let (now, mut flows) = (Instant::now(), EndedFlows::default());
    flows.note(&ended(1), now);
    flows.note(&ended(2), now + PATIENCE);
    assert_eq!(flows.overdue(now + PATIENCE - Duration::from_nanos(1), 0), []);
    let late = flows.overdue(now + PATIENCE, 5_001_000 + PATIENCE.as_nanos() as u64);
    let [(record, outcome)] = &late[..] else { panic!("{late:?}") };
    assert_eq!(outcome, &ended(1).outcome);
    let expected = Event {
        source: 1,
        destination: 2,
        service: 3,
        dialled: ended(1).flow.dialled,
        duration_ns: 5_000_000,
        flags: EVENT_PLAINTEXT,
        ..event(&ended(1))
    };
    assert_eq!(*record, expected);
    assert_eq!(flows.settle(&event(&ended(1))), None);
    assert!(flows.settle(&event(&ended(2))).is_some());
}
