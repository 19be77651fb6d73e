//! The certificate of a gateway in the lab: it is its own authority.

use std::path::{Path, PathBuf};

use crate::process::{command, succeed};

/// `crt.pem` and `key.pem` in some folder.
pub struct Papers {
    folder: PathBuf,
}

impl Papers {
    /// Those that are in that folder.
    pub fn of(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// Makes them.
    pub fn new(folder: &Path, host: &str) -> Self {
        let new = Self::of(folder);
        let script = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN=web \
                      -addext \"subjectAltName=DNS:$0\" -keyout key.pem -out crt.pem 2>openssl.log";
        new.shell(&[script, host]);
        new
    }

    fn shell(&self, words: &[&str]) {
        let mut shell = command("sh", ["-c"]);
        shell.args(words).current_dir(&self.folder);
        succeed(shell, "");
    }

    /// PEM.
    pub fn certificate(&self) -> String {
        self.folder.join("crt.pem").display().to_string()
    }

    pub fn key(&self) -> String {
        self.folder.join("key.pem").display().to_string()
    }

    /// Base64 of the SHA-256 of the public key.
    pub fn pin(&self) -> String {
        pin_of(&self.folder.join("crt.pem"))
    }
}

/// Base64 of the SHA-256 of the public key in a certificate (PEM).
pub fn pin_of(certificate: &Path) -> String {
    let script = "openssl x509 -in \"$0\" -noout -pubkey | openssl pkey -pubin -outform der |
                  openssl dgst -sha256 -binary | openssl base64";
    let mut shell = command("sh", ["-c", script]);
    shell.arg(certificate);
    succeed(shell, "").trim().to_owned()
}
