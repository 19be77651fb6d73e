//! Keys as etcd has them, below a prefix:
//!
//! ```text
//! gateways/<gateway>          alive/<gateway>          acknowledged/<gateway>
//! from/<author>/users/<realm>/<name>                   from/<author>/locks/<realm>/<name>
//! from/<author>/sessions/<safe_id>                     from/<author>/web/<key>
//! from/<author>/lifts/<author of the record>/<users|locks|sessions|web>/...
//! from/<gateway>/barrier
//! owners/<realm>/<name>
//! sessions/<gateway>/<realm>/<name>/<safe_id or key>
//! ```
//!
//! A gateway is 32 hexadecimal digits, an author a gateway or `admin`; a safe_id 40 digits, a web session's key 32. Of a
//! name every byte that is not visible ASCII, `/` and `%` are written as `%XX`, so that none can break out of its place.
//! Every key has one spelling: what does not write back as it was read is no key of ours.
//!
//! What is watched comes before `owners/` in etcd's order, so that one range is all of it. etcd's roles are ranges too:
//! a gateway writes below `gateways/<own>`, `alive/<own>`, `acknowledged/<own>`, `from/<own>/`, `sessions/<own>/` and
//! `owners/`, and reads everything. An id is always of one length, so no gateway's key begins with another one's.

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

use crate::session::{Identity, SafeId, WebKey};

use super::hex;
use super::words::{Key, SessionId};
use crate::session::{Author, GatewayId, Over};

/// In bytes, as everywhere.
pub const MAX_NAME: usize = 256;
/// In bytes.
pub const MAX_REALM: usize = 64;
/// In bytes.
pub const MAX_PREFIX: usize = 128;
/// No key of ours is longer: every byte of a name as three.
const MAX_KEY: usize = MAX_PREFIX + 3 * (MAX_NAME + MAX_REALM) + 256;

/// Where the watched keys end: `owners/` and `sessions/` come after it.
const WATCHED_END: &str = "o";

/// What stands in a name as itself: visible ASCII but these.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'/').add(b'%');

