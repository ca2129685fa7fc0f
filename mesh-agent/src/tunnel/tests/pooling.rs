//! Reuse of connections, and how dead ones are found out.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;

use mesh_model::workload::WorkloadUid;

use super::world::*;
use crate::conn::TunnelAddr;
use crate::outcome::{ConnectFailure, Outcome};
use crate::tunnel::{HandshakeError, Settings, TunnelError};
use crate::upstream::copy::How;

#[test]
fn later_streams_use_the_connection_of_earlier_ones() {
    for settings in protocols() {
        run(async {
            let own = settings.own_protocol;
            let (app, agent, client) = two(echo().await, settings).await;
            for i in 0..50u32 {
                let data = i.to_be_bytes();
                let (answer, end) = client.dial().await.exchange(&data).await;
                assert_eq!(answer, data);
                assert_eq!(end.unwrap().how, How::Eof);
            }
            assert_eq!(app.ended_all(50).await.len(), 50);
            // One, and those dialled ahead.
            assert!(client.dials.get() <= if own { 3 } else { 1 }, "{}", client.dials.get());
            assert_eq!(agent.counters.server.streams.get(), 50);
            assert_eq!(client.counters.reused.get(), 49);
        });
    }
}

#[test]
fn a_server_that_closes_first_leaves_the_connection_usable() {
    run(async {
        let once = application(|mut tcp| async move {
            tcp.read_exact(&mut [0; 3]).await.unwrap();
            tcp.write_all(b"answer").await.unwrap();
        })
        .await;
        let (_app, _agent, client) = two(once, Settings { warm: 0, ..Settings::default() }).await;
        for _ in 0..20 {
            let mut dialled = client.dial().await;
            dialled.app.write_all(b"ask").await.unwrap();
            let mut answer = Vec::new();
            dialled.app.read_to_end(&mut answer).await.unwrap();
            assert_eq!(answer, b"answer");
            drop(dialled.app);
            assert_eq!(dialled.task.await.unwrap().unwrap().how, How::Eof);
        }
        assert_eq!(client.dials.get(), 1);
    });
}

#[test]
fn a_connection_whose_server_still_holds_bytes_is_not_reused() {
    run(async {
        // Closes its direction at once and does not read for a while.
        let slow = application(|mut tcp| async move {
            tcp.read_exact(&mut [0; 1]).await.unwrap();
            tcp.shutdown().await.unwrap();
            tokio::time::sleep(Duration::from_millis(400)).await;
            let mut rest = Vec::new();
            tcp.read_to_end(&mut rest).await.unwrap();
        })
        .await;
        let (app, _agent, client) = two(slow, Settings { warm: 0, ..Settings::default() }).await;
        let mut first = client.dial().await;
        first.app.write_all(b"x").await.unwrap();
        assert_eq!(first.app.read(&mut [0; 1]).await.unwrap(), 0);
        first.app.write_all(&vec![1; 400_000]).await.unwrap();
        first.app.shutdown().await.unwrap();
        assert_eq!(first.end().await.unwrap().how, How::Eof);
        let mut second = client.dial().await;
        second.app.write_all(b"x").await.unwrap();
        let begin = std::time::Instant::now();
        assert_eq!(second.app.read(&mut [0; 1]).await.unwrap(), 0);
        assert!(begin.elapsed() < Duration::from_millis(300), "{:?}", begin.elapsed());
        assert_eq!(client.dials.get(), 2);
        second.app.shutdown().await.unwrap();
        let ended = app.ended_all(2).await;
        assert_eq!(ended.iter().map(|end| end.from_client).max(), Some(400_001));
    });
}

#[test]
fn many_at_once_share_http2_and_each_get_their_own_otherwise() {
    for settings in protocols() {
        run(async {
            let own = settings.own_protocol;
            let (_app, agent, client) = two(echo().await, settings).await;
            let mut all = Vec::new();
            for _ in 0..300 {
                let mut dialled = client.dial().await;
                dialled.app.write_all(b"x").await.unwrap();
                all.push(dialled);
            }
            for dialled in &mut all {
                dialled.app.read_exact(&mut [0; 1]).await.unwrap();
            }
            let open = agent.counters.server.open.get();
            if own {
                assert!((300..=304).contains(&open), "{open}");
            } else {
                assert_eq!(open, 2, "200 streams a connection");
            }
            for mut dialled in all {
                dialled.app.shutdown().await.unwrap();
                assert_eq!(dialled.task.await.unwrap().unwrap().how, How::Eof);
            }
            let limit = Settings::default().max_idle;
            assert!(client.pools.idle() <= limit, "{}", client.pools.idle());
        });
    }
}

