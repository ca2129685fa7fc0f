//! Relays between real sockets.

use std::future::pending;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::*;

struct Relayed {
    client: TcpStream,
    server: TcpStream,
    cancel: CancellationToken,
    meter: Arc<Meter>,
    task: JoinHandle<Ended>,
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (dialled, accepted) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (dialled.unwrap(), accepted.unwrap().0)
}

async fn relayed(idle: Option<Duration>) -> Relayed {
    let (client, near) = pair().await;
    let (far, server) = pair().await;
    let (cancel, meter) = (CancellationToken::new(), Arc::new(Meter::default()));
    let (cancelled, counted) = (cancel.clone(), meter.clone());
    let task = tokio::spawn(async move { relay(near, far, &counted, cancelled.cancelled(), idle).await });
    Relayed { client, server, cancel, meter, task }
}

fn abort_now(tcp: TcpStream) {
    SockRef::from(&tcp).set_linger(Some(Duration::ZERO)).unwrap();
}

#[tokio::test]
async fn bytes_pass_both_ways_and_are_counted() {
    let mut r = relayed(None).await;
    r.client.write_all(b"question").await.unwrap();
    let mut buffer = [0; 8];
    r.server.read_exact(&mut buffer).await.unwrap();
    assert_eq!(&buffer, b"question");
    r.server.write_all(b"answer").await.unwrap();
    r.client.read_exact(&mut buffer[..6]).await.unwrap();
    assert_eq!(r.meter.read(), (8, 6));
    drop(r.client);
    assert_eq!(r.server.read(&mut buffer).await.unwrap(), 0);
    drop(r.server);
    assert_eq!(r.task.await.unwrap(), Ended { from_client: 8, to_client: 6, how: How::Eof });
}

#[tokio::test]
async fn a_large_transfer_is_byte_for_byte_the_same() {
    let r = relayed(None).await;
    let data: Vec<u8> = (0..20_000_000u32).map(|i| (i ^ (i >> 9)) as u8).collect();
    let (mut server_read, mut server_write) = r.server.into_split();
    let echo = tokio::spawn(async move {
        tokio::io::copy(&mut server_read, &mut server_write).await.unwrap();
        server_write.shutdown().await.unwrap();
    });
    let (mut read, mut write) = r.client.into_split();
    let sent = data.clone();
    let send = tokio::spawn(async move {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let mut back = Vec::new();
    read.read_to_end(&mut back).await.unwrap();
    assert!(back == data);
    send.await.unwrap();
    echo.await.unwrap();
    let all = data.len() as u64;
    assert_eq!(r.task.await.unwrap(), Ended { from_client: all, to_client: all, how: How::Eof });
}

#[tokio::test]
async fn half_close_is_kept() {
    let mut r = relayed(None).await;
    r.client.write_all(b"all").await.unwrap();
    r.client.shutdown().await.unwrap();
    let mut heard = Vec::new();
    r.server.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"all");
    r.server.write_all(b"later").await.unwrap();
    drop(r.server);
    let mut answer = Vec::new();
    r.client.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"later");
    assert_eq!(r.task.await.unwrap().how, How::Eof);
}

#[tokio::test]
async fn an_abort_reaches_the_other_side_as_one() {
    let mut r = relayed(None).await;
    r.client.write_all(b"x").await.unwrap();
    r.server.read_exact(&mut [0; 1]).await.unwrap();
    abort_now(r.client);
    assert_eq!(r.server.read(&mut [0; 1]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(r.task.await.unwrap().how, How::Reset(Side::Client));

    let mut r = relayed(None).await;
    r.client.write_all(b"x").await.unwrap();
    r.server.read_exact(&mut [0; 1]).await.unwrap();
    abort_now(r.server);
    assert_eq!(r.client.read(&mut [0; 1]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(r.task.await.unwrap().how, How::Reset(Side::Server));
}

#[tokio::test]
async fn an_abort_is_noticed_although_the_other_side_is_stalled() {
    let mut r = relayed(None).await;
    let data = vec![1; 1 << 16];
    while tokio::time::timeout(Duration::from_millis(100), r.client.write_all(&data)).await.is_ok() {}
    abort_now(r.client);
    assert_eq!(r.task.await.unwrap().how, How::Reset(Side::Client));
    let mut sink = Vec::new();
    assert_eq!(r.server.read_to_end(&mut sink).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn what_waits_is_delivered_once_a_stalled_reader_goes_on() {
    let mut r = relayed(None).await;
    let data = vec![1; 1 << 16];
    let mut written = 0;
    while let Ok(Ok(n)) = tokio::time::timeout(Duration::from_millis(100), r.client.write(&data)).await {
        written += n;
    }
    r.client.shutdown().await.unwrap();
    let mut all = Vec::new();
    r.server.read_to_end(&mut all).await.unwrap();
    assert_eq!(all.len(), written);
    drop(r.server);
    assert_eq!(r.task.await.unwrap().how, How::Eof);
}

#[tokio::test]
async fn cancelling_aborts_both_sides() {
    let mut r = relayed(None).await;
    r.client.write_all(b"x").await.unwrap();
    r.server.read_exact(&mut [0; 1]).await.unwrap();
    r.cancel.cancel();
    assert_eq!(r.server.read(&mut [0; 1]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(r.client.read(&mut [0; 1]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(r.task.await.unwrap().how, How::Cancelled);
}

#[tokio::test(start_paused = true)]
async fn silence_ends_it_and_bytes_put_the_end_off() {
    let (mut client, near) = pair().await;
    let (far, mut server) = pair().await;
    let task = tokio::spawn(async move { relay(near, far, &Meter::default(), pending(), Some(Duration::from_secs(60))).await });
    for _ in 0..5 {
        client.write_all(b"x").await.unwrap();
        server.read_exact(&mut [0; 1]).await.unwrap();
        tokio::time::sleep(Duration::from_secs(40)).await;
        assert!(!task.is_finished());
    }
    tokio::time::sleep(Duration::from_secs(80)).await;
    assert_eq!(task.await.unwrap().how, How::Idle);
}

#[tokio::test]
async fn an_idle_relay_holds_no_buffer_and_a_bulk_one_gives_its_back() {
    assert!(!Buffer::take(false).is_large());
    let large = Buffer::take(true);
    assert!(large.is_large());
    let out: Vec<Buffer> = (0..200).map(|_| Buffer::take(true)).collect();
    assert!(out.iter().filter(|buffer| buffer.is_large()).count() < 130, "large buffers are bounded");
    drop(out);
    drop(large);
    assert!(Buffer::take(true).is_large());
}
