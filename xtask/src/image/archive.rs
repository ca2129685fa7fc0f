//! An image as one file that every loader reads: an OCI image layout with the list that `docker load` wants, as `docker save` writes it.

use std::fs;
use std::io::{BufWriter, Read, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

use super::Archive;
use super::layer::{self, File};
use super::reference::Reference;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// How a container of the image runs.
#[derive(Clone, Default, Debug)]
pub struct Config {
    /// Program and first arguments.
    pub entrypoint: Vec<String>,
    /// More arguments, which a pod's `args` replace.
    pub arguments: Vec<String>,
    /// Variables.
    pub environment: Vec<(String, String)>,
    /// Number of the user and group; root if none.
    pub user: Option<u32>,
    /// Labels of the image.
    pub labels: Vec<(String, String)>,
}

/// Writes an image to `out`. The same files and settings give the same bytes.
///
/// # Errors
/// A file can't be read, the name is no name, or the archive can't be written.
pub fn write(name: &str, files: &[File], config: &Config, out: &Path) -> Result<Archive> {
    let reference = Reference::parse(name).with_context(|| format!("`{name}` is no name of an image"))?;
    let mut blob = Vec::new();
    layer::write(files, &mut blob).with_context(|| format!("image {name}"))?;
    let layer = Blob::new(blob);
    let config = Blob::new(render(config, &layer)?);
    let manifest = Blob::new(serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config.descriptor(CONFIG),
        "layers": [layer.descriptor(LAYER)],
    }))?);
    let described = json!({
        "mediaType": MANIFEST,
        "digest": manifest.digest(),
        "size": manifest.bytes.len(),
        "annotations": {
            "io.containerd.image.name": reference.to_string(),
            "org.opencontainers.image.ref.name": reference.tag,
        },
    });
    let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [described]});
    // docker shows a name without the registry that it assumes.
    let shown = reference.to_string();
    let shown = shown.strip_prefix("docker.io/library/").or_else(|| shown.strip_prefix("docker.io/")).unwrap_or(&shown);
    let list = json!([{"Config": config.path(), "RepoTags": [shown], "Layers": [layer.path()]}]);

    let parent = out.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
    let fresh = out.with_extension("new");
    let file = fs::File::create(&fresh).with_context(|| format!("writing {}", fresh.display()))?;
    let mut tar = Builder::new(BufWriter::new(file));
    put(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    put(&mut tar, "index.json", &serde_json::to_vec(&index)?)?;
    put(&mut tar, "manifest.json", &serde_json::to_vec(&list)?)?;
    for blob in [&config, &manifest, &layer] {
        put(&mut tar, &blob.path(), &blob.bytes)?;
    }
    let mut file = tar.into_inner().with_context(|| format!("writing {}", fresh.display()))?;
    file.flush().with_context(|| format!("writing {}", fresh.display()))?;
    fs::rename(&fresh, out).with_context(|| format!("replacing {}", out.display()))?;
    Ok(Archive { name: shown.to_owned(), digest: manifest.digest(), file: out.to_owned() })
}

/// OCI's image configuration.
fn render(config: &Config, layer: &Blob) -> Result<Vec<u8>> {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => bail!("no images for {other}"),
    };
    let labels: serde_json::Map<String, serde_json::Value> =
        config.labels.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect();
    let environment: Vec<String> = config.environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let user = config.user.map(|user| format!("{user}:{user}")).unwrap_or_default();
    let run = json!({
        "User": user,
        "Entrypoint": config.entrypoint,
        "Cmd": config.arguments,
        "Env": environment,
        "WorkingDir": "/",
        "Labels": labels,
    });
    let whole = json!({
        "architecture": architecture,
        "os": "linux",
        "config": run,
        "rootfs": {"type": "layers", "diff_ids": [layer.digest()]},
        "history": [{"created_by": "cargo xtask image"}],
    });
    serde_json::to_vec(&whole).context("the image's configuration")
}

struct Blob {
    hex: String,
    bytes: Vec<u8>,
}

impl Blob {
    fn new(bytes: Vec<u8>) -> Self {
        let hex = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        Self { hex, bytes }
    }