#[test]
fn a_failed_dial_fails_all_who_wait_once() {
    run(async {
        let closed = {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            listener.local_addr().unwrap()
        };
        let ca = Ca::new();
        let client = Client::new(crate::conn::TunnelAddr(closed), ca.credentials(&alice()), &[bob()], Settings::default());
        let waiting: Vec<_> = (0..50)
            .map(|_| {
                let client = client.clone();
                spawn_local(async move { client.pools.open(client.key.clone(), client.request()).await.map(drop) })
            })
            .collect();
        for one in waiting {
            let error = one.await.unwrap().unwrap_err();
            assert!(matches!(error.outcome(), Outcome::TunnelDialFailed { failure: ConnectFailure::Refused, .. }), "{error:?}");
        }
        assert_eq!(client.dials.get(), 1);
        assert_eq!(client.counters.dials_failed.get(), 1);
    });
}

#[test]
fn a_server_that_never_shakes_hands_is_given_up() {
    run(async {
        let silent = application(|tcp| async move {
            let _held = tcp;
            std::future::pending().await
        })
        .await;
        let ca = Ca::new();
        let settings = Settings { client_handshake_timeout: Duration::from_millis(100), ..Settings::default() };
        let client = Client::new(crate::conn::TunnelAddr(silent), ca.credentials(&alice()), &[bob()], settings);
        let (_, end) = client.dial().await.exchange(b"x").await;
        assert_eq!(end.unwrap_err(), TunnelError::Handshake(HandshakeError::TimedOut));
    });
}

#[test]
fn an_unanswered_request_is_given_up() {
    for settings in protocols() {
        run(async {
            let (app, _agent, client) = two(echo().await, Settings { response_timeout: Duration::from_millis(100), ..settings }).await;
            app.delay(Duration::from_secs(3600));
            let (_, end) = client.dial().await.exchange(b"x").await;
            assert!(matches!(end.unwrap_err(), TunnelError::ResponseTimeout(_)));
        });
    }
}

/// Kills bob's agent with a connection of alice's pool idle, and starts another at the same address.
async fn replaced(
    settings: Settings,
    quiet: Duration,
    successor: impl FnOnce(&Ca) -> std::sync::Arc<crate::tunnel::Credentials>,
) -> (App, Agent, Client) {
    let ca = Ca::new();
    let app = App::at(echo().await);
    let agent = Agent::start(&app, ca.credentials(&bob()), Settings::default()).await;
    let client = Client::new(agent.address, ca.credentials(&alice()), &[bob()], settings);
    let (answer, _) = client.dial().await.exchange(b"before").await;
    assert_eq!(answer, b"before");
    tokio::time::sleep(quiet).await;
    agent.kill();
    tokio::task::yield_now().await;
    let agent = Agent::start_at(agent.address.0, &app, successor(&ca), Settings::default()).await;
    (app, agent, client)
}

#[test]
fn a_replaced_agent_is_dialled_anew_without_a_lost_request() {
    for settings in protocols() {
        run(async {
            let (app, _agent, client) = replaced(Settings { warm: 0, ..settings }, Duration::ZERO, |ca| ca.credentials(&bob())).await;
            let (answer, end) = client.dial().await.exchange(b"after").await;
            assert_eq!(answer, b"after");
            assert_eq!(end.unwrap().how, How::Eof);
            assert_eq!(client.dials.get(), 2);
            assert_eq!(app.asked().len(), 2);
        });
    }
}

#[test]
fn an_address_reused_by_another_identity_is_not_spoken_to() {
    for settings in protocols() {
        run(async {
            let mallory = identity("cluster.local/ns/shop/sa/mallory");
            let (app, _agent, client) = replaced(settings, Duration::ZERO, |ca| ca.credentials(&mallory)).await;
            let (answer, end) = client.dial().await.exchange(b"secret").await;
            assert!(answer.is_empty());
            let error = end.unwrap_err();
            assert!(error.to_string().contains("mallory"), "{error}");
            assert_eq!(app.asked().len(), 1);
        });
    }
}

