use serde_json::json;

use super::*;

#[test]
fn the_cleaner_is_the_agent_with_another_command_and_no_tokens() {
    let agents: DaemonSet = serde_json::from_value(json!({
        "spec": {"selector": {}, "template": {"spec": {
            "serviceAccountName": "mesh-agent", "hostNetwork": true, "priorityClassName": "system-node-critical",
            "containers": [{
                "name": "agent", "image": "nodemesh/agent:1", "env": [{"name": "NODEMESH_BPFFS", "value": "/sys/fs/bpf"}],
                "readinessProbe": {}, "livenessProbe": {}, "startupProbe": {},
                "volumeMounts": [{"name": "bpffs", "mountPath": "/sys/fs/bpf"}, {"name": "ca-token", "mountPath": "/t"}, {"name": "ca-roots", "mountPath": "/r"}],
                "securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}},
            }],
            "volumes": [
                {"name": "bpffs", "hostPath": {"path": "/sys/fs/bpf"}},
                {"name": "ca-token", "projected": {"sources": []}},
                {"name": "ca-roots", "configMap": {"name": "nodemesh-ca-roots"}},
            ],
        }}},
    }))
    .unwrap();
    let pod = serde_json::to_value(cleanup_pod(&agents, "n1").unwrap()).unwrap();
    let (spec, container) = (&pod["spec"], &pod["spec"]["containers"][0]);
    assert_eq!(container["args"], json!(["cleanup"]));
    assert_eq!(container["image"], "nodemesh/agent:1");
    assert_eq!(container["securityContext"]["capabilities"]["add"], json!(["SYS_ADMIN"]));
    assert_eq!(container["volumeMounts"], json!([{"name": "bpffs", "mountPath": "/sys/fs/bpf"}]));
    assert_eq!(spec["volumes"], json!([{"name": "bpffs", "hostPath": {"path": "/sys/fs/bpf"}}]));
    for probe in ["readinessProbe", "livenessProbe", "startupProbe"] {
        assert!(container[probe].is_null());
    }
    assert_eq!((&spec["nodeName"], &spec["restartPolicy"]), (&json!("n1"), &json!("OnFailure")));
    assert!(spec["serviceAccountName"].is_null() && spec["automountServiceAccountToken"] == json!(false));
    assert_eq!(pod["metadata"]["labels"]["app.kubernetes.io/name"], "mesh-cleanup", "uninstall must not wait for it as for an agent");
}

#[test]
fn only_definitions_that_came_with_the_mesh_are_purged() {
    let definition = |group: &str, annotations: serde_json::Value| -> CustomResourceDefinition {
        serde_json::from_value(json!({
            "metadata": {"annotations": annotations},
            "spec": {"group": group, "names": {"kind": "K", "plural": "ks"}, "scope": "Cluster", "versions": []},
        }))
        .unwrap()
    };
    let release = json!({"meta.helm.sh/release-name": "nodemesh", "meta.helm.sh/release-namespace": "nodemesh-system"});
    assert!(ours(&definition("nodemesh.dev", json!({})), "nodemesh-system"));
    assert!(ours(&definition("security.istio.io", release.clone()), "nodemesh-system"));
    assert!(!ours(&definition("security.istio.io", release.clone()), "elsewhere"));
    assert!(!ours(&definition("security.istio.io", json!({})), "nodemesh-system"), "Istio's own");
    assert!(!ours(&definition("gateway.networking.k8s.io", release), "nodemesh-system"));
}
