use super::*;

const JWKS: &str = r#"{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}]}"#;

fn place(name: &str) -> KeyLocation {
    KeyLocation::Jwks(name.into())
}

fn set(version: &str) -> KeySet {
    KeySet { version: version.into(), fetched: UNIX_EPOCH, jwks: Arc::new(Jwks::parse(JWKS.as_bytes()).unwrap()), text: JWKS.into() }
}

#[test]
fn a_slot_lives_as_long_as_a_policy_has_it() {
    let store = KeyStore::default();
    let mut changes = store.changes();
    let held = store.slot(&place("a"));
    assert!(changes.has_changed().unwrap());
    changes.borrow_and_update();
    assert!(Arc::ptr_eq(&held, &store.slot(&place("a"))) && !changes.has_changed().unwrap());
    store.expect([place("a"), place("b")]);
    assert_eq!(store.slots().len(), 2);
    store.sweep();
    assert!(store.find(&place("a")).is_some() && store.find(&place("b")).is_none(), "nobody took up what was expected");
    drop(held);
    store.sweep();
    assert!(store.slots().is_empty());
}

#[test]
fn keys_stay_whatever_fails_later() {
    let slot = Slot::new(place("a"));
    let why = |slot: &Slot| slot.keys().unwrap_err().to_string();
    assert!(why(&slot).contains("not given them yet") && !slot.is_settled());
    assert!(slot.fail("unreachable", false) && !slot.fail("unreachable", false));
    assert_eq!((why(&slot).as_str(), slot.told(), slot.is_settled()), ("unreachable", None, false));
    assert!(slot.fail("404", true) && !slot.fail("404", true));
    assert_eq!((why(&slot).as_str(), slot.told().as_deref(), slot.is_settled()), ("404", Some("404"), true));
    assert!(!slot.fail("unreachable", false), "what mesh-control said says more");
    slot.fill(set("1"));
    assert_eq!((slot.keys().unwrap().len(), slot.told(), slot.is_settled()), (1, None, true));
    assert!(!slot.fail("404", true) && !slot.fail("unreachable", false));
    slot.fill(set("2"));
    assert_eq!(slot.set().map(|set| set.version.to_string()).as_deref(), Some("2"));
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_woken_once_everything_is_known() {
    let store = KeyStore::default();
    store.settled().await;
    let (a, b) = (store.slot(&place("a")), store.slot(&place("b")));
    let settled = store.settled();
    tokio::pin!(settled);
    a.fill(set("1"));
    store.tell();
    tokio::select! {
        biased;
        () = &mut settled => panic!("nothing is known of b"),
        () = std::future::ready(()) => {}
    }
    b.fail("away", true);
    store.tell();
    settled.await;
}
