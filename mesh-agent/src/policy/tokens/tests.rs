use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mesh_model::policy::Scope;
use mesh_model::service::NamespacedName;
use serde_json::json;

use super::*;
use crate::policy::KeyStore;
use crate::policy::keys::KeySet;

struct Issuer(Ed25519KeyPair);

impl Issuer {
    fn new() -> Issuer {
        Issuer(Ed25519KeyPair::generate().unwrap())
    }

    fn set(&self, version: &str) -> KeySet {
        let key = json!({ "kty": "OKP", "crv": "Ed25519", "x": URL_SAFE_NO_PAD.encode(self.0.public_key()) });
        let jwks = Jwks::parse(json!({ "keys": [key] }).to_string().as_bytes()).unwrap();
        KeySet { version: version.into(), fetched: std::time::UNIX_EPOCH, jwks: Arc::new(jwks), text: "".into() }
    }

    fn request(&self) -> Parts {
        let encode = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", encode(json!({ "alg": "EdDSA" })), encode(json!({ "iss": "https://i", "sub": "alice" })));
        let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(self.0.sign(signed.as_bytes())));
        http::Request::get("/").header(AUTHORIZATION, format!("Bearer {token}")).body(()).unwrap().into_parts().0
    }
}

fn discovered() -> Tokens {
    let rule = JwtRule {
        issuer: "https://i".into(),
        audiences: Vec::new(),
        keys: KeySource::Discovery,
        from_headers: Vec::new(),
        from_params: Vec::new(),
        from_cookies: Vec::new(),
        forward_original: false,
        output_payload_header: None,
        output_claims: Vec::new(),
        timeout: None,
    };
    let name = NamespacedName { namespace: "a".into(), name: "p".into() };
    let policy = RequestAuthentication { name, created: None, scope: Scope::Namespace, rules: vec![Arc::new(rule)], refused: None };
    Tokens::of(vec![Arc::new(policy)]).unwrap()
}

/// Why a request's token is not believed, for the log and for the client.
fn refusal(tokens: &Tokens, mut request: Parts) -> Option<(String, &'static str)> {
    match tokens.judge(&mut request, 1_800_000_000).map_err(|denial| denial.reason) {
        Ok(believed) => {
            assert!(believed.claims().is_some());
            None
        }
        Err(DenialReason::Token(error)) => Some((error.to_string(), error.body())),
        Err(other) => panic!("{other:?}"),
    }
}

#[test]
fn tokens_are_judged_by_the_keys_that_are_there_when_they_come() {
    let store = KeyStore::default();
    let (one, two) = (Issuer::new(), Issuer::new());
    let without = refusal(&discovered(), one.request()).unwrap();
    assert!(without.0.contains("is not asked for them"), "{without:?}");
    let tokens = discovered().keyed(&|location| store.slot(location));
    let slot = store.find(&KeyLocation::Issuer("https://i".into())).expect("it is asked for at once");
    let (why, body) = refusal(&tokens, one.request()).unwrap();
    assert!(why.contains("has not given them yet"), "{why}");
    assert_eq!(body, "Jwks doesn't have key to match kid or alg from Jwt");
    slot.fail("404", true);
    assert!(refusal(&tokens, one.request()).unwrap().0.ends_with("are not there: 404"));
    slot.fill(one.set("1"));
    assert_eq!(refusal(&tokens, one.request()), None);
    assert!(refusal(&tokens, two.request()).is_some());
    slot.fill(two.set("2"));
    assert_eq!(refusal(&tokens, two.request()), None);
    assert!(refusal(&tokens, one.request()).is_some());
    // A configuration in which nothing else changes finds the keys there.
    drop(slot);
    assert_eq!(refusal(&discovered().keyed(&|location| store.slot(location)), two.request()), None);
}
