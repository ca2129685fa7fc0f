use std::path::Path;

use super::*;
use crate::document::parse_documents;
use crate::policy::{Action, SetInterner, compile};
use crate::workload::{PodNetwork, PodNetworks};

fn snapshot(text: &str) -> Snapshot {
    after(text, None)
}

fn after(text: &str, previous: Option<&Snapshot>) -> Snapshot {
    let parsed = parse_documents(Path::new("mesh.yaml"), text);
    Snapshot::build(&parsed.documents, parsed.problems, previous)
}

fn namespace(name: &str, label: &str) -> String {
    let labels = if label.is_empty() { String::new() } else { format!("labels: {{nodemesh.dev/mesh: {label}}}") };
    format!("---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n  {labels}\n")
}

/// `extra` is further YAML at the margin of `metadata`'s siblings, e.g. `spec: …`.
fn pod(name: &str, labels: &str, ip: &str, extra: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap();
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: {namespace}\n  labels: {{{labels}}}\n{extra}\nstatus:\n  podIP: {ip}\n"
    )
}

fn policy(name: &str, spec: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap();
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

fn service(name: &str, ip: &str, spec: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap();
    format!("---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  clusterIP: {ip}\n  {spec}\n")
}

fn by_name<'a>(snapshot: &'a Snapshot, name: &str) -> &'a Arc<Workload> {
    snapshot.workloads().find(|w| *w.name == *name).unwrap_or_else(|| panic!("no {name}: {snapshot:#?}"))
}

fn policies(snapshot: &Snapshot, pod: &str) -> Vec<String> {
    snapshot.policies_for(by_name(snapshot, pod)).policies.iter().map(|p| p.name.to_string()).collect()
}

fn endpoints(snapshot: &Snapshot, service: &str) -> Vec<String> {
    let (_, port) = snapshot.service_at(service.parse().unwrap()).unwrap_or_else(|| panic!("no {service}"));
    port.endpoints.iter().map(|e| e.address.to_string()).collect()
}

fn complaints(snapshot: &Snapshot) -> Vec<String> {
    snapshot.problems().iter().map(ToString::to_string).collect()
}

#[test]
fn pods_are_enrolled_by_label_and_have_an_identity() {
    let snapshot = snapshot(
        &[
            "apiVersion: nodemesh.dev/v1alpha1\nkind: Mesh\nmetadata: {name: default}\nspec: {trustDomain: prod.example}\n",
            &namespace("shop", "enabled"),
            &namespace("other", ""),
            &pod("shop/web", "app: web", "10.0.0.1", "spec: {serviceAccountName: web, nodeName: n1}"),
            &pod("shop/out", "nodemesh.dev/mesh: disabled", "10.0.0.2", ""),
            &pod("other/in", "nodemesh.dev/mesh: enabled", "10.0.0.3", ""),
            &pod("other/plain", "", "10.0.0.4", ""),
            &pod("other/typo", "nodemesh.dev/mesh: enable", "10.0.0.5", ""),
            &pod("shop/host", "", "172.16.0.1", "spec: {hostNetwork: true, nodeName: n1}"),
        ]
        .concat(),
    );
    let enrolled = |name| by_name(&snapshot, name).enrolled;
    assert!(enrolled("web") && !enrolled("out") && enrolled("in") && !enrolled("plain") && enrolled("typo") && !enrolled("host"));
    assert_eq!(by_name(&snapshot, "web").identity.to_string(), "spiffe://prod.example/ns/shop/sa/web");
    assert_eq!(by_name(&snapshot, "in").identity.to_string(), "spiffe://prod.example/ns/other/sa/default");
    assert_eq!(&*snapshot.workload_at("::ffff:10.0.0.1".parse().unwrap()).unwrap().name, "web");
    assert!(snapshot.workload_at("172.16.0.1".parse().unwrap()).is_none(), "the node's address is no pod's");
    assert_eq!(snapshot.held(), []);
    assert_eq!(complaints(&snapshot).len(), 1, "{:?}", complaints(&snapshot));
}

