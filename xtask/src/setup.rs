//! What building and testing need: packages, bpf-linker, the trees of newer Debians for the lab, and the browser tests' own.

mod web;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, bail};
use nix::unistd::geteuid;

use crate::packages;
use crate::steps::{shown, target};

const BPF_LINKER: &str = "0.13.0";
const LLVM: &str = "/usr/lib/llvm-22";
/// The Debians whose ocserv and openconnect the lab runs beside the host's own.
const SUITES: [&str; 2] = ["trixie", "sid"];
/// nftables and iptables: ocserv's own firewall script calls the one or the other.
const IN_TREES: &str = "ocserv,openconnect,iproute2,nftables,iptables,ca-certificates";

/// Idempotent; a few milliseconds when nothing is missing.
pub fn setup() -> Result<()> {
    let start = Instant::now();
    let mut did = false;
    if packages::is_debian() {
        let missing = packages::missing(&packages::WANTED)?;
        if !missing.is_empty() {
            packages::install(&missing)?;
            did = true;
        }
    } else {
        elsewhere()?;
    }
    let mut jobs: Vec<(String, Job)> = Vec::new();
    if !has_linker() {
        jobs.push(("bpf-linker".to_owned(), Box::new(install_linker)));
    }
    for suite in SUITES {
        if !has_tree(suite) {
            jobs.push((format!("a {suite} tree"), Box::new(move || make_tree(suite))));
        }
    }
    jobs.extend(web::missing()?);
    did |= !jobs.is_empty();
    together(jobs)?;
    if did {
        println!("setup: done in {} s", start.elapsed().as_secs());
    }
    Ok(())
}

type Job = Box<dyn FnOnce() -> Result<()> + Send>;

/// Runs all jobs at once, and fails if any of them does, after all have ended.
fn together(jobs: Vec<(String, Job)>) -> Result<()> {
    let threads: Vec<_> = jobs.into_iter().map(|(name, job)| (name, thread::spawn(job))).collect();
    let mut failed = Vec::new();
    for (name, thread) in threads {
        let result = thread.join().unwrap_or_else(|_| Err(anyhow!("it panicked")));
        if let Err(error) = result {
            failed.push(format!("{name}: {error:#}"));
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("{}", failed.join("\n")) }
}

/// Not Debian: says what is needed; fails if the essential parts are not there.
fn elsewhere() -> Result<()> {
    let programs = [
        "protoc",
        "ocserv",
        "openconnect",
        "openvpn",
        "debootstrap",
        "ip",
        "nft",
        "haproxy",
        "openssl",
        "systemd-analyze",
        "chromium",
        "node",
        "npm",
        "nginx",
        "etcd",
        "etcdctl",
    ];
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> =
        std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from)).collect();
    let there = |program: &str| folders.iter().any(|folder| folder.join(program).exists());
    let missing: Vec<_> = programs.into_iter().filter(|program| !there(program)).collect();
    let no_linker = !has_linker() && !there("bpf-linker");
    if missing.is_empty() && !no_linker {
        return Ok(());
    }
    let mut text =
        String::from("this is not Debian: install by hand what does the same as these packages of it:\n");
    for (name, purpose) in packages::WANTED {
        text.push_str(&format!("  {name:24} {purpose}\n"));
    }
    text.push_str("(instead of rustc-web and its BPF core: rustup's nightly with the component rust-src)\n");
    bail!("{text}not found: {}{}", missing.join(" "), if no_linker { " bpf-linker" } else { "" });
}

fn has_linker() -> bool {
    let tools = target().join("tools");
    let recorded = fs::read_to_string(tools.join(".crates.toml")).unwrap_or_default();
    tools.join("bin/bpf-linker").exists() && recorded.contains(&format!("bpf-linker {BPF_LINKER} "))
}

fn install_linker() -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut install = Command::new(cargo);
    install.args(["install", "bpf-linker", "--version", BPF_LINKER]);
    install.args(["--no-default-features", "--features", "llvm-22", "--root"]).arg(target().join("tools"));
    // without LLVM_PREFIX it looks in the wrong folder and fails to link
    if Path::new(LLVM).exists() {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::iter::once(Path::new(LLVM).join("bin")).chain(std::env::split_paths(&path));
        install.env("LLVM_PREFIX", LLVM).env("PATH", std::env::join_paths(folders).context("PATH")?);
    }
    logged(&format!("cargo install bpf-linker {BPF_LINKER}"), install)
}

fn tree(suite: &str) -> PathBuf {
    target().join("lab/roots").join(suite)
}

/// Whether the tree is there, with all that is wanted in it now.
fn has_tree(suite: &str) -> bool {
    let tree = tree(suite);
    tree.exists() && fs::read_to_string(packages_of(&tree)).is_ok_and(|packages| packages == IN_TREES)
}

/// The file in a tree that says what it was made with.
fn packages_of(tree: &Path) -> PathBuf {
    tree.join("made-with")
}

/// Makes a tree under another name, and renames it when it is complete: an interrupted one is made anew.
fn make_tree(suite: &str) -> Result<()> {
    if !geteuid().is_root() {
        bail!("the lab needs root: run cargo xtask setup as root");
    }
    let done = tree(suite);
    let roots = done.parent().context("a folder")?.to_owned();
    fs::create_dir_all(&roots).with_context(|| roots.display().to_string())?;
    let unfinished = roots.join(format!("{suite}.unfinished"));
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).with_context(|| unfinished.display().to_string())?;
    }
    let mut bootstrap = Command::new("debootstrap");
    bootstrap.args(["--variant=minbase", &format!("--include={IN_TREES}"), suite]).arg(&unfinished);
    logged(&format!("debootstrap {suite}"), bootstrap)?;
    // the fetched archives are of no further use
    let _ = fs::remove_dir_all(unfinished.join("var/cache/apt/archives"));
    fs::write(packages_of(&unfinished), IN_TREES).context("the tree")?;
    if done.exists() {
        // an older one, made with less
        fs::remove_dir_all(&done).with_context(|| done.display().to_string())?;
    }
    fs::rename(&unfinished, &done).with_context(|| done.display().to_string())
}

/// Runs a command with its output in a file; says when it starts and how long it took, and on failure its last
/// lines.
pub fn logged(what: &str, mut command: Command) -> Result<()> {
    let name: String = what.chars().map(|c| if c.is_alphanumeric() { c } else { '-' }).take(40).collect();
    let folder = target().join("lab");
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let path = folder.join(format!("setup-{name}.log"));
    let log = File::create(&path).with_context(|| path.display().to_string())?;
    println!("setup: {what} …");
    let start = Instant::now();
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let status = command.status().with_context(|| shown(&command))?;
    if status.success() {
        println!("setup: {what}: {} s", start.elapsed().as_secs());
        return Ok(());
    }
    let text = fs::read(&path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    let tail = lines.get(lines.len().saturating_sub(20)..).unwrap_or_default().join("\n");
    bail!("{what}: {status}\n{tail}\n(all of it in {})", path.display())
}
