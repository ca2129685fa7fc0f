//! Whoever calls is judged by a call's head. Of a call that is not let in nothing of the body is kept: a little of it is read and thrown away.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use http_body_util::BodyExt as _;
use tonic::Status;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tower_service::Service;

use super::services::{Answering, Answers};
use crate::ca::authenticate::Caller;
use crate::gate::Place;

/// The head of a call: its metadata, and its [`super::Peer`] among the extensions.
pub type Head = tonic::Request<()>;

/// What a guard comes to.
pub type Entering<'a> = Pin<Box<dyn Future<Output = Result<Entered, Status>> + Send + 'a>>;

/// A call that is let in.
#[derive(Debug)]
pub struct Entered {
    /// Who calls; an extension of the request from then on.
    pub caller: Caller,
    /// The call's place, where a node has few.
    pub place: Option<Place>,
}

/// Judges the calls of a service.
pub trait Guard: Send + Sync + 'static {
    /// Lets a call in; else the status to answer.
    fn let_in<'a>(&'a self, head: &'a Head) -> Entering<'a>;

    /// What a call is answered whose place a newer one of its node has taken.
    fn overtaken(&self) -> Status {
        Status::aborted("the node has made newer calls")
    }
}

/// How much of the body of a call that is refused is read, and for how long.
const MOST_DISCARDED: usize = 64 << 10;
const DISCARDING: Duration = Duration::from_secs(1);

/// Reads a body to its end, if that is near. With the rest of a request under way its answer is followed by RST_STREAM (NO_ERROR: RFC 9113,
/// 8.1), and not every client looks at the answer then.
async fn discard<B>(body: B)
where
    B: hyper::body::Body,
    B::Data: bytes::Buf,
{
    let mut body = std::pin::pin!(body);
    let read = async {
        let mut left = MOST_DISCARDED;
        while let Some(Ok(frame)) = body.frame().await {
            let data = frame.data_ref().map_or(0, bytes::Buf::remaining);
            let Some(rest) = left.checked_sub(data) else { break };
            left = rest;
        }
    };
    let _ = tokio::time::timeout(DISCARDING, read).await;
}

/// A service behind a guard.
pub(super) struct Guarded<S> {
    pub(super) guard: Arc<dyn Guard>,
    pub(super) service: S,
}

impl<S> Answers for Guarded<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
{
    fn answer(&self, request: Request<Body>) -> Answering {
        let (guard, mut service) = (self.guard.clone(), self.service.clone());
        Box::pin(async move {
            let (mut parts, body) = request.into_parts();
            let head = Head::from_parts(MetadataMap::from_headers(parts.headers.clone()), parts.extensions.clone(), ());
            let Entered { caller, place } = match guard.let_in(&head).await {
                Ok(entered) => entered,
                Err(status) => {
                    discard(body).await;
                    return Ok(status.into_http());
                }
            };
            drop(head);
            parts.extensions.insert(caller);
            // Generated services are always ready.
            let answer = service.call(Request::from_parts(parts, body));
            let Some(place) = place else { return answer.await };
            let response = tokio::select! {
                biased;
                () = place.overtaken() => return Ok(guard.overtaken().into_http()),
                response = answer => response?,
            };
            let unread = place.answered();
            Ok(response.map(|body| {
                Body::new(body.map_frame(move |frame| {
                    // Goes with the body.
                    let _held = &unread;
                    frame
                }))
            }))
        })
    }
}

#[cfg(test)]
mod tests;
