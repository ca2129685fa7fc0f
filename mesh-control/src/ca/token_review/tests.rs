use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::UNIX_EPOCH;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::authentication::v1::{TokenReviewStatus, UserInfo};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::*;

const AGENT: &str = "system:serviceaccount:mesh:agent";

fn settings() -> ReviewSettings {
    ReviewSettings { audience: "nodemesh-ca".into(), namespace: "mesh".into(), service_account: "agent".into() }
}

fn token_of(claims: &Value) -> String {
    format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims.to_string()))
}

fn token(name: &str) -> String {
    token_of(&json!({"sub": AGENT, "aud": ["nodemesh-ca"], "exp": 4_000_000_000_u64, "jti": name}))
}

fn claims(value: &Value) -> Claims {
    Claims::read(&token_of(value)).unwrap()
}

fn accepted(extra: &[(&str, &str)]) -> TokenReviewStatus {
    let extra: BTreeMap<String, Vec<String>> =
        extra.iter().map(|(k, v)| (format!("authentication.kubernetes.io/{k}"), vec![(*v).into()])).collect();
    let user = UserInfo { username: Some(AGENT.into()), extra: Some(extra), ..UserInfo::default() };
    TokenReviewStatus { authenticated: Some(true), audiences: Some(vec!["nodemesh-ca".into()]), user: Some(user), error: None }
}

fn reason<T>(result: Result<T, TokenRefusal>) -> &'static str {
    result.map_or_else(|refusal| Refusal::Token(refusal).reason(), |_| "none")
}

#[test]
fn claims_only_ever_refuse() {
    for text in ["", "a.b", "a.b.c", "a.b.c.d", "no token at all", "e30.W10.x"] {
        assert_eq!(Claims::read(text), None, "{text}");
    }
    let plausible = |value: Value| reason(claims(&value).plausible(&settings()));
    assert_eq!(plausible(json!({"sub": AGENT, "aud": ["other", "nodemesh-ca"]})), "none");
    assert_eq!(plausible(json!({"sub": AGENT, "aud": "nodemesh-ca"})), "none");
    assert_eq!(plausible(json!({"sub": AGENT, "aud": ["https://kubernetes.default.svc"]})), "token_audience");
    assert_eq!(plausible(json!({"sub": AGENT})), "token_audience");
    assert_eq!(plausible(json!({"sub": "system:serviceaccount:shop:cart", "aud": ["nodemesh-ca"]})), "not_the_agent");
    let now = UNIX_EPOCH + Duration::from_secs(100);
    assert_eq!(claims(&json!({"exp": 130})).left(now), Duration::from_secs(30));
    assert_eq!((claims(&json!({"exp": 99})).left(now), claims(&json!({})).left(now)), (Duration::ZERO, Duration::ZERO));
    assert_eq!(claims(&json!({"exp": u64::MAX})).left(now), Duration::ZERO);
}

#[test]
fn a_review_must_name_us_the_agent_and_a_pod() {
    let now = UNIX_EPOCH + Duration::from_secs(100);
    let live = claims(&json!({"exp": 200}));
    let judged = |status: TokenReviewStatus| judge::review(status, &settings(), &live, now);
    let good = accepted(&[("pod-name", "agent-x"), ("pod-uid", "u1"), ("node-name", "n1")]);
    let bound = judge::Bound { pod: "agent-x".into(), uid: "u1".into(), node: Some("n1".into()) };
    assert_eq!(judged(good.clone()), Ok(bound));
    assert_eq!(reason(judged(TokenReviewStatus { authenticated: Some(false), ..good.clone() })), "token_rejected");
    assert_eq!(reason(judged(TokenReviewStatus::default())), "token_rejected");
    assert_eq!(reason(judge::review(TokenReviewStatus::default(), &settings(), &claims(&json!({"exp": 99})), now)), "token_expired");
    assert_eq!(reason(judged(TokenReviewStatus { audiences: None, ..good.clone() })), "token_audience");
    let mut other = good;
    other.user.as_mut().unwrap().username = Some("system:serviceaccount:mesh:other".into());
    assert_eq!(reason(judged(other)), "not_the_agent");
    assert_eq!(reason(judged(accepted(&[]))), "token_unbound");
    assert_eq!(reason(judged(accepted(&[("pod-name", "agent-x")]))), "token_unbound");
}

fn pod(uid: &str, account: &str, node: &str, phase: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "agent-x", "namespace": "mesh", "uid": uid},
        "spec": {"nodeName": node, "serviceAccountName": account, "containers": []}, "status": {"phase": phase},
    })
}

