//! Files: written so that a reader sees the old or the new content and never half of it; read within bounds; PEM.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Mode of a file that holds a secret.
pub const SECRET: u32 = 0o600;
/// Mode of a file that anybody may read.
pub const PUBLIC: u32 = 0o644;

/// Longest file that is read.
const MAX_LENGTH: u64 = 16 * 1024 * 1024;

/// Writes a file in one step: beside it, then renamed into place. It is on disk when this returns.
pub fn write(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let name = path.file_name().ok_or_else(|| io::Error::other("the path names no file"))?;
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut beside = std::ffi::OsString::from(".");
    beside.push(name);
    beside.push(format!(".{}.new", std::process::id()));
    let beside = directory.join(beside);
    // Left by a process of the same number that died: its content is nobody's.
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        File::open(directory)?.sync_all()
    })();
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}

/// Reads a text file of at most 16 MiB.
pub fn read(path: &Path) -> io::Result<String> {
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    let mut text = String::new();
    if file.take(MAX_LENGTH + 1).read_to_string(&mut text)? as u64 > MAX_LENGTH {
        return Err(io::Error::other("it has more than 16 MiB"));
    }
    Ok(text)
}

/// PEM (RFC 7468), with a line end at its end.
pub fn pem(label: &str, der: &[u8]) -> String {
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in der.chunks(48) {
        STANDARD.encode_string(line, &mut text);
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

/// What tells one state of a file from another.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stamp {
    modified: Option<SystemTime>,
    changed: (i64, i64),
    length: u64,
    inode: (u64, u64),
}

impl Stamp {
    /// Of a file; symbolic links are followed, as Kubernetes swaps them when a mounted Secret or ConfigMap changes.
    pub fn of(path: &Path) -> io::Result<Stamp> {
        let metadata = fs::metadata(path)?;
        Ok(Stamp {
            modified: metadata.modified().ok(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            length: metadata.len(),
            inode: (metadata.dev(), metadata.ino()),
        })
    }

    /// Whether the file has been left alone long enough before `now` for a later change to show in the stamp: file times are coarse.
    pub fn settled(&self, now: SystemTime) -> bool {
        let last = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(self.changed.0.max(0).unsigned_abs()));
        last.is_some_and(|last| now.duration_since(last).is_ok_and(|age| age > Duration::from_secs(2)))
    }
}

/// The files of a directory that are not hidden and that `wanted` says yes to, with their stamps. Directories in it are not entered.
pub fn list(directory: &Path, wanted: impl Fn(&str) -> bool) -> io::Result<BTreeMap<PathBuf, Stamp>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if name.starts_with('.') || !wanted(name) || path.is_dir() {
            continue;
        }
        match Stamp::of(&path) {
            Ok(stamp) => drop(files.insert(path, stamp)),
            // Gone between the two looks.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests;
