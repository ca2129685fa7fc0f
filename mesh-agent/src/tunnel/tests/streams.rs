//! What applications see of a tunnel, in both protocols.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use http::StatusCode;
use sha2::{Digest, Sha256};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use super::world::*;
use crate::outcome::Side;
use crate::tunnel::tls::handshake::Protocol;
use crate::tunnel::{Refusal, TunnelError};
use crate::upstream::copy::How;

#[test]
fn a_request_and_its_answer() {
    for settings in protocols() {
        run(async {
            let own = settings.own_protocol;
            let (app, _agent, client) = two(echo().await, settings).await;
            let (answer, end) = client.dial().await.exchange(b"hello").await;
            assert_eq!(answer, b"hello");
            let end = end.unwrap();
            assert_eq!((end.from_client, end.to_client, end.how), (5, 5, How::Eof));
            let served = app.ended_all(1).await;
            assert_eq!((served[0].from_client, served[0].to_client, &served[0].how), (5, 5, &How::Eof));
            let asked = &app.asked()[0];
            assert_eq!(asked.peer, alice());
            assert_eq!(asked.server.0.to_string(), "127.0.0.1:80");
            assert_eq!(asked.client.unwrap().to_string(), "10.1.2.3:45678");
            assert_eq!(asked.host.as_deref(), Some("web.shop.svc.cluster.local"));
            assert_eq!(asked.baggage.as_deref(), Some("k8s.namespace.name=shop,service.name=alice"));
            assert_eq!(asked.traceparent.as_deref(), Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"));
            assert_eq!(asked.protocol, if own { Protocol::Own } else { Protocol::Hbone });
        });
    }
}

fn random(bytes: usize) -> Vec<u8> {
    let mut data = vec![0; bytes];
    rand::fill(&mut data[..]);
    data
}

#[test]
fn large_transfers_arrive_byte_for_byte_both_ways() {
    for settings in protocols() {
        run(async {
            let (app, _agent, client) = two(echo().await, settings).await;
            let data = random(24 << 20);
            let (answer, end) = client.dial().await.exchange(&data).await;
            assert_eq!(answer.len(), data.len());
            assert_eq!(Sha256::digest(&answer), Sha256::digest(&data));
            let end = end.unwrap();
            assert_eq!((end.from_client, end.to_client, end.how), (data.len() as u64, data.len() as u64, How::Eof));
            assert_eq!(app.ended_all(1).await[0].how, How::Eof);
        });
    }
}

#[test]
fn every_size_around_a_record_arrives() {
    for settings in protocols() {
        run(async {
            let (_app, _agent, client) = two(echo().await, settings).await;
            for size in (0..20).chain(16_360..16_400).chain(32_750..32_780).chain([65_535, 65_536, 65_537, 262_496, 300_000]) {
                let data = random(size);
                let (answer, end) = client.dial().await.exchange(&data).await;
                assert!(answer == data, "{size} bytes");
                assert_eq!(end.unwrap().how, How::Eof);
            }
        });
    }
}

#[test]
fn a_server_that_speaks_first_is_heard_at_once() {
    for settings in protocols() {
        run(async {
            let greeter = application(|mut tcp| async move {
                tcp.write_all(b"220 welcome\r\n").await.unwrap();
                let mut line = [0; 4];
                tcp.read_exact(&mut line).await.unwrap();
                tcp.write_all(b"bye").await.unwrap();
            })
            .await;
            let (_app, _agent, client) = two(greeter, settings).await;
            for _ in 0..2 {
                let mut dialled = client.dial().await;
                let begin = Instant::now();
                let mut greeting = [0; 13];
                dialled.app.read_exact(&mut greeting).await.unwrap();
                assert_eq!(&greeting, b"220 welcome\r\n");
                assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
                dialled.app.write_all(b"quit").await.unwrap();
                let mut rest = Vec::new();
                dialled.app.read_to_end(&mut rest).await.unwrap();
                assert_eq!(rest, b"bye");
                drop(dialled.app);
                assert_eq!(dialled.task.await.unwrap().unwrap().how, How::Eof);
            }
        });
    }
}

#[test]
fn half_close_is_kept_in_both_directions() {
    for settings in protocols() {
        run(async {
            // Says all it has to say and closes its direction; then listens to the end and reports by closing.
            let talker = application(|mut tcp| async move {
                tcp.write_all(b"all").await.unwrap();
                tcp.shutdown().await.unwrap();
                let mut heard = Vec::new();
                tcp.read_to_end(&mut heard).await.unwrap();
                assert_eq!(heard, b"still here");
            })
            .await;
            let (app, _agent, client) = two(talker, settings).await;
            let mut dialled = client.dial().await;
            let mut all = Vec::new();
            dialled.app.read_to_end(&mut all).await.unwrap();
            assert_eq!(all, b"all");
            dialled.app.write_all(b"still ").await.unwrap();
            tokio::time::sleep(Duration::from_millis(30)).await;
            dialled.app.write_all(b"here").await.unwrap();
            dialled.app.shutdown().await.unwrap();
            assert_eq!(dialled.end().await.unwrap().how, How::Eof);
            let served = app.ended_all(1).await;
            assert_eq!((served[0].from_client, served[0].to_client, &served[0].how), (10, 3, &How::Eof));
        });
    }
}

#[test]
fn an_abort_of_the_client_is_an_abort_at_the_server() {
    for settings in protocols() {
        run(async {
            let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
            let victim = application(move |mut tcp| {
                let told = told.clone();
                async move {
                    let mut first = [0; 5];
                    tcp.read_exact(&mut first).await.unwrap();
                    tcp.write_all(b"ready").await.unwrap();
                    told.send(tcp.read(&mut first).await.map_err(|e| e.kind())).unwrap();
                }
            })
            .await;
            let (app, _agent, client) = two(victim, settings).await;
            let mut dialled = client.dial().await;
            dialled.app.write_all(b"first").await.unwrap();
            dialled.app.read_exact(&mut [0; 5]).await.unwrap();
            SockRef::from(&dialled.app).set_linger(Some(Duration::ZERO)).unwrap();
            drop(dialled.app);
            assert_eq!(heard.recv().await.unwrap(), Err(ErrorKind::ConnectionReset));
            assert_eq!(dialled.task.await.unwrap().unwrap().how, How::Reset(Side::Client));
            assert_eq!(app.ended_all(1).await[0].how, How::Reset(Side::Client));
        });
    }
}

#[test]
fn an_abort_of_the_server_is_an_abort_at_the_client() {
    for settings in protocols() {
        run(async {
            let aborter = application(|mut tcp| async move {
                tcp.read_exact(&mut [0; 5]).await.unwrap();
                tcp.write_all(b"ready").await.unwrap();
                tcp.read_exact(&mut [0; 1]).await.unwrap();
                SockRef::from(&tcp).set_linger(Some(Duration::ZERO)).unwrap();
            })
            .await;
            let (app, _agent, client) = two(aborter, settings).await;
            let mut dialled = client.dial().await;
            dialled.app.write_all(b"first").await.unwrap();
            dialled.app.read_exact(&mut [0; 5]).await.unwrap();
            dialled.app.write_all(b"!").await.unwrap();
            assert_eq!(dialled.app.read(&mut [0; 5]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
            assert_eq!(dialled.task.await.unwrap().unwrap().how, How::Reset(Side::Server));
            assert_eq!(app.ended_all(1).await[0].how, How::Reset(Side::Server));
        });
    }
}

#[test]
fn a_client_that_aborts_while_the_server_is_stalled_is_noticed() {
    for settings in protocols() {
        run(async {
            let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
            let stalled = application(move |mut tcp| {
                let told = told.clone();
                async move {
                    tcp.read_exact(&mut [0; 1]).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(300)).await;
                    let mut sink = vec![0; 1 << 16];
                    let kind = loop {
                        match tcp.read(&mut sink).await {
                            Ok(0) => break None,
                            Ok(_) => {}
                            Err(error) => break Some(error.kind()),
                        }
                    };
                    told.send(kind).unwrap();
                }
            })
            .await;
            let (app, _agent, client) = two(stalled, settings).await;
            let mut dialled = client.dial().await;
            let data = vec![7; 1 << 16];
            // Until every buffer on the way is full.
            while tokio::time::timeout(Duration::from_millis(100), dialled.app.write_all(&data)).await.is_ok() {}
            SockRef::from(&dialled.app).set_linger(Some(Duration::ZERO)).unwrap();
            drop(dialled.app);
            let end = dialled.task.await.unwrap().unwrap();
            assert_eq!(end.how, How::Reset(Side::Client));
            assert_eq!(heard.recv().await.unwrap(), Some(ErrorKind::ConnectionReset));
            let how = app.ended_all(1).await[0].how.clone();
            assert!(matches!(how, How::Reset(Side::Client) | How::Lost(_)), "{how:?}");
        });
    }
}

#[test]
fn a_refusal_arrives_with_its_status_and_reason_and_nothing_reaches_the_application() {
    for settings in protocols() {
        run(async {
            let nobody = application(|_| async { panic!("reached") }).await;
            let (app, _agent, client) = two(nobody, settings.clone()).await;
            app.judge(|_| Err(Refusal::new(StatusCode::UNAUTHORIZED, "AuthorizationPolicy shop/only-carol")));
            for _ in 0..3 {
                let (answer, end) = client.dial().await.exchange(b"GET / HTTP/1.1\r\n\r\n").await;
                assert!(answer.is_empty());
                let expected = Refusal::new(StatusCode::UNAUTHORIZED, "AuthorizationPolicy shop/only-carol");
                assert_eq!(end.unwrap_err(), TunnelError::Refused(expected));
            }
            app.judge(|_| Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "nobody listens")));
            let (_, end) = client.dial().await.exchange(b"x").await;
            assert!(matches!(end, Err(TunnelError::Refused(refusal)) if refusal.status == StatusCode::SERVICE_UNAVAILABLE));
            assert_eq!(client.counters.client.refused.get(), 4);
            // Denials do not cost a handshake each.
            assert!(client.dials.get() <= 3, "{}", client.dials.get());
        });
    }
}

