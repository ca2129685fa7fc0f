use std::time::Duration;

use mesh_model::identity::TrustDomain;
use rcgen::KeyPair;
use tokio::sync::watch;
use tonic::Code;

use super::*;
use crate::ca::authenticate::Authentication;
use crate::ca::keeper::CaSource;
use crate::ca::testing::{certificates, csr};

const ID: &str = "spiffe://cluster.local/ns/shop/sa/cart";
const OTHER: &str = "spiffe://cluster.local/ns/shop/sa/web";
const TOKEN: &str = "Bearer token-of-node-1-abcdef";

struct OneNode;

impl Authenticator for OneNode {
    fn authenticate<'a>(&'a self, token: &'a str, _: Option<std::net::IpAddr>) -> Authentication<'a> {
        let known = TOKEN.ends_with(token);
        Box::pin(async move { if known { Ok(Caller { node: "node-1".into() }) } else { Err(Refusal::UnknownToken) } })
    }
}

struct OnePod;

impl Inventory for OnePod {
    fn may_sign(&self, node: &str, identity: &Identity) -> Result<(), Refusal> {
        if *identity.trust_domain() != TrustDomain::default() {
            return Err(Refusal::TrustDomain { identity: Box::new(identity.clone()), trust_domain: TrustDomain::default() });
        }
        match (node, identity.to_string().as_str()) {
            ("node-1", ID) => Ok(()),
            _ => Err(Refusal::NotOnNode { identity: Box::new(identity.clone()), node: node.into() }),
        }
    }

    fn changes(&self) -> watch::Receiver<u64> {
        watch::channel(0).1
    }
}

fn service(limits: ServiceLimits) -> CaService {
    let keeper = Arc::new(Keeper::open(&CaSource::default(), SystemTime::now()).unwrap());
    let lifetimes = Lifetimes { default: Duration::from_secs(3600), max: Duration::from_secs(7200) };
    CaService::new(keeper, Arc::new(OneNode), Arc::new(OnePod), lifetimes, limits, Arc::new(Metrics::new()))
}

fn request(message: IstioCertificateRequest, token: Option<&str>) -> Request<IstioCertificateRequest> {
    let mut request = Request::new(message);
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", token.parse().unwrap());
    }
    request
}

fn message(uris: &[&str], seconds: i64, impersonated: Option<&str>) -> IstioCertificateRequest {
    let csr = csr(&KeyPair::generate().unwrap(), uris);
    match impersonated {
        Some(id) => IstioCertificateRequest::for_workload(csr, seconds, id.into()),
        None => IstioCertificateRequest { csr, validity_duration: seconds, metadata: None },
    }
}

#[tokio::test]
async fn signs_for_who_may_and_answers_as_istiod_does() {
    let service = service(ServiceLimits::default());
    for (uris, impersonated) in [(vec![ID], None), (vec![ID], Some(ID)), (vec![], Some(ID))] {
        let answer = service.create_certificate(request(message(&uris, 60, impersonated), Some(TOKEN))).await.unwrap();
        let chain = answer.into_inner().cert_chain;
        assert_eq!(chain.len(), 3);
        assert!(chain.iter().all(|element| certificates(element).len() == 1 && element.ends_with('\n')));
    }
    assert_eq!(service.metrics.issued.get(), 3);
}

#[tokio::test]
async fn lifetimes_are_bounded() {
    let service = service(ServiceLimits::default());
    for (asked, given) in [(60, 60), (0, 3600), (-1, 3600), (1_000_000, 7200), (i64::MAX, 7200)] {
        let (issued, _) = service.answer(&request(message(&[ID], asked, None), Some(TOKEN)), &mut Facts::default()).await.unwrap();
        let left = issued.validity.not_after.duration_since(SystemTime::now()).unwrap().as_secs();
        assert!((given - 2..=given).contains(&left), "{asked}: {left}");
    }
}

