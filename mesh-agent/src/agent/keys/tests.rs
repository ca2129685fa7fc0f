use super::*;
use mesh_proto::nodemesh::KeySet as KeySetWire;

const JWKS: &str = r#"{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}]}"#;

fn slots(store: &KeyStore) -> [Arc<Slot>; 2] {
    [store.slot(&KeyLocation::Jwks("https://a/keys".into())), store.slot(&KeyLocation::Issuer("https://b".into()))]
}

fn answer(of: &Slot, outcome: Outcome) -> FetchKeysResponse {
    FetchKeysResponse { keys: vec![FetchedKeys { source: Some(source(of.location())), outcome: Some(outcome) }] }
}

fn keys(version: &str, jwks: &str) -> Outcome {
    Outcome::Set(KeySetWire { version: version.into(), fetched_unix_ms: 1_700_000_000_123, jwks: jwks.into() })
}

#[test]
fn an_answer_fills_the_slots_and_the_next_call_says_what_is_there() {
    let store = KeyStore::default();
    let both = slots(&store);
    let [a, b] = &both;
    assert!(request(&both).known.iter().all(|known| known.version.is_empty() && known.failure.is_empty()));
    assert!(take(&both, answer(a, keys("1", JWKS))));
    assert!(take(&both, answer(b, Outcome::Failure("away".into()))));
    assert!(!take(&both, answer(b, Outcome::Failure("away".into()))));
    let request = request(&both);
    let said: Vec<_> = request.known.iter().map(|known| (&*known.version, known.fetched_unix_ms, &*known.failure)).collect();
    assert_eq!(said, [("1", 1_700_000_000_123, ""), ("", 0, "away")]);
    assert_eq!(request.known[1].source, Some(KeySource { source: Some(Source::Issuer("https://b".into())) }));
    assert!(take(&both, answer(a, keys("2", JWKS))));
    assert_eq!(a.set().map(|set| set.version.to_string()).as_deref(), Some("2"));
}

#[test]
fn what_is_of_no_use_or_was_not_asked_for_changes_nothing() {
    let store = KeyStore::default();
    let both = slots(&store);
    let [a, b] = &both;
    assert!(take(&both, answer(a, keys("1", JWKS))));
    assert!(!take(&both, answer(a, keys("2", "nonsense"))));
    assert_eq!(a.set().map(|set| set.version.to_string()).as_deref(), Some("1"));
    let only = [a.clone()];
    assert!(!take(&only, answer(b, keys("1", JWKS))));
    assert!(b.set().is_none());
    assert!(!take(&both, FetchKeysResponse { keys: vec![FetchedKeys::default()] }));
}
