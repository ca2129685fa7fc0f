//! Loading and attaching the kernel programs, and adopting what an earlier agent left pinned.
//!
//! Every map and every link is pinned below `<bpffs>/nodemesh/<instance>/v<ABI>`. A dead agent's programs therefore go on judging, and
//! what they hand to the agent is refused. A new agent reuses the maps, attaches its own programs beside the old ones, then takes the
//! old links away: at no moment is there none.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use aya::programs::cgroup_sock_addr::CgroupSockAddr;
use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::{CgroupAttachMode, ProgramError, SkLookup, SockOps};
use aya::{Ebpf, EbpfError, EbpfLoader};
use mesh_common::names;

use super::maps;
use crate::sys::bpf_link;
use crate::sys::netns::NetNs;

/// Why the programs are not in the kernel.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The object file.
    #[error("cannot read the eBPF object {path}: {error}; build it with `cargo xtask build-ebpf`, or give its path with --bpf-object")]
    Object {
        /// The path.
        path: PathBuf,
        /// What happened.
        error: io::Error,
    },
    /// The object itself.
    #[error("the kernel or the loader refuses the eBPF object {path}: {error}")]
    Loader {
        /// The path.
        path: PathBuf,
        /// What happened.
        error: Box<EbpfError>,
    },
    /// A program.
    #[error("program {program}: {error}")]
    Program {
        /// Its name.
        program: &'static str,
        /// What happened.
        error: ProgramError,
    },
    /// The object has no such program or map.
    #[error("the eBPF object has no {0}; it was built from other sources than this agent: build both anew")]
    Missing(&'static str),
    /// A pin.
    #[error("pin {path}: {error}")]
    Pin {
        /// Its path.
        path: PathBuf,
        /// What happened.
        error: String,
    },
    /// A link.
    #[error("link of {0}: {1}")]
    Link(&'static str, LinkError),
    /// A directory.
    #[error("{path}: {error}")]
    Io {
        /// The path.
        path: PathBuf,
        /// What happened.
        error: io::Error,
    },
}

/// The programs in the kernel.
pub struct Programs {
    ebpf: Ebpf,
    pins: PathBuf,
}

impl Programs {
    /// Loads the object; maps that are pinned are reused with what they hold. Attaches nothing.
    pub fn load(object: &Path, bpffs: &Path, instance: &str) -> Result<Self, LoadError> {
        let data = std::fs::read(object).map_err(|error| LoadError::Object { path: object.into(), error })?;
        let pins = names::pin_dir(bpffs, instance);
        for dir in [pins.clone(), pins.join("links"), pins.join("netns")] {
            std::fs::create_dir_all(&dir).map_err(|error| LoadError::Io { path: dir, error })?;
        }
        let mut ebpf = EbpfLoader::new()
            .default_map_pin_directory(&pins)
            .load(&data)
            .map_err(|error| LoadError::Loader { path: object.into(), error: Box::new(error) })?;
        for name in [names::program::CONNECT4, names::program::CONNECT6, names::program::PEERNAME4, names::program::PEERNAME6] {
            program::<CgroupSockAddr>(&mut ebpf, name)?.load().map_err(|error| LoadError::Program { program: name, error })?;
        }
        let name = names::program::SOCKOPS;
        program::<SockOps>(&mut ebpf, name)?.load().map_err(|error| LoadError::Program { program: name, error })?;
        let name = names::program::ACCEPT;
        program::<SkLookup>(&mut ebpf, name)?.load().map_err(|error| LoadError::Program { program: name, error })?;
        Ok(Programs { ebpf, pins })
    }

    /// The loaded object, for its maps and its log.
    pub fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// Where everything is pinned.
    pub fn pins(&self) -> &Path {
        &self.pins
    }

    /// Attaches the programs that see every process below `cgroup`; call it once the maps say what is to be done.
    pub fn attach_cgroup(&mut self, cgroup: &Path) -> Result<(), LoadError> {
        let cgroup = File::open(cgroup).map_err(|error| LoadError::Io { path: cgroup.into(), error })?;
        // sockops first: what connect() notes must find somebody who completes it.
        let name = names::program::SOCKOPS;
        let sockops = program::<SockOps>(&mut self.ebpf, name)?;
        let link = sockops
            .attach(&cgroup, CgroupAttachMode::Single)
            .and_then(|id| sockops.take_link(id))
            .map_err(|error| LoadError::Program { program: name, error })?;
        replace_pin(link.try_into().map_err(|e| LoadError::Link(name, e))?, &self.pins.join("links").join(name))?;
        for name in [names::program::PEERNAME4, names::program::PEERNAME6, names::program::CONNECT4, names::program::CONNECT6] {
            let connect = program::<CgroupSockAddr>(&mut self.ebpf, name)?;
            let link = connect
                .attach(&cgroup, CgroupAttachMode::Single)
                .and_then(|id| connect.take_link(id))
                .map_err(|error| LoadError::Program { program: name, error })?;
            replace_pin(link.try_into().map_err(|e| LoadError::Link(name, e))?, &self.pins.join("links").join(name))?;
        }
        Ok(())
    }

    /// Attaches the accept program to a pod's namespace.
    pub fn attach_netns(&mut self, netns: &NetNs) -> Result<(), LoadError> {
        let name = names::program::ACCEPT;
        let accept = program::<SkLookup>(&mut self.ebpf, name)?;
        let link = accept
            .attach(netns.as_fd())
            .and_then(|id| accept.take_link(id))
            .map_err(|error| LoadError::Program { program: name, error })?;
        let path = netns_pin(&self.pins, netns.cookie());
        replace_pin(FdLink::from(link), &path)
    }

    /// Detaches it. The pod may be gone already.
    pub fn detach_netns(&mut self, cookie: u64) {
        let path = netns_pin(&self.pins, cookie);
        if let Err(error) = std::fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "cannot remove a pod's link");
        }
    }

    /// Cookies of the namespaces that have the accept program pinned.
    pub fn attached_netns(&self) -> Vec<u64> {
        attached(&self.pins).collect()
    }

    /// Removes the links of namespaces that are gone: a path below `/proc` does not tell when its namespace is.
    pub fn forget_orphans(&mut self) {
        for entry in std::fs::read_dir(self.pins.join("netns")).into_iter().flatten().flatten() {
            let path = entry.path();
            let removed = bpf_link::is_orphan(&path).and_then(|orphan| if orphan { std::fs::remove_file(&path) } else { Ok(()) });
            match removed {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), %error, "cannot tell whether a pinned link's namespace is gone, or remove it");
                }
                _ => {}
            }
        }
    }
}

