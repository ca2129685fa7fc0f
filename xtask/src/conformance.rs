//! `cargo xtask conformance`: the Gateway API's own suite for meshes, unmodified, on the cluster.

mod results;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::e2e::bed::Bed;
use crate::e2e::view::{in_the_clear, mutual};
use crate::image::catalog;
use crate::{cluster, command, go};
use results::Judgement;

/// Every test of the suite for meshes, of the release that [`go::CONFORMANCE`] names.
const ALL: [&str; 22] = [
    "MeshBasic",
    "MeshConsumerRoute",
    "MeshFrontend",
    "MeshFrontendHostname",
    "MeshGRPCRouteWeight",
    "MeshHTTPRoute303Redirect",
    "MeshHTTPRoute307Redirect",
    "MeshHTTPRoute308Redirect",
    "MeshHTTPRouteBackendRequestHeaderModifier",
    "MeshHTTPRouteMatching",
    "MeshHTTPRouteNamedRule",
    "MeshHTTPRouteQueryParamMatching",
    "MeshHTTPRouteRedirectHostAndStatus",
    "MeshHTTPRouteRedirectPath",
    "MeshHTTPRouteRedirectPort",
    "MeshHTTPRouteRequestHeaderModifier",
    "MeshHTTPRouteRewritePath",
    "MeshHTTPRouteSchemeRedirect",
    "MeshHTTPRouteSimpleSameNamespace",
    "MeshHTTPRouteWeight",
    "MeshPorts",
    "MeshTrafficSplit",
];

/// What a test must find supported so that the suite runs it.
const FEATURES: [&str; 17] = [
    "Mesh",
    "HTTPRoute",
    "GRPCRoute",
    "MeshClusterIPMatching",
    "MeshConsumerRoute",
    "MeshHTTPRouteBackendRequestHeaderModification",
    "MeshHTTPRouteNamedRouteRule",
    "MeshHTTPRouteQueryParamMatching",
    "MeshHTTPRouteRedirectPath",
    "MeshHTTPRouteRedirectPort",
    "MeshHTTPRouteRewritePath",
    "MeshHTTPRouteSchemeRedirect",
    "HTTPRouteResponseHeaderModification",
    "HTTPRouteParentRefPort",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
];

/// Where the suite's pods are.
const NAMESPACE: &str = "gateway-conformance-mesh";
/// A suite that passes without the mesh having seen a call is run again: its few calls may have gone to the caller's own pod.
const RUNS: usize = 5;

/// The Gateway API's own conformance suite for meshes.
#[derive(clap::Args)]
pub struct Arguments {
    /// Run these tests. Without it: every test for meshes; none may be skipped.
    #[arg(long, value_name = "NAME", num_args = 1..)]
    run_test: Vec<String>,
    /// Run against the cluster as it is: tests that ask nothing of a mesh pass there too, which proves the harness.
    #[arg(long)]
    without_mesh: bool,
}

/// Runs the suite; false unless it and every test asked for passed.
pub fn run(arguments: &Arguments) -> Result<bool> {
    command::need_root("the conformance suite")?;
    let asked = asked(arguments)?;
    if !arguments.without_mesh && !Bed::is_installed()? {
        println!("no mesh is installed: installing it");
        Bed::prepare()?.install()?;
    }
    let suite = go::CONFORMANCE.provide()?;
    let crds = crds(&suite)?;
    println!("applying the Gateway API's definitions ({}, experimental channel)", go::CONFORMANCE.version);
    apply(&crds)?;
    cluster::load(&catalog::echo(&command::cache().join("images"))?.file)?;

    let directory = command::target().join("conformance");
    fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    let (report, log) = (directory.join("report.yaml"), directory.join("log.txt"));
    let _ = fs::remove_file(&report);
    println!("running {} of {} tests; the whole output is {}", asked.len(), ALL.len(), log.display());
    for left in (0..RUNS).rev() {
        let start = Instant::now();
        let seen =
            || if arguments.without_mesh { Ok((0.0, 0.0)) } else { Ok::<_, anyhow::Error>((mutual(NAMESPACE)?, in_the_clear(NAMESPACE)?)) };
        let before = seen()?;
        let (text, success) = execute(&suite.join("mesh.test"), &asked, &report, &log)?;
        let judgement = Judgement::new(&asked, &results::parse(&text), success);
        print!("\n{judgement}");
        println!(
            "{:.0} s; report: {}",
            start.elapsed().as_secs_f64(),
            if report.is_file() { report.display().to_string() } else { "none".into() }
        );
        if arguments.without_mesh || !judgement.good() {
            return Ok(judgement.good());
        }
        let after = seen()?;
        let (encrypted, clear) = (after.0 - before.0, after.1 - before.1);
        println!("the suite's pods took {encrypted} connections by mutual TLS, {clear} from nobody that is known");
        if encrypted > 0.0 || clear > 0.0 {
            return Ok(clear == 0.0);
        }
        if left > 0 {
            println!("its client may have been given its own pod each time, which is none of the mesh's business: running it again");
            cluster::ask(&["wait", "--for=delete", "namespace", "-l", "gateway-conformance", "--timeout=90s"])?;
        }
    }
    Ok(false)
}

