use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::{Config, publish, write};
use crate::image::layer::File;

fn config() -> Config {
    Config {
        entrypoint: vec!["/server".to_owned()],
        arguments: vec!["--help".to_owned()],
        environment: vec![("A".to_owned(), "1".to_owned())],
        user: Some(65532),
        labels: vec![("l".to_owned(), "v".to_owned())],
    }
}

fn entries(archive: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut tar = tar::Archive::new(std::fs::File::open(archive).unwrap());
    tar.entries()
        .unwrap()
        .map(|entry| {
            let mut entry = entry.unwrap();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            (entry.path().unwrap().to_string_lossy().into_owned(), bytes)
        })
        .collect()
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn json(bytes: &[u8]) -> serde_json::Value {
    serde_json::from_slice(bytes).unwrap()
}

#[test]
fn every_digest_leads_to_a_blob_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let written = write("nodemesh/agent:1", &[File::data("/server", "x")], &config(), &dir.path().join("a.tar")).unwrap();
    let entries = entries(&written.file);
    let blob = |descriptor: &serde_json::Value| {
        let wanted = descriptor["digest"].as_str().unwrap();
        let bytes = &entries[&format!("blobs/{}", wanted.replace(':', "/"))];
        assert_eq!(digest(bytes), wanted);
        assert_eq!(descriptor["size"], bytes.len());
        bytes.clone()
    };
    let index = json(&entries["index.json"]);
    let described = &index["manifests"][0];
    assert_eq!(described["digest"], written.digest);
    assert_eq!(described["annotations"]["io.containerd.image.name"], "docker.io/nodemesh/agent:1");
    let manifest = json(&blob(described));
    let settings = json(&blob(&manifest["config"]));
    let layer = blob(&manifest["layers"][0]);
    assert_eq!(settings["rootfs"]["diff_ids"][0], digest(&layer));
    assert_eq!(settings["config"]["Entrypoint"][0], "/server");
    assert_eq!(settings["config"]["User"], "65532:65532");

    let list = json(&entries["manifest.json"]);
    assert_eq!(list[0]["RepoTags"][0], "nodemesh/agent:1");
    for path in [&list[0]["Config"], &list[0]["Layers"][0]] {
        assert!(entries.contains_key(path.as_str().unwrap()), "{path}");
    }
    assert_eq!(json(&entries["oci-layout"])["imageLayoutVersion"], "1.0.0");
}

#[test]
fn the_same_image_is_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str| {
        let written = write("a:1", &[File::data("/x", "x"), File::link("/y", "x")], &config(), &dir.path().join(name)).unwrap();
        std::fs::read(written.file).unwrap()
    };
    let first = write("1.tar");
    std::thread::sleep(std::time::Duration::from_millis(1100));
    assert_eq!(first, write("2.tar"));
}

#[test]
fn a_registry_finds_what_was_published() {
    let dir = tempfile::tempdir().unwrap();
    let written = write("hashicorp/http-echo", &[File::data("/x", "x")], &config(), &dir.path().join("a.tar")).unwrap();
    let registry = dir.path().join("registry");
    assert_eq!(publish(&written.file, &registry).unwrap(), ["docker.io/hashicorp/http-echo:latest"]);
    let found = std::fs::read_to_string(registry.join("names/docker.io/hashicorp/http-echo/latest")).unwrap();
    assert_eq!(found, written.digest, "the manifest is the archive's own");
    let manifest = std::fs::read(registry.join("blobs").join(found.replace(':', "/"))).unwrap();
    assert_eq!(digest(&manifest), found);
}

#[test]
fn an_archive_without_its_parts_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.tar");
    let mut tar = tar::Builder::new(std::fs::File::create(&file).unwrap());
    super::put(&mut tar, "manifest.json", br#"[{"Config":"c","RepoTags":["a:1"],"Layers":[]}]"#).unwrap();
    tar.into_inner().unwrap();
    let error = publish(&file, &dir.path().join("registry")).unwrap_err().to_string();
    assert!(error.contains("lacks c"), "{error}");
}
