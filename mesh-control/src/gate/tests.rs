use tonic::Code;

use super::*;
use crate::ca::authenticate::Authentication;

struct OneNode;

impl Authenticator for OneNode {
    fn authenticate<'a>(&'a self, token: &'a str, _: Option<std::net::IpAddr>) -> Authentication<'a> {
        let known = token == "token-of-node-1-abcdef";
        Box::pin(async move { if known { Ok(Caller { node: "node-1".into() }) } else { Err(Refusal::UnknownToken) } })
    }
}

fn request(token: Option<&str>) -> Request<()> {
    let mut request = Request::new(());
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    request
}

#[tokio::test]
async fn only_agents_of_nodes_come_in_and_none_too_often() {
    let metrics = Arc::new(Metrics::new());
    let gate = Gate::new("keys", Arc::new(OneNode), Rate { per_second: 0.001, burst: 2.0 }, metrics.clone());
    let code = async |token| gate.enter(&request(token)).await.map_err(|status| (status.code(), status.metadata().get(REASON).cloned()));
    for _ in 0..2 {
        assert_eq!(code(Some("token-of-node-1-abcdef")).await.unwrap(), "node-1".into());
    }
    for (token, reason, expected) in [
        (None, "no_token", Code::Unauthenticated),
        (Some("token-of-nobody-abcdef"), "unknown_token", Code::Unauthenticated),
        (Some("token-of-node-1-abcdef"), "too_often", Code::ResourceExhausted),
    ] {
        let (found, told) = code(token).await.unwrap_err();
        assert_eq!((found, told.unwrap().to_str().unwrap()), (expected, reason));
        assert_eq!(metrics.calls("keys", reason), 1);
    }
    let status = gate.refuse(&"node-1".into(), "not_leader", Status::failed_precondition("ask another"));
    assert_eq!((status.code(), metrics.calls("keys", "not_leader"), metrics.calls("keys", "let_in")), (Code::FailedPrecondition, 1, 2));
}
