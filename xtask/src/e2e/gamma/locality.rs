//! Locality: what is near first, what is said to be far in shares, and what is far when nothing is near.

use anyhow::Result;

use super::case::{Want, get};
use super::stage::{PRODUCER, hold, holds, service, set};
use crate::cluster;
use crate::e2e::bed::Bed;
use crate::e2e::view::nodes;

const RULES: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: near}
spec:
  host: near
  trafficPolicy:
    loadBalancer: {localityLbSetting: {enabled: true}}
    outlierDetection: {consecutive5xxErrors: 5, interval: 5s, baseEjectionTime: 30s}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: spread}
spec:
  host: spread
  trafficPolicy:
    loadBalancer:
      simple: ROUND_ROBIN
      localityLbSetting: {enabled: true, distribute: [{from: e2e/near/*, to: {'e2e/near/*': 80, 'e2e/far/*': 20}}]}
    outlierDetection: {consecutive5xxErrors: 5, interval: 5s, baseEjectionTime: 30s}
---
";

const REGION: &str = "topology.kubernetes.io/region";
const ZONE: &str = "topology.kubernetes.io/zone";

/// Writes where the nodes stand, the first near and the last far, or takes that back.
fn place(nodes: &[String], placed: bool) -> Result<()> {
    for (number, node) in nodes.iter().enumerate() {
        let zone = if number == 0 { "near" } else { "far" };
        let words = if placed { [format!("{REGION}=e2e"), format!("{ZONE}={zone}")] } else { [format!("{REGION}-"), format!("{ZONE}-")] };
        let [region, zone] = &words;
        cluster::ask(&["label", "--overwrite", "node", node, region, zone])?;
    }
    Ok(())
}

fn label(pod: &str, label: &str) -> Result<()> {
    cluster::ask(&["-n", PRODUCER, "label", "--overwrite", "pod", pod, label]).map(drop)
}

fn shown(bed: &Bed) -> Result<String> {
    for pod in ["v1", "v2"] {
        label(pod, "near=yes")?;
    }
    let objects = service("near", "{near: 'yes'}") + &service("spread", "{near: 'yes'}") + &service("anywhere", "{near: 'yes'}") + RULES;
    let cases = [
        get("the server that is near", "near/").times(30).by("v1"),
        get("shares by place", "spread/").times(100).wants(Want::Shares(&[("v1", 80), ("v2", 20)])),
        get("nobody asked for it", "anywhere/").times(30).wants(Want::Among(&["v1", "v2"])),
    ];
    let held = hold(bed, &objects, &cases)?;
    label("v1", "near=no")?;
    holds(PRODUCER, &[get("nobody is near any more", "near/").times(20).by("v2"), get("nor in its share", "spread/").times(20).by("v2")])?;
    label("v1", "near=yes")?;
    holds(PRODUCER, &[get("it is back", "near/").times(20).by("v1")])?;
    Ok(held)
}

pub fn locality(bed: &mut Bed) -> Result<String> {
    set(bed)?;
    let nodes = nodes()?;
    place(&nodes, true)?;
    let shown = shown(bed);
    place(&nodes, false)?;
    shown
}
