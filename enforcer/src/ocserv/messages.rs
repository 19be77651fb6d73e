//! From ocserv's messages to our words. Record by record: an odd one is reported, and hides no other.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::Duration;

use prost::Message as _;

use super::{name, wire};
use crate::session::{Cookie, Observed, SafeId};

/// The safe_id of 32 zero bytes: what every worker shows whose client has not logged in (seen with 1.1.6, 1.3.0
/// and 1.5.0; `append_user_info` in `src/main-ctl-unix.c`). It names no cookie, and all of them share it.
const NO_COOKIE: SafeId = SafeId::from_bytes([
    0xde, 0x8a, 0x84, 0x7b, 0xff, 0x8c, 0x34, 0x3d, 0x69, 0xb8, 0x53, 0xa2, 0x15, 0xe6, 0xee, 0x77, 0x5e,
    0xf2, 0xef, 0x96,
]);

/// `PS_AUTH_COMPLETED` in `src/defs.h`: what main shows once the connect-script has let the client in. During the
/// script it shows 1 (1.1.6, 1.3.0, 1.5.0), before a login 0.
const CONNECTED: u32 = 4;

/// A record that could not be read as one of ours.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Odd {
    /// ocserv's id of the worker, if it was readable.
    pub id: Option<i32>,
    /// The name, if it was readable.
    pub user: Option<String>,
    pub why: &'static str,
}

/// Who is there, completely.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Listing {
    /// Sessions: workers whose client has presented a cookie.
    pub sessions: Vec<Observed>,
    /// Ids of those that are not let in yet: their connect-script may still be running.
    pub in_admission: HashSet<i32>,
    /// Workers whose client has not logged in.
    pub strangers: usize,
    /// Records that could not be read, or not wholly: a session whose safe_id or address is none is in `sessions`,
    /// without it, and here.
    pub odd: Vec<Odd>,
}

/// The cookies that ocserv told of. **This may be less than it holds**: main asks each of its sec-mod processes,
/// skips one that fails, and says nothing about it (`method_list_cookies`). See [`Cookies::lacks`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Cookies {
    pub cookies: Vec<Cookie>,
    pub odd: Vec<Odd>,
    /// How long the answer took. A sec-mod that does not answer holds main up until a timeout of minutes
    /// (`MAIN_SEC_MOD_TIMEOUT`), so an incomplete list is a slow one, or our own timeout.
    pub took: Duration,
}

impl Cookies {
    /// Those of `live` whose cookie is not in the list. ocserv holds the cookie of every live session: if any is
    /// lacking that is live before *and* after the list was asked for, the list is not complete.
    ///
    /// An empty answer proves less the more sec-mod processes there are ([`super::Status::sec_mods`]): one without
    /// a live session can be missing unseen.
    pub fn lacks<'a>(&self, live: impl IntoIterator<Item = &'a Observed>) -> Vec<SafeId> {
        let held: HashSet<SafeId> = self.cookies.iter().map(|cookie| cookie.safe_id).collect();
        live.into_iter().filter_map(|session| session.safe_id).filter(|id| !held.contains(id)).collect()
    }
}

/// A worker whose client has presented a cookie.
pub(super) struct Session {
    pub observed: Observed,
    pub connected: bool,
    /// Not all of its record could be read.
    pub odd: Option<Odd>,
}

fn text(bytes: Option<Vec<u8>>) -> Option<String> {
    name::from_wire(&bytes.unwrap_or_default())
}

