use std::path::Path;

use mesh_control::ca::authority::ServerName;
use mesh_control::ca::keeper::CaSource;
use mesh_control::ca::lifetime::Lifetimes;
use mesh_control::ca::service::ServiceLimits;
use mesh_control::server::ServerLimits;
use mesh_control::{Config, Control};
use tonic::Code;

use super::super::testing::{CART, WEB, id};
use super::super::{CertState, SecretStore, StoreSettings, chain};
use super::*;
use crate::identity::chain::Certificate;
use crate::identity::store::{Observer, RenewError};
use crate::link::{LinkError, LinkSettings};
use crate::ops::clock::SystemClock;

struct Nobody;

impl Observer for Nobody {
    fn issued(&self, _: &Certificate) {}
    fn failed(&self, _: &Identity, _: &RenewError) {}
}

const TOKEN: &str = "token-of-node-1-abcdef";

fn pod(account: &str, node: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {account}, namespace: shop, labels: {{nodemesh.dev/mesh: enabled}}}}\n\
         spec: {{serviceAccountName: {account}, nodeName: {node}, containers: [{{name: c}}]}}\nstatus: {{podIP: 10.0.0.{}}}\n---\n",
        account.len()
    )
}

/// An authority for `cart` on node-1 and `web` on node-2, and the files of node-1's agent.
async fn authority(dir: &Path) -> Control {
    for sub in ["tokens", "manifests"] {
        std::fs::create_dir_all(dir.join(sub)).unwrap();
    }
    std::fs::write(dir.join("tokens/node-1"), TOKEN).unwrap();
    std::fs::write(dir.join("token"), format!("{TOKEN}\n")).unwrap();
    std::fs::write(dir.join("manifests/pods.yaml"), pod("cart", "node-1") + &pod("web", "node-2")).unwrap();
    let hour = Duration::from_secs(3600);
    let config = Config {
        objects: None,
        lease: None,
        advertise: None,
        listen: "127.0.0.1:0".parse().unwrap(),
        admin: "127.0.0.1:0".parse().unwrap(),
        agents: mesh_control::config::AgentProof::NodeTokens(dir.join("tokens")),
        mesh: mesh_sources::SourceSettings::Manifests(dir.join("manifests")),
        names: vec![ServerName::Ip([127, 0, 0, 1].into())],
        source: CaSource::default(),
        bundle_out: Some(dir.join("root.pem")),
        keys: mesh_control::config::KeySettings::default(),
        lifetimes: Lifetimes { default: hour, max: hour },
        server: ServerLimits::default(),
        service: ServiceLimits::default(),
        log_level: "info".into(),
        log_format: mesh_control::log::LogFormat::Text,
    };
    Control::start(config).await.unwrap()
}

fn link(dir: &Path, addresses: &[String]) -> Arc<Link> {
    let mut settings = LinkSettings::new(addresses.to_vec(), dir.join("root.pem"), dir.join("token"));
    settings.connect_timeout = Duration::from_secs(2);
    settings.cluster = Some("Kubernetes".into());
    Arc::new(Link::new(settings).unwrap())
}

fn client(dir: &Path, addresses: &[String]) -> CaClient {
    let mut client = CaClient::new(link(dir, addresses));
    client.timeout = Duration::from_secs(2);
    client
}

async fn issue(client: &CaClient, identity: &str) -> Result<chain::Certificate, IssueError> {
    let identity = id(identity);
    let (key, csr) = chain::request(&identity).unwrap();
    let issued = client.issue(&identity, &csr).await?;
    Ok(chain::accept(&identity, &key, issued, std::time::SystemTime::now()).unwrap())
}

fn https(control: &Control) -> String {
    format!("https://{}", control.ca_address())
}

#[tokio::test]
async fn gets_certificates_from_mesh_control() {
    let dir = tempfile::tempdir().unwrap();
    let control = authority(dir.path()).await;
    let client = client(dir.path(), &[https(&control)]);
    let certificate = issue(&client, CART).await.unwrap();
    assert_eq!((certificate.key.cert.len(), certificate.roots.len()), (2, 1));
    let left = certificate.not_after.duration_since(std::time::SystemTime::now()).unwrap();
    assert!(left <= Duration::from_secs(3600), "the authority's bound holds");
    let refused = issue(&client, WEB).await.unwrap_err();
    assert!(
        matches!(&refused, IssueError::Link(LinkError::Refused { code: Code::PermissionDenied, message, .. }) if message.contains("node-1")),
        "{refused}"
    );
}

#[tokio::test]
async fn the_store_works_on_it() {
    let dir = tempfile::tempdir().unwrap();
    let control = authority(dir.path()).await;
    let client = Arc::new(client(dir.path(), &[https(&control)]));
    let (store, driver) = SecretStore::new(client, StoreSettings::default(), Box::new(Nobody), Arc::new(SystemClock));
    let driver = tokio::spawn(driver.run());
    store.ensure([id(CART), id(WEB)]);
    let mut cart = store.subscribe(&id(CART));
    cart.wait_for(|state| matches!(state, CertState::Ready(_))).await.unwrap();
    let mut web = store.subscribe(&id(WEB));
    web.wait_for(|state| matches!(state, CertState::Pending { last_error: Some(_), .. })).await.unwrap();
    // The pod moves here: the next attempt is granted.
    std::fs::write(dir.path().join("manifests/pods.yaml"), pod("cart", "node-1") + &pod("web", "node-1")).unwrap();
    let arrived = web.wait_for(|state| matches!(state, CertState::Ready(_)));
    drop(tokio::time::timeout(Duration::from_secs(20), arrived).await.unwrap().unwrap());
    assert!(store.watch(&id(WEB)).usable().is_ok());
    driver.abort();
}

