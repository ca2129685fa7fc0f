//! Generates the gRPC code. The compiler of the `.proto` files is a Rust library: no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(["istio/v1/auth/ca.proto", "nodemesh/v1/budgets.proto", "nodemesh/v1/keys.proto"], ["proto"])?;
    tonic_prost_build::configure().codec_path("crate::codec::Codec").emit_rerun_if_changed(false).compile_fds(files)?;
    Ok(())
}
