//! The certificate authority against tokens that are not an agent's, judged by the real API server.

use std::fs;

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};

use super::bed::{Bed, DEMO, MESH};
use crate::{cluster, command};

const METHOD: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";
const AUDIENCE: &str = "--audience=nodemesh-ca";
/// The name in the authority's certificate.
const NAME: &str = "mesh-control.nodemesh-system.svc";

/// A request for a certificate as gRPC has it: no compression, length, and `IstioCertificateRequest` with its first field (csr) alone.
fn message(identity: &str) -> Result<Vec<u8>> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.try_into()?)];
    let csr = params.serialize_request(&KeyPair::generate()?)?.pem()?;
    let mut text = vec![0x0a];
    let mut length = csr.len();
    while length >= 0x80 {
        text.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    text.push(length as u8);
    text.extend_from_slice(csr.as_bytes());
    let mut frame = vec![0];
    frame.extend_from_slice(&u32::try_from(text.len())?.to_be_bytes());
    frame.extend_from_slice(&text);
    Ok(frame)
}

/// Asks from a node, as its agent would; the name of the refusal, or `signed`.
fn ask(node: &str, token: &str, identity: &str) -> Result<String> {
    let directory = command::target().join("tmp");
    fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    let (roots, request) = (directory.join("e2e-roots.pem"), directory.join("e2e-request"));
    fs::write(&roots, cluster::ask(&["-n", MESH, "get", "configmap", "nodemesh-ca-roots", "-o", "jsonpath={.data.root-cert\\.pem}"])?)?;
    fs::write(&request, message(identity)?)?;
    let pods =
        cluster::ask(&["-n", MESH, "get", "pods", "-l", "app.kubernetes.io/name=mesh-control", "-o", "jsonpath={.items[0].status.podIP}"])?;
    let output = cluster::on(node, "curl")?
        .args([
            "-sS",
            "--http2",
            "--max-time",
            "20",
            "-X",
            "POST",
            "-o",
            "/dev/null",
            "-D",
            "-",
            "-w",
            "bytes: %{size_download}\n",
            "--cacert",
        ])
        .arg(&roots)
        .args(["--resolve", &format!("{NAME}:15012:{}", pods.trim())])
        .args(["-H", "content-type: application/grpc", "-H", "te: trailers", "-H", &format!("authorization: Bearer {token}")])
        .arg("--data-binary")
        .arg(format!("@{}", request.display()))
        .arg(format!("https://{NAME}:15012{METHOD}"))
        .output()
        .context("starting curl on a node")?;
    let head = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() || !head.starts_with("HTTP/2 200") {
        bail!("the authority was not reached: {head}{}", String::from_utf8_lossy(&output.stderr));
    }
    let line = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    if let Some(refusal) = line("x-nodemesh-refusal: ") {
        return Ok(refusal.to_owned());
    }
    // A chain of three certificates.
    let bytes = line("bytes: ").and_then(|bytes| bytes.parse::<usize>().ok()).unwrap_or_default();
    if bytes < 1000 || line("grpc-status: ").is_some_and(|status| status != "0") {
        bail!("neither signed nor refused: {head}");
    }
    Ok("signed".to_owned())
}

fn token(namespace: &str, account: &str, more: &[&str]) -> Result<String> {
    let words = [&["-n", namespace, "create", "token", account][..], more].concat();
    Ok(cluster::ask(&words)?.trim().to_owned())
}

/// A token that says it is somebody else's and keeps its signature.
fn forged(token: &str) -> Result<String> {
    let mut parts = token.splitn(3, '.');
    let (Some(head), Some(claims), Some(signature)) = (parts.next(), parts.next(), parts.next()) else { bail!("a token without parts") };
    let url_safe = base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let claims = String::from_utf8(url_safe.decode(claims)?)?.replace(&format!("{DEMO}:default"), &format!("{MESH}:mesh-agent"));
    Ok(format!("{head}.{}.{signature}", url_safe.encode(claims)))
}

/// What a jsonpath finds of the first pod with a label.
fn of_pod(namespace: &str, label: &str, path: &str) -> Result<String> {
    let path = format!("jsonpath={{.items[0].{path}}}");
    Ok(cluster::ask(&["-n", namespace, "get", "pods", "-l", label, "-o", &path])?.trim().to_owned())
}

pub fn refuses(_: &mut Bed) -> Result<String> {
    let there = of_pod(DEMO, "app=hello-world", "spec.nodeName")?;
    let account = of_pod(DEMO, "app=hello-world", "spec.serviceAccountName")?;
    let identity = format!("spiffe://cluster.local/ns/{DEMO}/sa/{account}");
    let agents = cluster::ask(&[
        "-n",
        MESH,
        "get",
        "pods",
        "-l",
        "app.kubernetes.io/name=mesh-agent",
        "-o",
        "jsonpath={range .items[*]}{.spec.nodeName} {.metadata.name}{\"\\n\"}{end}",
    ])?;
    let agent_of = |here: bool| {
        let mut pairs = agents.lines().filter_map(|line| line.split_once(' '));
        pairs.find(|(node, _)| (*node == there) == here).map(|(_, pod)| pod.to_owned()).context("an agent of each node")
    };
    let bound = |pod: &str| token(MESH, "mesh-agent", &[AUDIENCE, "--bound-object-kind=Pod", &format!("--bound-object-name={pod}")]);
    let foreign = token(DEMO, "default", &[AUDIENCE])?;
    let nobody = format!("spiffe://cluster.local/ns/{DEMO}/sa/nobody");
    let elsewhere = format!("spiffe://elsewhere.example/ns/{DEMO}/sa/{account}");
    let own = bound(&agent_of(true)?)?;
    let cases = [
        ("no token at all", STANDARD.encode("nonsense"), &identity, "token_form"),
        ("an agent's, for another audience", token(MESH, "mesh-agent", &["--audience=elsewhere"])?, &identity, "token_audience"),
        ("another service account's", foreign.clone(), &identity, "not_the_agent"),
        ("a forged one", forged(&foreign)?, &identity, "token_rejected"),
        ("an agent's, bound to no pod", token(MESH, "mesh-agent", &[AUDIENCE])?, &identity, "token_unbound"),
        ("the other node's agent's", bound(&agent_of(false)?)?, &identity, "not_on_node"),
        ("its own agent's, for nobody", own.clone(), &nobody, "not_on_node"),
        ("its own agent's, for another trust domain", own.clone(), &elsewhere, "trust_domain"),
        ("its own agent's", own, &identity, "signed"),
    ];
    let mut lines = Vec::new();
    for (name, token, identity, wanted) in cases {
        let answer = ask(&there, &token, identity)?;
        if answer != wanted {
            bail!("{name}: {answer} instead of {wanted}");
        }
        lines.push(format!("{name}: {answer}"));
    }
    Ok(lines.join("\n"))
}
