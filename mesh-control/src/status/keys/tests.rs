use std::time::SystemTime;

use mesh_model::convert::{Provenance, Reading, convert_from};
use mesh_model::object::{Kind, Object};
use serde_json::{Value, json};

use super::super::conditions;
use super::*;
use crate::keys::KeySet;

fn object() -> Value {
    json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "RequestAuthentication",
        "metadata": { "name": "a", "namespace": "shop", "generation": 1 },
        "spec": { "jwtRules": [
            { "issuer": "a", "jwksUri": "https://a/keys" },
            { "issuer": "https://b" },
            { "issuer": "c", "jwks": "{\"keys\": [{}]}" },
        ] },
    })
}

fn policy() -> Arc<RequestAuthentication> {
    match convert_from(&object(), Provenance::ApiServer).reading {
        Reading::Good(Object::RequestAuthentication(policy)) => policy,
        other => panic!("{other:?}"),
    }
}

fn standing(set: bool, failure: Option<&str>) -> Standing {
    let keys = || Arc::new(KeySet { text: "".into(), version: "1".into(), keys: 1, fetched: SystemTime::UNIX_EPOCH });
    Standing { set: set.then(keys), failure: failure.map(Arc::from) }
}

fn said(a: Standing, b: Standing) -> (String, String, String) {
    let book = Book::from([(KeyLocation::Jwks("https://a/keys".into()), a), (KeyLocation::Issuer("https://b".into()), b)]);
    let patch = conditions::patch(Kind::RequestAuthentication, &object(), &found(&policy(), &book), SystemTime::UNIX_EPOCH).unwrap();
    let condition = &patch["status"]["conditions"][0];
    let text = |key: &str| condition[key].as_str().unwrap().to_owned();
    (text("status"), text("reason"), text("message"))
}

#[test]
fn a_condition_says_which_keys_are_not_there_and_why() {
    let (good, new) = (standing(true, None), standing(false, None));
    assert_eq!(said(good.clone(), new).1, "Reconciled");
    let (status, reason, message) = said(good.clone(), standing(false, Some("404")));
    assert_eq!((&*status, &*reason), ("False", "KeysMissing"));
    assert_eq!(
        message,
        "spec.jwtRules[1].issuer: the issuer's keys cannot be fetched: 404; no token of the issuer is believed until they can"
    );
    let (status, reason, message) = said(standing(true, Some("503")), good);
    assert_eq!((&*status, &*reason), ("True", "KeysStale"));
    assert!(message.starts_with("spec.jwtRules[0].jwksUri: ") && message.ends_with("stay in force"), "{message}");
    assert_eq!(said(standing(true, Some("503")), standing(false, Some("404"))).1, "KeysMissing");
}

#[test]
fn only_what_changes_a_condition_is_a_trouble() {
    let location = KeyLocation::Jwks("https://a/keys".into());
    let of = |standing: Standing| troubles(&Book::from([(location.clone(), standing)])).len();
    assert_eq!([standing(true, None), standing(false, None), standing(true, Some("x"))].map(of), [0, 0, 1]);
}
