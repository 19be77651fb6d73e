//! What the web gateway asks, read: records become the session's types, or an error that says what is wrong.
//!
//! Pure. Every error is `INVALID_ARGUMENT`, or `FAILED_PRECONDITION` for a realm that is not configured. Nothing that is
//! secret is shown in one.

use std::time::Duration;

use tonic::Status;

use super::api;
use super::target::check_name;
use crate::session::{DEFAULT_REALM, WebDigest, WebKey, WebTokenRecord};

/// In bytes.
pub const MAX_WRAPPED: usize = 512;
/// As DNS has them.
pub const MAX_HOST: usize = 255;
pub const MAX_PEER: usize = 64;
pub const MAX_AGENT: usize = 256;
/// How many one message may have.
pub const MAX_USES: usize = 1_024;
/// The shortest and the longest time of a session, in seconds.
pub const SECONDS: std::ops::RangeInclusive<u64> = 10..=366 * 86_400;

/// A request for a session, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AskedSession {
    pub realm: String,
    /// As it was typed.
    pub user: String,
    pub peer: String,
    pub agent: String,
    pub idle: Duration,
    pub lasts: Duration,
    pub token: WebTokenRecord,
}

/// `realms`: those that a web user may be of.
pub fn read_create(request: api::WebCreate, realms: &[String]) -> Result<AskedSession, Status> {
    let api::WebCreate { user, realm, host, digest, wrapped, peer, agent, idle_seconds, for_seconds } =
        request;
    check_name(&user)?;
    let realm = if realm.is_empty() { DEFAULT_REALM.to_owned() } else { realm };
    if !realms.contains(&realm) {
        return Err(Status::failed_precondition(format!(
            "no web user is of the realm {:?}: look at [web] realms in the configuration",
            short(&realm)
        )));
    }
    if peer.len() > MAX_PEER || peer.chars().any(char::is_control) {
        return Err(bad(format!("{:?} is no client's address", short(&peer))));
    }
    Ok(AskedSession {
        realm,
        user,
        peer,
        agent: read_agent(&agent),
        idle: read_seconds("the idle time", idle_seconds)?,
        lasts: read_seconds("the time of a session", for_seconds)?,
        token: read_token(host, &digest, wrapped)?,
    })
}

/// Cut off, and without what steers a terminal: it is shown to people.
fn read_agent(agent: &str) -> String {
    let plain: String = agent.chars().take(MAX_AGENT).map(|c| if c.is_control() { ' ' } else { c }).collect();
    plain[..plain.floor_char_boundary(MAX_AGENT)].to_owned()
}

fn read_seconds(what: &str, seconds: u64) -> Result<Duration, Status> {
    if !SECONDS.contains(&seconds) {
        let (least, most) = SECONDS.into_inner();
        return Err(bad(format!("{what} is {seconds} s: it is {least} to {most}")));
    }
    Ok(Duration::from_secs(seconds))
}

/// A token of a session on one host.
pub fn read_token(host: String, digest: &[u8], wrapped: Vec<u8>) -> Result<WebTokenRecord, Status> {
    if host.is_empty() || host.len() > MAX_HOST || host.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(bad(format!("{:?} is no host", short(&host))));
    }
    let wrapped = read_wrapped(wrapped)?;
    Ok(WebTokenRecord { digest: read_digest(digest)?, host, wrapped })
}

pub fn read_wrapped(wrapped: Vec<u8>) -> Result<Vec<u8>, Status> {
    if wrapped.is_empty() || wrapped.len() > MAX_WRAPPED {
        return Err(bad(format!("a wrapped secret of {} bytes: it has 1 to {MAX_WRAPPED}", wrapped.len())));
    }
    Ok(wrapped)
}

pub fn read_digest(digest: &[u8]) -> Result<WebDigest, Status> {
    let bytes = <[u8; 32]>::try_from(digest);
    bytes
        .map(WebDigest::from_bytes)
        .map_err(|_| bad(format!("a digest of {} bytes: it has 32", digest.len())))
}

pub fn read_key(key: &[u8]) -> Result<WebKey, Status> {
    let bytes = <[u8; 16]>::try_from(key);
    bytes
        .map(WebKey::from_bytes)
        .map_err(|_| bad(format!("a session's key of {} bytes: it has 16", key.len())))
}

/// How long ago sessions were used.
pub fn read_seen(request: &api::WebSeen) -> Result<Vec<(WebKey, Duration)>, Status> {
    check_count(request.uses.len(), MAX_USES)?;
    (request.uses.iter()).map(|one| Ok((read_key(&one.key)?, Duration::from_millis(one.ago_ms)))).collect()
}

/// Which session is to end: by its key, or by a token.
pub fn read_which(request: &api::WebEnd) -> Result<Result<WebKey, WebDigest>, Status> {
    match &request.which {
        Some(api::web_end::Which::Key(key)) => read_key(key).map(Ok),
        Some(api::web_end::Which::Digest(digest)) => read_digest(digest).map(Err),
        None => Err(bad("which session? its key, or the digest of one of its tokens")),
    }
}

