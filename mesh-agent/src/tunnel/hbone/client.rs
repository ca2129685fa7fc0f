//! The dialling side of HBONE: one connection, many streams.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Reason, RecvStream, SendStream};
use http::header::{FORWARDED, HeaderName};
use http::{Method, Request, StatusCode};

use super::{BAGGAGE, CONNECTION_WINDOW, FRAME, REASON, SEND_BUFFER, STREAM_WINDOW, TRACEPARENT, forwarded, keepalive, text, value};
use crate::tunnel::client::OpenRequest;
use crate::tunnel::counters::TunnelCounters;
use crate::tunnel::error::{HandshakeError, Refusal, TunnelError};
use crate::tunnel::settings::Settings;
use crate::tunnel::tls::channel::{ChannelError, TlsChannel};
use crate::tunnel::tls::io::{Fault, TlsIo};

/// A connection of HBONE. Clones are the same connection.
#[derive(Clone)]
pub struct HboneConnection {
    send: SendRequest<Bytes>,
    state: Rc<State>,
}

#[derive(Default)]
struct State {
    streams: Cell<usize>,
    leaving: Cell<bool>,
    ended: RefCell<Option<TunnelError>>,
    fault: Fault,
}

/// A stream that the peer has accepted.
pub struct HboneStream {
    /// Towards the peer.
    pub send: SendStream<Bytes>,
    /// From the peer.
    pub recv: RecvStream,
    /// What the peer says of the destination.
    pub baggage: Option<Arc<str>>,
    /// Counts the stream as long as it is held.
    pub place: Place,
}

/// One of a connection's streams.
pub struct Place(Rc<State>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get().saturating_sub(1));
    }
}

/// Why a stream was not opened, and whether the peer has certainly not looked at the request.
pub struct Failed {
    /// Why.
    pub error: TunnelError,
    /// It can be asked for on another connection.
    pub retry: bool,
}

impl HboneConnection {
    /// Over a channel whose handshake has agreed on HTTP/2. The connection runs as a task of the worker until it ends; it ends in order
    /// when the last clone and the last stream are gone. `ended` is called then.
    pub async fn start(
        channel: TlsChannel,
        settings: Arc<Settings>,
        counters: Arc<TunnelCounters>,
        ended: impl FnOnce() + 'static,
    ) -> Result<Self, TunnelError> {
        let io = TlsIo::new(channel);
        let state = Rc::new(State { fault: io.fault(), ..State::default() });
        let handshake = h2::client::Builder::new()
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME)
            .max_header_list_size(settings.max_header_bytes)
            .max_send_buffer_size(SEND_BUFFER)
            .handshake(io);
        let (send, mut http) = tokio::time::timeout(settings.client_handshake_timeout, handshake)
            .await
            .map_err(|_| HandshakeError::TimedOut)?
            .map_err(|error| state.failure(&error))?;
        let shared = state.clone();
        let ping = http.ping_pong();
        tokio::task::spawn_local(async move {
            let mut dead = pin!(keepalive(ping, settings.ping_interval, settings.ping_timeout));
            let mut http = pin!(http);
            let error = poll_fn(|cx| {
                if let Poll::Ready(result) = http.as_mut().poll(cx) {
                    return Poll::Ready(match result {
                        Ok(()) => TunnelError::Lost("the peer's agent closed the connection".into()),
                        Err(error) => shared.failure(&error),
                    });
                }
                dead.as_mut().poll(cx).map(|()| {
                    counters.client.pings_lost.add();
                    TunnelError::Lost("the peer did not answer PING".into())
                })
            })
            .await;
            *shared.ended.borrow_mut() = Some(error);
            ended();
        });
        Ok(HboneConnection { send, state })
    }

    /// Whether another stream may be opened.
    pub fn has_room(&self, settings: &Settings) -> bool {
        let limit = self.send.current_max_send_streams().min(settings.max_streams as usize);
        self.is_open() && self.state.streams.get() < limit
    }

    /// Whether it can be used at all.
    pub fn is_open(&self) -> bool {
        !self.state.leaving.get() && self.state.ended.borrow().is_none()
    }

    /// Streams that are open.
    pub fn streams(&self) -> usize {
        self.state.streams.get()
    }

    /// Counts a stream that is about to be opened.
    pub fn take_place(&self) -> Place {
        self.state.streams.set(self.state.streams.get() + 1);
        Place(self.state.clone())
    }

    /// Asks for a stream and waits for the answer. No byte of the application is sent before it.
    pub async fn open(&self, place: Place, request: &OpenRequest, settings: &Settings) -> Result<HboneStream, Failed> {
        let asked = async {
            let mut send = self.send.clone().ready().await.map_err(|e| self.failed(&e))?;
            let (response, stream) = send.send_request(connect(request), false).map_err(|e| self.failed(&e))?;
            match response.await {
                Ok(response) => Ok((response, stream)),
                Err(error) => Err(self.failed(&error)),
            }
        };
        let answered = tokio::time::timeout(settings.response_timeout, asked).await;
        let (response, send) =
            answered.unwrap_or(Err(Failed { error: TunnelError::ResponseTimeout(settings.response_timeout), retry: false }))?;
        let (head, recv) = response.into_parts();
        if head.status != StatusCode::OK {
            let reason = text(&head.headers, &REASON).unwrap_or_default();
            return Err(Failed { error: TunnelError::Refused(Refusal::new(head.status, reason)), retry: false });
        }
        let baggage = text(&head.headers, &BAGGAGE).map(Arc::from);
        Ok(HboneStream { send, recv, baggage, place })
    }

    fn failed(&self, error: &h2::Error) -> Failed {
        let refused = error.reason() == Some(Reason::REFUSED_STREAM);
        if error.is_go_away() {
            self.state.leaving.set(true);
        }
        if error.is_reset() && error.is_remote() && !refused {
            return Failed { error: TunnelError::Lost(format!("the peer's agent reset the request: {error}").into()), retry: false };
        }
        let ended = self.state.ended.borrow().clone();
        let error = ended.unwrap_or_else(|| self.state.failure(error));
        // Nothing but the request was sent: asking again cannot deliver anything twice.
        let retry = refused || matches!(error, TunnelError::Lost(_));
        Failed { error, retry }
    }
}

impl State {
    /// An error of the library as one of ours; what lies below HTTP/2 is said in its own words.
    fn failure(&self, error: &h2::Error) -> TunnelError {
        match &*self.fault.borrow() {
            Some(ChannelError::Alert(alert)) => return TunnelError::Handshake(HandshakeError::Alert { alert: *alert }),
            Some(fault) => return TunnelError::Lost(fault.to_string().into()),
            None => {}
        }
        let text = error.to_string().into();
        if error.is_library() { TunnelError::Protocol(text) } else { TunnelError::Lost(text) }
    }
}

fn connect(request: &OpenRequest) -> Request<()> {
    let mut connect = Request::new(());
    *connect.method_mut() = Method::CONNECT;
    if let Ok(authority) = request.target.to_string().parse() {
        *connect.uri_mut() = authority;
    }
    let headers = connect.headers_mut();
    let mut add = |name: HeaderName, text: Option<&str>| {
        if let Some(value) = text.and_then(value) {
            headers.insert(name, value);
        }
    };
    add(BAGGAGE, request.baggage.as_deref());
    add(FORWARDED, request.client.map(|client| forwarded(client.0, request.host.as_deref())).as_deref());
    add(TRACEPARENT, request.traceparent.as_deref());
    connect
}