#[test]
fn the_pod_must_be_the_very_one() {
    let judged = |node: Option<&str>, pod: Option<Value>| {
        let bound = judge::Bound { pod: "agent-x".into(), uid: "u1".into(), node: node.map(Into::into) };
        let pod: Option<Pod> = pod.map(|pod| serde_json::from_value(pod).unwrap());
        judge::pod(pod.as_ref(), &bound, &settings())
    };
    let good = || Some(pod("u1", "agent", "n1", "Running"));
    assert_eq!(judged(Some("n1"), good()), Ok(Caller { node: "n1".into() }));
    assert_eq!(judged(None, good()), Ok(Caller { node: "n1".into() }));
    assert_eq!(reason(judged(Some("n2"), good())), "agent_pod");
    assert_eq!(reason(judged(Some("n1"), None)), "agent_pod");
    for (uid, account, node, phase) in
        [("u2", "agent", "n1", "Running"), ("u1", "cart", "n1", "Running"), ("u1", "agent", "", "Pending"), ("u1", "agent", "n1", "Failed")]
    {
        assert_eq!(reason(judged(Some("n1"), Some(pod(uid, account, node, phase)))), "agent_pod", "{uid} {account} {node} {phase}");
    }
}

#[test]
fn answers_end_and_a_flood_of_refusals_displaces_itself() {
    let now = Instant::now();
    let caller = || Ok(Caller { node: "n1".into() });
    let known = |cache: &mut Cache, key: u8, now| matches!(cache.begin([key; 32], now), Begin::Known(_));
    let mut cache = Cache::new(2);
    cache.done([0; 32], caller(), now, Duration::from_secs(30));
    for key in 1..10 {
        cache.done([key; 32], Err(TokenRefusal::Unbound), now, Duration::from_secs(1));
    }
    assert!(known(&mut cache, 0, now) && known(&mut cache, 9, now) && !known(&mut cache, 1, now));
    assert!(!known(&mut cache, 9, now + Duration::from_secs(1)));
    assert!(known(&mut cache, 0, now + Duration::from_secs(29)) && !known(&mut cache, 0, now + Duration::from_secs(30)));
    cache.done([7; 32], caller(), now, Duration::ZERO);
    assert!(!known(&mut cache, 7, now));
}

#[test]
fn one_asks_and_others_join() {
    let (mut cache, now) = (Cache::new(2), Instant::now());
    let Begin::Ask(sender, _) = cache.begin([1; 32], now) else { panic!() };
    assert!(matches!(cache.begin([1; 32], now), Begin::Join(_)));
    drop(sender);
    assert!(matches!(cache.begin([1; 32], now), Begin::Ask(..)), "who broke off is not waited for");
}

/// What the server over loopback answers.
#[derive(Default)]
struct Server {
    reviews: usize,
    status: Option<Value>,
    pod: Option<Value>,
    /// Every review gets this code.
    broken: Option<u16>,
    /// Tokens that contain this are refused, and not at once.
    slow: Option<String>,
}

