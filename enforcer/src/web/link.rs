//! The gateway's link to the daemon, which has the sessions: a cache that is as fresh as the stream of ends that feeds it.
//!
//! A request costs no round trip: [`Link::check`] answers from memory what was answered before, as long as the stream is
//! whole. Who is asked about for the first time is asked of the daemon. What holds, whatever happens:
//!
//! - **An end is heard before it is acknowledged, and nothing that has ended is answered from memory after that.** An
//!   answer that is older than an end that was heard is asked for once more (see [`cache`]).
//! - **Where the stream is broken memory is not used.** Each request is then asked of the daemon; where that is gone,
//!   nobody gets in, and nobody new in any case ([`Link::create`], [`Link::add_token`]). With a [`Settings::grace`] memory
//!   is used for so much longer: a revocation within that time is not seen here. It is zero unless configured, and a minute
//!   at most.
//! - **When the stream comes back it begins with all that is alive**, and whatever else is known here is ended. Requests
//!   that were in hand meanwhile, and upgraded connections, go on until then.
//!
//! # How it is meant to be used
//!
//! [`Link::start`] takes a function that ends what the gateway has of a session: it closes its sockets, and says how many.
//! It is called for each end, also of sessions that were never seen here, and what it says is acknowledged. It has
//! [`END_WITHIN`]; if it takes longer nothing is acknowledged, the daemon lets go of this gateway, and it is called once
//! more when the stream begins anew. The session is out of memory before it is called.
//!
//! A request that was let in a moment before the end, and registers its socket a moment after it, would escape. So:
//! **register first, then ask [`Link::is_alive`], and go on only then.**
//!
//! A login: [`Link::create`] with SHA-256 of the new token. A further host: [`Link::add_token`]. A logout, or another
//! person on the same token: [`Link::end`]. What may be served is what [`Link::check`] says of the digest of the cookie's
//! token; that the host is the right one ([`Session::host`]) is the caller's to compare.

mod cache;
mod seen;
mod stream;
mod words;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::{Code, Status};

use crate::control::{WebClient, api};
use crate::session::{WebDigest, WebKey};

use cache::{Cache, Kept};

pub use words::{Cause, LinkError, NewSession, Session};

/// How long what ends a session here may take.
pub const END_WITHIN: Duration = Duration::from_secs(3);
/// The longest grace.
pub const MAX_GRACE: Duration = Duration::from_secs(60);
/// How often an answer that is too old is asked for again.
const TRIES: usize = 8;

/// How the gateway wants it.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The daemon's socket for the web gateway.
    pub socket: PathBuf,
    /// For how long memory is used after the stream broke; at most [`MAX_GRACE`].
    pub grace: Duration,
    /// How often the daemon is told which sessions are in use. A session that was not used for so long is told of at once.
    pub seen_every: Duration,
    /// How long a question to the daemon may take.
    pub within: Duration,
    /// How many sessions are known here at most; beyond that nobody new is let in.
    pub most: usize,
}

impl Settings {
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            grace: Duration::ZERO,
            seen_every: Duration::from_secs(5),
            within: Duration::from_secs(2),
            most: 1_000_000,
        }
    }
}

/// What ends a session in the gateway: how many sockets it closed.
pub type OnEnd = Arc<dyn Fn(WebKey, Cause) -> BoxFuture<'static, u64> + Send + Sync>;

/// The link. Dropped, it lets go of the daemon, and its tasks end.
pub struct Link {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

struct Shared {
    settings: Settings,
    cache: RwLock<Cache>,
    /// `None`: the daemon was not reached yet.
    client: Mutex<Option<WebClient>>,
    used: seen::Used,
    on_end: OnEnd,
    whole: watch::Sender<bool>,
}

impl Link {
    /// Begins to follow the daemon, and goes on for as long as it takes. Within a tokio runtime.
    pub fn start(mut settings: Settings, on_end: OnEnd) -> Self {
        settings.grace = settings.grace.min(MAX_GRACE);
        let shared = Arc::new(Shared {
            cache: RwLock::new(Cache::new(settings.most)),
            client: Mutex::new(None),
            used: seen::Used::new(settings.seen_every),
            on_end,
            whole: watch::Sender::new(false),
            settings,
        });
        let tasks = vec![
            tokio::spawn(stream::follow(Arc::clone(&shared))),
            tokio::spawn(seen::tell(Arc::clone(&shared))),
        ];
        Self { shared, tasks }
    }