#[tokio::test]
async fn the_token_is_read_anew_for_each_request() {
    let dir = tempfile::tempdir().unwrap();
    let control = authority(dir.path()).await;
    let client = client(dir.path(), &[https(&control)]);
    let token = dir.path().join("token");
    for (content, fine) in [("wrong-token-0123456789", false), (TOKEN, true)] {
        std::fs::write(&token, content).unwrap();
        assert_eq!(issue(&client, CART).await.is_ok(), fine, "{content}");
    }
    for content in ["", "\n", "a\u{1}b"] {
        std::fs::write(&token, content).unwrap();
        assert!(matches!(issue(&client, CART).await, Err(IssueError::Link(LinkError::File { what: "token", .. }))), "{content:?}");
    }
    std::fs::remove_file(&token).unwrap();
    let error = issue(&client, CART).await.unwrap_err().to_string();
    assert!(error.starts_with("token ") && !error.contains(TOKEN), "{error}");
}

#[tokio::test]
async fn only_an_authority_under_the_roots_is_believed_and_roots_may_change() {
    let dir = tempfile::tempdir().unwrap();
    let control = authority(dir.path()).await;
    let client = client(dir.path(), &[https(&control)]);
    let roots = dir.path().join("root.pem");
    let right = std::fs::read(&roots).unwrap();
    let other = super::super::testing::Authority::new("other");
    std::fs::write(&roots, pem(&other.root)).unwrap();
    let error = issue(&client, CART).await.unwrap_err();
    assert!(matches!(&error, IssueError::Link(LinkError::Unreachable(why)) if why.to_lowercase().contains("certificate")), "{error}");
    for bad in ["", "garbage", "-----BEGIN CERTIFICATE-----\n*\n-----END CERTIFICATE-----\n"] {
        std::fs::write(&roots, bad).unwrap();
        assert!(matches!(issue(&client, CART).await, Err(IssueError::Link(LinkError::File { what: "root certificates", .. }))), "{bad}");
    }
    std::fs::write(&roots, [right, pem(&other.root).into_bytes()].concat()).unwrap();
    assert_eq!(issue(&client, CART).await.unwrap().roots.len(), 2, "the bundle is trusted too");
}

#[tokio::test]
async fn the_next_authority_is_asked_when_one_is_silent_or_gone() {
    let dir = tempfile::tempdir().unwrap();
    let control = authority(dir.path()).await;
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let addresses = [format!("https://{gone}"), format!("https://{}", silent.local_addr().unwrap()), https(&control)];
    let client = client(dir.path(), &addresses);
    issue(&client, CART).await.unwrap();
    let begun = std::time::Instant::now();
    issue(&client, CART).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(1), "the one that answered is asked first");
    // A request that is given up while an authority is silent: the next one does not begin with that.
    client.link.begin_with(1);
    assert!(tokio::time::timeout(Duration::from_millis(200), issue(&client, CART)).await.is_err());
    let begun = std::time::Instant::now();
    issue(&client, CART).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(1), "a silent one is not begun with again");
    control.run(std::future::ready(())).await.unwrap();
    let error = issue(&client, CART).await.unwrap_err().to_string();
    for address in &addresses {
        assert!(error.contains(address), "{error}");
    }
}

#[test]
fn answers_are_sorted() {
    let [root, other] = ["a", "b"].map(super::super::testing::Authority::new);
    let (_, csr) = chain::request(&id(CART)).unwrap();
    let now = std::time::SystemTime::now();
    let leaf = root.sign(&csr, now, now + Duration::from_secs(60), |_| {}).certificates.remove(0);
    let read = |elements: &[String], bundle: &[&CertificateDer<'static>]| {
        read_answer(IstioCertificateResponse { cert_chain: elements.to_vec() }, bundle.iter().map(|der| (*der).clone()).collect())
    };
    let [l, r, o] = [&leaf, &root.root, &other.root].map(|der| pem(der));
    // Roots together in the last element, and one an element.
    for elements in [vec![l.clone(), r.clone() + &o], vec![l.clone(), r.clone(), o.clone()]] {
        let chain = read(&elements, &[]).unwrap();
        assert_eq!((chain.certificates, chain.roots), (vec![leaf.clone()], vec![root.root.clone(), other.root.clone()]));
    }
    let chain = read(std::slice::from_ref(&l), &[&root.root]).unwrap();
    assert_eq!((chain.certificates.len(), chain.roots.len()), (1, 1));
    assert_eq!(read(&[l.clone(), r.clone()], &[&root.root]).unwrap().roots.len(), 1);
    assert!(read(&[], &[]).unwrap().certificates.is_empty());
    assert!(matches!(read(&["-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".into()], &[]), Err(IssueError::Answer(_))));
    assert!(matches!(read(&vec![r; MAX_CERTIFICATES + 1], &[]), Err(IssueError::Answer(_))));
}

fn pem(der: &CertificateDer<'_>) -> String {
    mesh_control::files::pem("CERTIFICATE", der)
}
