//! What the facts mean. Asks nobody.

use std::collections::{BTreeMap, BTreeSet};

use super::facts::{After, Before, NodeFacts};
use crate::agent::Report;
use crate::certs::span;
use crate::chart;
use crate::finding::Finding;

/// Oldest kernel that the agent runs on.
const KERNEL: (u32, u32) = (5, 15);
/// Oldest Kubernetes that the chart installs on.
const KUBERNETES: (u32, u32) = (1, 28);
/// Certificates with less than this left, in seconds, are late: they are renewed at half of their life.
const LATE: u64 = 3600;
/// Clocks that are further apart than this, in seconds, make new certificates look as if they were not valid yet.
const SKEW: i64 = 10;
/// The definitions of what the mesh reads, each with the versions in which it does.
const READ: [(&str, &[&str]); 13] = [
    ("meshes.nodemesh.dev", &["v1alpha1"]),
    ("ratelimits.nodemesh.dev", &["v1alpha1"]),
    ("authorizationpolicies.security.istio.io", &["v1", "v1beta1"]),
    ("peerauthentications.security.istio.io", &["v1", "v1beta1"]),
    ("requestauthentications.security.istio.io", &["v1", "v1beta1"]),
    ("virtualservices.networking.istio.io", &["v1", "v1beta1", "v1alpha3"]),
    ("destinationrules.networking.istio.io", &["v1", "v1beta1", "v1alpha3"]),
    ("serviceentries.networking.istio.io", &["v1", "v1beta1", "v1alpha3"]),
    (HTTP_ROUTES, &["v1"]),
    ("grpcroutes.gateway.networking.k8s.io", &["v1"]),
    ("tlsroutes.gateway.networking.k8s.io", &["v1", "v1alpha3", "v1alpha2"]),
    ("xbackendtrafficpolicies.gateway.networking.x-k8s.io", &["v1alpha1"]),
    ("tcproutes.gateway.networking.k8s.io", &["v1", "v1alpha2"]),
];
const HTTP_ROUTES: &str = "httproutes.gateway.networking.k8s.io";

pub(super) fn before(facts: &Before) -> Vec<Finding> {
    let mut findings = Vec::new();
    if chart::version(&facts.version).is_none_or(|version| version < KUBERNETES) {
        let (major, minor) = KUBERNETES;
        let message = format!("it is {}; {major}.{minor} or newer is needed", facts.version);
        findings.push(Finding::error("API server", message, "upgrade the cluster"));
    }
    let linux: Vec<_> = facts.nodes.iter().filter(|node| node.os == "linux").collect();
    if linux.is_empty() {
        findings.push(Finding::error("nodes", "no node runs Linux", "add nodes that run Linux"));
    }
    findings.extend(linux.into_iter().filter_map(node));
    for (verb, resource) in &facts.forbidden {
        let message = format!("you may not {verb} {resource}, which an installation does");
        findings.push(Finding::error(
            "permissions",
            message,
            "install as somebody who may, or have an administrator bind you to cluster-admin",
        ));
    }
    findings.extend(other_meshes(facts));
    findings.extend(definitions(facts));
    if let Some(settings) = &facts.cilium {
        findings.extend(cilium(settings));
    }
    findings
}

fn node(node: &NodeFacts) -> Option<Finding> {
    let object = format!("Node {}", node.name);
    if !matches!(&*node.architecture, "amd64" | "arm64") {
        return Some(Finding::error(
            object,
            format!("no agent is built for {}", node.architecture),
            "keep agents off it with agent.nodeSelector",
        ));
    }
    match chart::version(&node.kernel) {
        Some(version) if version >= KERNEL => None,
        Some(_) => {
            let message = format!("its kernel is {}; the agent needs {}.{} or newer with BTF", node.kernel, KERNEL.0, KERNEL.1);
            Some(Finding::error(object, message, "upgrade the node's kernel, or keep agents off it with agent.nodeSelector"))
        }
        None => Some(Finding::warning(
            object,
            format!("its kernel {:?} has no version that can be read", node.kernel),
            "see the agent's log there",
        )),
    }
}

