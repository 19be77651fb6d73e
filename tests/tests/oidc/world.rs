//! The provider, the gateway's part of OpenID Connect for each of its clients, and the place for logout tokens.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use enforcer::session::WebKey;
use enforcer::web::oidc::{LoggedOut, Login, MAX_FORM, Oidc, OidcError, Settings, done, failed, refused};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::net::TcpListener;

use crate::provider::{BACK, Claims, Provider};
use crate::visitor::{Came, Visitor};

/// A logout token that came: its form, and what became of it.
#[derive(Debug)]
pub struct Received {
    pub form: Bytes,
    pub out: Result<LoggedOut, OidcError>,
}

#[derive(Default)]
struct Receiver {
    clients: BTreeMap<String, Arc<Oidc>>,
    received: Vec<Received>,
    /// Sessions cannot be ended at the moment.
    fails: bool,
}

pub struct World {
    pub provider: Provider,
    receiver: Arc<Mutex<Receiver>>,
    folder: TempDir,
}

impl World {
    pub async fn new(claims: Claims) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let backchannel = format!("http://{}", listener.local_addr().unwrap());
        let receiver = Arc::new(Mutex::new(Receiver::default()));
        tokio::spawn(receive(listener, Arc::clone(&receiver)));
        let provider = Provider::start(&backchannel, claims);
        Self { provider, receiver, folder: TempDir::new().unwrap() }
    }

    pub fn settings(&self, client: &str) -> Settings {
        let secret = self.folder.path().join(format!("{client}.secret"));
        std::fs::write(&secret, format!("the secret of {client}: +&%=\n")).unwrap();
        std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).unwrap();
        let settings = Settings::new(self.provider.issuer(), client, secret);
        Settings { roots: Some(self.provider.roots()), ..settings }
    }

    /// The file of that client's sessions.
    pub fn sessions(&self, client: &str) -> PathBuf {
        self.folder.path().join(format!("{client}.sessions"))
    }

    /// The gateway's part for one client of the provider's.
    pub fn gateway(&self, client: &str) -> Arc<Oidc> {
        self.gateway_with(self.settings(client))
    }

    pub fn gateway_with(&self, settings: Settings) -> Arc<Oidc> {
        let client = settings.client_id.clone();
        let oidc = Arc::new(Oidc::new(settings, &self.sessions(&client)).unwrap());
        self.receiver.lock().unwrap().clients.insert(client, Arc::clone(&oidc));
        oidc
    }

    /// It is not there any more; the caller drops what he has of it.
    pub fn gone(&self, client: &str) {
        self.receiver.lock().unwrap().clients.remove(client);
    }

    /// From now on what a logout token ends cannot be ended, or can again.
    pub fn fails(&self, fails: bool) {
        self.receiver.lock().unwrap().fails = fails;
    }

    /// Waits for one more logout token.
    pub async fn received(&self) -> Received {
        for _ in 0..3_000 {
            let first = {
                let mut receiver = self.receiver.lock().unwrap();
                (!receiver.received.is_empty()).then(|| receiver.received.remove(0))
            };
            if let Some(first) = first {
                return first;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no logout token came:\n{}", self.provider.log())
    }

    pub fn is_quiet(&self) -> bool {
        self.receiver.lock().unwrap().received.is_empty()
    }
}

/// Logs in at the provider, and comes back.
pub async fn come(oidc: &Oidc, visitor: &mut Visitor, user: &str) -> (Came, String) {
    let begun = oidc.begin(BACK, "/first?a=b").await.unwrap();
    let came = visitor.log_in(&begun.location, user).await;
    (came, cookie(&begun.set_cookie))
}

/// The value that the browser sends back.
pub fn cookie(set_cookie: &hyper::header::HeaderValue) -> String {
    let line = set_cookie.to_str().unwrap();
    line.split_once('=').unwrap().1.split_once(';').unwrap().0.to_owned()
}

/// A whole login.
pub async fn login(oidc: &Oidc, visitor: &mut Visitor, user: &str) -> Login {
    let (came, cookie) = come(oidc, visitor, user).await;
    oidc.finish(&came.query, Some(cookie.as_bytes())).await.unwrap_or_else(|error| panic!("{user}: {error}"))
}

/// A whole login, and the session that comes of it.
pub async fn session(oidc: &Oidc, visitor: &mut Visitor, user: &str, byte: u8) -> WebKey {
    let login = login(oidc, visitor, user).await;
    let key = key(byte);
    oidc.register(key, &login, login.issued + 3_600).await.unwrap();
    key
}

pub fn key(byte: u8) -> WebKey {
    WebKey::from_bytes([byte; 16])
}

async fn receive(listener: TcpListener, receiver: Arc<Mutex<Receiver>>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let receiver = Arc::clone(&receiver);
        tokio::spawn(async move {
            let service = service_fn(|request| take(request, Arc::clone(&receiver)));
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// As a gateway does it, with nothing to end.
async fn take(
    request: Request<Incoming>,
    receiver: Arc<Mutex<Receiver>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let client = request.uri().path().trim_start_matches('/').to_owned();
    let form = Limited::new(request.into_body(), MAX_FORM).collect().await.unwrap().to_bytes();
    let (oidc, fails) = {
        let receiver = receiver.lock().unwrap();
        (receiver.clients.get(&client).map(Arc::clone), receiver.fails)
    };
    let Some(oidc) = oidc else { return Ok(failed().map(Full::new)) };
    let out = oidc.backchannel(&form).await;
    let answer = match &out {
        Ok(out) if fails => {
            oidc.again(out);
            failed()
        }
        Ok(out) => {
            out.sessions.iter().for_each(|key| oidc.over(key));
            done()
        }
        Err(error) => refused(error),
    };
    receiver.lock().unwrap().received.push(Received { form, out });
    Ok(answer.map(Full::new))
}
