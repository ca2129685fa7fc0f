//! An issuer for tests: a real server on this machine, with TLS and without, that answers as it is told.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls_pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// What it answers.
#[derive(Clone)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Bytes,
    pub(super) delay: Duration,
}

impl Answer {
    pub(super) fn of(status: u16, body: impl Into<Bytes>) -> Answer {
        Answer { status, headers: Vec::new(), body: body.into(), delay: Duration::ZERO }
    }

    pub(super) fn redirect(status: u16, to: &str) -> Answer {
        Answer { headers: vec![("location", to.to_owned())], ..Answer::of(status, "") }
    }
}

/// The issuer.
pub(super) struct Issuer {
    pub(super) https: String,
    pub(super) http: String,
    pub(super) roots: PathBuf,
    answers: Arc<Mutex<HashMap<String, Answer>>>,
    asked: Arc<Mutex<Vec<String>>>,
    _directory: tempfile::TempDir,
}

impl Issuer {
    pub(super) async fn start() -> Issuer {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec!["localhost".into(), "127.0.0.1".into()]).unwrap().signed_by(&key, &ca).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
            .unwrap();
        let directory = tempfile::tempdir().unwrap();
        let roots = directory.path().join("roots.pem");
        std::fs::write(&roots, ca.pem()).unwrap();
        let (answers, asked) = (Arc::default(), Arc::default());
        let https = listen(Some(TlsAcceptor::from(Arc::new(config))), Arc::clone(&answers), Arc::clone(&asked)).await;
        let http = listen(None, Arc::clone(&answers), Arc::clone(&asked)).await;
        Issuer {
            https: format!("https://localhost:{}", https.port()),
            http: format!("http://{http}"),
            roots,
            answers,
            asked,
            _directory: directory,
        }
    }

    pub(super) fn set(&self, path: &str, answer: Answer) {
        self.answers.lock().insert(path.to_owned(), answer);
    }

    /// Paths that it was asked for since the last look.
    pub(super) fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock())
    }
}

async fn listen(tls: Option<TlsAcceptor>, answers: Arc<Mutex<HashMap<String, Answer>>>, asked: Arc<Mutex<Vec<String>>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (tls, answers, asked) = (tls.clone(), answers.clone(), asked.clone());
            tokio::spawn(async move {
                match tls {
                    Some(tls) => {
                        if let Ok(stream) = tls.accept(stream).await {
                            serve(stream, answers, asked).await;
                        }
                    }
                    None => serve(stream, answers, asked).await,
                }
            });
        }
    });
    address
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, answers: Arc<Mutex<HashMap<String, Answer>>>, asked: Arc<Mutex<Vec<String>>>) {
    let answer = |request: Request<Incoming>| {
        let path = request.uri().path().to_owned();
        let answer = answers.lock().get(&path).cloned().unwrap_or_else(|| Answer::of(404, "no"));
        asked.lock().push(path);
        async move {
            tokio::time::sleep(answer.delay).await;
            let mut response = Response::new(Full::new(answer.body));
            *response.status_mut() = StatusCode::from_u16(answer.status).unwrap();
            for (name, value) in answer.headers {
                response.headers_mut().insert(name, value.parse().unwrap());
            }
            Ok::<_, Infallible>(response)
        }
    };
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)).await;
}

/// A key set with keys of these names.
pub(super) fn jwks(names: &[&str]) -> String {
    let key = |name: &&str| json!({ "kty": "EC", "crv": "P-256", "kid": name, "x": "A".repeat(43), "y": "A".repeat(43) });
    json!({ "keys": names.iter().map(key).collect::<Vec<Value>>() }).to_string()
}
