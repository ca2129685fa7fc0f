//! The directory in which an authority that was made here outlives a restart.
//!
//! One file a signer, certificate and key together, so that no crash can part them: `root.pem`, `intermediate.pem`. A lock on the
//! directory keeps two processes from making two authorities.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::authority::pem;
use super::hierarchy::{HierarchyError, Signer, read_certificates, read_key};
use crate::files;

const ROOT: &str = "root.pem";
const INTERMEDIATE: &str = "intermediate.pem";
const LOCK: &str = "lock";

/// The directory, locked as long as this lives.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Opens it; made with mode 0700 if it is not there.
    pub fn open(path: &Path) -> Result<StateDir, HierarchyError> {
        let failed = |path: &Path, error| HierarchyError::File { path: path.into(), error };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| failed(path, error))?;
        let name = path.join(LOCK);
        let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(files::SECRET).open(&name);
        let lock = lock.map_err(|error| failed(&name, error))?;
        match lock.try_lock() {
            Ok(()) => Ok(StateDir { path: path.into(), _lock: lock }),
            Err(TryLockError::WouldBlock) => {
                Err(HierarchyError::content(path, "is in use by another process; give each its own directory, or the same CA files"))
            }
            Err(TryLockError::Error(error)) => Err(failed(&name, error)),
        }
    }

    /// The root that was kept.
    pub fn root(&self) -> Result<Option<Signer>, HierarchyError> {
        let root = self.load(ROOT)?;
        if root.is_none() && self.path.join(INTERMEDIATE).exists() {
            // A new root would part the mesh from every workload that trusts the old one.
            return Err(HierarchyError::content(
                &self.path.join(ROOT),
                format!("is missing though {INTERMEDIATE} is there; restore it, or remove both to start with a new root"),
            ));
        }
        Ok(root)
    }

    /// The intermediate that was kept.
    pub fn intermediate(&self) -> Result<Option<Signer>, HierarchyError> {
        self.load(INTERMEDIATE)
    }

    /// Keeps a root.
    pub fn keep_root(&self, signer: &Signer) -> Result<(), HierarchyError> {
        self.save(ROOT, signer)
    }

    /// Keeps an intermediate.
    pub fn keep_intermediate(&self, signer: &Signer) -> Result<(), HierarchyError> {
        self.save(INTERMEDIATE, signer)
    }

    fn load(&self, name: &str) -> Result<Option<Signer>, HierarchyError> {
        let path = self.path.join(name);
        match path.try_exists() {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(error) => return Err(HierarchyError::File { path, error }),
        }
        let certificate = read_certificates(&path)?.into_iter().next();
        let certificate = certificate.ok_or_else(|| HierarchyError::content(&path, "holds no certificate"))?;
        Ok(Some(Signer { certificate, key: read_key(&path)? }))
    }

    fn save(&self, name: &str, signer: &Signer) -> Result<(), HierarchyError> {
        let path = self.path.join(name);
        let text = pem(&signer.certificate) + &signer.key.serialize_pem();
        files::write(&path, text.as_bytes(), files::SECRET).map_err(|error| HierarchyError::File { path, error })
    }
}
