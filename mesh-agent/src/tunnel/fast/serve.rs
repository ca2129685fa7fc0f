//! The serving side of `nodemesh/1`: one stream after the other, each only after the handler's judgement.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use super::link::{Link, LinkError, Received};
use super::relay;
use crate::tunnel::error::Refusal;
use crate::tunnel::server::{Accepted, Connection, Handler, Server};
use crate::tunnel::wire::{Frame, Open};
use crate::upstream::copy::Ended;

/// Bytes that a client may still send of a stream that was refused.
const MAX_DISCARDED: usize = 1 << 20;
/// How long a client is waited for to close after GOAWAY.
const FAREWELL: Duration = Duration::from_secs(5);

enum Next {
    Open(Open),
    Drain,
    Expired,
}

/// Serves the link until the client closes it, it was idle for too long, or `drain` resolves.
pub async fn serve<H: Handler>(
    server: Rc<Server<H>>,
    mut link: Link,
    connection: Connection,
    drain: impl Future<Output = ()>,
) -> Result<(), LinkError> {
    let mut drain = pin!(drain);
    link.send(&Frame::Ready).await?;
    loop {
        let open = match next_stream(&mut link, drain.as_mut(), server.settings.server_idle_timeout).await {
            Ok(Next::Open(open)) if connection.is_valid(&server.handler) => open,
            Ok(Next::Open(_) | Next::Drain | Next::Expired) => return go_away(link).await,
            Err(error) if error.is_closed() => return Ok(()),
            Err(error) => return Err(error),
        };
        link = match serve_stream(&server, link, &connection, open).await {
            Some(link) => link,
            None => return Ok(()),
        };
    }
}

async fn next_stream(link: &mut Link, mut drain: Pin<&mut impl Future<Output = ()>>, idle: Duration) -> Result<Next, LinkError> {
    let mut expiry = pin!(tokio::time::sleep(idle));
    poll_fn(|cx| {
        loop {
            match link.poll_next(cx) {
                Poll::Ready(Ok(Received::Frame(Frame::Open(open)))) => return Poll::Ready(Ok(Next::Open(open))),
                Poll::Ready(Ok(Received::Frame(Frame::Ping(data)))) => {
                    link.put(&Frame::Pong(data))?;
                }
                Poll::Ready(Ok(_)) => return Poll::Ready(Err(LinkError::Unexpected("a frame that has no place between streams"))),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => break,
            }
        }
        if link.has_output()
            && let Poll::Ready(result) = link.poll_flush(cx)
        {
            result?;
        }
        if drain.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(Next::Drain));
        }
        expiry.as_mut().poll(cx).map(|()| Ok(Next::Expired))
    })
    .await
}

/// Says that no stream will be accepted any more, and gives the client the time to hear it before it closes.
async fn go_away(mut link: Link) -> Result<(), LinkError> {
    let goodbye = async {
        link.send(&Frame::GoAway).await?;
        loop {
            if let Err(error) = poll_fn(|cx| link.poll_next(cx)).await {
                return if error.is_closed() { Ok(()) } else { Err(error) };
            }
        }
    };
    tokio::time::timeout(FAREWELL, goodbye).await.unwrap_or(Ok(()))
}

/// The link is returned if it can serve another stream.
async fn serve_stream<H: Handler>(server: &Rc<Server<H>>, mut link: Link, connection: &Connection, open: Open) -> Option<Link> {
    server.counters.server.streams.add();
    let accept_at_once = open.accept_at_once;
    let judged = match connection.incoming_own(open) {
        Ok(incoming) => {
            let mut answer = pin!(server.handler.connect(incoming));
            // The client's bytes wait unread meanwhile; only its abort is listened for.
            poll_fn(|cx| match link.channel().socket().poll_aborted(cx) {
                Poll::Ready(_) => Poll::Ready(None),
                Poll::Pending => answer.as_mut().poll(cx).map(Some),
            })
            .await?
        }
        Err(refusal) => {
            server.reject(connection, &refusal);
            Err(refusal)
        }
    };
    match judged {
        Ok(Accepted { app, meter, cancel, baggage, on_end }) => {
            let (how, link) = relay::server(
                link,
                app,
                baggage.as_deref().map(str::to_owned),
                accept_at_once,
                &meter,
                cancel.cancelled(),
                &server.settings,
            )
            .await;
            on_end(Ended::new(&meter, how));
            link
        }
        Err(refusal) => refuse(server, link, refusal).await,
    }
}

async fn refuse<H: Handler>(server: &Rc<Server<H>>, mut link: Link, refusal: Refusal) -> Option<Link> {
    server.counters.server.refused.add();
    let frame = Frame::Refuse { status: refusal.status, reason: refusal.reason.to_string() };
    let settled = async {
        link.send(&frame).await?;
        let mut discarded = 0;
        while discarded <= MAX_DISCARDED {
            match poll_fn(|cx| link.poll_next(cx)).await? {
                Received::Data(place) => discarded += place.len(),
                Received::Frame(Frame::Fin { .. }) => return Ok(link),
                Received::Frame(_) => break,
            }
        }
        Err(LinkError::Unexpected("a refused stream that does not end"))
    };
    match tokio::time::timeout(FAREWELL, settled).await {
        Ok(Ok(link)) => Some(link),
        Ok(Err(_)) | Err(_) => None,
    }
}
