//! `registry DIRECTORY ADDRESS`: serves the images of a directory to a cluster's nodes.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use mesh_lab_programs::{registry, server};
use tokio::net::TcpListener;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [directory, address] = words.as_slice() else { bail!("usage: registry DIRECTORY ADDRESS") };
    let directory = Arc::new(PathBuf::from(directory));
    let listener = TcpListener::bind(address).await.with_context(|| format!("listening at {address}"))?;
    println!("serving {} at {address}", directory.display());
    let served = server::serve(listener, move |_, request| {
        let directory = Arc::clone(&directory);
        async move {
            let (method, uri) = (request.method().clone(), request.uri().clone());
            let response = registry::answer(&directory, &method, uri.path(), uri.query());
            println!("{method} {uri} {}", response.status().as_u16());
            response
        }
    });
    served.await.context("serving")
}