#[test]
fn a_pod_of_the_mesh_that_is_not_understood_is_held() {
    let snapshot = snapshot(
        &[
            namespace("shop", "enabled"),
            pod("shop/bad", "", "10.0.0.1", "spec: {nodeName: n1, serviceAccountName: 'No Name'}"),
            pod("shop/worse", "", "10.0.0.2", "spec: {nodeName: n1, containers: none}"),
            pod("other/bad", "", "10.0.0.3", "spec: {containers: none}"),
        ]
        .concat(),
    );
    let held: Vec<_> = snapshot.held().iter().map(|h| (h.name.to_string(), &*h.node, h.addresses.len())).collect();
    assert_eq!(held, [("shop/bad".to_string(), "n1", 1), ("shop/worse".to_string(), "n1", 1)]);
    assert_eq!(snapshot.workloads().len(), 0);
    assert!(snapshot.held()[0].reason.contains("No Name"));
}

#[test]
fn finished_pods_are_gone_and_an_address_is_the_newest_pods() {
    let aged = |name: &str, year: u32| {
        pod(name, "", "10.0.0.1", "").replace("  labels", &format!("  creationTimestamp: {year}-01-01T00:00:00Z\n  labels"))
    };
    let done = pod("a/done", "", "10.0.0.1", "").replace("podIP", "phase: Succeeded\n  podIP");
    let snapshot = snapshot(&[aged("a/new", 2026), aged("a/old", 2025), done].concat());
    assert_eq!(snapshot.workloads().len(), 2);
    assert_eq!(&*snapshot.workload_at("10.0.0.1".parse().unwrap()).unwrap().name, "new");
    assert!(by_name(&snapshot, "old").addresses.is_empty());
    let complaints = complaints(&snapshot);
    assert!(complaints.len() == 1 && complaints[0].contains("Pod a/old: status.podIPs: 10.0.0.1"), "{complaints:?}");
}

#[test]
fn endpoints_come_from_the_selector_where_there_is_no_slice() {
    let ported = "spec: {containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}";
    let text = [
        pod("shop/a", "app: web", "10.0.0.1", ported),
        pod("shop/b", "app: web", "fd00::b", ported),
        pod("shop/leaving", "app: web", "10.0.0.3", ported).replace("  labels", "  deletionTimestamp: 2026-01-01T00:00:00Z\n  labels"),
        pod("shop/pending", "app: web", "10.0.0.4", ported).replace("podIP", "phase: Pending\n  podIP"),
        pod("shop/unready", "app: web", "10.0.0.5", ported).replace("podIP", "conditions: [{type: Ready, status: 'False'}]\n  podIP"),
        pod("shop/nameless", "app: web", "10.0.0.6", ""),
        pod("shop/host", "app: web", "172.16.0.1", &ported.replace("{containers", "{hostNetwork: true, containers")),
        pod("other/a", "app: web", "10.0.0.8", ported),
        service(
            "shop/web",
            "10.96.0.1",
            "selector: {app: web}\n  ports: [{name: http, port: 80, targetPort: http}, {name: n, port: 81, targetPort: 9000}]",
        ),
    ]
    .concat();
    let snapshot = snapshot(&text);
    assert_eq!(endpoints(&snapshot, "10.96.0.1:80"), ["10.0.0.1:8080", "172.16.0.1:8080", "[fd00::b]:8080"]);
    assert_eq!(endpoints(&snapshot, "10.96.0.1:81"), ["10.0.0.1:9000", "10.0.0.6:9000", "172.16.0.1:9000", "[fd00::b]:9000"]);
    assert!(snapshot.service_at("10.96.0.1:82".parse().unwrap()).is_none());
}

#[test]
fn slices_go_before_the_selector() {
    let slice = concat!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}\n",
        "addressType: IPv4\nports: [{name: http, port: 8080}, {name: other, port: 1}]\nendpoints:\n",
        "- {addresses: [10.0.0.1], targetRef: {kind: Pod, name: a}}\n- {addresses: [10.0.0.9], conditions: {ready: false}}\n- {addresses: [10.0.0.7]}\n",
    );
    let snapshot = snapshot(
        &[
            pod("shop/a", "app: web", "10.0.0.1", ""),
            pod("shop/b", "app: web", "10.0.0.2", ""),
            service("shop/web", "10.96.0.1", "selector: {app: web}\n  ports: [{name: http, port: 80}]"),
            slice.into(),
        ]
        .concat(),
    );
    assert_eq!(endpoints(&snapshot, "10.96.0.1:80"), ["10.0.0.1:8080", "10.0.0.7:8080"]);
    let (_, port) = snapshot.service_at("10.96.0.1:80".parse().unwrap()).unwrap();
    let owners: Vec<_> = port.endpoints.iter().map(|e| e.workload.as_ref().map(ToString::to_string)).collect();
    assert_eq!(owners, [Some("shop/a".to_string()), None]);
}

