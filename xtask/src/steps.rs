//! Running commands.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};

/// The workspace.
pub fn root() -> PathBuf {
    let manifest =
        std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let manifest = PathBuf::from(manifest);
    manifest.parent().map(Path::to_owned).unwrap_or(manifest)
}

pub fn target() -> PathBuf {
    root().join("target")
}

pub fn heading(text: &str) {
    println!("\n== {text}");
}

/// A command in the workspace, with the project's own tools on its PATH.
pub fn command(program: impl AsRef<OsStr>) -> Result<Command> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(target().join("tools/bin")).chain(std::env::split_paths(&path));
    let mut command = Command::new(program);
    command.current_dir(root()).env("PATH", std::env::join_paths(folders).context("PATH")?);
    Ok(command)
}

/// The cargo that runs us, which must succeed.
pub fn cargo<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = command(cargo)?;
    // cargo run tells us about ourselves; its children are not us
    for variable in ["CARGO_MANIFEST_DIR", "CARGO_PKG_NAME"] {
        command.env_remove(variable);
    }
    command.args(arguments);
    let said = shown(&command);
    let status = command.status().with_context(|| said.clone())?;
    if !status.success() {
        bail!("{said}: {status}");
    }
    Ok(())
}

/// Runs a command whose exit code becomes ours.
pub fn exit_code(command: &mut Command) -> Result<ExitCode> {
    let said = shown(command);
    let status = command.status().with_context(|| said.clone())?;
    match status.code() {
        Some(code) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(1))),
        None => bail!("{said}: {status}"),
    }
}

/// A command as one would type it.
pub fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}