fn asked(arguments: &Arguments) -> Result<Vec<&str>> {
    if arguments.run_test.is_empty() {
        return Ok(ALL.to_vec());
    }
    if let Some(unknown) = arguments.run_test.iter().find(|name| !ALL.contains(&name.as_str())) {
        bail!("the suite has no test {unknown}; it has {}", ALL.join(", "));
    }
    Ok(arguments.run_test.iter().map(String::as_str).collect())
}

/// Gives the cluster the Gateway API's definitions.
///
/// # Errors
/// They cannot be had, or the cluster does not take them.
pub fn definitions() -> Result<()> {
    // They are files of a module: the suite itself need not be built for them.
    apply(&crds(&go::CONFORMANCE.directory())?)
}

/// The definitions of the suite's release, kept beside it.
fn crds(suite: &Path) -> Result<PathBuf> {
    let kept = suite.join("crds");
    if kept.is_dir() {
        return Ok(kept);
    }
    let from = go::CONFORMANCE.module("sigs.k8s.io/gateway-api")?.join("config/crd/experimental");
    let fresh = suite.join(format!(".crds.{}", std::process::id()));
    fs::create_dir_all(&fresh).with_context(|| format!("making {}", fresh.display()))?;
    for entry in fs::read_dir(&from).with_context(|| format!("reading {}", from.display()))? {
        let entry = entry.with_context(|| format!("reading {}", from.display()))?;
        let name = entry.file_name();
        if name.to_string_lossy().starts_with("gateway.networking") {
            // Written anew: Go's cache is read-only, and so would be a copy.
            let bytes = fs::read(entry.path()).with_context(|| format!("reading {}", entry.path().display()))?;
            fs::write(fresh.join(&name), bytes).with_context(|| format!("writing {}", fresh.join(&name).display()))?;
        }
    }
    fs::rename(&fresh, &kept).with_context(|| format!("moving {} to its place", fresh.display()))?;
    Ok(kept)
}

fn apply(crds: &Path) -> Result<()> {
    let mut documents = String::new();
    let entries = fs::read_dir(crds).with_context(|| format!("reading {}", crds.display()))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    for file in files {
        documents += &fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        documents += "\n---\n";
    }
    cluster::apply(&documents)?;
    cluster::ask(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"]).map(drop)
}

/// The suite's flags. It is asked for all but what was not asked for: its own filter takes one test only, and Go's filter would let
/// the report count as passed what did not run.
fn flags(asked: &[&str], report: &Path) -> Vec<String> {
    let skipped: Vec<&str> = ALL.iter().copied().filter(|name| !asked.contains(name)).collect();
    let version = env!("CARGO_PKG_VERSION");
    vec![
        "-test.v".to_owned(),
        "-test.timeout=60m".to_owned(),
        "--gateway-class=".to_owned(),
        "--conformance-profiles=MESH-HTTP,MESH-GRPC".to_owned(),
        format!("--supported-features={}", FEATURES.join(",")),
        format!("--skip-tests={}", skipped.join(",")),
        "--namespace-labels=nodemesh.dev/mesh=enabled".to_owned(),
        "--organization=nodemesh".to_owned(),
        "--project=nodemesh".to_owned(),
        format!("--url={}", env!("CARGO_PKG_REPOSITORY")),
        format!("--version=v{version}"),
        format!("--contact={}/issues", env!("CARGO_PKG_REPOSITORY")),
        format!("--report-output={}", report.display()),
    ]
}

/// Runs it and shows its progress; returns what it wrote and whether it ended well.
fn execute(program: &Path, asked: &[&str], report: &Path, log: &Path) -> Result<(String, bool)> {
    let mut file = fs::File::create(log).with_context(|| format!("writing {}", log.display()))?;
    let errors = file.try_clone().context("duplicating a log")?;
    let mut command = cluster::inside(program);
    let mut child = command.args(flags(asked, report)).stdout(Stdio::piped()).stderr(errors).spawn().context("starting the suite")?;
    let mut text = String::new();
    if let Some(stdout) = child.stdout.take() {
        let mut reader = BufReader::new(stdout);
        let mut bytes = Vec::new();
        while reader.read_until(b'\n', &mut bytes).context("reading the suite's output")? > 0 {
            file.write_all(&bytes).with_context(|| format!("writing {}", log.display()))?;
            let line = String::from_utf8_lossy(&bytes);
            if results::is_progress(&line, asked) {
                print!("{line}");
                let _ = std::io::stdout().flush();
            }
            text += &line;
            bytes.clear();
        }
    }
    let status = child.wait().context("waiting for the suite")?;
    Ok((text, status.success()))
}

#[cfg(test)]
mod tests {
    use super::{ALL, flags};
    use std::path::Path;

    #[test]
    fn skips_exactly_what_was_not_asked_for() {
        let flag = |asked: &[&str]| flags(asked, Path::new("r")).into_iter().find(|flag| flag.starts_with("--skip-tests=")).unwrap();
        assert_eq!(flag(&ALL), "--skip-tests=");
        let skipped = flag(&["MeshBasic"]);
        assert!(!skipped.contains("MeshBasic"));
        assert_eq!(skipped.matches("Mesh").count(), ALL.len() - 1);
    }
}
