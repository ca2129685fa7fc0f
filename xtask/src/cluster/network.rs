//! The fabric: a bridge in the control plane's namespace, a namespace a node, and routes to every node's pods.

use anyhow::{Context, Result};
use mesh_lab::netns;

use super::layout::{CONTROL, CONTROL_NAMESPACE, Node};

/// Makes namespaces, links and routes for so many nodes.
pub fn create(nodes: u8) -> Result<()> {
    let mut lines = vec![format!("netns add {CONTROL_NAMESPACE}")];
    lines.extend(Node::all(nodes).map(|node| format!("netns add {}", node.namespace())));
    netns::ip(None, &lines).context("making the network namespaces")?;
    let names = std::iter::once(CONTROL_NAMESPACE.to_owned()).chain(Node::all(nodes).map(Node::namespace));
    for name in names {
        // Duplicate address detection would hold every IPv6 address back for seconds.
        netns::sysctl(
            &netns::path(&name),
            &[
                ("net.ipv6.conf.all.accept_dad", "0"),
                ("net.ipv6.conf.default.accept_dad", "0"),
                ("net.ipv4.ip_forward", "1"),
                ("net.ipv6.conf.all.forwarding", "1"),
            ],
        )
        .with_context(|| format!("settings of namespace {name}"))?;
    }
    netns::ip(Some(CONTROL_NAMESPACE), &control_lines(nodes)).context("the fabric")?;
    for node in Node::all(nodes) {
        netns::ip(Some(&node.namespace()), &node_lines(node, nodes)).with_context(|| format!("network of {}", node.name()))?;
    }
    Ok(())
}

/// `ip -batch` in the control plane's namespace.
fn control_lines(nodes: u8) -> Vec<String> {
    let (ipv4, ipv6) = CONTROL;
    let mut lines = vec![
        "link set lo up".to_owned(),
        "link add fabric type bridge".to_owned(),
        format!("addr add {ipv4}/24 dev fabric"),
        format!("addr add {ipv6}/64 dev fabric nodad"),
        "link set fabric up".to_owned(),
    ];
    for node in Node::all(nodes) {
        lines.push(format!("link add {} type veth peer name eth0 netns {}", node.name(), node.namespace()));
        lines.push(format!("link set {} master fabric up", node.name()));
        lines.extend(routes(node));
    }
    lines
}

/// `ip -batch` in a node's namespace. The default route leads to the control plane and ends there.
fn node_lines(node: Node, nodes: u8) -> Vec<String> {
    let (ipv4, ipv6) = CONTROL;
    let mut lines = vec![
        "link set lo up".to_owned(),
        format!("addr add {}/24 dev eth0", node.ipv4()),
        format!("addr add {}/64 dev eth0 nodad", node.ipv6()),
        "link set eth0 up".to_owned(),
        format!("route add default via {ipv4}"),
        format!("route add default via {ipv6}"),
    ];
    lines.extend(Node::all(nodes).filter(|other| *other != node).flat_map(routes));
    lines
}

/// The ways to a node's pods.
fn routes(node: Node) -> [String; 2] {
    let [pods4, pods6] = node.pod_cidrs();
    [format!("route add {pods4} via {}", node.ipv4()), format!("route add {pods6} via {}", node.ipv6())]
}

#[cfg(test)]
mod tests {
    use super::{control_lines, node_lines};
    use crate::cluster::layout::Node;

    #[test]
    fn a_node_reaches_the_pods_of_all_others_and_not_its_own_through_the_fabric() {
        let lines = node_lines(Node(2), 3);
        assert!(lines.contains(&"route add 10.244.1.0/24 via 172.30.0.11".to_owned()), "{lines:?}");
        assert!(lines.contains(&"route add fd00:10:244:3::/64 via fd00:172:30::13".to_owned()), "{lines:?}");
        assert!(!lines.iter().any(|line| line.contains("10.244.2.0")), "{lines:?}");
    }

    #[test]
    fn every_node_hangs_on_the_bridge() {
        let lines = control_lines(2);
        for node in ["n1", "n2"] {
            assert!(lines.contains(&format!("link add {node} type veth peer name eth0 netns nodemesh-{node}")), "{lines:?}");
            assert!(lines.contains(&format!("link set {node} master fabric up")), "{lines:?}");
        }
    }
}
