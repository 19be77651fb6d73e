//! TLS at both ends: the certificates that clients see, by the name that they ask for, and whom an origin must be.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::lock;
use super::settings::Certificate;

/// Where Debian and its kin keep the roots of the public web.
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{}: {error}", path.display())]
    File { path: PathBuf, error: pem::Error },
    #[error("{}: there is no certificate in it", path.display())]
    Empty { path: PathBuf },
    #[error("{} and {} cannot be used together: {error}", chain.display(), key.display())]
    Pair { chain: PathBuf, key: PathBuf, error: rustls::Error },
    #[error("{}: not a certificate for a server: {error}", path.display())]
    Names { path: PathBuf, error: webpki::Error },
    #[error("TLS cannot be set up: {0}")]
    Setup(#[from] rustls::Error),
    #[error("TLS is to be spoken, but there is no certificate: name one under `certificates`")]
    None,
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// The certificates of the files that are named in the settings. They are read anew without dropping anybody: what is
/// connected stays as it is, and the next handshake sees the new ones.
#[derive(Debug)]
pub(super) struct Certificates {
    files: Vec<Certificate>,
    current: RwLock<Arc<Set>>,
    /// What the files were like when they were last read, whether that went well or not.
    stamps: Mutex<Vec<Stamp>>,
}

#[derive(Debug)]
struct Set {
    by_name: HashMap<String, Arc<CertifiedKey>>,
    first: Arc<CertifiedKey>,
}

#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Certificates {
    pub(super) fn load(files: Vec<Certificate>) -> Result<Arc<Self>, TlsError> {
        let stamps = stamps(&files);
        let current = RwLock::new(Arc::new(Set::load(&files)?));
        Ok(Arc::new(Self { files, current, stamps: Mutex::new(stamps) }))
    }

    /// Reads the files again. With an error the old certificates stay.
    pub(super) fn reload(&self) -> Result<(), TlsError> {
        *lock(&self.stamps) = stamps(&self.files);
        let set = Arc::new(Set::load(&self.files)?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = set;
        Ok(())
    }

    /// Whether a file is another one than when it was last read.
    pub(super) fn are_stale(&self) -> bool {
        stamps(&self.files) != *lock(&self.stamps)
    }

    /// What speaks TLS with clients.
    pub(super) fn acceptor(self: &Arc<Self>) -> Result<TlsAcceptor, TlsError> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        // who names HTTP/1.0 alone would be refused the connection otherwise
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec(), b"http/1.0".to_vec()];
        config.ticketer = ring::Ticketer::new()?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let set = Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner));
        Some(set.choose(hello.server_name()))
    }
}

impl Set {
    fn load(files: &[Certificate]) -> Result<Self, TlsError> {
        let provider = ring::default_provider();
        let mut by_name = HashMap::new();
        let mut first = None;
        for Certificate { chain, key } in files {
            let ders = certificates(chain)?;
            let key_der = PrivateKeyDer::from_pem_file(key)
                .map_err(|error| TlsError::File { path: key.clone(), error })?;
            let names: Vec<String> = webpki::EndEntityCert::try_from(&ders[0])
                .map_err(|error| TlsError::Names { path: chain.clone(), error })?
                .valid_dns_names()
                .map(str::to_ascii_lowercase)
                .collect();
            let certified = CertifiedKey::from_der(ders, key_der, &provider)
                .map_err(|error| TlsError::Pair { chain: chain.clone(), key: key.clone(), error })?;
            let certified = Arc::new(certified);
            for name in names {
                // the first one that is for a name has it
                by_name.entry(name).or_insert_with(|| Arc::clone(&certified));
            }
            first.get_or_insert(certified);
        }
        Ok(Self { by_name, first: first.ok_or(TlsError::None)? })
    }

    fn choose(&self, name: Option<&str>) -> Arc<CertifiedKey> {
        let known = name.and_then(|name| {
            let name = name.to_ascii_lowercase();
            let below = || Some(format!("*.{}", name.split_once('.')?.1));
            self.by_name.get(&name).or_else(|| self.by_name.get(&below()?))
        });
        Arc::clone(known.unwrap_or(&self.first))
    }
}

fn stamps(files: &[Certificate]) -> Vec<Stamp> {
    let paths = files.iter().flat_map(|file| [&file.chain, &file.key]);
    paths.map(|path| stamp(path).unwrap_or(Stamp { inode: 0, size: 0, modified: (0, 0) })).collect()
}

fn stamp(path: &Path) -> io::Result<Stamp> {
    let file = fs::metadata(path)?;
    Ok(Stamp { inode: file.ino(), size: file.size(), modified: (file.mtime(), file.mtime_nsec()) })
}

/// All certificates of a file, at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |error| TlsError::File { path: path.to_owned(), error };
    let all: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(wrong)?.collect();
    let all = all.map_err(wrong)?;
    if all.is_empty() { Err(TlsError::Empty { path: path.to_owned() }) } else { Ok(all) }
}

/// What speaks TLS with an origin whose certificate leads to a root in that file; without a file, to one of the
/// system's.
pub(in crate::web) fn connector(roots: Option<&Path>) -> Result<TlsConnector, TlsError> {
    let path = roots.unwrap_or(Path::new(SYSTEM_ROOTS));
    let mut store = RootCertStore::empty();
    let (added, _) = store.add_parsable_certificates(certificates(path)?);
    if added == 0 {
        return Err(TlsError::Empty { path: path.to_owned() });
    }
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}
