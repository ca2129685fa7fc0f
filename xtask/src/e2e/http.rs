//! HTTP: routes with their status, a rolling restart under load, policy and limits by request.

use anyhow::{Result, bail};

use super::bed::{Bed, DEMO, apply, curl_until, exec};
use super::lifecycle::under_traffic;
use super::view::{in_the_clear, logged, sum, text};
use super::walk::URL;
use crate::cluster;

const ROUTE: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: hello-world}
spec:
  parentRefs: [{group: '', kind: Service, name: hello-world, port: 80}]
  rules:
    - matches: [{path: {type: PathPrefix, value: /gone}}]
      filters: [{type: RequestRedirect, requestRedirect: {hostname: elsewhere.example, statusCode: 301}}]
    - matches: [{path: {type: PathPrefix, value: /lost}}]
      backendRefs: [{name: nobody-has-this, port: 80}]
    - matches: [{path: {type: PathPrefix, value: /}}]
      backendRefs: [{name: hello-world, port: 80}]
      timeouts: {request: 10s}
";

/// Status code and `Location` of an answer.
fn head(path: &str) -> Result<String> {
    let words = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code} %{redirect_url}", "--max-time", "5", &format!("{URL}{path}")];
    Ok(exec(DEMO, "client", &words)?.text.trim().to_owned())
}

fn condition(kind: &str) -> Result<String> {
    let path = format!(
        "jsonpath={{.status.parents[0].conditions[?(@.type==\"{kind}\")].status}} {{.status.parents[0].conditions[?(@.type==\"{kind}\")].reason}}"
    );
    Ok(cluster::ask(&["-n", DEMO, "get", "httproute", "hello-world", "-o", &path])?.trim().to_owned())
}

fn eventually(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = std::time::Instant::now();
    while !holds()? {
        if start.elapsed() > super::bed::LIMIT {
            bail!("{what}: not within {:?}", super::bed::LIMIT);
        }
        std::thread::sleep(std::time::Duration::from_millis(300));
    }
    Ok(())
}

pub fn routed(_: &mut Bed) -> Result<String> {
    crate::conformance::definitions()?;
    apply(DEMO, ROUTE)?;
    // Agents ask for kinds that were not there now and then.
    eventually("the route is in force", || Ok(head("/gone")?.starts_with("301 ")))?;
    let answers = ["/gone/x", "/lost", "/"].map(|path| head(path).unwrap_or_default());
    if answers != ["301 http://elsewhere.example/gone/x", "500", "200"] {
        bail!("/gone/x, /lost and / were answered with {answers:?}");
    }
    eventually("the status says what became of the route", || Ok(condition("ResolvedRefs")? == "False BackendNotFound"))?;
    if condition("Accepted")? != "True Accepted" {
        bail!("Accepted is {}", condition("Accepted")?);
    }
    let labels =
        [("reporter", "source"), ("source_workload", "client"), ("response_code", "200"), ("connection_security_policy", "mutual_tls")];
    if sum("istio_requests_total", &labels)? < 1.0 {
        bail!("no agent counted a request by mutual TLS");
    }
    let line = logged(&[("direction", "outbound"), ("path", "/lost"), ("status", "500")])?;
    Ok(format!("{}: {}", text(&line, "route"), text(&line, "reason")))
}

pub fn rolling(_: &mut Bed) -> Result<String> {
    // As Istio's users have it, unchanged.
    apply(DEMO, include_str!("../../../deploy/samples/istio/destination-rule.yaml"))?;
    cluster::ask(&["-n", DEMO, "scale", "deployment/hello-world", "--replicas=2"])?;
    cluster::ask(&["-n", DEMO, "rollout", "status", "deployment/hello-world", "--timeout=90s"])?;
    let before = in_the_clear(DEMO)?;
    let (made, _) = under_traffic(|| {
        cluster::ask(&["-n", DEMO, "rollout", "restart", "deployment/hello-world"])?;
        cluster::ask(&["-n", DEMO, "rollout", "status", "deployment/hello-world", "--timeout=120s"])
    })?;
    let retried = sum("nodemesh_request_retries_total", &[])?;
    if in_the_clear(DEMO)? > before {
        bail!("a call arrived in the clear");
    }
    cluster::ask(&["-n", DEMO, "scale", "deployment/hello-world", "--replicas=1"])?;
    cluster::ask(&["-n", DEMO, "rollout", "status", "deployment/hello-world", "--timeout=90s"])?;
    Ok(format!("{made} calls meanwhile, all answered; {retried} attempts were made again"))
}

const BY_REQUEST: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: by-request}
spec:
  selector: {matchLabels: {app: hello-world}}
  action: DENY
  rules: [{to: [{operation: {paths: [/admin*]}}]}]
";

pub fn judged(bed: &mut Bed) -> Result<String> {
    apply(DEMO, BY_REQUEST)?;
    eventually("the policy is in force", || Ok(head("/admin")? == "403"))?;
    for (path, status) in [("/", "200"), ("//admin", "403"), ("/x/../admin/y", "403"), ("/public", "200")] {
        let words = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--path-as-is", "--max-time", "5", &format!("{URL}{path}")];
        let answer = exec(DEMO, "client", &words)?.text;
        if answer.trim() != status {
            bail!("{path} was answered with {answer}");
        }
    }
    let line = logged(&[("direction", "inbound"), ("path", "/admin"), ("status", "403")])?;
    if text(&line, "policy") != format!("{DEMO}/by-request") {
        bail!("the log does not name the policy: {line}");
    }
    let explained =
        bed.says(&["explain", &format!("{DEMO}/client"), &format!("{DEMO}/hello-world"), "--method", "GET", "--path", "/admin"])?;
    if !explained.contains("by-request") {
        bail!("meshctl explain does not name the policy:\n{explained}");
    }
    for (kind, name) in [("authorizationpolicy", "by-request"), ("httproute", "hello-world"), ("destinationrule", "hello-world")] {
        cluster::ask(&["-n", DEMO, "delete", kind, name])?;
    }
    curl_until(DEMO, "client", &format!("{URL}/admin"), |answer| answer.ok)?;
    eventually("the route is gone", || Ok(head("/gone")? == "200"))?;
    Ok(explained)
}
