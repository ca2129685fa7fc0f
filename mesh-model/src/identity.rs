//! SPIFFE identities: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A trust domain: the host part of a SPIFFE ID (SPIFFE-ID 2.1: lower-case letters, digits, `.`, `-`, `_`; at most 255 bytes).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for TrustDomain {
    fn default() -> Self {
        TrustDomain("cluster.local".into())
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TrustDomain {
    type Err = ParseIdentityError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let fine = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        if s.is_empty() || s.len() > 255 || !s.bytes().all(fine) {
            return Err(ParseIdentityError::TrustDomain(s.into()));
        }
        Ok(TrustDomain(s.into()))
    }
}

/// A workload's identity. Equal parts make equal identities; cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Identity {
    trust_domain: TrustDomain,
    namespace: Arc<str>,
    service_account: Arc<str>,
}

impl Identity {
    /// From its parts; `namespace` and `service_account` must be DNS names as Kubernetes gives them.
    pub fn new(trust_domain: TrustDomain, namespace: &str, service_account: &str) -> Result<Self, ParseIdentityError> {
        let fine = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-');
        for (part, name) in [("namespace", namespace), ("service account", service_account)] {
            if name.is_empty() || name.len() > 253 || !name.bytes().all(fine) {
                return Err(ParseIdentityError::Part(part, name.into()));
            }
        }
        Ok(Identity { trust_domain, namespace: namespace.into(), service_account: service_account.into() })
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The service account's name.
    pub fn service_account(&self) -> &str {
        &self.service_account
    }

    /// Istio's notation of a principal: the ID without `spiffe://`.
    pub fn principal(&self) -> String {
        format!("{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl FromStr for Identity {
    type Err = ParseIdentityError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let shape = || ParseIdentityError::Shape(s.chars().take(300).collect());
        let mut parts = s.strip_prefix("spiffe://").ok_or_else(shape)?.split('/');
        let (Some(domain), Some("ns"), Some(ns), Some("sa"), Some(sa), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(shape());
        };
        Identity::new(domain.parse()?, ns, sa)
    }
}

/// Why a text is no identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseIdentityError {
    /// Not of the form.
    #[error("\"{0}\" is not of the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>")]
    Shape(String),
    /// The trust domain has a character it may not have.
    #[error("\"{0}\" is not a trust domain (1 to 255 of a-z, 0-9, '.', '-', '_')")]
    TrustDomain(String),
    /// A part is not a Kubernetes name.
    #[error("{0} \"{1}\" is not a Kubernetes name")]
    Part(&'static str, String),
}

#[cfg(test)]
mod tests;