fn other_meshes(facts: &Before) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (namespace, name) in &facts.daemon_sets {
        let object = format!("DaemonSet {namespace}/{name}");
        match &**name {
            "ztunnel" => findings.push(Finding::warning(
                object,
                "Istio's ambient mesh is installed; a pod can be in one of both",
                "label a namespace for one mesh only: istio.io/dataplane-mode or nodemesh.dev/mesh",
            )),
            "linkerd-cni" | "kmesh" => findings.push(Finding::warning(
                object,
                "another mesh redirects connections on the nodes",
                "keep its pods out of the namespaces that you label nodemesh.dev/mesh=enabled",
            )),
            _ => {}
        }
    }
    for namespace in &facts.namespaces {
        let label = |key: &str| namespace.labels.get(key).map(String::as_str);
        let theirs = [
            ("istio.io/dataplane-mode", label("istio.io/dataplane-mode").filter(|mode| *mode != "none")),
            ("istio-injection", label("istio-injection").filter(|word| *word == "enabled")),
            ("istio.io/rev", label("istio.io/rev")),
            ("linkerd.io/inject", label("linkerd.io/inject").filter(|word| *word == "enabled")),
        ];
        for (key, value) in theirs.into_iter().filter_map(|(key, value)| Some((key, value?))) {
            if label("nodemesh.dev/mesh") == Some("enabled") {
                let message = format!("it is in two meshes: {key}={value} and nodemesh.dev/mesh=enabled; both take its connections");
                findings.push(Finding::error(format!("Namespace {}", namespace.name), message, "take one of both labels away"));
            }
        }
        if let Some(word) = label("nodemesh.dev/mesh").filter(|word| !matches!(*word, "enabled" | "disabled")) {
            let message =
                format!("its label nodemesh.dev/mesh is {word:?}, which is neither enabled nor disabled; its pods are in the mesh");
            findings.push(Finding::warning(format!("Namespace {}", namespace.name), message, "write enabled or disabled"));
        }
    }
    findings
}

fn definitions(facts: &Before) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (name, served) in &facts.definitions {
        let Some((_, wanted)) = READ.iter().find(|(read, _)| read == name) else { continue };
        if served.iter().any(|version| wanted.contains(&&**version)) {
            continue;
        }
        let object = format!("CustomResourceDefinition {name}");
        let message = format!("it serves {}; the mesh reads {}", served.join(", "), wanted.join(" or "));
        // The chart brings its own of Istio's kinds; routes are there for who wants them.
        findings.push(if name.ends_with(".gateway.networking.k8s.io") || name.ends_with(".gateway.networking.x-k8s.io") {
            Finding::warning(object, format!("{message}, so that its objects have no effect"), "upgrade the Gateway API's definitions")
        } else {
            Finding::error(object, message, "upgrade what installed it")
        });
    }
    if !facts.definitions.iter().any(|(name, _)| name == HTTP_ROUTES) {
        findings.push(Finding::info(
            "Gateway API",
            "its definitions are not installed: there can be no HTTPRoute, and VirtualService routes requests",
            "to have both, install them: https://gateway-api.sigs.k8s.io/guides/",
        ));
    }
    findings
}

fn cilium(settings: &BTreeMap<String, String>) -> Option<Finding> {
    let on = |key: &str| settings.get(key).is_some_and(|value| value == "true");
    let balances =
        on("bpf-lb-sock") || on("kube-proxy-replacement") || settings.get("kube-proxy-replacement").is_some_and(|v| v == "strict");
    (balances && !on("bpf-lb-sock-hostns-only")).then(|| {
        Finding::error(
            "ConfigMap cilium-config",
            "Cilium rewrites the addresses of Services inside pods, before the mesh can see which Service was meant",
            "set Cilium's value socketLB.hostNamespaceOnly: true (bpf-lb-sock-hostns-only) and restart its agents",
        )
    })
}

pub(super) fn after(facts: &After, now: u64) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (object, rollout) in [("Deployment mesh-control", facts.control), ("DaemonSet mesh-agent", facts.agents)] {
        match rollout {
            None => findings.push(Finding::error(object, "it does not exist", "run meshctl install")),
            Some(rollout) if rollout.wanted == 0 => {
                findings.push(Finding::error(object, "it has no pods", "look at its nodeSelector and replicas in the chart's values"));
            }
            Some(rollout) if !rollout.complete() => {
                findings.push(Finding::error(object, rollout.to_string(), "see the findings about its pods"));
            }
            Some(_) => {}
        }
    }
    for (pod, why) in &facts.control_trouble {
        findings.push(Finding::error(format!("Pod {pod}"), why.clone(), format!("kubectl describe pod {pod} and its log say more")));
    }
    for report in &facts.reports {
        findings.extend(agent(report, now));
    }
    findings.extend(versions(&facts.reports));
    findings.extend(clocks(&facts.reports));
    findings.extend(problems(&facts.reports));
    findings
}

