//! A certificate for the lab's hosts, and the authority that issued it.

use std::fs;
use std::path::PathBuf;

use crate::lab::Shared;
use crate::process::{command, succeed};

/// Files in the lab's folder.
pub struct Papers {
    folder: PathBuf,
}

impl Papers {
    /// For all of these hosts.
    pub fn new(shared: &Shared, hosts: &[&str]) -> Self {
        let folder = shared.work().join("papers");
        fs::create_dir_all(&folder).expect("a folder");
        let names: Vec<_> = hosts.iter().map(|host| format!("DNS:{host}")).collect();
        fs::write(folder.join("ext"), format!("subjectAltName={}\n", names.join(","))).expect("a file");
        let script = "umask 077; key='-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes'
            openssl req -x509 $key -days 30 -subj '/CN=the authority of the lab' -keyout ca.key -out ca.crt &&
            openssl req $key -subj '/CN=the gateway of the lab' -keyout key.pem -out csr &&
            openssl x509 -req -in csr -CA ca.crt -CAkey ca.key -set_serial 2 -days 30 -extfile ext -out crt.pem &&
            cat ca.crt >>crt.pem && chmod a+r ca.crt crt.pem";
        let mut openssl = command("sh", ["-c", &format!("{{ {script}; }} 2>openssl.log")]);
        openssl.current_dir(&folder);
        succeed(openssl, "");
        Self { folder }
    }

    fn file(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// The chain, PEM.
    pub fn certificate(&self) -> String {
        self.file("crt.pem")
    }

    pub fn key(&self) -> String {
        self.file("key.pem")
    }

    pub fn authority(&self) -> String {
        self.file("ca.crt")
    }

    /// Base64 of the SHA-256 of the public key.
    pub fn pin(&self) -> String {
        let script = "openssl x509 -in crt.pem -noout -pubkey | openssl pkey -pubin -outform der |
                      openssl dgst -sha256 -binary | openssl base64";
        let mut openssl = command("sh", ["-c", script]);
        openssl.current_dir(&self.folder);
        succeed(openssl, "").trim().to_owned()
    }
}
