use std::path::Path;

use mesh_model::workload::{PodNetwork, WorkloadUid};

use super::*;

const KINDS: [Kind; 4] = [Kind::Namespace, Kind::Pod, Kind::AuthorizationPolicy, Kind::Mesh];

fn namespace(name: &str, mesh: &str) -> Value {
    json!({"metadata": {"name": name, "uid": format!("n-{name}"), "labels": {"nodemesh.dev/mesh": mesh}}})
}

fn pod(name: &str, ip: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "shop", "uid": format!("u-{name}"), "resourceVersion": "7"},
        "spec": {"nodeName": "n1", "serviceAccountName": name, "containers": [{"name": "c"}]},
        "status": {"phase": "Running", "podIPs": [{"ip": ip}]},
    })
}

fn policy(name: &str, spec: Value) -> Value {
    json!({"metadata": {"name": name, "namespace": "shop", "uid": format!("p-{name}"), "resourceVersion": "8", "generation": 2}, "spec": spec})
}

fn with(mut value: Value, at: &str, field: Value) -> Value {
    *value.pointer_mut(at).unwrap() = field;
    value
}

fn list(store: &mut Store, kind: Kind, objects: impl IntoIterator<Item = Value>) -> Effect {
    assert_eq!(store.take(kind, Event::ListBegins), Effect::None);
    for object in objects {
        assert_eq!(store.take(kind, Event::Listed(object)), Effect::None);
    }
    store.take(kind, Event::ListEnds)
}

/// One namespace in the mesh with two pods.
fn filled() -> Store {
    let mut store = Store::new(KINDS);
    let _ = list(&mut store, Kind::Namespace, [namespace("shop", "enabled")]);
    let _ = list(&mut store, Kind::Pod, [pod("web", "10.0.0.1"), pod("db", "10.0.0.2")]);
    let _ = list(&mut store, Kind::AuthorizationPolicy, []);
    let _ = store.take(Kind::Mesh, Event::Absent);
    store
}

fn names(store: &Store) -> Vec<String> {
    let snapshot = store.snapshot(None).unwrap();
    let mut names: Vec<String> = snapshot.workloads().map(|workload| workload.name.to_string()).collect();
    names.sort();
    names
}

fn problems(store: &Store) -> Vec<String> {
    store.snapshot(None).unwrap().problems().iter().map(ToString::to_string).collect()
}

/// The policies that hold for the pod `web`: name, and why refused.
fn policies(store: &Store) -> Vec<(String, bool)> {
    let snapshot = store.snapshot(None).unwrap();
    let web = snapshot.workload(&WorkloadUid("u-web".into())).unwrap();
    snapshot.policies_for(web).policies.iter().map(|policy| (policy.name.name.to_string(), policy.refused.is_some())).collect()
}

#[test]
fn nothing_is_in_force_before_every_kind_was_listed_or_is_absent() {
    let mut store = Store::new(KINDS);
    assert_eq!(list(&mut store, Kind::Namespace, [namespace("shop", "enabled")]), Effect::Changed);
    assert_eq!(list(&mut store, Kind::Pod, [pod("web", "10.0.0.1")]), Effect::Changed);
    assert_eq!(store.take(Kind::Mesh, Event::Absent), Effect::Changed);
    assert_eq!(store.take(Kind::AuthorizationPolicy, Event::ListBegins), Effect::None);
    assert_eq!(store.take(Kind::AuthorizationPolicy, Event::Listed(policy("deny", json!({})))), Effect::None);
    assert!(!store.is_complete() && store.snapshot(None).is_none());
    // An empty list is a change too: it is what was waited for.
    assert_eq!(store.take(Kind::AuthorizationPolicy, Event::ListEnds), Effect::Changed);
    assert_eq!(names(&store), ["web"]);
    assert_eq!(policies(&store), [("deny".to_owned(), false)]);
    assert_eq!(problems(&store), [""; 0]);
}

#[test]
fn objects_come_change_and_go() {
    let mut store = filled();
    assert_eq!(names(&store), ["db", "web"]);
    assert_eq!(store.take(Kind::Pod, Event::Applied(pod("new", "10.0.0.3"))), Effect::Changed);
    assert_eq!(store.take(Kind::Pod, Event::Deleted(pod("db", "10.0.0.2"))), Effect::Changed);
    assert_eq!(names(&store), ["new", "web"]);
    assert_eq!(store.take(Kind::Pod, Event::Deleted(pod("db", "10.0.0.2"))), Effect::None);
    assert_eq!(store.take(Kind::Pod, Event::Applied(with(pod("new", "10.0.0.3"), "/status/phase", json!("Succeeded")))), Effect::Changed);
    assert_eq!(names(&store), ["web"]);
    assert_eq!(store.count(Kind::Pod), 2);
}

