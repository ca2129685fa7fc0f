use std::sync::LazyLock;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256,
    RSA_PSS_SHA512,
};
use serde_json::json;

use super::*;
use crate::policy::Scope;
use crate::policy::request_authentication::{KeySource, TokenHeader};

const NOW: u64 = 1_700_000_000;

struct Keys {
    rsa: RsaKeyPair,
    p256: EcdsaKeyPair,
    p384: EcdsaKeyPair,
    ed: Ed25519KeyPair,
    jwks: Arc<Jwks>,
}

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

static KEYS: LazyLock<Keys> = LazyLock::new(|| {
    let rsa = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let p256 = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let p384 = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap();
    let ed = Ed25519KeyPair::generate().unwrap();
    let point = |key: &EcdsaKeyPair, curve: &str, kid: &str| {
        let bytes = &key.public_key().as_ref()[1..];
        let (x, y) = bytes.split_at(bytes.len() / 2);
        json!({"kty": "EC", "crv": curve, "kid": kid, "x": b64(x), "y": b64(y)})
    };
    let modulus = rsa.public_key().modulus().big_endian_without_leading_zero().to_vec();
    let exponent = rsa.public_key().exponent().big_endian_without_leading_zero().to_vec();
    let set = json!({"keys": [
        {"kty": "oct", "k": b64("secret"), "kid": "hmac"},
        {"kty": "RSA", "use": "enc", "n": b64(&modulus), "e": b64(&exponent), "kid": "enc"},
        {"kty": "RSA", "use": "sig", "n": b64(&modulus), "e": b64(&exponent), "kid": "rsa"},
        point(&p256, "P-256", "p256"),
        point(&p384, "P-384", "p384"),
        {"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "x": b64(ed.public_key()), "kid": "ed"},
    ]});
    let jwks = Arc::new(Jwks::parse(set.to_string().as_bytes()).unwrap());
    Keys { rsa, p256, p384, ed, jwks }
});

fn sign(header: Value, payload: &Value) -> String {
    let message = format!("{}.{}", b64(header.to_string()), b64(payload.to_string()));
    let random = SystemRandom::new();
    let bytes = message.as_bytes();
    let rsa = |padding| {
        let mut signature = vec![0; KEYS.rsa.public_modulus_len()];
        KEYS.rsa.sign(padding, &random, bytes, &mut signature).unwrap();
        signature
    };
    let signature = match header["alg"].as_str().unwrap() {
        "RS256" => rsa(&RSA_PKCS1_SHA256),
        "PS512" => rsa(&RSA_PSS_SHA512),
        "ES256" => KEYS.p256.sign(&random, bytes).unwrap().as_ref().to_vec(),
        "ES384" => KEYS.p384.sign(&random, bytes).unwrap().as_ref().to_vec(),
        "EdDSA" => KEYS.ed.sign(bytes).as_ref().to_vec(),
        "none" => vec![],
        _ => vec![0; 32],
    };
    format!("{message}.{}", b64(signature))
}

fn token(payload: Value) -> String {
    sign(json!({"alg": "EdDSA", "kid": "ed"}), &payload)
}

fn rule(issuer: &str) -> JwtRule {
    JwtRule {
        issuer: issuer.into(),
        audiences: vec![],
        keys: KeySource::Discovery,
        from_headers: vec![],
        from_params: vec![],
        from_cookies: vec![],
        forward_original: false,
        output_payload_header: None,
        output_claims: vec![],
        timeout: None,
    }
}

fn authenticator(rules: Vec<JwtRule>, refused: Option<&str>) -> Authenticator {
    let policy = RequestAuthentication {
        name: NamespacedName { namespace: "a".into(), name: "p".into() },
        created: None,
        scope: Scope::Namespace,
        rules: rules.into_iter().map(Arc::new).collect(),
        refused: refused.map(Arc::from),
    };
    let keys = |rule: &JwtRule| -> Arc<dyn KeyRing> {
        Arc::new(if *rule.issuer == *"keyless" { FixedKeys::Err("nobody asked".into()) } else { Ok(KEYS.jwks.clone()) })
    };
    Authenticator::new(&[Arc::new(policy)], keys).unwrap()
}

struct Lines(Vec<(&'static str, String)>);

impl Headers for Lines {
    fn each_value<'a>(&'a self, name: &str, each: &mut dyn FnMut(&'a [u8])) {
        self.0.iter().filter(|(known, _)| *known == name).for_each(|(_, value)| each(value.as_bytes()));
    }
}

fn bearer(token: &str) -> Lines {
    Lines(vec![("authorization", format!("Bearer {token}"))])
}

fn verify(rules: Vec<JwtRule>, token: &str) -> Result<Option<Verified>, JwtError> {
    authenticator(rules, None).verify(&bearer(token), None, NOW)
}

#[test]
fn each_algorithm_is_checked_by_its_own_keys() {
    let payload = json!({"iss": "i", "sub": "s"});
    for (algorithm, kid) in [("RS256", "rsa"), ("PS512", "rsa"), ("ES256", "p256"), ("ES384", "p384"), ("EdDSA", "ed")] {
        for header in [json!({"alg": algorithm, "kid": kid}), json!({"alg": algorithm}), json!({"alg": algorithm, "kid": "other"})] {
            let verified = verify(vec![rule("i")], &sign(header, &payload)).unwrap().unwrap();
            assert_eq!(verified.claims.principal(), Some("i/s"), "{algorithm}");
            assert_eq!((verified.place, verified.payload), (Place::Bearer, b64(payload.to_string())));
        }
        let wrong = sign(json!({"alg": algorithm, "kid": if kid == "rsa" { "ed" } else { "rsa" }}), &payload);
        assert!(matches!(verify(vec![rule("i")], &wrong), Err(JwtError::Signature(_))), "{algorithm} by a key of another type");
    }
    for algorithm in ["none", "HS256", "None", "ES512", ""] {
        let error = verify(vec![rule("i")], &sign(json!({"alg": algorithm}), &payload)).unwrap_err();
        assert_eq!(error.body(), "Jwt verification fails");
        assert!(matches!(error, JwtError::Algorithm(_)), "{algorithm}");
    }
}

#[test]
fn a_token_that_was_changed_is_not_believed() {
    let good = token(json!({"iss": "i", "sub": "s"}));
    let mut parts: Vec<String> = good.split('.').map(String::from).collect();
    parts[1] = b64(json!({"iss": "i", "sub": "root"}).to_string());
    assert!(matches!(verify(vec![rule("i")], &parts.join(".")), Err(JwtError::Signature(_))));
    for text in ["", "a", "a.b", "a.b.c", "a.b.c.d", "..", &format!("{good}="), &format!("{good}.x"), "e30.e30.", &good[..good.len() - 2]] {
        assert!(verify(vec![rule("i")], text).is_err(), "{text}");
    }
    let critical = sign(json!({"alg": "EdDSA", "crit": ["x"]}), &json!({"iss": "i"}));
    assert!(matches!(verify(vec![rule("i")], &critical), Err(JwtError::Malformed(_))));
    assert_eq!(verify(vec![rule("i")], &"a".repeat(MAX_TOKEN + 1)), Err(JwtError::TooLong));
}

#[test]
fn issuer_audience_and_times_are_checked() {
    let of =
        |payload: Value| verify(vec![JwtRule { audiences: vec!["a".into(), "b".into()], ..rule("i") }, rule("keyless")], &token(payload));
    let error = |payload: Value| of(payload).unwrap_err().body();
    assert!(of(json!({"iss": "i", "aud": "a", "exp": NOW + 1, "nbf": NOW})).is_ok());
    assert!(of(json!({"iss": "i", "aud": ["x", "b"]})).is_ok(), "times may be absent");
    assert!(of(json!({"iss": "i", "aud": "a", "exp": NOW - 59, "nbf": NOW + 60})).is_ok(), "clocks may differ");
    assert_eq!(error(json!({"iss": "i", "aud": "a", "exp": NOW - 60})), "Jwt is expired");
    assert_eq!(error(json!({"iss": "i", "aud": "a", "nbf": NOW + 61})), "Jwt not yet valid");
    assert_eq!(error(json!({"iss": "i", "aud": "c"})), "Audiences in Jwt are not allowed");
    assert_eq!(error(json!({"iss": "i"})), "Audiences in Jwt are not allowed");
    assert_eq!(error(json!({"iss": "i/", "aud": "a"})), "Jwt issuer is not configured");
    assert_eq!(error(json!({"sub": "s"})), "Jwt issuer is not configured");
    assert!(matches!(of(json!({"iss": "i", "aud": "a", "exp": "soon"})), Err(JwtError::Malformed(_))));
    assert!(matches!(of(json!({"iss": "keyless"})), Err(JwtError::NoKeys(..))));
}

#[test]
fn tokens_are_looked_for_where_their_rules_say() {
    let header = TokenHeader { name: "x-token".into(), prefix: "JWT ".into() };
    let spelt = TokenHeader { name: "authorization".into(), prefix: "Bearer ".into() };
    let rules = vec![
        rule("i"),
        JwtRule { from_headers: vec![header, spelt], from_params: vec!["t".into()], from_cookies: vec!["c".into()], ..rule("j") },
    ];
    let all = authenticator(rules, None);
    let (i, j) = (token(json!({"iss": "i", "sub": "s"})), token(json!({"iss": "j", "sub": "s"})));
    let issuer = |lines: Vec<(&'static str, String)>, query: Option<String>| {
        let found = all.verify(&Lines(lines), query.as_deref().map(str::as_bytes), NOW);
        found.map(|verified| verified.map(|verified| verified.claims.issuer().unwrap().to_owned()))
    };
    let is = |issuer: &str| Ok(Some(issuer.to_owned()));
    assert_eq!(issuer(vec![], None), Ok(None));
    assert_eq!(issuer(vec![("authorization", "Basic YTpi".into())], Some("a=b".into())), Ok(None));
    assert_eq!(issuer(vec![("authorization", format!("bearer {i}"))], None), is("i"));
    assert_eq!(issuer(vec![("authorization", format!("Bearer {j}"))], None), is("j"));
    assert_eq!(issuer(vec![("x-token", format!("JWT {j}"))], None), is("j"));
    assert_eq!(issuer(vec![("x-token", j.clone())], None), Ok(None));
    assert_eq!(issuer(vec![("cookie", format!("a=b; c={j}"))], None), is("j"));
    assert_eq!(issuer(vec![], Some(format!("a=b&%74={}", j.replace('.', "%2E")))), is("j"));
    assert_eq!(issuer(vec![], Some(format!("access_token={i}"))), is("i"));
    assert!(matches!(issuer(vec![("x-token", format!("JWT {i}"))], None), Err(JwtError::UnknownIssuer(_))), "not where its rule looks");
    let both = vec![("authorization", format!("Bearer {i}")), ("x-token", "JWT bad".into())];
    assert!(issuer(both, None).is_err(), "a bad one beside a good one");
    assert_eq!(issuer(vec![("authorization", format!("Bearer {i}")); MAX_TOKENS + 1], None), Err(JwtError::TooMany));
}

#[test]
fn what_is_not_understood_believes_no_token() {
    let refused = authenticator(vec![rule("i")], Some("why"));
    assert_eq!(refused.verify(&Lines(vec![]), None, NOW), Ok(None));
    let error = refused.verify(&bearer(&token(json!({"iss": "i"}))), None, NOW).unwrap_err();
    assert!(matches!(error, JwtError::Refused(_)));
    assert!(Authenticator::new(&[], |_| Arc::new(FixedKeys::Err("none".into()))).is_none());
}

#[test]
fn keys_that_cannot_be_used_are_left_out() {
    assert_eq!(KEYS.jwks.skipped().len(), 2, "{:?}", KEYS.jwks.skipped());
    for set in [
        "",
        "[]",
        "{}",
        r#"{"keys": []}"#,
        r#"{"keys": [{"kty": "oct", "k": "AA"}]}"#,
        r#"{"keys": [{"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}]}"#,
    ] {
        assert!(Jwks::parse(set.as_bytes()).is_err(), "{set}");
    }
    let small = json!({"keys": [{"kty": "RSA", "n": b64([0xff; 128]), "e": "AQAB"}]});
    assert!(matches!(Jwks::parse(small.to_string().as_bytes()), Err(JwksError::NoKey(_))));
    let wrong = json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "alg": "HS256", "x": b64([1; 32])}]});
    assert!(Jwks::parse(wrong.to_string().as_bytes()).is_err());
}

