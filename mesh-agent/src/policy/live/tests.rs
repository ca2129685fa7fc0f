use std::future::Future;
use std::task::{Context, Poll, Waker};

use super::*;
use crate::policy::decide::tests::{authorization, in_force, peer, server};

fn deny_bob() -> WorkloadPolicy {
    in_force(&[authorization("no-bob", "{action: DENY, rules: [{from: [{source: {serviceAccounts: [bob]}}]}]}")])
}

fn live(sender: &watch::Sender<Arc<WorkloadPolicy>>, who: &str) -> Live {
    Live::open(sender.subscribe(), peer(Some(who)), server(80), Transport::Tunnel).unwrap().1
}

/// What one poll says.
fn poll(live: &mut Live) -> Poll<Denial> {
    std::pin::pin!(live.revoked()).poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn only_those_that_are_no_longer_allowed_are_ended() {
    let sender = watch::Sender::new(Arc::new(in_force(&[])));
    let (mut alice, mut bob) = (live(&sender, "alice"), live(&sender, "bob"));
    assert!(poll(&mut bob).is_pending());
    assert!(publish(&sender, deny_bob()));
    assert!(poll(&mut alice).is_pending());
    let Poll::Ready(denial) = poll(&mut bob) else { panic!("bob goes on") };
    assert_eq!(denial.policy.unwrap().to_string(), "shop/no-bob");
}

#[test]
fn an_equal_policy_wakes_nobody() {
    let sender = watch::Sender::new(Arc::new(deny_bob()));
    let alice = live(&sender, "alice");
    assert!(!publish(&sender, deny_bob()));
    assert!(!alice.policy.has_changed().unwrap());
}

#[test]
fn a_change_before_the_first_wait_is_not_missed() {
    let sender = watch::Sender::new(Arc::new(in_force(&[])));
    let mut bob = live(&sender, "bob");
    publish(&sender, deny_bob());
    assert!(poll(&mut bob).is_ready());
}

#[test]
fn a_workload_that_is_gone_ends_its_connections() {
    let sender = watch::Sender::new(Arc::new(in_force(&[])));
    let mut alice = live(&sender, "alice");
    drop(sender);
    let Poll::Ready(denial) = poll(&mut alice) else { panic!("alice goes on") };
    assert_eq!(denial.reason, DenialReason::WorkloadGone);
}

#[test]
fn what_is_not_allowed_is_not_opened() {
    let sender = watch::Sender::new(Arc::new(deny_bob()));
    assert!(Live::open(sender.subscribe(), peer(Some("bob")), server(80), Transport::Tunnel).is_err());
}
