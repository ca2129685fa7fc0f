//! Names, addresses and paths of a cluster. There is one cluster a machine.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

/// Everything that a cluster keeps on disk is below this.
pub const ROOT: &str = "/var/lib/nodemesh-lab/cluster";
/// Nodes have one digit.
pub const MAX_NODES: u8 = 8;
/// Holds the fabric, etcd, API server, controllers and whoever speaks to them. It has no way out of the machine.
pub const CONTROL_NAMESPACE: &str = "nodemesh-control";
/// The API server's port.
pub const API_PORT: u16 = 6443;
/// The port of the registry that stands in for all others.
pub const REGISTRY_PORT: u16 = 5000;
/// Where a node's control group is found on the node, whatever the machine's hierarchy looks like.
pub const NODE_CGROUP: &str = "/run/nodemesh-node/cgroup";
/// The kube-dns service.
pub const DNS: [&str; 2] = ["10.96.0.10", "fd00:10:96::a"];
/// The control plane's address on the fabric.
pub const CONTROL: (Ipv4Addr, Ipv6Addr) = (Ipv4Addr::new(172, 30, 0, 1), Ipv6Addr::new(0xfd00, 0x172, 0x30, 0, 0, 0, 0, 1));
/// All pods.
pub const POD_CIDRS: &str = "10.244.0.0/16,fd00:10:244::/48";
/// All services.
pub const SERVICE_CIDRS: &str = "10.96.0.0/16,fd00:10:96::/112";
/// The first service, the API server's own.
pub const KUBERNETES_SERVICE: (Ipv4Addr, Ipv6Addr) = (Ipv4Addr::new(10, 96, 0, 1), Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 1));

/// A node of the cluster, by its number from 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Node(pub u8);

impl Node {
    /// Nodes 1 to `count`.
    pub fn all(count: u8) -> impl Iterator<Item = Self> + Clone {
        (1..=count).map(Self)
    }

    /// Its name in Kubernetes and its host name.
    pub fn name(self) -> String {
        format!("n{}", self.0)
    }

    /// Its network namespace.
    pub fn namespace(self) -> String {
        format!("nodemesh-n{}", self.0)
    }

    /// Its address on the fabric.
    pub fn ipv4(self) -> Ipv4Addr {
        Ipv4Addr::new(172, 30, 0, 10 + self.0)
    }

    /// Its IPv6 address on the fabric.
    pub fn ipv6(self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0x172, 0x30, 0, 0, 0, 0, 0x10 + u16::from(self.0))
    }

    /// Its pods' addresses: IPv4, IPv6.
    pub fn pod_cidrs(self) -> [String; 2] {
        [format!("10.244.{}.0/24", self.0), format!("fd00:10:244:{}::/64", self.0)]
    }

    /// The name of its control group in every hierarchy.
    pub fn cgroup(self) -> String {
        format!("node{}", self.0)
    }

    /// What it keeps on disk.
    pub fn directory(self) -> PathBuf {
        root().join("nodes").join(self.name())
    }
}

/// [`ROOT`] as a path.
pub fn root() -> &'static Path {
    Path::new(ROOT)
}

/// Certificates and keys.
pub fn pki() -> PathBuf {
    root().join("pki")
}

/// What the programs write.
pub fn log(program: &str) -> PathBuf {
    root().join("log").join(format!("{program}.log"))
}

/// Credentials of a part of the cluster; `admin` is the person's.
pub fn kubeconfig(who: &str) -> PathBuf {
    root().join(format!("{who}.kubeconfig"))
}

/// The cluster's kubectl, wherever the tool's cache and its clone are.
pub fn kubectl() -> PathBuf {
    root().join("bin/kubectl")
}

/// The images that the registry serves.
pub fn registry() -> PathBuf {
    root().join("registry")
}

#[cfg(test)]
mod tests {
    use super::{MAX_NODES, Node};
    use std::collections::BTreeSet;

    #[test]
    fn no_two_nodes_share_anything() {
        let all: Vec<Node> = Node::all(MAX_NODES).collect();
        let words: BTreeSet<String> = all
            .iter()
            .flat_map(|node| {
                let [pods4, pods6] = node.pod_cidrs();
                [node.name(), node.namespace(), node.cgroup(), node.ipv4().to_string(), node.ipv6().to_string(), pods4, pods6]
            })
            .collect();
        assert_eq!(words.len(), 7 * all.len());
    }
}
