use std::path::{Path, PathBuf};

use mesh_model::traffic::{ClientCertificate, Trust};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsAcceptor;

use super::*;

/// An authority with the directory in which its files are written.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate with its key, in PEM.
    fn sign(&self, names: &[&str], usage: ExtendedKeyUsagePurpose) -> (String, String) {
        let (uris, hosts): (Vec<&str>, Vec<&str>) = names.iter().partition(|name| name.contains("://"));
        let mut params = CertificateParams::new(hosts.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
        params.subject_alt_names.extend(uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())));
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

/// Files of a credential.
fn put(directory: &Path, files: &[(&str, &str)]) {
    std::fs::create_dir_all(directory).unwrap();
    for (name, text) in files {
        std::fs::write(directory.join(name), text).unwrap();
    }
}

fn text(path: &Path) -> Arc<str> {
    path.to_str().unwrap().into()
}

struct World {
    directory: tempfile::TempDir,
    authority: Authority,
    start: Instant,
}

impl World {
    fn new() -> World {
        let world = World { directory: tempfile::tempdir().unwrap(), authority: Authority::new(), start: Instant::now() };
        put(&world.own(), &[("ca.crt", &world.authority.pem)]);
        world
    }

    /// The credential `c` of namespace `shop`.
    fn own(&self) -> PathBuf {
        self.directory.path().join("shop/c")
    }

    fn originator(&self, settings: Origination) -> Originator {
        Originator::new(settings, "shop".into(), Arc::new(Credentials::new(self.directory.path())), self.start)
    }

    /// A server with a certificate of these names; it wants one of its clients if it is given their authority.
    fn server(&self, names: &[&str], alpn: &[&[u8]], clients: Option<&Authority>) -> Arc<rustls::ServerConfig> {
        let (certificate, key) = self.authority.sign(names, ExtendedKeyUsagePurpose::ServerAuth);
        let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let builder = rustls::ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
        let builder = match clients {
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                roots.add(CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap()).unwrap();
                builder.with_client_cert_verifier(WebPkiClientVerifier::builder_with_provider(roots.into(), provider()).build().unwrap())
            }
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(chain, key).unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Arc::new(config)
    }
}

/// By the credential's roots, for a server of this name.
fn simple(sni: &str) -> Origination {
    Origination { sni: Some(sni.into()), trust: Trust::Credential("c".into()), ..Origination::default() }
}

/// Asks a server something over TLS and hears the answer: whether it chose HTTP/2, and whether a session was resumed.
async fn ask(secured: &Secured, offer: Offer, config: &Arc<rustls::ServerConfig>) -> Result<(bool, bool), Outcome> {
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let acceptor = TlsAcceptor::from(config.clone());
    let serving = tokio::spawn(async move {
        let Ok(mut stream) = acceptor.accept(theirs).await else { return false };
        let mut word = [0; 4];
        let heard = stream.read_exact(&mut word).await.is_ok();
        let _ = stream.write_all(b"pong").await;
        let _ = stream.shutdown().await;
        heard
    });
    let deadline = Instant::now() + Duration::from_secs(20);
    let agreed = secured.connect(offer, ours, deadline).await;
    let result = match agreed {
        Ok(Agreed { mut stream, http2, resumed }) => {
            // A server that does not believe its client says so only now.
            let mut word = Vec::new();
            let _ = stream.write_all(b"ping").await;
            match stream.read_to_end(&mut word).await {
                Ok(_) if word == b"pong" => Ok((http2, resumed)),
                Ok(_) => panic!("it said {word:?}"),
                Err(error) => Err(Outcome::Upstream(failure(&error))),
            }
        }
        Err(outcome) => Err(outcome),
    };
    assert_eq!(serving.await.unwrap(), result.is_ok(), "nothing is sent to whom is not believed");
    result
}

fn is_about_certificate(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Upstream(UpstreamFailure::TlsCertificate { .. }))
}

