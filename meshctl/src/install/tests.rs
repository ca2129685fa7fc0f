use super::*;

#[test]
fn a_rollout_is_complete_when_all_is_new_and_ready() {
    let set = |value| -> DaemonSet { serde_json::from_value(value).unwrap() };
    let rollout = |generation: i64, updated: i32, ready: i32| {
        Rollout::of_agents(&set(json!({
            "metadata": {"generation": generation},
            "spec": {"selector": {}, "template": {}},
            "status": {
                "observedGeneration": 2, "desiredNumberScheduled": 3, "currentNumberScheduled": 3, "numberMisscheduled": 0, "numberReady": ready,
                "numberAvailable": ready, "updatedNumberScheduled": updated,
            },
        })))
    };
    assert!(rollout(2, 3, 3).complete());
    assert!(!rollout(3, 3, 3).complete(), "the controller has not seen the newest form");
    assert!(!rollout(2, 2, 3).complete() && !rollout(2, 3, 2).complete());
    assert_eq!(rollout(2, 1, 2).to_string(), "2/3 ready (1 new)");
    assert_eq!(rollout(2, 3, 3).to_string(), "3/3 ready");
}

#[test]
fn nobody_can_enrol_the_meshs_own_namespace_by_accident() {
    let labels = &namespace("mesh")["metadata"]["labels"];
    assert_eq!(labels["nodemesh.dev/mesh"], "disabled");
    assert_eq!(labels["pod-security.kubernetes.io/enforce"], "privileged");
}