/// The pod before it has gone without a word, so its connection looks as well as any.
#[test]
fn a_pod_at_the_address_of_another_gets_a_connection_of_its_own() {
    for settings in protocols() {
        run(async {
            let (_, _agent, mut client) = two(echo().await, Settings { warm: 0, ..settings }).await;
            let exchange = async |client: &Client| client.dial().await.exchange(b"x").await.1.unwrap();
            exchange(&client).await;
            exchange(&client).await;
            assert_eq!(client.dials.get(), 1);
            client.key.server = WorkloadUid("successor".into());
            exchange(&client).await;
            assert_eq!(client.dials.get(), 2);
            client.key.client = WorkloadUid("successor".into());
            exchange(&client).await;
            assert_eq!(client.dials.get(), 3);
        });
    }
}

#[test]
fn a_connection_that_dies_with_the_request_under_way_is_replaced() {
    run(async {
        // A peer that is lost without a word: a proxy between the agents which swallows everything and then resets.
        let ca = Ca::new();
        let app = App::at(echo().await);
        let agent = Agent::start(&app, ca.credentials(&bob()), Settings::default()).await;
        let to = agent.address.0;
        let cut = Rc::new(Cell::new(false));
        let broken = cut.clone();
        let proxy = application(move |mut tcp| {
            let broken = broken.clone();
            async move {
                let mut far = tokio::net::TcpStream::connect(to).await.unwrap();
                if broken.get() {
                    let _ = tokio::io::copy_bidirectional(&mut tcp, &mut far).await;
                    return;
                }
                let (mut near_read, mut near_write) = tcp.split();
                let (mut far_read, mut far_write) = far.split();
                let back = tokio::io::copy(&mut far_read, &mut near_write);
                let forth = async {
                    let mut buffer = [0; 4096];
                    loop {
                        let n = near_read.read(&mut buffer).await.unwrap();
                        if broken.get() {
                            return;
                        }
                        far_write.write_all(&buffer[..n]).await.unwrap();
                    }
                };
                tokio::select! { _ = back => {}, () = forth => {} }
                socket2::SockRef::from(&tcp).set_linger(Some(Duration::ZERO)).unwrap();
            }
        })
        .await;
        let client =
            Client::new(crate::conn::TunnelAddr(proxy), ca.credentials(&alice()), &[bob()], Settings { warm: 0, ..Settings::default() });
        let (answer, _) = client.dial().await.exchange(b"one").await;
        assert_eq!(answer, b"one");
        // Quiet for long enough that the pool doubts it.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        cut.set(true);
        let data = vec![5; 40_000];
        let (answer, end) = client.dial().await.exchange(&data).await;
        assert_eq!(answer.len(), data.len());
        assert_eq!(end.unwrap().how, How::Eof);
        assert_eq!(client.counters.retried.get(), 1);
        assert_eq!(app.asked().len(), 2);
    });
}

#[test]
fn a_draining_agent_finishes_its_streams_and_takes_no_new_ones() {
    for settings in protocols() {
        run(async {
            let (app, agent, client) = two(echo().await, settings).await;
            let mut open = client.dial().await;
            open.app.write_all(b"x").await.unwrap();
            open.app.read_exact(&mut [0; 1]).await.unwrap();
            agent.drain.cancel();
            agent.accepting.abort();
            tokio::time::sleep(Duration::from_millis(20)).await;
            open.app.write_all(b"y").await.unwrap();
            open.app.read_exact(&mut [0; 1]).await.unwrap();
            open.app.shutdown().await.unwrap();
            assert_eq!(open.task.await.unwrap().unwrap().how, How::Eof);
            app.ended_all(1).await;
            // Nobody listens there any more, and the connections that are left are not used.
            let (answer, end) = client.dial().await.exchange(b"z").await;
            assert!(answer.is_empty());
            assert!(matches!(end.unwrap_err(), TunnelError::Dial { .. }));
            until(|| agent.counters.server.open.get() == 0).await;
        });
    }
}

