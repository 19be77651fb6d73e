//! A real identity provider: `oidc-provider` from npm, run by node.

use std::path::{Path, PathBuf};
use std::process::Command;

use enforcer_tests::Process;
use enforcer_tests::era::target_folder;
use enforcer_tests::process::{BOUND, eventually};
use nix::sys::signal::Signal;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;

/// Where it sends browsers back to, and where after a logout.
pub const BACK: &str = "https://app.example/back";
pub const GONE: &str = "https://app.example/gone";

/// The provider, at `localhost` over TLS.
pub struct Provider {
    process: Process,
    folder: TempDir,
    pub port: u16,
}

/// Where it puts the user's name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Claims {
    IdToken,
    Userinfo,
}

impl Provider {
    /// `backchannel`: the URL below which each client has the place for its logout tokens.
    pub fn start(backchannel: &str, claims: Claims) -> Self {
        let folder = TempDir::new().unwrap();
        papers(folder.path());
        let modules = target_folder().join("lab/web/oidc/node_modules");
        assert!(modules.exists(), "{} is missing: cargo xtask setup", modules.display());
        let mut node = Command::new("node");
        node.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("oidc/provider.mjs")).arg(modules);
        node.arg(folder.path().join("key.pem")).arg(folder.path().join("certificate.pem"));
        node.args(["127.0.0.1", "localhost", BACK, &format!("{backchannel}/CLIENT")]);
        node.arg(if claims == Claims::IdToken { "id_token" } else { "userinfo" });
        let process = Process::start("oidc-provider", node, &folder.path().join("log"), None);
        let port = eventually("the provider listens", BOUND, || {
            let log = process.log();
            log.lines().find_map(|line| line.strip_prefix("listening on "))?.parse().ok()
        });
        Self { process, folder, port }
    }

    pub fn issuer(&self) -> String {
        format!("https://localhost:{}", self.port)
    }

    pub fn roots(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// From now on it signs with other keys, and knows no more of those before.
    pub fn rotate(&self) {
        self.process.signal(Signal::SIGHUP);
        eventually("other keys", BOUND, || self.log().contains("rotated").then_some(()));
    }

    pub fn stop(&mut self) {
        self.process.stop();
    }

    pub fn log(&self) -> String {
        self.process.log()
    }

    /// How often it was asked for that.
    pub fn asked(&self, request: &str) -> usize {
        self.log().lines().filter(|line| *line == request).count()
    }
}

/// An authority, and what it has signed for `localhost`.
fn papers(folder: &Path) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, "the test's authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let names = vec!["localhost".to_owned()];
    let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &authority).unwrap();
    for (file, text) in [
        ("ca.pem", authority.pem()),
        ("certificate.pem", certificate.pem()),
        ("key.pem", key.serialize_pem()),
    ] {
        std::fs::write(folder.join(file), text).unwrap();
    }
}
