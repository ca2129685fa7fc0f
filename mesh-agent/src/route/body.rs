//! Requests' bodies on their way: counted, and kept for another attempt while they are small.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use crate::outcome::{Outcome, RequestFailure};

mod response;

pub use response::{Deadline, Ongoing, ReplyBody, grpc_status};

/// Any error of a body.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Bytes of a request's body that are kept for another attempt.
pub const MAX_KEPT: usize = 64 << 10;

/// Counts gRPC's messages in a stream of bytes: a flag and a length of four bytes before each (gRPC over HTTP/2).
#[derive(Debug, Default)]
pub struct Messages {
    count: u64,
    /// Bytes of the message that are still to come.
    left: u64,
    prefix: [u8; 5],
    filled: usize,
}

impl Messages {
    /// Takes the next bytes.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.left > 0 {
                let skip = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
                self.left -= skip as u64;
                bytes = bytes.get(skip..).unwrap_or_default();
                continue;
            }
            let Some((first, rest)) = bytes.split_first() else { break };
            if let Some(slot) = self.prefix.get_mut(self.filled) {
                *slot = *first;
            }
            self.filled += 1;
            bytes = rest;
            if self.filled == self.prefix.len() {
                let [_, a, b, c, d] = self.prefix;
                self.left = u64::from(u32::from_be_bytes([a, b, c, d]));
                self.filled = 0;
                self.count += 1;
            }
        }
    }

    /// Whether one has begun and is not over.
    pub fn is_amid(&self) -> bool {
        self.left > 0 || self.filled > 0
    }

    /// How many have begun.
    pub fn count(&self) -> u64 {
        self.count
    }
}

/// What has passed of a request's body.
#[derive(Debug, Default)]
pub struct Seen {
    /// Bytes.
    pub bytes: Cell<u64>,
    /// Whether all of it has.
    pub ended: Cell<bool>,
    messages: Option<RefCell<Messages>>,
}

impl Seen {
    /// Nothing yet. `grpc` counts messages too.
    pub fn new(grpc: bool) -> Rc<Seen> {
        Rc::new(Seen { messages: grpc.then(RefCell::default), ..Seen::default() })
    }

    /// Messages that have begun.
    pub fn messages(&self) -> u64 {
        self.messages.as_ref().map_or(0, |messages| messages.borrow().count())
    }

    fn feed(&self, bytes: &[u8]) {
        self.bytes.set(self.bytes.get() + bytes.len() as u64);
        if let Some(messages) = &self.messages {
            messages.borrow_mut().feed(bytes);
        }
    }
}

struct Source {
    body: Incoming,
    seen: Rc<Seen>,
    /// What was read, for another attempt; `None` once it is too much.
    kept: Option<VecDeque<Bytes>>,
    kept_bytes: usize,
    trailers: Option<HeaderMap>,
    ended: bool,
    /// How its client broke it off.
    fault: Option<Outcome>,
    /// For how long it may send nothing that is asked for, as long as there is no answer.
    patience: Option<Duration>,
    /// Runs while something is asked for.
    waiting: bool,
    timer: Option<Pin<Box<Sleep>>>,
    /// The number of the attempt that has the body. Those before it get nothing more: a server that has answered early may go on reading.
    current: u64,
    /// To tell that attempt if it waits.
    waker: Option<Waker>,
}

