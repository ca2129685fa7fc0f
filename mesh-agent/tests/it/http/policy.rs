//! Policy by what a request shows, enforced at the server's agent.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mesh_lab::manifests::authorization_policy;

use super::*;

fn pod_url(pod: &str, path: &str) -> String {
    format!("http://{}{path}", at(&HTTP.pod(pod), 8080))
}

#[test]
fn requests_are_judged_each_across_nodes_and_within_one() {
    let allow = json!([{ "to": [{ "operation": { "methods": ["GET"], "paths": ["/public/*", "/items/{*}"] } }] }]);
    let deny = json!([{ "to": [{ "operation": { "paths": ["/public/secret*"] } }] }]);
    let dry = json!([{ "when": [{ "key": "request.headers[x-dry]", "values": ["yes"] }] }]);
    let objects: Vec<Value> = ["guarded", "neighbour"]
        .iter()
        .flat_map(|app| {
            let mut dry = authorization_policy("shop", &format!("dry-{app}"), &[("app", app)], "DENY", &dry);
            dry["metadata"]["annotations"] = json!({ "nodemesh.dev/dry-run": "true" });
            [
                authorization_policy("shop", &format!("allow-{app}"), &[("app", app)], "ALLOW", &allow),
                authorization_policy("shop", &format!("deny-{app}"), &[("app", app)], "DENY", &deny),
                dry,
            ]
        })
        .collect();
    HTTP.apply("policy-http", &objects);
    let client = HTTP.pod("client");
    for server in ["guarded", "neighbour"] {
        for version in ["--http1.1", "--http2-prior-knowledge"] {
            let ask =
                |path: &str, more: &[&str]| client.curl(&[&[version, "--path-as-is", &pod_url(server, path)], more].concat()).unwrap();
            for (path, more, status, target) in [
                ("/public/a?b=c", &[][..], 200, "/public/a?b=c"),
                ("/items/7", &[], 200, "/items/7"),
                ("/items/7/price", &[], 403, ""),
                ("/public/a", &["-X", "POST"], 403, ""),
                ("/other", &[], 403, ""),
                ("/public/secrets", &[], 403, ""),
                // Other spellings of what is denied.
                ("/public/./secret", &[], 403, ""),
                ("/public//secret", &[], 403, ""),
                ("/public/%73ecret", &[], 403, ""),
                ("/public/x/../secret", &[], 403, ""),
                ("/public/..%2Fother", &[], 400, ""),
                ("/public/%00", &[], 400, ""),
                ("/public/%zz", &[], 400, ""),
                // What was judged is what is forwarded.
                ("/public/x/../y", &[], 200, "/public/y"),
            ] {
                let answer = ask(path, more);
                assert_eq!(answer.status, status, "{server} {version} {path} {more:?}: {answer:?}");
                match status {
                    200 => assert_eq!(answer.seen().target, target, "{answer:?}"),
                    403 => assert_eq!(answer.body, "RBAC: access denied"),
                    _ => {}
                }
            }
        }
        let node = if server == "guarded" { "n2" } else { "n1" };
        let denied = [("direction", "inbound"), ("path", "/public/secrets"), ("status", "403"), ("outcome", "policy_deny")];
        let line = HTTP.access(node, &denied[..3]);
        assert_eq!((text(&line, "policy"), text(&line, "flags")), (format!("shop/deny-{server}").as_str(), "DENY"), "{line}");
        let answer = client.curl(&["-H", "X-Dry: yes", &pod_url(server, "/public/dry")]).unwrap();
        assert_eq!(answer.status, 200);
        let line = HTTP.access(node, &[("direction", "inbound"), ("path", "/public/dry")]);
        assert_eq!(text(&line, "dry_run"), format!("shop/dry-{server}"), "{line}");
        let labels = [("reporter", "destination"), ("destination_workload", server), ("response_code", "403"), ("response_flags", "DENY")];
        assert!(HTTP.sum(node, "istio_requests_total", &labels) > 0.0, "{}", HTTP.lines(node, "istio_requests_total"));
    }
    // A client outside the mesh is judged alike, and what is no HTTP no ALLOW rule about HTTP allows.
    let stranger = HTTP.pod("stranger");
    assert_eq!(stranger.curl(&[&pod_url("guarded", "/public/a")]).unwrap().status, 200);
    assert_eq!(stranger.curl(&[&pod_url("guarded", "/other")]).unwrap().status, 403);
    for who in ["client", "stranger"] {
        let report = HTTP.pod(who).connect(at(&HTTP.pod("guarded"), 8080), "PING\r\n").unwrap();
        assert_eq!(report.received, "", "{who}: {report:?}");
    }
    // Requests of one connection are judged by what is in force when they come.
    let twice = |path: &str| client.curl(&[&pod_url("guarded", path)]).unwrap().status;
    assert_eq!(twice("/public/a"), 200);
    HTTP.withdraw("policy-http");
    assert_eq!(twice("/other"), 200);
}

