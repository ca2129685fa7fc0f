use std::collections::HashMap;

use mesh_model::workload::{PodNetwork, WorkloadUid};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::*;
use crate::source::first_snapshot;
use crate::status::{Progress, Reason};

mod server;

use server::{Fault, NAMESPACES, OLD_POLICIES, PODS, POLICIES, Server, Streaming};

/// Long enough for a loaded machine; nothing waits this long when all is well.
const LIMIT: Duration = Duration::from_secs(30);

fn quick() -> Timing {
    let wait = BackoffSettings { first: Duration::from_millis(5), most: Duration::from_millis(50) };
    let limits = Limits {
        answer: Duration::from_millis(500),
        pause: Duration::from_millis(500),
        silence: Duration::from_secs(2),
        rewatch: Duration::from_millis(5),
    };
    Timing { backoff: wait, absent: wait, grace: Duration::from_millis(50), limits, ..Timing::default() }
}

fn namespace(name: &str) -> Value {
    json!({"metadata": {"name": name, "uid": name, "labels": {"nodemesh.dev/mesh": "enabled"}, "managedFields": [{"a": 1}]}})
}

fn pod(name: &str, last: u16) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "shop", "uid": format!("u-{name}")},
        "spec": {"nodeName": "n1", "serviceAccountName": "sa", "containers": [{"name": "c", "env": [{"name": "A"}]}]},
        "status": {"phase": "Running", "podIPs": [{"ip": format!("10.0.{}.{}", last >> 8, last & 255)}]},
    })
}

fn policy(name: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "shop", "uid": format!("p-{name}")}, "spec": {}})
}

fn pods(snapshot: &Snapshot) -> Vec<String> {
    let mut names: Vec<String> = snapshot.workloads().map(|workload| workload.name.to_string()).collect();
    names.sort();
    names
}

fn policies(snapshot: &Snapshot) -> Vec<String> {
    let Some(web) = snapshot.workload(&WorkloadUid("u-web".into())) else { return Vec::new() };
    snapshot.policies_for(web).policies.iter().map(|policy| policy.name.name.to_string()).collect()
}

struct Followed {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    status: watch::Receiver<SourceStatus>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn follow_with(server: &Server, timing: Timing, netns: Option<watch::Receiver<Arc<PodNetworks>>>) -> Followed {
    let source = Kubernetes::with_client(server.client(), &format!("http://{}", server.address), timing, netns);
    Followed { snapshots: source.subscribe(), status: source.status(), task: tokio::spawn(source.follow()) }
}

fn follow(server: &Server) -> Followed {
    follow_with(server, quick(), None)
}

impl Followed {
    async fn until(&mut self, what: &str, wanted: impl FnMut(&Arc<Snapshot>) -> bool) -> Arc<Snapshot> {
        let found = timeout(LIMIT, self.snapshots.wait_for(wanted)).await.map(|snapshot| snapshot.unwrap().clone());
        let shown = || format!("{what} never came: {:#}", self.status.borrow().describe(std::time::Instant::now()));
        found.unwrap_or_else(|_| panic!("{}", shown()))
    }

    async fn until_pods(&mut self, wanted: &[&str]) -> Arc<Snapshot> {
        self.until(&format!("pods {wanted:?}"), |snapshot| snapshot.version() > 0 && pods(snapshot) == wanted).await
    }

