//! Roots and intermediates: made here, or read from files in the form that Istio's `cacerts` has.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SerialNumber};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::authority::{AuthorityError, read_authority, serial};
use super::lifetime::{BACKDATE, Validity};

/// How long a root that is made here is valid.
pub const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How long an intermediate that is made here is valid.
pub const INTERMEDIATE_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);

/// A certificate that signs, and its key.
#[derive(Debug)]
pub struct Signer {
    /// The certificate.
    pub certificate: CertificateDer<'static>,
    /// Its key.
    pub key: KeyPair,
}

/// Files of an authority that exists already.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CaFiles {
    /// The signing certificate (`ca-cert.pem`).
    pub certificate: PathBuf,
    /// Its key (`ca-key.pem`): PKCS #8, SEC 1 or PKCS #1.
    pub key: PathBuf,
    /// The roots (`root-cert.pem`); the signing certificate itself if it is one.
    pub roots: Option<PathBuf>,
    /// The certificates from the signing one upwards (`cert-chain.pem`).
    pub chain: Option<PathBuf>,
}

/// Text in PEM, and where it was found, for messages.
#[derive(Clone, Debug)]
pub struct PemText {
    /// A file, or a key of an object.
    pub place: PathBuf,
    /// The text.
    pub text: String,
}

/// An authority that exists already; the parts are those of [`CaFiles`].
#[derive(Clone, Debug)]
pub struct Pem {
    /// The signing certificate.
    pub certificate: PemText,
    /// Its key.
    pub key: PemText,
    /// The roots.
    pub roots: Option<PemText>,
    /// The certificates from the signing one upwards.
    pub chain: Option<PemText>,
}

/// What the files hold.
#[derive(Debug)]
pub struct Given {
    /// What signs.
    pub signer: Signer,
    /// The certificates above it.
    pub chain: Vec<CertificateDer<'static>>,
    /// The roots.
    pub roots: Vec<CertificateDer<'static>>,
    /// The signing certificate is a root, and may have an intermediate below it.
    pub may_have_intermediate: bool,
}

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum HierarchyError {
    /// A file cannot be read or written.
    #[error("{}: {error}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("{}: {message}", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// Agents would refuse it.
    #[error(
        "the authority in the Secret is not the one that agents are told to trust ({0}): put the earlier one back; or, if the mesh is to begin anew, empty the ConfigMap with the roots too"
    )]
    Distrusted(String),
    /// The parts don't fit together.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

impl HierarchyError {
    pub(super) fn content(path: &Path, message: impl ToString) -> HierarchyError {
        HierarchyError::Content { path: path.into(), message: message.to_string() }
    }
}

/// Makes a root.
pub fn make_root(now: SystemTime) -> Result<Signer, AuthorityError> {
    let key = KeyPair::generate().map_err(sign_error)?;
    let params = params("Nodemesh root", IsCa::Ca(BasicConstraints::Unconstrained), now, now + ROOT_LIFETIME)?;
    let certificate = params.self_signed(&key).map_err(sign_error)?;
    Ok(Signer { certificate: certificate.into(), key })
}

/// Makes an intermediate below a root. It may sign leaves only, and ends no later than the root.
pub fn make_intermediate(root: &Signer, now: SystemTime) -> Result<Signer, AuthorityError> {
    let limit = read_authority(&root.certificate)?;
    if !limit.contains(now) {
        return Err(AuthorityError::NotValid);
    }
    let key = KeyPair::generate().map_err(sign_error)?;
    let end = (now + INTERMEDIATE_LIFETIME).min(limit.not_after);
    let mut params = params("Nodemesh intermediate", IsCa::Ca(BasicConstraints::Constrained(0)), now, end)?;
    params.not_before = params.not_before.max(OffsetDateTime::from(limit.not_before));
    params.use_authority_key_identifier_extension = true;
    let issuer = Issuer::from_ca_cert_der(&root.certificate, &root.key)
        .map_err(|error| AuthorityError::Certificate("root certificate", error.to_string()))?;
    let certificate = params.signed_by(&key, &issuer).map_err(sign_error)?;
    Ok(Signer { certificate: certificate.into(), key })
}

/// Whether an intermediate is due for a successor: its half life is over, as it must outlive what it signs.
pub fn is_due(intermediate: &Validity, now: SystemTime) -> bool {
    now >= intermediate.half()
}

