//! A directory of manifests, followed while it changes.
//!
//! The kernel's notifications say when to look, a slow round looks in any case (a link's target outside the directory sends none, and
//! an overrun queue loses some). What is looked at is always the whole directory, so a missed or doubled notification does no harm.
//!
//! - Files in subdirectories and hidden ones are not read, so a mounted ConfigMap (links into `..data`, which is swapped) is read once.
//! - What cannot be read changes nothing: a directory that is gone leaves everything in force until it is back.
//! - A file that has just become empty is given a moment: many programs write by emptying first.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hasher};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use mesh_model::manifests::ManifestSet;
use mesh_model::problem::{Origin, Problem, Severity};
use mesh_model::snapshot::Snapshot;
use mesh_model::workload::PodNetworks;
use notify::Watcher;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout, timeout_at};

use crate::problems::ProblemLog;
use crate::status::SourceStatus;

/// The largest file that is read.
const MAX_FILE: u64 = 64 << 20;

/// How long to wait for what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timing {
    /// Quiet time after a notification before the directory is read, so that a file is not read while it is written.
    pub debounce: Duration,
    /// The directory is read after this much time even if it never becomes quiet.
    pub patience: Duration,
    /// Time between two looks without a notification.
    pub rescan: Duration,
    /// How long an emptied file may stay empty before its objects are removed.
    pub grace: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            debounce: Duration::from_millis(50),
            patience: Duration::from_millis(500),
            rescan: Duration::from_secs(5),
            grace: Duration::from_secs(1),
        }
    }
}

/// Why a directory cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It could not be read at the start.
    #[error("manifest directory {} cannot be read: {error}; name a directory that exists and may be read", .directory.display())]
    Directory {
        /// The directory.
        directory: PathBuf,
        /// The system's answer.
        error: io::Error,
    },
    /// The process is ending.
    #[error("manifest directory {} was not read: the runtime is shutting down", .0.display())]
    ShuttingDown(PathBuf),
}

/// A directory that has been read once. Follow it with [`Manifests::follow`].
#[derive(Debug)]
pub struct Manifests {
    reader: Box<Reader>,
    timing: Timing,
    networks: Option<watch::Receiver<Arc<PodNetworks>>>,
    snapshots: watch::Sender<Arc<Snapshot>>,
    status: watch::Sender<SourceStatus>,
}

impl Manifests {
    /// Reads a directory for the first time: afterwards the snapshot is the one of its files.
    pub async fn open(directory: &Path, timing: Timing) -> Result<Manifests, OpenError> {
        let mut reader = Box::new(Reader::new(directory, timing.grace));
        let gone = || OpenError::ShuttingDown(directory.to_path_buf());
        let read = tokio::task::spawn_blocking(move || {
            let scan = reader.scan(Look::Closely);
            let snapshot = Arc::new(reader.set.snapshot(None));
            reader.log.tell(&snapshot);
            (reader, scan, snapshot)
        });
        let (reader, scan, snapshot) = read.await.map_err(|_| gone())?;
        if let Err(error) = scan {
            return Err(OpenError::Directory { directory: directory.to_path_buf(), error });
        }
        let place = directory.display().to_string().into();
        let status = SourceStatus { connected: true, ..SourceStatus::new("manifests", place, []) };
        Ok(Manifests { reader, timing, networks: None, snapshots: watch::Sender::new(snapshot), status: watch::Sender::new(status) })
    }

    /// Follows also what the node knows of its pods' networks, for those of which the files do not say it.
    #[must_use]
    pub fn with_networks(self, networks: Option<watch::Receiver<Arc<PodNetworks>>>) -> Manifests {
        Manifests { networks, ..self }
    }