    /// Looks at the status again and again: counts alone are not notified.
    async fn until_status(&mut self, what: &str, wanted: impl Fn(&SourceStatus) -> bool) -> SourceStatus {
        let look = async {
            loop {
                let status = self.status.borrow().clone();
                if wanted(&status) {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let found = timeout(LIMIT, look).await;
        found.unwrap_or_else(|_| panic!("{what} never came: {:#}", self.status.borrow().describe(std::time::Instant::now())))
    }

    async fn until_error(&mut self, kind: Kind, reason: Reason) -> SourceStatus {
        self.until_status(reason.name(), |status| status.kinds[&kind].errors.contains_key(&reason)).await
    }

    fn nothing_in_force(&self) {
        assert_eq!(self.snapshots.borrow().version(), 0);
    }
}

async fn shop() -> Arc<Server> {
    let server = Server::start().await;
    server.put(NAMESPACES, namespace("shop"));
    server.put(PODS, pod("web", 1));
    server
}

#[tokio::test]
async fn lists_then_follows() {
    let server = shop().await;
    let mut followed = follow(&server);
    let first = followed.until_pods(&["web"]).await;
    assert_eq!((first.version(), first.problems().len()), (1, 0), "{:?}", first.problems());
    assert!(first.workloads().all(|workload| workload.enrolled));
    server.put(PODS, pod("db", 2));
    followed.until_pods(&["db", "web"]).await;
    server.delete(PODS, "shop/web");
    followed.until_pods(&["db"]).await;
    let status = followed.status.borrow().clone();
    assert!(status.connected && status.awaited().is_none());
    assert_eq!(status.kinds[&Kind::Pod].lists, 1);
    assert_eq!(status.kinds[&Kind::AuthorizationPolicy].progress, Progress::Absent);
    assert_eq!(server.requests(&[PODS, "sendInitialEvents=true", "phase"]), 1);
    assert_eq!(server.requests(&[NAMESPACES, "sendInitialEvents"]), 0);
}

#[tokio::test]
async fn lists_in_pages_where_the_server_does_not_stream() {
    let server = shop().await;
    server.streaming(Streaming::Refused);
    for i in 2..1202 {
        server.put(PODS, pod(&format!("p{i}"), i));
    }
    let mut followed = follow(&server);
    followed.until("all pods", |snapshot| snapshot.workloads().len() == 1201).await;
    assert_eq!(server.requests(&[PODS, "limit=500", "continue="]), 2);
    let status = followed.status.borrow().clone();
    assert!(status.kinds[&Kind::Pod].errors.is_empty(), "{status:?}");
    server.delete(PODS, "shop/p7");
    followed.until("one less", |snapshot| snapshot.workloads().len() == 1200).await;
}

#[tokio::test]
async fn a_store_that_cannot_stream_is_no_failure_and_not_asked_again() {
    let server = shop().await;
    server.streaming(Streaming::Failing);
    let mut followed = follow(&server);
    followed.until_pods(&["web"]).await;
    let status = followed.status.borrow().clone();
    assert!(status.connected && status.kinds.values().all(|kind| kind.errors.is_empty()), "{status:?}");
    assert_eq!(server.requests(&[PODS, "sendInitialEvents=true"]), 1);
}

#[tokio::test]
async fn nothing_is_in_force_while_one_list_is_outstanding() {
    let server = shop().await;
    server.install(POLICIES);
    server.put(POLICIES, policy("deny"));
    server.fault(POLICIES, Fault::List(500));
    let mut followed = follow(&server);
    followed.until_status("failures", |status| status.kinds[&Kind::AuthorizationPolicy].errors.get(&Reason::ServerError) > Some(&3)).await;
    followed.nothing_in_force();
    let awaited = followed.status.borrow().awaited().unwrap();
    assert!(awaited.contains("AuthorizationPolicy") && awaited.contains("500 told to"), "{awaited}");
    server.fault(POLICIES, None);
    let first = followed.until_pods(&["web"]).await;
    assert_eq!((first.version(), policies(&first)), (1, vec!["deny".to_owned()]));
}

#[tokio::test]
async fn a_kind_that_may_not_be_listed_is_not_taken_for_absent() {
    let server = shop().await;
    // The API server asks for the permission before it looks whether the kind exists.
    server.fault(POLICIES, Fault::Status(403));
    server.fault(OLD_POLICIES, Fault::Status(403));
    let mut followed = follow(&server);
    let status = followed.until_error(Kind::AuthorizationPolicy, Reason::Forbidden).await;
    followed
        .until_status("the others", |status| status.kinds.values().filter(|kind| kind.progress == Progress::Awaited).count() == 1)
        .await;
    followed.nothing_in_force();
    let failure = status.kinds[&Kind::AuthorizationPolicy].failure.clone().unwrap();
    assert!(failure.message.contains("permission to list and watch authorizationpolicies.security.istio.io"), "{failure:?}");
    let mut said = Vec::new();
    let (mut snapshots, receiver) = (followed.snapshots.clone(), followed.status.clone());
    let waiting = first_snapshot(&mut snapshots, receiver, |text| said.push(text));
    assert!(timeout(Duration::from_millis(500), waiting).await.is_err());
    assert!(said.iter().any(|text| text.contains("ClusterRole")), "{said:?}");
    // The permission is granted, and the kind is not there after all.
    server.fault(POLICIES, None);
    server.fault(OLD_POLICIES, None);
    followed.until_pods(&["web"]).await;
}

#[tokio::test]
async fn a_permission_that_is_withdrawn_leaves_everything_in_force() {
    let server = shop().await;
    server.install(POLICIES);
    server.put(POLICIES, policy("deny"));
    let mut followed = follow(&server);
    followed.until("the policy", |snapshot| policies(snapshot) == ["deny"]).await;
    server.fault(POLICIES, Fault::Status(403));
    server.cut();
    let snapshot = followed.until("the problem", |snapshot| snapshot.problems().iter().any(|p| p.message.contains("permission"))).await;
    assert_eq!(policies(&snapshot), ["deny"]);
    server.fault(POLICIES, None);
    followed.until("no problem", |snapshot| snapshot.problems().is_empty()).await;
    server.delete(POLICIES, "shop/deny");
    followed.until("no policy", |snapshot| policies(snapshot).is_empty()).await;
}

#[tokio::test]
async fn definitions_are_found_when_they_come_and_let_go_when_they_leave() {
    let server = shop().await;
    let mut followed = follow(&server);
    followed.until_pods(&["web"]).await;
    server.install(OLD_POLICIES);
    server.put(OLD_POLICIES, policy("old"));
    followed.until("the older version", |snapshot| policies(snapshot) == ["old"]).await;
    // The server is upgraded and has the newer version alone.
    server.install(POLICIES);
    server.put(POLICIES, policy("new"));
    server.uninstall(OLD_POLICIES);
    followed.until("the newer version", |snapshot| policies(snapshot) == ["new"]).await;
    let asked = server.requests(&[POLICIES]);
    server.uninstall(POLICIES);
    followed.until("none", |snapshot| policies(snapshot).is_empty()).await;
    // Not on the word of one answer.
    assert!(server.requests(&[POLICIES, "limit=1"]) >= 3, "{asked}");
    server.install(POLICIES);
    server.put(POLICIES, policy("again"));
    followed.until("it is back", |snapshot| policies(snapshot) == ["again"]).await;
}

#[tokio::test]
async fn a_short_absence_of_a_definition_takes_no_policy_away() {
    let server = shop().await;
    server.install(POLICIES);
    server.put(POLICIES, policy("deny"));
    let wait = BackoffSettings { first: LIMIT, most: LIMIT };
    let mut followed = follow_with(&server, Timing { absent: wait, ..quick() }, None);
    // Mesh and PeerAuthentication are absent from the start: that needs no confirmation.
    followed.until("the policy", |snapshot| policies(snapshot) == ["deny"]).await;
    server.fault(POLICIES, Fault::Status(404));
    server.cut();
    followed.until_error(Kind::AuthorizationPolicy, Reason::NotFound).await;
    server.put(PODS, pod("db", 2));
    let snapshot = followed.until_pods(&["db", "web"]).await;
    assert_eq!(policies(&snapshot), ["deny"]);
}

#[tokio::test]
async fn a_watch_that_is_too_old_is_replaced_by_a_new_list_without_a_gap() {
    let server = shop().await;
    server.install(POLICIES);
    server.put(POLICIES, policy("deny"));
    server.put(PODS, pod("old", 2));
    let mut followed = follow(&server);
    followed.until_pods(&["old", "web"]).await;
    let mut seen = followed.snapshots.clone();
    let watching = tokio::spawn(async move {
        // No snapshot of them all is without the policy.
        while seen.changed().await.is_ok() {
            let snapshot = seen.borrow_and_update().clone();
            assert_eq!(policies(&snapshot), ["deny"]);
        }
    });
    server.compact(|change| {
        change(PODS, "shop/old", None);
        change(PODS, "shop/new", Some(pod("new", 3)));
    });
    followed.until_pods(&["new", "web"]).await;
    let status = followed.until_status("the policies' list", |status| status.kinds[&Kind::AuthorizationPolicy].lists == 2).await;
    assert_eq!(status.kinds[&Kind::Pod].errors.get(&Reason::Expired), Some(&1), "{status:?}");
    assert!(status.connected);
    followed.task.abort();
    let _ = (&mut followed.task).await;
    timeout(LIMIT, watching).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_watch_refused_as_too_old_is_listed_anew() {
    let server = shop().await;
    let mut followed = follow(&server);
    followed.until_pods(&["web"]).await;
    server.fault(NAMESPACES, Fault::Watch(410));
    server.cut();
    followed.until_status("a second list", |status| status.kinds[&Kind::Namespace].lists >= 2).await;
    server.fault(NAMESPACES, None);
    server.put(NAMESPACES, namespace("other"));
    followed.until_status("the namespace", |status| status.kinds[&Kind::Namespace].objects == 2).await;
}

#[tokio::test]
async fn a_server_that_is_down_at_the_start_is_waited_for() {
    let server = shop().await;
    server.stop().await;
    let mut followed = follow(&server);
    let status = followed.until_error(Kind::Pod, Reason::Unreachable).await;
    followed.nothing_in_force();
    assert!(!status.connected);
    assert!(status.awaited().unwrap().contains("Connection refused"), "{:?}", status.awaited());
    server.resume().await;
    followed.until_pods(&["web"]).await;
    followed.until_status("connected", |status| status.connected).await;
}

#[tokio::test]
async fn a_lost_server_leaves_everything_in_force_and_is_found_again() {
    let server = shop().await;
    let mut followed = follow(&server);
    followed.until_pods(&["web"]).await;
    server.stop().await;
    let down = followed.until_status("disconnected", |status| !status.connected).await;
    let snapshot = followed.until("the problem", |snapshot| !snapshot.problems().is_empty()).await;
    assert_eq!(pods(&snapshot), ["web"]);
    let problem = snapshot.problems()[0].to_string();
    assert!(problem.contains("API server: cannot be used") && problem.contains("stays in force"), "{problem}");
    server.put(PODS, pod("db", 2));
    server.resume().await;
    let snapshot = followed.until_pods(&["db", "web"]).await;
    let up = followed.until_status("connected", |status| status.connected).await;
    assert!(up.since > down.since);
    // Nothing was missed, so nothing was listed again.
    assert_eq!(up.kinds[&Kind::Pod].lists, 1);
    drop(snapshot);
    followed.until("no problem", |snapshot| snapshot.problems().is_empty()).await;
}

#[tokio::test]
async fn a_server_that_hangs_is_not_waited_for_for_ever() {
    let server = shop().await;
    server.fault(PODS, Fault::Hang);
    server.fault(NAMESPACES, Fault::HalfAList);
    let mut followed = follow(&server);
    followed.until_error(Kind::Pod, Reason::Timeout).await;
    followed.until_error(Kind::Namespace, Reason::Timeout).await;
    followed.nothing_in_force();
    server.fault(PODS, None);
    server.fault(NAMESPACES, None);
    followed.until_pods(&["web"]).await;
}

#[tokio::test]
async fn a_streamed_list_that_never_ends_is_fetched_in_pages() {
    let server = shop().await;
    server.fault(PODS, Fault::HalfAList);
    let timing = Timing { limits: Limits { silence: Duration::from_millis(50), ..quick().limits }, ..quick() };
    let mut followed = follow_with(&server, timing, None);
    followed.until_status("pages", |_| server.requests(&[PODS, "limit=500"]) > 0).await;
    followed.nothing_in_force();
    server.fault(PODS, None);
    followed.until_pods(&["web"]).await;
}

#[tokio::test]
async fn slow_lists_are_waited_for() {
    let server = shop().await;
    server.fault(PODS, Fault::Slow(Duration::from_millis(150)));
    server.fault(NAMESPACES, Fault::Slow(Duration::from_millis(100)));
    let mut followed = follow(&server);
    followed.until_pods(&["web"]).await;
    assert!(followed.status.borrow().kinds.values().all(|kind| !kind.errors.contains_key(&Reason::Timeout)));
}

#[tokio::test]
async fn malformed_objects_break_nothing() {
    let server = shop().await;
    server.install(POLICIES);
    let mut broken = pod("broken", 3);
    broken["metadata"]["labels"] = json!(["no", "map"]);
    broken["metadata"]["creationTimestamp"] = json!(5);
    server.put(PODS, broken);
    server.put(POLICIES, json!({"metadata": {"name": "odd", "namespace": "shop"}, "spec": {"rules": "all"}}));
    let mut followed = follow(&server);
    let first = followed.until_pods(&["web"]).await;
    assert_eq!(first.held().len(), 1);
    assert_eq!(policies(&first), ["odd"]);
    assert!(first.problems().iter().any(|problem| problem.to_string().contains("AuthorizationPolicy shop/odd")));
    // By a watch, and one that is no object at all.
    let mut worse = pod("web", 1);
    worse["spec"]["containers"] = json!(7);
    server.put(PODS, worse);
    followed.until("the problem", |snapshot| snapshot.problems().iter().any(|p| p.to_string().contains("stays in force"))).await;
    server.event(PODS, "ADDED", json!("nonsense"));
    server.put(PODS, pod("db", 2));
    let snapshot = followed.until("the next pod", |snapshot| pods(snapshot) == ["db", "web"]).await;
    assert_eq!(policies(&snapshot), ["odd"]);
    server.put(PODS, pod("web", 1));
    server.delete(PODS, "shop/broken");
    followed.until("all is well", |snapshot| snapshot.held().is_empty()).await;
}

#[tokio::test]
async fn an_event_that_cannot_be_read_makes_a_new_list() {
    let server = shop().await;
    let mut followed = follow(&server);
    followed.until_pods(&["web"]).await;
    server.event(PODS, "NOVELTY", json!({}));
    followed.until_error(Kind::Pod, Reason::Malformed).await;
    followed.until_status("a second list", |status| status.kinds[&Kind::Pod].lists == 2).await;
    server.put(PODS, pod("db", 2));
    followed.until_pods(&["db", "web"]).await;
}

#[tokio::test]
async fn a_silent_watch_is_resumed() {
    let server = shop().await;
    let timing = Timing { limits: Limits { silence: Duration::from_millis(30), ..quick().limits }, ..quick() };
    let mut followed = follow_with(&server, timing, None);
    followed.until_pods(&["web"]).await;
    followed.until_status("watches", |_| server.requests(&[NAMESPACES, "watch=true"]) > 3).await;
    server.put(NAMESPACES, namespace("other"));
    let status = followed.until_status("the namespace", |status| status.kinds[&Kind::Namespace].objects == 2).await;
    assert_eq!((status.connected, status.kinds[&Kind::Namespace].lists), (true, 1));
}

#[tokio::test]
async fn network_namespaces_come_from_the_agent() {
    let server = shop().await;
    let paths = watch::Sender::new(Arc::<PodNetworks>::default());
    let mut followed = follow_with(&server, quick(), Some(paths.subscribe()));
    let netns = |snapshot: &Snapshot| snapshot.workload(&WorkloadUid("u-web".into())).and_then(|web| web.netns.clone());
    assert_eq!(netns(&*followed.until_pods(&["web"]).await), None);
    paths.send_replace(Arc::new(HashMap::from([(
        WorkloadUid("u-web".into()),
        PodNetwork { netns: "/run/netns/web".into(), addresses: Vec::new() },
    )])));
    followed.until("the path", |snapshot| netns(snapshot) == Some("/run/netns/web".into())).await;
    // Nobody to tell any more: what was told stays.
    drop(paths);
    server.put(PODS, pod("db", 2));
    assert!(netns(&*followed.until_pods(&["db", "web"]).await).is_some());
}

#[tokio::test]
async fn a_burst_of_changes_makes_few_snapshots() {
    let server = shop().await;
    let mut followed = follow(&server);
    let before = followed.until_pods(&["web"]).await.version();
    for i in 2..302 {
        server.put(PODS, pod(&format!("p{i}"), i));
    }
    let after = followed.until("all of them", |snapshot| snapshot.workloads().len() == 301).await.version();
    assert!(after - before < 150, "{} snapshots", after - before);
}

#[tokio::test]
async fn outside_of_a_cluster_and_without_a_kubeconfig_it_says_so() {
    if std::env::var_os("KUBERNETES_SERVICE_HOST").is_none() {
        let error = Kubernetes::open(None, None).await.unwrap_err().to_string();
        assert!(error.contains("not in a Kubernetes cluster"), "{error}");
    }
    let error = Kubernetes::open(Some(Path::new("/nowhere/config")), None).await.unwrap_err().to_string();
    assert!(error.contains("/nowhere/config"), "{error}");
}
