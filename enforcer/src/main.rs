//! One binary under three names: `enforcer`, `enforcer-gate` (ocserv's script, which gets no arguments) and
//! `occtl`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// See the workspace's Cargo.toml.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let mut args: Vec<OsString> = std::env::args_os().collect();
    let name = args
        .first()
        .map(|name| Path::new(name).file_name().unwrap_or_default().to_owned())
        .unwrap_or_default();
    match name.to_str() {
        Some("enforcer-gate") => {
            let config = std::env::var_os("ENFORCER_CONFIG").map(PathBuf::from);
            enforcer::gate::run(config.as_deref()).into()
        }
        Some("occtl") => enforcer::cli::run_as_occtl(args.split_off(1)),
        _ => enforcer::cli::main(args),
    }
}
