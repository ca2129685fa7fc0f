//! Keys of issuers that mesh-control fetches: from a server beside it, with TLS and without, that this test plays.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mesh_lab::mesh::Metrics;
use mesh_lab::{Agent, Control, Pod, World, http_get, netns};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::PrivateKeyDer;

use super::policy::Issuer;
use super::*;

/// What the server has, by path; while it is away it ends every connection.
#[derive(Clone, Default)]
struct Web {
    pages: Arc<Mutex<HashMap<String, String>>>,
    away: Arc<AtomicBool>,
}

impl Web {
    /// Serves beside mesh-control, and returns the roots to trust.
    fn start(&self, world: &World) -> PathBuf {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec![world.control_address().to_string()]).unwrap().signed_by(&key, &ca).unwrap();
        let tls = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
            .unwrap();
        for (port, tls) in [(8443, Some(Arc::new(tls))), (8080, None)] {
            let listener = netns::within(&world.control_plane().netns, || TcpListener::bind(("0.0.0.0", port)).unwrap()).unwrap();
            let web = self.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming().map_while(Result::ok) {
                    if web.away.load(Ordering::Relaxed) {
                        continue;
                    }
                    let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
                    // A client that goes away is none of this test's.
                    let _ = match &tls {
                        Some(tls) => web.answer(StreamOwned::new(ServerConnection::new(tls.clone()).unwrap(), stream)),
                        None => web.answer(stream),
                    };
                }
            });
        }
        let roots = world.directory().join("issuer-roots.pem");
        std::fs::write(&roots, ca.pem()).unwrap();
        roots
    }

    fn answer(&self, stream: impl Read + Write) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        while stream.read_line(&mut line)? > 2 {}
        let page = self.pages.lock().unwrap().get(&path).cloned();
        let (status, body) = page.map_or(("404 Not Found", String::new()), |page| ("200 OK", page));
        let length = body.len();
        write!(stream.get_mut(), "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")?;
        stream.get_mut().flush()
    }

    fn put(&self, path: &str, page: &str) {
        self.pages.lock().unwrap().insert(path.to_owned(), page.to_owned());
    }
}

/// A token that the server of a pod was shown: the status, and what was said.
fn show(client: &Pod, server: &Pod, token: &str) -> (u16, String) {
    let header = format!("Authorization: Bearer {token}");
    let answer = client.curl(&["-H", &header, &format!("http://{}/", at(server, 8080))]).unwrap();
    (answer.status, answer.body)
}

fn wait_status(client: &Pod, server: &Pod, token: &str, wanted: u16) {
    let mut last = (0, String::new());
    let waited = wait_until("a token is judged otherwise", SOON, || {
        last = show(client, server, token);
        last.0 == wanted
    });
    assert!(waited.is_ok(), "{} answers {last:?}, not {wanted}", server.name());
}

fn control_metrics(world: &World) -> Metrics {
    Metrics::new(http_get(&world.control_plane().netns, "http://127.0.0.1:15014/metrics").unwrap().body)
}

fn claims(issuer: &str) -> Value {
    json!({ "iss": issuer, "sub": "alice", "exp": 4_000_000_000_u64 })
}

