//! The shared libraries of a program, so that it runs in an image that has nothing else.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::layer::File;

/// A program of this machine with its loader and libraries, at the paths at which they look for each other.
pub fn with_libraries(path: &str, program: &Path) -> Result<Vec<File>> {
    let mut files = vec![File::program(path, program)];
    files.extend(of(program)?.into_iter().map(|library| copy(&library)));
    Ok(files)
}

/// Takes out the doubles that several programs' libraries are.
pub fn unique(files: Vec<File>) -> Vec<File> {
    let mut seen = BTreeMap::new();
    for file in files {
        seen.entry(file.path.clone()).or_insert(file);
    }
    seen.into_values().collect()
}

fn copy(library: &Path) -> File {
    // Through /lib, which is a link to usr/lib on the machine but need not be one in the image.
    File { path: library.display().to_string(), mode: 0o755, owner: 0, content: super::Content::Copy(library.to_owned()) }
}

fn of(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("starting ldd")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if !output.status.success() && !text.contains("not a dynamic executable") {
        bail!("ldd {} ended with {}: {}", program.display(), output.status, text.trim());
    }
    let libraries = parse(&text).with_context(|| format!("ldd {}", program.display()))?;
    for library in &libraries {
        fs::metadata(library).with_context(|| format!("{}, a library of {}", library.display(), program.display()))?;
    }
    Ok(libraries)
}

/// Paths in the output of ldd(1).
fn parse(text: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        let place = match line.split_once(" => ") {
            Some((name, "not found")) => bail!("library {name} is not on this machine"),
            Some((_, place)) => place,
            None => line,
        };
        if place.starts_with('/')
            && let Some((path, _)) = place.rsplit_once(" (0x")
        {
            found.push(PathBuf::from(path));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::parse;
    use std::path::PathBuf;

    #[test]
    fn reads_libraries_and_loader_and_not_the_kernels() {
        let text = "\tlinux-vdso.so.1 (0x00007ffc)\n\tlibz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x00007f)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(parse(text).unwrap(), ["/lib/x86_64-linux-gnu/libz.so.1", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from));
        assert!(parse("\tnot a dynamic executable\n").unwrap().is_empty());
        assert!(parse("\tstatically linked\n").unwrap().is_empty());
    }

    #[test]
    fn a_missing_library_is_an_error() {
        assert!(parse("\tlibx.so => not found\n").is_err());
    }
}