#[test]
fn what_the_mesh_does_not_read_changes_nothing() {
    let mut store = filled();
    let mut beaten = with(pod("web", "10.0.0.1"), "/metadata/resourceVersion", json!("99"));
    beaten["status"]["conditions"] = json!([{"type": "Ready", "status": "True", "lastProbeTime": "2026-01-01T00:00:00Z"}]);
    assert_eq!(store.take(Kind::Pod, Event::Applied(beaten)), Effect::None);
}

#[test]
fn a_new_list_takes_the_place_of_the_old_one_as_a_whole() {
    let mut store = filled();
    assert_eq!(list(&mut store, Kind::AuthorizationPolicy, [policy("deny", json!({}))]), Effect::Changed);
    assert_eq!(store.take(Kind::AuthorizationPolicy, Event::ListBegins), Effect::None);
    assert_eq!(policies(&store).len(), 1, "the old list is in force while the new one comes in");
    // The list breaks off and begins anew.
    assert_eq!(store.take(Kind::AuthorizationPolicy, Event::Listed(policy("half", json!({})))), Effect::None);
    assert_eq!(list(&mut store, Kind::AuthorizationPolicy, [policy("deny", json!({})), policy("more", json!({}))]), Effect::Changed);
    assert_eq!(policies(&store), [("deny".to_owned(), false), ("more".to_owned(), false)]);
    assert_eq!(list(&mut store, Kind::AuthorizationPolicy, [policy("deny", json!({})), policy("more", json!({}))]), Effect::None);
    assert_eq!(list(&mut store, Kind::AuthorizationPolicy, []), Effect::Changed);
    assert_eq!(policies(&store), []);
}

#[test]
fn a_malformed_object_stays_as_it_was_understood_and_a_policy_denies() {
    let mut store = filled();
    let _ = list(&mut store, Kind::AuthorizationPolicy, [policy("allow", json!({"action": "ALLOW", "rules": [{}]}))]);
    assert_eq!(
        store.take(Kind::Pod, Event::Applied(with(pod("web", "10.0.0.1"), "/status/podIPs", json!([{"ip": "nonsense"}])))),
        Effect::Changed
    );
    let snapshot = store.snapshot(None).unwrap();
    let web = snapshot.workload(&WorkloadUid("u-web".into())).expect("as it was read before");
    assert_eq!(web.addresses, ["10.0.0.1".parse::<std::net::IpAddr>().unwrap()]);
    let said = problems(&store);
    assert!(said.iter().any(|line| line.contains("Pod shop/web (resourceVersion 7): status.podIPs")), "{said:#?}");
    assert!(said.iter().any(|line| line.contains("stays in force")), "{said:#?}");
    assert_eq!(store.take(Kind::AuthorizationPolicy, Event::Applied(policy("allow", json!({"rules": [{"form": 1}]})))), Effect::Changed);
    assert_eq!(policies(&store), [("allow".to_owned(), true)]);
    assert!(
        problems(&store)
            .iter()
            .any(|line| line.starts_with("AuthorizationPolicy shop/allow (resourceVersion 8, generation 2): spec.rules[0].form"))
    );
    // The same once more, in another version: nobody needs to hear of it.
    assert_eq!(store.take(Kind::AuthorizationPolicy, Event::Applied(policy("allow", json!({"rules": [{"form": 1}]})))), Effect::None);
    assert_eq!(store.take(Kind::Pod, Event::Applied(pod("web", "10.0.0.1"))), Effect::Changed);
    assert_eq!(store.take(Kind::AuthorizationPolicy, Event::Applied(policy("allow", json!({"rules": [{}]})))), Effect::Changed);
    assert_eq!(problems(&store), [""; 0]);
}

#[test]
fn what_an_earlier_object_of_the_name_said_does_not_count() {
    let mut store = filled();
    let mut reborn = with(pod("web", "10.0.0.1"), "/status/podIPs", json!([{"ip": "nonsense"}]));
    reborn["metadata"]["uid"] = json!("u-other");
    assert_eq!(store.take(Kind::Pod, Event::Applied(reborn)), Effect::Changed);
    let snapshot = store.snapshot(None).unwrap();
    assert_eq!(names(&store), ["db"]);
    assert_eq!(snapshot.held().len(), 1, "in the mesh, but not understood");
}

#[test]
fn malformed_objects_of_a_list_are_as_those_of_a_watch() {
    let mut store = filled();
    let broken = with(pod("web", "10.0.0.1"), "/spec/containers", json!("none"));
    assert_eq!(
        list(&mut store, Kind::Pod, [broken, pod("db", "10.0.0.2"), with(pod("x", "10.0.0.9"), "/status", json!(1))]),
        Effect::Changed
    );
    assert_eq!(names(&store), ["db", "web"]);
    assert_eq!(store.snapshot(None).unwrap().held().len(), 1);
}

