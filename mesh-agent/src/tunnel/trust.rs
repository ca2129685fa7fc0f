//! Why a peer is believed, and for how long: what its certificate proved at the handshake, looked at again whenever something new is to begin
//! on its connection. A connection may live for days; the authority that vouched for its peer may be trusted no more by then.

use std::sync::Arc;
use std::time::SystemTime;

use mesh_model::identity::Identity;
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use super::tls::{Credentials, provider, system_time};
use super::verify::{VerifyError, identity_of};

/// What a peer has proved.
#[derive(Clone, Debug)]
pub struct Proof {
    /// That its chain was verified against.
    roots: Arc<RootCertStore>,
    /// To which of them it leads.
    root: usize,
    /// When its certificate expires.
    expires: SystemTime,
}

impl Proof {
    /// Of a chain (leaf first) that the handshake has verified against these roots for this usage, and whose it is.
    ///
    /// # Errors
    /// The chain is empty, names nobody, or leads to none of the roots after all.
    pub fn read(roots: &Arc<RootCertStore>, chain: &[CertificateDer<'_>], usage: KeyUsage) -> Result<(Identity, Proof), VerifyError> {
        let (leaf, intermediates) = chain.split_first().ok_or(VerifyError::Missing)?;
        let (identity, not_after) = identity_of(leaf)?;
        let root = match roots.roots.len() {
            1 => 0,
            // While roots are exchanged there are several, and the library does not say which one it was.
            _ => root_of(roots, leaf, intermediates, usage)?,
        };
        Ok((identity, Proof { roots: roots.clone(), root, expires: system_time(not_after) }))
    }

    /// Whether the certificate has not expired and the root that it leads to is still trusted.
    pub fn holds(&self, trusted: &Arc<RootCertStore>, now: SystemTime) -> bool {
        // A renewal brings roots of its own, usually the same ones.
        let is_trusted = || self.roots.roots.get(self.root).is_some_and(|root| trusted.roots.contains(root));
        now < self.expires && (Arc::ptr_eq(&self.roots, trusted) || is_trusted())
    }
}

fn root_of(
    roots: &RootCertStore,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    usage: KeyUsage,
) -> Result<usize, VerifyError> {
    let leaf = EndEntityCert::try_from(leaf).map_err(VerifyError::from_webpki)?;
    let algorithms = provider().signature_verification_algorithms.all;
    let path = leaf
        .verify_for_usage(algorithms, &roots.roots, intermediates, UnixTime::now(), usage, None, None)
        .map_err(VerifyError::from_webpki)?;
    roots.roots.iter().position(|root| root == path.anchor()).ok_or(VerifyError::UnknownIssuer)
}

/// Why the two ends of a connection that was dialled believe each other. Nothing new may begin on one whose trust no longer holds.
#[derive(Clone)]
pub struct Trust {
    peer: Proof,
    /// When our own certificate expires.
    expires: SystemTime,
}

impl Trust {
    /// Of a handshake with these credentials.
    pub fn new(credentials: &Credentials, peer: Proof) -> Trust {
        Trust { peer, expires: credentials.not_after() }
    }

    /// Whether neither certificate has expired and the peer's leads to a root that is trusted now.
    pub fn holds(&self, current: &Credentials, now: SystemTime) -> bool {
        now < self.expires && self.peer.holds(current.roots(), now)
    }
}
