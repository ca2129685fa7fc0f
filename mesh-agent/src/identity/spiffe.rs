//! The SPIFFE ID in a certificate.

use mesh_model::identity::{Identity, ParseIdentityError};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Why a certificate names no identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeError {
    /// It is no certificate.
    #[error("it is not an X.509 certificate: {0}")]
    Malformed(String),
    /// It has no URI among its names.
    #[error("it has no URI among its names")]
    Absent,
    /// It has more than one (X509-SVID 2 allows one).
    #[error("it has more than one URI among its names")]
    Several,
    /// The URI is no identity of a mesh.
    #[error(transparent)]
    NotAnIdentity(#[from] ParseIdentityError),
}

/// The identity that a certificate in DER names: its only URI.
pub fn identity_of(der: &[u8]) -> Result<Identity, SpiffeError> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|error| SpiffeError::Malformed(error.to_string()))?;
    identity_in(&certificate)
}

/// As [`identity_of`], of one that is parsed already.
pub fn identity_in(certificate: &X509Certificate<'_>) -> Result<Identity, SpiffeError> {
    let names = certificate.subject_alternative_name().map_err(|error| SpiffeError::Malformed(error.to_string()))?;
    let mut uris = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    match (uris.next(), uris.next()) {
        (None, _) => Err(SpiffeError::Absent),
        (Some(_), Some(_)) => Err(SpiffeError::Several),
        (Some(uri), None) => Ok(uri.parse()?),
    }
}

#[cfg(test)]
mod tests;
