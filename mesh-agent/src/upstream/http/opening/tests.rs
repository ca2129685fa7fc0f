use futures_util::FutureExt as _;
use mesh_model::workload::WorkloadUid;

use super::*;

fn key() -> ConnectionKey {
    let client = WorkloadUid("client".into());
    ConnectionKey { client, server: "10.0.0.1:80".parse().unwrap(), workload: None, http2: true, service: None, tls: None }
}

fn mine(openings: &Rc<Openings>) -> Opening {
    match openings.turn(&key()).now_or_never() {
        Some(Ok(Turn::Mine(opening))) => opening,
        _ => panic!("nobody else opens"),
    }
}

#[test]
fn others_wait_for_the_one_who_opens() {
    let openings = Rc::new(Openings::default());
    let (opening, key) = (mine(&openings), key());
    let mut other = std::pin::pin!(openings.turn(&key));
    assert!(other.as_mut().now_or_never().is_none());
    let elsewhere = ConnectionKey { server: "10.0.0.2:80".parse().unwrap(), ..key.clone() };
    assert!(matches!(openings.turn(&elsewhere).now_or_never(), Some(Ok(Turn::Mine(_)))), "another server is another matter");
    opening.done(Ok(()));
    assert!(matches!(other.now_or_never(), Some(Ok(Turn::Over))));
    drop(mine(&openings));
}

#[test]
fn a_failure_is_the_failure_of_all_who_waited_and_of_nobody_later() {
    let openings = Rc::new(Openings::default());
    let (opening, key) = (mine(&openings), key());
    let mut waiting = [Box::pin(openings.turn(&key)), Box::pin(openings.turn(&key))];
    assert!(waiting.iter_mut().all(|one| one.as_mut().now_or_never().is_none()));
    opening.done(Err(Outcome::NoEndpoint));
    for one in waiting {
        assert!(matches!(one.now_or_never(), Some(Err(Outcome::NoEndpoint))));
    }
    drop(mine(&openings));
}

#[test]
fn one_who_is_given_up_hands_the_turn_on() {
    let openings = Rc::new(Openings::default());
    let (opening, key) = (mine(&openings), key());
    let mut other = std::pin::pin!(openings.turn(&key));
    assert!(other.as_mut().now_or_never().is_none());
    drop(opening);
    assert!(matches!(other.now_or_never(), Some(Ok(Turn::Over))));
    drop(mine(&openings));
}