#[test]
fn an_idle_connection_to_a_silent_peer_is_found_out() {
    run(async {
        let ca = Ca::new();
        let app = App::at(echo().await);
        let agent = Agent::start(&app, ca.credentials(&bob()), Settings::default()).await;
        let to = agent.address.0;
        let silent = Rc::new(Cell::new(false));
        let swallowing = silent.clone();
        // Forwards; later it takes everything and says nothing.
        let proxy = application(move |mut tcp| {
            let silent = swallowing.clone();
            async move {
                let mut far = tokio::net::TcpStream::connect(to).await.unwrap();
                let (mut near_read, mut near_write) = tcp.split();
                let (mut far_read, mut far_write) = far.split();
                let forth = async {
                    let mut buffer = [0; 4096];
                    while let Ok(n) = near_read.read(&mut buffer).await
                        && n > 0
                    {
                        if !silent.get() {
                            far_write.write_all(&buffer[..n]).await.unwrap();
                        }
                    }
                };
                tokio::select! { _ = tokio::io::copy(&mut far_read, &mut near_write) => {}, () = forth => {} }
            }
        })
        .await;
        let settings =
            Settings { ping_interval: Duration::from_millis(100), ping_timeout: Duration::from_secs(1), warm: 0, ..Settings::default() };
        let client = Client::new(crate::conn::TunnelAddr(proxy), ca.credentials(&alice()), &[bob()], settings);
        client.dial().await.exchange(b"x").await.1.unwrap();
        // It answers as long as it lives.
        tokio::time::sleep(Duration::from_millis(2500)).await;
        assert_eq!((client.pools.idle(), client.counters.client.pings_lost.get()), (1, 0));
        silent.set(true);
        until(|| client.pools.idle() == 0).await;
        assert_eq!(client.counters.client.pings_lost.get(), 1);
    });
}

#[test]
fn idle_connections_end_with_their_certificate_their_roots_and_their_time() {
    run(async {
        let ca = Ca::new();
        let app = App::at(echo().await);
        let agent = Agent::start(&app, ca.credentials(&bob()), Settings::default()).await;
        let settings = Settings { warm: 0, ..Settings::default() };
        let client = Client::new(agent.address, ca.credentials(&alice()), &[bob()], settings.clone());
        client.dial().await.exchange(b"x").await.1.unwrap();
        // A renewal with the same roots changes nothing.
        *client.credentials.borrow_mut() = Ok(ca.credentials(&alice()));
        client.dial().await.exchange(b"x").await.1.unwrap();
        assert_eq!((client.dials.get(), client.pools.idle()), (1, 1));
        // Other roots: nobody that the old ones vouched for is believed any more.
        *client.credentials.borrow_mut() = Ok(Ca::new().credentials(&alice()));
        until(|| client.pools.idle() == 0).await;

        let soon = Leaf { not_after: time::OffsetDateTime::now_utc() + time::Duration::seconds(3), ..Leaf::of(&alice()) };
        let client = Client::new(agent.address, ca.credentials_of(&soon), &[bob()], settings.clone());
        client.dial().await.exchange(b"x").await.1.unwrap();
        *client.credentials.borrow_mut() = Ok(ca.credentials(&alice()));
        assert_eq!(client.pools.idle(), 1);
        until(|| client.pools.idle() == 0).await;

        let client = Client::new(
            agent.address,
            ca.credentials(&alice()),
            &[bob()],
            Settings { pool_idle_timeout: Duration::from_millis(500), ..settings.clone() },
        );
        client.dial().await.exchange(b"x").await.1.unwrap();
        assert_eq!(client.pools.idle(), 1);
        until(|| client.pools.idle() == 0).await;

        let client = Client::new(agent.address, ca.credentials(&alice()), &[bob()], settings);
        client.dial().await.exchange(b"x").await.1.unwrap();
        client.pools.forget_source(client.key.source);
        assert_eq!(client.pools.idle(), 0);
        assert_eq!(client.counters.idle.get(), 0);
    });
}

#[test]
fn an_agent_that_lets_go_of_handshakes_is_dialled_again() {
    for settings in protocols() {
        for (closed, answered) in [(1, true), (2, true), (3, false)] {
            run(async {
                let ca = Ca::new();
                let agent = Agent::start(&App::at(echo().await), ca.credentials(&bob()), Settings::default()).await;
                // The first ones are closed as they come, as under a flood.
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let address = TunnelAddr(listener.local_addr().unwrap());
                let behind = agent.address.0;
                spawn_local(async move {
                    for number in 0.. {
                        let (mut client, _) = listener.accept().await.unwrap();
                        if number < closed {
                            continue;
                        }
                        let mut server = TcpStream::connect(behind).await.unwrap();
                        spawn_local(async move { tokio::io::copy_bidirectional(&mut client, &mut server).await });
                    }
                });
                let settings = Settings { warm: 0, ..settings.clone() };
                let client = Client::new(address, ca.credentials(&alice()), &[bob()], settings);
                let (answer, end) = client.dial().await.exchange(b"hi").await;
                assert_eq!((answer == b"hi", end.is_ok()), (answered, answered), "{closed}: {end:?}");
                assert_eq!(client.dials.get(), 3.min(closed + 1), "{closed}");
            });
        }
    }
}