#[test]
fn objects_without_a_name_take_nothing_away() {
    let mut store = filled();
    // Any of those that the list does not name may be the one.
    assert_eq!(list(&mut store, Kind::Pod, [json!({"metadata": {"namespace": "shop"}}), pod("db", "10.0.0.2")]), Effect::Changed);
    assert_eq!(names(&store), ["db", "web"]);
    assert_eq!(list(&mut store, Kind::Pod, [pod("db", "10.0.0.2")]), Effect::Changed);
    assert_eq!(names(&store), ["db"]);
    assert_eq!(store.take(Kind::Pod, Event::Deleted(json!({"metadata": {"name": 5}}))), Effect::Relist);
    assert_eq!(store.take(Kind::Pod, Event::Applied(json!("text"))), Effect::Relist);
    // A policy that cannot be placed counts for everybody.
    for odd in [json!(null), json!([]), json!({"spec": {}}), json!({"metadata": 1})] {
        let mut store = filled();
        let _ = list(&mut store, Kind::Pod, [pod("web", "10.0.0.1")]);
        assert_eq!(store.take(Kind::AuthorizationPolicy, Event::Applied(odd)), Effect::Relist);
        assert_eq!(policies(&store), [(String::new(), true)]);
    }
}

#[test]
fn a_kind_may_come_and_go() {
    let mut store = filled();
    assert_eq!(store.take(Kind::AuthorizationPolicy, Event::Absent), Effect::None);
    assert_eq!(list(&mut store, Kind::AuthorizationPolicy, [policy("deny", json!({}))]), Effect::Changed);
    assert_eq!(policies(&store).len(), 1);
    assert_eq!(store.take(Kind::AuthorizationPolicy, Event::Absent), Effect::Changed);
    assert_eq!(policies(&store), []);
    assert!(store.is_complete());
}

#[test]
fn only_the_agent_names_network_namespaces() {
    let netns = |store: &Store, name: &str| {
        let snapshot = store.snapshot(None).unwrap();
        snapshot.workload(&WorkloadUid(format!("u-{name}").into())).unwrap().netns.clone()
    };
    let mut store = filled();
    let mut liar = pod("web", "10.0.0.1");
    liar["metadata"]["annotations"] = json!({"nodemesh.dev/netns": "/proc/1/ns/net"});
    assert_eq!(store.take(Kind::Pod, Event::Applied(liar.clone())), Effect::Changed);
    assert_eq!(netns(&store, "web"), None);
    let paths = |names: &[&str]| {
        let network = |name| PodNetwork { netns: format!("/run/netns/{name}").into(), addresses: Vec::new() };
        Arc::new(names.iter().map(|name| (WorkloadUid(format!("u-{name}").into()), network(name))).collect())
    };
    assert!(store.set_networks(paths(&["web", "later"])));
    assert!(!store.set_networks(paths(&["web", "later"])));
    assert_eq!(netns(&store, "web").as_deref(), Some(Path::new("/run/netns/web")));
    assert_eq!(netns(&store, "db"), None);
    assert_eq!(store.take(Kind::Pod, Event::Applied(liar)), Effect::None);
    assert_eq!(store.take(Kind::Pod, Event::Applied(pod("later", "10.0.0.5"))), Effect::Changed);
    assert_eq!(netns(&store, "later").as_deref(), Some(Path::new("/run/netns/later")));
    // A list that comes in meanwhile has them as well.
    assert_eq!(store.take(Kind::Pod, Event::ListBegins), Effect::None);
    assert_eq!(store.take(Kind::Pod, Event::Listed(pod("db", "10.0.0.2"))), Effect::None);
    assert!(store.set_networks(paths(&["db"])));
    assert_eq!(store.take(Kind::Pod, Event::ListEnds), Effect::Changed);
    assert_eq!(netns(&store, "db").as_deref(), Some(Path::new("/run/netns/db")));
}

#[test]
fn what_has_not_changed_is_shared() {
    let mut store = filled();
    let first = store.snapshot(None).unwrap();
    let _ = store.take(Kind::Pod, Event::Applied(pod("new", "10.0.0.3")));
    let second = store.snapshot(Some(&first)).unwrap();
    let web = WorkloadUid("u-web".into());
    assert!(Arc::ptr_eq(first.workload(&web).unwrap(), second.workload(&web).unwrap()));
    assert_eq!((first.version(), second.version()), (1, 2));
}

#[test]
fn problems_of_the_source_are_in_the_snapshot() {
    let mut store = filled();
    let problem = Problem { severity: Severity::Error, origin: Origin::Api, object: "".into(), field: "".into(), message: "gone".into() };
    assert!(store.set_problems(vec![problem.clone()]));
    assert!(!store.set_problems(vec![problem]));
    assert_eq!(problems(&store), ["API server: gone"]);
    assert!(store.set_problems(Vec::new()));
}
