use super::super::facts::NamespaceFacts;
use super::*;
use crate::agent::{Certificate, Workload};
use crate::finding::{Severity, fatal, sorted, table};
use crate::install::Rollout;

fn fit() -> Before {
    let node =
        |name: &str| NodeFacts { name: name.into(), kernel: "6.1.0-21-amd64".into(), os: "linux".into(), architecture: "amd64".into() };
    let definitions = vec![(HTTP_ROUTES.into(), vec!["v1".into(), "v1beta1".into()])];
    Before { version: "v1.36.3".into(), nodes: vec![node("n1"), node("n2")], definitions, ..Before::default() }
}

fn told(findings: &[Finding]) -> String {
    table(&sorted(findings.to_vec())).render(false)
}

#[test]
fn nothing_is_said_of_a_fit_cluster() {
    assert_eq!(before(&fit()), []);
}

#[test]
fn nodes_and_versions_that_will_not_do_are_named() {
    let mut facts = fit();
    facts.version = "v1.27.9".into();
    facts.nodes[0].kernel = "5.10.0-9-amd64".into();
    facts.nodes[1].architecture = "s390x".into();
    facts.nodes.push(NodeFacts { name: "w".into(), os: "windows".into(), ..NodeFacts::default() });
    facts.forbidden = vec![("create".into(), "clusterroles.rbac.authorization.k8s.io".into())];
    let expected = "\
SEVERITY  OBJECT       WHAT                                                                                   MEND
error     API server   it is v1.27.9; 1.28 or newer is needed                                                 upgrade the cluster
error     Node n1      its kernel is 5.10.0-9-amd64; the agent needs 5.15 or newer with BTF                   upgrade the node's kernel, or keep agents off it with agent.nodeSelector
error     Node n2      no agent is built for s390x                                                            keep agents off it with agent.nodeSelector
error     permissions  you may not create clusterroles.rbac.authorization.k8s.io, which an installation does  install as somebody who may, or have an administrator bind you to cluster-admin
";
    assert_eq!(told(&before(&facts)), expected);
}

#[test]
fn other_meshes_are_seen() {
    let mut facts = fit();
    facts.daemon_sets = vec![("istio-system".into(), "ztunnel".into()), ("kube-system".into(), "kube-proxy".into())];
    let namespace = |name: &str, labels: &[(&str, &str)]| NamespaceFacts {
        name: name.into(),
        labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
    };
    facts.namespaces = vec![
        namespace("theirs", &[("istio-injection", "enabled")]),
        namespace("both", &[("istio.io/dataplane-mode", "ambient"), ("nodemesh.dev/mesh", "enabled")]),
        namespace("out", &[("istio.io/dataplane-mode", "none"), ("nodemesh.dev/mesh", "enabled")]),
        namespace("odd", &[("nodemesh.dev/mesh", "yes")]),
    ];
    let findings = before(&facts);
    let objects: Vec<_> = findings.iter().map(|finding| (finding.severity, &*finding.object)).collect();
    assert_eq!(
        objects,
        [(Severity::Warning, "DaemonSet istio-system/ztunnel"), (Severity::Error, "Namespace both"), (Severity::Warning, "Namespace odd")]
    );
}

#[test]
fn definitions_that_the_mesh_cannot_read_are_named() {
    let mut facts = fit();
    let definition = |name: &str, served: &[&str]| (name.into(), served.iter().map(|version| (*version).into()).collect());
    facts.definitions.extend([
        definition("authorizationpolicies.security.istio.io", &["v1", "v1beta1"]),
        definition("peerauthentications.security.istio.io", &["v1alpha1"]),
        definition("destinationrules.networking.istio.io", &["v1alpha3"]),
        definition("tlsroutes.gateway.networking.k8s.io", &["v1alpha9"]),
        definition("telemetries.telemetry.istio.io", &["v1alpha1"]),
    ]);
    let objects = |findings: &[Finding]| findings.iter().map(|one| (one.severity, one.object.clone())).collect::<Vec<_>>();
    assert_eq!(
        objects(&before(&facts)),
        [
            (Severity::Error, "CustomResourceDefinition peerauthentications.security.istio.io".into()),
            (Severity::Warning, "CustomResourceDefinition tlsroutes.gateway.networking.k8s.io".into()),
        ]
    );
    facts.definitions.clear();
    let without = before(&facts);
    assert_eq!(objects(&without), [(Severity::Info, "Gateway API".into())], "nobody must have it");
    assert!(!fatal(&without));
    assert!(told(&without).contains("info      Gateway API  its definitions are not installed"), "{}", told(&without));
}

#[test]
fn every_definition_that_the_mesh_reads_is_judged() {
    let read: std::collections::BTreeMap<String, Vec<&str>> = mesh_model::object::Kind::ALL
        .into_iter()
        .filter(|kind| !kind.is_builtin())
        .map(|kind| {
            let versions = kind.api_versions().iter().map(|version| version.split_once('/').unwrap());
            let group = kind.api_versions()[0].split_once('/').unwrap().0;
            let singular = kind.name().to_lowercase();
            let plural = match singular.strip_suffix('y') {
                Some(stem) => format!("{stem}ies"),
                None if singular.ends_with("sh") => format!("{singular}es"),
                None => format!("{singular}s"),
            };
            (format!("{plural}.{group}"), versions.map(|(_, version)| version).collect())
        })
        .collect();
    assert_eq!(read, READ.into_iter().map(|(name, versions)| (name.to_owned(), versions.to_vec())).collect());
}

