//! A login that was begun: what has to be known again when the browser comes back from the provider.
//!
//! It is kept in the browser, in a cookie that is sealed under a key of this process: nothing is stored for each visitor,
//! and a browser cannot finish what another one has begun. After a restart of the gateway such a login has to be begun
//! anew.

use hyper::header::HeaderValue;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;
use zeroize::{Zeroize as _, Zeroizing};

use super::OidcError;
use crate::web::seal::{Group, SealError, Sealer, SealingSecret, Token};

/// The cookie's name.
pub const COOKIE: &str = "__Host-enforcer-oidc";
/// How long somebody may take at the provider (seconds).
pub const PATIENCE: u64 = 600;
/// Bytes of what was asked for at first.
pub const MAX_TARGET: usize = 2048;
/// Bytes of the URL that the provider sends back to.
const MAX_REDIRECT: usize = 512;

/// The secrets of one login. Wiped when it is dropped.
#[derive(Serialize, Deserialize)]
pub(super) struct Pending {
    /// Unix seconds.
    pub begun: u64,
    pub state: String,
    pub nonce: String,
    /// PKCE's (RFC 7636): whoever redeems the code has to show it.
    pub verifier: String,
    /// Where the provider sends the browser back to.
    pub redirect: String,
    /// What was asked for at first.
    pub target: String,
}

impl Pending {
    /// A fresh one.
    ///
    /// # Errors
    /// [`OidcError::Begin`]: target or redirect are too long, or no part of a URL. [`OidcError::System`]: no random
    /// numbers.
    pub(super) fn new(redirect: &str, target: &str, now: u64) -> Result<Self, OidcError> {
        // what would grow where it is kept stands in no URL
        let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\');
        let fits = |text: &str, most| text.len() <= most && text.bytes().all(plain);
        if !fits(target, MAX_TARGET) || !fits(redirect, MAX_REDIRECT) {
            return Err(OidcError::Begin(format!(
                "what was asked for has {} bytes: after a login it can be gone on with up to {MAX_TARGET}, as they stand \
                 in a URL",
                target.len()
            )));
        }
        let word = || Ok::<_, SealError>(Token::new()?.write().to_string());
        Ok(Self {
            begun: now,
            state: word()?,
            nonce: word()?,
            verifier: word()?,
            redirect: redirect.to_owned(),
            target: target.to_owned(),
        })
    }

    /// Whether the provider's answer is to this login.
    pub(super) fn is_state(&self, state: &str) -> bool {
        state.as_bytes().ct_eq(self.state.as_bytes()).into()
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        for secret in [&mut self.state, &mut self.nonce, &mut self.verifier] {
            secret.zeroize();
        }
    }
}

/// Seals such logins and opens them again.
pub(super) struct Keeper {
    sealer: Sealer,
    group: Group,
}

impl Keeper {
    /// # Errors
    /// [`OidcError::System`]
    pub(super) fn new() -> Result<Self, OidcError> {
        let sealer = Sealer::new(&SealingSecret::new()?)?;
        let group = Group::new("oidc").map_err(OidcError::System)?;
        Ok(Self { sealer, group })
    }

    /// The cookie's value.
    pub(super) fn seal(&self, pending: &Pending) -> Result<String, OidcError> {
        let text = serde_json::to_vec(pending).map(Zeroizing::new);
        let text = text.map_err(|error| OidcError::System(error.to_string()))?;
        let sealed = self.sealer.seal(&self.group, COOKIE.as_bytes(), &text)?;
        String::from_utf8(sealed).map_err(|error| OidcError::System(error.to_string()))
    }

    /// What this process has sealed, no longer ago than [`PATIENCE`].
    ///
    /// # Errors
    /// [`OidcError::Again`]
    pub(super) fn open(&self, value: &[u8], now: u64) -> Result<Pending, OidcError> {
        let none = || OidcError::Again("its cookie was not made by this run of the gateway".into());
        let text =
            self.sealer.open(&self.group, COOKIE.as_bytes(), value).map(Zeroizing::new).ok_or_else(none)?;
        let pending: Pending = serde_json::from_slice(&text).map_err(|_| none())?;
        let age = now.saturating_sub(pending.begun);
        if age > PATIENCE {
            return Err(OidcError::Again(format!("it was begun {age} s ago, and {PATIENCE} s are the most")));
        }
        Ok(pending)
    }
}