#[test]
fn a_cluster_ip_has_one_service() {
    let text = [service("a/x", "10.96.0.1", "ports: [{port: 80}]"), service("b/x", "10.96.0.1", "ports: [{port: 80}]")].concat();
    let snapshot = snapshot(&text);
    assert_eq!(snapshot.service_at("10.96.0.1:80".parse().unwrap()).unwrap().0.name.to_string(), "a/x");
    assert_eq!(complaints(&snapshot).len(), 1);
}

#[test]
fn policies_reach_whom_they_are_about() {
    let snapshot = snapshot(
        &[
            pod("shop/web", "app: web", "10.0.0.1", ""),
            pod("shop/db", "app: db", "10.0.0.2", ""),
            pod("shop/unready", "app: db", "10.0.0.3", "").replace("podIP", "phase: Pending\n  podIP"),
            pod("other/web", "app: web", "10.0.0.4", "").replace("name: web", "name: foreign"),
            pod("nodemesh-system/cp", "app: web", "10.0.0.5", ""),
            service("shop/data", "10.96.0.1", "selector: {app: db}\n  ports: [{port: 80}]"),
            policy("nodemesh-system/mesh", "{}"),
            policy("nodemesh-system/webs", "{selector: {matchLabels: {app: web}}}"),
            policy("shop/all", "{}"),
            policy("shop/web", "{selector: {matchLabels: {app: web}}}"),
            policy("shop/data", "{targetRefs: [{kind: Service, name: data}]}"),
            policy("shop/gone", "{targetRefs: [{kind: Service, name: gone}]}"),
        ]
        .concat(),
    );
    assert_eq!(policies(&snapshot, "web"), ["nodemesh-system/mesh", "nodemesh-system/webs", "shop/all", "shop/web"]);
    assert_eq!(policies(&snapshot, "db"), ["nodemesh-system/mesh", "shop/all", "shop/data"]);
    assert_eq!(policies(&snapshot, "unready"), ["nodemesh-system/mesh", "shop/all", "shop/data"]);
    assert_eq!(policies(&snapshot, "foreign"), ["nodemesh-system/mesh", "nodemesh-system/webs"]);
    assert_eq!(policies(&snapshot, "cp"), ["nodemesh-system/mesh", "nodemesh-system/webs"]);
    assert!(complaints(&snapshot).iter().any(|c| c.contains("shop/gone") && c.contains("does not exist")));
}

#[test]
fn a_policy_for_a_service_that_is_not_understood_denies_in_its_namespace() {
    let text = [
        pod("shop/web", "app: web", "10.0.0.1", ""),
        service("shop/data", "10.96.0.1", "ports: [{port: eighty}]"),
        policy("shop/data", "{targetRefs: [{kind: Service, name: data}]}"),
    ];
    let snapshot = snapshot(&text.concat());
    let effective = snapshot.policies_for(by_name(&snapshot, "web"));
    assert!(effective.policies[0].refused.is_some());
}

#[test]
fn a_policy_defined_twice_and_differently_denies() {
    let web = pod("shop/web", "", "10.0.0.1", "");
    let same = snapshot(&[&*web, &policy("shop/p", "{}"), &policy("shop/p", "{}")].concat());
    assert_eq!(policies(&same, "web").len(), 1);
    assert_eq!(complaints(&same).len(), 1);
    let differs = snapshot(&[&*web, &policy("shop/p", "{rules: [{}]}"), &policy("shop/p", "{action: AUDIT}")].concat());
    let effective = differs.policies_for(by_name(&differs, "web"));
    assert!(effective.policies.iter().any(|p| p.refused.is_some() && p.action == Action::Allow), "{effective:?}");
    let compiled = compile(&effective, &mut SetInterner::default());
    assert_eq!(compiled.refused.len(), 1);
}