    /// The mesh as the files describe it, and as they will.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.subscribe()
    }

    /// Whether the directory can be read.
    pub fn status(&self) -> watch::Receiver<SourceStatus> {
        self.status.subscribe()
    }

    /// Follows the directory. Ends only if the runtime shuts down; drop the future to stop.
    pub async fn follow(self) {
        let Manifests { mut reader, timing, mut networks, snapshots, status } = self;
        let (mut watch, mut events) = DirectoryWatch::new(&reader.directory);
        let mut look = Look::Closely;
        loop {
            let previous = snapshots.borrow().clone();
            let known = networks.as_mut().and_then(|networks| networks.has_changed().ok()?.then(|| networks.borrow_and_update().clone()));
            let read = tokio::task::spawn_blocking(move || {
                let changed = reader.update(look) | known.is_some();
                if let Some(known) = known {
                    reader.set.set_networks(known);
                }
                let snapshot = changed.then(|| Arc::new(reader.set.snapshot(Some(&previous))));
                if let Some(snapshot) = &snapshot {
                    reader.log.tell(snapshot);
                }
                (reader, snapshot)
            });
            let Ok((back, snapshot)) = read.await else { return };
            reader = back;
            status.send_if_modified(|status| {
                let failure = reader.gone.as_deref().map(Arc::from);
                if status.failure == failure {
                    return false;
                }
                let connected = failure.is_none();
                if status.connected != connected {
                    (status.connected, status.since) = (connected, std::time::Instant::now());
                }
                status.failure = failure;
                true
            });
            if let Some(snapshot) = snapshot {
                snapshots.send_replace(snapshot);
            }
            // A watch is on an inode: a directory that was replaced needs a new one. What happened before it stood is read at once.
            if watch.renew(reader.inode) {
                look = Look::Closely;
                continue;
            }
            let wait = if reader.unsettled() || watch.blind() { timing.grace.min(timing.rescan) } else { timing.rescan };
            look = tokio::select! {
                event = timeout(wait, events.recv()) => match event {
                    Ok(_) => {
                        settle(&mut events, timing).await;
                        Look::Closely
                    }
                    Err(_) => Look::Briefly,
                },
                // A pod's start waits for it.
                () = news(&mut networks) => Look::Briefly,
            };
        }
    }
}

/// Waits for other networks, which it leaves to be taken; for ever if nobody can tell any.
async fn news(networks: &mut Option<watch::Receiver<Arc<PodNetworks>>>) {
    if let Some(receiver) = networks
        && receiver.changed().await.is_ok()
    {
        return receiver.mark_changed();
    }
    std::future::pending().await
}

/// Waits until the directory is quiet.
async fn settle(events: &mut mpsc::Receiver<()>, timing: Timing) {
    let end = Instant::now() + timing.patience;
    while let Ok(Some(())) = timeout_at(end.min(Instant::now() + timing.debounce), events.recv()).await {}
}

/// The kernel's notifications about a directory.
struct DirectoryWatch {
    directory: PathBuf,
    watcher: Option<notify::RecommendedWatcher>,
    /// The inode that is watched.
    inode: Option<(u64, u64)>,
    /// The directory was removed or moved, and the watch with it; its inode's number may have been given again since.
    lost: Arc<AtomicBool>,
    /// A failure to watch has been logged.
    complained: bool,
    /// Keeps the channel open where there is no watcher.
    _events: mpsc::Sender<()>,
}

