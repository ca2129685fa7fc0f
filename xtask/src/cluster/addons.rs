//! What a cluster is given as soon as its API server is ready: its nodes' objects and DNS.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::client::{apply, ask_until};
use super::layout;
use super::layout::Node;
use super::program::tail;
use super::state::Recorder;

const DNS: &str = include_str!("../../assets/cluster/coredns.yaml");
const PATIENCE: Duration = Duration::from_secs(120);

/// Makes the objects. A node's comes before its kubelet, which finds pod ranges and zone in it.
pub fn create(nodes: u8) -> Result<()> {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": Node::all(nodes).map(object).collect::<Vec<_>>()});
    apply(&serde_json::to_string(&list).context("the nodes' objects")?).context("the nodes' objects")?;
    apply(DNS).context("the cluster's DNS")
}

/// A region of one zone a node, so that locality has something to tell apart.
fn object(node: Node) -> Value {
    let cidrs = node.pod_cidrs();
    let [first, _] = &cidrs;
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": node.name(),
            "labels": {
                "topology.kubernetes.io/region": "lab",
                "topology.kubernetes.io/zone": format!("lab-{}", node.0),
            },
        },
        "spec": {"podCIDR": first, "podCIDRs": &cidrs},
    })
}

/// Waits until every node is ready and DNS answers.
pub fn await_ready(nodes: u8, recorder: &Recorder) -> Result<()> {
    let alive = || match recorder.state().dead() {
        Some(program) => bail!("{} ended:\n{}", program.name, tail(&layout::log(&program.name))),
        None => Ok(()),
    };
    let question = ["get", "nodes", "-o", "jsonpath={range .items[*]}{.status.conditions[?(@.type==\"Ready\")].status}{\"\\n\"}{end}"];
    let ready = |answer: &str| answer.lines().filter(|line| *line == "True").count() == usize::from(nodes);
    ask_until("all nodes ready", &question, PATIENCE, alive, ready)?;
    let question = ["get", "deployment", "coredns", "-n", "kube-system", "-o", "jsonpath={.status.availableReplicas}"];
    ask_until("the cluster's DNS", &question, PATIENCE, alive, |answer| answer.trim() == "1")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{DNS, object};
    use crate::cluster::layout::{self, Node};
    use crate::image::catalog;

    #[test]
    fn dns_has_the_address_and_the_image_that_nodes_are_told() {
        for address in layout::DNS {
            assert!(DNS.contains(&format!("\"{address}\"")), "{address}");
        }
        assert!(DNS.contains(&format!("image: {}\n", catalog::COREDNS_NAME)));
    }

    #[test]
    fn a_nodes_ranges_are_those_of_its_cni() {
        assert_eq!(object(Node(2))["spec"]["podCIDRs"], serde_json::json!(["10.244.2.0/24", "fd00:10:244:2::/64"]));
    }
}