async fn serve(server: Arc<Mutex<Server>>) -> (Client, SocketAddr, tempfile::TempDir) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let server = server.clone();
            let service = service_fn(move |request| answer(server.clone(), request));
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
         clusters: [{{name: c, cluster: {{server: \"http://{address}\"}}}}]\nusers: [{{name: u, user: {{token: secret}}}}]\n"
    );
    std::fs::write(&path, text).unwrap();
    let (client, _) = mesh_sources::kube::client(Some(&path)).await.unwrap();
    (client, address, dir)
}

async fn answer(server: Arc<Mutex<Server>>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let slow = server.lock().slow.clone().is_some_and(|slow| String::from_utf8_lossy(&body).contains(&slow));
    if slow {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut server = server.lock();
    // As API servers do: a code alone, without its reason, is taken for any proxy's.
    let failure = |code: u16| {
        let reason = match code {
            403 => "Forbidden",
            404 => "NotFound",
            _ => "InternalError",
        };
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": "told to", "code": code})
    };
    let (code, value) = match path.as_str() {
        "/apis/authentication.k8s.io/v1/tokenreviews" => {
            server.reviews += 1;
            let mut review: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(review["spec"]["audiences"], json!(["nodemesh-ca"]));
            review["status"] =
                server.status.clone().filter(|_| !slow).unwrap_or_else(|| json!({"authenticated": false, "error": "invalid signature"}));
            server.broken.map_or((201, review), |code| (code, failure(code)))
        }
        "/api/v1/namespaces/mesh/pods/agent-x" => server.pod.clone().map_or((404, failure(404)), |pod| (200, pod)),
        _ => (404, failure(404)),
    };
    Ok(Response::builder().status(code).body(Full::new(Bytes::from(value.to_string()))).unwrap())
}

fn good() -> Server {
    let status = serde_json::to_value(accepted(&[("pod-name", "agent-x"), ("pod-uid", "u1"), ("node-name", "n1")])).unwrap();
    Server { status: Some(status), pod: Some(pod("u1", "agent", "n1", "Running")), ..Server::default() }
}

#[tokio::test]
async fn a_storm_of_one_token_asks_once_and_is_remembered() {
    let server = Arc::new(Mutex::new(good()));
    let (client, _, _dir) = serve(server.clone()).await;
    let reviews = TokenReviews::new(client, settings());
    let token = token("a");
    let answers = futures_util::future::join_all((0..50).map(|_| reviews.judge(&token, None))).await;
    assert!(answers.iter().all(|answer| *answer == Ok(Caller { node: "n1".into() })), "{answers:?}");
    assert_eq!(server.lock().reviews, 1);
    // What the server says later counts for other tokens at once, for this one when its time is over.
    server.lock().broken = Some(500);
    assert_eq!(reason(reviews.judge(&token, None).await), "none");
    assert_eq!(reason(reviews.judge(&self::token("b"), None).await), "unavailable");
}

#[tokio::test]
async fn refuses_what_the_server_refuses_and_while_it_cannot_be_asked() {
    let server = Arc::new(Mutex::new(Server::default()));
    let (client, _, _dir) = serve(server.clone()).await;
    let reviews = TokenReviews::new(client, settings());
    assert_eq!(reason(reviews.judge("not-a-json-web-token", None).await), "token_form");
    assert_eq!(
        reason(reviews.judge(&token_of(&json!({"sub": "system:serviceaccount:shop:cart", "aud": ["nodemesh-ca"]})), None).await),
        "not_the_agent"
    );
    assert_eq!(server.lock().reviews, 0, "these are not worth a question");
    assert_eq!(reason(reviews.judge(&token("forged"), None).await), "token_rejected");
    *server.lock() = Server { pod: None, ..good() };
    assert_eq!(reason(reviews.judge(&token("gone"), None).await), "agent_pod");
    server.lock().broken = Some(403);
    let refusal = reviews.judge(&token("denied"), None).await.unwrap_err();
    assert!(matches!(&refusal, TokenRefusal::Unavailable(message) if message.contains("permission to create tokenreviews")), "{refusal}");
    // Not remembered: it is asked again at once.
    *server.lock() = good();
    assert_eq!(reason(reviews.judge(&token("denied"), None).await), "none");
}

#[tokio::test]
async fn nobody_answers() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
         clusters: [{{name: c, cluster: {{server: \"http://{address}\"}}}}]\nusers: [{{name: u, user: {{token: secret}}}}]\n"
    );
    std::fs::write(&path, text).unwrap();
    let (client, _) = mesh_sources::kube::client(Some(&path)).await.unwrap();
    let refusal = TokenReviews::new(client, settings()).authenticate(&token("a"), None).await.unwrap_err();
    assert_eq!(refusal.meaning().1, tonic::Code::Unavailable);
}

/// A token that its signature tells from others.
fn made_up(number: usize) -> String {
    format!("{}.bad{number}", token("x").rsplit_once('.').unwrap().0)
}

#[tokio::test]
async fn a_flood_of_made_up_tokens_does_not_hold_up_the_agents() {
    let server = Arc::new(Mutex::new(Server { slow: Some(".bad".into()), ..good() }));
    let (client, _, _dir) = serve(server.clone()).await;
    let reviews = Arc::new(TokenReviews::new(client, settings()));
    let flooder = Some(IpAddr::from([10, 0, 0, 66]));
    for number in 0..10 {
        assert_eq!(reason(reviews.judge(&made_up(number), flooder).await), "token_rejected");
    }
    let done = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let flood: Vec<_> = (100..164)
        .map(|number| {
            let (reviews, done) = (reviews.clone(), done.clone());
            tokio::spawn(async move {
                let _ = reviews.judge(&made_up(number), flooder).await;
                done.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            })
        })
        .collect();
    tokio::task::yield_now().await;
    assert_eq!(reason(reviews.judge(&token("agent"), Some(IpAddr::from([10, 0, 0, 1]))).await), "none");
    let answered = done.load(std::sync::atomic::Ordering::Relaxed);
    assert!(answered < 32, "{answered} of 64 made-up tokens were reviewed before the agent's");
    // An agent at that address waits its turn, and is not refused.
    for task in flood {
        task.await.unwrap();
    }
    assert_eq!(reason(reviews.judge(&token("neighbour"), flooder).await), "none");
}
