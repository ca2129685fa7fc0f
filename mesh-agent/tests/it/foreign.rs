//! A data plane of another make, as far as the wire shows: certificates of a test's own authority, HTTP/2 CONNECT by `h2` and `rustls`
//! alone. It shares no line with the agent's tunnel, so both can't be wrong alike.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use mesh_lab::Pod;
use rustls::crypto::{CryptoProvider, aws_lc_rs};

mod certificate;
mod client;
mod server;

pub use certificate::{Authority, Leaf, Shown, uris};
pub use client::{Tunnel, connect, drown, refusal, throw, tls, tls_version};
pub use server::{Answer, Server};

/// Longest time for anything on the wire.
const LIMIT: Duration = Duration::from_secs(15);

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// Runs something of this data plane in a pod's network namespace, or panics after a while. The pod's own programs are captured; this
/// process is not.
#[track_caller]
pub fn inside<T: Send>(pod: &Pod, work: impl Future<Output = T> + Send) -> T {
    inside_namespace(&pod.netns(), work)
}

/// The same in any namespace.
#[track_caller]
pub fn inside_namespace<T: Send>(netns: &std::path::Path, work: impl Future<Output = T> + Send) -> T {
    let done = mesh_lab::netns::within(netns, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { tokio::time::timeout(LIMIT * 4, work).await })
    });
    done.expect("the namespace").expect("no end within a minute")
}
