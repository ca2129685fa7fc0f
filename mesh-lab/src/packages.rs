//! Debian packages that the programs of a world come from.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The command that tells whether a package is needed, where it isn't the package's name.
const COMMANDS: [(&str, &str); 9] = [
    ("dnsmasq-base", "dnsmasq"),
    ("nghttp2-client", "h2load"),
    ("nginx-light", "nginx"),
    ("redis-server", "redis-server"),
    ("redis-tools", "redis-cli"),
    ("iproute2", "ip"),
    ("util-linux", "nsenter"),
    ("netcat-openbsd", "nc"),
    ("openssl", "openssl"),
];

const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Makes the packages' commands available; installs only those packages whose command is missing, and prints which.
///
/// # Errors
/// A command is missing and there is no `apt-get`, or it failed.
pub fn ensure(packages: &[&str]) -> Result<()> {
    let missing: Vec<&str> = packages.iter().copied().filter(|package| find(command_of(package)).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    apt(&missing)?;
    for package in missing {
        if find(command_of(package)).is_none() {
            bail!("package {package} is installed, but its command `{}` is not on PATH", command_of(package));
        }
    }
    Ok(())
}

/// Installs those of the packages that dpkg doesn't know as installed, and prints which.
///
/// # Errors
/// Some are missing and there is no `apt-get`, or it failed.
pub fn install(packages: &[&str]) -> Result<()> {
    let missing: Vec<&str> = packages.iter().copied().filter(|package| !installed(package)).collect();
    if missing.is_empty() { Ok(()) } else { apt(&missing) }
}

fn command_of(package: &str) -> &str {
    COMMANDS.iter().find(|(name, _)| *name == package).map_or(package, |(_, command)| command)
}

fn find(command: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(command))
        .find(|candidate| candidate.is_file())
}

fn installed(package: &str) -> bool {
    let output = Command::new("dpkg-query").args(["-W", "-f=${db:Status-Status}", package]).stderr(Stdio::null()).output();
    output.is_ok_and(|output| output.status.success() && output.stdout == b"installed")
}

fn apt(packages: &[&str]) -> Result<()> {
    if find("apt-get").is_none() {
        bail!("missing: {}; install them with this system's package manager (there is no apt-get)", packages.join(", "));
    }
    println!("installing Debian packages: {}", packages.join(", "));
    let _quiet = NoServices::new();
    if apt_get(&install_arguments(packages)).is_err() {
        apt_get(&["update".to_owned()])?;
        apt_get(&install_arguments(packages))
            .with_context(|| format!("Debian packages {} (Debian 12 with its security suite has them all)", packages.join(", ")))?;
    }
    Ok(())
}

fn install_arguments(packages: &[&str]) -> Vec<String> {
    ["install", "--yes", "--no-install-recommends"].iter().chain(packages).map(|&word| word.to_owned()).collect()
}

fn apt_get(arguments: &[String]) -> Result<()> {
    let output = Command::new("apt-get")
        // Somebody else may be installing: another run, or the system itself.
        .args(["-q", "-o", "DPkg::Lock::Timeout=120"])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .output()
        .context("starting apt-get")?;
    if !output.status.success() {
        bail!("`apt-get {}` ended with {}: {}", arguments.join(" "), output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// While it lives, installing a server's package doesn't start that server on this machine.
struct NoServices(bool);

impl NoServices {
    fn new() -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        if Path::new(POLICY).exists() {
            return Self(false);
        }
        let written = std::fs::write(POLICY, "#!/bin/sh\nexit 101\n")
            .and_then(|()| std::fs::set_permissions(POLICY, std::fs::Permissions::from_mode(0o755)));
        Self(written.is_ok())
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.0 {
            let _ = std::fs::remove_file(POLICY);
        }
    }
}
