//! Generates the protobuf code from `proto/`, and builds the BPF object (see `bpf_object`).

#[path = "build/bpf_object.rs"]
mod bpf_object;

fn main() -> anyhow::Result<()> {
    println!("cargo:rerun-if-changed=../proto");
    prost_build::Config::new().compile_protos(&["../proto/ocserv.proto"], &["../proto"])?;
    bpf_object::build()
}