#[test]
fn keys_that_an_issuer_serves_are_fetched_followed_and_kept() {
    let mut ground = ground(
        "jwks",
        &[
            ("n1", PodSpec::new("shop", "client")),
            ("n1", PodSpec::new("shop", "near")),
            ("n2", PodSpec::new("shop", "far")),
            ("n2", PodSpec::new("shop", "caller")),
        ],
    );
    let web = Web::default();
    let roots = web.start(&ground.world);
    // One that comes back is the one that went.
    let state = format!("--state-dir={}", ground.world.directory().join("authority").display());
    ground.options.control_flags = vec![format!("--jwks-roots={}", roots.display()), "--jwks-refresh=1s".to_owned(), state];
    ground.options.agent_flags.push("--drain-time=10s".to_owned());
    let mut mesh = ground.start();
    let [client, near, far, caller] = ["client", "near", "far", "caller"].map(|name| mesh.pod(name));
    let _servers = [near.serve_http("near", 8080).unwrap(), far.serve_http("far", 8080).unwrap()];
    let ways = [(&client, &far), (&caller, &near)];
    let host = mesh.world.control_address();

    let (one, two, other) = (Issuer::new("one"), Issuer::new("two"), Issuer::new("other"));
    web.put("/keys", &one.jwks());
    web.put("/other", &other.jwks());
    let realm = format!("https://{host}:8443/realm");
    web.put(
        "/realm/.well-known/openid-configuration",
        &json!({ "issuer": realm, "jwks_uri": format!("https://{host}:8443/other") }).to_string(),
    );
    let authentication = json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "RequestAuthentication",
        "metadata": { "namespace": "shop", "name": "tokens" },
        "spec": { "jwtRules": [
            { "issuer": "tls", "jwksUri": format!("https://{host}:8443/keys") },
            { "issuer": "clear", "jwksUri": format!("http://{host}:8080/other") },
            { "issuer": realm },
            { "issuer": "away", "jwksUri": format!("https://{host}:8443/nothing") },
        ] },
    });
    mesh.apply("tokens", &[authentication]);
    let (tls, clear, discovered) = (one.token(&claims("tls")), other.token(&claims("clear")), other.token(&claims(&realm)));
    for (from, to) in ways {
        for token in [&tls, &clear, &discovered] {
            wait_status(from, to, token, 200);
        }
        let refused = [
            ("an issuer without keys", one.token(&claims("away")), "Jwks doesn't have key to match kid or alg from Jwt"),
            ("another issuer's key", other.token(&claims("tls")), "Jwt verification fails"),
            ("an unknown issuer", one.token(&claims("nobody")), "Jwt issuer is not configured"),
        ];
        for (what, token, body) in refused {
            assert_eq!(show(from, to, &token), (401, body.to_owned()), "{what}");
        }
    }
    let line = mesh.access("n2", &[("direction", "inbound"), ("outcome", "unauthenticated")]);
    assert!(line.to_string().contains("keys") || line.to_string().contains("issuer"), "{line}");
    let mut page = String::new();
    let told = wait_until("mesh-control says what is missing", SOON, || {
        page = mesh.admin("n2", "/jwks").to_string();
        page.contains("/nothing answered 404")
    });
    assert!(told.is_ok() && page.contains(&format!("{host}:8443/keys")), "{page}");
    assert_eq!(mesh.sum("n2", "nodemesh_jwks_sources", &[("state", "held")]), 3.0);
    assert_eq!(mesh.sum("n2", "nodemesh_jwks_sources", &[("state", "missing")]), 1.0);
    let metrics = control_metrics(&mesh.world);
    assert_eq!(metrics.sum("nodemesh_control_jwks_sources", &[("state", "fresh")]), 3.0);
    assert!(metrics.sum("nodemesh_control_jwks_fetches_total", &[("result", "status")]) > 0.0);

    // Keys are rotated.
    web.put("/keys", &two.jwks());
    let rotated = two.token(&claims("tls"));
    for (from, to) in ways {
        wait_status(from, to, &rotated, 200);
        assert_eq!(show(from, to, &tls).0, 401);
    }

    // An agent takes another's place: no good token is refused meanwhile.
    let newer = Agent::start_as(&mesh.world, &mesh.node("n2"), "agent-newer", &mesh.options).unwrap();
    let mut older = mesh.mesh.replace(newer).unwrap();
    let mut judged = Vec::new();
    let served = |mesh: &Cluster| mesh.agent("n2").log().contains("the agent before this one is relieved");
    wait_until("the newer agent serves", LIMIT, || {
        judged.push(show(&client, &far, &rotated).0);
        served(&mesh)
    })
    .unwrap_or_else(|error| panic!("{error}:\n{}", mesh.agent("n2").log()));
    judged.extend((0..10).map(|_| show(&client, &far, &rotated).0));
    assert!(judged.iter().all(|status| *status == 200), "{judged:?}");
    assert!(older.process.wait(LIMIT).unwrap().is_some_and(|status| status.success()), "{}", older.log());

    // The issuer is away, then mesh-control, then mesh-control is there anew and knows nothing: what was fetched stays in force.
    web.away.store(true, Ordering::Relaxed);
    wait_until("the fetches fail", SOON, || {
        control_metrics(&mesh.world).sum("nodemesh_control_jwks_sources", &[("state", "stale")]) == 3.0
    })
    .unwrap();
    let accepted = || ways.iter().all(|(from, to)| show(from, to, &rotated).0 == 200);
    assert!(accepted());
    mesh.mesh.control.take().unwrap().process.kill();
    assert!(accepted());
    mesh.mesh.control = Some(Control::start(&mesh.world, &mesh.options).unwrap());
    wait_until("the fetches fail", SOON, || {
        control_metrics(&mesh.world).sum("nodemesh_control_jwks_fetches_total", &[("result", "unreachable")]) > 2.0
    })
    .unwrap();
    assert!(accepted());
    // So it does in an agent that starts only now.
    let third = Agent::start_as(&mesh.world, &mesh.node("n2"), "agent-third", &mesh.options).unwrap();
    let mut second = mesh.mesh.replace(third).unwrap();
    wait_until("the third agent serves", LIMIT, || served(&mesh)).unwrap_or_else(|error| panic!("{error}:\n{}", mesh.agent("n2").log()));
    assert!(accepted(), "{}\n{}", mesh.admin("n2", "/jwks"), mesh.agent("n2").log());
    assert!(second.process.wait(LIMIT).unwrap().is_some_and(|status| status.success()), "{}", second.log());
    // It comes back with new keys.
    web.put("/keys", &one.jwks());
    web.away.store(false, Ordering::Relaxed);
    for (from, to) in ways {
        wait_status(from, to, &tls, 200);
    }
}
