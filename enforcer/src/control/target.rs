//! What is asked, read: the words of a request become the session's types, or an error that says what is wrong.
//!
//! Pure: no IO, no clock, no configuration but what is handed in. Every error is `INVALID_ARGUMENT` (the request can
//! never be right) or, for a realm that nobody is of, `FAILED_PRECONDITION`. An error shows at most 80 characters of
//! what was sent, escaped.

use std::net::IpAddr;
use std::time::Duration;

use tonic::Status;

use super::api;
use crate::session::{
    BadWord, DEFAULT_REALM, Flow, Identity, Realms, SafeId, ServerName, Target, Token, TokenKind, WebKey,
};

/// In bytes. ocserv's own limit on a user name (`MAX_USERNAME_SIZE` in its `src/vpn.h`) is lower; a longer one is
/// nobody's.
pub const MAX_NAME: usize = 256;
/// In bytes.
pub const MAX_REASON: usize = 1_024;
/// 100 years: beyond this the kernel's clock in nanoseconds would overflow.
pub const MAX_SECONDS: u64 = 100 * 365 * 86_400;

/// The longest time that an answer waits for the other gateways, in milliseconds.
pub const MAX_WAIT_MS: u64 = 600_000;

/// A request for a revocation, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Never a lock, never [`Target::Adopted`].
    pub target: Target,
    /// Only on this server; all of them where it is `None`. Whether there is such a server is not known here.
    pub server: Option<ServerName>,
    /// Until lifted where it is `None`, and always so for a user, an id or a session.
    pub stands: Option<Duration>,
}

/// Whom or what a revocation is to end, where, and for how long.
pub fn read_revoke(request: &api::RevokeRequest) -> Result<Asked, Status> {
    let target = request.target.as_ref().ok_or_else(|| bad("whom or what? a target is needed"))?;
    check_reason(&request.reason)?;
    read_wait(request.wait_ms)?;
    let stands = for_seconds(request.for_seconds)?;
    let server = read_server(&target.server)?;
    let target = parse_target(target)?;
    let explicit = matches!(target, Target::Address(_) | Target::Flow(_) | Target::Token(_));
    if stands.is_some() && !explicit {
        return Err(bad("a session's end has no duration: it stands until nothing could bring it back"));
    }
    Ok(Asked { target, server, stands })
}

/// A server's configured name; empty: every server. Whether there is such a server is not known here, and who knows it
/// shows the name in the error: so it is bounded here ([`MAX_NAME`]) and has no control characters.
fn read_server(name: &str) -> Result<Option<ServerName>, Status> {
    if name.len() > MAX_NAME || name.chars().any(char::is_control) {
        return Err(bad(format!(
            "{:?} is no server's name: it is the one in the configuration, at most {MAX_NAME} bytes",
            short(name)
        )));
    }
    Ok((!name.is_empty()).then(|| ServerName::new(name)))
}

/// Who is to be locked, and for how long (`None`: until unlocked). `realms` are those that are configured.
pub fn read_lock<'a>(
    request: &api::LockRequest,
    configured: impl IntoIterator<Item = &'a str>,
    realms: &Realms,
) -> Result<(Identity, Option<Duration>), Status> {
    check_reason(&request.reason)?;
    read_wait(request.wait_ms)?;
    let identity = parse_person(&request.user, &request.realm, configured, realms)?;
    Ok((identity, for_seconds(request.for_seconds)?))
}

/// Whose locks are to be taken back.
pub fn read_unlock<'a>(
    request: &api::UnlockRequest,
    configured: impl IntoIterator<Item = &'a str>,
    realms: &Realms,
) -> Result<Identity, Status> {
    check_reason(&request.reason)?;
    read_wait(request.wait_ms)?;
    parse_person(&request.user, &request.realm, configured, realms)
}

/// A name in a realm; an empty realm is [`DEFAULT_REALM`]. Another one must be among the `configured`: a lock in a
/// realm that nobody is of would keep nobody out. `realms` hold the case rules.
pub fn parse_person<'a>(
    user: &str,
    realm: &str,
    configured: impl IntoIterator<Item = &'a str>,
    realms: &Realms,
) -> Result<Identity, Status> {
    check_name(user)?;
    let realm = if realm.is_empty() { DEFAULT_REALM } else { realm };
    if realm != DEFAULT_REALM && !configured.into_iter().any(|one| one == realm) {
        return Err(Status::failed_precondition(format!(
            "no server is of the realm {:?}: look at [ocserv] realm in the configuration",
            short(realm)
        )));
    }
    let identity = realms.person(realm, user);
    // lower case may take more bytes, and the name that is shown afterwards must be one that can be typed
    check_name(&identity.name)?;
    Ok(identity)
}

