//! What the steps work with: the cluster, our images in it, `meshctl`, and the pods that call and are called.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::image::catalog;
use crate::{chart, cluster, command};

/// Where the mesh is installed.
pub const MESH: &str = "nodemesh-system";
/// Where the steps' pods are.
pub const DEMO: &str = "e2e-demo";
/// Another namespace, which is never enrolled.
pub const OUTSIDE: &str = "e2e-outside";
/// One whose pods accept no plaintext.
pub const STRICT: &str = "e2e-strict";

/// Of a step that waits.
pub const LIMIT: Duration = Duration::from_secs(60);

/// The test bed. Namespaces that steps made go with it.
pub struct Bed {
    meshctl: PathBuf,
}

impl Bed {
    /// Starts the cluster if it does not run, builds images and `meshctl`, and gives the nodes the images.
    pub fn prepare() -> Result<Self> {
        cluster::up_unless_running()?;
        let out = command::target().join("images");
        let mesh = catalog::mesh()?;
        let images = [
            catalog::agent(&mesh, &out)?,
            catalog::control(&mesh, &out)?,
            catalog::http_echo(&catalog::programs()?, &out)?,
            catalog::tools(&out)?,
            catalog::peer(&out)?,
            catalog::echo(&out)?,
        ];
        for image in &images {
            println!("{} {}", image.name, image.digest);
            cluster::load(&image.file)?;
        }
        command::build_programs("dev", &["meshctl"])?;
        let meshctl = command::target().join("debug/meshctl");
        let bed = Bed { meshctl };
        bed.clean();
        Ok(bed)
    }

    /// Removes what steps made, also those of a run that crashed.
    pub fn clean(&self) {
        let namespaces = [DEMO, OUTSIDE, STRICT, super::crowd::FAKE, super::gamma::PRODUCER, super::gamma::CONSUMER];
        let words = [&["delete", "namespace", "--ignore-not-found", "--wait=true", "--timeout=60s"][..], &namespaces].concat();
        if let Err(error) = cluster::ask(&words) {
            println!("namespaces of the steps are left: {error:#}");
        }
        if let Err(error) = super::crowd::forget_fakes() {
            println!("nodes of the steps are left: {error:#}");
        }
    }

    /// `meshctl` where it reaches the API server, with the cluster's Helm on its path.
    pub fn meshctl(&self, words: &[&str]) -> Result<Command> {
        let mut command = cluster::inside(&self.meshctl);
        command.args(words);
        chart::on_path(&mut command)?;
        Ok(command)
    }

    /// What `meshctl` prints; an error if it fails.
    pub fn told(&self, words: &[&str]) -> Result<String> {
        let output = self.meshctl(words)?.output().context("starting meshctl")?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if !output.status.success() {
            bail!("meshctl {} ended with {}: {}\n{}", words.join(" "), output.status, text(&output.stdout), text(&output.stderr));
        }
        Ok(text(&output.stdout))
    }

    /// What `meshctl` prints, whether it finds something wrong or not.
    pub fn says(&self, words: &[&str]) -> Result<String> {
        let output = self.meshctl(words)?.output().context("starting meshctl")?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Installs the mesh, or upgrades it; returns how long it took until all was ready.
    pub fn install(&self) -> Result<Duration> {
        let start = Instant::now();
        let cgroup = format!("agent.cgroupRoot={}", cluster::NODE_CGROUP);
        self.told(&["install", "--set", &cgroup, "--timeout", "120"])?;
        Ok(start.elapsed())
    }

    /// Whether the mesh is installed.
    pub fn is_installed() -> Result<bool> {
        Ok(!cluster::ask(&["get", "daemonsets", "-n", MESH, "-o", "name"])?.trim().is_empty())
    }
}

/// What a program in a pod did.
pub struct Answer {
    /// Whether it ended well.
    pub ok: bool,
    /// What it wrote, to both of its outputs.
    pub text: String,
}

/// Runs a program in a pod (or `deployment/NAME`).
pub fn exec(namespace: &str, pod: &str, words: &[&str]) -> Result<Answer> {
    let all = [&["-n", namespace, "exec", pod, "--"], words].concat();
    let output = cluster::kubectl().args(&all).output().context("starting kubectl")?;
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Ok(Answer { ok: output.status.success(), text })
}

/// curl in a pod, bounded.
pub fn curl(namespace: &str, pod: &str, url: &str) -> Result<Answer> {
    exec(namespace, pod, &["curl", "-sS", "--max-time", "5", url])
}

/// Calls until the answer is as wanted; the last one otherwise.
pub fn curl_until(namespace: &str, pod: &str, url: &str, wanted: impl Fn(&Answer) -> bool) -> Result<Duration> {
    let start = Instant::now();
    loop {
        let answer = curl(namespace, pod, url)?;
        if wanted(&answer) {
            return Ok(start.elapsed());
        }
        if start.elapsed() > LIMIT {
            bail!("{url} from {namespace}/{pod}: still {}: {}", if answer.ok { "answered" } else { "refused" }, answer.text.trim());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until what `selector` selects is ready.
pub fn ready(namespace: &str, selector: &[&str]) -> Result<()> {
    let words = [&["-n", namespace, "wait", "--for=condition=Ready", "--timeout=60s", "pod"], selector].concat();
    cluster::ask(&words).map(drop)
}

/// A pod with a web server that answers with the pod's name on port 80, and with curl; `labels` beside that of its name.
pub fn web(name: &str, labels: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}{labels}}}}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{{name: nginx, image: docker.io/nodemesh/lab-tools:1, imagePullPolicy: Never}}]
---
"
    )
}

/// A Service on port 80 of the pods with that label `app`, which listen on `target`; `more` of its spec.
pub fn service(name: &str, app: &str, target: u16, more: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{selector: {{app: {app}}}, ports: [{{port: 80, targetPort: {target}}}]{more}}}
---
"
    )
}

/// A namespace with labels.
pub fn namespace(name: &str, labels: &str) -> Result<()> {
    cluster::apply(&format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}, labels: {{{labels}}}}}}}"))
}

/// Applies documents in a namespace.
pub fn apply(namespace: &str, documents: &str) -> Result<()> {
    cluster::apply_in(namespace, documents)
}
