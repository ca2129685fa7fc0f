//! The chart, which this program carries with it, and the Helm that installs it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use include_dir::{Dir, include_dir};
use serde_json::Value;

use crate::cluster::Target;

/// Name of the release.
pub const RELEASE: &str = "nodemesh";

static CHART: Dir<'static> = include_dir!("$CARGO_MANIFEST_DIR/../deploy/chart");

/// The chart on disk, as long as this lives.
pub struct Unpacked(tempfile::TempDir);

impl Unpacked {
    /// Writes it to a directory of its own.
    ///
    /// # Errors
    /// The disk's.
    pub fn new() -> Result<Self> {
        let directory = tempfile::tempdir().context("making a directory for the chart")?;
        CHART.extract(directory.path()).context("writing the chart")?;
        Ok(Unpacked(directory))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

/// The definitions of our own kinds: Helm installs these once and never brings them up to date.
///
/// # Errors
/// One is no YAML: this program was built wrongly.
pub fn definitions() -> Result<Vec<Value>> {
    let files = CHART.get_dir("crds").map(|directory| directory.files()).into_iter().flatten();
    files
        .map(|file| {
            let text = file.contents_utf8().with_context(|| format!("{} is not text", file.path().display()))?;
            serde_yaml_ng::from_str(text).with_context(|| format!("{} is no YAML", file.path().display()))
        })
        .collect()
}

/// Helm on PATH, told which cluster.
///
/// # Errors
/// There is none, or it is too old.
pub fn helm(target: &Target) -> Result<Command> {
    let program = on_path("helm").context(
        "`helm` is not on PATH, and it is what installs the chart; get Helm 3.13 or newer from https://helm.sh/docs/intro/install or your \
         distribution, and run this again",
    )?;
    let said = Command::new(&program).args(["version", "--template", "{{.Version}}"]).output().context("starting helm")?;
    let text = String::from_utf8_lossy(&said.stdout).trim().to_owned();
    if version(&text).is_none_or(|found| found < (3, 13)) {
        bail!("{} is Helm {text:?}; 3.13 or newer is needed", program.display());
    }
    let mut helm = Command::new(program);
    helm.args(["--namespace", &target.namespace]);
    if let Some(path) = &target.kubeconfig {
        helm.arg("--kubeconfig").arg(path);
    }
    if let Some(context) = &target.context {
        helm.args(["--kube-context", context]);
    }
    Ok(helm)
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(|candidate| candidate.is_file())
}

/// Major and minor number of `v3.13.1+gabc`.
pub fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.trim_start_matches('v').split(['.', '-', '+']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(version("v3.13.1+g3547a4b"), Some((3, 13)));
        assert_eq!(version("v4.3"), Some((4, 3)));
        assert_eq!(version("v1.36.3"), Some((1, 36)));
        assert_eq!(version(""), None);
    }

    #[test]
    fn the_chart_is_carried_whole() {
        let unpacked = Unpacked::new().unwrap();
        for file in [
            "Chart.yaml",
            "values.yaml",
            "values.schema.json",
            "templates/agent.yaml",
            "files/crds/security.istio.io_peerauthentications.yaml",
        ] {
            assert!(unpacked.path().join(file).is_file(), "{file}");
        }
        let names: Vec<_> = definitions().unwrap().iter().map(|d| d["metadata"]["name"].as_str().unwrap().to_owned()).collect();
        assert_eq!(names, ["meshes.nodemesh.dev", "ratelimits.nodemesh.dev"]);
    }
}
