use http::{HeaderMap, Request};
use http_body_util::BodyExt;

use super::super::access::{AccessConfig, AccessLevel};
use super::super::fixtures::{World, address, connection, named, world};
use super::*;
use crate::outcome::Outcome;

struct Desk {
    world: World,
    admin: Admin,
}

fn desk() -> Desk {
    let world = world(AccessConfig::default());
    let admin = Admin::new(world.telemetry.clone(), LogControl::new("info", |_| Ok(())))
        .provide("config", "configuration in force", || json!({ "version": 7 }))
        .action("certs/renew", "?identity=spiffe://…: renews a certificate", |query| {
            Box::pin(async move {
                query.only(&["identity"])?;
                match query.get("identity") {
                    Some("spiffe://cluster.local/ns/shop/sa/web") => Ok(json!({ "renewed": true })),
                    Some(other) => Err(ActionError::NotFound(format!("no certificate for {other}"))),
                    None => Err(ActionError::BadRequest("identity= is missing".into())),
                }
            })
        });
    Desk { world, admin }
}

impl Desk {
    async fn ask(&self, method: &str, uri: &str) -> (u16, Value) {
        let request = Request::builder().method(method).uri(uri).header("host", "127.0.0.1:15000").body(Default::default()).unwrap();
        let reply = self.admin.answer(address("127.0.0.1:5555"), request).await;
        let status = reply.status().as_u16();
        let body = reply.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap())
    }

    async fn get(&self, uri: &str) -> Value {
        let (status, value) = self.ask("GET", uri).await;
        assert_eq!(status, 200, "{value}");
        value
    }
}

#[tokio::test]
async fn the_index_lists_what_there_is() {
    let desk = desk();
    let index = desk.get("/").await;
    for name in ["/config", "/connections", "/log", "/version"] {
        assert!(index["GET"].get(name).is_some(), "{name}");
        assert_eq!(desk.ask("GET", name).await.0, 200);
    }
    for name in ["/certs/renew", "/log", "/connections/close"] {
        assert!(index["POST"].get(name).is_some(), "{name}");
    }
    assert_eq!(desk.get("/config").await, json!({ "version": 7 }));
    assert_eq!(desk.ask("GET", "/nothing").await.0, 404);
    assert_eq!(desk.ask("POST", "/nothing").await.0, 404);
    assert_eq!(desk.ask("GET", "/config?x=1").await.0, 400);
}

#[tokio::test]
async fn reading_and_changing_are_kept_apart() {
    let desk = desk();
    assert_eq!(desk.ask("GET", "/certs/renew?identity=x").await.0, 405);
    assert_eq!(desk.ask("POST", "/config").await.0, 405);
    assert_eq!(desk.ask("DELETE", "/config").await.0, 405);
    assert_eq!(desk.ask("GET", "/log?level=debug").await.0, 400);
    assert_eq!(desk.get("/log").await["level"], "info");
}

#[tokio::test]
async fn actions_answer() {
    let desk = desk();
    let (status, value) = desk.ask("POST", "/certs/renew?identity=spiffe%3A%2F%2Fcluster.local/ns/shop/sa/web").await;
    assert_eq!((status, value), (200, json!({ "renewed": true })));
    assert_eq!(desk.ask("POST", "/certs/renew?identity=other").await.0, 404);
    assert_eq!(desk.ask("POST", "/certs/renew").await.0, 400);
    assert_eq!(desk.ask("POST", "/certs/renew?id=1").await.0, 400);
    assert_eq!(desk.ask("POST", "/certs/renew?identity=%zz").await.0, 400);
    assert_eq!(desk.ask("POST", "/certs/renew?identity=a&identity=b").await.0, 400);
}

#[tokio::test]
async fn log_levels_change_while_running() {
    let desk = desk();
    assert_eq!(desk.ask("POST", "/log?level=debug").await.1["level"], "debug");
    assert_eq!(desk.ask("POST", "/log?level=warn,mesh_agent%3A%3Atunnel%3Dtrace").await.1["level"], "warn,mesh_agent::tunnel=trace");
    let (status, error) = desk.ask("POST", "/log?level=loud").await;
    assert_eq!(status, 400);
    assert!(error["error"].as_str().unwrap().contains("error, warn, info, debug, trace"), "{error}");
    assert_eq!(desk.ask("POST", "/log?access=all").await.1["access"], "all");
    let (status, error) = desk.ask("POST", "/log?access=loud").await;
    assert!(status == 400 && error["error"].as_str().unwrap().contains("off, denied, all"), "{error}");
    assert_eq!(desk.ask("POST", "/log").await.0, 400);
    // Nothing of a request that is half wrong is done.
    assert_eq!(desk.ask("POST", "/log?level=trace&access=loud").await.0, 400);
    assert_ne!(desk.get("/log").await["level"], "trace");
}

#[tokio::test]
async fn one_workload_can_be_made_to_talk() {
    let desk = desk();
    let access = desk.world.telemetry.access();
    let (_, state) = desk.ask("POST", "/log?level=all&workload=shop/web").await;
    assert_eq!(state["workloads"]["shop/web"], "all");
    assert_eq!(access.overrides().get(&named("shop/web")), Some(&AccessLevel::All));
    let (status, error) = desk.ask("POST", "/log?level=debug&workload=shop/web").await;
    assert!(status == 400 && error["error"].as_str().unwrap().contains("off, denied, all, default"), "{error}");
    assert_eq!(desk.ask("POST", "/log?level=all&workload=web").await.0, 400);
    assert_eq!(desk.ask("POST", "/log?workload=shop/web").await.0, 400);
    assert_eq!(desk.ask("POST", "/log?level=default&workload=shop/web").await.0, 200);
    assert!(access.overrides().is_empty());
}

