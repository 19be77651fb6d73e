//! What is asked of the provider: HTTPS requests of our own, one connection each, bounded in bytes and in time.
//!
//! Nothing is followed elsewhere: a redirect is an answer like any other, and none that is wanted.

use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST, HeaderValue};
use hyper::http::{Method, Request, StatusCode, Uri, request};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use super::OidcError;
use super::settings::shown;
use crate::web::proxy::connector;

/// How long the whole of a request may take, from the name's look-up to the last byte.
pub(super) const WITHIN: Duration = Duration::from_secs(10);
/// Bytes of an answer's body.
pub(super) const MOST: usize = 512 * 1024;
/// Bytes of an answer's head, and how many fields it may have.
const HEAD: usize = 64 * 1024;
const FIELDS: usize = 100;
/// Bytes of a URL.
const MAX_URL: usize = 2048;

/// An https URL without user and fragment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Url {
    text: String,
    /// Without the brackets of an IPv6 address.
    host: String,
    port: u16,
    authority: String,
    path: String,
}

impl Url {
    /// # Errors
    /// A sentence that says what it has to be.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("{:?} is no URL that begins with https:// and has neither a user nor a #", shown(text))
        };
        let plain = text.len() <= MAX_URL && text.bytes().all(|byte| byte.is_ascii_graphic());
        if !plain || text.contains('#') {
            return Err(wrong());
        }
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let authority = uri.authority().ok_or_else(wrong)?;
        let is_https = uri.scheme_str() == Some("https");
        if !is_https || authority.as_str().contains('@') || authority.host().is_empty() {
            return Err(wrong());
        }
        let host = authority.host();
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        Ok(Self {
            text: text.to_owned(),
            host: host.to_owned(),
            port: uri.port_u16().unwrap_or(443),
            authority: authority.as_str().to_owned(),
            path: uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
        })
    }

    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    /// With these parameters after those that it has.
    pub(super) fn with<'p>(&self, parameters: impl IntoIterator<Item = (&'p str, &'p str)>) -> String {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.extend_pairs(parameters);
        let between = match self.text.split_once('?') {
            None => "?",
            Some((_, "")) => "",
            Some((_, query)) if query.ends_with('&') => "",
            Some(_) => "&",
        };
        format!("{}{between}{}", self.text, form.finish())
    }
}

/// What the provider answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub status: StatusCode,
    pub body: Bytes,
}

/// The roots that the provider's certificate may lead to.
pub(super) struct Fetch {
    tls: TlsConnector,
}

impl Fetch {
    /// # Errors
    /// [`OidcError::Settings`]: the roots cannot be read.
    pub(super) fn new(roots: Option<&Path>) -> Result<Self, OidcError> {
        let tls = connector(roots).map_err(|error| OidcError::Settings(format!("roots of TLS: {error}")))?;
        Ok(Self { tls })
    }

    /// # Errors
    /// [`OidcError::Provider`], as for the others.
    pub(super) async fn get(&self, url: &Url, bearer: Option<HeaderValue>) -> Result<Answer, OidcError> {
        let mut request = Request::builder().method(Method::GET);
        if let Some(bearer) = bearer {
            request = request.header(hyper::header::AUTHORIZATION, bearer);
        }
        self.send(url, request, Bytes::new()).await
    }

