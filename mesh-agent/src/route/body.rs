//! Bodies on their way: counted, kept for another attempt while they are small, and ended with the record of their request.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use crate::ops::RequestRecorder;
use crate::outcome::{Outcome, RequestFailure};
use crate::upstream::http::Lease;

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
}

/// The body of a request, from which one attempt after the other is made.
pub struct Original(Rc<RefCell<Source>>);

impl Original {
    /// Of a client, which may send nothing for as long as `patience` before it is answered (`None`: for any time). `keep` is whether another attempt may be asked for.
    pub fn new(body: Incoming, seen: Rc<Seen>, keep: bool, patience: Option<Duration>) -> Original {
        let ended = body.is_end_stream();
        seen.ended.set(ended);
        let kept = keep.then(VecDeque::new);
        let (fault, waiting, timer) = (None, false, None);
        Original(Rc::new(RefCell::new(Source { body, seen, kept, kept_bytes: 0, trailers: None, ended, fault, patience, waiting, timer })))
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

    /// What was kept, if that is all of it.
    pub fn whole(&self) -> Option<Bytes> {
        let source = self.0.borrow();
        let kept = source.kept.as_ref().filter(|_| source.ended && source.fault.is_none())?;
        Some(kept.iter().flat_map(|part| part.iter().copied()).collect())
    }

    /// The body for an attempt.
    pub fn attempt(&self) -> RequestBody {
        let source = self.0.borrow();
        if source.ended && source.seen.bytes.get() == 0 && source.trailers.is_none() {
            return RequestBody(Kind::Empty);
        }
        RequestBody(Kind::Attempt(Attempt { source: self.0.clone(), next: 0, trailers_sent: false }))
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
        if let Some(part) = source.kept.as_ref().and_then(|kept| kept.get(self.next)) {
            self.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(part.clone()))));
        }
        if source.ended {
            let trailers = source.trailers.clone().filter(|_| !std::mem::replace(&mut self.trailers_sent, true));
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        }
        let frame = match ready!(source.poll_client(cx)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            None => {
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

/// What is known of a response that is under way.
pub struct Ongoing {
    /// The request's record.
    pub record: RequestRecorder,
    /// The request's body.
    pub seen: Rc<Seen>,
    /// The connection that it comes from, kept for the next request once it has come in full.
    pub lease: Option<Lease>,
    /// Called when the last byte has come, or when none will.
    pub on_end: Option<Box<dyn FnOnce(bool)>>,
}

impl Ongoing {
    fn end(mut self, failure: Option<Outcome>) {
        let whole = failure.is_none();
        if let Some(lease) = self.lease.take().filter(|_| whole && self.seen.ended.get()) {
            lease.keep();
        }
        if let Some(on_end) = self.on_end.take() {
            on_end(whole);
        }
        self.settle();
        match failure {
            Some(outcome) => self.record.finish(outcome),
            None => self.record.complete(),
        }
    }

    fn settle(&mut self) {
        self.record.totals.request_bytes = self.seen.bytes.get();
        self.record.totals.request_messages = self.seen.messages();
    }
}

/// A response's body towards a client.
pub struct ReplyBody {
    kind: ReplyKind,
    messages: Option<Messages>,
    deadline: Option<Pin<Box<Sleep>>>,
    ongoing: Option<Box<Ongoing>>,
}

enum ReplyKind {
    Incoming(Incoming),
    Whole(Option<Bytes>),
}

impl ReplyBody {
    /// Of a server.
    pub fn incoming(body: Incoming, ongoing: Ongoing, grpc: bool, deadline: Option<Instant>) -> ReplyBody {
        let deadline = deadline.map(|deadline| Box::pin(tokio::time::sleep_until(deadline)));
        let mut body = ReplyBody {
            kind: ReplyKind::Incoming(body),
            messages: grpc.then(Messages::default),
            deadline,
            ongoing: Some(Box::new(ongoing)),
        };
        body.end_if_over();
        body
    }

    /// Of this agent itself.
    pub fn whole(bytes: Bytes, ongoing: Ongoing) -> ReplyBody {
        let whole = (!bytes.is_empty()).then_some(bytes);
        let mut body = ReplyBody { kind: ReplyKind::Whole(whole), messages: None, deadline: None, ongoing: Some(Box::new(ongoing)) };
        body.end_if_over();
        body
    }

    /// One that nobody records.
    pub fn unrecorded(bytes: Bytes) -> ReplyBody {
        ReplyBody { kind: ReplyKind::Whole((!bytes.is_empty()).then_some(bytes)), messages: None, deadline: None, ongoing: None }
    }

    fn end_if_over(&mut self) {
        if self.is_end_stream()
            && let Some(ongoing) = self.ongoing.take()
        {
            ongoing.end(None);
        }
    }

    fn count(&mut self, bytes: &[u8]) {
        let Some(ongoing) = &mut self.ongoing else { return };
        ongoing.record.totals.response_bytes += bytes.len() as u64;
        if let Some(messages) = &mut self.messages {
            messages.feed(bytes);
            ongoing.record.totals.response_messages = messages.count();
        }
    }
}

/// gRPC's status, from headers or trailers.
pub fn grpc_status(headers: &HeaderMap) -> Option<u16> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let frame = match &mut this.kind {
            ReplyKind::Whole(bytes) => bytes.take().map(|bytes| Ok(Frame::data(bytes))),
            ReplyKind::Incoming(body) => match Pin::new(body).poll_frame(cx) {
                Poll::Ready(frame) => frame,
                Poll::Pending => {
                    ready!(this.deadline.as_mut().map_or(Poll::Pending, |deadline| deadline.as_mut().poll(cx)));
                    if let Some(ongoing) = this.ongoing.take() {
                        ongoing.end(Some(Outcome::Request(RequestFailure::TimedOut)));
                    }
                    return Poll::Ready(Some(Err("the response took too long".into())));
                }
            },
        };
        match frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    this.count(data.chunk());
                } else if let (Some(trailers), Some(ongoing)) = (frame.trailers_ref(), &mut this.ongoing) {
                    ongoing.record.line.grpc_status = grpc_status(trailers).or(ongoing.record.line.grpc_status);
                }
                this.end_if_over();
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                if let Some(ongoing) = this.ongoing.take() {
                    let detail = error.to_string().into();
                    ongoing.end(Some(Outcome::Request(RequestFailure::UpstreamClosed { detail })));
                }
                Poll::Ready(Some(Err(error.into())))
            }
            None => {
                if let Some(ongoing) = this.ongoing.take() {
                    ongoing.end(None);
                }
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            ReplyKind::Incoming(body) => body.is_end_stream(),
            ReplyKind::Whole(bytes) => bytes.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            ReplyKind::Incoming(body) => body.size_hint(),
            ReplyKind::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
        }
    }
}

impl Drop for ReplyBody {
    fn drop(&mut self) {
        // Dropped in the middle: its client is gone. What its request's body had is counted all the same.
        if let Some(mut ongoing) = self.ongoing.take() {
            if let Some(on_end) = ongoing.on_end.take() {
                on_end(true);
            }
            ongoing.settle();
            ongoing.record.finish(Outcome::ClientReset);
        }
    }
}

#[cfg(test)]
mod tests;
