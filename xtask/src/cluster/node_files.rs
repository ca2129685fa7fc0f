//! The settings of a node's programs, as files.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::layout::{CONTROL, DNS, Node, POD_CIDRS, REGISTRY_PORT, kubeconfig};

/// The image of the process that holds a pod's namespaces.
pub const PAUSE: &str = "docker.io/nodemesh/lab-pause:1";

/// A file of a node: path below the node's directory, and text.
pub type File = (&'static str, String);

/// All of them.
pub fn all(node: Node, pki: &Path, legacy_cgroups: bool) -> Result<Vec<File>> {
    Ok(vec![
        ("cni/10-nodemesh-lab.conflist", pretty(&network(node))?),
        ("containerd.toml", containerd(&node.directory().join("registries"))),
        // Every registry is the one that `load` fills; the machine has no way out to another.
        (
            "registries/_default/hosts.toml",
            format!("[host.\"http://{}:{REGISTRY_PORT}\"]\n  capabilities = [\"pull\", \"resolve\"]\n", CONTROL.0),
        ),
        ("kubelet.yaml", yaml(&kubelet(node, pki, legacy_cgroups))?),
        ("kube-proxy.yaml", yaml(&proxy(node))?),
        ("resolv.conf", String::new()),
    ])
}

/// The CNI network: a bridge a node, addresses of both families from the node's own ranges.
fn network(node: Node) -> Value {
    let ranges: Vec<Value> = node.pod_cidrs().iter().map(|subnet| json!([{"subnet": subnet}])).collect();
    json!({
        "cniVersion": "0.4.0",
        "name": "nodemesh-lab",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "hairpinMode": true,
                "ipMasq": false,
                "ipam": {
                    "type": "host-local",
                    "ranges": ranges,
                    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
}

fn containerd(registries: &Path) -> String {
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"

[grpc]
  address = "/run/containerd/containerd.sock"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  # A machine without CAP_SYS_RESOURCE can't lower an oom_score_adj, and runc would fail.
  restrict_oom_score_adj = true

[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/opt/cni/bin"
  conf_dir = "/etc/cni/net.d"

[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = "{}"
"#,
        registries.display()
    )
}

fn kubelet(node: Node, pki: &Path, legacy_cgroups: bool) -> Value {
    let file = |name: String| pki.join(name).display().to_string();
    let name = node.name();
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": file("ca.crt".to_owned())},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": file(format!("{name}.crt")),
        "tlsPrivateKeyFile": file(format!("{name}.key")),
        "clusterDNS": DNS,
        "clusterDomain": "cluster.local",
        "resolvConf": node.directory().join("resolv.conf"),
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{}", node.cgroup()),
        "cgroupsPerQOS": true,
        "enforceNodeAllocatable": [],
        "failCgroupV1": !legacy_cgroups,
        "failSwapOn": false,
        // A full disk or a busy machine must not evict what is being tested: a threshold of nothing is none.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "0%"},
        "localStorageCapacityIsolation": false,
        "serializeImagePulls": false,
        // Pods come and go in tests; the defaults are meant for registries and API servers far away.
        "syncFrequency": "10s",
        "nodeStatusUpdateFrequency": "5s",
        "shutdownGracePeriod": "0s",
    })
}

fn proxy(node: Node) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": kubeconfig("proxy")},
        "clusterCIDR": POD_CIDRS,
        "hostnameOverride": node.name(),
        "bindAddress": node.ipv4().to_string(),
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        // Sizes of the whole machine's table can't be set from a namespace.
        "conntrack": {"maxPerCore": 0, "min": 0},
    })
}

fn pretty(value: &Value) -> Result<String> {
    serde_json::to_string_pretty(value).context("a node's settings")
}

fn yaml(value: &Value) -> Result<String> {
    serde_yaml_ng::to_string(value).context("a node's settings")
}

#[cfg(test)]
mod tests {
    use super::{all, network};
    use crate::cluster::layout::Node;
    use std::path::Path;

    fn file(name: &str, legacy: bool) -> String {
        let files = all(Node(2), Path::new("/p"), legacy).unwrap();
        files.into_iter().find(|(path, _)| *path == name).unwrap().1
    }

    #[test]
    fn pods_get_an_address_of_each_family() {
        let ranges = network(Node(2))["plugins"][0]["ipam"]["ranges"].clone();
        assert_eq!(ranges, serde_json::json!([[{"subnet": "10.244.2.0/24"}], [{"subnet": "fd00:10:244:2::/64"}]]));
    }

    #[test]
    fn a_kubelet_refuses_version_one_unless_the_machine_has_it() {
        let on_v1: serde_json::Value = serde_yaml_ng::from_str(&file("kubelet.yaml", true)).unwrap();
        let on_v2: serde_json::Value = serde_yaml_ng::from_str(&file("kubelet.yaml", false)).unwrap();
        assert_eq!(on_v1["failCgroupV1"], false);
        assert_eq!(on_v2["failCgroupV1"], true);
        assert_eq!(on_v1["cgroupRoot"], "/node2");
        assert_eq!(on_v1["tlsCertFile"], "/p/n2.crt");
    }

    #[test]
    fn every_registry_is_the_clusters_own() {
        assert!(file("registries/_default/hosts.toml", true).contains("http://172.30.0.1:5000"));
        assert!(file("containerd.toml", true).contains("nodes/n2/registries"));
    }
}
