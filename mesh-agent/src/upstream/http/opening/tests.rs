use futures_util::FutureExt as _;
use mesh_model::traffic::ConnectionPool;
use mesh_model::workload::WorkloadUid;

use super::*;
use crate::upstream::bounds::Bounds;
use crate::upstream::circuit::Resource;

fn key() -> ConnectionKey {
    let client = WorkloadUid("client".into());
    ConnectionKey { client, server: "10.0.0.1:80".parse().unwrap(), workload: None, tunnel: None, http2: true, service: None, tls: None }
}

fn mine(openings: &Rc<Openings>) -> Opening {
    match openings.turn(&key(), &mut Pending::default()).now_or_never() {
        Some(Ok(Turn::Mine(opening))) => opening,
        _ => panic!("nobody else opens"),
    }
}

#[test]
fn others_wait_for_the_one_who_opens() {
    let openings = Rc::new(Openings::default());
    let (opening, key) = (mine(&openings), key());
    let mut pending = Pending::default();
    let mut other = std::pin::pin!(openings.turn(&key, &mut pending));
    assert!(other.as_mut().now_or_never().is_none());
    let elsewhere = ConnectionKey { server: "10.0.0.2:80".parse().unwrap(), ..key.clone() };
    assert!(
        matches!(openings.turn(&elsewhere, &mut Pending::default()).now_or_never(), Some(Ok(Turn::Mine(_)))),
        "another server is another matter"
    );
    opening.tell(Ok(true));
    assert!(matches!(other.now_or_never(), Some(Ok(Turn::Over))));
    drop(mine(&openings));
}

#[test]
fn a_failure_is_the_failure_of_all_who_waited_and_of_nobody_later() {
    let openings = Rc::new(Openings::default());
    let (opening, key) = (mine(&openings), key());
    let mut pending = [Pending::default(), Pending::default()];
    let mut waiting = pending.each_mut().map(|pending| Box::pin(openings.turn(&key, pending)));
    assert!(waiting.iter_mut().all(|one| one.as_mut().now_or_never().is_none()));
    opening.tell(Err(Outcome::NoEndpoint));
    for one in waiting {
        assert!(matches!(one.now_or_never(), Some(Err(Unready::Failed(Outcome::NoEndpoint)))));
    }
    drop(mine(&openings));
}

#[test]
fn one_who_is_given_up_hands_the_turn_on() {
    let openings = Rc::new(Openings::default());
    let (opening, key) = (mine(&openings), key());
    let mut pending = Pending::default();
    let mut other = std::pin::pin!(openings.turn(&key, &mut pending));
    assert!(other.as_mut().now_or_never().is_none());
    drop(opening);
    assert!(matches!(other.now_or_never(), Some(Ok(Turn::Over))));
    drop(mine(&openings));
}

#[test]
fn a_server_of_http_1_has_all_who_waited_open_their_own_at_once() {
    let openings = Rc::new(Openings::default());
    let (opening, key) = (mine(&openings), key());
    let mut pending = [Pending::default(), Pending::default()];
    let mut waiting = pending.each_mut().map(|pending| Box::pin(openings.turn(&key, pending)));
    assert!(waiting.iter_mut().all(|one| one.as_mut().now_or_never().is_none()));
    opening.tell(Ok(false));
    for one in waiting {
        assert!(matches!(one.now_or_never(), Some(Ok(Turn::Http1))));
    }
    drop(mine(&openings));
}

#[test]
fn who_waits_counts_as_such_and_not_too_many_may() {
    let bounds = Bounds::new(&ConnectionPool { max_pending_requests: Some(1), ..ConnectionPool::default() });
    let waiting = || bounds.circuit.count(Resource::Pending);
    let openings = Rc::new(Openings::default());
    let key = key();
    let mut pending = [(); 3].map(|()| Pending::under(&bounds));
    let [first, second, third] = pending.each_mut();
    let Some(Ok(Turn::Mine(opening))) = openings.turn(&key, first).now_or_never() else { panic!("nobody else opens") };
    assert_eq!(waiting(), 0, "who opens does not wait");
    {
        let mut other = std::pin::pin!(openings.turn(&key, second));
        assert!(other.as_mut().now_or_never().is_none());
        assert_eq!(waiting(), 1);
        assert!(matches!(openings.turn(&key, third).now_or_never(), Some(Err(Unready::Overflow))));
        drop(opening);
        assert!(matches!(other.now_or_never(), Some(Ok(Turn::Over))));
    }
    // Whoever had to wait before does not lose its standing when it has to again, for whatever.
    let [first, second, third] = pending.each_mut();
    let Some(Ok(Turn::Mine(opening))) = openings.turn(&key, first).now_or_never() else { panic!("nobody else opens") };
    {
        let mut other = std::pin::pin!(openings.turn(&key, second));
        assert!(other.as_mut().now_or_never().is_none());
        assert_eq!(waiting(), 1);
        assert!(matches!(openings.turn(&key, third).now_or_never(), Some(Err(Unready::Overflow))));
    }
    drop((opening, pending));
    assert_eq!(waiting(), 0);
}

#[test]
fn a_server_that_joins_the_mesh_is_another() {
    use std::path::Path;
    let pod = |name: &str, ip: &str, mesh: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, uid: {name}, labels: {{nodemesh.dev/mesh: {mesh}}}}}\nstatus: {{podIP: {ip}}}\n"
        )
    };
    let between = |mesh: &str| {
        let text = pod("client", "10.0.0.2", "enabled") + &pod("server", "10.0.0.1", mesh);
        let parsed = mesh_model::document::parse_documents(Path::new("mesh.yaml"), &text);
        let snapshot = mesh_model::snapshot::Snapshot::build(&parsed.documents, parsed.problems, None);
        let at = |ip: &str| snapshot.workload_at(ip.parse().unwrap()).unwrap().clone();
        let server =
            super::super::Server { address: crate::conn::ServerAddr("10.0.0.1:80".parse().unwrap()), workload: Some(at("10.0.0.1")) };
        ConnectionKey { workload: Some(at("10.0.0.1").uid.clone()), tunnel: server.tunnel_from(&at("10.0.0.2")), ..key() }
    };
    assert_eq!(between("disabled").tunnel, None);
    assert!(between("enabled").tunnel.is_some_and(|(client, server)| client.to_string().contains("/ns/shop/") && server == client));
    assert_ne!(between("disabled"), between("enabled"), "what was opened in the clear does not serve what is to go through a tunnel");
}
