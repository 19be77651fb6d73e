//! One-time codes: how a session comes to a further host. Pure: the time comes in.
//!
//! A code is 256 random bits in an address. It is worth something once, for [`LASTS`], on one host, and in the browser
//! whose nonce it is bound to: so it can neither be used by who reads it, nor be planted into another's browser. Codes
//! are kept by their digests, in memory alone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::session::{WebDigest, WebKey};
use crate::web::seal::{SealError, Token};

use super::held::Held;
use super::wish::{Binding, Further};

/// How long a code counts.
pub(super) const LASTS: Duration = Duration::from_secs(30);
/// How many there may be at once.
const MOST: usize = 10_000;
/// Of one session.
const MOST_OF_ONE: usize = 32;

/// What a code is for.
pub(super) struct Offer {
    pub(super) session: WebKey,
    /// A token that the session has: the login host's.
    pub(super) known: WebDigest,
    pub(super) held: Arc<Held>,
    pub(super) further: Further,
    /// Where it goes on, on the further host.
    pub(super) to: String,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum CodeError {
    #[error("too many logins are on their way to another host: try again in half a minute")]
    Full,
    #[error(transparent)]
    Seal(#[from] SealError),
}

#[derive(Default)]
pub(super) struct Codes(Mutex<HashMap<[u8; 32], (Instant, Offer)>>);

impl Codes {
    /// The code for that.
    pub(super) fn put(&self, offer: Offer, now: Instant) -> Result<Token, CodeError> {
        let code = Token::new()?;
        let mut codes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // what is too old holds on to the secret of its session
        codes.retain(|_, (made, _)| now.saturating_duration_since(*made) < LASTS);
        let of_one = codes.values().filter(|(_, other)| other.session == offer.session).count();
        if codes.len() >= MOST || of_one >= MOST_OF_ONE {
            return Err(CodeError::Full);
        }
        codes.insert(code.digest(), (now, offer));
        Ok(code)
    }

    /// The session is over: its codes are worth nothing, and its secret is held no longer.
    pub(super) fn forget(&self, session: &WebKey) {
        let mut codes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        codes.retain(|_, (_, offer)| offer.session != *session);
    }

    /// What the code is for; from now on it is for nothing, also where host or browser are the wrong ones.
    pub(super) fn take(&self, code: &Token, host: &str, nonce: &Token, now: Instant) -> Option<Offer> {
        let mut codes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (made, offer) = codes.remove(&code.digest())?;
        let fresh = now.saturating_duration_since(made) < LASTS;
        (fresh && offer.further.host == host && offer.further.binding == Binding::of(nonce)).then_some(offer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::web::seal::SealingSecret;

    struct World {
        codes: Codes,
        nonce: Token,
        held: Arc<Held>,
        now: Instant,
    }

    impl World {
        fn new() -> Self {
            let held = Held::new(SealingSecret::new().unwrap()).unwrap();
            Self { codes: Codes::default(), nonce: Token::new().unwrap(), held, now: Instant::now() }
        }

        fn offer(&self, session: u8) -> Offer {
            Offer {
                session: WebKey::from_bytes([session; 16]),
                known: WebDigest::from_bytes([1; 32]),
                held: Arc::clone(&self.held),
                further: Further { host: "b.example".into(), binding: Binding::of(&self.nonce) },
                to: "/x".into(),
            }
        }

        fn take(&self, code: &Token, after: Duration) -> Option<String> {
            self.codes.take(code, "b.example", &self.nonce, self.now + after).map(|offer| offer.to)
        }
    }

    #[test]
    fn r2_a_code_counts_once_on_its_host_in_its_browser_for_half_a_minute() {
        let w = World::new();
        let code = || w.codes.put(w.offer(1), w.now).unwrap();
        let moment = LASTS - Duration::from_millis(1);
        let first = code();
        assert_eq!(w.take(&first, moment).as_deref(), Some("/x"));
        assert_eq!(w.take(&first, Duration::ZERO), None, "once");
        assert_eq!(w.take(&code(), LASTS), None, "too old");
        let planted = code();
        assert!(
            w.codes.take(&planted, "b.example", &Token::new().unwrap(), w.now).is_none(),
            "another browser"
        );
        assert_eq!(w.take(&planted, Duration::ZERO), None, "and it is used up");
        assert!(w.codes.take(&code(), "c.example", &w.nonce, w.now).is_none(), "another host");
        assert_eq!(w.take(&Token::new().unwrap(), Duration::ZERO), None, "a made up one");
    }

    #[test]
    fn r7_there_are_so_many_codes_and_old_ones_make_room() {
        let w = World::new();
        for _ in 0..MOST_OF_ONE {
            w.codes.put(w.offer(1), w.now).unwrap();
        }
        assert!(matches!(w.codes.put(w.offer(1), w.now), Err(CodeError::Full)));
        w.codes.put(w.offer(2), w.now).unwrap();
        w.codes.put(w.offer(1), w.now + LASTS).unwrap();
        assert_eq!(w.codes.0.lock().unwrap().len(), 1, "the old ones are gone");
    }

    /// R2: after the end of a session nothing here holds its secret, and after its time no code does that nobody has used.
    #[test]
    fn r2_no_code_holds_a_secret_beyond_its_session_or_its_time() {
        let w = World::new();
        let (alices, bobs) =
            (w.codes.put(w.offer(1), w.now).unwrap(), w.codes.put(w.offer(2), w.now).unwrap());
        assert_eq!(Arc::strong_count(&w.held), 3);
        w.codes.forget(&WebKey::from_bytes([1; 16]));
        assert_eq!(Arc::strong_count(&w.held), 2);
        assert_eq!(w.take(&alices, Duration::ZERO), None);
        assert_eq!(w.take(&bobs, Duration::ZERO).as_deref(), Some("/x"), "R3");
        w.codes.put(w.offer(1), w.now).unwrap();
        w.codes.put(w.offer(2), w.now + LASTS).unwrap();
        assert_eq!(Arc::strong_count(&w.held), 2);
    }
}
