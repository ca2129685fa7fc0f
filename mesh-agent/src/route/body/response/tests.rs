use std::future::poll_fn;
use std::time::Duration;

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::route::body::RequestBody;

/// What a client gets of an answer that its server has written in full already: the bytes, and what they end with.
fn answered(written: &'static str, deadline: Option<Deadline>, grpc: bool) -> (usize, Result<Option<HeaderMap>, String>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let (near, mut far) = tokio::io::duplex(1 << 16);
        let (mut sender, connection) = http1::handshake::<_, RequestBody>(TokioIo::new(near)).await.unwrap();
        tokio::task::spawn_local(connection);
        let server = async {
            far.read_u8().await.unwrap();
            far.write_all(written.as_bytes()).await.unwrap();
        };
        let request = http::Request::new(RequestBody::whole(Bytes::new()));
        let (response, ()) = tokio::join!(sender.send_request(request), server);
        let response = response.unwrap();
        let deadline = deadline.map(|deadline| (Box::pin(tokio::time::sleep_until(deadline.at)), deadline));
        let kind = ReplyKind::Incoming(response.into_body());
        let mut body = ReplyBody { kind, messages: grpc.then(Messages::default), deadline, ongoing: None };
        let mut bytes = 0;
        loop {
            match poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => bytes += data.len(),
                    Err(frame) => return (bytes, Ok(frame.into_trailers().ok())),
                },
                Some(Err(error)) => return (bytes, Err(error.to_string())),
                None => return (bytes, Ok(None)),
            }
        }
    })
}

const CHUNKS: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nabcd\r\n4\r\nefgh\r\n0\r\n\r\n";
const WHOLE: &str = "HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nabcdefgh";

fn due(after: i64, trailers: bool) -> Option<Deadline> {
    let time = Duration::from_secs(after.unsigned_abs());
    let now = Instant::now();
    Some(Deadline { at: if after < 0 { now - time } else { now + time }, trailers })
}

#[test]
fn a_server_that_always_has_more_is_not_listened_to_for_ever() {
    assert_eq!(answered(CHUNKS, due(60, false), false), (8, Ok(None)));
    assert_eq!(answered(CHUNKS, due(-1, false), false), (0, Err("the response took too long".into())));
    let (bytes, trailers) = answered(CHUNKS, due(-1, true), true);
    assert_eq!((bytes, trailers.unwrap().unwrap()["grpc-status"].as_bytes()), (0, &b"4"[..]));
}

#[test]
fn what_has_come_in_full_is_passed_on_however_late_it_is_asked_for() {
    assert_eq!(answered(WHOLE, due(-1, false), false), (8, Ok(None)));
}