#[test]
fn what_is_no_key_set_is_refused_without_its_content() {
    for text in ["secret", r#"{"keys": "secret"}"#, r#""secret""#] {
        let error = Jwks::parse(text.as_bytes()).unwrap_err();
        assert!(matches!(error, JwksError::Malformed(_)) && !error.to_string().contains("secret"), "{error}");
    }
}

#[test]
fn a_reduced_set_has_the_same_keys_and_nothing_else() {
    let x = b64([7; 32]);
    let key = |kid: &str| json!({"kty": "OKP", "crv": "Ed25519", "x": x, "kid": kid, "d": "private", "x5c": ["certificate"]});
    let set = |more: Value| json!({"keys": [key("a"), {"kty": "oct", "k": "secret"}, key("b")], "more": more}).to_string();
    let reduced = reduce(set(json!(1)).as_bytes()).unwrap();
    assert_eq!(reduced, reduce(set(json!(2)).as_bytes()).unwrap());
    assert!(["private", "certificate", "secret", "more"].iter().all(|word| !reduced.contains(word)), "{reduced}");
    assert_eq!(Jwks::parse(reduced.as_bytes()).map(|jwks| (jwks.len(), jwks.skipped().len())), Ok((2, 0)));
    assert_eq!(reduce(reduced.as_bytes()).as_ref(), Ok(&reduced));
    assert!(matches!(reduce(br#"{"keys": [{"kty": "oct"}]}"#), Err(JwksError::NoKey(_))));
    assert_eq!(reduce(&vec![b' '; MAX_JWKS + 1]), Err(JwksError::TooLong));
    let long = json!({"keys": [key(&"k".repeat(MAX_REDUCED))]}).to_string();
    assert_eq!(reduce(long.as_bytes()), Err(JwksError::TooMuch));
}

#[test]
fn the_samples_token_is_believed_by_the_samples_keys() {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/samples/http");
    let text = std::fs::read_to_string(directory.join("tokens.yaml")).unwrap();
    let parsed = crate::document::parse_documents(&directory, &text);
    let policy = parsed.documents.iter().find_map(|document| match &document.reading {
        crate::convert::Reading::Good(crate::object::Object::RequestAuthentication(policy)) => Some(policy.clone()),
        _ => None,
    });
    let keys = |rule: &JwtRule| -> Arc<dyn KeyRing> {
        let KeySource::Inline(text) = &rule.keys else { panic!("{rule:?}") };
        Arc::new(FixedKeys::Ok(Arc::new(Jwks::parse(text.as_bytes()).unwrap())))
    };
    let token = std::fs::read_to_string(directory.join("token.jwt")).unwrap();
    let verified = Authenticator::new(&[policy.unwrap()], keys).unwrap().verify(&bearer(token.trim()), None, NOW).unwrap().unwrap();
    assert_eq!(&*verified.rule.issuer, "hello.example");
}
