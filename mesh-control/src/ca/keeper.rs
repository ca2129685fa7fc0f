//! Holds the authority in force, and puts a successor in its place when its intermediate grows old.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;

use super::authority::Authority;
use super::hierarchy::{self, CaFiles, Given, HierarchyError, Signer, is_due, make_intermediate, make_root};
use super::state::StateDir;

/// Where an authority comes from.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CaSource {
    /// Files of one that exists; else one is made.
    pub files: Option<CaFiles>,
    /// Where what is made here is kept; else it lives in memory.
    pub state_dir: Option<PathBuf>,
}

/// The authority in force.
#[derive(Debug)]
pub struct Keeper {
    current: ArcSwap<Authority>,
    /// The certificate that was given, of an authority that somebody else keeps.
    signer: Mutex<Option<CertificateDer<'static>>>,
    /// A root whose key is here, so that intermediates can be made below it.
    root: Mutex<Option<Root>>,
    state: Option<StateDir>,
}

#[derive(Debug)]
struct Root {
    signer: Signer,
    roots: Vec<CertificateDer<'static>>,
}

impl Keeper {
    /// Reads or makes the authority.
    pub fn open(source: &CaSource, now: SystemTime) -> Result<Keeper, HierarchyError> {
        let state = source.state_dir.as_deref().map(StateDir::open).transpose()?;
        let root = match &source.files {
            Some(files) => match parts(hierarchy::read(files)?, now)? {
                Parts::Signs(authority) => {
                    return Ok(Keeper {
                        current: ArcSwap::from_pointee(*authority),
                        signer: Mutex::new(None),
                        root: Mutex::new(None),
                        state,
                    });
                }
                Parts::Root(root) => root,
            },
            None => own_root(state.as_ref(), now)?,
        };
        let kept = state.as_ref().map(StateDir::intermediate).transpose()?.flatten();
        let kept = kept.and_then(|signer| match authority(signer, &root, now) {
            Ok(authority) if !is_due(&authority.validity(), now) => Some(authority),
            Ok(_) => None,
            Err(error) => {
                tracing::warn!(%error, "the intermediate that was kept is of no use with this root; a new one is made");
                None
            }
        });
        let authority = match kept {
            Some(kept) => kept,
            None => successor(&root, state.as_ref(), now)?,
        };
        Ok(Keeper { current: ArcSwap::from_pointee(authority), signer: Mutex::new(None), root: Mutex::new(Some(root)), state })
    }

    /// An authority that somebody else keeps; what is made below it lives in memory.
    pub fn given(given: Given, now: SystemTime) -> Result<Keeper, HierarchyError> {
        let signer = given.signer.certificate.clone();
        let (authority, root) = match parts(given, now)? {
            Parts::Signs(authority) => (*authority, None),
            Parts::Root(root) => (successor(&root, None, now)?, Some(root)),
        };
        Ok(Keeper { signer: Mutex::new(Some(signer)), current: ArcSwap::from_pointee(authority), root: Mutex::new(root), state: None })
    }

    /// Whether that is the authority in force, with the same roots.
    pub fn is(&self, given: &Given) -> bool {
        self.signer.lock().as_ref() == Some(&given.signer.certificate) && self.current().roots() == given.roots
    }

    /// Puts another authority in place of the present one. What that signed stays valid as long as its root is among the new one's.
    pub fn take(&self, next: Keeper) {
        // In the order in which `maintain` looks.
        let mut root = self.root.lock();
        *root = next.root.into_inner();
        *self.signer.lock() = next.signer.into_inner();
        self.current.store(next.current.load_full());
    }

    /// The authority in force.
    pub fn current(&self) -> Arc<Authority> {
        self.current.load_full()
    }

    /// Puts a new intermediate in place if the present one is due; says whether it did. What the old one signed stays valid.
    pub fn maintain(&self, now: SystemTime) -> Result<bool, HierarchyError> {
        let place = self.root.lock();
        let Some(root) = place.as_ref() else { return Ok(false) };
        if !is_due(&self.current().validity(), now) {
            return Ok(false);
        }
        self.current.store(Arc::new(successor(root, self.state.as_ref(), now)?));
        Ok(true)
    }
}

enum Parts {
    /// It signs leaves itself.
    Signs(Box<Authority>),
    /// An intermediate goes below it.
    Root(Root),
}

fn parts(given: Given, now: SystemTime) -> Result<Parts, HierarchyError> {
    if given.may_have_intermediate {
        return Ok(Parts::Root(Root { signer: given.signer, roots: given.roots }));
    }
    let Given { signer: Signer { certificate, key }, chain, roots, .. } = given;
    Ok(Parts::Signs(Box::new(Authority::new(certificate, key, chain, roots, now)?)))
}

fn own_root(state: Option<&StateDir>, now: SystemTime) -> Result<Root, HierarchyError> {
    let signer = match state.map(StateDir::root).transpose()?.flatten() {
        Some(kept) => kept,
        None => {
            let made = make_root(now)?;
            if let Some(state) = state {
                state.keep_root(&made)?;
            }
            made
        }
    };
    let roots = vec![signer.certificate.clone()];
    Ok(Root { signer, roots })
}

fn successor(root: &Root, state: Option<&StateDir>, now: SystemTime) -> Result<Authority, HierarchyError> {
    let made = make_intermediate(&root.signer, now)?;
    if let Some(state) = state {
        state.keep_intermediate(&made)?;
    }
    authority(made, root, now)
}

fn authority(signer: Signer, root: &Root, now: SystemTime) -> Result<Authority, HierarchyError> {
    Ok(Authority::new(signer.certificate, signer.key, Vec::new(), root.roots.clone(), now)?)
}

#[cfg(test)]
mod tests;
