//! Generates the protobuf code from `proto/`, and builds the BPF object (see `bpf_object`).

#[path = "build/bpf_object.rs"]
mod bpf_object;

use std::path::Path;

use anyhow::Context as _;

fn main() -> anyhow::Result<()> {
    println!("cargo:rerun-if-changed=../proto");
    prost_build::Config::new().compile_protos(&["../proto/ocserv.proto"], &["../proto"])?;
    // Serialize: what --json prints is the API's own records
    tonic_prost_build::configure()
        .type_attribute(".", "#[derive(serde::Serialize)]")
        .compile_protos(&["../proto/enforcer.proto"], &["../proto"])?;
    cluster()?;
    bpf_object::build()
}

/// The records of `proto/cluster.proto`, with their JSON. A field that is not known does not spoil a record.
fn cluster() -> anyhow::Result<()> {
    let out = std::env::var_os("OUT_DIR").context("cargo sets OUT_DIR")?;
    let described = Path::new(&out).join("cluster.bin");
    prost_build::Config::new()
        .file_descriptor_set_path(&described)
        .compile_protos(&["../proto/cluster.proto"], &["../proto"])?;
    pbjson_build::Builder::new()
        .register_descriptors(&std::fs::read(described)?)?
        .ignore_unknown_fields()
        .build(&[".enforcer.cluster.v1"])?;
    Ok(())
}
