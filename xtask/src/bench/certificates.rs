//! Certificates for the Envoys: a root and two leaves with SPIFFE identities, made for one run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Makes `root.pem`, and `<name>.pem` with `<name>.key` for each (name, SPIFFE id), in the directory.
pub fn make(directory: &Path, leaves: &[(&str, &str)]) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    let file = |name: &str, kind: &str| -> PathBuf { directory.join(format!("{name}.{kind}")) };
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let (root, root_key) = (text(&file("root", "pem")), text(&file("root", "key")));
    let curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    openssl(&[&["req", "-x509", "-days", "2", "-subj", "/CN=benchmark root", "-keyout", &root_key, "-out", &root], &curve[..]].concat())?;
    for (name, identity) in leaves {
        let (key, request, certificate) = (text(&file(name, "key")), text(&file(name, "csr")), text(&file(name, "pem")));
        let extensions = file(name, "ext");
        let lines = format!(
            "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\n\
             subjectAltName=URI:{identity}\n"
        );
        fs::write(&extensions, lines).with_context(|| format!("writing {}", extensions.display()))?;
        let subject = format!("/CN={name}");
        openssl(&[&["req", "-new", "-subj", &subject, "-keyout", &key, "-out", &request], &curve[..]].concat())?;
        let extensions = text(&extensions);
        let signing = ["x509", "-req", "-days", "2", "-in", &request, "-CA", &root, "-CAkey", &root_key, "-CAcreateserial"];
        openssl(&[&signing[..], &["-extfile", &extensions, "-out", &certificate]].concat())?;
    }
    Ok(())
}

fn openssl(words: &[&str]) -> Result<()> {
    let output = Command::new("openssl").args(words).stdin(Stdio::null()).output().context("starting openssl")?;
    if !output.status.success() {
        bail!("`openssl {}` ended with {}: {}", words.join(" "), output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
