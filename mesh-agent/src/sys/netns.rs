//! Network namespaces of pods: opening one, working in it for a moment, setting it up for transparent delivery.

use std::cell::OnceCell;
use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::sockopt;

/// A network namespace that is kept open, so it lives as long as this value.
#[derive(Debug)]
pub struct NetNs {
    file: OwnedFd,
    cookie: u64,
}

thread_local! {
    /// The namespace this thread belongs to, opened before it first leaves it.
    static HOME: OnceCell<OwnedFd> = const { OnceCell::new() };
}

/// Puts the thread back into its own namespace.
struct Return<'a>(BorrowedFd<'a>, std::marker::PhantomData<*const ()>);

impl Drop for Return<'_> {
    fn drop(&mut self) {
        if let Err(error) = move_into_link_name_space(self.0, Some(LinkNameSpaceType::Network)) {
            // Every socket this thread opened from here on would belong to the wrong pod.
            tracing::error!(%error, "cannot return from a pod's network namespace; ending the process");
            std::process::abort();
        }
    }
}

impl NetNs {
    /// Opens a namespace by path (`/run/netns/…`, `/proc/PID/ns/net`).
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OwnedFd::from(File::open(path)?);
        let mut this = NetNs { file, cookie: 0 };
        this.cookie = this.run(namespace_cookie)??;
        Ok(this)
    }

    /// Another hold on the same namespace.
    pub fn duplicate(&self) -> io::Result<Self> {
        Ok(NetNs { file: self.file.try_clone()?, cookie: self.cookie })
    }

    /// The calling thread's own namespace.
    pub fn current() -> io::Result<Self> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// The kernel's name for it, unique while the machine runs.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// The namespace's inode, by which [`where_to`] knows it. Unique only as long as the namespace lives.
    pub fn inode(&self) -> io::Result<Inode> {
        inode(&self.file)
    }

    /// Runs `f` on this thread inside the namespace. `f` must not block: the thread serves other pods.
    pub fn run<T>(&self, f: impl FnOnce() -> T) -> io::Result<T> {
        HOME.with(|home| {
            let home = match home.get() {
                Some(home) => home,
                None => {
                    let own = OwnedFd::from(File::open("/proc/thread-self/ns/net")?);
                    home.get_or_init(|| own)
                }
            };
            move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))?;
            let _back = Return(home.as_fd(), std::marker::PhantomData);
            Ok(f())
        })
    }
}

/// A namespace without keeping it alive: device and inode. Namespaces are told apart by it as long as they are held open.
pub type Inode = (u64, u64);

/// That of an open namespace.
pub fn inode(file: impl AsFd) -> io::Result<Inode> {
    let stat = rustix::fs::fstat(file)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Where a path leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lead {
    /// To the namespace that was asked for.
    There,
    /// To another one: the pod was made anew.
    Elsewhere,
    /// Nowhere. That says nothing of the namespace: under `/proc` it only takes the end of a process.
    Nowhere,
}

/// Whether `path` leads to the namespace of that inode.
pub fn where_to(path: &Path, inode: Inode) -> Lead {
    match rustix::fs::stat(path) {
        Ok(stat) if (stat.st_dev, stat.st_ino) == inode => Lead::There,
        Ok(_) => Lead::Elsewhere,
        Err(_) => Lead::Nowhere,
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn namespace_cookie() -> io::Result<u64> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    sockopt::netns_cookie(&socket)
}

/// Settings of a pod's namespace that keep the mark of a delivered connection on what answers it: accepted sockets inherit it from the
/// SYN, and what the kernel answers by itself (a reset, where nobody listens) bears it too.
const MARKING: [&str; 3] = ["ipv4/tcp_fwmark_accept", "ipv4/fwmark_reflect", "ipv6/fwmark_reflect"];

/// `sys/net` below a `/proc`: the settings of the network namespace in which the reading thread is, whoever mounted it. A container's own
/// is read only, so the path is given.
#[derive(Clone, Debug)]
pub struct Sysctls(PathBuf);

impl Sysctls {
    /// Those of a mounted procfs.
    pub fn of(proc: &Path) -> Self {
        Sysctls(proc.join("sys/net"))
    }

    fn named(path: &Path) -> impl FnOnce(io::Error) -> io::Error {
        move |error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))
    }

    fn read(&self, name: &str) -> io::Result<String> {
        let path = self.0.join(name);
        std::fs::read_to_string(&path).map_err(Self::named(&path))
    }

    fn write(&self, name: &str, value: &str) -> io::Result<()> {
        let path = self.0.join(name);
        std::fs::write(&path, value).map_err(Self::named(&path))
    }

    /// Writes all of [`MARKING`]; a kernel without IPv6 has no such file for it.
    fn set_marking(&self, value: &str) -> io::Result<()> {
        MARKING.iter().try_for_each(|name| match self.write(name, value) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && name.starts_with("ipv6/") => Ok(()),
            other => other,
        })
    }
}

