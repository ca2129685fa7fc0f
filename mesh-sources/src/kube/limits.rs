//! Around every request: how long an answer may take, and who is told that one came.
//!
//! A peer that has silently gone must not leave a watch waiting for ever. The API server sends a sign of life (a bookmark) about every
//! minute on each watch; one that is silent for longer is ended as if the server had, and is then resumed from where it was.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use kube::Client;
use kube::client::Body;
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout};
use tower::{BoxError, Service};

/// How long what may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// From a request to the beginning of its answer, connecting included.
    pub answer: Duration,
    /// Between two parts of an answer.
    pub pause: Duration,
    /// Between two parts of a watch.
    pub silence: Duration,
    /// Between the beginnings of two watches of one kind: a server that ends them at once is not to be run over.
    pub rewatch: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            answer: Duration::from_secs(30),
            pause: Duration::from_secs(30),
            silence: Duration::from_secs(150),
            rewatch: Duration::from_secs(1),
        }
    }
}

/// Something did not come in time.
#[derive(Debug, thiserror::Error)]
#[error("{0} did not come within {1:?}")]
pub(super) struct TimedOut(pub(super) &'static str, pub(super) Duration);

/// Is told of answers.
pub(super) trait Heard: Send + Sync + 'static {
    /// The server answered a request well.
    fn answered(&self);
    /// More of an answer came.
    fn more(&self);
}

/// A client under limits.
pub(super) struct Limited {
    client: Client,
    limits: Limits,
    heard: Arc<dyn Heard>,
    next_watch: Option<Instant>,
}

impl Limited {
    pub(super) fn client(client: &Client, limits: Limits, heard: Arc<dyn Heard>) -> Client {
        let namespace = client.default_namespace().to_owned();
        Client::new(Limited { client: client.clone(), limits, heard, next_watch: None }, namespace)
    }
}

impl Service<Request<Body>> for Limited {
    type Response = Response<Watched>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let watch = request.uri().query().is_some_and(|query| query.split('&').any(|pair| pair == "watch=true"));
        let (client, limits, heard) = (self.client.clone(), self.limits, self.heard.clone());
        let begin = watch.then(|| {
            let begin = self.next_watch.unwrap_or_else(Instant::now).max(Instant::now());
            self.next_watch = Some(begin + limits.rewatch);
            begin
        });
        Box::pin(async move {
            if let Some(begin) = begin {
                sleep_until(begin).await;
            }
            let late = |_| BoxError::from(TimedOut("the answer", limits.answer));
            let response = timeout(limits.answer, client.send(request)).await.map_err(late)??;
            if response.status().is_success() {
                heard.answered();
            }
            let (limit, ends) = if watch { (limits.silence, true) } else { (limits.pause, false) };
            let alarm = Box::pin(sleep(limit));
            Ok(response.map(|body| Watched { body, heard, limit, ends, alarm }))
        })
    }
}

/// The body of an answer, under limits.
pub(super) struct Watched {
    body: Body,
    heard: Arc<dyn Heard>,
    limit: Duration,
    /// Silence ends it well; otherwise it is an error.
    ends: bool,
    alarm: Pin<Box<Sleep>>,
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) {
            if matches!(frame, Some(Ok(_))) {
                this.heard.more();
                this.alarm.as_mut().reset(Instant::now() + this.limit);
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        match this.alarm.as_mut().poll(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) if this.ends => Poll::Ready(None),
            Poll::Ready(()) => Poll::Ready(Some(Err(TimedOut("the next part of the answer", this.limit).into()))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
