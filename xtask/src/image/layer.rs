//! The one layer of an image: a tar archive that depends on the files' content alone, not on when or by whom it is written.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use tar::{Builder, EntryType, Header, HeaderMode};

/// What a file of an image is.
#[derive(Clone, Debug)]
pub enum Content {
    /// A copy of this file of the machine.
    Copy(PathBuf),
    /// These bytes.
    Bytes(Vec<u8>),
    /// A symbolic link to this path.
    Link(String),
    /// A directory.
    Directory,
}

/// A file of an image.
#[derive(Clone, Debug)]
pub struct File {
    /// Absolute.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// Who owns it: user and group have the same number.
    pub owner: u64,
    /// What it is.
    pub content: Content,
}

impl File {
    /// A program copied from the machine.
    pub fn program(path: &str, from: impl Into<PathBuf>) -> Self {
        Self { path: path.to_owned(), mode: 0o755, owner: 0, content: Content::Copy(from.into()) }
    }

    /// A file that everyone may read.
    pub fn data(path: &str, bytes: impl Into<Vec<u8>>) -> Self {
        Self { path: path.to_owned(), mode: 0o644, owner: 0, content: Content::Bytes(bytes.into()) }
    }

    /// A directory.
    pub fn directory(path: &str, mode: u32, owner: u64) -> Self {
        Self { path: path.to_owned(), mode, owner, content: Content::Directory }
    }

    /// A symbolic link.
    pub fn link(path: &str, to: &str) -> Self {
        Self { path: path.to_owned(), mode: 0o777, owner: 0, content: Content::Link(to.to_owned()) }
    }
}

/// Writes the layer. Files come sorted by path, each after the directories that it is in; times are zero, owners as given.
///
/// # Errors
/// A path is not absolute, occurs twice with different content, or a file can't be read.
pub fn write(files: &[File], out: impl Write) -> Result<()> {
    let mut sorted: BTreeMap<&str, &File> = BTreeMap::new();
    for file in files {
        let Some(path) = file.path.strip_prefix('/').filter(|path| !path.is_empty()) else {
            bail!("`{}` is no absolute path of a file", file.path);
        };
        if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
            bail!("`{}` is not in its shortest form", file.path);
        }
        if sorted.insert(path, file).is_some() {
            bail!("{} is in the image twice", file.path);
        }
    }
    let mut tar = Builder::new(out);
    tar.mode(HeaderMode::Deterministic);
    let mut made = BTreeSet::new();
    for (path, file) in sorted {
        for (end, _) in path.match_indices('/') {
            let parent = path.get(..end).unwrap_or_default();
            if made.insert(parent.to_owned()) {
                append(&mut tar, parent, &File::directory(parent, 0o755, 0))?;
            }
        }
        if matches!(file.content, Content::Directory) && !made.insert(path.to_owned()) {
            continue;
        }
        append(&mut tar, path, file).with_context(|| file.path.clone())?;
    }
    tar.finish().context("the end of the layer")
}

fn append(tar: &mut Builder<impl Write>, path: &str, file: &File) -> Result<()> {
    let mut header = Header::new_gnu();
    header.set_mode(file.mode);
    header.set_uid(file.owner);
    header.set_gid(file.owner);
    header.set_mtime(0);
    header.set_size(0);
    match &file.content {
        Content::Directory => {
            header.set_entry_type(EntryType::Directory);
            tar.append_data(&mut header, format!("{path}/"), std::io::empty())?;
        }
        Content::Link(to) => {
            header.set_entry_type(EntryType::Symlink);
            tar.append_link(&mut header, path, to)?;
        }
        Content::Bytes(bytes) => {
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, path, bytes.as_slice())?;
        }
        Content::Copy(from) => {
            let source = std::fs::File::open(from).with_context(|| format!("opening {}", from.display()))?;
            header.set_size(source.metadata().with_context(|| format!("looking at {}", from.display()))?.len());
            tar.append_data(&mut header, path, source)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{File, write};

    fn paths(bytes: &[u8]) -> Vec<String> {
        let mut archive = tar::Archive::new(bytes);
        archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().to_string_lossy().into_owned()).collect()
    }

    fn layer(files: &[File]) -> Vec<u8> {
        let mut bytes = Vec::new();
        write(files, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn the_order_of_the_files_does_not_matter() {
        let (a, b) = (File::data("/etc/a", "1"), File::link("/bin/b", "/etc/a"));
        let one = layer(&[a.clone(), b.clone()]);
        assert_eq!(one, layer(&[b, a]));
        assert_eq!(paths(&one), ["bin/", "bin/b", "etc/", "etc/a"]);
    }

    #[test]
    fn a_directory_keeps_its_own_rights() {
        let bytes = layer(&[File::data("/tmp/a", "1"), File::directory("/tmp", 0o1777, 7)]);
        let mut archive = tar::Archive::new(bytes.as_slice());
        let first = archive.entries().unwrap().next().unwrap().unwrap();
        assert_eq!(first.header().mode().unwrap(), 0o1777);
        assert_eq!(first.header().uid().unwrap(), 7);
        assert_eq!(first.header().mtime().unwrap(), 0);
        assert_eq!(paths(&bytes), ["tmp/", "tmp/a"]);
    }

    #[test]
    fn long_paths_are_kept_whole() {
        let path = format!("/{}/{}", "d".repeat(90), "f".repeat(90));
        assert!(paths(&layer(&[File::data(&path, "1")])).contains(&path[1..].to_owned()));
    }

    #[test]
    fn refuses_paths_that_lead_elsewhere_and_doubles() {
        for path in ["relative", "/", "/a/../b", "/a//b"] {
            assert!(write(&[File::data(path, "")], Vec::new()).is_err(), "{path}");
        }
        assert!(write(&[File::data("/a", "1"), File::data("/a", "2")], Vec::new()).is_err());
    }
}
