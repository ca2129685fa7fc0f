//! Who writes an instance's maps: whoever holds the lock of the instance's directory. The kernel frees it with its holder.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FlockOperation;

/// Between two attempts to take a lock that somebody is about to let go.
const AGAIN: Duration = Duration::from_millis(10);

/// The right to write. Dropping it gives it back.
#[derive(Debug)]
pub struct WriterLock {
    _file: File,
}

/// A file or directory that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {error} (--run-dir says where)")]
pub struct LockError {
    /// Its path.
    pub path: PathBuf,
    /// What happened.
    pub error: io::Error,
}

/// The directory of an instance, made for root alone if it is not there.
pub fn directory(run_dir: &Path, instance: &str) -> Result<PathBuf, LockError> {
    let path = run_dir.join(instance);
    match std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&path) {
        Ok(()) => Ok(path),
        Err(error) => Err(LockError { path, error }),
    }
}

/// The lock's file.
pub fn file(directory: &Path) -> PathBuf {
    directory.join("lock")
}

enum Attempt {
    Taken(WriterLock),
    Held,
    Removed,
}

impl WriterLock {
    /// Takes the lock; `None` if somebody holds it. The file then bears our pid, for whoever wants to know.
    pub fn try_take(directory: &Path) -> Result<Option<WriterLock>, LockError> {
        loop {
            match Self::attempt(directory)? {
                Attempt::Taken(lock) => return Ok(Some(lock)),
                Attempt::Held => return Ok(None),
                Attempt::Removed => {}
            }
        }
    }

    fn attempt(directory: &Path) -> Result<Attempt, LockError> {
        let path = file(directory);
        let failed = |error| LockError { path: path.clone(), error };
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(failed)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(Attempt::Held),
            Err(error) => return Err(failed(error.into())),
        }
        // Whoever held it may have removed it meanwhile: then another file is the lock.
        let same = |now: std::fs::Metadata| file.metadata().is_ok_and(|own| (own.dev(), own.ino()) == (now.dev(), now.ino()));
        if !std::fs::metadata(&path).is_ok_and(same) {
            return Ok(Attempt::Removed);
        }
        let written = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
        written.map_err(failed)?;
        Ok(Attempt::Taken(WriterLock { _file: file }))
    }

    /// Removes all that agents of the instance kept, and the lock last, while it is held.
    pub fn remove(self, directory: &Path) -> Result<(), LockError> {
        std::fs::remove_dir_all(directory).map_err(|error| LockError { path: directory.into(), error })
    }

    /// As [`WriterLock::try_take`], waiting up to `limit` for it to be let go.
    pub async fn take(directory: &Path, limit: Duration) -> Result<Option<WriterLock>, LockError> {
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            if let Some(lock) = Self::try_take(directory)? {
                return Ok(Some(lock));
            }
            if tokio::time::Instant::now() >= deadline {
                return Ok(None);
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// What the holder wrote of itself: its pid, as it is called in its own pid namespace.
    pub fn holder(directory: &Path) -> Option<u32> {
        let mut text = String::new();
        File::open(file(directory)).ok()?.take(32).read_to_string(&mut text).ok()?;
        text.trim().parse().ok()
    }
}

#[cfg(test)]
mod tests;
