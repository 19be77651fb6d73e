//! Builds the BPF object from `enforcer-ebpf` into OUT_DIR, for `dataplane` to embed.
//!
//! In this order, the first that is there wins:
//! 1. `ENFORCER_BPF_OBJECT`: a prebuilt object (packages, and machines without the toolchain).
//! 2. A rustc that brings `core` for the BPF target (Debian: `rustc-web` with `libstd-rust-web-dev-bpf`).
//! 3. rustup's nightly with `rust-src`, which builds `core` itself.
//!
//! `aya-build` knows only the third way: it removes RUSTC and overwrites the flags.
//!
//! The inner cargo has a target directory of its own (with the outer one it would wait for itself), and none of
//! the environment that the outer cargo, clippy or rust-analyzer have set for us.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// A prebuilt object, instead of building one.
const PREBUILT: &str = "ENFORCER_BPF_OBJECT";
/// The name under which `dataplane` includes it from OUT_DIR.
const OBJECT: &str = "enforcer.bpf.o";
/// The objects of the layouts 1 and 2, which the tests of their migration load. Empty with a prebuilt object: no such
/// test can run.
const OBJECTS_OF_OLD: [(&str, &str); 2] =
    [("programs,abi-1", "enforcer-abi-1.bpf.o"), ("programs,abi-2", "enforcer-abi-2.bpf.o")];
/// The limits that the measurements compare with (feature `bench`). Empty with a prebuilt object.
const OBJECT_BENCH: &str = "enforcer-bench.bpf.o";
const PROGRAMS: &str = "enforcer-ebpf";
/// What of the outer cargo's environment the inner one needs: where its registries are and how to get there.
const KEPT: [&str; 6] =
    ["CARGO_HOME", "CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTRIES_", "CARGO_REGISTRY_", "CARGO_SOURCE_"];

pub fn build() -> Result<()> {
    for path in ["../enforcer-ebpf/src", "../enforcer-ebpf/Cargo.toml", "../Cargo.toml", "../Cargo.lock"] {
        println!("cargo:rerun-if-changed={path}");
    }
    println!("cargo:rerun-if-env-changed={PREBUILT}");
    let out = PathBuf::from(variable("OUT_DIR")?);
    if let Some(prebuilt) = env::var_os(PREBUILT) {
        let prebuilt = PathBuf::from(prebuilt);
        println!("cargo:rerun-if-changed={}", prebuilt.display());
        fs::copy(&prebuilt, out.join(OBJECT))
            .with_context(|| format!("cannot copy {}", prebuilt.display()))?;
        for name in OBJECTS_OF_OLD.map(|(_, name)| name).into_iter().chain([OBJECT_BENCH]) {
            fs::write(out.join(name), "").context("cannot write to OUT_DIR")?;
        }
        return Ok(());
    }
    let bench = env::var_os("CARGO_FEATURE_BENCH").map(|_| ("programs,bench", OBJECT_BENCH));
    // ours last: cargo leaves it in place
    let objects = OBJECTS_OF_OLD.into_iter().chain(bench).chain([("programs", OBJECT)]);
    for (features, name) in objects {
        let object = compile(&out, features)?;
        fs::copy(&object, out.join(name)).with_context(|| format!("cannot copy {}", object.display()))?;
    }
    Ok(())
}