fn params(name: &str, is_ca: IsCa, now: SystemTime, end: SystemTime) -> Result<CertificateParams, AuthorityError> {
    let serial = serial()?;
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, "Nodemesh");
    // Path building goes by names: each authority has one of its own.
    let tag: String = serial.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    subject.push(DnType::CommonName, format!("{name} {tag}"));
    params.distinguished_name = subject;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.not_before = OffsetDateTime::from(now - BACKDATE);
    params.not_after = OffsetDateTime::from(end);
    params.is_ca = is_ca;
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn sign_error(error: rcgen::Error) -> AuthorityError {
    AuthorityError::Sign(error.to_string())
}

/// Reads the files of an authority.
pub fn read(files: &CaFiles) -> Result<Given, HierarchyError> {
    let load = |path: &PathBuf| Ok::<_, HierarchyError>(PemText { place: path.clone(), text: text(path)? });
    given(&Pem {
        certificate: load(&files.certificate)?,
        key: load(&files.key)?,
        roots: files.roots.as_ref().map(load).transpose()?,
        chain: files.chain.as_ref().map(load).transpose()?,
    })
}

/// Judges the parts of an authority.
pub fn given(pem: &Pem) -> Result<Given, HierarchyError> {
    let signing = certificates(&pem.certificate)?;
    let Some(certificate) = signing.first().cloned() else {
        return Err(HierarchyError::content(&pem.certificate.place, "holds no certificate"));
    };
    let key = key(&pem.key)?;
    let (self_signed, path_length) = judge(&pem.certificate.place, &certificate, &key)?;
    let roots = match &pem.roots {
        Some(text) => certificates(text)?,
        None if self_signed => vec![certificate.clone()],
        None => {
            return Err(HierarchyError::content(
                &pem.certificate.place,
                "is no root: give the roots too (--root-cert, ca.crt, root-cert.pem)",
            ));
        }
    };
    let mut chain: Vec<_> = signing.into_iter().skip(1).collect();
    if let Some(text) = &pem.chain {
        chain.extend(certificates(text)?);
    }
    let may_have_intermediate = self_signed && roots.contains(&certificate) && path_length != Some(0);
    Ok(Given { signer: Signer { certificate, key }, chain, roots, may_have_intermediate })
}

/// Whether the certificate is self-signed, and its path length constraint.
fn judge(path: &Path, certificate: &CertificateDer<'_>, key: &KeyPair) -> Result<(bool, Option<u32>), HierarchyError> {
    let wrong = |error: &dyn ToString| HierarchyError::content(path, error.to_string());
    read_authority(certificate).map_err(|error| wrong(&error))?;
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| wrong(&error))?;
    if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
        return Err(wrong(&"the key given with it is not its own"));
    }
    let self_signed = parsed.subject().as_raw() == parsed.issuer().as_raw() && parsed.verify_signature(None).is_ok();
    let constraints = parsed.basic_constraints().map_err(|error| wrong(&error))?;
    Ok((self_signed, constraints.and_then(|constraints| constraints.value.path_len_constraint)))
}

/// The certificates of a PEM file; at least one.
pub(super) fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, HierarchyError> {
    certificates(&PemText { place: path.into(), text: text(path)? })
}

/// The certificates of a text in PEM; at least one.
pub fn certificates(pem: &PemText) -> Result<Vec<CertificateDer<'static>>, HierarchyError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.text.as_bytes()).collect();
    let all = all.map_err(|error| HierarchyError::content(&pem.place, format!("is not PEM: {error}")))?;
    if all.is_empty() {
        return Err(HierarchyError::content(&pem.place, "holds no certificate in PEM"));
    }
    Ok(all)
}

/// The private key of a PEM file.
pub(super) fn read_key(path: &Path) -> Result<KeyPair, HierarchyError> {
    key(&PemText { place: path.into(), text: text(path)? })
}

fn key(pem: &PemText) -> Result<KeyPair, HierarchyError> {
    let der = rustls_pki_types::PrivateKeyDer::from_pem_slice(pem.text.as_bytes())
        .map_err(|_| HierarchyError::content(&pem.place, "holds no unencrypted private key in PEM"))?;
    KeyPair::try_from(&der).map_err(|error| HierarchyError::content(&pem.place, format!("the key cannot be used: {error}")))
}

fn text(path: &Path) -> Result<String, HierarchyError> {
    crate::files::read(path).map_err(|error| HierarchyError::File { path: path.into(), error })
}

#[cfg(test)]
mod tests;