#[tokio::test]
async fn a_server_must_be_who_the_rule_says() {
    let world = World::new();
    let names = ["db.example", "*.wild.example", "10.1.2.3", "spiffe://other/db"];
    let server = world.server(&names, &[], None);
    let with =
        |sni: &str, names: &[&str]| Origination { subject_alt_names: names.iter().map(|name| (*name).into()).collect(), ..simple(sni) };
    for (settings, believed) in [
        (with("db.example", &[]), true),
        (with("a.wild.example", &[]), true),
        (with("a.b.wild.example", &[]), false),
        (with("other.example", &[]), false),
        // Names of the rule stand for that of the server.
        (with("other.example", &["x.example", "db.example"]), true),
        (with("db.example", &["x.example"]), false),
        (with("db.example", &["spiffe://other/db"]), true),
        (with("db.example", &["spiffe://other/d"]), false),
        (with("db.example", &["10.1.2.3"]), true),
        (Origination { trust: Trust::System, ..with("db.example", &[]) }, false),
        (Origination { trust: Trust::Anybody, ..with("other.example", &[]) }, true),
    ] {
        // Where there are no system roots at all, that is said before.
        let secured = world.originator(settings.clone()).secure(world.start, None, "web").await;
        let result = match secured {
            Ok(secured) => ask(&secured, Offer::Opaque, &server).await,
            Err(outcome) if settings.trust == Trust::System => {
                assert!(outcome.to_string().contains("no roots"), "{outcome}");
                continue;
            }
            Err(outcome) => panic!("{outcome}"),
        };
        assert_eq!(result.is_ok(), believed, "{settings:?}: {result:?}");
        assert!(result.as_ref().err().is_none_or(is_about_certificate), "{result:?}");
    }
    // Signed by somebody else.
    put(&world.own(), &[("ca.crt", &Authority::new().pem)]);
    let secured = world.originator(simple("db.example")).secure(world.start, None, "web").await.unwrap();
    assert!(is_about_certificate(&ask(&secured, Offer::Opaque, &server).await.unwrap_err()));
}

#[tokio::test]
async fn a_client_shows_the_certificate_of_its_namespace() {
    let world = World::new();
    let clients = Authority::new();
    let server = world.server(&["db.example"], &[], Some(&clients));
    let secured = world.originator(simple("db.example")).secure(world.start, None, "web").await.unwrap();
    assert!(ask(&secured, Offer::Opaque, &server).await.is_err(), "without one it is refused");
    let (certificate, key) = clients.sign(&["client"], ExtendedKeyUsagePurpose::ClientAuth);
    put(&world.own(), &[("tls.crt", &certificate), ("tls.key", &key)]);
    let by_name = Origination { client: Some(ClientCertificate::Credential("c".into())), ..simple("db.example") };
    let files = |directory: &Path| ClientCertificate::Files {
        certificate: text(&directory.join("tls.crt")),
        key: text(&directory.join("tls.key")),
    };
    let by_files = Origination { client: Some(files(&world.own())), ..simple("db.example") };
    for settings in [&by_name, &by_files] {
        let secured = world.originator(settings.clone()).secure(world.start, None, "web").await.unwrap();
        assert_eq!(ask(&secured, Offer::Opaque, &server).await, Ok((false, false)));
    }
    // What is another namespace's, or the agent's own, is not to be had, by whatever way it is written.
    let theirs = world.directory.path().join("away/c");
    put(&theirs, &[("tls.crt", &certificate), ("tls.key", &key)]);
    std::os::unix::fs::symlink(&theirs, world.directory.path().join("shop/link")).unwrap();
    for directory in [theirs, world.directory.path().join("shop/../away/c"), world.directory.path().join("shop/link")] {
        let settings = Origination { client: Some(files(&directory)), ..simple("db.example") };
        let outcome = world.originator(settings).secure(world.start, None, "web").await.unwrap_err();
        assert!(outcome.to_string().contains("is not below"), "{outcome}");
    }
}

