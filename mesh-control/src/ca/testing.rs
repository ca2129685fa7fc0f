//! What tests of several modules need.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ::kube::client::Body;
use http::{Request, Response};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls_pki_types::CertificateDer;

use super::authority::Authority;
use super::hierarchy::{make_intermediate, make_root};

/// A fixed moment.
pub(crate) fn moment() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

/// A fresh root and intermediate, made at `now`.
pub(crate) fn authority(now: SystemTime) -> Authority {
    let root = make_root(now).unwrap();
    let intermediate = make_intermediate(&root, now).unwrap();
    Authority::new(intermediate.certificate, intermediate.key, Vec::new(), vec![root.certificate], now).unwrap()
}

/// A request by `key` for URIs.
pub(crate) fn csr(key: &KeyPair, uris: &[&str]) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
    params.serialize_request(key).unwrap().pem().unwrap()
}

/// Certificates in PEM.
pub(crate) fn certificates(pem: &str) -> Vec<CertificateDer<'static>> {
    use rustls_pki_types::pem::PemObject;
    CertificateDer::pem_slice_iter(pem.as_bytes()).map(Result::unwrap).collect()
}

/// An API server that is a function: what a `kube::Client` sends, it answers.
#[derive(Clone)]
pub(crate) struct Answering<F>(pub(crate) F);

impl<F, A> tower_service::Service<Request<Body>> for Answering<F>
where
    F: Fn(Request<Body>) -> A,
    A: Future<Output = Response<Body>> + Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let answer = self.0(request);
        Box::pin(async move { Ok(answer.await) })
    }
}
