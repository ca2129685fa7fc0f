use mesh_model::policy::request_authentication::KeyLocation;

use super::*;
use crate::agent::keys::{at_hand, left, take};
use crate::policy::KeyStore;
use crate::policy::keys::KeySet as Held;

const JWKS: &str = r#"{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}]}"#;

fn location() -> KeyLocation {
    KeyLocation::Jwks("https://a/keys".into())
}

/// A store with a slot that has keys, and the slot.
fn held() -> (KeyStore, Arc<Slot>) {
    let store = KeyStore::default();
    let slot = store.slot(&location());
    let set = KeySet { version: "7".into(), fetched_unix_ms: 1_700_000_000_000, jwks: JWKS.into() };
    let keys = vec![FetchedKeys { source: Some(source(slot.location())), outcome: Some(Outcome::Set(set)) }];
    assert!(take(std::slice::from_ref(&slot), FetchKeysResponse { keys }));
    (store, slot)
}

fn version(slot: &Slot) -> Option<String> {
    slot.set().map(|Held { version, .. }| version.to_string())
}

#[tokio::test(start_paused = true)]
async fn what_was_held_is_there_for_the_next_agent_unless_it_has_something_newer() {
    let directory = tempfile::tempdir().unwrap();
    let kept = Kept::of(directory.path());
    let (_store, slot) = held();
    kept.write(&[slot]).unwrap();
    let next = KeyStore::default();
    let (mine, other) = (next.slot(&location()), next.slot(&KeyLocation::Issuer("https://b".into())));
    mine.fail("the issuer is away", true);
    at_hand(&next, left(&kept), Duration::from_secs(2)).await;
    assert_eq!((version(&mine).as_deref(), version(&other)), (Some("7"), None));
    mine.fill(Held { version: "8".into(), ..mine.set().unwrap() });
    at_hand(&next, left(&kept), Duration::from_secs(2)).await;
    assert_eq!(version(&mine).as_deref(), Some("8"), "what came meanwhile stays");
}

#[test]
fn what_is_old_broken_or_not_there_is_not_believed() {
    let directory = tempfile::tempdir().unwrap();
    let kept = Kept::of(directory.path());
    let now = SystemTime::now();
    let known = |now| kept.read(now).unwrap().keys.len();
    assert_eq!(known(now), 0);
    kept.confirm(now).unwrap();
    let (_store, slot) = held();
    kept.write(&[slot]).unwrap();
    assert_eq!((known(now + GOOD / 2), known(now + GOOD * 2)), (1, 0));
    kept.confirm(now + GOOD).unwrap();
    assert_eq!(known(now + GOOD * 3 / 2), 1, "mesh-control was heard of since");
    std::fs::write(directory.path().join("issuers.pb"), "?").unwrap();
    assert!(kept.read(now).is_err());
    assert_eq!(left(&kept).keys.len(), 0);
}
