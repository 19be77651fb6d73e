//! Requests to the control API: bytes, decoded as the records of `proto/enforcer.proto`, and what decodes is read.
//!
//! First byte: which record. Beside "no bytes make it panic": what is taken keeps its bounds and reads the same when it
//! is printed; what is refused is refused in a bounded sentence without control characters.

use std::time::Duration;

use enforcer::control::api;
use enforcer::control::target::{
    Asked, MAX_NAME, MAX_REASON, MAX_SECONDS, parse_target, read_lock, read_revoke, read_unlock,
};
use enforcer::session::{Case, DEFAULT_REALM, Identity, Realms, Target};
use prost::Message;

pub fn body(input: &[u8]) {
    let Some((which, bytes)) = input.split_first() else { return };
    match which % 6 {
        0 => decoded(bytes, revoke),
        1 => decoded(bytes, lock),
        2 => decoded(bytes, unlock),
        3 => decoded::<api::LiftRequest>(bytes, |_| {}),
        4 => decoded::<api::RevokeBatch>(bytes, |batch| batch.requests.iter().for_each(revoke)),
        _ => decoded::<api::GateLook>(bytes, |_| {}),
    }
}

/// A record is written and read back as it is, and no longer than a few times what it was read from.
fn decoded<M: Message + Default + PartialEq + std::fmt::Debug>(bytes: &[u8], read: impl FnOnce(&M)) {
    let Ok(message) = M::decode(bytes) else { return };
    let again = message.encode_to_vec();
    assert_eq!(M::decode(&*again).as_ref(), Ok(&message));
    assert!(again.len() <= 2 * bytes.len(), "{} bytes became {}", bytes.len(), again.len());
    read(&message);
}

fn revoke(request: &api::RevokeRequest) {
    match read_revoke(request) {
        Err(status) => refused(status.message()),
        Ok(Asked { target, server, stands }) => {
            taken(&target);
            assert!(request.reason.len() <= MAX_REASON);
            assert_eq!(
                request.target.as_ref().is_some_and(|target| target.server.is_empty()),
                server.is_none()
            );
            assert!(server.is_none_or(|server| server.as_str().len() <= MAX_NAME));
            bounded(request.for_seconds, stands);
            let explicit = matches!(target, Target::Address(_) | Target::Flow(_) | Target::Token(_));
            assert!(stands.is_none() || explicit);
        }
    }
}

fn taken(target: &Target) {
    use api::target::What;
    let printed = target.to_string();
    assert!(!printed.chars().any(char::is_control), "{printed:?}");
    let word = printed.split_once(' ').map(|(_, word)| word.to_owned()).unwrap_or_default();
    let what = match target {
        // printed with escapes, which people read and nobody parses
        Target::User(name) => {
            assert!((1..=MAX_NAME).contains(&name.len()) && !name.contains('\0'));
            What::User(name.clone())
        }
        Target::Id(id) => {
            assert!(*id > 0);
            What::Id(*id)
        }
        Target::Session(_) => What::Session(word),
        Target::Web(key) => What::Session(key.to_string()),
        Target::Address(address) => {
            assert_eq!(*address, address.to_canonical());
            What::Address(word)
        }
        Target::Flow(_) => What::Flow(word),
        Target::Token(token) => {
            assert!((1..=32).contains(&token.id().len()));
            What::Token(word)
        }
        Target::Person(_) | Target::Lock(_) | Target::Adopted => panic!("{target}: nobody can ask for that"),
    };
    match parse_target(&api::Target { what: Some(what), server: String::new() }) {
        Ok(again) => assert_eq!(again, *target),
        Err(status) => panic!("{target} was taken, and is not when it is printed: {status}"),
    }
}

fn lock(request: &api::LockRequest) {
    match read_lock(request, CONFIGURED, &realms()) {
        Err(status) => refused(status.message()),
        Ok((identity, stands)) => {
            person(&identity, &request.user, &request.realm);
            assert!(request.reason.len() <= MAX_REASON);
            bounded(request.for_seconds, stands);
        }
    }
}

fn unlock(request: &api::UnlockRequest) {
    match read_unlock(request, CONFIGURED, &realms()) {
        Err(status) => refused(status.message()),
        Ok(identity) => person(&identity, &request.user, &request.realm),
    }
}

/// Two realms, one of each case rule.
const CONFIGURED: [&str; 2] = [DEFAULT_REALM, "staff"];

fn realms() -> Realms {
    let mut realms = Realms::default();
    realms.set_case("staff", Case::Fold);
    realms
}

/// Who is locked can be unlocked by the name that the lock shows.
fn person(identity: &Identity, user: &str, realm: &str) {
    assert!(
        (1..=MAX_NAME).contains(&user.len()) && !identity.name.is_empty() && !identity.name.contains('\0')
    );
    assert!(CONFIGURED.contains(&identity.realm.as_str()));
    assert!(identity.realm == realm || realm.is_empty());
    assert_eq!(realms().person(&identity.realm, &identity.name), *identity);
    assert!(!identity.to_string().chars().any(char::is_control));
    if identity.realm == DEFAULT_REALM {
        assert_eq!(identity.name, user);
    }
    // lower case may take more bytes than upper case, and then the name that is shown must be taken as well
    let again = api::UnlockRequest { user: identity.name.clone(), realm: realm.into(), ..Default::default() };
    match read_unlock(&again, CONFIGURED, &realms()) {
        Ok(again) => assert_eq!(again, *identity),
        Err(status) => panic!("{identity}: {status}"),
    }
}

fn bounded(seconds: u64, stands: Option<Duration>) {
    assert!(seconds <= MAX_SECONDS);
    assert_eq!(stands.map_or(0, |stands| stands.as_secs()), seconds);
    assert_ne!(stands, Some(Duration::ZERO));
}

fn refused(why: &str) {
    assert!((8..2_000).contains(&why.len()), "{} bytes", why.len());
    assert!(!why.chars().any(char::is_control), "{why:?}");
}
