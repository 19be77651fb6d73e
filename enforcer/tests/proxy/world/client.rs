//! Clients: one that writes what it likes, and one of HTTP/2.

use std::net::SocketAddr;
use std::sync::Arc;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http2::SendRequest;
use hyper::http::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::{Papers, soon};

/// A request that asks for nothing special.
pub fn get(path: &str, session: u8) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a.example\r\nx-session: {session}\r\n\r\n")
}

/// An answer as it was on the wire.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (other, value) = line.split_once(':')?;
            other.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }
}

/// Bytes on a socket.
pub struct Raw {
    pub stream: TcpStream,
    pub left: Vec<u8>,
}

impl Raw {
    pub async fn connect(address: SocketAddr) -> Self {
        Self { stream: TcpStream::connect(address).await.unwrap(), left: Vec::new() }
    }

    pub async fn send(&mut self, text: impl AsRef<[u8]>) {
        // the other end may have hung up in the middle
        let _ = self.stream.write_all(text.as_ref()).await;
    }

    /// Reads until that stands in what was read; `None`: the connection ended before.
    pub async fn read_to(&mut self, end: &[u8]) -> Option<usize> {
        loop {
            if let Some(at) = self.left.windows(end.len()).position(|bytes| bytes == end) {
                return Some(at + end.len());
            }
            let read = soon("bytes", self.stream.read_buf(&mut self.left)).await;
            if !matches!(read, Ok(1..)) {
                return None;
            }
        }
    }

    /// The head of an answer.
    pub async fn head(&mut self) -> Option<Answer> {
        let end = self.read_to(b"\r\n\r\n").await?;
        let head = String::from_utf8(self.left.drain(..end).collect()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Some(Answer { status, head, body: Vec::new() })
    }

    /// An answer with its body, which has a length or comes in chunks.
    pub async fn answer(&mut self) -> Option<Answer> {
        let mut answer = self.head().await?;
        if let Some(length) = answer.field("content-length") {
            let length: usize = length.parse().unwrap();
            while self.left.len() < length {
                if !matches!(soon("a body", self.stream.read_buf(&mut self.left)).await, Ok(1..)) {
                    return None;
                }
            }
            answer.body = self.left.drain(..length).collect();
        } else if answer.field("transfer-encoding").is_some() {
            let end = self.read_to(b"0\r\n").await?;
            let end = end.max(self.read_to(b"\r\n\r\n").await?);
            answer.body = self.left.drain(..end).collect();
        }
        Some(answer)
    }

    pub async fn ask(&mut self, text: impl AsRef<[u8]>) -> Option<Answer> {
        self.send(text).await;
        self.answer().await
    }

    /// Whatever comes until the connection ends.
    pub async fn rest(&mut self) -> Vec<u8> {
        let mut buf = vec![0; 64 << 10];
        while let Ok(read @ 1..) = soon("the end", self.stream.read(&mut buf)).await {
            self.left.extend(&buf[..read]);
        }
        std::mem::take(&mut self.left)
    }
}

/// TLS as that name's client, for one of these protocols.
pub async fn shake(
    address: SocketAddr,
    papers: &Papers,
    name: &str,
    alpn: &[&[u8]],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(papers.authority_file()).unwrap()).unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|alpn| alpn.to_vec()).collect();
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

/// One connection of HTTP/2.
#[derive(Clone)]
pub struct Http2 {
    pub sender: SendRequest<Full<Bytes>>,
}

impl Http2 {
    pub async fn connect(address: SocketAddr, papers: &Papers, name: &str) -> Self {
        let stream = shake(address, papers, name, &[b"h2"]).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self { sender }
    }

    pub async fn get(&mut self, path: &str, session: u8) -> Result<Response<Incoming>, hyper::Error> {
        let request = Request::get(format!("https://a.example{path}"))
            .header("x-session", u16::from(session))
            .body(Full::default())
            .unwrap();
        soon("an answer", self.sender.send_request(request)).await
    }

    pub async fn text(&mut self, path: &str, session: u8) -> String {
        let answer = self.get(path, session).await.unwrap();
        let body = soon("a body", answer.into_body().collect()).await.unwrap().to_bytes();
        String::from_utf8(body.to_vec()).unwrap()
    }

    pub fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }
}