#[test]
fn a_policy_that_cannot_be_placed_is_about_the_whole_mesh() {
    let text = [pod("shop/web", "", "10.0.0.1", ""), policy("shop/p", "{}").replace("namespace: shop", "namespace: [x]")].concat();
    let snapshot = snapshot(&text);
    assert_eq!(policies(&snapshot, "web"), ["/p"]);
}

#[test]
fn mtls_modes_come_from_all_levels() {
    let peer = |name: &str, spec: &str| policy(name, spec).replace("AuthorizationPolicy", "PeerAuthentication");
    let snapshot = snapshot(
        &[
            pod("shop/web", "app: web", "10.0.0.1", ""),
            pod("other/x", "", "10.0.0.2", ""),
            peer("nodemesh-system/default", "{mtls: {mode: STRICT}}"),
            peer("shop/web", "{selector: {matchLabels: {app: web}}, portLevelMtls: {8080: {mode: PERMISSIVE}}}"),
            peer("shop/web2", "{selector: {matchLabels: {app: web}}, mtls: {mode: DISABLE}}"),
        ]
        .concat(),
    );
    let mode = |name, port| snapshot.mtls_mode(by_name(&snapshot, name), port);
    assert_eq!([mode("web", 80), mode("web", 8080), mode("x", 80)], [MtlsMode::Strict, MtlsMode::Permissive, MtlsMode::Strict]);
    assert!(complaints(&snapshot).iter().any(|c| c.contains("shop/web2") && c.contains("shop/web,")), "{:?}", complaints(&snapshot));
}

#[test]
fn same_node_is_encrypted_by_mesh_or_namespace() {
    let encrypt = namespace("shop", "enabled").replace("  labels", "  annotations: {nodemesh.dev/same-node: encrypt}\n  labels");
    let some = snapshot(&encrypt);
    assert_eq!((some.same_node("shop"), some.same_node("other")), (SameNode::Encrypt, SameNode::Kernel));
    let all = snapshot("apiVersion: nodemesh.dev/v1alpha1\nkind: Mesh\nmetadata: {name: default}\nspec: {sameNode: encrypt}\n");
    assert_eq!(all.same_node("shop"), SameNode::Encrypt);
    let misnamed = snapshot("apiVersion: nodemesh.dev/v1alpha1\nkind: Mesh\nmetadata: {name: mine}\nspec: {sameNode: encrypt}\n");
    assert_eq!(misnamed.same_node("shop"), SameNode::Kernel);
    assert_eq!(complaints(&misnamed).len(), 1);
}

#[test]
fn what_has_not_changed_is_shared() {
    let web = pod("shop/web", "app: web", "10.0.0.1", "");
    let web_service = service("shop/web", "10.96.0.1", "selector: {app: web}\n  ports: [{port: 80}]");
    let first = snapshot(&[&*web, &web_service].concat());
    let second = after(&[&*web, &web_service, &pod("shop/db", "", "10.0.0.2", "")].concat(), Some(&first));
    assert_eq!((first.version(), second.version()), (1, 2));
    assert!(Arc::ptr_eq(by_name(&first, "web"), by_name(&second, "web")));
    assert!(Arc::ptr_eq(first.services().next().unwrap(), second.services().next().unwrap()));
}

/// Guards against a quadratic build: that one takes minutes.
#[test]
fn ten_thousand_pods_are_joined_in_seconds() {
    let mut text = namespace("shop", "enabled");
    for i in 0..10_000 {
        text +=
            &pod(&format!("shop/p{i}"), &format!("app: a{}", i % 500), &format!("10.{}.{}.{}", i / 62500, i / 250 % 250, i % 250 + 1), "");
    }
    for i in 0..500 {
        text += &service(
            &format!("shop/s{i}"),
            &format!("10.96.{}.{}", i / 250, i % 250),
            &format!("selector: {{app: a{i}}}\n  ports: [{{port: 80}}]"),
        );
        text += &policy(&format!("shop/p{i}"), &format!("{{targetRefs: [{{kind: Service, name: s{i}}}]}}"));
    }
    let parsed = parse_documents(Path::new("mesh.yaml"), &text);
    let start = std::time::Instant::now();
    let snapshot = Snapshot::build(&parsed.documents, parsed.problems, None);
    let took = start.elapsed();
    assert_eq!((snapshot.workloads().len(), complaints(&snapshot).len()), (10_000, 0));
    assert_eq!(endpoints(&snapshot, "10.96.0.7:80").len(), 20);
    assert_eq!(policies(&snapshot, "p7"), ["shop/p7"]);
    println!("built in {took:?}");
    assert!(took < std::time::Duration::from_secs(10), "{took:?}");
}

