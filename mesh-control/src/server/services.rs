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

use super::guard::{Guard, Guarded};

pub(super) type Answering = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// gRPC services; a call to any other is answered UNIMPLEMENTED. Cheap to clone.
#[derive(Clone, Default)]
pub struct Services(Vec<Served>);

#[derive(Clone)]
struct Served {
    name: &'static str,
    /// The only method, if not all are served.
    method: Option<&'static str>,
    service: Arc<dyn Answers>,
}

pub(super) trait Answers: Send + Sync {
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
        self.0.push(Served { name: S::NAME, method: None, service: Arc::new(Of(service)) });
        self
    }

    /// With one method of one more. Its calls are judged by a guard before anything of their bodies is read.
    pub fn behind<S>(mut self, guard: Arc<dyn Guard>, method: &'static str, service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + NamedService + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
    {
        self.0.push(Served { name: S::NAME, method: Some(method), service: Arc::new(Guarded { guard, service }) });
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
        let path = request.uri().path().strip_prefix('/').and_then(|path| path.split_once('/'));
        let served = path
            .and_then(|(name, method)| self.0.iter().find(|served| served.name == name && served.method.is_none_or(|only| only == method)));
        match served {
            Some(served) => served.service.answer(request),
            None => Box::pin(std::future::ready(Ok(Status::unimplemented("there is no such service here").into_http()))),
        }
    }
}