#[tokio::test]
async fn refuses_with_the_right_code_and_counts() {
    let service = service(ServiceLimits::default());
    let number = || {
        let mut message = IstioCertificateRequest::for_workload(csr(&KeyPair::generate().unwrap(), &[ID]), 0, String::new());
        let value = mesh_proto::prost_types::Value { kind: Some(mesh_proto::prost_types::value::Kind::NumberValue(1.0)) };
        message.metadata.as_mut().unwrap().fields.insert(mesh_proto::IMPERSONATED_IDENTITY.into(), value);
        message
    };
    let cases = [
        (message(&[ID], 0, None), None, "no_token", Code::Unauthenticated),
        (message(&[ID], 0, None), Some("Basic abcdefghijklmnopqrst"), "token_form", Code::Unauthenticated),
        (message(&[ID], 0, None), Some("Bearer somebody-elses-token"), "unknown_token", Code::Unauthenticated),
        (message(&[OTHER], 0, None), Some(TOKEN), "not_on_node", Code::PermissionDenied),
        (message(&[], 0, Some(OTHER)), Some(TOKEN), "not_on_node", Code::PermissionDenied),
        (message(&["spiffe://elsewhere/ns/shop/sa/cart"], 0, None), Some(TOKEN), "trust_domain", Code::PermissionDenied),
        (message(&[ID, OTHER], 0, None), Some(TOKEN), "names", Code::InvalidArgument),
        (message(&[ID], 0, Some(OTHER)), Some(TOKEN), "two_identities", Code::InvalidArgument),
        (message(&[], 0, None), Some(TOKEN), "no_identity", Code::InvalidArgument),
        (message(&[], 0, Some("nonsense")), Some(TOKEN), "not_an_identity", Code::InvalidArgument),
        (number(), Some(TOKEN), "metadata", Code::InvalidArgument),
        (IstioCertificateRequest::default(), Some(TOKEN), "csr", Code::InvalidArgument),
    ];
    for (message, token, reason, code) in cases {
        let before = service.metrics.refusals(reason);
        let status = service.create_certificate(request(message, token)).await.unwrap_err();
        assert_eq!((status.code(), status.metadata().get("x-nodemesh-refusal").unwrap().to_str().unwrap()), (code, reason), "{status}");
        assert_eq!(service.metrics.refusals(reason), before + 1);
        assert!(!status.message().contains("somebody"), "no token is told");
    }
    assert_eq!(service.metrics.issued.get(), 0);
}

#[tokio::test]
async fn too_often_and_too_many() {
    let rate = Rate { per_second: 0.0, burst: 2.0 };
    let service = service(ServiceLimits { concurrent: 1, per_node: rate, ..ServiceLimits::default() });
    let ask =
        async || service.create_certificate(request(message(&[ID], 0, None), Some(TOKEN))).await.map(drop).map_err(|status| status.code());
    let held = service.room.acquire().await.unwrap();
    assert_eq!(ask().await, Err(Code::ResourceExhausted));
    drop(held);
    assert_eq!((ask().await, ask().await, ask().await), (Ok(()), Ok(()), Err(Code::ResourceExhausted)));
    assert_eq!((service.metrics.refusals("overloaded"), service.metrics.refusals("too_often")), (1, 1));
}

/// A pod that shows when told to.
struct Later(watch::Sender<u64>);

impl Inventory for Later {
    fn may_sign(&self, node: &str, identity: &Identity) -> Result<(), Refusal> {
        if *self.0.borrow() == 0 {
            return Err(Refusal::NotOnNode { identity: Box::new(identity.clone()), node: node.into() });
        }
        OnePod.may_sign(node, identity)
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.0.subscribe()
    }
}

#[tokio::test]
async fn waits_a_little_for_a_pod_that_is_being_made() {
    let keeper = Arc::new(Keeper::open(&CaSource::default(), SystemTime::now()).unwrap());
    let lifetimes = Lifetimes { default: Duration::from_secs(3600), max: Duration::from_secs(7200) };
    let later = Arc::new(Later(watch::Sender::new(0)));
    let limits = ServiceLimits { concurrent: 1, patience: Duration::from_secs(60), ..ServiceLimits::default() };
    let service = CaService::new(keeper, Arc::new(OneNode), later.clone(), lifetimes, limits, Arc::new(Metrics::new()));
    let shows = async {
        while later.0.receiver_count() == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(service.room.available_permits(), 1, "who waits takes nobody's room");
        later.0.send_modify(|count| *count += 1);
    };
    let (answer, ()) = tokio::join!(service.create_certificate(request(message(&[ID], 0, None), Some(TOKEN))), shows);
    answer.unwrap();
}

#[tokio::test(start_paused = true)]
async fn does_not_wait_for_ever_for_a_pod() {
    let service = service(ServiceLimits { patience: Duration::from_secs(2), ..ServiceLimits::default() });
    let status = service.create_certificate(request(message(&[OTHER], 0, None), Some(TOKEN))).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
}
