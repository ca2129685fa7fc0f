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
use crate::route::reply;
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

/// When a response must have come in full.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    /// Then.
    pub at: Instant,
    /// Whether its client, of HTTP/2, can be told a gRPC status in trailers.
    pub trailers: bool,
}

impl Deadline {
    fn is_over(&self) -> bool {
        Instant::now() >= self.at
    }
}

/// A response's body towards a client.
pub struct ReplyBody {
    kind: ReplyKind,
    messages: Option<Messages>,
    deadline: Option<(Pin<Box<Sleep>>, Deadline)>,
    ongoing: Option<Box<Ongoing>>,
}

enum ReplyKind {
    Incoming(Incoming),
    Whole(Option<Bytes>),
}

impl ReplyBody {
    /// Of a server.
    pub fn incoming(body: Incoming, ongoing: Ongoing, grpc: bool, deadline: Option<Deadline>) -> ReplyBody {
        let deadline = deadline.map(|deadline| (Box::pin(tokio::time::sleep_until(deadline.at)), deadline));
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

    /// Ends it before its end: of gRPC between two messages with a status, as the server would have, or else with an error.
    fn too_late(&mut self) -> Result<Frame<Bytes>, BoxError> {
        let trailers = self.deadline.take().is_some_and(|(_, deadline)| deadline.trailers);
        let outcome = Outcome::Request(RequestFailure::TimedOut);
        // One of a declared length would be malformed without the rest.
        let may = trailers && self.size_hint().exact().is_none();
        let trailers = self.messages.as_ref().filter(|messages| may && !messages.is_amid()).map(|_| {
            let status = outcome.grpc_status();
            let mut trailers = HeaderMap::new();
            reply::grpc_status(&mut trailers, status, &outcome.to_string());
            (status, trailers)
        });
        // The server is told that nobody waits for the rest.
        self.kind = ReplyKind::Whole(None);
        if let Some(mut ongoing) = self.ongoing.take() {
            ongoing.record.line.grpc_status = trailers.as_ref().map(|(status, _)| *status).or(ongoing.record.line.grpc_status);
            ongoing.end(Some(outcome));
        }
        trailers.map(|(_, trailers)| Frame::trailers(trailers)).ok_or_else(|| "the response took too long".into())
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
            ReplyKind::Incoming(body) => match Pin::new(&mut *body).poll_frame(cx) {
                // Of a server that always has more the timer would never be asked. What is the end has come, late or not.
                Poll::Ready(Some(Ok(_)))
                    if this.deadline.as_ref().is_some_and(|(_, deadline)| deadline.is_over()) && !body.is_end_stream() =>
                {
                    return Poll::Ready(Some(this.too_late()));
                }
                Poll::Ready(frame) => frame,
                Poll::Pending => {
                    let Some((timer, _)) = &mut this.deadline else { return Poll::Pending };
                    ready!(timer.as_mut().poll(cx));
                    return Poll::Ready(Some(this.too_late()));
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

#[cfg(test)]
mod tests;
