//! The client of a certificate authority that speaks Istio's protocol: istiod or mesh-control.

use std::sync::Arc;
use std::time::Duration;

use mesh_model::identity::Identity;
use mesh_proto::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use mesh_proto::ca::{IstioCertificateRequest, IstioCertificateResponse};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::issuer::{IssueError, IssuedChain, Issuer, Issuing};
use crate::link::{Link, MAX_CERTIFICATES};

/// Largest answer.
const MAX_ANSWER: usize = 1 << 20;

/// The client.
pub struct CaClient {
    link: Arc<Link>,
    /// Lifetime that is asked for; the authority may give less.
    pub lifetime: Duration,
    /// Longest time for one authority to answer, connecting included.
    pub timeout: Duration,
}

impl CaClient {
    /// With a lifetime of 24 h and 8 s to answer.
    pub fn new(link: Arc<Link>) -> CaClient {
        CaClient { link, lifetime: Duration::from_secs(24 * 3600), timeout: Duration::from_secs(8) }
    }

    async fn ask(&self, identity: &Identity, csr: &str) -> Result<IssuedChain, IssueError> {
        let seconds = i64::try_from(self.lifetime.as_secs()).unwrap_or(i64::MAX);
        let message = IstioCertificateRequest::for_workload(csr.into(), seconds, identity.to_string());
        let answered = self
            .link
            .call(self.timeout, message, |channel, request| async move {
                IstioCertificateServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER).create_certificate(request).await
            })
            .await?;
        read_answer(answered.message, answered.roots)
    }
}

impl Issuer for CaClient {
    fn issue<'a>(&'a self, identity: &'a Identity, csr: &'a str) -> Issuing<'a> {
        Box::pin(self.ask(identity, csr))
    }
}

/// Sorts an answer: the leaf comes first, the roots last, what stands between leads from one to the other. istiod gives one
/// certificate an element, so that of several roots all but one stand among the intermediates: they are known by being self-issued.
fn read_answer(answer: IstioCertificateResponse, bundle: Vec<CertificateDer<'static>>) -> Result<IssuedChain, IssueError> {
    let mut chain = IssuedChain { certificates: Vec::new(), roots: Vec::new() };
    let last = answer.cert_chain.len().saturating_sub(1);
    for (i, element) in answer.cert_chain.iter().enumerate() {
        for certificate in CertificateDer::pem_slice_iter(element.as_bytes()) {
            let certificate = certificate.map_err(|error| IssueError::Answer(format!("element {i} is not PEM: {error}")))?;
            if chain.certificates.len() + chain.roots.len() >= MAX_CERTIFICATES {
                return Err(IssueError::Answer(format!("it has more than {MAX_CERTIFICATES} certificates")));
            }
            let (_, parsed) = X509Certificate::from_der(&certificate)
                .map_err(|error| IssueError::Answer(format!("element {i} is no certificate: {error}")))?;
            let self_issued = parsed.subject().as_raw() == parsed.issuer().as_raw();
            let is_root = i > 0 && (i == last || self_issued);
            if is_root { chain.roots.push(certificate) } else { chain.certificates.push(certificate) }
        }
    }
    for root in bundle {
        if !chain.roots.contains(&root) {
            chain.roots.push(root);
        }
    }
    Ok(chain)
}

#[cfg(test)]
mod tests;
