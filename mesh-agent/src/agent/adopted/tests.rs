use std::path::Path;
use std::sync::Arc;

use mesh_common::addr::{Addr, Endpoint, Port};
use mesh_common::service::ServiceEntry;
use mesh_common::workload::{PodEntry, WorkloadEntry};
use mesh_model::document::parse_documents;

use super::*;

fn snapshot(text: &str) -> Snapshot {
    let parsed = parse_documents(Path::new("mesh.yaml"), text);
    Snapshot::build(&parsed.documents, parsed.problems, None)
}

fn pod(name: &str, ip: &str) -> String {
    format!("---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop}}\nstatus: {{podIP: {ip}}}\n")
}

fn service(name: &str, ip: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{clusterIP: {ip}, ports: [{{port: 80}}]}}\n"
    )
}

fn address(text: &str) -> Addr {
    text.parse::<IpAddr>().unwrap().into()
}

fn uid(name: &str) -> WorkloadUid {
    WorkloadUid(format!("shop/{name}").into())
}

/// A pod of this node (1), one of which only the address is known (2), a Service (3).
fn state() -> KernelState {
    let mut state = KernelState::default();
    state.pods.insert(70, PodEntry { workload: 1, identity: 5 << 20, ..PodEntry::default() });
    let workload = |workload| WorkloadEntry { workload, ..WorkloadEntry::default() };
    state.workloads.extend([(address("10.0.0.1"), workload(1)), (address("10.0.0.2"), workload(2))]);
    let at = Endpoint::new(address("10.96.0.1"), 80);
    state.services.insert(at, ServiceEntry { service: 3, list: 0, count: 0, flags: 0 });
    state
}

/// A connection of a generation before: 11 called 12 by the Service 13.
fn older() -> (FlowKey, FlowEntry) {
    let key = FlowKey {
        source: address("10.0.0.1"),
        destination: address("10.0.0.2"),
        source_port: Port::new(40_000),
        destination_port: Port::new(7000),
    };
    let dialled = Endpoint::new(address("10.96.0.1"), 80);
    (key, FlowEntry { source: 11, destination: 12, service: 13, dialled, ..FlowEntry::default() })
}

type Named = Vec<(u32, String)>;

fn names(adopted: &Adopted) -> (Named, Named) {
    let mut workloads: Vec<_> = adopted.workloads().map(|(number, uid)| (number, uid.to_string())).collect();
    let mut services: Vec<_> = adopted.services().map(|(number, name)| (number, name.to_string())).collect();
    workloads.sort();
    services.sort();
    (workloads, services)
}

fn list(expected: &[(u32, &str)]) -> Named {
    expected.iter().map(|(number, name)| (*number, (*name).to_owned())).collect()
}

#[test]
fn numbers_of_every_earlier_agent_find_their_names() {
    let mut adopted = Adopted::of(&state(), std::iter::once(older()));
    let mesh = snapshot(&[pod("web", "10.0.0.1"), pod("db", "10.0.0.2"), service("store", "10.96.0.1")].concat());
    adopted.settle(&mesh, &HashMap::from([(70, uid("web"))]));
    let (workloads, services) = names(&adopted);
    assert_eq!(workloads, list(&[(1, "shop/web"), (2, "shop/db"), (11, "shop/web"), (12, "shop/db")]));
    assert_eq!(services, list(&[(3, "shop/store"), (13, "shop/store")]));
}

#[test]
fn nobody_is_named_in_anothers_place() {
    let mut adopted = Adopted::of(&state(), std::iter::empty());
    // The address is another pod's, in another namespace; the one of the number is gone.
    let heir = snapshot(&pod("heir", "10.0.0.1"));
    adopted.settle(&heir, &HashMap::from([(71, uid("heir"))]));
    assert_eq!(names(&adopted), (vec![], vec![]));
    // What is settled stays: an address that is given to another later is not the number's.
    adopted.settle(&snapshot(&pod("db", "10.0.0.2")), &HashMap::from([(70, uid("web"))]));
    adopted.settle(&snapshot(&pod("other", "10.0.0.2")), &HashMap::new());
    assert_eq!(names(&adopted).0, list(&[(1, "shop/web"), (2, "shop/db")]));
}

#[test]
fn what_nothing_carries_is_let_go_at_the_second_look() {
    let mut adopted = Adopted::of(&state(), std::iter::once(older()));
    let mesh = snapshot(&[pod("web", "10.0.0.1"), pod("db", "10.0.0.2"), service("store", "10.96.0.1")].concat());
    adopted.settle(&mesh, &HashMap::from([(70, uid("web"))]));
    let live = || Used::by(std::iter::once(older()));
    assert!(!adopted.retain(&live()));
    assert!(adopted.retain(&live()));
    assert_eq!(names(&adopted), (list(&[(11, "shop/web"), (12, "shop/db")]), list(&[(13, "shop/store")])));
    assert!(!adopted.retain(&Used::default()));
    // One that was missed by a look is not forgotten for that.
    assert!(!adopted.retain(&live()) && !adopted.retain(&Used::default()));
    assert!(adopted.retain(&Used::default()) && adopted.is_empty());
}

#[test]
fn new_numbers_meet_none_that_is_in_use() {
    let mut state = state();
    state.lists.insert(6 << 20 | 1, Arc::from([]));
    let adopted = Adopted::of(&state, std::iter::empty());
    assert_eq!((adopted.base(4), adopted.base(5)), (7 << 20, 7 << 20));
    assert_eq!(adopted.base(6), 7 << 20);
    assert_eq!(Adopted::default().base(4), 5 << 20);
}