/// What a target names. Its server is not looked at.
pub fn parse_target(target: &api::Target) -> Result<Target, Status> {
    match target.what.as_ref() {
        None => Err(bad("whom or what? a target is needed")),
        Some(api::target::What::User(name)) => check_name(name).map(|()| Target::User(name.clone())),
        Some(api::target::What::Id(id)) if *id <= 0 => {
            Err(bad(format!("{id} is no id: ids are worker pids, above 0")))
        }
        Some(api::target::What::Id(id)) => Ok(Target::Id(*id)),
        // the two are of different lengths
        Some(api::target::What::Session(id)) => match (id.parse::<WebKey>(), id.parse::<SafeId>()) {
            (Ok(key), _) => Ok(Target::Web(key)),
            (_, Ok(id)) => Ok(Target::Session(id)),
            (Err(key), Err(safe_id)) => Err(bad(format!("{:?}: {safe_id}; and {key}", short(id)))),
        },
        Some(api::target::What::Address(address)) => (address.parse::<IpAddr>())
            .map(|address| Target::Address(address.to_canonical()))
            .map_err(|_| bad(format!("{:?} is no IP address", short(address)))),
        Some(api::target::What::Flow(flow)) => parse_flow(flow).map(Target::Flow),
        Some(api::target::What::Token(token)) => parse_token(token).map(Target::Token),
    }
}

/// `tcp|udp CLIENT:PORT LOCAL:PORT`, as [`Flow`] prints itself; an IPv6 address in brackets.
pub fn parse_flow(text: &str) -> Result<Flow, Status> {
    let no_flow = || bad(format!("{:?}: {}", short(text), BadWord::Flow));
    let mut words = text.split_whitespace();
    let (Some(protocol), Some(client), Some(local), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(no_flow());
    };
    let protocol = protocol.parse().map_err(|error| bad(format!("{:?}: {error}", short(protocol))))?;
    let end = |text: &str| text.parse().map_err(|_| no_flow());
    Flow::new(protocol, end(client)?, end(local)?).map_err(|_| no_flow())
}

/// `dtls HEX` or `openvpn HEX`, as [`Token`] prints itself: 1 to 32 bytes, or 8, two digits each, in either case.
pub fn parse_token(text: &str) -> Result<Token, Status> {
    let no_token = || bad(format!("{:?}: {}", short(text), BadWord::Token));
    let (kind, hex) = text.split_once(' ').ok_or_else(no_token)?;
    let kind = TokenKind::from_name(kind).ok_or_else(|| {
        let kinds = TokenKind::ALL.map(TokenKind::name).join(" and ");
        bad(format!("{:?} is no kind of token: there are {kinds}", short(kind)))
    })?;
    if hex.len() % 2 != 0 || hex.len() > 64 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(no_token());
    }
    let bytes =
        (0..hex.len()).step_by(2).filter_map(|at| u8::from_str_radix(&hex[at..at + 2], 16).ok()).collect();
    Token::new(kind, bytes).map_err(|error| bad(format!("{:?}: {error}", short(text))))
}

/// A user's name as it was typed: 1 to [`MAX_NAME`] bytes, without a NUL (the keys of the kernel's maps use it as a
/// separator).
pub fn check_name(name: &str) -> Result<(), Status> {
    match name {
        "" => Err(bad("the user's name is empty")),
        _ if name.len() > MAX_NAME => {
            Err(bad(format!("a user name of {} bytes: ocserv's are at most {MAX_NAME}", name.len())))
        }
        _ if name.contains('\0') => Err(bad("the user's name holds a NUL")),
        _ => Ok(()),
    }
}

/// A reason of at most [`MAX_REASON`] bytes; it may be empty.
pub fn check_reason(reason: &str) -> Result<(), Status> {
    if reason.len() > MAX_REASON {
        return Err(bad(format!("the reason is longer than {MAX_REASON} bytes")));
    }
    Ok(())
}

