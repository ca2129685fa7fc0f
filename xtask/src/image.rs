//! `cargo xtask image`: container images, written without a container engine.

pub mod archive;
pub mod catalog;
pub mod layer;
pub mod libraries;
pub mod reference;
mod static_build;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;

use crate::command;

pub use archive::{Config, write};
pub use layer::Content;

/// The images to write.
#[derive(Args)]
pub struct Arguments {
    /// Where to write agent.tar and control.tar.
    #[arg(long, value_name = "DIR", default_value = "target/images")]
    out: PathBuf,
    /// Write also the images for tests: http-echo.tar, tools.tar, peer.tar, echo.tar.
    #[arg(long)]
    tests: bool,
}

/// Builds agent and control plane and writes their images.
pub fn run(arguments: &Arguments) -> Result<()> {
    let out = command::root().join(&arguments.out);
    let mesh = catalog::mesh()?;
    let mut written = vec![catalog::agent(&mesh, &out)?, catalog::control(&mesh, &out)?];
    if arguments.tests {
        written.extend([
            catalog::http_echo(&catalog::programs()?, &out)?,
            catalog::tools(&out)?,
            catalog::peer(&out)?,
            catalog::echo(&out)?,
        ]);
    }
    for image in &written {
        println!("{:<44} {:>6.1} MB  {}  {}", image.name, megabytes(&image.file)?, image.digest, image.file.display());
    }
    println!("load them with `docker load -i`, `ctr images import`, `kind load image-archive` or `cargo xtask cluster load`");
    Ok(())
}

/// An image's archive on disk.
#[derive(Clone, Debug)]
pub struct Archive {
    /// The image's name and tag.
    pub name: String,
    /// Its manifest's digest.
    pub digest: String,
    /// The archive.
    pub file: PathBuf,
}

fn megabytes(file: &Path) -> Result<f64> {
    #[expect(clippy::cast_precision_loss, reason = "for a person's eyes")]
    let bytes = fs::metadata(file).with_context(|| format!("looking at {}", file.display()))?.len() as f64;
    Ok(bytes / 1e6)
}
