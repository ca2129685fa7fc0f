//! What the container runtime said of this node's pods when it made their networks, kept for the agent after this one: a pod's namespace
//! may have no process in it yet by which it could be found.
//!
//! A file an attachment, below the instance's directory in `/run`, so that a restart of the machine leaves none. What cannot be kept is
//! not lost as long as this agent runs, and afterwards the search by processes finds it: a full disk holds no pod up.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use mesh_model::workload::WorkloadUid;
use serde::{Deserialize, Serialize};

use crate::sys::netns::{Inode, Lead, inode, where_to};

/// A pod's network, as the runtime made it.
#[derive(Debug)]
pub struct Attached {
    /// The runtime's name for the sandbox: [`is_container`].
    pub container: Box<str>,
    /// Where the namespace is to be found, on this side.
    pub path: PathBuf,
    /// The namespace.
    pub netns: File,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
}

impl Attached {
    /// The namespace, without keeping it alive.
    pub fn inode(&self) -> Option<Inode> {
        inode(&self.netns).ok()
    }

    /// Whether the path still leads to the namespace. A path of a process leads nowhere once that has ended, which says nothing.
    fn is_there(&self) -> bool {
        match self.inode().map(|inode| where_to(&self.path, inode)) {
            Some(Lead::There) => true,
            Some(Lead::Nowhere) => is_of_a_process(&self.path),
            Some(Lead::Elsewhere) | None => false,
        }
    }
}

/// Whether a path is of the form `…/PID/ns/net`.
fn is_of_a_process(path: &Path) -> bool {
    let mut parts = path.components().rev().map(|part| part.as_os_str().as_encoded_bytes());
    let of = (parts.next(), parts.next(), parts.next());
    matches!(of, (Some(b"net"), Some(b"ns"), Some(pid)) if pid.iter().all(u8::is_ascii_digit))
}

/// Whether a runtime's name for a sandbox is one by the CNI specification, and so can be a file's name.
pub fn is_container(text: &str) -> bool {
    let first = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    first && text.len() <= 128 && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// An attachment in its file.
#[derive(Serialize, Deserialize)]
struct Kept {
    uid: Box<str>,
    netns: PathBuf,
    device: u64,
    inode: u64,
    addresses: Vec<IpAddr>,
}

/// Attachments of pods, each with its file.
#[derive(Debug)]
pub struct Attachments {
    directory: PathBuf,
    pods: HashMap<WorkloadUid, Attached>,
    complained: bool,
}

impl Attachments {
    /// None yet; their files are to be in `directory`, which is made when it is needed.
    pub fn new(directory: PathBuf) -> Self {
        Attachments { directory, pods: HashMap::new(), complained: false }
    }

    /// A pod's.
    pub fn get(&self, uid: &WorkloadUid) -> Option<&Attached> {
        self.pods.get(uid)
    }

    /// All.
    pub fn iter(&self) -> impl Iterator<Item = (&WorkloadUid, &Attached)> {
        self.pods.iter()
    }

    /// Takes one in the place of the pod's earlier one, which is returned: nobody may be told of it any more when it is dropped.
    pub fn insert(&mut self, uid: WorkloadUid, attached: Attached) -> Option<Attached> {
        match self.keep(&uid, &attached) {
            Ok(()) => self.complained = false,
            Err(error) if self.complained => tracing::debug!(%error, "an attachment is not kept either"),
            Err(error) => {
                let directory = self.directory.display();
                tracing::warn!(%directory, %error, "a pod's attachment cannot be kept: an agent that starts before it has a process will not know it");
                self.complained = true;
            }
        }
        let old = self.pods.insert(uid, attached);
        if let Some(old) = &old
            && !self.pods.values().any(|now| now.container == old.container)
        {
            self.forget(&old.container);
        }
        old
    }

    /// Lets go of those that are not to stay.
    pub fn retain(&mut self, mut stays: impl FnMut(&WorkloadUid, &Attached) -> bool) -> Vec<(WorkloadUid, Attached)> {
        let gone: Vec<_> = self.pods.extract_if(|uid, attached| !stays(uid, attached)).collect();
        gone.iter().for_each(|(_, attached)| self.forget(&attached.container));
        gone
    }

    /// Lets go of those whose namespace is gone.
    pub fn retain_there(&mut self) -> Vec<(WorkloadUid, Attached)> {
        self.retain(|_, attached| attached.is_there())
    }

    /// Takes what an earlier agent kept, as far as it is still so. What this one knows is newer.
    pub fn load(&mut self) {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(directory = %self.directory.display(), %error, "what an earlier agent kept of pods' networks cannot be read");
                }
                return;
            }
        };
        let known: HashSet<Box<str>> = self.pods.values().map(|attached| attached.container.clone()).collect();
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(container) = name.to_str().and_then(|name| name.strip_suffix(".json")).filter(|name| is_container(name)) else {
                let _ = fs::remove_file(entry.path());
                continue;
            };
            if known.contains(container) {
                continue;
            }
            match read(&entry.path(), container) {
                Some((uid, attached)) if !self.pods.contains_key(&uid) => drop(self.pods.insert(uid, attached)),
                _ => self.forget(container),
            }
        }
    }

    fn keep(&self, uid: &WorkloadUid, attached: &Attached) -> io::Result<()> {
        let (device, inode) = attached.inode().ok_or_else(|| io::Error::other("its namespace cannot be told by its inode"))?;
        let (netns, addresses) = (attached.path.clone(), attached.addresses.clone());
        let kept = Kept { uid: uid.0.as_ref().into(), netns, device, inode, addresses };
        fs::create_dir_all(&self.directory)?;
        let temporary = self.directory.join(format!(".{}.new", attached.container));
        let written =
            fs::write(&temporary, serde_json::to_vec(&kept)?).and_then(|()| fs::rename(&temporary, self.file(&attached.container)));
        written.inspect_err(|_| drop(fs::remove_file(&temporary)))
    }

    fn forget(&self, container: &str) {
        if let Err(error) = fs::remove_file(self.file(container))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(container, %error, "what was kept of a pod's network cannot be removed");
        }
    }

    fn file(&self, container: &str) -> PathBuf {
        self.directory.join(format!("{container}.json"))
    }
}

/// `None` if it is not understood, or the namespace is not there any more.
fn read(path: &Path, container: &str) -> Option<(WorkloadUid, Attached)> {
    let kept: Kept = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    let netns = File::open(&kept.netns).ok()?;
    let attached = Attached { container: container.into(), path: kept.netns, netns, addresses: kept.addresses };
    (attached.inode() == Some((kept.device, kept.inode))).then(|| (WorkloadUid(kept.uid.as_ref().into()), attached))
}

#[cfg(test)]
mod tests;
