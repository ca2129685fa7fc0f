//! The serving side of HBONE.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{Request, Response};
use tokio::task::JoinSet;

use super::{BAGGAGE, CONNECTION_WINDOW, FRAME, REASON, SEND_BUFFER, STREAM_WINDOW, judge, keepalive, relay, value};
use crate::outcome::Side;
use crate::tunnel::error::Refusal;
use crate::tunnel::fast::relay::Prefix;
use crate::tunnel::server::{Accepted, Connection, Handler, Server};
use crate::tunnel::tls::channel::TlsChannel;
use crate::tunnel::tls::io::TlsIo;
use crate::upstream::copy::idle::IdleTimer;
use crate::upstream::copy::{Ended, How};

/// Why a peer's connection did not end in order.
#[derive(Debug, thiserror::Error)]
pub enum HboneError {
    /// The library's word.
    #[error("HTTP/2: {0}")]
    Http(#[from] h2::Error),
    /// The preface did not come in time.
    #[error("the HTTP/2 preface did not come in time")]
    TimedOut,
    /// It answers no PING.
    #[error("the peer did not answer PING")]
    Dead,
}

enum Event {
    Request(Box<(Request<RecvStream>, SendResponse<Bytes>)>),
    Leave,
    Dead,
    End(Result<(), h2::Error>),
}

/// Serves the connection until it ends. After `drain`, or without a stream for long, GOAWAY is sent, and it ends with its last stream.
pub async fn serve<H: Handler>(
    server: Rc<Server<H>>,
    channel: TlsChannel,
    connection: Connection,
    drain: impl Future<Output = ()>,
) -> Result<(), HboneError> {
    let settings = server.settings.clone();
    let handshake = h2::server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_concurrent_streams(settings.max_streams)
        .max_header_list_size(settings.max_header_bytes)
        .max_send_buffer_size(SEND_BUFFER)
        .handshake(TlsIo::new(channel));
    let mut http = tokio::time::timeout(settings.server_handshake_timeout, handshake).await.map_err(|_| HboneError::TimedOut)??;
    let mut dead = pin!(keepalive(http.ping_pong(), settings.ping_interval, settings.ping_timeout));
    let mut drain = pin!(drain);
    let mut idle = pin!(IdleTimer::new(Some(settings.server_idle_timeout)));
    let mut leaving = false;
    let mut streams = JoinSet::new();
    let result = loop {
        let event = poll_fn(|cx| {
            if let Poll::Ready(accepted) = http.poll_accept(cx) {
                return Poll::Ready(match accepted {
                    Some(Ok((request, respond))) => Event::Request(Box::new((request, respond))),
                    Some(Err(error)) => Event::End(Err(error)),
                    None => Event::End(Ok(())),
                });
            }
            while let Poll::Ready(Some(_)) = streams.poll_join_next(cx) {}
            if dead.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Event::Dead);
            }
            if !leaving && (drain.as_mut().poll(cx).is_ready() || idle.as_mut().poll_expired(cx, http.has_streams()).is_ready()) {
                return Poll::Ready(Event::Leave);
            }
            Poll::Pending
        })
        .await;
        match event {
            Event::Request(asked) => {
                let (request, respond) = *asked;
                if !connection.is_valid(&server.handler) && !leaving {
                    leaving = true;
                    http.graceful_shutdown();
                }
                streams.spawn_local(serve_stream(server.clone(), connection.clone(), request, respond));
            }
            Event::Leave => {
                leaving = true;
                http.graceful_shutdown();
            }
            Event::Dead => {
                server.counters.server.pings_lost.add();
                break Err(HboneError::Dead);
            }
            Event::End(result) => break result.map_err(HboneError::Http),
        }
    };
    // Without their connection the streams end at once, and each says so.
    drop(http);
    while streams.join_next().await.is_some() {}
    result
}

async fn serve_stream<H: Handler>(
    server: Rc<Server<H>>,
    connection: Connection,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    server.counters.server.streams.add();
    if !connection.is_valid(&server.handler) {
        let reason = "the certificate of this connection has expired, or its root is trusted no more";
        server.reject(&connection, &Refusal::new(http::StatusCode::UNAUTHORIZED, reason));
        server.counters.server.refused.add();
        // Not an answer: who has another certificate by now may ask again over another connection (RFC 9113, 8.7).
        return respond.send_reset(Reason::REFUSED_STREAM);
    }
    let judged = judge(&connection, &request);
    let recv = request.into_body();
    let judged = match judged {
        Ok(incoming) => {
            let mut answer = pin!(server.handler.connect(incoming));
            let answer = poll_fn(|cx| match respond.poll_reset(cx) {
                Poll::Ready(_) => Poll::Ready(None),
                Poll::Pending => answer.as_mut().poll(cx).map(Some),
            });
            match answer.await {
                Some(answer) => answer,
                // The client gave up.
                None => return,
            }
        }
        Err(refusal) => {
            server.reject(&connection, &refusal);
            Err(refusal)
        }
    };
    match judged {
        Ok(accepted) => run(&server, accepted, recv, respond).await,
        Err(refusal) => {
            server.counters.server.refused.add();
            refuse(&refusal, respond);
        }
    }
}

async fn run<H: Handler>(server: &Server<H>, accepted: Accepted, recv: RecvStream, mut respond: SendResponse<Bytes>) {
    let Accepted { app, meter, cancel, baggage, on_end } = accepted;
    let mut response = Response::new(());
    if let Some(baggage) = baggage.and_then(|baggage| value(&baggage)) {
        response.headers_mut().insert(BAGGAGE, baggage);
    }
    let how = match respond.send_response(response, false) {
        Ok(send) => {
            relay::relay(app, Side::Server, send, recv, Prefix::default(), &meter, cancel.cancelled(), server.settings.stream_idle_timeout)
                .await
        }
        Err(error) => {
            app.abort();
            How::Lost(error.to_string().into())
        }
    };
    on_end(Ended::new(&meter, how));
}

/// HEADERS with END_STREAM; the library adds RST_STREAM(NO_ERROR) when the request's end has not come yet.
fn refuse(refusal: &Refusal, mut respond: SendResponse<Bytes>) {
    let mut response = Response::new(());
    *response.status_mut() = refusal.status;
    if let Some(reason) = value(&refusal.reason) {
        response.headers_mut().insert(REASON, reason);
    }
    if respond.send_response(response, true).is_err() {
        respond.send_reset(Reason::CANCEL);
    }
}
