use futures_util::FutureExt as _;
use mesh_model::workload::WorkloadUid;

use super::*;

fn key() -> ConnectionKey {
    let client = WorkloadUid("client".into());
    ConnectionKey { client, server: "10.0.0.1:80".parse().unwrap(), workload: None, tunnel: None, http2: true, service: None, tls: None }
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