impl DirectoryWatch {
    fn new(directory: &Path) -> (Self, mpsc::Receiver<()>) {
        let (sender, events) = mpsc::channel(1);
        let wake = sender.clone();
        let lost = Arc::new(AtomicBool::new(false));
        let (lose, watched) = (lost.clone(), directory.to_path_buf());
        let handler = move |event: notify::Result<notify::Event>| {
            use notify::EventKind;
            use notify::event::{AccessKind, AccessMode, ModifyKind};
            // Our own reading is an event too.
            let read = |event: &notify::Event| {
                matches!(event.kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write)) && !event.need_rescan()
            };
            let itself = |event: &notify::Event| {
                matches!(event.kind, EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_))) && event.paths.contains(&watched)
            };
            if event.as_ref().is_ok_and(itself) {
                lose.store(true, Ordering::Relaxed);
            }
            if !event.as_ref().is_ok_and(read) {
                // A full channel holds the wish to look already.
                let _ = wake.try_send(());
            }
        };
        let watcher = notify::recommended_watcher(handler)
            .inspect_err(|error| tracing::warn!(%error, "no notifications of changed manifests; looking for changes by time"))
            .ok();
        (DirectoryWatch { directory: directory.to_path_buf(), watcher, inode: None, lost, complained: false, _events: sender }, events)
    }

    /// Whether nothing will be notified.
    fn blind(&self) -> bool {
        self.inode.is_none()
    }

    /// Watches the directory if it is another than before; true if a new watch stands.
    fn renew(&mut self, inode: Option<(u64, u64)>) -> bool {
        let lost = self.lost.swap(false, Ordering::Relaxed);
        let Some(watcher) = self.watcher.as_mut().filter(|_| lost || inode != self.inode) else { return false };
        if self.inode.take().is_some() {
            // Fails if the directory is gone, and the watch with it.
            let _ = watcher.unwatch(&self.directory);
        }
        if inode.is_none() {
            return false;
        }
        match watcher.watch(&self.directory, notify::RecursiveMode::NonRecursive) {
            Ok(()) => {
                self.inode = inode;
                self.complained = false;
                true
            }
            Err(error) if self.complained => {
                tracing::debug!(%error, "the manifest directory still cannot be watched");
                false
            }
            Err(error) => {
                self.complained = true;
                tracing::warn!(directory = %self.directory.display(), %error, "no notifications of changed manifests; looking for changes by time");
                false
            }
        }
    }
}

/// How thoroughly to look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Look {
    /// Files whose size, time or inode has changed are read.
    Briefly,
    /// Every file is read.
    Closely,
}

/// A file as it was last read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Seen {
    inode: (u64, u64),
    size: u64,
    modified: Option<SystemTime>,
    /// When it was read: a change in the same tick of the filesystem's clock leaves the time as it is.
    read: SystemTime,
    digest: u64,
}

impl Seen {
    fn settled(&self, metadata: &std::fs::Metadata) -> bool {
        let quiet = self.modified.and_then(|at| self.read.duration_since(at).ok()).is_some_and(|age| age > Duration::from_secs(2));
        quiet && (metadata.dev(), metadata.ino()) == self.inode && metadata.len() == self.size && metadata.modified().ok() == self.modified
    }
}

/// Reads the directory; all its methods block.
#[derive(Debug)]
struct Reader {
    directory: PathBuf,
    grace: Duration,
    set: ManifestSet,
    seen: HashMap<PathBuf, Seen>,
    /// Files that have become empty, and when that was seen.
    emptied: HashMap<PathBuf, std::time::Instant>,
    /// Files that could not be read, with the reason.
    unreadable: HashMap<PathBuf, String>,
    inode: Option<(u64, u64)>,
    gone: Option<String>,
    log: ProblemLog,
}

impl Reader {
    fn new(directory: &Path, grace: Duration) -> Self {
        Reader {
            directory: directory.to_path_buf(),
            grace,
            set: ManifestSet::default(),
            seen: HashMap::new(),
            emptied: HashMap::new(),
            unreadable: HashMap::new(),
            inode: None,
            gone: None,
            log: ProblemLog::default(),
        }
    }

    /// Whether another look is due soon.
    fn unsettled(&self) -> bool {
        self.gone.is_some() || !self.emptied.is_empty() || !self.unreadable.is_empty()
    }

    /// Looks at the directory; true if there is anything to publish.
    fn update(&mut self, look: Look) -> bool {
        let (changed, gone) = match self.scan(look) {
            Ok(changed) => (changed, None),
            Err(error) => (false, Some(error.to_string())),
        };
        if gone.is_none() && self.gone.is_some() {
            tracing::info!(directory = %self.directory.display(), "the manifest directory is back");
        }
        let news = gone != self.gone;
        if news {
            let problem = gone.as_ref().map(|error| Problem {
                severity: Severity::Error,
                origin: Origin::File { file: self.directory.as_path().into(), line: 0 },
                object: "".into(),
                field: "".into(),
                message: format!("the manifest directory cannot be read: {error}; what was read before stays in force").into(),
            });
            self.set.set_problems(problem.into_iter().collect());
            self.gone = gone;
        }
        changed || news
    }