fn compile(out: &Path, features: &str) -> Result<PathBuf> {
    let target = match variable("CARGO_CFG_TARGET_ENDIAN")?.to_str() {
        Some("big") => "bpfeb-unknown-none",
        _ => "bpfel-unknown-none",
    };
    let workspace = PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join("..").canonicalize()?;
    let path = search_path(&workspace)?;
    if !on_path(&path, "bpf-linker") {
        bail!("bpf-linker is neither on PATH nor in target/tools/bin; {}", advice());
    }
    let target_dir = out.join("bpf");
    let mut cargo = if let Some(rustc) = rustc_with_core(&path, target) {
        let mut cargo = Command::new(variable("CARGO")?);
        clean(&mut cargo);
        // the BPF target is not a stable one; this lets a stable compiler build for it
        cargo.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1").arg("build");
        cargo
    } else if nightly_with_source() {
        let mut cargo = Command::new("rustup");
        clean(&mut cargo);
        cargo.args(["run", "nightly", "cargo", "build", "-Z", "build-std=core"]);
        cargo
    } else {
        bail!(
            "no compiler here has `core` for {target}, and there is no nightly with rust-src; {}",
            advice()
        );
    };
    let architecture = variable("CARGO_CFG_TARGET_ARCH")?;
    let mut flags = vec![
        format!("--cfg=bpf_target_arch=\"{}\"", architecture.to_string_lossy()),
        // the loader reads BTF, which is made from debug information
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        "-Clinker=bpf-linker".to_owned(),
        format!("--remap-path-prefix={}=.", workspace.display()),
    ];
    if let Some(home) = env::var_os("CARGO_HOME") {
        flags.push(format!("--remap-path-prefix={}=cargo", home.display()));
    }
    let status = cargo
        .args(["--release", "--locked", "--features", features, "--bin", PROGRAMS, "--target", target])
        .arg("--target-dir")
        .arg(&target_dir)
        .current_dir(workspace.join(PROGRAMS))
        .env("PATH", &path)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .status()
        .context("cannot run cargo for the BPF object")?;
    if !status.success() {
        bail!("the BPF object does not build (see above); if a tool is missing: {}", advice());
    }
    Ok(target_dir.join(target).join("release").join(PROGRAMS))
}

fn advice() -> String {
    format!("`cargo xtask setup` installs what is needed, or let {PREBUILT} name a prebuilt object")
}

fn variable(name: &str) -> Result<OsString> {
    env::var_os(name).with_context(|| format!("cargo has not set {name}"))
}

/// PATH, and after it the folder into which `cargo xtask setup` installs.
fn search_path(workspace: &Path) -> Result<OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    let tools = workspace.join("target").join("tools").join("bin");
    Ok(env::join_paths(env::split_paths(&path).chain([tools]))?)
}

fn on_path(path: &OsString, program: &str) -> bool {
    env::split_paths(path).any(|folder| folder.join(program).is_file())
}

/// The first rustc that brings a compiled `core` for the target.
fn rustc_with_core(path: &OsString, target: &str) -> Option<PathBuf> {
    let folders = env::split_paths(path).chain([PathBuf::from("/usr/bin")]);
    folders.map(|folder| folder.join("rustc")).filter(|rustc| rustc.is_file()).find(|rustc| {
        let mut query = Command::new(rustc);
        clean(&mut query);
        let answer = query.args(["--print", "target-libdir", "--target", target]).output();
        answer.ok().filter(|answer| answer.status.success()).is_some_and(|answer| {
            let folder = PathBuf::from(String::from_utf8_lossy(&answer.stdout).trim());
            fs::read_dir(folder).is_ok_and(|files| {
                files.flatten().any(|file| file.file_name().to_string_lossy().starts_with("libcore-"))
            })
        })
    })
}

fn nightly_with_source() -> bool {
    let mut query = Command::new("rustup");
    clean(&mut query);
    let answer = query.args(["run", "nightly", "rustc", "--print", "sysroot"]).output();
    answer.ok().filter(|answer| answer.status.success()).is_some_and(|answer| {
        let sysroot = PathBuf::from(String::from_utf8_lossy(&answer.stdout).trim());
        sysroot.join("lib/rustlib/src/rust/library/core").is_dir()
    })
}

/// Takes out what cargo, clippy and rust-analyzer have set for the outer build.
fn clean(command: &mut Command) {
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let cargo = text.starts_with("CARGO") && !KEPT.iter().any(|kept| text.starts_with(kept));
        let rustc =
            text.starts_with("RUSTC") || matches!(&*text, "RUSTFLAGS" | "RUSTDOCFLAGS" | "RUSTUP_TOOLCHAIN");
        let build =
            matches!(&*text, "MAKEFLAGS" | "MFLAGS" | "TARGET" | "HOST" | "PROFILE" | "OPT_LEVEL" | "DEBUG");
        if cargo || rustc || build {
            command.env_remove(&name);
        }
    }
}