#[tokio::test]
async fn connections_are_shown_filtered_and_ended() {
    let desk = desk();
    let first = desk.world.telemetry.open(connection());
    first.meter().add_to_client(99);
    let mut other = connection();
    other.client = address("[::ffff:10.9.9.9]:1");
    other.labels.service = None;
    other.labels.source = Default::default();
    let second = desk.world.telemetry.open(other);

    let all = desk.get("/connections").await;
    assert_eq!(all["total"], 2);
    let shown = &all["connections"][0];
    assert_eq!(shown["source"]["workload"], "shop/web-a");
    assert_eq!(shown["destination"]["identity"], "spiffe://cluster.local/ns/shop/sa/cart");
    assert_eq!(shown["bytes_sent"], 99);
    assert_eq!(shown["client"], "10.1.0.5:40000");

    let limited = desk.get("/connections?limit=1").await;
    assert_eq!((&limited["total"], &limited["shown"]), (&2.into(), &1.into()));
    for (filter, count) in [
        ("workload=shop/web", 1),
        ("workload=shop/cart-b", 2),
        ("service=shop/cart", 1),
        ("client=10.9.9.9", 1),
        ("server=10.2.0.7", 2),
        ("direction=inbound", 0),
    ] {
        assert_eq!(desk.get(&format!("/connections?{filter}")).await["total"], count, "{filter}");
    }
    for wrong in ["limit=x", "workload=web", "client=nobody", "direction=up", "colour=red"] {
        assert_eq!(desk.ask("GET", &format!("/connections?{wrong}")).await.0, 400, "{wrong}");
    }

    let id = second.live().id;
    assert_eq!(desk.ask("POST", &format!("/connections/close?id={id}")).await.0, 200);
    assert_eq!(second.live().closed().await, Outcome::ClosedByOperator);
    drop(second);
    assert_eq!(desk.ask("POST", &format!("/connections/close?id={id}")).await.0, 404);
    assert_eq!(desk.ask("POST", "/connections/close").await.0, 400);
    assert_eq!(desk.get("/connections").await["total"], 1);
}

fn check(peer: &str, headers: &[(&'static str, &'static str)]) -> Result<(), guard::Refusal> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(*name, value.parse().unwrap());
    }
    guard::check(address(peer), &map)
}

#[test]
fn only_the_loopback_may_ask() {
    for host in ["localhost", "localhost:15000", "LOCALHOST", "127.0.0.1", "127.0.0.1:15000", "127.8.8.8", "[::1]", "[::1]:15000"] {
        assert_eq!(check("127.0.0.1:1", &[("host", host)]), Ok(()), "{host}");
        assert_eq!(check("[::ffff:127.0.0.1]:1", &[("host", host)]), Ok(()));
        assert_eq!(check("[::1]:1", &[("host", host)]), Ok(()));
        assert_eq!(check("10.0.0.1:1", &[("host", host)]), Err(guard::Refusal::Peer));
    }
}

#[test]
fn a_name_that_leads_here_is_not_the_loopback() {
    for host in [
        "evil.example",
        "evil.example:15000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "127.0.0.1:",
        "127.0.0.1:99999",
        "127.0.0.1@evil.example",
        "10.0.0.1",
        "[::2]",
        "[::1",
        "[::1]x",
        "[::1].evil.example",
        "",
        ":15000",
    ] {
        assert_eq!(check("127.0.0.1:1", &[("host", host)]), Err(guard::Refusal::Host), "{host}");
    }
    assert_eq!(check("127.0.0.1:1", &[]), Err(guard::Refusal::Host));
    assert_eq!(check("127.0.0.1:1", &[("host", "localhost"), ("host", "localhost")]), Err(guard::Refusal::Host));
}

#[test]
fn a_web_page_may_not_ask() {
    let from = |header, value| check("127.0.0.1:1", &[("host", "localhost"), (header, value)]);
    assert_eq!(from("origin", "http://evil.example"), Err(guard::Refusal::Browser));
    assert_eq!(from("origin", "null"), Err(guard::Refusal::Browser));
    assert_eq!(from("origin", "http://localhost:15000"), Ok(()));
    assert_eq!(from("sec-fetch-site", "cross-site"), Err(guard::Refusal::Browser));
    assert_eq!(from("sec-fetch-site", "none"), Ok(()));
}

#[tokio::test]
async fn a_refusal_is_an_answer() {
    let desk = desk();
    let request = Request::builder().uri("/config").header("host", "evil.example").body(Default::default()).unwrap();
    let reply = desk.admin.answer(address("127.0.0.1:5555"), request).await;
    assert_eq!(reply.status(), 403);
}

#[test]
fn it_listens_on_the_loopback_only() {
    assert!(check_listen(address("127.0.0.1:15000")).is_ok() && check_listen(address("[::1]:15000")).is_ok());
    for open in ["0.0.0.0:15000", "[::]:15000", "10.0.0.1:15000"] {
        let error = check_listen(address(open)).unwrap_err().to_string();
        assert!(error.contains(open) && error.contains("127.0.0.1:15000"), "{error}");
    }
}
