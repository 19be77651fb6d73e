//! Debian packages: which are missing, and how they are installed without starting a service.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use nix::unistd::geteuid;

use crate::setup::logged;

/// Name, and what it is for.
pub const WANTED: [(&str, &str); 27] = [
    ("rustc-web", "the rustc that goes with the next one"),
    ("libstd-rust-web-dev-bpf", "core for the BPF target, already built"),
    ("llvm-22-dev", "bpf-linker is linked to it"),
    ("libpolly-22-dev", "likewise"),
    ("protobuf-compiler", "generates code from proto/"),
    ("libprotobuf-dev", "protobuf's own definitions, which etcd's are made with"),
    ("ocserv", "the server under test, as Debian has it"),
    ("openconnect", "its clients"),
    ("openvpn", "another VPN's server and clients: its session ids"),
    ("debootstrap", "fetches the servers and clients of newer Debians"),
    ("iproute2", "the tests' networks"),
    ("nftables", "likewise: NAT"),
    ("haproxy", "a server behind a proxy"),
    ("iptables", "ocserv's own firewall script calls it"),
    ("iputils-ping", "a person's look into the lab"),
    ("systemd", "judges the unit, and runs it in a container"),
    ("sqlite3", "looks at the state as an administrator does"),
    ("bpftool", "a person's look into the kernel"),
    ("xdp-tools", "somebody else's XDP programs: xdp-filter"),
    ("chromium", "the browser tests: the browser"),
    ("nodejs", "the browser tests: drives it; and an identity provider"),
    (NPM, "fetches what runs on it"),
    ("nginx", "the browser tests: an access gateway that has the fault; and measured beside us"),
    ("etcd-server", "several gateways: what they tell each other stands there"),
    ("etcd-client", "likewise: etcdctl, an administrator's hand"),
    ("libfaketime", "likewise: a gateway whose clock is wrong"),
    ("python3-venv", "the browser tests: Django and Jupyter"),
];

/// A package of Debian's; other packages of nodejs have that program in them, and it cannot be beside those.
const NPM: &str = "npm";

/// What `cargo xtask bench` needs besides.
pub const MEASURED: [(&str, &str); 3] = [
    ("ipset", "measured beside us"),
    ("ethtool", "sets up the devices that are measured"),
    ("wrk", "asks the web gateway and nginx as fast as they answer"),
];

/// Whether this system has Debian's packages.
pub fn is_debian() -> bool {
    Path::new("/usr/bin/dpkg-query").exists() && Path::new("/usr/bin/apt-get").exists()
}

/// Those packages that are not installed; quick.
pub fn missing(wanted: &[(&'static str, &str)]) -> Result<Vec<&'static str>> {
    let mut missing = Vec::new();
    let mut query = Command::new("dpkg-query");
    query.args(["-W", "-f", "${db:Status-Status} ${Package}\n"]).args(wanted.iter().map(|(name, _)| name));
    // it exits with 1 when it does not know one of them; those are not in its output
    let output = query.output().context("dpkg-query")?;
    let text = String::from_utf8_lossy(&output.stdout);
    for (name, _) in wanted {
        let other = *name == NPM && Path::new("/usr/bin/npm").exists();
        if !other && !text.lines().any(|line| line == format!("installed {name}")) {
            missing.push(*name);
        }
    }
    Ok(missing)
}

/// Installs packages. No service starts: a tester's machine is no VPN server.
pub fn install(packages: &[&str]) -> Result<()> {
    if !geteuid().is_root() {
        bail!("missing packages; as root: apt-get update && apt-get install {}", packages.join(" "));
    }
    let _quiet = NoServices::new()?;
    let apt = |arguments: &[&str]| {
        let mut apt = Command::new("apt-get");
        apt.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
        apt
    };
    logged("apt-get update", apt(&["-q", "update"]))?;
    let mut arguments = vec!["-q", "-y", "--no-install-recommends", "install"];
    arguments.extend(packages);
    logged(&format!("apt-get install {}", packages.join(" ")), apt(&arguments))
}

/// While it lives, packages' scripts start nothing.
struct NoServices {
    ours: Option<PathBuf>,
}

impl NoServices {
    fn new() -> Result<Self> {
        let path = Path::new("/usr/sbin/policy-rc.d");
        if path.exists() {
            return Ok(Self { ours: None });
        }
        fs::write(path, "#!/bin/sh\nexit 101\n").context("policy-rc.d")?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).context("policy-rc.d")?;
        Ok(Self { ours: Some(path.to_owned()) })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Some(path) = &self.ours
            && let Err(error) = fs::remove_file(path)
        {
            eprintln!("xtask: {} stays: {error}", path.display());
        }
    }
}