/// What was closed, and how many sockets of each.
pub fn read_closed(request: &api::WebAcknowledged) -> Result<Vec<(WebKey, u64)>, Status> {
    check_count(request.closed.len(), MAX_USES)?;
    request.closed.iter().map(|one| Ok((read_key(&one.key)?, one.sockets))).collect()
}

fn check_count(found: usize, most: usize) -> Result<(), Status> {
    if found > most { Err(bad(format!("{found} in one message: at most {most}"))) } else { Ok(()) }
}

fn bad(text: impl Into<String>) -> Status {
    Status::invalid_argument(text)
}

/// As much of a word as an error may show.
fn short(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create() -> api::WebCreate {
        api::WebCreate {
            user: "alice".into(),
            realm: String::new(),
            host: "app.example".into(),
            digest: vec![1; 32],
            wrapped: vec![2; 60],
            peer: "192.0.2.1".into(),
            agent: "é".repeat(300) + "\n",
            idle_seconds: 600,
            for_seconds: 3_600,
        }
    }

    #[test]
    fn a_session_is_read_within_its_bounds_and_the_agent_is_cut_off() {
        let realms = [DEFAULT_REALM.to_owned()];
        let read = read_create(create(), &realms).unwrap();
        assert_eq!(
            (read.realm.as_str(), read.idle.as_secs(), read.lasts.as_secs()),
            (DEFAULT_REALM, 600, 3_600)
        );
        assert!(read.agent.len() <= MAX_AGENT && read.agent.chars().all(|c| c == 'é'), "{}", read.agent);
        type Change = fn(&mut api::WebCreate);
        let changes: [Change; 14] = [
            |r| r.user.clear(),
            |r| r.user = "x".repeat(257),
            |r| r.user = "a\0b".into(),
            |r| r.realm = "staff".into(),
            |r| r.host.clear(),
            |r| r.host = "a b".into(),
            |r| r.host = "x".repeat(256),
            |r| r.digest = vec![1; 31],
            |r| r.digest = vec![1; 33],
            |r| r.wrapped.clear(),
            |r| r.wrapped = vec![2; 513],
            |r| r.peer = "x".repeat(65),
            |r| r.idle_seconds = 9,
            |r| r.for_seconds = u64::MAX,
        ];
        for (index, change) in changes.into_iter().enumerate() {
            let mut request = create();
            change(&mut request);
            assert!(read_create(request, &realms).is_err(), "{index}");
        }
    }

    #[test]
    fn lists_are_bounded() {
        let seen = |count| {
            read_seen(&api::WebSeen { uses: vec![api::WebUse { key: vec![7; 16], ago_ms: 1 }; count] })
        };
        assert!(seen(1_024).is_ok() && seen(1_025).is_err());
        assert!(read_which(&api::WebEnd { which: None, cause: 0 }).is_err());
    }

    proptest::proptest! {
        /// R7: whatever comes, what is taken is bounded, and an error shows little of it.
        #[test]
        fn r7_no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..400)) {
            use prost::Message as _;
            let told = |status: Status| assert!(status.message().len() < 1_000, "{}", status.message());
            if let Ok(request) = api::WebCreate::decode(bytes.as_slice()) {
                match read_create(request, &[DEFAULT_REALM.to_owned()]) {
                    Ok(read) => assert!(read.agent.len() <= MAX_AGENT && read.token.wrapped.len() <= MAX_WRAPPED),
                    Err(status) => told(status),
                }
            }
            if let Ok(request) = api::WebSeen::decode(bytes.as_slice()) {
                read_seen(&request).map(drop).unwrap_or_else(told);
            }
            if let Ok(request) = api::WebAcknowledged::decode(bytes.as_slice()) {
                read_closed(&request).map(drop).unwrap_or_else(told);
            }
            if let Ok(request) = api::WebEnd::decode(bytes.as_slice()) {
                read_which(&request).map(drop).unwrap_or_else(told);
            }
        }

        #[test]
        fn r7_a_session_of_any_words_is_read_or_refused(
            words in proptest::collection::vec(".{0,300}", 4), times in proptest::array::uniform2(0..100_000_000_u64),
        ) {
            let [user, host, peer, agent] = <[String; 4]>::try_from(words).unwrap();
            let [idle_seconds, for_seconds] = times;
            let request = api::WebCreate { user, host, peer, agent, idle_seconds, for_seconds, ..create() };
            if let Ok(read) = read_create(request, &[DEFAULT_REALM.to_owned()]) {
                assert!(read.agent.len() <= MAX_AGENT && read.peer.len() <= MAX_PEER && read.token.host.len() <= MAX_HOST);
                assert!(![read.agent, read.peer, read.token.host].iter().any(|word| word.chars().any(char::is_control)));
            }
        }
    }
}
