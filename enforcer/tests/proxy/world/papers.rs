//! Certificates, made for one test.

use std::path::PathBuf;

use enforcer::web::proxy::Certificate;
use rcgen::{CertificateParams, CertifiedIssuer, KeyPair};
use tempfile::TempDir;

/// An authority and what it has signed, as files.
pub struct Papers {
    folder: TempDir,
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl Papers {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, "the test's authority");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let papers = Self { folder: TempDir::new().unwrap(), authority };
        std::fs::write(papers.authority_file(), papers.authority.pem()).unwrap();
        papers
    }

    pub fn authority_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// A certificate for these names, in files of that name: new ones each time.
    pub fn issue(&self, file: &str, names: &[&str]) -> Certificate {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &self.authority).unwrap();
        let chain = self.folder.path().join(format!("{file}.pem"));
        let key_file = self.folder.path().join(format!("{file}.key"));
        std::fs::write(&chain, certificate.pem()).unwrap();
        std::fs::write(&key_file, key.serialize_pem()).unwrap();
        Certificate { chain, key: key_file }
    }
}
