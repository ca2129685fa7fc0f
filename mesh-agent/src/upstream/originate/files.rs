//! Roots, certificates and keys in files of the agent's own container. That container is shared by the pods of every namespace, so a
//! namespace's rules may name certificates and keys only below its own directory: `<credentials>/<namespace of the client>`. Roots are no
//! secret and may lie anywhere.

use std::fs::{File, Metadata};
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mesh_model::traffic::{ClientCertificate, Origination, Trust};
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// Bytes that a file may have.
const LARGEST: u64 = 1 << 20;

/// Where credentials are mounted: `<namespace>/<name>/{ca.crt,tls.crt,tls.key}`, as a Secret of type `kubernetes.io/tls` names its keys.
#[derive(Debug)]
pub struct Credentials {
    directory: PathBuf,
}

/// What is there of a file: device, inode, length, seconds and nanoseconds of its last change.
pub(super) type Stamp = (PathBuf, Option<(u64, u64, u64, i64, i64)>);

/// What files hold.
pub(super) struct Material {
    /// `None`: no server is verified.
    pub(super) roots: Option<Arc<RootCertStore>>,
    pub(super) client: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
}

impl Credentials {
    /// By their directory.
    pub fn new(directory: &Path) -> Credentials {
        Credentials { directory: directory.to_owned() }
    }

    /// The directory of a namespace, if it can be the name of one.
    fn of(&self, namespace: &str) -> Option<PathBuf> {
        is_component(namespace).then(|| self.directory.join(namespace))
    }

    fn file(&self, namespace: &str, name: &str, key: &str) -> Result<PathBuf, Arc<str>> {
        let directory = self.of(namespace).filter(|_| is_component(name));
        Ok(directory.ok_or_else(|| Arc::<str>::from(format!("credentialName \"{name}\" is no name of a directory")))?.join(name).join(key))
    }

    /// A file with a secret, if it is the namespace's own.
    fn own(&self, namespace: &str, field: &str, file: &str) -> Result<PathBuf, Arc<str>> {
        let directory = self.of(namespace).unwrap_or_default();
        let real = |path: &Path| path.canonicalize().map_err(|error| Arc::<str>::from(format!("{field} {}: {error}", path.display())));
        let file = real(Path::new(file))?;
        match directory.canonicalize() {
            Ok(directory) if file.starts_with(&directory) => Ok(file),
            _ => Err(format!(
                "{field} {} is not below {}, where the agent has what clients of namespace {namespace} may use; mount it there",
                file.display(),
                directory.display()
            )
            .into()),
        }
    }
}

/// One step of a path, which leads nowhere else.
fn is_component(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0'])
}

/// The files that an origination needs, by the fields that name them.
fn paths(settings: &Origination, credentials: &Credentials, namespace: &str) -> Vec<PathBuf> {
    let mut all = Vec::new();
    match &settings.trust {
        Trust::File(file) => all.push(PathBuf::from(&**file)),
        Trust::Credential(name) => all.extend(credentials.file(namespace, name, "ca.crt")),
        Trust::System | Trust::Anybody => {}
    }
    match &settings.client {
        Some(ClientCertificate::Files { certificate, key }) => all.extend([certificate, key].map(|file| PathBuf::from(&**file))),
        Some(ClientCertificate::Credential(name)) => {
            all.extend(["tls.crt", "tls.key"].into_iter().filter_map(|key| credentials.file(namespace, name, key).ok()));
        }
        None => {}
    }
    all
}

/// How the files are now, to tell whether they have changed.
pub(super) fn stamps(settings: &Origination, credentials: &Credentials, namespace: &str) -> Vec<Stamp> {
    let of = |meta: Metadata| (meta.dev(), meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec());
    paths(settings, credentials, namespace).into_iter().map(|path| (path.clone(), std::fs::metadata(path).ok().map(of))).collect()
}

/// Reads them. The error names file and mend.
pub(super) fn read(settings: &Origination, credentials: &Credentials, namespace: &str) -> Result<Material, Arc<str>> {
    let roots = match &settings.trust {
        Trust::Anybody => None,
        Trust::System => Some(system()?),
        Trust::File(file) => Some(roots("caCertificates", Path::new(&**file))?),
        Trust::Credential(name) => Some(roots("credentialName", &credentials.file(namespace, name, "ca.crt")?)?),
    };
    let client = match &settings.client {
        None => None,
        Some(ClientCertificate::Files { certificate, key }) => {
            let certificate = credentials.own(namespace, "clientCertificate", certificate)?;
            let key = credentials.own(namespace, "privateKey", key)?;
            Some((chain("clientCertificate", &certificate)?, private_key("privateKey", &key)?))
        }
        Some(ClientCertificate::Credential(name)) => {
            let file = |key| credentials.file(namespace, name, key);
            Some((chain("credentialName", &file("tls.crt")?)?, private_key("credentialName", &file("tls.key")?)?))
        }
    };
    Ok(Material { roots, client })
}

fn bytes(field: &str, path: &Path) -> Result<Vec<u8>, Arc<str>> {
    let failed = |error: std::io::Error| Arc::<str>::from(format!("{field} {}: {error}", path.display()));
    // Opening a device may do something; a pipe must not make the agent wait for its writer.
    let is_file = std::fs::metadata(path).map_err(failed)?.is_file();
    if !is_file {
        return Err(format!("{field} {} is no file", path.display()).into());
    }
    let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
    let file = File::options().read(true).custom_flags(flags).open(path).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    if !meta.is_file() || meta.len() > LARGEST {
        return Err(format!("{field} {} is no file of at most {} KiB", path.display(), LARGEST >> 10).into());
    }
    let mut bytes = Vec::new();
    file.take(LARGEST).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

fn chain(field: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Arc<str>> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes(field, path)?).collect();
    match read {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        _ => Err(format!("{field} {} holds no certificate in PEM", path.display()).into()),
    }
}

fn private_key(field: &str, path: &Path) -> Result<PrivateKeyDer<'static>, Arc<str>> {
    // What is wrong with a key is nobody's business.
    PrivateKeyDer::from_pem_slice(&bytes(field, path)?)
        .map_err(|_| format!("{field} {} holds no private key in PEM", path.display()).into())
}

fn roots(field: &str, path: &Path) -> Result<Arc<RootCertStore>, Arc<str>> {
    let mut store = RootCertStore::empty();
    for certificate in chain(field, path)? {
        store.add(certificate).map_err(|error| Arc::<str>::from(format!("{field} {} holds what is no root: {error}", path.display())))?;
    }
    Ok(Arc::new(store))
}

/// The system's roots; those that cannot be read are left out, as systems carry odd ones.
fn system() -> Result<Arc<RootCertStore>, Arc<str>> {
    let found = rustls_native_certs::load_native_certs();
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(found.certs);
    if store.is_empty() {
        let why = found.errors.first().map(|error| format!(" ({error})")).unwrap_or_default();
        return Err(format!("the agent's system has no roots{why}: write caCertificates, or set SSL_CERT_FILE for the agent").into());
    }
    Ok(Arc::new(store))
}
