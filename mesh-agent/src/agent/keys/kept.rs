//! The keys of issuers that an agent of this instance had last, in a file beside the lock: for one that starts while the issuer is away and
//! mesh-control has no keys to give, which must not refuse what the one before it let through.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_proto::nodemesh::fetched_keys::Outcome;
use mesh_proto::nodemesh::{FetchKeysResponse, FetchedKeys, KeySet};
use prost::Message as _;

use super::source;
use crate::policy::keys::Slot;

/// How long ago mesh-control must have been heard of. What an issuer has withdrawn meanwhile would be believed for as long.
const GOOD: Duration = Duration::from_secs(24 * 3600);

/// The file.
#[derive(Clone)]
pub(crate) struct Kept(PathBuf);

impl Kept {
    /// Of an instance.
    pub(crate) fn of(directory: &Path) -> Kept {
        Kept(directory.join("issuers.pb"))
    }

    /// Writes what the slots hold, in place of what was there.
    pub(super) fn write(&self, slots: &[Arc<Slot>]) -> io::Result<()> {
        let held = slots.iter().filter_map(|slot| {
            let set = slot.set()?;
            let fetched = set.fetched.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
            let fetched_unix_ms = u64::try_from(fetched).unwrap_or_default();
            let set = KeySet { version: set.version.to_string(), fetched_unix_ms, jwks: set.text.to_string() };
            Some(FetchedKeys { source: Some(source(slot.location())), outcome: Some(Outcome::Set(set)) })
        });
        let all = FetchKeysResponse { keys: held.collect() };
        // The agent before this one may be writing too.
        let new = self.0.with_extension(std::process::id().to_string());
        let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
        file.write_all(&all.encode_to_vec())?;
        fs::rename(&new, &self.0)
    }

    /// Notes that what is there is what mesh-control has now.
    pub(super) fn confirm(&self, now: SystemTime) -> io::Result<()> {
        match File::options().write(true).open(&self.0) {
            Ok(file) => file.set_modified(now),
            // Nothing has been kept yet.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// What was kept; nothing, if nothing was or mesh-control has not been heard of since for too long.
    pub(super) fn read(&self, now: SystemTime) -> io::Result<FetchKeysResponse> {
        let modified = match fs::metadata(&self.0) {
            Ok(metadata) => metadata.modified()?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(FetchKeysResponse::default()),
            Err(error) => return Err(error),
        };
        if now.duration_since(modified).unwrap_or_default() > GOOD {
            return Ok(FetchKeysResponse::default());
        }
        Ok(FetchKeysResponse::decode(&*fs::read(&self.0)?)?)
    }
}

#[cfg(test)]
mod tests;
