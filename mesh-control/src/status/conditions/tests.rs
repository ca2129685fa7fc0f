use std::time::{Duration, UNIX_EPOCH};

use super::*;

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn found(severity: Severity, field: &str, message: &str) -> Found {
    Found { severity, field: field.into(), message: message.into(), reason: None }
}

fn object(status: Value) -> Value {
    json!({ "metadata": { "name": "a", "resourceVersion": "7", "generation": 3 }, "status": status })
}

fn applied(object: &Value, patch: &Value) -> Value {
    let mut object = object.clone();
    object["status"] = patch["status"].clone();
    object
}

#[test]
fn what_is_understood_is_said_once() {
    let object = object(Value::Null);
    let patch_ = patch(Kind::AuthorizationPolicy, &object, &[], now()).unwrap();
    assert_eq!(
        patch_,
        json!({
            "metadata": { "resourceVersion": "7" },
            "status": {
                "observedGeneration": 3,
                "conditions": [{
                    "type": "Reconciled", "status": "True", "reason": "Reconciled", "message": "understood in whole",
                    "lastTransitionTime": "2027-01-15T08:00:00Z", "observedGeneration": 3,
                }],
            },
        })
    );
    let told = applied(&object, &patch_);
    assert_eq!(patch(Kind::AuthorizationPolicy, &told, &[], now() + Duration::from_secs(9)), None);
    // The spec changes, and it is as well as before.
    let mut changed = told.clone();
    changed["metadata"]["generation"] = json!(4);
    let again = patch(Kind::AuthorizationPolicy, &changed, &[], now() + Duration::from_secs(9)).unwrap();
    assert_eq!(again["status"]["conditions"][0]["lastTransitionTime"], "2027-01-15T08:00:00Z");
    assert_eq!(again["status"]["observedGeneration"], 4);
}

#[test]
fn what_is_wrong_is_said_the_worst_first() {
    let all = [found(Severity::Warn, "spec.rules[1]", "is ignored"), found(Severity::Error, "spec.action", "is not known")];
    let patch_ = patch(Kind::Mesh, &object(Value::Null), &all, now()).unwrap();
    let condition = &patch_["status"]["conditions"][0];
    assert_eq!((&condition["type"], &condition["status"], &condition["reason"]), (&json!("Accepted"), &json!("False"), &json!("Invalid")));
    assert_eq!(condition["message"], "spec.action: is not known\nspec.rules[1]: is ignored");
    let only = patch(Kind::Mesh, &object(Value::Null), &all[..1], now()).unwrap();
    let condition = &only["status"]["conditions"][0];
    assert_eq!((&condition["status"], &condition["reason"]), (&json!("True"), &json!("PartiallyInvalid")));
}

#[test]
fn a_change_to_the_worse_has_its_time_and_conditions_of_others_stay() {
    let other = json!({ "type": "WaypointAccepted", "status": "True" });
    let own = json!({ "type": "Reconciled", "status": "True", "reason": "Reconciled", "message": "x", "lastTransitionTime": "2020-01-01T00:00:00Z" });
    let object = object(json!({ "conditions": [own, other], "validationMessages": [] }));
    let patch_ = patch(Kind::PeerAuthentication, &object, &[found(Severity::Error, "", "no")], now()).unwrap();
    let conditions = patch_["status"]["conditions"].as_array().unwrap();
    assert_eq!((conditions.len(), &conditions[0], &conditions[1]["lastTransitionTime"]), (2, &other, &json!("2027-01-15T08:00:00Z")));
    assert!(patch_["status"].get("validationMessages").is_none(), "a merge leaves it");
}

#[test]
fn a_definition_that_drops_the_generation_is_not_written_for_ever() {
    let object = object(Value::Null);
    let mut told = applied(&object, &patch(Kind::PeerAuthentication, &object, &[], now()).unwrap());
    told["status"].as_object_mut().unwrap().remove("observedGeneration");
    told["status"]["conditions"][0].as_object_mut().unwrap().remove("observedGeneration");
    assert_eq!(patch(Kind::PeerAuthentication, &told, &[], now()), None);
}

#[test]
fn a_flood_of_findings_is_bounded() {
    let all: Vec<Found> = (0..50).map(|i| found(Severity::Warn, &format!("spec.rules[{i}]"), &"é".repeat(2_000))).collect();
    let message = patch(Kind::Mesh, &object(Value::Null), &all, now()).unwrap()["status"]["conditions"][0]["message"].clone();
    assert!(message.as_str().unwrap().len() <= LONGEST && message.as_str().unwrap().ends_with(" ..."));
    let short: Vec<Found> = (0..50).map(|i| found(Severity::Warn, &format!("spec.rules[{i}]"), "x")).collect();
    let message = patch(Kind::Mesh, &object(Value::Null), &short, now()).unwrap()["status"]["conditions"][0]["message"].clone();
    assert!(message.as_str().unwrap().ends_with("and 30 more: see `meshctl check`"), "{message}");
}

#[test]
fn an_object_of_any_form_is_answered() {
    for odd in [json!({}), json!({ "metadata": 5, "status": { "conditions": "x" } }), json!({ "status": { "conditions": [1, null] } })] {
        assert!(patch(Kind::Mesh, &odd, &[], now()).is_some());
    }
}
