use std::net::SocketAddr;

use mesh_control::metrics::Metrics;
use mesh_control::server::{self, ServerLimits, Services};
use mesh_proto::nodemesh::budgets_client::BudgetsClient;
use mesh_proto::nodemesh::budgets_server::{Budgets, BudgetsServer};
use mesh_proto::nodemesh::{LendRequest, LendResponse};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::net::TcpListener;

use super::*;

impl Link {
    /// As if the address of this number had answered last.
    pub(crate) fn begin_with(&self, index: usize) {
        self.preferred.store(index, Ordering::Relaxed);
    }
}

#[test]
fn settings_are_judged() {
    let with = |addresses: &[&str]| {
        Link::new(LinkSettings::new(addresses.iter().map(|a| (*a).to_owned()).collect(), "r".into(), "t".into())).map(drop)
    };
    with(&["https://a:1", "https://[::1]:15012"]).unwrap();
    for bad in ["", "a:1", "http://a:1", "https://", "https://a b"] {
        assert!(matches!(with(&[bad]), Err(LinkError::Setting { .. })), "{bad}");
    }
    assert!(with(&[]).is_err());
}

/// The one certificate of all replicas, for 127.0.0.1.
#[derive(Debug)]
struct Shown(Arc<CertifiedKey>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

/// A replica: it leads, or names one that does.
struct Replica(Arc<Mutex<Option<SocketAddr>>>);

#[tonic::async_trait]
impl Budgets for Replica {
    async fn lend(&self, _: Request<LendRequest>) -> Result<Response<LendResponse>, Status> {
        match *self.0.lock() {
            None => Ok(Response::new(LendResponse::default())),
            Some(leader) => {
                let mut status = Status::failed_precondition("another leads");
                status.metadata_mut().insert(LEADER, leader.to_string().parse().unwrap());
                Err(status)
            }
        }
    }
}

async fn replica(certificate: &Arc<CertifiedKey>, serves: bool) -> (SocketAddr, Arc<Mutex<Option<SocketAddr>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, names) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(None)));
    let tls = server::tls(Arc::new(Shown(certificate.clone()))).unwrap();
    let services = match serves {
        true => Services::default().and(BudgetsServer::new(Replica(names.clone()))),
        false => Services::default(),
    };
    tokio::spawn(server::serve(listener, tls, services, ServerLimits::default(), Arc::new(Metrics::new()), std::future::pending()));
    (address, names)
}

fn certificate(directory: &Path) -> Arc<CertifiedKey> {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap();
    std::fs::write(directory.join("roots.pem"), certificate.pem()).unwrap();
    std::fs::write(directory.join("token"), "a-token-of-a-node").unwrap();
    let key = rustls_pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    Arc::new(CertifiedKey::from_der(vec![certificate.der().clone()], key, &provider).unwrap())
}

fn link(directory: &Path, to: &[SocketAddr]) -> Link {
    let addresses = to.iter().map(|address| format!("https://{address}")).collect();
    Link::new(LinkSettings::new(addresses, directory.join("roots.pem"), directory.join("token"))).unwrap()
}

async fn lend(link: &Link) -> Result<(), LinkError> {
    let method = |channel: Channel, request: Request<LendRequest>| async move { BudgetsClient::new(channel).lend(request).await };
    link.call_leader(Duration::from_secs(5), LendRequest::default(), method).await.map(drop)
}

#[tokio::test]
async fn the_replica_that_leads_is_found_and_found_again() {
    let directory = tempfile::tempdir().unwrap();
    let certificate = certificate(directory.path());
    let (first, of_first) = replica(&certificate, true).await;
    let (second, of_second) = replica(&certificate, true).await;
    let link = link(directory.path(), &[first]);
    lend(&link).await.unwrap();
    *of_first.lock() = Some(second);
    lend(&link).await.unwrap();
    assert_eq!(link.channels.lock().leader.as_ref().unwrap().0, second.to_string());
    // The one that was named names another itself.
    *of_second.lock() = Some(first);
    *of_first.lock() = None;
    lend(&link).await.unwrap();
    // Each names the other.
    *of_first.lock() = Some(second);
    let error = lend(&link).await.unwrap_err();
    assert!(matches!(&error, LinkError::Unreachable(why) if why.contains("another leads")), "{error}");
    // One that is gone.
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    *of_first.lock() = Some(gone);
    lend(&link).await.unwrap_err();
    *of_first.lock() = None;
    lend(&link).await.unwrap();
}

#[tokio::test]
async fn who_serves_nothing_of_the_kind_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let certificate = certificate(directory.path());
    let (address, _) = replica(&certificate, false).await;
    let error = lend(&link(directory.path(), &[address])).await.unwrap_err();
    assert!(matches!(error, LinkError::Refused { code: Code::Unimplemented, .. }), "{error}");
}
