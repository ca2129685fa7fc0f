use std::path::Path;

use mesh_model::document::parse_documents;
use mesh_model::policy::SetInterner;

use super::*;

/// A pod of node n1 in the namespace `shop`, and these ServiceEntries: name and spec.
fn state(entries: &[(&str, &str)]) -> KernelState {
    let mut text = "apiVersion: v1\nkind: Pod\nmetadata: {name: client, namespace: shop, labels: {nodemesh.dev/mesh: enabled}}\n\
                    spec: {nodeName: n1, containers: []}\nstatus: {podIP: 10.1.0.1}\n---\napiVersion: v1\nkind: Service\n\
                    metadata: {name: web, namespace: shop}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}\n"
        .to_owned();
    for (name, spec) in entries {
        let (namespace, name) = name.split_once('/').unwrap();
        text += &format!(
            "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}\n"
        );
    }
    let parsed = parse_documents(Path::new("mesh.yaml"), &text);
    let snapshot = Snapshot::build(&parsed.documents, parsed.problems, None);
    let client = snapshot.workloads().next().unwrap();
    let policy = Arc::new(WorkloadPolicy::of(&snapshot, client, &mut SetInterner::default()));
    let pods = [(client.uid.clone(), PodStatus { netns_cookie: Some(7), ready: true, policy })].into();
    desired(&snapshot, "n1", &pods, &HashMap::new(), &HashMap::new(), &mut Registry::new(1))
}

fn at(state: &KernelState, address: &str) -> Option<(u32, u32)> {
    let entry = state.services.get(&Endpoint::from(address.parse::<std::net::SocketAddr>().unwrap()))?;
    Some((entry.flags, entry.count))
}

const OUTSIDE: u32 = SERVICE_VIA_AGENT | SERVICE_OUTSIDE;

#[test]
fn addresses_of_hosts_outside_lead_to_the_agent() {
    let tcp = "ports: [{number: 90, name: tcp, protocol: TCP}], resolution: STATIC, endpoints: [{address: 203.0.113.1}]";
    let state = state(&[
        ("shop/one", &format!("hosts: [a.example.com], addresses: [192.0.2.1, '2001:db8::1'], {tcp}")),
        ("other/two", &format!("hosts: [b.example.com], addresses: [192.0.2.1], {tcp}")),
        ("other/three", &format!("hosts: [c.example.com], addresses: [10.96.0.1], {}", tcp.replace("90", "80"))),
    ]);
    assert_eq!(at(&state, "192.0.2.1:90"), Some((OUTSIDE, 0)));
    assert_eq!(at(&state, "[2001:db8::1]:90"), Some((OUTSIDE, 0)));
    assert_eq!(at(&state, "10.96.0.1:80"), Some((0, 0)), "a Service keeps its address");
    assert!(state.egress_ports.is_empty(), "addresses tell them");
}

#[test]
fn ports_of_hosts_without_addresses_are_watched_for_those_who_know_them() {
    let http = |port: u16| format!("ports: [{{number: {port}, name: http, protocol: HTTP}}]");
    let state = state(&[
        ("shop/own", &format!("hosts: [a.example.com], {}, exportTo: [.]", http(81))),
        ("other/hidden", &format!("hosts: [b.example.com], {}, exportTo: [.]", http(82))),
        ("other/all", &format!("hosts: ['*.example.com'], {}", http(83))),
        ("other/range", &format!("hosts: [c.example.com], addresses: [198.51.100.0/24], {}", http(84))),
    ]);
    assert_eq!(state.egress_ports, [81, 83, 84].into());
}
