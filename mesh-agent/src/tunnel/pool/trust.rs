//! Why the two ends of a connection believe each other, and for how long.

use std::sync::Arc;
use std::time::SystemTime;

use rustls::RootCertStore;

use crate::tunnel::tls::Credentials;

/// See the module. Nothing new may begin on a connection whose trust no longer holds.
#[derive(Clone)]
pub struct Trust {
    /// That the peer's certificate was checked against.
    roots: Arc<RootCertStore>,
    /// When the first of the two certificates expires.
    expires: SystemTime,
}

impl Trust {
    /// Of a handshake with these credentials and a peer whose certificate is valid until then.
    pub fn new(credentials: &Credentials, peer_not_after: SystemTime) -> Trust {
        Trust { roots: credentials.roots().clone(), expires: credentials.not_after().min(peer_not_after) }
    }

    /// Whether neither certificate has expired and the roots are those that are trusted now.
    pub fn holds(&self, current: &Credentials, now: SystemTime) -> bool {
        // A renewal brings roots of its own, usually the same ones.
        now < self.expires && (Arc::ptr_eq(&self.roots, current.roots()) || self.roots.roots == current.roots().roots)
    }
}
