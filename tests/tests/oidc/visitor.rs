//! A browser without a screen: it keeps cookies, follows redirects and fills in the provider's forms.

use std::collections::BTreeMap;
use std::sync::Arc;

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, COOKIE, HOST, LOCATION, SET_COOKIE};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::provider::Provider;

pub struct Visitor {
    tls: TlsConnector,
    port: u16,
    cookies: BTreeMap<String, String>,
}

#[derive(Debug)]
struct Page {
    location: Option<String>,
    text: String,
}

impl Page {
    /// Where its form goes, and what it brings along by itself.
    #[track_caller]
    fn form(&self) -> (String, String) {
        let action = between(&self.text, "action=\"", "\"").replace("&amp;", "&");
        let hidden = self.text.split("<input type=\"hidden\"").skip(1);
        let pair =
            |input: &str| format!("{}={}", between(input, "name=\"", "\""), between(input, "value=\"", "\""));
        (action, hidden.map(pair).collect::<Vec<_>>().join("&"))
    }
}

/// How the provider sent the visitor back.
#[derive(Debug)]
pub struct Came {
    /// What stands behind the `?`.
    pub query: String,
    /// Whether he had to log in for it.
    pub asked: bool,
}

impl Visitor {
    /// One who was never there.
    pub fn new(provider: &Provider) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(provider.roots()).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let tls = TlsConnector::from(Arc::new(config));
        Self { tls, port: provider.port, cookies: BTreeMap::new() }
    }

    /// Goes there and logs in as `user` where he is asked to, until the provider sends him back.
    pub async fn log_in(&mut self, location: &str, user: &str) -> Came {
        self.walk(location, Some(user)).await
    }

    /// Goes there, and does not want to log in.
    pub async fn refuse(&mut self, location: &str) -> Came {
        self.walk(location, None).await
    }

    async fn walk(&mut self, location: &str, user: Option<&str>) -> Came {
        let mut asked = false;
        let mut page = self.get(location).await;
        for _ in 0..20 {
            if let Some(location) = page.location.clone() {
                if let Some(query) = location.strip_prefix("https://app.example/back?") {
                    return Came { query: query.to_owned(), asked };
                }
                page = self.get(&location).await;
                continue;
            }
            let (action, form) = page.form();
            page = match (form.contains("prompt=login"), user) {
                (true, None) => self.get(&format!("{}/abort", path(&action))).await,
                (true, Some(user)) => {
                    asked = true;
                    self.post(&action, format!("{form}&login={user}&password=any")).await
                }
                // what it asks of whoever is there: consent, or the end of somebody else's session
                (false, _) => self.post(&action, form).await,
            };
        }
        panic!("he is sent around: {page:?}")
    }

    /// Ends his session at the provider. Where he is sent then.
    pub async fn log_out(&mut self, location: &str) -> Option<String> {
        let page = self.get(location).await;
        let (action, form) = page.form();
        self.post(&action, format!("{form}&logout=yes")).await.location
    }

    async fn get(&mut self, url: &str) -> Page {
        self.ask(Method::GET, url, String::new()).await
    }

    async fn post(&mut self, url: &str, form: String) -> Page {
        self.ask(Method::POST, url, form).await
    }

    async fn ask(&mut self, method: Method, url: &str, form: String) -> Page {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let stream = TokioIo::new(self.tls.connect(name, stream).await.unwrap());
        let (mut sender, connection) = http1::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let cookies: Vec<String> =
            self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let request = Request::builder()
            .method(method)
            .uri(path(url))
            .header(HOST, format!("localhost:{}", self.port))
            .header(COOKIE, cookies.join("; "))
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Full::new(Bytes::from(form)))
            .unwrap();
        let answer = sender.send_request(request).await.unwrap();
        for line in answer.headers().get_all(SET_COOKIE) {
            let (pair, attributes) = line.to_str().unwrap().split_once(';').unwrap();
            let (name, value) = pair.split_once('=').unwrap();
            if value.is_empty() || attributes.contains("01 Jan 1970") {
                self.cookies.remove(name);
            } else {
                self.cookies.insert(name.to_owned(), value.to_owned());
            }
        }
        let location = answer.headers().get(LOCATION).map(|location| location.to_str().unwrap().to_owned());
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        Page { location, text: String::from_utf8_lossy(&body).into_owned() }
    }
}

/// Without the origin.
fn path(url: &str) -> &str {
    let below = url.strip_prefix("https://localhost:").map(|rest| &rest[rest.find('/').unwrap()..]);
    below.unwrap_or(url)
}

#[track_caller]
fn between<'t>(text: &'t str, before: &str, after: &str) -> &'t str {
    let rest = text.split_once(before).unwrap_or_else(|| panic!("no {before} in {text}")).1;
    rest.split_once(after).unwrap().0
}
