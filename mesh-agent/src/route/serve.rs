//! HTTP of one application's connection, served by hyper: each request goes to an [`Exchange`](super::exchange).

use std::cell::RefCell;
use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONNECTION, HeaderValue};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use super::body::ReplyBody;
use super::counters::RequestCounters;
use super::filter;
use super::guard::Guarded;
use crate::ops::drain::DrainWatch;
use crate::outcome::Outcome;
use crate::upstream::http::Local;

/// Bytes of a message's headers.
pub const MAX_HEADERS: u32 = 64 << 10;
/// Headers of a message.
pub const MAX_HEADER_COUNT: usize = 128;
/// Between two requests of a connection, as long as Envoy waits.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
/// Requests at once on a connection.
const MAX_STREAMS: u32 = 200;
/// Streams that a client resets before they are looked at, until it is sent away (CVE-2023-44487).
const MAX_RESETS: usize = 100;
/// For what is under way when the connection is to end.
const FAREWELL: Duration = Duration::from_secs(5);

/// What is asked of clients, and where it is counted when they do not meet it.
#[derive(Clone)]
pub struct Manners {
    /// For the head of an HTTP/1 request, from its first byte.
    pub head_timeout: Duration,
    /// Where refusals are counted.
    pub counters: Arc<RequestCounters>,
}

/// What answers requests.
pub trait Service: 'static {
    /// Answers one.
    fn answer(self: Rc<Self>, request: Request<Incoming>) -> impl Future<Output = Response<ReplyBody>>;
}

/// Serves a connection until it ends. When the drain begins the client is asked to go elsewhere; when `ending` resolves it must. What that
/// says is returned; `None` if the client ended it, or broke off.
pub async fn serve<T, S>(
    stream: T,
    http2: bool,
    service: Rc<S>,
    manners: Manners,
    mut drain: DrainWatch,
    ending: impl Future<Output = Outcome>,
) -> Option<Outcome>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    S: Service,
{
    let answer = service_fn(move |request| {
        let service = service.clone();
        async move { Ok::<_, Infallible>(answer(service, request, http2).await) }
    });
    let mut ending = std::pin::pin!(ending);
    let mut draining = false;
    let mut told = None;
    macro_rules! drive {
        ($connection:expr) => {{
            let mut connection = std::pin::pin!($connection);
            loop {
                tokio::select! {
                    biased;
                    // How it went is told by each request's own record.
                    _ = connection.as_mut() => return told,
                    outcome = &mut ending, if told.is_none() => {
                        told = Some(outcome);
                        connection.as_mut().graceful_shutdown();
                        let _ = tokio::time::timeout(FAREWELL, connection.as_mut()).await;
                        return told;
                    }
                    () = drain.draining(), if !draining => {
                        draining = true;
                        connection.as_mut().graceful_shutdown();
                    }
                }
            }
        }};
    }
    if http2 {
        let mut builder = http2::Builder::new(Local);
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .max_concurrent_streams(MAX_STREAMS)
            .max_pending_accept_reset_streams(MAX_RESETS)
            .max_header_list_size(MAX_HEADERS)
            .keep_alive_interval(Some(Duration::from_secs(30)))
            .keep_alive_timeout(Duration::from_secs(20));
        drive!(builder.serve_connection(TokioIo::new(stream), answer));
    }
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        // Else a client that has gone would be seen only by the next byte that is sent to it: its request went on, in everybody's way.
        .half_close(false)
        .header_read_timeout(IDLE_TIMEOUT)
        .max_headers(MAX_HEADER_COUNT)
        .max_buf_size(MAX_HEADERS as usize);
    let guarded = Guarded::new(stream, manners.head_timeout, manners.counters);
    drive!(builder.serve_connection(TokioIo::new(guarded), answer).with_upgrades());
}

/// Behind a request to switch protocols the guard looks at nothing, since what follows may be of the other protocol. If it is not, what
/// follows is not read.
async fn answer<S: Service>(service: Rc<S>, request: Request<Incoming>, http2: bool) -> Response<ReplyBody> {
    let unguarded = !http2 && filter::asks_to_switch(request.headers());
    let mut response = service.answer(request).await;
    if unguarded && response.status() != StatusCode::SWITCHING_PROTOCOLS {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Keeps a value that is made from the configuration until that changes.
pub struct Current<T>(RefCell<Option<Versioned<T>>>);

type Versioned<T> = ((u64, u64), Rc<T>);

impl<T> Default for Current<T> {
    fn default() -> Self {
        Current(RefCell::default())
    }
}

impl<T> Current<T> {
    /// The value of these versions of what it is made of.
    pub fn get(&self, version: (u64, u64), make: impl FnOnce() -> T) -> Rc<T> {
        if let Some((of, value)) = &*self.0.borrow()
            && *of == version
        {
            return value.clone();
        }
        let value = Rc::new(make());
        *self.0.borrow_mut() = Some((version, value.clone()));
        value
    }
}

#[cfg(test)]
mod tests;
