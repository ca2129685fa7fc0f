//! Calls of gRPC in the benchmark: the message, one call to prove a path, and the path through the mesh.

use std::path::{Path as File, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_lab::Pod;
use mesh_lab::manifests::{authorization_policy, service};
use serde_json::{Value, json};

use super::path::{GRPC_METHOD, GRPC_PORT, GRPC_PREFIX};

/// Address of the Service whose calls are routed.
pub const ADDRESS: &str = "10.99.0.2";
/// A message of eight bytes behind gRPC's prefix: not compressed, and its length.
const MESSAGE: &[u8; 13] = b"\0\0\0\0\x08\x0a\x06answer";

/// Writes the message, which is the request's and the answer's alike, into a directory.
pub fn write_message(directory: &File) -> Result<PathBuf> {
    let file = directory.join("message.bin");
    std::fs::write(&file, MESSAGE).with_context(|| format!("writing {}", file.display()))?;
    Ok(file)
}

/// nginx's part of the configuration that answers each call with the message in the directory. A call is a POST, which nginx does not give
/// files for: the error that is becomes the answer.
pub fn nginx(directory: &File) -> String {
    format!(
        "server {{ listen 0.0.0.0:{GRPC_PORT} http2 backlog=4096; root {}; default_type application/grpc; types {{}}\n\
         open_file_cache max=4; add_trailer grpc-status 0; error_page 405 =200 /message.bin;\n\
         location / {{ try_files /message.bin =404; }} }}\n",
        directory.display()
    )
}

/// Makes one call as gRPC's clients do and gives back the status in its trailers, or its headers.
pub fn call(client: &Pod, authority: &str, method: &str) -> Result<String> {
    let url = format!("http://{authority}{method}");
    let words = ["nghttp", "-nv", "--timeout=5", "-H", ":method: POST", "-H", "content-type: application/grpc", "-H", "te: trailers", &url];
    let finished = client.exec(&words, Duration::from_secs(10))?;
    let said = finished.success().with_context(|| url.clone())?;
    let status = said.lines().find_map(|line| line.split_once("recv (stream_id=")?.1.split_once(") grpc-status: "));
    let status = status.map(|(_, status)| status.trim().to_owned());
    status.with_context(|| format!("{url} was answered without a status of gRPC: {said}"))
}

/// The Service, the route of its calls, and the rule about who may make them.
pub fn objects(namespace: &str, server: &str, principals: &Value) -> [Value; 3] {
    let name = GRPC_METHOD.trim_start_matches('/').split('/').next().unwrap_or_default();
    let route = json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "GRPCRoute",
        "metadata": { "namespace": namespace, "name": "calls" },
        "spec": {
            "parentRefs": [{ "group": "", "kind": "Service", "name": "calls" }],
            "rules": [{ "matches": [{ "method": { "service": name } }], "backendRefs": [{ "name": "calls", "port": 80 }] }],
        },
    });
    let rules = json!([{
        "from": [{ "source": { "principals": principals } }],
        "to": [{ "operation": { "methods": ["POST"], "paths": [format!("{GRPC_PREFIX}*")] } }],
    }]);
    [
        service(namespace, "calls", &[ADDRESS], server, &[("grpc", 80, GRPC_PORT)]),
        route,
        authorization_policy(namespace, "calls", &[("app", server)], "ALLOW", &rules),
    ]
}

/// Proves that calls are routed and judged one by one: the allowed client is answered, another is not, and no other service is there.
pub fn prove(client: &Pod, stranger: &Pod) -> Result<()> {
    for (who, method, wanted) in [(client, GRPC_METHOD, "0"), (stranger, GRPC_METHOD, "7"), (client, "/other.Service/Unary", "12")] {
        let status = call(who, &format!("{ADDRESS}:80"), method)?;
        ensure!(status == wanted, "{method} by {} was answered with status {status} of gRPC, not {wanted}", who.full_name());
    }
    Ok(())
}
