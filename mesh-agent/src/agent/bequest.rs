//! What is left of rate limits' budgets, from one agent of an instance to the next: a file beside the lock, written by the one that lets go and
//! read by the one that has taken over. Without it budgets begin full, as in an agent that starts alone.

use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::policy::carried::Carried;

/// An older file is of another handover, which nobody read.
const GOOD: Duration = Duration::from_secs(30);

fn file(directory: &Path) -> PathBuf {
    directory.join("budgets.json")
}

/// Leaves what is left.
pub(super) fn leave(directory: &Path, budgets: &[Carried]) -> io::Result<()> {
    let path = file(directory);
    drop_if_there(&path)?;
    let mut written = std::fs::File::options().create_new(true).write(true).mode(0o600).open(&path)?;
    written.write_all(&serde_json::to_vec(budgets)?)
}

/// Takes what the agent before this one left. Nothing, if it knew nothing of this.
pub(super) fn take(directory: &Path, now: SystemTime) -> io::Result<Vec<Carried>> {
    let path = file(directory);
    let read = (|| -> io::Result<Vec<Carried>> {
        let age = now.duration_since(std::fs::metadata(&path)?.modified()?).unwrap_or_default();
        if age > GOOD {
            return Ok(Vec::new());
        }
        Ok(serde_json::from_slice(&std::fs::read(&path)?)?)
    })();
    let read = match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read,
    };
    drop_if_there(&path)?;
    read
}

fn drop_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::carried::CarriedName;

    #[test]
    fn what_is_left_is_read_once_and_soon() {
        let directory = tempfile::tempdir().unwrap();
        let name = CarriedName { limit: "shop/l".into(), index: 0, service: None, workload: Some("a".into()) };
        let left = vec![Carried { budget: name, requests: 1, per: Duration::from_secs(1), burst: 2, left: 1_500_000 }];
        let now = SystemTime::now();
        assert_eq!(take(directory.path(), now).unwrap(), []);
        leave(directory.path(), &left).unwrap();
        leave(directory.path(), &left).unwrap();
        assert_eq!(take(directory.path(), SystemTime::now()).unwrap(), left);
        assert_eq!(take(directory.path(), now).unwrap(), []);
        leave(directory.path(), &left).unwrap();
        assert_eq!(take(directory.path(), now + GOOD * 2).unwrap(), []);
        std::fs::write(file(directory.path()), "?").unwrap();
        assert!(take(directory.path(), now).is_err());
        assert_eq!(take(directory.path(), now).unwrap(), [], "and is gone all the same");
    }
}