#[test]
fn a_revoked_permission_aborts_both_sides() {
    for settings in protocols() {
        run(async {
            let (app, _agent, client) = two(echo().await, settings).await;
            let mut dialled = client.dial().await;
            dialled.app.write_all(b"12345").await.unwrap();
            dialled.app.read_exact(&mut [0; 5]).await.unwrap();
            app.cancel();
            assert_eq!(dialled.app.read(&mut [0; 1]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
            assert_eq!(app.ended_all(1).await[0].how, How::Cancelled);
            assert_eq!(dialled.task.await.unwrap().unwrap().how, How::Reset(Side::Server));
        });
        run(async {
            let (app, _agent, client) = two(echo().await, Default::default()).await;
            let cancel = CancellationToken::new();
            let mut dialled = client.dial_cancelled_by(cancel.clone()).await;
            dialled.app.write_all(b"12345").await.unwrap();
            dialled.app.read_exact(&mut [0; 5]).await.unwrap();
            cancel.cancel();
            assert_eq!(dialled.app.read(&mut [0; 1]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
            assert_eq!(dialled.task.await.unwrap().unwrap().how, How::Cancelled);
            assert_eq!(app.ended_all(1).await[0].how, How::Reset(Side::Client));
        });
    }
}

#[test]
fn a_stalled_reader_holds_up_nobody_else() {
    for settings in protocols() {
        run(async {
            let mixed = application(|mut tcp| async move {
                let mut kind = [0; 1];
                tcp.read_exact(&mut kind).await.unwrap();
                if kind[0] == b's' {
                    tokio::time::sleep(Duration::from_secs(3600)).await;
                }
                let (mut read, mut write) = tcp.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            })
            .await;
            let (_app, _agent, client) = two(mixed, settings).await;
            let mut stalled = client.dial().await;
            stalled.app.write_all(b"s").await.unwrap();
            let data = vec![7; 1 << 16];
            while tokio::time::timeout(Duration::from_millis(100), stalled.app.write_all(&data)).await.is_ok() {}
            for _ in 0..10 {
                let (answer, end) = client.dial().await.exchange(b"eecho").await;
                assert_eq!(answer, b"echo");
                assert_eq!(end.unwrap().how, How::Eof);
            }
        });
    }
}

#[test]
fn a_silent_stream_is_ended_after_the_time_allowed() {
    for settings in protocols() {
        run(async {
            let idle = Some(Duration::from_millis(200));
            let (app, _agent, client) = two(echo().await, crate::tunnel::Settings { stream_idle_timeout: idle, ..settings }).await;
            let mut dialled = client.dial().await;
            dialled.app.write_all(b"12345").await.unwrap();
            dialled.app.read_exact(&mut [0; 5]).await.unwrap();
            assert_eq!(dialled.app.read(&mut [0; 1]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
            assert_eq!(dialled.meter.read(), (5, 5));
            assert_eq!(dialled.task.await.unwrap().unwrap().how, How::Idle);
            assert_eq!(app.ended_all(1).await[0].how, How::Reset(Side::Client));
        });
    }
}