#[test]
fn cilium_is_judged() {
    let mut facts = fit();
    let cilium = |settings: &[(&str, &str)]| Some(settings.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect());
    facts.cilium = cilium(&[("bpf-lb-sock", "true")]);
    let findings = before(&facts);
    assert!(findings.len() == 1 && findings[0].mend.contains("socketLB.hostNamespaceOnly"), "{findings:?}");
    facts.cilium = cilium(&[("bpf-lb-sock", "true"), ("bpf-lb-sock-hostns-only", "true")]);
    assert_eq!(before(&facts), []);
}

const NOW: u64 = 1_000_000;

fn well(node: &str) -> Report {
    let certificate = Certificate {
        identity: "spiffe://cluster.local/ns/shop/sa/web".into(),
        state: "ready".into(),
        not_after: Some(NOW + 80_000),
        failures: 0,
        last_error: None,
        root: None,
        trusted: Vec::new(),
    };
    Report {
        node: node.into(),
        pod: format!("mesh-agent-{node}"),
        ready: true,
        version: Some(env!("CARGO_PKG_VERSION").into()),
        certificates: vec![certificate],
        clock_ahead: Some(0),
        ..Report::default()
    }
}

fn running(reports: Vec<Report>) -> After {
    let full = |wanted| Some(Rollout { observed: true, wanted, updated: wanted, ready: wanted });
    After { agents: full(reports.len() as i32), control: full(2), reports, ..After::default() }
}

#[test]
fn nothing_is_said_of_a_mesh_that_runs() {
    assert_eq!(after(&running(vec![well("n1"), well("n2")]), NOW), []);
}

#[test]
fn agents_pods_and_certificates_that_do_not_work_are_named() {
    let mut sick = well("n2");
    sick.ready = false;
    sick.awaited = Some("certificates (the CA at https://mesh-control refuses)".into());
    sick.workloads = vec![Workload { name: "shop/web".into(), state: "held".into(), awaited: Some("a certificate".into()) }];
    sick.certificates[0] =
        Certificate { not_after: Some(NOW + 60), failures: 3, last_error: Some("refused".into()), ..sick.certificates[0].clone() };
    sick.certificates.push(Certificate {
        identity: "spiffe://x".into(),
        state: "pending".into(),
        not_after: None,
        failures: 1,
        last_error: None,
        root: None,
        trusted: Vec::new(),
    });
    let mut facts = running(vec![well("n1"), sick]);
    facts.agents = Some(Rollout { observed: true, wanted: 2, updated: 2, ready: 1 });
    facts.control = None;
    let findings = after(&facts, NOW);
    assert!(fatal(&findings));
    let expected = "\
SEVERITY  OBJECT                                            WHAT                                                                     MEND
error     DaemonSet mesh-agent                              1/2 ready                                                                see the findings about its pods
error     Deployment mesh-control                           it does not exist                                                        run meshctl install
error     Pod shop/web                                      it is in the mesh and held: it waits for a certificate                   mend what its agent on node n2 waits for; until then its connections are refused
error     agent of node n2                                  it waits for certificates (the CA at https://mesh-control refuses)       the log of pod mesh-agent-n2 says more
error     spiffe://x on node n2                             it has no certificate                                                    see that mesh-control is ready and reachable from the node on port 15012
warning   spiffe://cluster.local/ns/shop/sa/web on node n2  its certificate expires in 1m and cannot be renewed (refused)            see that mesh-control is ready and reachable from the node on port 15012
";
    assert_eq!(told(&findings).split_whitespace().collect::<Vec<_>>(), expected.split_whitespace().collect::<Vec<_>>());
}

#[test]
fn a_clock_that_is_apart_is_found_whoever_asks() {
    let at = |node: &str, ahead: i64| Report { clock_ahead: Some(ahead), ..well(node) };
    let one = after(&running(vec![at("n1", 0), at("n2", 40), at("n3", 1)]), NOW);
    assert_eq!(one.len(), 1);
    assert!(one[0].object == "Node n2" && one[0].message.starts_with("its clock is 39 s ahead"), "{one:?}");
    let ours = after(&running(vec![at("n1", -90), at("n2", -91), at("n3", -90)]), NOW);
    assert_eq!(ours.iter().map(|finding| (finding.severity, &*finding.object)).collect::<Vec<_>>(), [(Severity::Warning, "this machine")]);
}

#[test]
fn a_problem_that_every_agent_has_is_told_once() {
    let line = "AuthorizationPolicy shop/web (resourceVersion 7): spec.action: \"CUSTOM\" is not supported";
    let with = |node: &str| Report { problems: vec![line.into()], ..well(node) };
    let findings = after(&running(vec![with("n1"), with("n2")]), NOW);
    assert_eq!(findings.len(), 1);
    assert_eq!(findings[0].object, "AuthorizationPolicy shop/web (resourceVersion 7)");
}

#[test]
fn versions_that_differ_are_told() {
    let old = Report { version: Some("0.0.9".into()), ..well("n2") };
    assert_eq!(after(&running(vec![well("n1"), old.clone()]), NOW)[0].object, "DaemonSet mesh-agent");
    assert_eq!(after(&running(vec![old]), NOW)[0].object, "meshctl");
}