/// A key of P-256 as JWKS under a name, and what it signs.
pub(super) struct Issuer(EcdsaKeyPair, &'static str);

impl Issuer {
    pub(super) fn new(key: &'static str) -> Issuer {
        Issuer(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(), key)
    }

    pub(super) fn jwks(&self) -> String {
        let point = self.0.public_key().as_ref();
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        json!({ "keys": [{ "kty": "EC", "crv": "P-256", "alg": "ES256", "kid": self.1, "x": encode(&point[1..33]), "y": encode(&point[33..65]) }] })
            .to_string()
    }

    pub(super) fn token(&self, claims: &Value) -> String {
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", encode(&json!({ "alg": "ES256", "kid": self.1 })), encode(claims));
        let signature = self.0.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }
}

#[test]
fn tokens_are_verified_and_policy_knows_whom_they_name() {
    let (issuer, other) = (Issuer::new("one"), Issuer::new("one"));
    let authentication = json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "RequestAuthentication",
        "metadata": { "namespace": "shop", "name": "tokens" },
        "spec": {
            "selector": { "matchLabels": { "app": "other" } },
            "jwtRules": [{
                "issuer": "https://issuer.example",
                "audiences": ["shop"],
                "jwks": issuer.jwks(),
                "outputClaimToHeaders": [{ "header": "x-group", "claim": "group" }],
            }],
        },
    });
    let rules = json!([
        { "from": [{ "source": { "requestPrincipals": ["https://issuer.example/alice"] } }], "to": [{ "operation": { "paths": ["/alice"] } }] },
        { "to": [{ "operation": { "paths": ["/open"] } }] },
        { "when": [{ "key": "request.auth.claims[group]", "values": ["admins"] }], "to": [{ "operation": { "paths": ["/admin"] } }] },
    ]);
    HTTP.apply("policy-tokens", &[authentication, authorization_policy("shop", "tokens", &[("app", "other")], "ALLOW", &rules)]);
    let claims = |subject: &str, more: Value| {
        let mut claims = json!({ "iss": "https://issuer.example", "sub": subject, "aud": "shop", "exp": 4_000_000_000_u64 });
        claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        claims
    };
    let client = HTTP.pod("client");
    let ask = |path: &str, token: Option<&str>| {
        let header = token.map(|token| format!("Authorization: Bearer {token}"));
        let words: Vec<&str> = header.iter().flat_map(|header| ["-H", header.as_str()]).collect();
        let url = pod_url("v3", path);
        client.curl(&[&["-H", "x-group: forged"], &words[..], &[&url]].concat()).unwrap()
    };
    let alice = issuer.token(&claims("alice", json!({ "group": "admins" })));
    let answer = ask("/alice", Some(&alice));
    assert_eq!(answer.status, 200, "{answer:?}");
    let seen = answer.seen();
    assert_eq!((seen.all("authorization"), seen.all("x-group")), (vec![], vec!["admins"]), "{seen:?}");
    assert_eq!(ask("/admin", Some(&alice)).status, 200);
    let open = ask("/open", None);
    assert_eq!((open.status, open.seen().all("x-group")), (200, vec![]), "what only the mesh may say is taken from a client");
    for (what, path, token, status) in [
        ("another subject", "/alice", Some(issuer.token(&claims("bob", json!({})))), 403),
        ("no group", "/admin", Some(issuer.token(&claims("bob", json!({})))), 403),
        ("no token", "/alice", None, 403),
        ("another key", "/open", Some(other.token(&claims("alice", json!({})))), 401),
        ("expired", "/open", Some(issuer.token(&claims("alice", json!({ "exp": 1 })))), 401),
        ("another audience", "/open", Some(issuer.token(&claims("alice", json!({ "aud": "bank" })))), 401),
        ("another issuer", "/open", Some(issuer.token(&claims("alice", json!({ "iss": "https://evil.example" })))), 401),
        ("no token at all", "/open", Some("garbage".to_owned()), 401),
    ] {
        let answer = ask(path, token.as_deref());
        assert_eq!(answer.status, status, "{what}: {answer:?}");
        assert_eq!(answer.header("www-authenticate").is_empty(), status != 401, "{what}: {answer:?}");
    }
    let line = HTTP.access("n2", &[("direction", "inbound"), ("status", "401"), ("outcome", "unauthenticated")]);
    assert!(!text(&line, "reason").is_empty(), "{line}");
    HTTP.withdraw("policy-tokens");
}
