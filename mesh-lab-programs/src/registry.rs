//! The part of the OCI distribution API that pulls images, over a directory: `blobs/sha256/<hex>` and
//! `names/<registry>/<repository>/<tag>`, the file of a tag holding the digest of its manifest.
//!
//! containerd asks a mirror for any registry's images with the query `ns=<registry>`.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use serde_json::json;

use crate::server::Body;

/// What a request asks for.
#[derive(PartialEq, Eq, Debug)]
enum Asked {
    /// Whether this is a registry.
    Base,
    /// The manifest of a tag: the file that holds its digest.
    Tag(PathBuf),
    /// A manifest by digest (hex).
    Manifest(String),
    /// Another blob by digest (hex).
    Blob(String),
}

/// Answers a request from the directory.
pub fn answer(directory: &Path, method: &Method, path: &str, query: Option<&str>) -> Response<Body> {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return refusal(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "this registry only serves");
    }
    let Some(asked) = parse(path, query.unwrap_or_default()) else {
        return refusal(StatusCode::NOT_FOUND, "NAME_INVALID", "no such path");
    };
    let (hex, is_manifest) = match asked {
        Asked::Base => return reply(StatusCode::OK, "application/json", Bytes::from_static(b"{}")),
        Asked::Tag(file) => {
            let Some(hex) = std::fs::read_to_string(directory.join("names").join(file)).ok().and_then(|digest| hex(digest.trim())) else {
                return refusal(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", "no image of this name was loaded into the cluster");
            };
            (hex, true)
        }
        Asked::Manifest(hex) => (hex, true),
        Asked::Blob(hex) => (hex, false),
    };
    let Ok(bytes) = std::fs::read(directory.join("blobs/sha256").join(&hex)) else {
        return refusal(StatusCode::NOT_FOUND, if is_manifest { "MANIFEST_UNKNOWN" } else { "BLOB_UNKNOWN" }, "no such digest");
    };
    let kind = if is_manifest { media_type(&bytes) } else { "application/octet-stream".to_owned() };
    // hyper sends a HEAD's headers, with this length, and not the body.
    let mut response = reply(StatusCode::OK, &kind, Bytes::from(bytes));
    if let Ok(digest) = HeaderValue::from_str(&format!("sha256:{hex}")) {
        response.headers_mut().insert("docker-content-digest", digest);
    }
    response
}

fn parse(path: &str, query: &str) -> Option<Asked> {
    let rest = path.strip_prefix("/v2/")?;
    if rest.is_empty() {
        return Some(Asked::Base);
    }
    let (rest, last) = rest.rsplit_once('/')?;
    if let Some(repository) = rest.strip_suffix("/manifests") {
        if last.contains(':') {
            return hex(last).map(Asked::Manifest);
        }
        let registry = query.split('&').find_map(|pair| pair.strip_prefix("ns=")).unwrap_or("docker.io").replace("%3A", ":");
        let good = |text: &str| {
            let part =
                |part: &str| !matches!(part, "" | "." | "..") && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-:".contains(c));
            text.split('/').all(part)
        };
        return (good(&registry) && good(repository) && good(last)).then(|| Asked::Tag([&registry, repository, last].iter().collect()));
    }
    rest.ends_with("/blobs").then(|| hex(last).map(Asked::Blob))?
}

/// The digits of a digest, if it is one.
fn hex(digest: &str) -> Option<String> {
    let hex = digest.strip_prefix("sha256:")?;
    (hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))).then(|| hex.to_owned())
}

/// The type that a manifest says it has.
fn media_type(manifest: &[u8]) -> String {
    let parsed: Option<serde_json::Value> = serde_json::from_slice(manifest).ok();
    let said = parsed.as_ref().and_then(|manifest| manifest.get("mediaType")).and_then(|kind| kind.as_str());
    said.unwrap_or("application/vnd.oci.image.manifest.v1+json").to_owned()
}

fn reply(status: StatusCode, kind: &str, bytes: Bytes) -> Response<Body> {
    let mut response = Response::new(Full::new(bytes).map_err(|never| match never {}).boxed());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert("docker-distribution-api-version", HeaderValue::from_static("registry/2.0"));
    if let Ok(kind) = HeaderValue::from_str(kind) {
        headers.insert(header::CONTENT_TYPE, kind);
    }
    response
}

fn refusal(status: StatusCode, code: &str, message: &str) -> Response<Body> {
    let body = json!({"errors": [{"code": code, "message": message}]}).to_string();
    reply(status, "application/json", Bytes::from(body))
}

#[cfg(test)]
mod tests {
    use super::{Asked, answer, parse};
    use http::{Method, StatusCode};
    use http_body_util::BodyExt as _;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn reads_the_distribution_apis_paths() {
        assert_eq!(parse("/v2/", ""), Some(Asked::Base));
        assert_eq!(
            parse("/v2/hashicorp/http-echo/manifests/latest", "ns=docker.io"),
            Some(Asked::Tag("docker.io/hashicorp/http-echo/latest".into()))
        );
        assert_eq!(parse("/v2/a/manifests/1", "ns=localhost%3A5000"), Some(Asked::Tag("localhost:5000/a/1".into())));
        assert_eq!(parse(&format!("/v2/a/b/blobs/sha256:{HEX}"), ""), Some(Asked::Blob(HEX.to_owned())));
        assert_eq!(parse(&format!("/v2/a/manifests/sha256:{HEX}"), ""), Some(Asked::Manifest(HEX.to_owned())));
    }

    #[test]
    fn no_path_leads_out_of_the_directory() {
        for path in
            ["/v2/../../etc/manifests/passwd", "/v2/a/manifests/..", "/v2/a/blobs/sha256:../../x", "/v2/a//b/manifests/1", "/etc/passwd"]
        {
            assert_eq!(parse(path, ""), None, "{path}");
        }
        assert_eq!(parse("/v2/a/manifests/1", "ns=../.."), None);
    }

    #[tokio::test]
    async fn serves_a_manifest_with_its_type_and_digest() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
        std::fs::create_dir_all(dir.path().join("names/docker.io/a")).unwrap();
        std::fs::write(dir.path().join("names/docker.io/a/1"), format!("sha256:{HEX}")).unwrap();
        std::fs::write(dir.path().join("blobs/sha256").join(HEX), r#"{"mediaType":"application/x"}"#).unwrap();
        let response = answer(dir.path(), &Method::GET, "/v2/a/manifests/1", Some("ns=docker.io"));
        assert_eq!(response.headers()["content-type"], "application/x");
        assert_eq!(response.headers()["docker-content-digest"], format!("sha256:{HEX}"));
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), r#"{"mediaType":"application/x"}"#);

        let missing = answer(dir.path(), &Method::GET, "/v2/a/manifests/2", None);
        assert_eq!(missing.status(), StatusCode::NOT_FOUND);
        assert_eq!(answer(dir.path(), &Method::PUT, "/v2/a/manifests/1", None).status(), StatusCode::METHOD_NOT_ALLOWED);
    }
}
