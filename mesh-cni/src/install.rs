//! The plug-in on a node: its binary among the others, and its entry in the network configuration that the runtime reads.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::PLUGIN;
use crate::conflist::{EditError, WithIstio, from_single, insert, is_in, remove};

/// The list that stands in for a configuration of a single plug-in, which cannot be chained to. It sorts before it.
const LIST: &str = "00-nodemesh.conflist";

/// What there was to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Done {
    /// The node has no network configuration yet.
    Waiting,
    /// The plug-in is in this file already.
    Unchanged(PathBuf),
    /// It was put into this file.
    Written(PathBuf),
    /// The file was changed by somebody else at the same moment; to be tried again.
    Raced(PathBuf),
}

/// Why it could not be done.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// Reading or writing.
    #[error("{path}: {error}")]
    Io {
        /// What.
        path: PathBuf,
        /// What happened.
        error: io::Error,
    },
    /// The file is left as it is.
    #[error("{path} is left as it is: {error}")]
    Edit {
        /// What.
        path: PathBuf,
        /// Why.
        error: EditError,
    },
    /// There is no place for the list.
    #[error("{0} sorts before {LIST}, which would have to stand before it: rename it, or make it a .conflist")]
    Order(PathBuf),
}

fn at(path: &Path) -> impl Fn(io::Error) -> InstallError {
    move |error| InstallError::Io { path: path.into(), error }
}

/// The files that a runtime takes for network configurations, in its order.
fn configurations(directory: &Path) -> Result<Vec<PathBuf>, InstallError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(at(directory))?,
    };
    let is_one = |path: &PathBuf| path.extension().and_then(|e| e.to_str()).is_some_and(|e| matches!(e, "conflist" | "conf" | "json"));
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| is_one(path) && path.is_file()).collect();
    files.sort();
    Ok(files)
}

/// Puts the plug-in's entry into the configuration in `directory` that the runtime picks: the first by name.
pub fn install(directory: &Path, entry: &str, with_istio: WithIstio) -> Result<Done, InstallError> {
    let list = directory.join(LIST);
    let Some(first) = configurations(directory)?.into_iter().find(|path| *path != list) else {
        forget(&list)?;
        return Ok(Done::Waiting);
    };
    let text = fs::read_to_string(&first).map_err(at(&first))?;
    let edited = |new: Result<String, EditError>| new.map_err(|error| InstallError::Edit { path: first.clone(), error });
    if first.extension().is_some_and(|e| e == "conflist") {
        let new = edited(insert(&text, entry, with_istio))?;
        let done = replace(&first, Some(&text), &new, &first)?;
        // What stood in for a single plug-in would hide this one.
        forget(&list)?;
        return Ok(done);
    }
    if first < list {
        return Err(InstallError::Order(first));
    }
    let new = edited(from_single(&text, entry, with_istio))?;
    let old = match fs::read_to_string(&list) {
        Ok(old) => Some(old),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(at(&list)(error)),
    };
    replace(&list, old.as_deref(), &new, &first)
}

/// Takes the plug-in out of every configuration in `directory`; returns those that were changed. A file that is not understood is none
/// of ours.
pub fn uninstall(directory: &Path) -> Result<Vec<PathBuf>, InstallError> {
    let list = directory.join(LIST);
    let mut changed = Vec::new();
    for path in configurations(directory)? {
        if path == list {
            forget(&path)?;
            changed.push(path);
            continue;
        }
        let Ok(text) = fs::read_to_string(&path) else { continue };
        if is_in(&text) {
            let new = remove(&text).map_err(|error| InstallError::Edit { path: path.clone(), error })?;
            if let Done::Raced(path) = replace(&path, Some(&text), &new, &path)? {
                return Err(at(&path)(io::Error::other("somebody else changes it; try again")));
            }
            changed.push(path);
        }
    }
    Ok(changed)
}

fn forget(path: &Path) -> Result<(), InstallError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(path)(error)),
        _ => Ok(()),
    }
}

/// Writes a file in one step, with the permissions of `like`, unless somebody else has changed it from `old` meanwhile.
fn replace(path: &Path, old: Option<&str>, new: &str, like: &Path) -> Result<Done, InstallError> {
    if old == Some(new) {
        return Ok(Done::Unchanged(path.into()));
    }
    let permissions = fs::metadata(like).map_err(at(like))?.permissions();
    let temporary = temporary(path);
    write(&temporary, new.as_bytes(), permissions).map_err(at(&temporary))?;
    if fs::read_to_string(path).ok().as_deref() != old {
        forget(&temporary)?;
        return Ok(Done::Raced(path.into()));
    }
    fs::rename(&temporary, path).and_then(|()| sync(path)).map_err(at(path))?;
    Ok(Done::Written(path.into()))
}

/// Beside the file, under a name that no runtime reads.
fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    path.with_file_name(format!(".{name}.{}.nodemesh", std::process::id()))
}

fn write(path: &Path, bytes: &[u8], permissions: Permissions) -> io::Result<()> {
    let mut file = File::create(path)?;
    let written = file.set_permissions(permissions).and_then(|()| file.write_all(bytes)).and_then(|()| file.sync_all());
    // A full disk must not keep what there was no room for.
    written.inspect_err(|_| drop(fs::remove_file(path)))
}

fn sync(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

/// Puts the plug-in's binary among the others, in one step; false if it is there already. A plug-in that runs goes on.
pub fn install_binary(from: &Path, directory: &Path) -> Result<bool, InstallError> {
    let to = directory.join(PLUGIN);
    let new = fs::read(from).map_err(at(from))?;
    if fs::read(&to).is_ok_and(|old| old == new) {
        return Ok(false);
    }
    let temporary = temporary(&to);
    write(&temporary, &new, Permissions::from_mode(0o755)).map_err(at(&temporary))?;
    fs::rename(&temporary, &to).and_then(|()| sync(&to)).map_err(at(&to))?;
    Ok(true)
}

/// Takes it away.
pub fn uninstall_binary(directory: &Path) -> Result<(), InstallError> {
    forget(&directory.join(PLUGIN))
}

#[cfg(test)]
mod tests;