/// No key of ours. The texts end up before people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadKey {
    #[error("it is not below {0}")]
    Elsewhere(String),
    #[error("it is {0} bytes long, and no key is longer than {MAX_KEY}")]
    TooLong(usize),
    #[error("it is not text")]
    NotText,
    #[error(
        "there is no such key: it is gateways/, alive/, acknowledged/, from/, owners/ or sessions/, and what belongs below"
    )]
    Unknown,
    #[error("{what} is {length} bytes long: it is 1 to {most}")]
    Length { what: &'static str, length: usize, most: usize },
    #[error("{0} has a NUL in it")]
    Nul(&'static str),
    #[error("{0} is not spelt as it has to be: {1}")]
    Spelling(&'static str, &'static str),
}

/// What is before every key. Refused are others than visible ASCII from `/` to `/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefix(String);

impl Prefix {
    /// # Errors
    /// A sentence that says what a prefix is.
    pub fn new(text: &str) -> Result<Self, String> {
        let graphic = text.bytes().all(|byte| byte.is_ascii_graphic());
        let slashes = text.len() >= 3 && text.starts_with('/') && text.ends_with('/') && !text.contains("//");
        if !graphic || !slashes || text.len() > MAX_PREFIX {
            return Err(format!(
                "it begins and ends with a slash, has no two beside each other, and is at most {MAX_PREFIX} visible ASCII \
                 characters long, such as \"/enforcer/v1/\""
            ));
        }
        Ok(Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The key's bytes.
    ///
    /// # Errors
    /// [`BadKey::Length`], [`BadKey::Nul`]: a name that cannot be anybody's.
    pub fn write(&self, key: &Key) -> Result<Vec<u8>, BadKey> {
        let rest = match key {
            Key::Gateway(id) => format!("gateways/{id}"),
            Key::Alive(id) => format!("alive/{id}"),
            Key::Acknowledged(id) => format!("acknowledged/{id}"),
            Key::Barrier(id) => format!("from/{id}/barrier"),
            Key::Record(author, over) => format!("from/{author}/{}", write_over(over)?),
            Key::Lift(author, of, over) => format!("from/{author}/lifts/{of}/{}", write_over(over)?),
            Key::Owners(who) => format!("owners/{}", write_person(who)?),
            Key::Admission(id, who, session) => {
                format!("sessions/{id}/{}/{}", write_person(who)?, write_session(session))
            }
        };
        Ok(format!("{}{rest}", self.0).into_bytes())
    }

    /// # Errors
    /// [`BadKey`]: it is not one of ours, or not spelt as we would.
    pub fn read(&self, bytes: &[u8]) -> Result<Key, BadKey> {
        let rest = bytes.strip_prefix(self.0.as_bytes()).ok_or_else(|| BadKey::Elsewhere(self.0.clone()))?;
        if bytes.len() > MAX_KEY {
            return Err(BadKey::TooLong(bytes.len()));
        }
        let rest = std::str::from_utf8(rest).map_err(|_| BadKey::NotText)?;
        let parts: Vec<&str> = rest.split('/').collect();
        match parts.as_slice() {
            ["gateways", id] => read_gateway(id).map(Key::Gateway),
            ["alive", id] => read_gateway(id).map(Key::Alive),
            ["acknowledged", id] => read_gateway(id).map(Key::Acknowledged),
            ["from", id, "barrier"] => read_gateway(id).map(Key::Barrier),
            ["from", author, "lifts", of, over @ ..] => {
                Ok(Key::Lift(read_author(author)?, read_author(of)?, read_over(over)?))
            }
            ["from", author, over @ ..] => Ok(Key::Record(read_author(author)?, read_over(over)?)),
            ["owners", realm, name] => read_person(realm, name).map(Key::Owners),
            ["sessions", id, realm, name, session] => {
                Ok(Key::Admission(read_gateway(id)?, read_person(realm, name)?, read_session(session)?))
            }
            _ => Err(BadKey::Unknown),
        }
    }

    /// What a gateway reads and watches: from the first key to before the second.
    pub(super) fn watched(&self) -> (Vec<u8>, Vec<u8>) {
        (self.0.clone().into_bytes(), format!("{}{WATCHED_END}", self.0).into_bytes())
    }

    /// All sessions that were admitted at that gateway.
    pub(super) fn sessions(&self, gateway: GatewayId) -> (Vec<u8>, Vec<u8>) {
        self.below(&format!("sessions/{gateway}"))
    }

    /// Those of a person.
    ///
    /// # Errors
    /// [`BadKey::Length`], [`BadKey::Nul`]
    pub(super) fn sessions_of(
        &self,
        gateway: GatewayId,
        who: &Identity,
    ) -> Result<(Vec<u8>, Vec<u8>), BadKey> {
        Ok(self.below(&format!("sessions/{gateway}/{}", write_person(who)?)))
    }

    pub(super) fn owners(&self) -> (Vec<u8>, Vec<u8>) {
        self.below("owners")
    }

    /// `0` comes after `/`.
    fn below(&self, folder: &str) -> (Vec<u8>, Vec<u8>) {
        (format!("{}{folder}/", self.0).into_bytes(), format!("{}{folder}0", self.0).into_bytes())
    }
}

fn write_over(over: &Over) -> Result<String, BadKey> {
    Ok(match over {
        Over::User(who) => format!("users/{}", write_person(who)?),
        Over::Lock(who) => format!("locks/{}", write_person(who)?),
        Over::Session(safe_id) => format!("sessions/{}", hex::write(safe_id.as_bytes())),
        Over::Web(key) => format!("web/{}", hex::write(key.as_bytes())),
    })
}

fn write_person(who: &Identity) -> Result<String, BadKey> {
    check("the realm", &who.realm, MAX_REALM)?;
    check("the name", &who.name, MAX_NAME)?;
    let encode = |text| utf8_percent_encode(text, ENCODED);
    Ok(format!("{}/{}", encode(&who.realm), encode(&who.name)))
}

/// As it stands in a key and in a record.
pub(super) fn write_session(session: &SessionId) -> String {
    match session {
        SessionId::Vpn(safe_id) => hex::write(safe_id.as_bytes()),
        SessionId::Web(key) => hex::write(key.as_bytes()),
    }
}

fn check(what: &'static str, text: &str, most: usize) -> Result<(), BadKey> {
    if text.is_empty() || text.len() > most {
        return Err(BadKey::Length { what, length: text.len(), most });
    }
    if text.contains('\0') {
        return Err(BadKey::Nul(what));
    }
    Ok(())
}

fn read_gateway(text: &str) -> Result<GatewayId, BadKey> {
    text.parse().map_err(|_| BadKey::Spelling("the gateway", "32 hexadecimal digits in lower case"))
}

fn read_author(text: &str) -> Result<Author, BadKey> {
    match text {
        "admin" => Ok(Author::Admin),
        id => read_gateway(id).map(Author::Gateway),
    }
}

fn read_over(parts: &[&str]) -> Result<Over, BadKey> {
    match parts {
        ["users", realm, name] => read_person(realm, name).map(Over::User),
        ["locks", realm, name] => read_person(realm, name).map(Over::Lock),
        ["sessions", id] => hex::read(id)
            .map(|bytes| Over::Session(SafeId::from_bytes(bytes)))
            .ok_or(BadKey::Spelling("the safe_id", "40 hexadecimal digits in lower case")),
        ["web", key] => hex::read(key)
            .map(|bytes| Over::Web(WebKey::from_bytes(bytes)))
            .ok_or(BadKey::Spelling("the web session's key", "32 hexadecimal digits in lower case")),
        _ => Err(BadKey::Unknown),
    }
}

fn read_person(realm: &str, name: &str) -> Result<Identity, BadKey> {
    Ok(Identity {
        realm: read_part("the realm", realm, MAX_REALM)?,
        name: read_part("the name", name, MAX_NAME)?,
    })
}

pub(super) fn read_session(text: &str) -> Result<SessionId, BadKey> {
    let vpn = hex::read(text).map(|bytes| SessionId::Vpn(SafeId::from_bytes(bytes)));
    let web = || hex::read(text).map(|bytes| SessionId::Web(WebKey::from_bytes(bytes)));
    vpn.or_else(web)
        .ok_or(BadKey::Spelling("the session", "40 (VPN) or 32 (web) hexadecimal digits in lower case"))
}

fn read_part(what: &'static str, text: &str, most: usize) -> Result<String, BadKey> {
    let bad =
        BadKey::Spelling(what, "each byte that is not visible ASCII, / and % as %XX, and no other byte");
    let name = percent_decode_str(text).decode_utf8().map_err(|_| bad.clone())?;
    check(what, &name, most)?;
    if utf8_percent_encode(&name, ENCODED).to_string() != text {
        return Err(bad);
    }
    Ok(name.into_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prefix() -> Prefix {
        Prefix::new("/enforcer/v1/").unwrap()
    }

    fn identity() -> impl Strategy<Value = Identity> {
        let name = prop_oneof![
            "[a-z]{1,8}",
            "[/%.~ \u{1}\u{7f}\u{e9}\u{4e2d}A-F0-9]{1,12}",
            "[^\u{0}]{1,40}",
            Just("a".repeat(MAX_NAME)),
            Just("%2F".to_owned()),
            Just("..".to_owned()),
            Just("admin/users/x".to_owned()),
        ];
        ("[^\u{0}]{1,12}", name).prop_map(|(realm, name)| Identity { realm, name })
    }

    fn gateway() -> impl Strategy<Value = GatewayId> {
        any::<[u8; 16]>().prop_map(GatewayId::from_bytes)
    }

    fn author() -> impl Strategy<Value = Author> {
        prop_oneof![Just(Author::Admin), gateway().prop_map(Author::Gateway)]
    }

    fn over() -> impl Strategy<Value = Over> {
        prop_oneof![
            identity().prop_map(Over::User),
            identity().prop_map(Over::Lock),
            any::<[u8; 20]>().prop_map(|bytes| Over::Session(SafeId::from_bytes(bytes))),
            any::<[u8; 16]>().prop_map(|bytes| Over::Web(WebKey::from_bytes(bytes))),
        ]
    }

    fn session() -> impl Strategy<Value = SessionId> {
        prop_oneof![
            any::<[u8; 20]>().prop_map(|bytes| SessionId::Vpn(SafeId::from_bytes(bytes))),
            any::<[u8; 16]>().prop_map(|bytes| SessionId::Web(WebKey::from_bytes(bytes))),
        ]
    }

    fn key() -> impl Strategy<Value = Key> {
        prop_oneof![
            gateway().prop_map(Key::Gateway),
            gateway().prop_map(Key::Alive),
            gateway().prop_map(Key::Acknowledged),
            gateway().prop_map(Key::Barrier),
            (author(), over()).prop_map(|(author, over)| Key::Record(author, over)),
            (author(), author(), over()).prop_map(|(author, of, over)| Key::Lift(author, of, over)),
            (gateway(), identity(), session())
                .prop_map(|(id, who, session)| Key::Admission(id, who, session)),
            identity().prop_map(Key::Owners),
        ]
    }

    proptest! {
        /// Two keys are never written the same, since each is read back as it was.
        #[test]
        fn a_key_reads_back_as_it_was_written(key in key()) {
            let bytes = prefix().write(&key).unwrap();
            prop_assert!(bytes.iter().all(u8::is_ascii_graphic));
            prop_assert!(bytes.len() <= MAX_KEY);
            prop_assert_eq!(prefix().read(&bytes), Ok(key));
        }

        /// One spelling: whatever is read as a key is written just so.
        #[test]
        fn what_is_read_as_a_key_is_written_just_so(key in key(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut bytes = prefix().write(&key).unwrap();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Ok(read) = prefix().read(&bytes) {
                prop_assert_eq!(prefix().write(&read).unwrap(), bytes);
            }
        }

        #[test]
        fn r7_no_bytes_make_reading_a_key_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = prefix().read(&bytes);
            let below = [b"/enforcer/v1/from/admin/users/".as_slice(), &bytes].concat();
            let _ = prefix().read(&below);
        }

        /// What is watched is one range, and the rest is outside of it; each list has its own and no other's.
        #[test]
        fn the_ranges_hold_what_they_are_for(key in key(), gateway in gateway(), who in identity()) {
            let bytes = prefix().write(&key).unwrap();
            let within = |(from, to): &(Vec<u8>, Vec<u8>)| *from <= bytes && bytes < *to;
            prop_assert_eq!(within(&prefix().watched()), key.is_watched());
            prop_assert_eq!(within(&prefix().owners()), matches!(key, Key::Owners(_)));
            let its = matches!(&key, Key::Admission(id, ..) if *id == gateway);
            prop_assert_eq!(within(&prefix().sessions(gateway)), its);
            if let Key::Admission(id, person, _) = &key {
                prop_assert!(within(&prefix().sessions(*id)));
                prop_assert!(within(&prefix().sessions_of(*id, person).unwrap()));
                prop_assert_eq!(within(&prefix().sessions_of(*id, &who).unwrap()), who == *person);
            }
        }
    }

    #[test]
    fn names_stay_in_their_place() {
        let written = |realm: &str, name: &str| {
            let who = Identity { realm: realm.into(), name: name.into() };
            prefix()
                .write(&Key::Record(Author::Admin, Over::User(who)))
                .map(|bytes| String::from_utf8(bytes).unwrap())
        };
        assert_eq!(written("default", "alice").unwrap(), "/enforcer/v1/from/admin/users/default/alice");
        assert_eq!(
            written("a/b", "50%/é \n").unwrap(),
            "/enforcer/v1/from/admin/users/a%2Fb/50%25%2F%C3%A9%20%0A"
        );
        assert!(written("default", &"é".repeat(128)).is_ok(), "256 bytes");
        for (realm, name) in [
            ("", "alice"),
            ("default", ""),
            (&*"r".repeat(65), "alice"),
            ("default", &*"n".repeat(257)),
            ("default", "a\0b"),
        ] {
            assert!(written(realm, name).is_err(), "{realm:?} {name:?}");
        }
    }

    #[test]
    fn what_is_no_key_of_ours_says_why() {
        let id = "a7".repeat(16);
        let why =
            |rest: &str| prefix().read(format!("/enforcer/v1/{rest}").as_bytes()).unwrap_err().to_string();
        for (rest, says) in [
            ("", "no such key"),
            ("users/default/alice", "no such key"),
            ("from/admin/users/default", "no such key"),
            ("from/admin/users/default/alice/x", "no such key"),
            ("from/admin/users/default/", "1 to 256"),
            ("from/admin/users//alice", "1 to 64"),
            ("from/admin/users/default/a%2fb", "spelt"),
            ("from/admin/users/default/a%zz", "spelt"),
            ("from/admin/users/default/%61lice", "spelt"),
            ("from/admin/users/default/a b", "spelt"),
            ("from/admin/users/default/é", "spelt"),
            ("from/admin/users/default/%ff", "spelt"),
            ("from/admin/users/default/%00", "NUL"),
            ("from/somebody/users/default/alice", "32 hexadecimal"),
            ("from/admin/barrier", "32 hexadecimal"),
            ("from/admin/lifts/admin", "no such key"),
            ("from/admin/sessions/2jmj7l5rSw0yVb", "40 hexadecimal"),
            (&format!("gateways/{}", id.to_uppercase()), "32 hexadecimal"),
            (&format!("from/{id}/web/{}", "a7".repeat(20)), "32 hexadecimal"),
            (&format!("sessions/{id}/default/alice/12"), "40 (VPN) or 32 (web)"),
            (&format!("from/admin/users/default/{}", "a".repeat(5_000)), "bytes long"),
        ] {
            assert!(why(rest).contains(says), "{rest}: {}", why(rest));
        }
        assert!(prefix().read(b"/enforcer/v2/gateways/x").unwrap_err().to_string().contains("/enforcer/v1/"));
        assert_eq!(prefix().read(b"/enforcer/v1/from/\xff"), Err(BadKey::NotText));
    }

    #[test]
    fn a_prefix_is_a_folder() {
        for good in ["/enforcer/v1/", "/a/", "/a/b/c/"] {
            assert!(Prefix::new(good).is_ok(), "{good}");
        }
        for bad in ["", "/", "//", "a/", "/a", "/a//b/", "/ä/", "/a b/", &format!("/{}/", "a".repeat(127))] {
            assert!(Prefix::new(bad).unwrap_err().contains("/enforcer/v1/"), "{bad:?}");
        }
    }
}