/// None: a worker whose client has not logged in.
pub(super) fn session(info: wire::UserInfo) -> Result<Option<Session>, Odd> {
    let user = text(info.username);
    let odd = |why| Odd { id: info.id, user: user.clone(), why };
    let Some(id) = info.id.filter(|id| *id > 0) else { return Err(odd("a session without an id")) };
    let mut problem = None;
    let safe_id = match info.safe_id.as_deref().map(SafeId::from_wire) {
        Some(Ok(NO_COOKIE)) => return Ok(None),
        Some(Ok(safe_id)) => Some(safe_id),
        Some(Err(_)) => {
            problem = Some(odd("a session whose safe_id is none"));
            None
        }
        None => None,
    };
    let Some(name) = user.clone() else { return Err(odd("a session whose user name is none")) };
    if name.is_empty() && safe_id.is_none() && problem.is_none() {
        return Ok(None);
    }
    let mut addresses = Vec::new();
    for address in [info.local_ip, info.local_ip6].into_iter().flatten().filter(|address| !address.is_empty())
    {
        match std::str::from_utf8(&address).ok().and_then(|address| address.parse::<IpAddr>().ok()) {
            Some(address) => addresses.push(address),
            None => problem = Some(odd("a session whose tunnel address is none")),
        }
    }
    let observed = Observed {
        id,
        user: name,
        group: text(info.groupname).unwrap_or_default(),
        vhost: text(info.vhost).unwrap_or_default(),
        device: text(info.tun).filter(|name| !name.is_empty()),
        addresses,
        client: text(info.ip).unwrap_or_default(),
        safe_id,
        since: u64::from(info.conn_time.unwrap_or(0)),
    };
    Ok(Some(Session { observed, connected: info.status == Some(CONNECTED), odd: problem }))
}

pub(super) fn listing(body: &[u8]) -> Result<Listing, prost::DecodeError> {
    let mut listing = Listing::default();
    for info in wire::UserList::decode(body)?.user {
        match session(info) {
            Ok(Some(Session { observed, connected, odd })) => {
                if !connected {
                    listing.in_admission.insert(observed.id);
                }
                listing.sessions.push(observed);
                listing.odd.extend(odd);
            }
            Ok(None) => listing.strangers += 1,
            Err(odd) => listing.odd.push(odd),
        }
    }
    Ok(listing)
}

pub(super) fn cookies(body: &[u8]) -> Result<Cookies, prost::DecodeError> {
    let mut cookies = Cookies::default();
    for info in wire::CookieList::decode(body)?.cookies {
        let user = text(info.username);
        let safe_id = info.safe_id.as_deref().map(SafeId::from_wire);
        match (safe_id, user) {
            (Some(Ok(safe_id)), Some(user)) => cookies.cookies.push(Cookie {
                safe_id,
                user,
                vhost: text(info.vhost).unwrap_or_default(),
                created: u64::from(info.created.unwrap_or(0)),
                in_use: info.in_use.unwrap_or(false),
            }),
            (Some(Ok(_)), None) => {
                cookies.odd.push(Odd { id: None, user: None, why: "a cookie whose user name is none" })
            }
            (_, user) => cookies.odd.push(Odd { id: None, user, why: "a cookie whose safe_id is none" }),
        }
    }
    Ok(cookies)
}

/// An event of TOP.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Event {
    Connected {
        observed: Observed,
    },
    Disconnected {
        observed: Observed,
        reason: u32,
        reason_text: String,
    },
    /// Somebody who had not logged in, or a record that cannot be read.
    Other,
}