/// Seconds, at most [`MAX_SECONDS`]; 0 is `None`: no end of its own.
pub fn for_seconds(seconds: u64) -> Result<Option<Duration>, Status> {
    match seconds {
        0 => Ok(None),
        seconds if seconds <= MAX_SECONDS => Ok(Some(Duration::from_secs(seconds))),
        _ => Err(bad("it stands for at most 100 years")),
    }
}

/// How long the answer waits for the other gateways, in milliseconds, at most [`MAX_WAIT_MS`]; 0 is `None`: until those
/// that are alive have confirmed, at most 4 s.
pub fn read_wait(wait_ms: u64) -> Result<Option<Duration>, Status> {
    match wait_ms {
        0 => Ok(None),
        wait_ms if wait_ms <= MAX_WAIT_MS => Ok(Some(Duration::from_millis(wait_ms))),
        _ => Err(bad("an answer waits for the other gateways for at most 10 minutes")),
    }
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
    use crate::session::Case;
    use api::target::What;

    fn revoke(what: What) -> api::RevokeRequest {
        let target = Some(api::Target { what: Some(what), server: String::new() });
        api::RevokeRequest { target, ..api::RevokeRequest::default() }
    }

    fn read(what: What) -> Result<Target, String> {
        parse_target(&api::Target { what: Some(what), server: String::new() })
            .map_err(|status| status.message().to_owned())
    }

    #[test]
    fn a_target_is_read_as_it_prints_itself() {
        for (what, printed) in [
            (What::User("alice".into()), "user alice"),
            (What::Id(1), "id 1"),
            (What::Session("BwcHBwcHBwcHBwcHBwcHBwcHBwc=".into()), "session BwcHBwcHBwcHBwcHBwcHBwcHBwc="),
            (What::Address("10.0.0.1".into()), "address 10.0.0.1"),
            (What::Address("::ffff:10.0.0.1".into()), "address 10.0.0.1"),
            (
                What::Flow(" UDP [2001:db8::1]:1\t[2001:db8::2]:443 ".into()),
                "flow udp [2001:db8::1]:1 [2001:db8::2]:443",
            ),
            (What::Token("dtls 0Aff".into()), "token dtls 0aff"),
            (What::Token("openvpn 0A0b0c0d0e0f1011".into()), "token openvpn 0a0b0c0d0e0f1011"),
        ] {
            assert_eq!(read(what).unwrap().to_string(), printed);
        }
    }

    /// R7: what is no target is refused with a sentence, and the sentence is bounded and has no control characters.
    #[test]
    fn r7_what_is_no_target_is_refused_in_a_bounded_sentence() {
        let long = "\u{1b}".repeat(100_000);
        for what in [
            What::User(String::new()),
            What::User("a\0b".into()),
            What::User("x".repeat(MAX_NAME + 1)),
            What::Id(0),
            What::Id(-1),
            What::Session(long.clone()),
            What::Address(long.clone()),
            What::Address("10.0.0.1/8".into()),
            What::Flow(long.clone()),
            What::Flow("tcp 10.0.0.1:1".into()),
            What::Flow("tcp 10.0.0.1:1 10.0.0.2:2 10.0.0.3:3".into()),
            What::Flow("tcp 10.0.0.1:0 10.0.0.2:2".into()),
            What::Flow("icmp 10.0.0.1:1 10.0.0.2:2".into()),
            What::Token(long),
            What::Token("dtls".into()),
            What::Token("dtls ".into()),
            What::Token("dtls 123".into()),
            What::Token("dtls +1".into()),
            What::Token("quic 12".into()),
            What::Token("openvpn 0a0b0c0d0e0f10".into()),
            What::Token("openvpn 0a0b0c0d0e0f101112".into()),
            What::Token("OpenVPN 0a0b0c0d0e0f1011".into()),
            What::Token(format!("dtls {}", "00".repeat(33))),
        ] {
            let why = read(what).unwrap_err();
            assert!((8..2_000).contains(&why.len()), "{} bytes", why.len());
            assert!(!why.chars().any(char::is_control), "{why:?}");
        }
        assert!(read(What::User("x".repeat(MAX_NAME))).is_ok());
        assert!(read(What::Token(format!("dtls {}", "00".repeat(32)))).is_ok());
        assert!(parse_target(&api::Target::default()).is_err());
    }

    /// R7: times and reasons have bounds, and only what is named outright has a time of its own.
    #[test]
    fn r7_a_revocation_has_bounds() {
        let address = || revoke(What::Address("10.0.0.1".into()));
        let with = |for_seconds| api::RevokeRequest { for_seconds, ..address() };
        assert_eq!(read_revoke(&with(0)).unwrap().stands, None);
        assert_eq!(read_revoke(&with(MAX_SECONDS)).unwrap().stands, Some(Duration::from_secs(MAX_SECONDS)));
        assert!(read_revoke(&with(MAX_SECONDS + 1)).is_err());
        assert!(read_revoke(&with(u64::MAX)).is_err());
        let with = |reason: String| api::RevokeRequest { reason, ..address() };
        assert!(read_revoke(&with("r".repeat(MAX_REASON))).is_ok());
        assert!(read_revoke(&with("r".repeat(MAX_REASON + 1))).is_err());
        let user = || revoke(What::User("alice".into()));
        assert!(read_revoke(&user()).is_ok());
        assert!(read_revoke(&api::RevokeRequest { for_seconds: 1, ..user() }).is_err());
        assert!(read_revoke(&api::RevokeRequest::default()).is_err());
    }

    /// R7: nobody waits for ever.
    #[test]
    fn r7_a_wait_is_bounded() {
        assert_eq!(read_wait(0).unwrap(), None);
        assert_eq!(read_wait(1).unwrap(), Some(Duration::from_millis(1)));
        assert_eq!(read_wait(MAX_WAIT_MS).unwrap(), Some(Duration::from_secs(600)));
        assert!(read_wait(MAX_WAIT_MS + 1).is_err());
        let user = revoke(What::User("alice".into()));
        assert!(read_revoke(&api::RevokeRequest { wait_ms: MAX_WAIT_MS, ..user.clone() }).is_ok());
        assert!(read_revoke(&api::RevokeRequest { wait_ms: MAX_WAIT_MS + 1, ..user }).is_err());
        assert!(read_wait(u64::MAX).is_err());
    }

    /// R7: an empty server is every server; what can be no server's name is refused before anybody shows it.
    #[test]
    fn r7_a_server_is_a_bounded_name() {
        let on = |server: &str| {
            let target = api::Target { what: Some(What::Id(1)), server: server.into() };
            read_revoke(&api::RevokeRequest { target: Some(target), ..api::RevokeRequest::default() })
        };
        assert_eq!(on("").unwrap().server, None);
        assert_eq!(on("two").unwrap().server, Some(ServerName::new("two")));
        assert!(on(&"s".repeat(MAX_NAME)).is_ok());
        assert!(on(&"s".repeat(MAX_NAME + 1)).is_err());
        assert!(on("a\u{1b}[2J").is_err());
    }

    #[test]
    fn a_person_is_of_a_realm_that_somebody_is_of() {
        let mut realms = Realms::default();
        realms.set_case("staff", Case::Fold);
        let lock = |user: &str, realm: &str| {
            let request = api::LockRequest { user: user.into(), realm: realm.into(), ..Default::default() };
            read_lock(&request, ["staff"], &realms).map(|(who, _)| (who.realm, who.name))
        };
        assert_eq!(lock("Alice", "").unwrap(), (DEFAULT_REALM.into(), "Alice".into()));
        assert_eq!(lock("Alice", "staff").unwrap(), ("staff".into(), "alice".into()));
        assert_eq!(lock("alice", "guests").unwrap_err().code(), tonic::Code::FailedPrecondition);
        // R7: also where its lower case is longer than the name
        let grows = "\u{23a}".repeat(MAX_NAME / 2);
        assert!(lock(&grows, "").is_ok());
        assert!(lock(&grows, "staff").is_err());
        assert_eq!(lock("", "staff").unwrap_err().code(), tonic::Code::InvalidArgument);
        let unlock = api::UnlockRequest { user: "ALICE".into(), realm: "staff".into(), ..Default::default() };
        assert_eq!(read_unlock(&unlock, ["staff"], &realms).unwrap().name, "alice");
    }
}
