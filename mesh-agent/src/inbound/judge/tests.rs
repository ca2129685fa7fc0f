use std::task::{Context, Poll, Waker};

use super::*;
use crate::policy::decide::tests::{authorization, in_force, peer, server};

fn request_of(path: &str, headers: &[(&str, &str)]) -> Parts {
    let mut request = http::Request::get(path).header("host", "web");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

#[test]
fn what_was_switched_ends_with_the_policy_that_allowed_it() {
    let allow = |path: &str| authorization("sockets", &format!("{{rules: [{{to: [{{operation: {{paths: ['{path}']}}}}]}}]}}"));
    let policy = watch::Sender::new(Arc::new(in_force(&[allow("/chat")])));
    let head = request_of("/x/../chat", &[("connection", "Upgrade"), ("upgrade", "websocket")]);
    let switched = |policy| Switched {
        policy,
        peer: peer(Some("alice")),
        server: server(80),
        transport: Transport::Tunnel,
        head: head.clone(),
        now: 0,
    };
    let poll = |waiting: std::pin::Pin<&mut _>| Future::poll(waiting, &mut Context::from_waker(Waker::noop()));
    let mut first = std::pin::pin!(switched(policy.subscribe()).revoked());
    assert!(poll(first.as_mut()).is_pending());
    policy.send_replace(Arc::new(in_force(&[allow("/ch*")])));
    assert!(poll(first.as_mut()).is_pending(), "it is allowed by another");
    // What changes between the decision and the first look is not missed.
    let before = policy.subscribe();
    policy.send_replace(Arc::new(in_force(&[allow("/other")])));
    let mut late = policy.subscribe();
    late.borrow_and_update();
    for waiting in [before, late] {
        let waiting = std::pin::pin!(switched(waiting).revoked());
        assert!(matches!(poll(waiting), Poll::Ready(Outcome::PolicyRevoked { .. })));
    }
    assert!(matches!(poll(first.as_mut()), Poll::Ready(Outcome::PolicyRevoked { .. })));
    let allowed = watch::Sender::new(Arc::new(in_force(&[])));
    let mut gone = std::pin::pin!(switched(allowed.subscribe()).revoked());
    assert!(poll(gone.as_mut()).is_pending());
    drop(allowed);
    assert!(matches!(poll(gone), Poll::Ready(Outcome::PodGone { .. })));
}
