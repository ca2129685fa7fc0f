use std::net::IpAddr;
use std::path::Path;

use mesh_model::document::parse_documents;
use tonic::Code;

use super::*;
use crate::ca::authenticate::{Authentication, Caller};

struct ByName;

impl Authenticator for ByName {
    fn authenticate<'a>(&'a self, token: &'a str, _: Option<IpAddr>) -> Authentication<'a> {
        let node = token.trim_start_matches("token-of-the-node-").into();
        Box::pin(async move { Ok(Caller { node }) })
    }
}

/// A Service `web` with a pod on n1 and one on n2, and a RateLimit of two limits.
const MESH: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web, nodemesh.dev/mesh: enabled}}
spec: {nodeName: n1, containers: []}
status: {podIP: 10.1.0.1, conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-2, namespace: shop, labels: {app: web, nodemesh.dev/mesh: enabled}}
spec: {nodeName: n2, containers: []}
status: {podIP: 10.1.0.2, conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: None, selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: nodemesh.dev/v1alpha1
kind: RateLimit
metadata: {name: l, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: web}]
  scope: service
  limits: [{requests: 10, unit: second}, {requests: 10, unit: second, by: {source: true}}]
";

fn service(leadership: Leadership) -> BudgetService {
    let parsed = parse_documents(Path::new("mesh.yaml"), MESH);
    let snapshot = Snapshot::build(&parsed.documents, parsed.problems, None);
    let (leads, read) = (watch::channel(leadership).1, watch::channel(Arc::new(snapshot)).1);
    BudgetService::new(Arc::new(ByName), leads, read, Arc::new(Metrics::new()))
}

fn budget(rate_limit: &str, index: u32) -> Option<Budget> {
    Some(Budget { namespace: "shop".into(), rate_limit: rate_limit.into(), index, service: "web".into() })
}

fn request(node: &str, turn: u64, needs: Vec<Need>) -> Request<LendRequest> {
    let mut request = Request::new(LendRequest { session: 7, turn, answered: turn - 1, needs });
    request.metadata_mut().insert("authorization", format!("Bearer token-of-the-node-{node}").parse().unwrap());
    request
}

#[tokio::test]
async fn a_node_is_lent_what_holds_for_its_own_pods() {
    let long_ago = Instant::now().checked_sub(std::time::Duration::from_secs(60)).unwrap();
    let service = service(Leadership::Leads(long_ago));
    let ask = async |node: &str, turn, needs| service.lend(request(node, turn, needs)).await.unwrap().into_inner();
    let need = |demand, holds| vec![Need { budget: budget("l", 0), demand, holds }];
    let first = ask("n1", 1, need(2_000_000, 500_000)).await;
    let metrics = service.metrics.text().unwrap();
    assert!(
        metrics.contains("nodemesh_control_budget_lent_ratio{rate_limit=\"shop/l\",limit=\"0\",service=\"shop/web\"} 0.5"),
        "{metrics}"
    );
    assert_eq!((first.loans.first().unwrap().parts, first.lifetime_ms), (500_000, 3000));
    assert_eq!(ask("n2", 1, need(0, 500_000)).await.loans.first().unwrap().parts, 5_000);
    assert_eq!(ask("n2", 2, need(0, 5_000)).await.loans.first().unwrap().parts, 5_000);
    assert_eq!(ask("n1", 2, need(2_000_000, 500_000)).await.loans.first().unwrap().parts, 995_000);
    let strange = [(budget("l", 1), "not lent"), (budget("l", 9), "no limit"), (budget("x", 0), "no RateLimit"), (None, "not named")];
    let needs = strange.iter().map(|(budget, _)| Need { budget: budget.clone(), demand: 1, holds: 0 }).collect();
    for (loan, (_, why)) in ask("n1", 3, needs).await.loans.iter().zip(&strange) {
        assert!(loan.parts == 0 && loan.refused.contains(why), "{loan:?}");
    }
    let elsewhere = ask("n3", 1, need(1, 0)).await;
    assert!(elsewhere.loans.first().unwrap().refused.contains("no pod in the mesh on the node"), "{elsewhere:?}");
    assert_eq!(service.metrics.calls("budgets", "budget_refused"), 5);
    let many = vec![Need::default(); MOST_NEEDS + 1];
    assert_eq!(service.lend(request("n1", 4, many)).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn only_the_leader_lends() {
    let follower = service(Leadership::Follows(Some("10.0.0.7:15012".into())));
    let status = follower.lend(request("n1", 1, Vec::new())).await.unwrap_err();
    assert_eq!((status.code(), status.metadata().get(LEADER).unwrap().to_str().unwrap()), (Code::FailedPrecondition, "10.0.0.7:15012"));
    let status = service(Leadership::Follows(None)).lend(request("n1", 1, Vec::new())).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "another may know");
}
