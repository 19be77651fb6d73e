//! Generates the protobuf code from `proto/`, and builds the BPF object (see `bpf_object`).

#[path = "build/bpf_object.rs"]
mod bpf_object;

fn main() -> anyhow::Result<()> {
    println!("cargo:rerun-if-changed=../proto");
    prost_build::Config::new().compile_protos(&["../proto/ocserv.proto"], &["../proto"])?;
    // Serialize: what --json prints is the API's own records
    tonic_prost_build::configure()
        .type_attribute(".", "#[derive(serde::Serialize)]")
        .compile_protos(&["../proto/enforcer.proto"], &["../proto"])?;
    bpf_object::build()
}
