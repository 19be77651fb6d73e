//! A web gateway as the daemon sees it: the link that the real one is built on, and what it was told.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use enforcer::session::{WebDigest, WebKey};
use enforcer::web::link::{Cause, Link, LinkError, NewSession, OnEnd, Session, Settings};
use tokio::runtime::Runtime;

use crate::process::BOUND;

/// A digest that is like no other.
pub fn digest(byte: u8) -> WebDigest {
    WebDigest::from_bytes([byte; 32])
}

pub fn new_session(user: &str, digest: WebDigest, wrapped: Vec<u8>, agent: &str) -> NewSession {
    NewSession {
        user: user.into(),
        realm: String::new(),
        host: "app.example".into(),
        digest,
        wrapped,
        peer: "192.0.2.7".into(),
        agent: agent.into(),
        idle: Duration::from_secs(600),
        lasts: Duration::from_secs(3_600),
    }
}

/// Its link, and which sessions it was told to end.
pub struct WebLink {
    pub runtime: Runtime,
    link: Option<Arc<Link>>,
    pub ended: Arc<Mutex<BTreeMap<WebKey, Cause>>>,
}

impl WebLink {
    /// Each session has two sockets, wherever it ends.
    #[track_caller]
    pub fn start(socket: &Path) -> Self {
        Self::with(socket, |_| true)
    }

    /// `closes`: whether it comes to an end with closing a session's sockets.
    #[track_caller]
    pub fn with(socket: &Path, closes: fn(Cause) -> bool) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let ended = Arc::new(Mutex::new(BTreeMap::new()));
        let told = Arc::clone(&ended);
        let on_end: OnEnd = Arc::new(move |key, cause| {
            told.lock().expect("nobody panicked").insert(key, cause);
            Box::pin(async move { if closes(cause) { 2 } else { std::future::pending().await } })
        });
        let settings = Settings { seen_every: Duration::from_millis(50), ..Settings::new(socket.to_owned()) };
        let link = {
            let _entered = runtime.enter();
            Link::start(settings, on_end)
        };
        let gateway = Self { runtime, link: Some(Arc::new(link)), ended };
        gateway.connected();
        gateway
    }

    pub fn link(&self) -> &Link {
        self.link.as_ref().expect("it is there until the end")
    }

    /// Another hand on it.
    pub fn shared(&self) -> Arc<Link> {
        Arc::clone(self.link.as_ref().expect("it is there until the end"))
    }

    #[track_caller]
    pub fn connected(&self) {
        let connected = async { tokio::time::timeout(BOUND, self.link().connected()).await };
        self.runtime.block_on(connected).expect("the stream is whole");
    }

    /// # Errors
    /// Why there is no session.
    pub fn login(&self, user: &str, byte: u8) -> Result<Arc<Session>, LinkError> {
        let new = new_session(user, digest(byte), vec![byte; 60], "a browser");
        self.runtime.block_on(self.link().create(new))
    }

    /// # Errors
    /// The daemon was not heard.
    pub fn check(&self, byte: u8) -> Result<Option<Arc<Session>>, LinkError> {
        self.runtime.block_on(self.link().check(&digest(byte)))
    }

    #[track_caller]
    pub fn is_alive(&self, byte: u8) -> bool {
        self.check(byte).expect("the daemon answers").is_some()
    }

    pub fn was_ended(&self, session: &Session) -> Option<Cause> {
        self.ended.lock().expect("nobody panicked").get(&session.key).copied()
    }
}

impl Drop for WebLink {
    fn drop(&mut self) {
        let _entered = self.runtime.enter();
        drop(self.link.take());
    }
}
