//! Who is believed: each wrong certificate on either side, what each side is told, and that others are served meanwhile.

use std::sync::Arc;
use std::time::SystemTime;

use mesh_model::identity::Identity;
use rcgen::ExtendedKeyUsagePurpose;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, ClientConfig, RootCertStore};
use time::{Duration, OffsetDateTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::spawn_local;
use webpki::KeyUsage;

use super::world::*;
use crate::conn::Meter;
use crate::outcome::{HandshakeFailure, Outcome};
use crate::tunnel::server::ServeError;
use crate::tunnel::trust::{Proof, Trust};
use crate::tunnel::verify::VerifyError;
use crate::tunnel::{Credentials, CredentialsUnavailable, HandshakeError, Settings, TunnelError};

/// Dials with `client` credentials a server with `server` credentials; what each side says.
async fn meet(
    client: Arc<Credentials>,
    server: Arc<Credentials>,
    expected: &[Identity],
    settings: Settings,
) -> (TunnelError, HandshakeError) {
    let app = App::at(echo().await);
    let agent = Agent::start(&app, server, Settings::default()).await;
    let client = Client::new(agent.address, client, expected, settings);
    let (answer, end) = client.dial().await.exchange(b"secret").await;
    assert!(answer.is_empty());
    assert!(app.asked().is_empty(), "nobody may be asked for a peer that is not believed");
    let served = match agent.first_result().await {
        Err(ServeError::Handshake(error)) => error,
        other => panic!("{other:?}"),
    };
    assert_eq!(agent.counters.server.failures().map(|(_, count)| count).sum::<u64>(), 1, "{end:?}");
    assert_eq!(agent.counters.server.handshakes.get(), 0);
    (end.unwrap_err(), served)
}

fn alert(error: &TunnelError) -> AlertDescription {
    match error {
        TunnelError::Handshake(HandshakeError::Alert { alert }) => *alert,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_client_whose_certificate_is_wrong_is_told_why() {
    for settings in protocols() {
        run(async {
            let ca = Ca::new();
            let now = OffsetDateTime::now_utc();
            let server = ca.credentials(&bob());
            let cases = [
                (
                    Leaf { not_after: now - Duration::minutes(1), ..Leaf::of(&alice()) },
                    VerifyError::Expired,
                    AlertDescription::CertificateExpired,
                    HandshakeFailure::PeerCertificateTime,
                ),
                (
                    Leaf { not_before: now + Duration::minutes(10), ..Leaf::of(&alice()) },
                    VerifyError::NotYetValid,
                    AlertDescription::CertificateExpired,
                    HandshakeFailure::PeerCertificateTime,
                ),
                (
                    Leaf { self_signed: true, ..Leaf::of(&alice()) },
                    VerifyError::UnknownIssuer,
                    AlertDescription::UnknownCA,
                    HandshakeFailure::PeerCertificateUntrusted,
                ),
                (
                    Leaf { usages: vec![ExtendedKeyUsagePurpose::ServerAuth], ..Leaf::of(&alice()) },
                    VerifyError::Purpose,
                    AlertDescription::UnsupportedCertificate,
                    HandshakeFailure::PeerCertificateUntrusted,
                ),
                (
                    Leaf::of(&identity("evil.example/ns/shop/sa/alice")),
                    VerifyError::TrustDomain { found: identity("evil.example/ns/shop/sa/alice"), accepted: "cluster.local".into() },
                    AlertDescription::CertificateUnknown,
                    HandshakeFailure::TrustDomain,
                ),
            ];
            for (leaf, expected, told, kind) in cases {
                // The client's own pool would not use a certificate that it knows to be expired.
                let not_after = leaf.not_after;
                let credentials = Arc::new(Credentials::new(ca.key(&leaf), ca.roots(), &[]).unwrap());
                if not_after < now {
                    let (_, served) = raw_client(&ca, &leaf, server.clone()).await;
                    assert_eq!(served, HandshakeError::Peer(expected));
                    continue;
                }
                let (client, served) = meet(credentials, server.clone(), &[bob()], settings.clone()).await;
                assert_eq!(served, HandshakeError::Peer(expected.clone()));
                assert_eq!(served.failure(), kind);
                assert_eq!(alert(&client), told, "{expected:?}");
                assert!(
                    matches!(client.outcome(), Outcome::TunnelHandshakeFailed { failure: HandshakeFailure::OurCertificateRefused, .. }),
                    "{client:?}"
                );
            }
        });
    }
}

/// A client that shows what it is told to, without a pool's scruples.
async fn raw_client(ca: &Ca, leaf: &Leaf, server: Arc<Credentials>) -> (std::io::Result<()>, HandshakeError) {
    let app = App::at(echo().await);
    let agent = Agent::start(&app, server, Settings::default()).await;
    let config = ClientConfig::builder_with_provider(crate::tunnel::tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(crate::tunnel::verify::PeerVerifier::new(
            ca.roots(),
            crate::tunnel::tls::provider().signature_verification_algorithms,
            crate::tunnel::verify::Acceptable::Identities([bob()].into()),
        ))
        .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(ca.key(leaf))));
    let tcp = TcpStream::connect(agent.address.0).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let result = connector.connect(ServerName::from(agent.address.0.ip()), tcp).await.map(drop);
    match agent.first_result().await {
        Err(ServeError::Handshake(error)) => (result, error),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    run(async {
        let ca = Ca::new();
        let app = App::at(echo().await);
        let agent = Agent::start(&app, ca.credentials(&bob()), Settings::default()).await;
        let config = ClientConfig::builder_with_provider(crate::tunnel::tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(crate::tunnel::verify::PeerVerifier::new(
                ca.roots(),
                crate::tunnel::tls::provider().signature_verification_algorithms,
                crate::tunnel::verify::Acceptable::Identities([bob()].into()),
            ))
            .with_no_client_auth();
        let tcp = TcpStream::connect(agent.address.0).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let mut stream = connector.connect(ServerName::from(agent.address.0.ip()), tcp).await.unwrap();
        let error = tokio::io::AsyncReadExt::read(&mut stream, &mut [0; 1]).await.unwrap_err();
        assert!(error.to_string().contains("CertificateRequired"), "{error}");
        assert_eq!(agent.first_result().await, Err(ServeError::Handshake(HandshakeError::Peer(VerifyError::Missing))));
        assert_eq!(HandshakeError::Peer(VerifyError::Missing).failure(), HandshakeFailure::NoPeerCertificate);
    });
}

#[test]
fn a_server_whose_certificate_is_wrong_is_not_spoken_to() {
    for settings in protocols() {
        run(async {
            let ca = Ca::new();
            let now = OffsetDateTime::now_utc();
            let cases = [
                (Leaf { not_after: now - Duration::minutes(1), ..Leaf::of(&bob()) }, VerifyError::Expired),
                (Leaf { not_before: now + Duration::minutes(10), ..Leaf::of(&bob()) }, VerifyError::NotYetValid),
                (Leaf { self_signed: true, ..Leaf::of(&bob()) }, VerifyError::UnknownIssuer),
                (Leaf { usages: vec![ExtendedKeyUsagePurpose::ClientAuth], ..Leaf::of(&bob()) }, VerifyError::Purpose),
                (
                    Leaf::of(&identity("cluster.local/ns/shop/sa/mallory")),
                    VerifyError::Identity { found: identity("cluster.local/ns/shop/sa/mallory"), expected: bob().to_string().into() },
                ),
                (
                    Leaf::of(&identity("evil.example/ns/shop/sa/bob")),
                    VerifyError::Identity { found: identity("evil.example/ns/shop/sa/bob"), expected: bob().to_string().into() },
                ),
            ];
            for (leaf, expected) in cases {
                let (client, served) = meet(ca.credentials(&alice()), ca.credentials_of(&leaf), &[bob()], settings.clone()).await;
                assert_eq!(client, TunnelError::Handshake(HandshakeError::Peer(expected.clone())));
                assert!(matches!(served, HandshakeError::Alert { .. }), "{served:?}");
                assert!(client.to_string().contains(&expected.to_string()));
            }
        });
    }
}

#[test]
fn certificates_of_another_root_are_refused_on_both_sides() {
    run(async {
        let (ours, theirs) = (Ca::new(), Ca::new());
        let (client, served) = meet(ours.credentials(&alice()), theirs.credentials(&bob()), &[bob()], Settings::default()).await;
        assert_eq!(client, TunnelError::Handshake(HandshakeError::Peer(VerifyError::UnknownIssuer)));
        assert_eq!(served, HandshakeError::Alert { alert: AlertDescription::UnknownCA });
    });
}

#[test]
fn aliases_of_the_trust_domain_are_accepted() {
    for settings in protocols() {
        run(async {
            let ca = Ca::new();
            let app = App::at(echo().await);
            let agent = Agent::start(&app, ca.credentials_with(&bob(), &["old.example"]), Settings::default()).await;
            let friend = identity("old.example/ns/shop/sa/alice");
            let client = Client::new(agent.address, ca.credentials(&friend), &[identity("cluster.local/ns/x/sa/y"), bob()], settings);
            let (answer, _) = client.dial().await.exchange(b"hi").await;
            assert_eq!(answer, b"hi");
            assert_eq!(app.asked()[0].peer, friend);
        });
    }
}

#[test]
fn a_certificate_with_no_or_several_identities_is_refused() {
    let ca = Ca::new();
    let several = Leaf { uris: vec![alice().to_string(), bob().to_string()], ..Leaf::of(&alice()) };
    let none = Leaf { uris: vec![], ..Leaf::of(&alice()) };
    let strange = Leaf { uris: vec!["https://cluster.local/ns/a/sa/b".into()], ..Leaf::of(&alice()) };
    for leaf in [several, none, strange] {
        let error = Credentials::new(ca.key(&leaf), ca.roots(), &[]).unwrap_err();
        assert!(error.to_string().contains("names no identity"), "{error}");
        run(async {
            let (_, served) = raw_client(&ca, &leaf, ca.credentials(&bob())).await;
            assert!(matches!(served, HandshakeError::Peer(VerifyError::NoIdentity(_))), "{served:?}");
        });
    }
}

#[test]
fn nothing_is_dialled_without_a_valid_certificate_of_our_own() {
    run(async {
        let (_app, _agent, client) = two(echo().await, Settings::default()).await;
        let (answer, _) = client.dial().await.exchange(b"hi").await;
        assert_eq!(answer, b"hi");
        *client.credentials.borrow_mut() = Err(crate::tunnel::CredentialsUnavailable("the authority is away".into()));
        let (_, end) = client.dial().await.exchange(b"hi").await;
        assert!(matches!(end.unwrap_err().outcome(), Outcome::NoCertificate { .. }));
        assert_eq!(client.dials.get(), 1, "an open connection must not be used without a certificate");
        let ca = Ca::new();
        let expired = Leaf { not_after: OffsetDateTime::now_utc() - Duration::seconds(1), ..Leaf::of(&alice()) };
        *client.credentials.borrow_mut() = Ok(ca.credentials_of(&expired));
        let (_, end) = client.dial().await.exchange(b"hi").await;
        assert!(matches!(end.unwrap_err(), TunnelError::Credentials(_)));
    });
}

#[test]
fn trust_ends_with_the_first_certificate_and_with_its_roots() {
    let ca = Ca::new();
    let (now, seconds) = (SystemTime::now(), std::time::Duration::from_secs);
    let own = ca.credentials(&alice());
    let renewed = ca.credentials(&alice());
    // Its own certificate is valid for an hour.
    for (peer, good, over) in [(60, 59, 60), (7200, 3500, 3600)] {
        let not_after = OffsetDateTime::from(now) + Duration::seconds(peer);
        let chain = &ca.key(&Leaf { not_after, ..Leaf::of(&bob()) }).cert;
        let (named, proof) = Proof::read(own.roots(), chain, KeyUsage::server_auth()).unwrap();
        assert_eq!(named, bob());
        let trust = Trust::new(&own, proof);
        assert!(trust.holds(&own, now + seconds(good)) && trust.holds(&renewed, now + seconds(good)), "{peer}");
        assert!(!trust.holds(&renewed, now + seconds(over)), "{peer}");
        assert!(!trust.holds(&Ca::new().credentials(&alice()), now), "another root is trusted now");
    }
}

#[test]
fn trust_outlives_the_roots_beside_its_own() {
    let (old, new, now) = (Ca::new(), Ca::new(), SystemTime::now());
    let both = old.roots_and(&new);
    let proof =
        |of: &Ca, roots: &Arc<RootCertStore>| Proof::read(roots, &of.key(&Leaf::of(&bob())).cert, KeyUsage::client_auth()).unwrap().1;
    // The steps of a rotation: another root is trusted too, and then it alone.
    let before = proof(&old, &old.roots());
    assert!(before.holds(&old.roots(), now) && before.holds(&both, now) && !before.holds(&new.roots(), now));
    let amid = [proof(&old, &both), proof(&new, &both)];
    assert!(amid.iter().all(|proof| proof.holds(&both, now)));
    assert!(!amid[0].holds(&new.roots(), now) && amid[1].holds(&new.roots(), now));
    assert!(amid[0].holds(&old.roots(), now), "the rotation is given up");
    let stranger = Ca::new().key(&Leaf::of(&bob()));
    assert!(matches!(Proof::read(&both, &stranger.cert, KeyUsage::client_auth()), Err(VerifyError::UnknownIssuer)));
}

#[test]
fn a_server_takes_nothing_more_from_a_peer_whose_root_it_trusts_no_more() {
    for settings in protocols() {
        run(async {
            let (old, new) = (Ca::new(), Ca::new());
            let both = old.roots_and(&new);
            let app = App::at(echo().await);
            let agent = Agent::start(&app, new.credentials_trusting(&bob(), &both), Settings::default()).await;
            // A client that goes on as it began: the certificate of the old root may be one that was stolen.
            let settings = Settings { warm: 0, ..settings };
            let client = Client::new(agent.address, old.credentials_trusting(&alice(), &both), &[bob()], settings);
            for dialled in 1..=2 {
                let (answer, _) = client.dial().await.exchange(b"hi").await;
                assert_eq!(
                    (answer.as_slice(), client.dials.get()),
                    (&b"hi"[..], 1),
                    "{dialled}: one connection serves one after the other"
                );
            }
            app.trust(Some(new.roots()));
            let (answer, end) = client.dial().await.exchange(b"hi").await;
            assert!(answer.is_empty() && end.is_err(), "{end:?}");
            assert_eq!(app.asked().len(), 2, "nobody may be asked for a peer that is not believed");
            app.trust(None);
            let (answer, _) = client.dial().await.exchange(b"hi").await;
            assert!(answer.is_empty(), "without a certificate nobody is believed");
        });
    }
}

#[test]
fn who_has_renewed_its_certificate_loses_nothing_when_the_old_root_goes() {
    for settings in protocols() {
        run(async {
            let (old, new) = (Ca::new(), Ca::new());
            let both = old.roots_and(&new);
            let app = App::at(echo().await);
            let agent = Agent::start(&app, new.credentials_trusting(&bob(), &both), Settings::default()).await;
            let settings = Settings { warm: 0, ..settings };
            let client = Client::new(agent.address, old.credentials_trusting(&alice(), &both), &[bob()], settings);
            assert_eq!(client.dial().await.exchange(b"hi").await.0, b"hi");
            // Its connection is of before; the server is the first to hear that the old root is gone.
            *client.credentials.borrow_mut() = Ok(new.credentials_trusting(&alice(), &both));
            app.trust(Some(new.roots()));
            let (answer, end) = client.dial().await.exchange(b"hi").await;
            assert_eq!((answer.as_slice(), client.dials.get()), (&b"hi"[..], 2), "{end:?}");
        });
    }
}

#[test]
fn an_open_stream_says_when_nothing_more_may_begin_on_it() {
    for settings in protocols() {
        run(async {
            let ca = Ca::new();
            let app = App::at(echo().await);
            let agent = Agent::start(&app, ca.credentials(&bob()), Settings::default()).await;
            let client = Client::new(agent.address, ca.credentials(&alice()), &[bob()], settings);
            let stream = client.pools.open(client.key.clone(), client.request()).await.unwrap();
            let validity = stream.validity();
            let (mut near, far) = pair().await;
            spawn_local(async move { stream.relay(far, &Meter::default(), std::future::pending()).await.map(drop) });
            let mut talks = async || {
                near.write_all(b"x").await.unwrap();
                near.read_exact(&mut [0; 1]).await.unwrap();
            };
            talks().await;
            assert!(validity.holds());
            *client.credentials.borrow_mut() = Ok(ca.credentials(&alice()));
            assert!(validity.holds(), "a renewal changes nothing before the old certificate's end");
            *client.credentials.borrow_mut() = Ok(Ca::new().credentials(&alice()));
            assert!(!validity.holds(), "another root is trusted now");
            *client.credentials.borrow_mut() = Err(CredentialsUnavailable("there is none".into()));
            assert!(!validity.holds(), "there is no certificate");
            // What is open already goes on.
            talks().await;
        });
    }
}

#[test]
fn what_an_open_stream_says_is_of_the_connection_that_carries_it() {
    run(async {
        let ca = Ca::new();
        let app = App::at(echo().await);
        let agent = Agent::start(&app, ca.credentials(&bob()), Settings::default()).await;
        let client = Client::new(agent.address, ca.credentials(&alice()), &[bob()], Settings { warm: 0, ..Settings::default() });
        client.dial().await.exchange(b"x").await.1.unwrap();
        let stream = client.pools.open(client.key.clone(), client.request()).await.unwrap();
        assert_eq!(client.dials.get(), 1, "the connection of before");
        // The peer goes away, and one with a certificate of another authority, which is trusted from now on, takes its place.
        agent.drain.cancel();
        agent.accepting.abort();
        tokio::task::yield_now().await;
        let next = Ca::new();
        let _agent = Agent::start_at(agent.address.0, &app, next.credentials(&bob()), Settings::default()).await;
        *client.credentials.borrow_mut() = Ok(next.credentials(&alice()));
        let validity = stream.validity();
        assert!(!validity.holds());
        let (mut near, far) = pair().await;
        spawn_local(async move { stream.relay(far, &Meter::default(), std::future::pending()).await.map(drop) });
        near.write_all(b"x").await.unwrap();
        near.read_exact(&mut [0; 1]).await.unwrap();
        assert_eq!(client.dials.get(), 2);
        assert!(validity.holds());
    });
}

#[test]
fn a_connection_that_is_no_longer_good_is_not_given_to_who_waits_for_one() {
    run(async {
        let (_app, _agent, client) = two(echo().await, Settings { warm: 0, ..Settings::default() }).await;
        let mut open = client.dial().await;
        open.app.write_all(b"x").await.unwrap();
        open.app.read_exact(&mut [0; 1]).await.unwrap();
        *client.credentials.borrow_mut() = Ok(Ca::new().credentials(&alice()));
        open.exchange(b"").await.1.unwrap();
        assert_eq!(client.pools.idle(), 0, "its stream ended in order, and it is closed");
    });
}
