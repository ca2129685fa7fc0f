//! Holds the authority in force, and puts a successor in its place when its intermediate grows old.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

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

/// How long it takes at most until what was published has reached every agent: the kubelet's period of a minute, and its cache's.
pub const PROJECTION: Duration = Duration::from_secs(120);

/// Why another authority does not take the place of the present one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NotYet {
    /// Nobody would trust it.
    #[error(
        "the signing certificate was replaced by one below a root that agents do not know: put the old one back and add the new root beside the old among the roots (ca.crt, root-cert.pem) first"
    )]
    Untrusted,
    /// What the old one signed would be refused.
    #[error(
        "the signing certificate was replaced and a root taken away at once: leave the old root among the roots until all certificates below it are renewed"
    )]
    RootDropped,
    /// Not everybody trusts it yet.
    #[error(
        "the signing certificate was replaced soon after its root was published: agents may not know it yet; it is taken two minutes after"
    )]
    TooYoung,
}

/// The authority in force.
#[derive(Debug)]
pub struct Keeper {
    current: ArcSwap<Authority>,
    /// The certificates that were given, of an authority that somebody else keeps: the signing one, and those above it.
    given: Mutex<Option<Vec<CertificateDer<'static>>>>,
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
                        given: Mutex::new(None),
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
        Ok(Keeper { current: ArcSwap::from_pointee(authority), given: Mutex::new(None), root: Mutex::new(Some(root)), state })
    }

    /// An authority that somebody else keeps; what is made below it lives in memory.
    pub fn given(given: Given, now: SystemTime) -> Result<Keeper, HierarchyError> {
        let own = own_of(&given);
        let (authority, root) = match parts(given, now)? {
            Parts::Signs(authority) => (*authority, None),
            Parts::Root(root) => (successor(&root, None, now)?, Some(root)),
        };
        Ok(Keeper { given: Mutex::new(Some(own)), current: ArcSwap::from_pointee(authority), root: Mutex::new(root), state: None })
    }

    /// Whether that is the authority in force, with the same roots.
    pub fn is(&self, given: &Given) -> bool {
        self.given.lock().as_ref() == Some(&own_of(given)) && self.current().roots() == given.roots
    }

    /// Whether agents that trust these roots trust what is signed here.
    pub fn is_trusted_by(&self, roots: &[CertificateDer<'static>], now: SystemTime) -> Result<(), HierarchyError> {
        let distrusted = |error| HierarchyError::Distrusted(format!("{error}"));
        self.current().is_trusted_by(roots, now).map_err(distrusted)
    }

    /// Whether another authority may take the place of the present one without a certificate being refused; `age` is how long the present
    /// roots have been published. Roots may come and go as the user says; a new signer must be trusted everywhere before, and the roots of the
    /// old one must stay.
    pub fn may_give_way_to(&self, next: &Keeper, age: Duration, now: SystemTime) -> Result<(), NotYet> {
        let (present, coming) = (self.current(), next.current());
        let signer = |keeper: &Keeper| keeper.given.lock().as_ref().and_then(|given| given.first().cloned());
        if signer(self) == signer(next) {
            return Ok(());
        }
        if coming.is_trusted_by(present.roots(), now).is_err() {
            return Err(NotYet::Untrusted);
        }
        if !present.roots().iter().all(|root| coming.roots().contains(root)) {
            return Err(NotYet::RootDropped);
        }
        match PROJECTION.checked_sub(age) {
            Some(left) if !left.is_zero() => Err(NotYet::TooYoung),
            _ => Ok(()),
        }
    }

    /// Puts another authority in place of the present one. What that signed stays valid as long as its root is among the new one's.
    pub fn take(&self, next: Keeper) {
        // In the order in which `maintain` looks.
        let mut root = self.root.lock();
        *root = next.root.into_inner();
        *self.given.lock() = next.given.into_inner();
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

fn own_of(given: &Given) -> Vec<CertificateDer<'static>> {
    std::iter::once(&given.signer.certificate).chain(&given.chain).cloned().collect()
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
