//! Tokens of requests: nothing that is not signed by the issuer's key is believed, wherever it stands, and no key set breaks the parser.
//!
//! The input is lines: `Authorization`, the query, another header with tokens, cookies, and a key set.
#![no_main]
#![allow(clippy::unwrap_used)]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use mesh_model::jwt::{Authenticator, FixedKeys, Jwks, JwtError, MAX_TOKEN};
use mesh_model::policy::http::Headers;
use mesh_model::policy::request_authentication::{KeySource, TokenHeader};
use mesh_model::policy::{JwtRule, RequestAuthentication, Scope};
use mesh_model::service::NamespacedName;

/// Within the life of the token whose payload this is, the only one that was ever signed and has not expired.
const NOW: u64 = 1_700_000_000;
const PAYLOAD: &str =
    "eyJpc3MiOiJpc3N1ZXIuZXhhbXBsZSIsInN1YiI6ImFsaWNlIiwiYXVkIjpbInNob3AiXSwiZXhwIjoxODAwMDAwMDAwLCJzY29wZSI6InJlYWQgd3JpdGUifQ";
const KEYS: &str = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","alg":"EdDSA","kid":"ed","x":"_qLKkCUpetGBlIjP54QU8-DxCgRSpjWEiIJoUoHvie4"}]}"#;

static AUTHENTICATOR: LazyLock<Authenticator> = LazyLock::new(|| {
    let keys = Arc::new(Jwks::parse(KEYS.as_bytes()).unwrap());
    let rule = JwtRule {
        issuer: "issuer.example".into(),
        audiences: Vec::new(),
        keys: KeySource::Inline(KEYS.into()),
        from_headers: ["authorization", "x-token"].map(|name| TokenHeader { name: name.into(), prefix: "Bearer ".into() }).to_vec(),
        from_params: vec!["access_token".into()],
        from_cookies: vec!["session".into()],
        forward_original: false,
        output_payload_header: None,
        output_claims: Vec::new(),
        timeout: None,
    };
    let policy = RequestAuthentication {
        name: NamespacedName { namespace: "shop".into(), name: "tokens".into() },
        created: None,
        scope: Scope::Namespace,
        rules: vec![Arc::new(rule)],
        refused: None,
    };
    Authenticator::new(&[Arc::new(policy)], |_| Arc::new(FixedKeys::Ok(keys.clone()))).unwrap()
});

struct Lines<'l>([(&'static str, Option<&'l [u8]>); 3]);

impl Headers for Lines<'_> {
    fn each_value<'a>(&'a self, name: &str, each: &mut dyn FnMut(&'a [u8])) {
        self.0.iter().filter(|(known, _)| *known == name).filter_map(|(_, value)| *value).for_each(each);
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut lines = bytes.splitn(5, |byte| *byte == b'\n');
    let mut next = || lines.next().filter(|line| !line.is_empty());
    let (authorization, query, other, cookie, keys) = (next(), next(), next(), next(), next());
    let headers = Lines([("authorization", authorization), ("x-token", other), ("cookie", cookie)]);
    let bearer = authorization.and_then(|line| line.split_at_checked(7)).filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "));
    match AUTHENTICATOR.verify(&headers, query, NOW) {
        Ok(Some(verified)) => {
            assert_eq!(verified.payload, PAYLOAD);
            assert_eq!(verified.claims.payload().get("sub").and_then(|subject| subject.as_str()), Some("alice"));
        }
        // A token that is there is good, or the request is refused.
        Ok(None) => assert!(bearer.is_none_or(|(_, token)| token.trim_ascii().is_empty()), "a token is overlooked"),
        Err(JwtError::TooLong) => assert!(bytes.len() > MAX_TOKEN),
        Err(error) => assert!(!error.body().is_empty() && !error.to_string().is_empty()),
    }
    if let Some(Ok(keys)) = keys.map(Jwks::parse) {
        assert!(keys.skipped().iter().all(|why| why.starts_with("keys[")));
    }
});
