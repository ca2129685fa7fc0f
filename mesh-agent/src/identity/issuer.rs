//! Whoever issues certificates.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;

use mesh_model::identity::Identity;
use rustls_pki_types::CertificateDer;

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
    /// A file that is needed cannot be read.
    #[error("{what} {}: {error}", path.display())]
    File {
        /// What the file is for.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A setting cannot be used.
    #[error("{setting} \"{given}\": {message}")]
    Setting {
        /// The setting.
        setting: &'static str,
        /// What was given.
        given: String,
        /// What is wrong.
        message: String,
    },
    /// The authority does not answer.
    #[error("no certificate authority answers: {0}")]
    Unreachable(String),
    /// It answers no.
    #[error("the certificate authority {address} refuses ({code}): {message}")]
    Refused {
        /// Which authority.
        address: String,
        /// The gRPC code.
        code: tonic::Code,
        /// Its words.
        message: String,
    },
    /// Its answer cannot be read.
    #[error("the certificate authority's answer cannot be read: {0}")]
    Answer(String),
}