pub(super) fn events(body: &[u8]) -> Result<Vec<Event>, prost::DecodeError> {
    let update = wire::TopUpdate::decode(body)?;
    let reason = update.discon_reason.unwrap_or(0);
    let reason_text = text(update.discon_reason_txt).unwrap_or_default();
    let connected = update.connected.unwrap_or(0) != 0;
    let users = update.user.unwrap_or_default().user;
    Ok(users
        .into_iter()
        .map(|info| match session(info) {
            Ok(Some(Session { observed, .. })) if connected => Event::Connected { observed },
            Ok(Some(Session { observed, .. })) => {
                Event::Disconnected { observed, reason, reason_text: reason_text.clone() }
            }
            _ => Event::Other,
        })
        .collect())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub fn safe_id(byte: u8) -> SafeId {
        SafeId::from_bytes([byte; 20])
    }

    pub fn info(id: i32, user: &[u8], byte: u8) -> wire::UserInfo {
        let mut wire_id = safe_id(byte).to_string().into_bytes();
        wire_id.push(0);
        wire::UserInfo {
            id: Some(id),
            username: Some(user.to_vec()),
            local_ip: Some(b"10.9.0.50".to_vec()),
            tun: Some(b"vpns0".to_vec()),
            status: Some(CONNECTED),
            safe_id: Some(wire_id),
            vhost: Some(b"default".to_vec()),
            ..Default::default()
        }
    }

    #[test]
    fn one_odd_record_hides_no_other() {
        let bad_id = wire::UserInfo { safe_id: Some(b"short".to_vec()), ..info(4, b"carol", 3) };
        let no_id = wire::UserInfo { id: None, ..info(0, b"dave", 4) };
        let bad_address = wire::UserInfo { local_ip: Some(b"nonsense".to_vec()), ..info(5, b"eve", 5) };
        let body = wire::UserList {
            user: vec![info(1, b"alice", 1), bad_id, no_id, bad_address, info(2, b"b\xffb", 2)],
        };
        let listing = listing(&body.encode_to_vec()).unwrap();
        let users: Vec<_> = listing.sessions.iter().map(|session| session.user.as_str()).collect();
        assert_eq!(users, ["alice", "carol", "eve", "b\0ffb"]);
        assert_eq!((listing.sessions[1].safe_id, listing.sessions[2].addresses.len()), (None, 0));
        assert_eq!(listing.odd.len(), 3);
        assert_eq!(listing.odd[0].id, Some(4));
    }

    #[test]
    fn who_has_not_logged_in_is_no_session_and_who_is_in_the_script_is_in_admission() {
        let mut stranger = info(3, b"", 0);
        stranger.safe_id = Some(b"3oqEe/+MND1puFOiFebud17y75Y=\0".to_vec());
        let in_script = wire::UserInfo { status: Some(1), ..info(4, b"alice", 1) };
        let body = wire::UserList { user: vec![stranger, in_script, info(5, b"bob", 2)] };
        let listing = listing(&body.encode_to_vec()).unwrap();
        assert_eq!(listing.sessions.len(), 2);
        assert_eq!(listing.strangers, 1);
        assert_eq!(listing.in_admission, HashSet::from([4]));
    }

    #[test]
    fn a_list_that_lacks_a_live_session_says_so() {
        let body = wire::CookieList {
            cookies: vec![wire::CookieInfo {
                safe_id: info(1, b"a", 1).safe_id,
                username: Some(b"alice".to_vec()),
                ..Default::default()
            }],
        };
        let cookies = cookies(&body.encode_to_vec()).unwrap();
        let live = |byte| Observed { safe_id: Some(safe_id(byte)), ..Default::default() };
        assert_eq!(cookies.lacks(&[live(1)]), []);
        assert_eq!(cookies.lacks(&[live(1), live(2)]), [safe_id(2)]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = listing(&bytes);
            let _ = cookies(&bytes);
            let _ = events(&bytes);
        }

        #[test]
        fn any_record_is_told_of_somehow(id in any::<Option<i32>>(), user in any::<Option<Vec<u8>>>(), ip in any::<Option<Vec<u8>>>(), safe in any::<Option<Vec<u8>>>()) {
            let odd = wire::UserInfo { id, username: user, local_ip: ip, safe_id: safe, ..Default::default() };
            let body = wire::UserList { user: vec![info(1, b"alice", 1), odd] };
            let listing = listing(&body.encode_to_vec()).unwrap();
            prop_assert!(listing.sessions.len() + listing.odd.len() + listing.strangers >= 2);
            prop_assert_eq!(&listing.sessions[0].user, "alice");
        }
    }
}
