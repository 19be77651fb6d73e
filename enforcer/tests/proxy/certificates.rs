//! TLS: who shows which certificate, and how they are changed while everything goes on.

use std::sync::Arc;

use hyper::body::Bytes;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::world::{Gateway, Origin, Papers, Raw, get, shake, soon};

/// The certificate that is shown to who asks for that name.
async fn shown(gateway: &Gateway, name: &str) -> Option<Bytes> {
    let stream = shake(gateway.tls(), &gateway.papers, name, &[b"http/1.1"]).await.ok()?;
    let shown = stream.get_ref().1.peer_certificates()?.first()?.to_vec();
    Some(shown.into())
}

#[tokio::test]
async fn each_name_has_its_certificate() {
    let origin = Origin::new().await;
    let papers = Papers::new();
    let (one, other) =
        (papers.issue("one", &["a.example", "*.a.example"]), papers.issue("other", &["b.example"]));
    let mut gateway = Gateway::with(&[("a.example", origin.address)], |settings| {
        settings.certificates = vec![one, other];
    });
    gateway.papers = papers;
    let a = shown(&gateway, "a.example").await.unwrap();
    assert_eq!(shown(&gateway, "x.a.example").await.unwrap(), a);
    assert_ne!(shown(&gateway, "b.example").await.unwrap(), a);
    // one that no certificate is for is shown the first, and does not accept it
    assert!(shown(&gateway, "c.example").await.is_none());
    assert!(shown(&gateway, "x.x.a.example").await.is_none());
}

#[tokio::test]
async fn r5_new_files_are_used_without_dropping_anybody_and_bad_ones_are_not() {
    let origin = Origin::new().await;
    let gateway = Gateway::new(&[("a.example", origin.address)]);
    let mut connected = gateway.http2().await;
    assert_eq!(connected.text("/", 1).await, "hello");
    let old = shown(&gateway, "a.example").await.unwrap();
    let files = gateway.papers.issue("first", &["a.example"]);
    assert_eq!(shown(&gateway, "a.example").await.unwrap(), old);
    gateway.proxy.reload_certificates().unwrap();
    let new = shown(&gateway, "a.example").await.unwrap();
    assert_ne!(new, old);
    // a key that belongs to another certificate, no certificate, no file
    let other = gateway.papers.issue("other", &["a.example"]);
    let key = std::fs::read(&files.key).unwrap();
    std::fs::copy(&other.key, &files.key).unwrap();
    let error = gateway.proxy.reload_certificates().unwrap_err().to_string();
    assert!(error.contains("first.pem") && error.contains("first.key"), "{error}");
    std::fs::write(&files.key, key).unwrap();
    let chain = std::fs::read(&files.chain).unwrap();
    for bad in [&b""[..], b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        std::fs::write(&files.chain, bad).unwrap();
        assert!(gateway.proxy.reload_certificates().unwrap_err().to_string().contains("first.pem"));
    }
    std::fs::remove_file(&files.chain).unwrap();
    assert!(gateway.proxy.reload_certificates().is_err());
    assert_eq!(shown(&gateway, "a.example").await.unwrap(), new);
    std::fs::write(&files.chain, chain).unwrap();
    gateway.proxy.reload_certificates().unwrap();
    assert_eq!(connected.text("/", 1).await, "hello");
}

#[tokio::test]
async fn changed_files_are_noticed() {
    let gateway = Gateway::with(&[], |settings| {
        settings.times.reload = std::time::Duration::from_millis(20);
        settings.times.keep_alive = std::time::Duration::from_secs(1);
    });
    let old = shown(&gateway, "a.example").await.unwrap();
    gateway.papers.issue("first", &["a.example"]);
    soon("the new certificate", async {
        while shown(&gateway, "a.example").await.unwrap() == old {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// An origin with TLS that answers one request with one word.
async fn secure_origin(papers: &Papers, names: &[&str]) -> std::net::SocketAddr {
    let files = papers.issue("origin", names);
    let chain = CertificateDer::pem_file_iter(&files.chain).unwrap().map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(&files.key).unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut read = Vec::new();
                while !read.ends_with(b"\r\n\r\n") {
                    if !matches!(stream.read_buf(&mut read).await, Ok(1..)) {
                        return;
                    }
                }
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret").await;
                let _ = stream.shutdown().await;
            });
        }
    });
    address
}

#[tokio::test]
async fn an_origin_with_tls_must_be_who_it_should_be() {
    let papers = Papers::new();
    let address = secure_origin(&papers, &["inside.example"]).await;
    for (name, authority, status) in [
        ("inside.example", &papers, 200),
        ("other.example", &papers, 502),
        ("inside.example", &Papers::new(), 502),
    ] {
        let gateway = Gateway::with(&[("a.example", address)], |settings| {
            let origin = &mut settings.origins[0];
            origin.address = format!("https://{address}");
            origin.ca = Some(authority.authority_file());
            origin.server_name = Some(name.into());
        });
        let mut raw: Raw = gateway.raw().await;
        assert_eq!(raw.ask(get("/", 1)).await.unwrap().status, status, "{name}");
    }
}
