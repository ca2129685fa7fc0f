//! Responses' bodies on their way to clients, ended with the record of their request.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use super::{BoxError, Messages, Seen};
use crate::ops::RequestRecorder;
use crate::outcome::{Outcome, RequestFailure};
use crate::upstream::http::Lease;

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
        if let Some(mut ongoing) = self.ongoing.take() {
            // Of an answer whose length is known nobody waits for the word that it is over.
            if matches!(&self.kind, ReplyKind::Incoming(body) if body.size_hint().exact() == Some(0)) {
                ongoing.lease = None;
                return ongoing.end(None);
            }
            // Dropped in the middle: its client is gone. What its request's body had is counted all the same.
            if let Some(on_end) = ongoing.on_end.take() {
                on_end(true);
            }
            ongoing.settle();
            ongoing.record.finish(Outcome::ClientReset);
        }
    }
}
