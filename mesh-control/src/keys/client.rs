//! The HTTP client that keys are fetched with: whom it trusts, and whom it does not ask.
//!
//! It trusts the system's roots (`SSL_CERT_FILE` and `SSL_CERT_DIR` are heeded), or where there are none, as in our image, those that Mozilla
//! does; and those of a file beside. No address of the machine's own link is asked: there the clouds serve credentials to whoever comes
//! (169.254.169.254 and the like).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::Uri;
use http_body_util::Empty;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use hyper_util::rt::TokioExecutor;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tower_service::Service;

use crate::files;

/// The client.
pub type Client = legacy::Client<HttpsConnector<HttpConnector<Resolver>>, Empty<Bytes>>;

/// Longest text of an error, in characters.
const WORDS: usize = 300;

/// Clients, one after the other: each as the file of roots is.
pub struct Clients {
    roots: Option<PathBuf>,
    made: ArcSwapOption<(String, Client)>,
}

impl Clients {
    /// With the roots of a file beside those of the system.
    pub fn new(roots: Option<PathBuf>) -> Clients {
        Clients { roots, made: ArcSwapOption::empty() }
    }

    /// The client now. The error says what is wrong with the file.
    pub async fn current(&self) -> Result<Client, String> {
        let roots = self.roots.clone();
        let made = self.made.load_full();
        let work = move || -> Result<(Arc<(String, Client)>, bool), String> {
            let text = match &roots {
                Some(path) => files::read(path).map_err(|error| wrong(path, &error.to_string()))?,
                None => String::new(),
            };
            match made {
                Some(made) if made.0 == text => Ok((made, false)),
                _ => Ok((Arc::new((text.clone(), client(roots.as_deref(), &text)?)), true)),
            }
        };
        let (made, is_new) = tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())??;
        if is_new {
            self.made.store(Some(made.clone()));
        }
        Ok(made.1.clone())
    }
}

fn wrong(path: &Path, why: &str) -> String {
    format!("--jwks-roots {}: {why}; nothing is fetched", path.display())
}

fn client(path: Option<&Path>, text: &str) -> Result<Client, String> {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    // What one of them has that is not understood keeps none of the others from being trusted.
    roots.add_parsable_certificates(native.certs);
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    if let Some(path) = path {
        let more: Vec<_> = CertificateDer::pem_slice_iter(text.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| wrong(path, &format!("is not PEM: {error}")))?;
        if more.is_empty() {
            return Err(wrong(path, "holds no certificate in PEM"));
        }
        for certificate in more {
            roots.add(certificate).map_err(|error| wrong(path, &format!("a certificate cannot be trusted: {error}")))?;
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let mut http = HttpConnector::new_with_resolver(Resolver(GaiResolver::new()));
    http.enforce_http(false);
    let https = HttpsConnectorBuilder::new().with_tls_config(config).https_or_http().enable_http1().wrap_connector(http);
    // One request in minutes: no connection is worth keeping.
    Ok(legacy::Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(https))
}

/// An address that is not asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0} is not asked for keys: such addresses serve this machine alone, not the mesh's issuers")]
pub struct Forbidden(IpAddr);

/// Judges a URL that names an address instead of a host.
pub fn forbidden(uri: &Uri) -> Result<(), Forbidden> {
    let host = uri.host().unwrap_or_default();
    match host.trim_start_matches('[').trim_end_matches(']').parse() {
        Ok(address) => judge(address),
        Err(_) => Ok(()),
    }
}

/// The metadata service of AWS in IPv6, beside the link's own addresses.
const EC2: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

fn judge(address: IpAddr) -> Result<(), Forbidden> {
    let bad = match address.to_canonical() {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_unspecified() || v4.is_multicast() || v4 == Ipv4Addr::BROADCAST,
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.is_unspecified() || v6.is_multicast() || v6 == EC2,
    };
    if bad { Err(Forbidden(address)) } else { Ok(()) }
}

/// The system's resolver, without addresses that are not asked.
#[derive(Clone)]
pub struct Resolver(GaiResolver);

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let found = self.0.call(name);
        Box::pin(async move {
            let (mut good, mut bad) = (Vec::new(), None);
            for address in found.await? {
                match judge(address.ip()) {
                    Ok(()) => good.push(address),
                    Err(why) => bad = Some(why),
                }
            }
            match bad {
                Some(why) if good.is_empty() => Err(io::Error::other(why)),
                _ => Ok(good.into_iter()),
            }
        })
    }
}

/// An error and those behind it, in few words.
pub(super) fn words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = error.source();
    }
    text.chars().take(WORDS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_machines_own_link_are_not_asked() {
        for bad in [
            "http://169.254.169.254/latest/meta-data",
            "http://[::ffff:169.254.169.254]/",
            "http://[fe80::1]/",
            "http://[fd00:ec2::254]/",
            "http://0.0.0.0/",
            "http://[::]/",
            "http://224.0.0.1/",
        ] {
            assert!(forbidden(&bad.parse().unwrap()).is_err(), "{bad}");
        }
        for good in ["http://10.0.0.1/", "https://issuer.example/", "http://[fd00::1]:8080/", "http://127.0.0.1/"] {
            assert!(forbidden(&good.parse().unwrap()).is_ok(), "{good}");
        }
    }

    #[tokio::test]
    async fn a_file_of_roots_that_is_of_no_use_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("roots.pem");
        let clients = Clients::new(Some(path.clone()));
        for (content, why) in [(None, "No such file"), (Some("nothing"), "holds no certificate")] {
            if let Some(content) = content {
                std::fs::write(&path, content).unwrap();
            }
            let error = clients.current().await.err().unwrap();
            assert!(error.starts_with("--jwks-roots ") && error.contains(why), "{error}");
        }
    }
}
