//! The services behind one endpoint, by their names in the path of a call.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower_service::Service;

type Answering = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// gRPC services; a call to any other is answered UNIMPLEMENTED. Cheap to clone.
#[derive(Clone, Default)]
pub struct Services(Vec<(&'static str, Arc<dyn Answers>)>);

trait Answers: Send + Sync {
    fn answer(&self, request: Request<Body>) -> Answering;
}

struct Of<S>(S);

impl<S> Answers for Of<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
{
    fn answer(&self, request: Request<Body>) -> Answering {
        // Generated services are always ready.
        Box::pin(self.0.clone().call(request))
    }
}

impl Services {
    /// With one more, as tonic generates them.
    pub fn and<S>(mut self, service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + NamedService + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
    {
        self.0.push((S::NAME, Arc::new(Of(service))));
        self
    }
}

impl Service<Request<Body>> for Services {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answering;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Answering {
        // `/package.Service/Method`
        let name = request.uri().path().strip_prefix('/').and_then(|path| path.split_once('/')).map(|(name, _)| name);
        match self.0.iter().find(|(of, _)| Some(*of) == name) {
            Some((_, service)) => service.answer(request),
            None => Box::pin(std::future::ready(Ok(Status::unimplemented("there is no such service here").into_http()))),
        }
    }
}
