//! The provider as it was last seen: its endpoints and its keys, fetched when they are wanted, kept for a time, and
//! fetched again when a token is signed with a key that is not among them.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tracing::{info, warn};

use super::OidcError;
use super::fetch::{Answer, Fetch, Url};
use super::keys::Keys;
use super::metadata::{self, Metadata};
use super::settings::Settings;

/// For how long what was fetched is used: a key that the provider has taken back is believed no longer than that.
const FRESH: Duration = Duration::from_secs(600);
/// For how long it is good enough for the end of a session, where the provider cannot be asked.
const FOR_AN_END: Duration = Duration::from_secs(24 * 3600);
/// After a failure everybody is told of it for so long, before it is tried again.
const AFTER_FAILURE: Duration = Duration::from_secs(3);
/// How often an unknown key makes us ask for newer ones: whoever sends nonsense must not make us ask more often.
const FOR_A_KEY: Duration = Duration::from_secs(30);

/// What was fetched together.
#[derive(Debug)]
pub(super) struct Known {
    pub metadata: Metadata,
    pub keys: Keys,
    at: Instant,
}

pub(super) struct Provider {
    place: Url,
    known: RwLock<Option<Arc<Known>>>,
    /// Held by the one who asks the provider, so that all others wait for the same answer.
    asking: Mutex<Asking>,
}

#[derive(Default)]
struct Asking {
    failed: Option<(Instant, String)>,
    /// When it was last asked because of an unknown key.
    for_a_key: Option<Instant>,
}

impl Provider {
    /// # Errors
    /// [`OidcError::Settings`]
    pub(super) fn new(settings: &Settings) -> Result<Self, OidcError> {
        let place =
            metadata::place(&settings.issuer).map_err(|why| OidcError::Settings(format!("issuer: {why}")))?;
        Ok(Self { place, known: RwLock::default(), asking: Mutex::default() })
    }

    /// What is known, fetched if it is too old.
    ///
    /// # Errors
    /// [`OidcError::Provider`]
    pub(super) async fn known(&self, fetch: &Fetch, settings: &Settings) -> Result<Arc<Known>, OidcError> {
        if let Some(known) = self.fresh() {
            return Ok(known);
        }
        let mut asking = self.asking.lock().await;
        match self.fresh() {
            Some(known) => Ok(known),
            None => self.ask(&mut asking, fetch, settings).await,
        }
    }

    /// The same to check that a session has ended: where the provider cannot be asked, what it was lately. Whoever has a
    /// key that it has taken back meanwhile could end sessions with that, and begin none.
    ///
    /// # Errors
    /// [`OidcError::Provider`]
    pub(super) async fn known_for_an_end(
        &self,
        fetch: &Fetch,
        settings: &Settings,
    ) -> Result<Arc<Known>, OidcError> {
        self.known(fetch, settings).await.or_else(|error| self.younger(FOR_AN_END).ok_or(error))
    }

    /// Newer than this, since a key was not among it. `None`: there is nothing newer to be had now.
    ///
    /// # Errors
    /// [`OidcError::Provider`]
    pub(super) async fn newer(
        &self,
        than: &Arc<Known>,
        fetch: &Fetch,
        settings: &Settings,
    ) -> Result<Option<Arc<Known>>, OidcError> {
        let mut asking = self.asking.lock().await;
        if let Some(known) = self.fresh().filter(|known| !Arc::ptr_eq(known, than)) {
            return Ok(Some(known));
        }
        if asking.for_a_key.is_some_and(|last| last.elapsed() < FOR_A_KEY) {
            return Ok(None);
        }
        asking.for_a_key = Some(Instant::now());
        self.ask(&mut asking, fetch, settings).await.map(Some)
    }

    fn fresh(&self) -> Option<Arc<Known>> {
        self.younger(FRESH)
    }

    fn younger(&self, than: Duration) -> Option<Arc<Known>> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.clone().filter(|known| known.at.elapsed() < than)
    }

    /// As if it had been fetched so long ago.
    #[cfg(test)]
    pub(super) fn has_known(&self, metadata: Metadata, keys: Keys, ago: Duration) {
        let at = Instant::now().checked_sub(ago).unwrap();
        *self.known.write().unwrap() = Some(Arc::new(Known { metadata, keys, at }));
    }

    async fn ask(
        &self,
        asking: &mut Asking,
        fetch: &Fetch,
        settings: &Settings,
    ) -> Result<Arc<Known>, OidcError> {
        if let Some((at, why)) = &asking.failed
            && at.elapsed() < AFTER_FAILURE
        {
            return Err(OidcError::Provider(why.clone()));
        }
        match self.fetch(fetch, settings).await {
            Ok(known) => {
                asking.failed = None;
                let known = Arc::new(known);
                let before =
                    self.known.write().unwrap_or_else(PoisonError::into_inner).replace(Arc::clone(&known));
                if before.is_none_or(|before| before.metadata != known.metadata) {
                    tell(&known.metadata, settings);
                }
                Ok(known)
            }
            Err(error) => {
                asking.failed = Some((Instant::now(), error.sentence()));
                Err(error)
            }
        }
    }

    async fn fetch(&self, fetch: &Fetch, settings: &Settings) -> Result<Known, OidcError> {
        // it is as old as its oldest part
        let at = Instant::now();
        let wrong = |url: &Url, why: String| OidcError::Provider(format!("{}: {why}", url.as_str()));
        let text = good(&self.place, fetch.get(&self.place, None).await?)?;
        let metadata = Metadata::parse(&text.body, settings).map_err(|why| wrong(&self.place, why))?;
        let text = good(&metadata.keys, fetch.get(&metadata.keys, None).await?)?;
        let keys = Keys::parse(&text.body).map_err(|why| wrong(&metadata.keys, why))?;
        Ok(Known { metadata, keys, at })
    }
}

/// An answer that is no refusal.
///
/// # Errors
/// [`OidcError::Provider`]
pub(super) fn good(url: &Url, answer: Answer) -> Result<Answer, OidcError> {
    if answer.status.is_success() {
        return Ok(answer);
    }
    Err(OidcError::Provider(format!("{}: it answers {}", url.as_str(), answer.status)))
}

fn tell(metadata: &Metadata, settings: &Settings) {
    info!(issuer = settings.issuer, "the identity provider is there");
    if !metadata.back_channel {
        warn!(
            "the identity provider does not tell of ends (backchannel_logout_supported): who logs out there, or is \
             locked out there, keeps the sessions here until they end by themselves"
        );
    } else if !metadata.back_channel_sid {
        info!(
            "the identity provider does not name sessions: an end there ends all sessions of that person here"
        );
    }
}