#[test]
fn a_node_knows_networks_that_no_document_names() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: new, namespace: shop, uid: u-new}\nspec: {nodeName: n1, containers: []}\n\
        status: {phase: Pending}\n---\n\
        apiVersion: v1\nkind: Pod\nmetadata: {name: old, namespace: shop, uid: u-old, annotations: {nodemesh.dev/netns: /run/netns/old}}\n\
        spec: {nodeName: n1, containers: []}\nstatus: {podIP: 10.0.0.2}\n---\n\
        apiVersion: v1\nkind: Pod\nmetadata: {name: host, namespace: shop, uid: u-host}\nspec: {hostNetwork: true, containers: []}\n";
    let parsed = crate::document::parse_documents(std::path::Path::new("a.yaml"), text);
    let network = |n: u8| PodNetwork { netns: format!("/proc/self/fd/{n}").into(), addresses: vec![IpAddr::from([10, 0, 0, 100 + n])] };
    let networks: PodNetworks =
        [("u-new", 1), ("u-old", 2), ("u-host", 3)].map(|(uid, n)| (WorkloadUid(uid.into()), network(n))).into_iter().collect();
    let snapshot = Snapshot::build_on_node(&parsed.documents, parsed.problems, &networks, None);
    let of = |uid: &str| {
        let workload = snapshot.workload(&WorkloadUid(uid.into())).unwrap();
        (workload.netns.as_deref().and_then(|path| path.to_str()).map(str::to_owned), workload.addresses.clone())
    };
    let own = IpAddr::from([10, 0, 0, 101]);
    assert_eq!(of("u-new"), (Some("/proc/self/fd/1".into()), vec![own]));
    assert_eq!(&*snapshot.workload_at(own).unwrap().name, "new");
    // What the documents say holds, and a pod in its node's network has none of its own.
    assert_eq!(of("u-old"), (Some("/run/netns/old".into()), vec![IpAddr::from([10, 0, 0, 2])]));
    assert_eq!(of("u-host"), (None, Vec::new()));
}

#[test]
fn request_authentications_of_root_namespace_and_target_hold() {
    let tokens = |name: &str, spec: &str| policy(name, spec).replace("AuthorizationPolicy", "RequestAuthentication");
    let rule = "jwtRules: [{issuer: 'https://i', jwks: '{\"keys\": [{}]}'}]";
    let text = [
        namespace("a", "enabled"),
        namespace("b", "enabled"),
        pod("a/web", "app: web", "10.0.0.1", ""),
        pod("a/db", "app: db", "10.0.0.2", ""),
        service("a/web", "10.96.0.1", "selector: {app: web}\n  ports: [{port: 80}]"),
        tokens("nodemesh-system/all", &format!("{{{rule}}}")),
        tokens("a/web", &format!("{{targetRefs: [{{kind: Service, name: web}}], {rule}}}")),
        tokens("a/db", &format!("{{selector: {{matchLabels: {{app: db}}}}, {rule}}}")),
        tokens("b/other", &format!("{{{rule}}}")),
    ]
    .concat();
    let snapshot = snapshot(&text);
    let of =
        |pod: &str| -> Vec<String> { snapshot.authentication_for(by_name(&snapshot, pod)).iter().map(|p| p.name.to_string()).collect() };
    assert_eq!(of("web"), ["nodemesh-system/all", "a/web"]);
    assert_eq!(of("db"), ["nodemesh-system/all", "a/db"]);
    assert_eq!(complaints(&snapshot), Vec::<String>::new());
    let twice = after(&format!("{text}{}", tokens("a/web", "{jwtRules: []}")), None);
    let found = twice.authentication_for(by_name(&twice, "web"));
    assert!(found.iter().skip(1).all(|policy| policy.refused.is_some()) && found.len() > 1, "{found:?}");
}
