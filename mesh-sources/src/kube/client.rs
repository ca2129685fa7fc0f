//! The connection to the API server.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::ConfigExt;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tower::{BoxError, ServiceBuilder};

/// After this much silence the kernel asks whether the peer is still there, at this interval, this often.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(30), Duration::from_secs(10), 3);

/// Why no client of the API server can be made.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// This process does not run in a cluster.
    #[error("this process is not in a Kubernetes cluster: {0}; run it in a pod with a service account's token, or give a kubeconfig")]
    NotInCluster(String),
    /// The kubeconfig cannot be used.
    #[error("kubeconfig {}: {error}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why.
        error: String,
    },
    /// The settings of the connection (certificates, credentials) cannot be used.
    #[error("the API server at {place}: {error}")]
    Settings {
        /// Its address.
        place: String,
        /// Why.
        error: String,
    },
}

/// A client by a kubeconfig, or of the cluster that this process runs in; and the server's address. Connects to nobody yet.
pub async fn client(kubeconfig: Option<&Path>) -> Result<(Client, String), ClientError> {
    let config = match kubeconfig {
        None => Config::incluster().map_err(|error| ClientError::NotInCluster(chain(&error)))?,
        Some(path) => {
            let wrong = |error| ClientError::Kubeconfig { path: path.into(), error };
            let file = Kubeconfig::read_from(path).map_err(|error| wrong(chain(&error)))?;
            let read = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
            let config = read.map_err(|error| wrong(chain(&error)))?;
            if let Some(proxy) = &config.proxy_url {
                return Err(wrong(format!("proxies are not supported, and it names {proxy}; leave it out")));
            }
            config
        }
    };
    let place = config.cluster_url.to_string().trim_end_matches('/').to_owned();
    match of_config(&config) {
        Ok(client) => Ok((client, place)),
        Err(error) => Err(ClientError::Settings { place, error: chain(&error) }),
    }
}

/// As [`client`], of settings. It retries nothing by itself and logs nothing: both are the watch's.
pub(super) fn of_config(config: &Config) -> Result<Client, kube::Error> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    let (after, every, times) = KEEPALIVE;
    connector.set_keepalive(Some(after));
    connector.set_keepalive_interval(Some(every));
    connector.set_keepalive_retries(Some(times));
    let connector = config.rustls_https_connector_with_connector(connector)?;
    let http = legacy::Client::builder(TokioExecutor::new()).build::<_, kube::client::Body>(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(http);
    Ok(Client::new(service, config.default_namespace.clone()))
}

fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        next = cause.source();
    }
    text
}
