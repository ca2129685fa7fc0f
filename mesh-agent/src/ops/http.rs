//! A small HTTP/1.1 server for operators' endpoints. One request a connection, everything bounded: number of connections, size of the
//! head and of the body, time of the whole exchange. It must not be possible to hurt the data path from here.

use std::convert::Infallible;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Bounds of a server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Connections served at a time; further ones wait in the listener's queue.
    pub connections: usize,
    /// Time for the request's head.
    pub head: Duration,
    /// Time for the whole connection.
    pub total: Duration,
    /// Bytes of a request's body.
    pub body: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { connections: 64, head: Duration::from_secs(5), total: Duration::from_secs(30), body: 16 * 1024 }
    }
}

/// A request with its body read, and who sent it.
pub type Received = Request<Bytes>;

/// An answer.
pub type Reply = Response<Full<Bytes>>;

/// The boxed future of an answer.
pub type Answer = Pin<Box<dyn Future<Output = Reply> + Send>>;

/// What answers. The peer's address is given beside the request.
pub trait Handler: Send + Sync + 'static {
    /// Answers one request.
    fn answer(&self, peer: SocketAddr, request: Received) -> Answer;
}

/// Opens a listener. Where `[::]` is asked for on a node without IPv6, it listens on all IPv4 addresses instead. Errors name the address.
pub async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let named = |error: std::io::Error| std::io::Error::new(error.kind(), format!("can't listen on {address}: {error}"));
    let error = match TcpListener::bind(address).await {
        Ok(listener) => return Ok(listener),
        Err(error) => error,
    };
    // EAFNOSUPPORT has no kind of its own in std.
    let no_v6 =
        error.kind() == std::io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error());
    if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && no_v6 {
        return TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await.map_err(named);
    }
    Err(named(error))
}

/// Serves until `stop` is ready; then finishes what was begun, no longer than [`Limits::total`].
pub async fn serve(listener: TcpListener, limits: Limits, handler: Arc<dyn Handler>, stop: impl Future<Output = ()>) {
    let room = Arc::new(Semaphore::new(limits.connections));
    let mut connections = JoinSet::new();
    tokio::pin!(stop);
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            _ = &mut stop => break,
            accepted = accept(&listener, &room) => accepted,
        };
        match accepted {
            Ok((stream, peer, permit)) => {
                let handler = handler.clone();
                connections.spawn(async move {
                    // Whatever ends it: there is nobody to tell.
                    let _ = tokio::time::timeout(limits.total, connection(stream, peer, limits, handler)).await;
                    drop(permit);
                });
            }
            Err(error) => {
                // File descriptors are used up, or the like: the listener stands, so wait a little for better times.
                tracing::warn!(%error, "can't accept a connection to an operators' endpoint");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
    drop(listener);
    let _ = tokio::time::timeout(limits.total, async { while connections.join_next().await.is_some() {} }).await;
}

async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let permit = room.clone().acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, peer) = listener.accept().await?;
    Ok((stream, peer, permit))
}

async fn connection(stream: TcpStream, peer: SocketAddr, limits: Limits, handler: Arc<dyn Handler>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let handler = handler.clone();
        async move {
            let (head, body) = request.into_parts();
            let reply = match Limited::new(body, limits.body).collect().await {
                Ok(body) => handler.answer(peer, Request::from_parts(head, body.to_bytes())).await,
                Err(_) => text(StatusCode::PAYLOAD_TOO_LARGE, format!("a body may have {} bytes\n", limits.body)),
            };
            Ok::<_, Infallible>(reply)
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .keep_alive(false)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%peer, %error, "an operators' endpoint was not used properly");
    }
}

/// A plain text answer.
pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Reply {
    reply(status, "text/plain; charset=utf-8", body)
}

/// A JSON answer, indented for people.
pub fn json(status: StatusCode, value: &serde_json::Value) -> Reply {
    reply(status, "application/json", format!("{value:#}\n"))
}

/// An answer of any type. It may not be guessed at, cached or framed by a browser.
pub fn reply(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() = status;
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    headers.insert("cache-control", HeaderValue::from_static("no-store"));
    reply
}

#[cfg(test)]
mod tests;