/// Lets the replies of a connection that the agent delivered find the agent's socket: they bear the mark of its SYN, and what bears the
/// mark is looked up in a table that calls every address local.
pub async fn prepare(netns: &NetNs, sysctls: &Sysctls, mark: u32) -> io::Result<()> {
    netns.run(|| sysctls.set_marking("1"))??;
    super::route::deliver_marked_locally(netns, mark).await
}

/// Takes back what [`prepare`] did. False if nothing of it was there; the namespace is then left untouched.
pub async fn restore(netns: &NetNs, sysctls: &Sysctls, mark: u32) -> io::Result<bool> {
    if !super::route::delivers_marked_locally(netns, mark).await? {
        return Ok(false);
    }
    netns.run(|| sysctls.set_marking("0"))??;
    super::route::forget_marked(netns, mark).await?;
    Ok(true)
}

/// Whether what waits at a listener that is closed goes to another one of the same port (Linux 5.14), instead of being reset.
const MIGRATION: &str = "ipv4/tcp_migrate_req";

/// Connections that wait at a listener which is closed go to the others that share its port (SO_REUSEPORT), until this is dropped.
#[derive(Debug)]
pub struct Migration {
    netns: Arc<NetNs>,
    sysctls: Sysctls,
    before: String,
}

impl Migration {
    /// Switches it on in a namespace.
    pub fn start(netns: Arc<NetNs>, sysctls: Sysctls) -> io::Result<Self> {
        let before = netns.run(|| {
            let before = sysctls.read(MIGRATION)?;
            sysctls.write(MIGRATION, "1").map(|()| before)
        })??;
        Ok(Migration { netns, sysctls, before })
    }
}

impl Drop for Migration {
    fn drop(&mut self) {
        // The pod's own setting. One that cannot be put back lets connections live which would be reset.
        if let Err(error) = self.netns.run(|| self.sysctls.write(MIGRATION, self.before.trim())).and_then(|written| written) {
            tracing::warn!(%error, "a setting of a pod's namespace stays on");
        }
    }
}

/// Opens every namespace that can be found through a name or a process that `proc` shows, once, and hands over those that `wanted` picks by their cookie.
/// Those that nobody has a name for and no process is in cannot be found, and only sockets keep them alive.
pub fn find(proc: &Path, mut wanted: impl FnMut(u64) -> bool) -> Vec<(PathBuf, NetNs)> {
    let named = ["/run/netns", "/var/run/netns"].into_iter().flat_map(|directory| entries(Path::new(directory)));
    let processes = entries(proc)
        .filter(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.bytes().all(|b| b.is_ascii_digit())))
        .map(|path| path.join("ns/net"));
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    for path in named.chain(processes) {
        let Ok(stat) = rustix::fs::stat(&path) else { continue };
        // What is in a directory of names may be any file.
        if !seen.insert((stat.st_dev, stat.st_ino)) {
            continue;
        }
        if let Ok(netns) = NetNs::open(&path)
            && wanted(netns.cookie())
        {
            found.push((path, netns));
        }
    }
    found
}

fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
}