    pub(super) async fn post_form(
        &self,
        url: &Url,
        authorization: Option<HeaderValue>,
        form: String,
    ) -> Result<Answer, OidcError> {
        let mut request = Request::builder()
            .method(Method::POST)
            .header(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        if let Some(authorization) = authorization {
            request = request.header(hyper::header::AUTHORIZATION, authorization);
        }
        self.send(url, request, form.into()).await
    }

    async fn send(&self, url: &Url, request: request::Builder, body: Bytes) -> Result<Answer, OidcError> {
        let failed = |why: String| OidcError::Provider(format!("{}: {why}", url.as_str()));
        let request = request
            .uri(url.path.as_str())
            .header(HOST, url.authority.as_str())
            .header(ACCEPT, HeaderValue::from_static("application/json"))
            .body(Full::new(body))
            .map_err(|error| failed(format!("cannot be asked: {error}")))?;
        match tokio::time::timeout(WITHIN, self.exchange(url, request)).await {
            Ok(answer) => answer.map_err(failed),
            Err(_) => Err(failed(format!("there is no whole answer within {} s", WITHIN.as_secs()))),
        }
    }

    async fn exchange(&self, url: &Url, request: Request<Full<Bytes>>) -> Result<Answer, String> {
        let name = ServerName::try_from(url.host.clone()).map_err(|error| error.to_string())?;
        let stream = TcpStream::connect((url.host.as_str(), url.port))
            .await
            .map_err(|error| format!("cannot connect: {error}"))?;
        let stream =
            self.tls.connect(name, stream).await.map_err(|error| format!("cannot speak TLS: {error}"))?;
        let (mut sender, connection) = http1::Builder::new()
            .max_headers(FIELDS)
            .max_buf_size(HEAD)
            .handshake::<_, Full<Bytes>>(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        let answer = async {
            let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MOST).collect().await;
            let body = body.map_err(|error| {
                format!("its answer cannot be read, or has more than {MOST} bytes: {error}")
            })?;
            Ok(Answer { status, body: body.to_bytes() })
        };
        let (mut answer, mut connection) = (pin!(answer), pin!(connection));
        tokio::select! {
            biased;
            answer = &mut answer => return answer,
            // what came before the end of the connection is still to be read
            _ = &mut connection => {}
        }
        answer.await
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;

    use rcgen::{CertificateParams, KeyPair};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;
    use tokio_rustls::rustls::ServerConfig;
    use tokio_rustls::rustls::crypto::ring;
    use tokio_rustls::rustls::pki_types::PrivateKeyDer;

    use super::*;

    /// Something that answers one request with `head` and then `more` again and again, at `localhost`.
    struct Server {
        url: Url,
        roots: PathBuf,
        _folder: tempfile::TempDir,
    }

    impl Server {
        async fn start(name: &str, head: &'static str, more: &'static str) -> Self {
            let key = KeyPair::generate().unwrap();
            let certificate =
                CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&key).unwrap();
            let folder = tempfile::tempdir().unwrap();
            let roots = folder.path().join("ca.pem");
            std::fs::write(&roots, certificate.pem()).unwrap();
            let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(
                    vec![certificate.der().clone()],
                    PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
                )
                .unwrap();
            let tls = TlsAcceptor::from(Arc::new(config));
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("https://localhost:{}/path", listener.local_addr().unwrap().port());
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    // a client that does not believe us has gone by then
                    let Ok(mut stream) = tls.accept(stream).await else { continue };
                    let mut request = [0; 4096];
                    let _ = stream.read(&mut request).await;
                    let mut written = stream.write_all(head.as_bytes()).await;
                    while !more.is_empty() && written.is_ok() {
                        written = stream.write_all(more.as_bytes()).await;
                    }
                    let _ = stream.shutdown().await;
                }
            });
            Self { url: Url::parse(&url).unwrap(), roots, _folder: folder }
        }

        async fn get(&self) -> Result<Answer, OidcError> {
            Fetch::new(Some(&self.roots)).unwrap().get(&self.url, None).await
        }

        #[track_caller]
        fn fails(&self, answer: Result<Answer, OidcError>, said: &str) {
            let why = answer.unwrap_err().to_string();
            assert!(why.contains(said) && why.contains(self.url.as_str()), "{why}");
        }
    }

    #[tokio::test]
    async fn an_answer_with_and_without_a_length() {
        let known = Server::start("localhost", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", "").await;
        assert_eq!(known.get().await.unwrap().body, "hi");
        let open = Server::start("localhost", "HTTP/1.1 400 No\r\nConnection: close\r\n\r\nhi", "").await;
        let answer = open.get().await.unwrap();
        assert_eq!((answer.status.as_u16(), &answer.body[..]), (400, &b"hi"[..]));
    }

    #[tokio::test]
    async fn a_redirect_is_not_followed() {
        let server = Server::start(
            "localhost",
            "HTTP/1.1 302 Found\r\nLocation: https://evil.example/\r\nContent-Length: 0\r\n\r\n",
            "",
        )
        .await;
        let answer = server.get().await.unwrap();
        assert_eq!(answer.status.as_u16(), 302);
        server.fails(super::super::provider::good(&server.url, answer), "it answers 302");
    }

    /// R7: without an end, and with a length that is too great.
    #[tokio::test]
    async fn r7_an_answer_that_is_too_long_is_not_read() {
        const PIECE: &str =
            "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
        let server = Server::start("localhost", "HTTP/1.1 200 OK\r\n\r\n", PIECE).await;
        server.fails(server.get().await, "more than 524288 bytes");
        let server = Server::start("localhost", "HTTP/1.1 200 OK\r\nX: ", PIECE).await;
        server.fails(server.get().await, "");
    }

    #[tokio::test]
    async fn a_server_that_cannot_be_known_for_sure_is_not_asked() {
        const HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
        let other = Server::start("other.example", HEAD, "").await;
        other.fails(other.get().await, "cannot speak TLS");
        let server = Server::start("localhost", HEAD, "").await;
        let stranger = Fetch::new(Some(&other.roots)).unwrap();
        server.fails(stranger.get(&server.url, None).await, "cannot speak TLS");
        assert!(server.get().await.is_ok(), "and its twin is");
        let gone = Url::parse("https://127.0.0.1:1/").unwrap();
        let why = stranger.get(&gone, None).await.unwrap_err().to_string();
        assert!(why.contains("https://127.0.0.1:1/: cannot connect"), "{why}");
    }

    #[test]
    fn what_is_a_url_here() {
        let url = Url::parse("https://id.example:8443/a/b?c=d").unwrap();
        assert_eq!((url.host.as_str(), url.port, url.path.as_str()), ("id.example", 8443, "/a/b?c=d"));
        assert_eq!(url.authority, "id.example:8443");
        let url = Url::parse("https://[2001:db8::1]").unwrap();
        assert_eq!((url.host.as_str(), url.port, url.path.as_str()), ("2001:db8::1", 443, "/"));
        for odd in [
            "",
            "id.example",
            "/path",
            "http://id.example/",
            "https://",
            "https:///path",
            "https://user@id.example/",
            "https://id.example/#part",
            "https://id.example/a b",
            "https://id.example/\n",
            "https://ïd.example/",
            "javascript:alert(1)",
            &format!("https://id.example/{}", "x".repeat(MAX_URL)),
        ] {
            assert!(Url::parse(odd).unwrap_err().contains("https://"), "{odd:?}");
        }
    }

    #[test]
    fn parameters_come_after_those_that_are_there() {
        let with = |text: &str| Url::parse(text).unwrap().with([("a b", "c&d"), ("e", "ü=")]);
        assert_eq!(with("https://h/p"), "https://h/p?a+b=c%26d&e=%C3%BC%3D");
        assert_eq!(with("https://h/p?x=y"), "https://h/p?x=y&a+b=c%26d&e=%C3%BC%3D");
        assert_eq!(with("https://h/p?"), "https://h/p?a+b=c%26d&e=%C3%BC%3D");
        assert_eq!(with("https://h/p?x=y&"), "https://h/p?x=y&a+b=c%26d&e=%C3%BC%3D");
    }
}