    /// Reads what has changed; true if anything has. An error means that the directory could not be listed, and nothing was changed.
    fn scan(&mut self, look: Look) -> io::Result<bool> {
        self.inode = None;
        let directory = std::fs::metadata(&self.directory)?;
        let files = self.list()?;
        self.inode = Some((directory.dev(), directory.ino()));
        let mut changed = false;
        for path in &files {
            changed |= self.file(path, look);
        }
        let listed: HashSet<&Path> = files.iter().map(PathBuf::as_path).collect();
        let removed: Vec<Arc<Path>> = self.set.paths().filter(|path| !listed.contains(&***path)).cloned().collect();
        for path in &removed {
            self.forget(path);
        }
        Ok(changed || !removed.is_empty())
    }

    fn list(&self) -> io::Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.directory)? {
            let path = entry?.path();
            let manifest = path.extension().is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|of| extension == *of));
            let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
            // Links are followed. One that leads nowhere counts as a file that cannot be read.
            if manifest && !hidden && !path.is_dir() {
                files.push(path);
            }
        }
        files.sort();
        Ok(files)
    }

    fn forget(&mut self, path: &Path) {
        self.set.remove(path);
        self.seen.remove(path);
        self.emptied.remove(path);
        self.unreadable.remove(path);
    }

    fn file(&mut self, path: &Path, look: Look) -> bool {
        match self.read(path, look) {
            Ok(None) => self.unreadable.remove(path).is_some(),
            Ok(Some((seen, text))) => {
                if text.trim().is_empty() && self.seen.get(path).is_some_and(|before| before.size > 0) {
                    let since = *self.emptied.entry(path.to_path_buf()).or_insert_with(std::time::Instant::now);
                    if since.elapsed() < self.grace {
                        return false;
                    }
                }
                self.emptied.remove(path);
                let was_unreadable = self.unreadable.remove(path).is_some();
                let before = self.seen.insert(path.to_path_buf(), seen);
                let same = before.is_some_and(|before| before.digest == seen.digest && before.size == seen.size);
                if same && !was_unreadable {
                    return false;
                }
                self.set.put(path, &text);
                true
            }
            Err(error) => {
                let reason = error.to_string();
                let news = self.unreadable.get(path) != Some(&reason);
                if news {
                    self.set.unreadable(path, &reason);
                    self.unreadable.insert(path.to_path_buf(), reason);
                }
                news
            }
        }
    }

    /// The text of a file; `None` if it need not be read.
    fn read(&self, path: &Path, look: Look) -> io::Result<Option<(Seen, String)>> {
        // Asked by name first: to open a pipe would be to wait for its writer.
        if !std::fs::metadata(path)?.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        let file = std::fs::File::open(path)?;
        let metadata = file.metadata()?;
        let unreadable = self.unreadable.contains_key(path);
        if look == Look::Briefly && !unreadable && self.seen.get(path).is_some_and(|seen| seen.settled(&metadata)) {
            return Ok(None);
        }
        let read = SystemTime::now();
        let mut bytes = Vec::new();
        file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(io::Error::other(format!("it is larger than {} MiB", MAX_FILE >> 20)));
        }
        let mut hasher = DefaultHasher::new();
        hasher.write(&bytes);
        let seen = Seen {
            inode: (metadata.dev(), metadata.ino()),
            size: bytes.len() as u64,
            modified: metadata.modified().ok(),
            read,
            digest: hasher.finish(),
        };
        let text = String::from_utf8(bytes).map_err(|error| io::Error::other(format!("it is not UTF-8 text: {error}")))?;
        Ok(Some((seen, text)))
    }
}

#[cfg(test)]
mod tests;