fn agent(report: &Report, now: u64) -> Vec<Finding> {
    let mut findings = Vec::new();
    let object = format!("agent of node {}", report.node);
    if let Some(awaited) = &report.awaited {
        let message = format!("it waits for {awaited}");
        findings.push(Finding::error(object.as_str(), message, format!("the log of pod {} says more", report.pod)));
    } else if !report.ready {
        findings.push(Finding::warning(object.as_str(), "it is ready, and the kubelet does not know it yet", "look again in some seconds"));
    }
    for workload in report.held() {
        let message = format!("it is in the mesh and held: it waits for {}", workload.awaited.as_deref().unwrap_or("its agent"));
        let mend = format!("mend what its agent on node {} waits for; until then its connections are refused", report.node);
        findings.push(Finding::error(format!("Pod {}", workload.name), message, mend));
    }
    for certificate in &report.certificates {
        let object = format!("{} on node {}", certificate.identity, report.node);
        let why = certificate.last_error.as_deref().map(|error| format!(" ({error})")).unwrap_or_default();
        let mend = "see that mesh-control is ready and reachable from the node on port 15012";
        match certificate.not_after.map(|end| end.saturating_sub(now)) {
            Some(0) => findings.push(Finding::error(object, format!("its certificate has expired{why}"), mend)),
            Some(left) if left < LATE && certificate.failures > 0 => {
                findings.push(Finding::warning(
                    object,
                    format!("its certificate expires in {} and cannot be renewed{why}", span(left)),
                    mend,
                ));
            }
            Some(_) => {}
            None => findings.push(Finding::error(object, format!("it has no certificate{why}"), mend)),
        }
    }
    findings
}

fn versions(reports: &[Report]) -> Option<Finding> {
    let found: BTreeSet<&str> = reports.iter().filter_map(|report| report.version.as_deref()).collect();
    let own = env!("CARGO_PKG_VERSION");
    let list = || found.iter().copied().collect::<Vec<_>>().join(", ");
    if found.len() > 1 {
        let message = format!("agents of several versions run: {}", list());
        return Some(Finding::warning("DaemonSet mesh-agent", message, "wait until the upgrade is through, or see why it isn't"));
    }
    (!found.is_empty() && !found.contains(own)).then(|| {
        let message = format!("agents are of version {}, this meshctl of {own}", list());
        Finding::warning("meshctl", message, "use the meshctl of the mesh's version")
    })
}

/// Nodes whose clock is apart from most others'. If most are apart from ours, it is ours that is wrong.
fn clocks(reports: &[Report]) -> Vec<Finding> {
    let mut known: Vec<(i64, &str)> = reports.iter().filter_map(|report| Some((report.clock_ahead?, &*report.node))).collect();
    known.sort_unstable();
    let Some((median, _)) = known.get(known.len() / 2).copied() else { return Vec::new() };
    let mut findings = Vec::new();
    if median.abs() > SKEW {
        let message = format!("this machine's clock and the nodes' are {} s apart", median.abs());
        findings.push(Finding::warning("this machine", message, "set its clock (NTP); what follows is told by the nodes' clocks"));
    }
    for (ahead, node) in known {
        let apart = ahead - median;
        if apart.abs() > SKEW {
            let side = if apart > 0 { "ahead of" } else { "behind" };
            let message =
                format!("its clock is {} s {side} most other nodes'; certificates are refused as expired or not valid yet", apart.abs());
            findings.push(Finding::error(format!("Node {node}"), message, "synchronise its clock (NTP)"));
        }
    }
    findings
}

/// What agents say about objects. Each agent reads the same ones, so each problem is told once.
fn problems(reports: &[Report]) -> Vec<Finding> {
    let all: BTreeSet<&str> = reports.iter().flat_map(|report| &report.problems).map(String::as_str).collect();
    all.into_iter()
        .map(|problem| {
            let (object, message) = problem.split_once(": ").unwrap_or(("configuration", problem));
            Finding::warning(object, message, "edit the object; the message says what is right")
        })
        .collect()
}

#[cfg(test)]
mod tests;