    /// Waits until the stream is whole.
    pub async fn connected(&self) {
        // the sender lives as long as `self`
        let _ = self.shared.whole.subscribe().wait_for(|whole| *whole).await;
    }

    /// Whether the stream is whole at this moment.
    pub fn is_connected(&self) -> bool {
        *self.shared.whole.borrow()
    }

    /// Whose session this token is, if it is alive. `Err`: that cannot be told, so nobody gets in.
    pub async fn check(&self, digest: &WebDigest) -> Result<Option<Arc<Session>>, LinkError> {
        if let Some(session) = self.remembered(digest) {
            return Ok(Some(session));
        }
        self.ask(digest).await
    }

    /// The same from memory alone, without waiting: `None`: ask [`Link::check`].
    pub fn remembered(&self, digest: &WebDigest) -> Option<Arc<Session>> {
        let cache = self.shared.cache();
        let entry = cache.remembered(digest, self.shared.settings.grace, Instant::now())?;
        self.shared.used.mark(entry.session.key, &entry.usage);
        Some(Arc::clone(&entry.session))
    }

    /// Whether nothing was heard of this session's end. To be asked after a socket was registered.
    pub fn is_alive(&self, key: &WebKey) -> bool {
        self.shared.cache().knows(key)
    }

    /// A new session for somebody who was authenticated. Nobody gets one while the stream is broken.
    pub async fn create(&self, new: NewSession) -> Result<Arc<Session>, LinkError> {
        let (digest, request) = (new.digest, new.request());
        self.whole()?;
        let epoch = self.shared.cache().epoch();
        let alive = self.call(|mut client| async move { client.create(request).await }).await?;
        self.keep_or_ask(&digest, alive, epoch).await
    }

    /// A further token, for another host, of the session that `known` is a token of.
    pub async fn add_token(
        &self,
        known: &WebDigest,
        host: &str,
        digest: &WebDigest,
        wrapped: Vec<u8>,
    ) -> Result<Arc<Session>, LinkError> {
        self.whole()?;
        let epoch = self.shared.cache().epoch();
        let (known, token) = (known.as_bytes().to_vec(), digest.as_bytes().to_vec());
        let request = api::WebAddToken { known, host: host.to_owned(), digest: token, wrapped };
        let alive = self.call(|mut client| async move { client.add_token(request).await }).await?;
        self.keep_or_ask(digest, alive, epoch).await
    }

    /// The session's secret, wrapped anew for this token.
    pub async fn rewrap(&self, digest: &WebDigest, wrapped: Vec<u8>) -> Result<Arc<Session>, LinkError> {
        let epoch = self.shared.cache().epoch();
        let request = api::WebRewrap { digest: digest.as_bytes().to_vec(), wrapped };
        let alive = self.call(|mut client| async move { client.rewrap(request).await }).await?;
        self.keep_or_ask(digest, alive, epoch).await
    }

    /// Ends a session, by one of its tokens. It is over, here and everywhere, when this returns; [`LinkError::Unwritten`]:
    /// it is, and would be there again after a restart of the daemon.
    pub async fn end(&self, digest: &WebDigest, cause: Cause) -> Result<(), LinkError> {
        let which = api::web_end::Which::Digest(digest.as_bytes().to_vec());
        let ended = self.end_by(which, cause).await;
        if !matches!(ended, Err(LinkError::Unavailable(_))) {
            self.shared.cache_mut().over_by(digest);
        }
        ended
    }

    /// The same by its key.
    pub async fn end_key(&self, key: &WebKey, cause: Cause) -> Result<(), LinkError> {
        let ended = self.end_by(api::web_end::Which::Key(key.as_bytes().to_vec()), cause).await;
        if !matches!(ended, Err(LinkError::Unavailable(_))) {
            self.shared.cache_mut().over(key);
        }
        ended
    }

