//! A web session: one person's presence at the web gateway, over all of its hosts.

use std::fmt;
use std::str::FromStr;

use super::BadWord;

/// A web session's name before people and between processes: 16 random bytes, never given twice. No secret: who knows it
/// has no token.
///
/// Written as 32 hexadecimal digits, in lower case.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WebKey([u8; 16]);

impl WebKey {
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl FromStr for WebKey {
    type Err = BadWord;

    /// 32 hexadecimal digits, in either case.
    fn from_str(text: &str) -> Result<Self, BadWord> {
        bytes_of(text).map(Self).ok_or(BadWord::WebKey)
    }
}

impl fmt::Display for WebKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for WebKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WebKey({self})")
    }
}

/// SHA-256 of a token of the web gateway. One-way, so it may be stored; the token itself may not.
///
/// Written as 64 hexadecimal digits, in lower case. What is logged of it has its first 4 bytes alone.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WebDigest([u8; 32]);

impl WebDigest {
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl FromStr for WebDigest {
    type Err = BadWord;

    /// 64 hexadecimal digits, in either case.
    fn from_str(text: &str) -> Result<Self, BadWord> {
        bytes_of(text).map(Self).ok_or(BadWord::WebKey)
    }
}

impl fmt::Display for WebDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for WebDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WebDigest(")?;
        self.0.iter().take(4).try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str("…)")
    }
}

/// `2 * N` hexadecimal digits.
pub(super) fn bytes_of<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

/// A web session as the disk keeps it. Times are wall-clock times (unix seconds).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebRecord {
    pub key: WebKey,
    pub realm: String,
    /// As it was typed.
    pub user: String,
    pub since: u64,
    /// When it was last used, as far as that was written.
    pub seen: u64,
    /// It ends when it was not used for so many seconds.
    pub idle: u64,
    /// For how many seconds it was made.
    pub lasts: u64,
    /// When it ends at the latest.
    pub until: u64,
    /// The client's address, as the gateway saw it.
    pub peer: String,
    /// The browser's own word.
    pub agent: String,
    /// In the order of their digests; at least one.
    pub tokens: Vec<WebTokenRecord>,
}

/// A token of a web session.
#[derive(Clone, PartialEq, Eq)]
pub struct WebTokenRecord {
    pub digest: WebDigest,
    pub host: String,
    /// The session's secret, wrapped under a key that is made of the token: worth nothing without it.
    pub wrapped: Vec<u8>,
}

impl fmt::Debug for WebTokenRecord {
    /// Without the wrapped secret: debug texts are logged.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebTokenRecord")
            .field("digest", &self.digest)
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_and_a_digest_read_what_they_write_and_nothing_else() {
        let key = WebKey::from_bytes([0xa7; 16]);
        assert_eq!((key.to_string().len(), key.to_string().parse()), (32, Ok(key)));
        assert_eq!("A7".repeat(16).parse(), Ok(key));
        let digest = WebDigest::from_bytes([0x5c; 32]);
        assert_eq!((digest.to_string().len(), digest.to_string().parse()), (64, Ok(digest)));
        for bad in ["", "a7", &"a7".repeat(17), &"g7".repeat(16), &"é".repeat(16), &"+7".repeat(16)] {
            assert_eq!(bad.parse::<WebKey>(), Err(BadWord::WebKey), "{bad:?}");
        }
        // a safe_id is no key, and a key is no safe_id
        assert!("2jmj7l5rSw0yVb/vlWAYkK/YBwk=".parse::<WebKey>().is_err());
        assert!(key.to_string().parse::<crate::session::SafeId>().is_err());
    }

    #[test]
    fn what_is_logged_has_neither_digest_nor_secret_whole() {
        let token = WebTokenRecord {
            digest: WebDigest::from_bytes([0x5c; 32]),
            host: "app.example".into(),
            wrapped: vec![0x77; 60],
        };
        let text = format!("{token:?}");
        assert!(
            text.contains("5c5c5c5c…") && !text.contains(&"5c".repeat(5)) && !text.contains("119"),
            "{text}"
        );
    }
}