impl Source {
    /// Takes the body from the attempt that has it.
    fn supersede(&mut self) {
        self.current += 1;
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// The body of a request, from which one attempt after the other is made. Clones are the same.
#[derive(Clone)]
pub struct Original(Rc<RefCell<Source>>);

impl Original {
    /// Of a client, which may send nothing for as long as `patience` before it is answered (`None`: for any time). `keep` is whether another attempt may be asked for.
    pub fn new(body: Incoming, seen: Rc<Seen>, keep: bool, patience: Option<Duration>) -> Original {
        let ended = body.is_end_stream();
        seen.ended.set(ended);
        let kept = keep.then(VecDeque::new);
        Original(Rc::new(RefCell::new(Source {
            body,
            seen,
            kept,
            kept_bytes: 0,
            trailers: None,
            ended,
            fault: None,
            patience,
            waiting: false,
            timer: None,
            current: 0,
            waker: None,
        })))
    }

    /// Whether another attempt can have the whole body.
    pub fn can_repeat(&self) -> bool {
        let source = self.0.borrow();
        source.fault.is_none() && (source.kept.is_some() || source.seen.bytes.get() == 0)
    }

    /// How its client broke it off, if it did.
    pub fn fault(&self) -> Option<Outcome> {
        self.0.borrow().fault.clone()
    }

    /// No attempt has it any longer: what a server has not been sent yet is there for the next one, or for nobody.
    pub fn supersede(&self) {
        self.0.borrow_mut().supersede();
    }

    /// The answer has begun: from here on client and server talk as they like, also with long pauses.
    pub fn answered(&self) {
        let source = &mut *self.0.borrow_mut();
        source.patience = None;
        source.timer = None;
    }

    /// Whether a byte of it has been read.
    pub fn has_begun(&self) -> bool {
        self.0.borrow().seen.bytes.get() > 0
    }

    /// Whether its client has sent all of it.
    pub fn has_ended(&self) -> bool {
        self.0.borrow().ended
    }

    /// What was kept, if that is all of it.
    pub fn whole(&self) -> Option<Bytes> {
        let source = self.0.borrow();
        let kept = source.kept.as_ref().filter(|_| source.ended && source.fault.is_none())?;
        Some(kept.iter().flat_map(|part| part.iter().copied()).collect())
    }

    /// The body for an attempt, which takes it from the one before.
    pub fn attempt(&self) -> RequestBody {
        let source = &mut *self.0.borrow_mut();
        source.supersede();
        if source.ended && source.seen.bytes.get() == 0 && source.trailers.is_none() {
            return RequestBody(Kind::Empty);
        }
        RequestBody(Kind::Attempt(Attempt { source: self.0.clone(), number: source.current, next: 0, trailers_sent: false }))
    }
}

/// A request's body towards a server.
pub struct RequestBody(Kind);

enum Kind {
    Empty,
    Whole(Option<Bytes>),
    Attempt(Attempt),
}

struct Attempt {
    source: Rc<RefCell<Source>>,
    number: u64,
    /// Number of the kept part that comes next.
    next: usize,
    trailers_sent: bool,
}

impl RequestBody {
    /// One that is all there.
    pub fn whole(bytes: Bytes) -> RequestBody {
        RequestBody(if bytes.is_empty() { Kind::Empty } else { Kind::Whole(Some(bytes)) })
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.0 {
            Kind::Empty => Poll::Ready(None),
            Kind::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Kind::Attempt(attempt) => attempt.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Empty => true,
            Kind::Whole(bytes) => bytes.is_none(),
            Kind::Attempt(attempt) => {
                let source = attempt.source.borrow();
                if attempt.number != source.current {
                    return false;
                }
                let repeated = source.kept.as_ref().is_none_or(|kept| attempt.next >= kept.len());
                source.ended && repeated && (source.trailers.is_none() || attempt.trailers_sent)
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Kind::Attempt(attempt) => {
                let source = attempt.source.borrow();
                // A length that the client declared is declared again, so that the framing stays what it was.
                match source.body.size_hint().exact() {
                    Some(left) if attempt.next == 0 => SizeHint::with_exact(left + source.kept_bytes as u64),
                    _ => SizeHint::default(),
                }
            }
        }
    }
}

impl Source {
    /// The next of what the client sends, for which there is not endless time.
    fn poll_client(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Err(error))) => {
                self.fault = Some(fault_of(&error));
                Poll::Ready(Some(Err(error.into())))
            }
            Poll::Ready(frame) => {
                self.waiting = false;
                Poll::Ready(frame.map(|frame| frame.map_err(BoxError::from)))
            }
            Poll::Pending => {
                let Some(patience) = self.patience else { return Poll::Pending };
                let until = Instant::now() + patience;
                let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
                if !std::mem::replace(&mut self.waiting, true) {
                    timer.as_mut().reset(until);
                }
                ready!(timer.as_mut().poll(cx));
                self.fault = Some(Outcome::Request(RequestFailure::BodyTimedOut));
                Poll::Ready(Some(Err("the request's body took too long".into())))
            }
        }
    }
}

/// What a client's body that ends with an error says of the client: malformed, or broken off.
fn fault_of(error: &hyper::Error) -> Outcome {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        if let Some(std::io::ErrorKind::InvalidData | std::io::ErrorKind::InvalidInput) = kind {
            return Outcome::Request(RequestFailure::BadRequest { detail: format!("a body that is malformed: {error}").into() });
        }
        cause = error.source();
    }
    Outcome::ClientReset
}

impl Attempt {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let source = &mut *self.source.borrow_mut();
        if self.number != source.current {
            return Poll::Ready(Some(Err("another attempt has taken its place".into())));
        }
        if let Some(part) = source.kept.as_ref().and_then(|kept| kept.get(self.next)) {
            self.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(part.clone()))));
        }
        if source.ended {
            let trailers = source.trailers.clone().filter(|_| !std::mem::replace(&mut self.trailers_sent, true));
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        }
        let frame = match source.poll_client(cx) {
            Poll::Pending => {
                source.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(Some(Ok(frame))) => frame,
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
            Poll::Ready(None) => {
                source.ended = true;
                source.seen.ended.set(true);
                return Poll::Ready(None);
            }
        };
        source.ended = source.body.is_end_stream();
        source.seen.ended.set(source.ended);
        match frame.into_data() {
            Ok(data) => {
                source.seen.feed(&data);
                source.kept_bytes += data.len();
                if source.kept_bytes > MAX_KEPT {
                    source.kept = None;
                }
                if let Some(kept) = &mut source.kept {
                    kept.push_back(data.clone());
                    self.next += 1;
                }
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Err(frame) => {
                source.trailers = frame.trailers_ref().cloned();
                self.trailers_sent = true;
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }
}

#[cfg(test)]
mod tests;