#[tokio::test]
async fn files_are_read_again_when_they_change() {
    let world = World::new();
    let originator = world.originator(simple("db.example"));
    let secure = async |after: Duration| originator.secure(world.start + after, None, "web").await;
    let first = secure(Duration::ZERO).await.unwrap().key();
    assert_eq!(secure(LOOK * 3).await.unwrap().key(), first, "as long as they are the same");
    put(&world.own(), &[("ca.crt", &(Authority::new().pem + "\n"))]);
    let second = secure(LOOK * 6).await.unwrap().key();
    assert_ne!(second, first, "connections by the old roots serve nobody any more");
    std::fs::remove_file(world.own().join("ca.crt")).unwrap();
    let outcome = secure(LOOK * 9).await.unwrap_err();
    assert!(outcome.to_string().contains("shop/c/ca.crt"), "{outcome}");
    assert_eq!(outcome.meaning().name, "upstream_tls_files");
    assert!(originator.problem().is_some());
    put(&world.own(), &[("ca.crt", "no certificate")]);
    assert!(secure(LOOK * 12).await.unwrap_err().to_string().contains("no certificate in PEM"));
    put(&world.own(), &[("ca.crt", &world.authority.pem)]);
    assert_ne!(secure(LOOK * 15).await.unwrap().key(), second);
    assert_eq!(originator.problem(), None);
}

#[tokio::test]
async fn http2_is_spoken_where_both_do() {
    let world = World::new();
    let originator = world.originator(simple("db.example"));
    let secured = originator.secure(world.start, None, "web").await.unwrap();
    let both = world.server(&["db.example"], &[b"h2", b"http/1.1"], None);
    let old = world.server(&["db.example"], &[b"http/1.1"], None);
    let silent = world.server(&["db.example"], &[], None);
    for (server, offer, http2) in [
        (&both, Offer::Either, Some(true)),
        (&both, Offer::Http1, Some(false)),
        (&old, Offer::Either, Some(false)),
        (&old, Offer::Http2, None),
        (&silent, Offer::Either, Some(false)),
        (&silent, Offer::Http2, Some(true)),
    ] {
        let asked = ask(&secured, offer, server).await;
        assert_eq!(asked.as_ref().ok().map(|(http2, _)| *http2), http2, "{offer:?} {asked:?}");
    }
    let offer = |after: Duration, http2, only| originator.offer(world.start + after, http2, only);
    assert_eq!(offer(Duration::ZERO, true, false), Offer::Either);
    originator.chose_http1(world.start);
    assert_eq!(offer(NO_HTTP2 / 2, true, false), Offer::Http1);
    assert_eq!(offer(NO_HTTP2 / 2, true, true), Offer::Http2);
    assert_eq!(offer(NO_HTTP2 * 2, true, false), Offer::Either);
    assert_eq!(offer(Duration::ZERO, false, true), Offer::Http1);
}

#[tokio::test]
async fn sessions_are_resumed() {
    let world = World::new();
    let originator = world.originator(simple("db.example"));
    let server = world.server(&["db.example"], &[], None);
    let mut resumed = Vec::new();
    for _ in 0..2 {
        let secured = originator.secure(world.start, None, "web").await.unwrap();
        resumed.push(ask(&secured, Offer::Opaque, &server).await.unwrap().1);
    }
    assert_eq!(resumed, [false, true]);
    let other = world.originator(simple("db.example")).secure(world.start, None, "web").await.unwrap();
    assert_eq!(ask(&other, Offer::Opaque, &server).await.unwrap().1, false, "of this cluster, not of another");
}

#[test]
fn the_server_is_named_by_the_rule_the_request_or_the_service() {
    let unnamed = Origination::default();
    for (settings, authority, wanted) in [
        (&simple("rule.example"), Some("asked.example"), "rule.example"),
        (&unnamed, Some("asked.example:8443"), "asked.example"),
        (&unnamed, Some("asked.example."), "asked.example"),
        (&unnamed, Some("[fd00::1]:443"), "fd00::1"),
        (&unnamed, Some("10.1.2.3"), "10.1.2.3"),
        (&unnamed, Some(""), "web.shop.svc.cluster.local"),
        (&unnamed, None, "web.shop.svc.cluster.local"),
    ] {
        assert_eq!(server_name(settings, authority, "web.shop.svc.cluster.local"), wanted);
    }
}
