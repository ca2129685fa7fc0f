//! Whoever issues certificates.

use std::pin::Pin;

use mesh_model::identity::Identity;
use rustls_pki_types::CertificateDer;

use crate::link::LinkError;

/// What an issuer gives, as it came: nothing in it is judged yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IssuedChain {
    /// The leaf, then the intermediates.
    pub certificates: Vec<CertificateDer<'static>>,
    /// Whom to trust: the issuer's roots, and those that the issuer itself is trusted by.
    pub roots: Vec<CertificateDer<'static>>,
}

/// The boxed future of an issuance.
pub type Issuing<'a> = Pin<Box<dyn Future<Output = Result<IssuedChain, IssueError>> + Send + 'a>>;

/// Issues certificates.
pub trait Issuer: Send + Sync + 'static {
    /// A certificate for an identity and the key that signed the request (PKCS #10 in PEM).
    fn issue<'a>(&'a self, identity: &'a Identity, csr: &'a str) -> Issuing<'a>;
}

/// Why none was issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// It is not reached, or answers no.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// Its answer cannot be read.
    #[error("the certificate authority's answer cannot be read: {0}")]
    Answer(String),
}
