//! Pods of many kinds.

use anyhow::{Result, bail};

use super::bed::{Bed, DEMO, STRICT, apply, curl, curl_until, ready, service};
use super::view::{in_the_clear, logged, mutual, sum, text};
use super::walk::{HELLO, URL};
use crate::cluster;

/// Every way in which the kubelet looks after a pod. The echo server answers gRPC's health service.
const PROBED: &str = "
apiVersion: v1
kind: Pod
metadata: {name: probed, labels: {app: probed}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: nginx
      image: docker.io/nodemesh/lab-tools:1
      imagePullPolicy: Never
      startupProbe: {exec: {command: ['true']}, periodSeconds: 1}
      readinessProbe: {httpGet: {port: 80, path: /}, periodSeconds: 1, failureThreshold: 1}
      livenessProbe: {tcpSocket: {port: 80}, periodSeconds: 1, failureThreshold: 1}
    - name: echo
      image: registry.k8s.io/gateway-api/echo-advanced:v1.5.1
      imagePullPolicy: Never
      args: ['--grpc=7070', '--port=9090', '--tcp=9091']
      readinessProbe: {grpc: {port: 7070}, periodSeconds: 1, failureThreshold: 1}
      livenessProbe: {tcpSocket: {port: 9091}, periodSeconds: 1, failureThreshold: 2, initialDelaySeconds: 2}
";

pub fn probes(_: &mut Bed) -> Result<String> {
    apply(STRICT, PROBED)?;
    ready(STRICT, &["probed"])?;
    // Long enough for each probe to be made some times.
    std::thread::sleep(std::time::Duration::from_secs(4));
    let path = "jsonpath={range .status.containerStatuses[*]}{.name} {.ready} {.restartCount}{\"\\n\"}{end}";
    let status = cluster::ask(&["-n", STRICT, "get", "pod", "probed", "-o", path])?;
    if status.trim() != "echo true 0\nnginx true 0" {
        bail!("containers, ready, restarts:\n{status}");
    }
    let events =
        cluster::ask(&["-n", STRICT, "get", "events", "--field-selector", "involvedObject.name=probed,reason=Unhealthy", "-o", "name"])?;
    Ok(format!("both containers ready, none restarted; {} probes failed, all before the programs listened", events.lines().count()))
}

const ON_HOST: &str = "
apiVersion: v1
kind: Pod
metadata: {name: on-host}
spec:
  hostNetwork: true
  dnsPolicy: ClusterFirstWithHostNet
  terminationGracePeriodSeconds: 0
  containers:
    - {name: tools, image: docker.io/nodemesh/lab-tools:1, imagePullPolicy: Never, command: [sleep, infinity]}
";

pub fn host_network(_: &mut Bed) -> Result<String> {
    apply(DEMO, ON_HOST)?;
    ready(DEMO, &["on-host"])?;
    let labels = [("reporter", "source"), ("source_workload", "on-host")];
    curl_until(DEMO, "on-host", URL, |answer| answer.ok && answer.text.contains(HELLO))?;
    if sum("istio_tcp_connections_opened_total", &labels)? > 0.0 {
        bail!("its call was captured");
    }
    cluster::ask(&["-n", DEMO, "delete", "pod", "on-host"])?;
    Ok("its call is the node's own".into())
}

const HEADLESS: &str = "
apiVersion: v1
kind: Service
metadata: {name: peers}
spec: {clusterIP: None, selector: {app: peers}, ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: peers}
spec:
  serviceName: peers
  replicas: 2
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: peers}}
  template:
    metadata: {labels: {app: peers}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: nginx, image: docker.io/nodemesh/lab-tools:1, imagePullPolicy: Never}]
";

pub fn headless(_: &mut Bed) -> Result<String> {
    let before = in_the_clear(DEMO)?;
    apply(DEMO, HEADLESS)?;
    cluster::ask(&["-n", DEMO, "rollout", "status", "statefulset/peers", "--timeout=60s"])?;
    for name in ["peers-0", "peers-1"] {
        curl_until(DEMO, "client", &format!("http://{name}.peers"), |answer| answer.ok && answer.text.contains(name))?;
    }
    let labels = [("reporter", "destination"), ("destination_workload", "peers"), ("connection_security_policy", "mutual_tls")];
    let across = sum("istio_tcp_connections_opened_total", &labels)?;
    let unnamed = in_the_clear(DEMO)? - before;
    if across < 1.0 || unnamed > 0.0 {
        bail!("{across} connections by mutual TLS and {unnamed} without the client's identity");
    }
    Ok("by the name of each of its pods, on both nodes".into())
}

pub fn dual_stack(_: &mut Bed) -> Result<String> {
    apply(DEMO, &service("hello-six", "hello-world", 5678, ", ipFamilyPolicy: SingleStack, ipFamilies: [IPv6]"))?;
    let before = mutual(DEMO)?;
    curl_until(DEMO, "client", "http://hello-six", |answer| answer.ok && answer.text.contains(HELLO))?;
    if mutual(DEMO)? <= before {
        bail!("not by mutual TLS");
    }
    let line = logged(&[("service", "hello-six.e2e-demo.svc.cluster.local"), ("direction", "outbound"), ("outcome", "completed")])?;
    Ok(format!("{} → {}", text(&line, "client"), text(&line, "server")))
}

const JOB: &str = "
apiVersion: batch/v1
kind: Job
metadata: {name: once}
spec:
  backoffLimit: 0
  template:
    metadata: {labels: {app: once}}
    spec:
      restartPolicy: Never
      initContainers:
        - {name: before, image: docker.io/nodemesh/lab-tools:1, imagePullPolicy: Never, command: [curl, -sSf, --max-time, '5', 'http://hello-world']}
      containers:
        - {name: main, image: docker.io/nodemesh/lab-tools:1, imagePullPolicy: Never, command: [curl, -sSf, --max-time, '5', 'http://hello-world']}
";

pub fn job(_: &mut Bed) -> Result<String> {
    let in_mesh = || Ok::<_, anyhow::Error>(sum("nodemesh_pods_ready", &[])? + sum("nodemesh_pods_held", &[])?);
    let (before, plain) = (in_mesh()?, in_the_clear(DEMO)?);
    apply(DEMO, JOB)?;
    if cluster::ask(&["-n", DEMO, "wait", "--for=condition=Complete", "--timeout=40s", "job/once"]).is_err() {
        let said = cluster::ask(&["-n", DEMO, "logs", "-l", "app=once", "--all-containers", "--prefix"]).unwrap_or_default();
        bail!("the Job did not complete:\n{said}");
    }
    if in_the_clear(DEMO)? > plain {
        bail!("a connection of the Job arrived in the clear");
    }
    cluster::ask(&["-n", DEMO, "delete", "job", "once", "--wait=true"])?;
    let start = std::time::Instant::now();
    while in_mesh()? > before {
        if start.elapsed() > super::bed::LIMIT {
            bail!("the agents still have {} pods, {before} before", in_mesh()?);
        }
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    let answer = curl(DEMO, "client", URL)?;
    if !answer.ok {
        bail!("after it hello-world is not answered: {}", answer.text.trim());
    }
    Ok("its init container's call too".into())
}
