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

/// The provider, over TLS.
pub struct Provider {
    process: Process,
    papers: Papers,
    host: String,
    pub port: u16,
}

/// Where it is, and where it sends others.
pub struct Place<'a> {
    /// IPv4 and port, 0 for a free one; and the host as which it is asked.
    pub address: &'a str,
    pub host: &'a str,
    /// Where browsers are sent back to.
    pub back: &'a str,
    /// Where logout tokens go; `CLIENT` in it is the client's name.
    pub backchannel: &'a str,
    pub claims: Claims,
}

/// Where it puts the user's name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Claims {
    IdToken,
    Userinfo,
}

impl Provider {
    /// At `localhost`. `backchannel`: the URL below which each client has the place for its logout tokens.
    pub fn start(backchannel: &str, claims: Claims) -> Self {
        let backchannel = format!("{backchannel}/CLIENT");
        let place = Place {
            address: "127.0.0.1:0",
            host: "localhost",
            back: BACK,
            backchannel: &backchannel,
            claims,
        };
        Self::run(Command::new("node"), Papers::new("localhost"), &place)
    }

    /// `node`: that program, or what runs it with the arguments that follow.
    pub fn run(mut node: Command, papers: Papers, place: &Place<'_>) -> Self {
        let modules = target_folder().join("lab/web/oidc/node_modules");
        assert!(modules.exists(), "{} is missing: cargo xtask setup", modules.display());
        node.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("oidc/provider.mjs")).arg(modules);
        node.arg(papers.file("key.pem")).arg(papers.file("certificate.pem"));
        node.args([place.address, place.host, place.back, place.backchannel]);
        node.arg(if place.claims == Claims::IdToken { "id_token" } else { "userinfo" });
        let process = Process::start("oidc-provider", node, &papers.file("log"), None);
        let port = eventually("the provider listens", BOUND, || {
            let log = process.log();
            log.lines().find_map(|line| line.strip_prefix("listening on "))?.parse().ok()
        });
        Self { process, papers, host: place.host.to_owned(), port }
    }

    pub fn issuer(&self) -> String {
        format!("https://{}:{}", self.host, self.port)
    }

    pub fn roots(&self) -> PathBuf {
        self.papers.file("ca.pem")
    }

    /// Its own, which those have signed.
    pub fn certificate(&self) -> PathBuf {
        self.papers.file("certificate.pem")
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

/// An authority, and what it has signed for the provider, as files; and what else is about it.
pub struct Papers(TempDir);

impl Papers {
    pub fn new(host: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "the test's authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let names = vec![host.to_owned()];
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &authority).unwrap();
        let papers = Self(TempDir::new().unwrap());
        for (file, text) in [
            ("ca.pem", authority.pem()),
            ("certificate.pem", certificate.pem()),
            ("key.pem", key.serialize_pem()),
        ] {
            std::fs::write(papers.file(file), text).unwrap();
        }
        papers
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}