/// Cookies of the namespaces whose links are pinned in a directory of pins.
fn attached(pins: &Path) -> impl Iterator<Item = u64> + use<> {
    let entries = std::fs::read_dir(pins.join("netns")).into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().to_str()?.parse().ok())
}

/// Cookies of all namespaces that agents of an instance captured or knew, whatever their layout.
pub fn known_netns(bpffs: &Path, instance: &str) -> BTreeSet<u64> {
    let versions = std::fs::read_dir(instance_dir(bpffs, instance)).into_iter().flatten().flatten();
    let mut known: BTreeSet<u64> = versions.flat_map(|version| attached(&version.path())).collect();
    // Where there are no such pins there is nothing to know.
    known.extend(maps::pods(&names::pin_dir(bpffs, instance)).unwrap_or_default());
    known
}

fn instance_dir(bpffs: &Path, instance: &str) -> PathBuf {
    bpffs.join("nodemesh").join(instance)
}

fn netns_pin(pins: &Path, cookie: u64) -> PathBuf {
    pins.join("netns").join(cookie.to_string())
}

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, LoadError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    ebpf.program_mut(name).ok_or(LoadError::Missing(name))?.try_into().map_err(|error| LoadError::Program { program: name, error })
}

/// Pins a link where another may be pinned; the other is detached only when the new one is safe.
fn replace_pin(link: FdLink, path: &Path) -> Result<(), LoadError> {
    let pin = |error: &dyn std::error::Error| LoadError::Pin { path: path.into(), error: with_causes(error) };
    let old = if path.exists() { Some(PinnedLink::from_pin(path).map_err(|e| pin(&e))?) } else { None };
    // A name without a dot: the bpf filesystem keeps those to itself.
    let mut fresh = path.as_os_str().to_owned();
    fresh.push("-new");
    let fresh = PathBuf::from(fresh);
    let _ = std::fs::remove_file(&fresh);
    link.pin(&fresh).map_err(|e| pin(&e))?;
    std::fs::rename(&fresh, path).map_err(|e| pin(&e))?;
    drop(old);
    Ok(())
}

/// An error with what led to it: the library's own text names the call, only its cause the system's answer.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Takes away everything an instance pinned: programs are detached, maps are freed. For `mesh-agent cleanup`.
pub fn remove_pins(bpffs: &Path, instance: &str) -> io::Result<()> {
    let directory = instance_dir(bpffs, instance);
    match std::fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // That of all instances goes with the last.
    match directory.parent().map(std::fs::remove_dir) {
        Some(Err(error)) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => Err(error),
        _ => Ok(()),
    }
}

/// Takes away what agents of other layouts pinned, once this one's programs are in force.
pub fn remove_other_versions(pins: &Path) {
    let (Some(instance), Some(own)) = (pins.parent(), pins.file_name()) else { return };
    for entry in std::fs::read_dir(instance).into_iter().flatten().flatten() {
        if entry.file_name() != own
            && let Err(error) = std::fs::remove_dir_all(entry.path())
        {
            tracing::warn!(path = %entry.path().display(), %error, "cannot remove the pins of another version");
        }
    }
}