/// `Set-Cookie` with this value. `Lax`: the way back from the provider is a link from another site.
pub(super) fn set_cookie(value: &str) -> Result<HeaderValue, OidcError> {
    HeaderValue::try_from(format!(
        "{COOKIE}={value}; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age={PATIENCE}"
    ))
    .map_err(|error| OidcError::System(error.to_string()))
}

/// `Set-Cookie` that takes it away: to be sent with every answer to the way back.
pub fn forget_cookie() -> HeaderValue {
    HeaderValue::from_static("__Host-enforcer-oidc=; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age=0")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn pending() -> Pending {
        Pending::new("https://app.example/back", "/a?b=c", NOW).unwrap()
    }

    fn why(result: Result<Pending, OidcError>) -> String {
        match result {
            Ok(_) => panic!("it was opened"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn what_was_begun_can_be_finished_for_ten_minutes() {
        let keeper = Keeper::new().unwrap();
        let begun = pending();
        let value = keeper.seal(&begun).unwrap();
        for later in [0, PATIENCE] {
            let opened = keeper.open(value.as_bytes(), NOW + later).unwrap();
            assert!(opened.is_state(&begun.state));
            assert_eq!((&*opened.verifier, &*opened.nonce), (&*begun.verifier, &*begun.nonce));
            assert_eq!((&*opened.redirect, &*opened.target), ("https://app.example/back", "/a?b=c"));
        }
        assert!(why(keeper.open(value.as_bytes(), NOW + PATIENCE + 1)).contains("601 s ago"));
    }

    #[test]
    fn nothing_of_it_can_be_read_or_made_elsewhere() {
        let begun = pending();
        let value = Keeper::new().unwrap().seal(&begun).unwrap();
        for secret in [&begun.state, &begun.nonce, &begun.verifier, &begun.target] {
            assert!(!value.contains(secret.as_str()));
        }
        assert!(why(Keeper::new().unwrap().open(value.as_bytes(), NOW)).contains("this run"));
    }

    #[test]
    fn every_login_has_secrets_of_its_own() {
        let (one, two) = (pending(), pending());
        let all = [&one.state, &one.nonce, &one.verifier, &two.state, &two.nonce, &two.verifier];
        for (at, word) in all.iter().enumerate() {
            assert_eq!(word.len(), 43, "256 bits; PKCE wants 43 characters at least");
            assert!(!all[at + 1..].contains(word));
        }
        assert!(!one.is_state(&two.state) && !one.is_state("") && !one.is_state(&one.state[..42]));
    }

    #[test]
    fn r7_the_cookie_fits_into_every_browser() {
        let long = Pending::new(&"r".repeat(MAX_REDIRECT), &"t".repeat(MAX_TARGET), NOW).unwrap();
        let value = Keeper::new().unwrap().seal(&long).unwrap();
        assert!(COOKIE.len() + value.len() <= 4096, "{}", value.len());
        assert!(set_cookie(&value).unwrap().to_str().unwrap().ends_with("Max-Age=600"));
        for odd in [&*"t".repeat(MAX_TARGET + 1), "/\r\nSet-Cookie: a=b", "/a b", "/ü", "/\"", "/\\"] {
            assert!(why(Pending::new("https://a/", odd, NOW)).contains("up to 2048"), "{odd:?}");
        }
    }

    #[test]
    fn setting_and_taking_away_mean_the_same_cookie() {
        let (set, forget) = (set_cookie("v").unwrap(), forget_cookie());
        let place =
            |line: &HeaderValue| line.to_str().unwrap().split_once("; ").unwrap().1.replace("600", "0");
        assert_eq!(place(&set), place(&forget));
        assert!(forget.to_str().unwrap().starts_with(&format!("{COOKIE}=;")));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(text in prop::collection::vec(any::<u8>(), 0..200)) {
            let keeper = Keeper::new().unwrap();
            prop_assert!(keeper.open(&text, NOW).is_err());
            prop_assert!(keeper.open(&[&b"es1."[..], &text].concat(), NOW).is_err());
        }
    }
}