    fn digest(&self) -> String {
        format!("sha256:{}", self.hex)
    }

    fn path(&self) -> String {
        format!("blobs/sha256/{}", self.hex)
    }

    fn descriptor(&self, media_type: &str) -> serde_json::Value {
        json!({"mediaType": media_type, "digest": self.digest(), "size": self.bytes.len()})
    }
}

fn put(tar: &mut Builder<impl Write>, path: &str, bytes: &[u8]) -> Result<()> {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(bytes.len() as u64);
    tar.append_data(&mut header, path, bytes).with_context(|| format!("writing {path}"))
}

/// An entry of `docker save`'s list.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Puts the images of an archive, ours or anyone's `docker save`, into a registry's directory: `blobs/sha256/<hex>`, and
/// `names/<registry>/<repository>/<tag>` that holds a manifest's digest. Returns the names.
///
/// # Errors
/// The archive has no `manifest.json`, names a file that it lacks, or has no name.
pub fn publish(archive: &Path, registry: &Path) -> Result<Vec<String>> {
    let blobs = registry.join("blobs/sha256");
    fs::create_dir_all(&blobs).with_context(|| format!("making {}", blobs.display()))?;
    let mut stored = std::collections::BTreeMap::new();
    let mut list: Option<Vec<Listed>> = None;
    let file = fs::File::open(archive).with_context(|| format!("opening {}", archive.display()))?;
    let mut tar = tar::Archive::new(std::io::BufReader::new(file));
    for entry in tar.entries().with_context(|| format!("reading {}", archive.display()))? {
        let mut entry = entry.with_context(|| format!("reading {}", archive.display()))?;
        if entry.header().entry_type() != EntryType::Regular {
            continue;
        }
        let path = entry.path().context("a path in the archive")?.to_string_lossy().into_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).with_context(|| format!("reading {path} of {}", archive.display()))?;
        if path == "manifest.json" {
            list = Some(serde_json::from_slice(&bytes).with_context(|| format!("manifest.json of {}", archive.display()))?);
        } else {
            let gzipped = bytes.starts_with(&[0x1f, 0x8b]);
            let blob = Blob::new(bytes);
            store(&blobs.join(&blob.hex), &blob.bytes)?;
            stored.insert(path, (blob.digest(), blob.bytes.len(), gzipped));
        }
    }
    let Some(list) = list else {
        bail!("{} has no manifest.json: is it an image's archive, as `docker save` writes it?", archive.display())
    };
    let mut names = Vec::new();
    for image in list {
        let find =
            |path: &String| stored.get(path).with_context(|| format!("{} lacks {path}, which its manifest.json names", archive.display()));
        let (digest, size, _) = find(&image.config)?;
        let mut layers = Vec::new();
        for path in &image.layers {
            let (digest, size, gzipped) = find(path)?;
            let media_type = format!("{LAYER}{}", if *gzipped { "+gzip" } else { "" });
            layers.push(json!({"mediaType": media_type, "digest": digest, "size": size}));
        }
        let manifest = Blob::new(serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": digest, "size": size},
            "layers": layers,
        }))?);
        store(&blobs.join(&manifest.hex), &manifest.bytes)?;
        for name in image.repo_tags.unwrap_or_default() {
            let reference = Reference::parse(&name).with_context(|| format!("`{name}` is no name of an image"))?;
            let place = registry.join("names").join(&reference.registry).join(&reference.repository);
            fs::create_dir_all(&place).with_context(|| format!("making {}", place.display()))?;
            store(&place.join(&reference.tag), manifest.digest().as_bytes())?;
            names.push(reference.to_string());
        }
    }
    if names.is_empty() {
        bail!("{} holds no image with a name", archive.display());
    }
    Ok(names)
}

/// A reader sees the whole file or none.
fn store(file: &Path, bytes: &[u8]) -> Result<()> {
    let mut fresh = file.as_os_str().to_owned();
    fresh.push(".new");
    fs::write(&fresh, bytes).with_context(|| format!("writing {}", file.display()))?;
    fs::rename(&fresh, file).with_context(|| format!("replacing {}", file.display()))
}

#[cfg(test)]
mod tests;