    async fn end_by(&self, which: api::web_end::Which, cause: Cause) -> Result<(), LinkError> {
        let request = api::WebEnd { which: Some(which), cause: cause.api().into() };
        let ended = self.call(|mut client| async move { client.end(request).await }).await;
        match ended {
            // only a daemon that has ended it says so
            Err(LinkError::Unavailable(why)) if why.starts_with(UNWRITTEN) => Err(LinkError::Unwritten(why)),
            other => other.map(drop),
        }
    }

    fn whole(&self) -> Result<(), LinkError> {
        if self.is_connected() {
            return Ok(());
        }
        Err(LinkError::Unavailable(
            "the enforcer's daemon does not tell of ends: nobody new is let in".into(),
        ))
    }

    async fn ask(&self, digest: &WebDigest) -> Result<Option<Arc<Session>>, LinkError> {
        for _ in 0..TRIES {
            let epoch = self.shared.cache().epoch();
            let request = api::WebToken { digest: digest.as_bytes().to_vec() };
            let alive = match self.call(|mut client| async move { client.check(request).await }).await {
                Ok(alive) => alive,
                Err(LinkError::Gone) => return Ok(None),
                Err(error) => return Err(error),
            };
            if let Some(session) = self.keep(digest, alive, epoch)? {
                return Ok(Some(session));
            }
        }
        Err(LinkError::Unavailable("sessions end faster than the daemon answers".into()))
    }

    async fn keep_or_ask(
        &self,
        digest: &WebDigest,
        alive: api::WebAlive,
        epoch: u64,
    ) -> Result<Arc<Session>, LinkError> {
        match self.keep(digest, alive, epoch)? {
            Some(session) => Ok(session),
            None => self.ask(digest).await?.ok_or(LinkError::Gone),
        }
    }

    /// `None`: it is older than what was heard meanwhile.
    fn keep(
        &self,
        digest: &WebDigest,
        alive: api::WebAlive,
        epoch: u64,
    ) -> Result<Option<Arc<Session>>, LinkError> {
        let (session, moment) = words::session(alive)?;
        let mut cache = self.shared.cache_mut();
        match cache.keep(*digest, session, moment, epoch) {
            Kept::Fresh(entry) => {
                self.shared.used.mark(entry.session.key, &entry.usage);
                Ok(Some(Arc::clone(&entry.session)))
            }
            Kept::Old => Ok(None),
            Kept::Full => Err(LinkError::Full("too many sessions are known to this gateway".into())),
        }
    }

    async fn call<T, F>(&self, ask: impl FnOnce(WebClient) -> F) -> Result<T, LinkError>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let client = self.shared.client().clone();
        let client = client
            .ok_or_else(|| LinkError::Unavailable("the enforcer's daemon was not reached yet".into()))?;
        self.within(ask(client)).await.map(tonic::Response::into_inner)
    }

    async fn within<T>(&self, call: impl Future<Output = Result<T, Status>>) -> Result<T, LinkError> {
        match tokio::time::timeout(self.shared.settings.within, call).await {
            Ok(answer) => answer.map_err(explain),
            Err(_) => Err(LinkError::Unavailable("the enforcer's daemon does not answer".into())),
        }
    }
}

/// How the daemon begins to say that an end is not on the disk.
const UNWRITTEN: &str = "it could not be written";

fn explain(status: Status) -> LinkError {
    let text = status.message().to_owned();
    match status.code() {
        Code::NotFound => LinkError::Gone,
        Code::PermissionDenied => LinkError::Locked(text),
        Code::ResourceExhausted => LinkError::Full(text),
        Code::AlreadyExists => LinkError::Taken,
        Code::InvalidArgument | Code::FailedPrecondition => LinkError::Bad(text),
        _ => LinkError::Unavailable(text),
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Shared {
    // whoever panicked did so between two whole changes

    fn cache(&self) -> RwLockReadGuard<'_, Cache> {
        self.cache.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn cache_mut(&self) -> RwLockWriteGuard<'_, Cache> {
        self.cache.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn client(&self) -> std::sync::MutexGuard<'_, Option<WebClient>> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
