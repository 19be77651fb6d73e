//! What outlives the daemon and the host: a revocation as the disk keeps it, and what is told of it later.
//!
//! Times are wall-clock times here (unix seconds), since no other clock survives a reboot. Never a cookie, a
//! password or a key: a safe_id is one-way.

use std::net::IpAddr;

use super::{
    Admission, CutoffKey, Flow, KnownEtcd, Letter, LetterKey, LockKey, Observed, Origin, Process, SafeId,
    ServerName, SessionId, Token, WebKey, WebRecord,
};

/// Whom or what a revocation ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// All sessions that this user has now, connected or not.
    User(String),
    /// The same of one person alone: a name may be several people's, in several realms.
    Person(Identity),
    /// The session with this ocserv id.
    Id(i32),
    Session(SafeId),
    /// One web session. No [`Record`] has it: what is left to keep of such a revocation is that the session is gone.
    Web(WebKey),
    Address(IpAddr),
    Flow(Flow),
    Token(Token),
    /// All sessions that this person has now, and every login as long as the lock stands.
    Lock(Identity),
    /// What an earlier run of the daemon left in the kernel.
    Adopted,
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::User(name) => write!(f, "user {}", name.escape_default()),
            Self::Person(who) => who.fmt(f),
            Self::Id(id) => write!(f, "id {id}"),
            Self::Session(safe_id) => write!(f, "session {safe_id}"),
            Self::Web(key) => write!(f, "web session {key}"),
            Self::Address(address) => write!(f, "address {address}"),
            Self::Flow(flow) => write!(f, "flow {flow}"),
            Self::Token(token) => write!(f, "token {token}"),
            Self::Lock(identity) => write!(f, "lock of {identity}"),
            Self::Adopted => f.write_str("found in the kernel at start"),
        }
    }
}

/// A person: a name means somebody only within a realm, and the realm decides whether its case counts.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// As configured.
    pub realm: String,
    /// As the realm's case rule leaves it, so that two spellings of one name are equal.
    pub name: String,
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "user {}", self.name.escape_default())?;
        if self.realm == DEFAULT_REALM { Ok(()) } else { write!(f, " of realm {}", self.realm) }
    }
}

/// The realm of every server that is not configured otherwise.
pub const DEFAULT_REALM: &str = "default";

/// One revocation or lock that is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub number: u64,
    pub target: Target,
    /// Only on this server.
    pub server: Option<ServerName>,
    pub reason: String,
    /// Who asked.
    pub by: String,
    /// When.
    pub at: u64,
    /// For how many seconds it was asked; `None`: until it is lifted, or until nothing could bring it back.
    pub lasts: Option<u64>,
    /// When it ends, of those that were asked for a time.
    pub until: Option<u64>,
    pub guards: Vec<Guard>,
    /// `None`: it was decided here.
    pub origin: Option<Origin>,
}

/// What the gate refuses because of a revocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    pub what: Guarded,
    /// `None`: not known to be any server's.
    pub server: Option<ServerName>,
    /// Of a safe_id and of a lock, since when it is refused; of a cutoff, up to when cookies made are refused.
    pub moment: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Guarded {
    SafeId(SafeId),
    Cutoff(CutoffKey),
    /// Whose login is refused until the record's `until`.
    Lock(LockKey),
}

/// A session as it was last seen: what can be acted on after a restart before ocserv answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRecord {
    /// The daemon's own number of it, unique within one run.
    pub key: u64,
    pub server: ServerName,
    pub observed: Observed,
    pub worker: Option<Process>,
}

/// A line of the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audit {
    pub at: u64,
    /// `revoked`, `settled`, `lifted`, `locked`, `unlocked`, `expired`, `bulk`
    pub what: &'static str,
    /// 0: of no revocation.
    pub number: u64,
    pub target: String,
    pub by: String,
    pub reason: String,
    /// Whether everything was done.
    pub complete: bool,
    /// The receipt, in one line for people.
    pub text: String,
}

/// One change of the durable state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Adds it, or replaces it whole. Refused if its number was lifted, and not forgotten.
    Keep(Record),
    /// Nothing of this revocation is in force any more.
    Over(u64),
    /// Taken back: remembered as such until it is forgotten, so that what the kernel still has of it is known to be
    /// over.
    Lift(u64),
    /// Nothing of it is in the kernel either: that it was lifted need not be remembered.
    Forget(u64),
    Session(SessionRecord),
    SessionGone(u64),
    /// All sessions are gone: those of an earlier run, whose keys mean nothing any more.
    NoSessions,
    /// Adds a web session, or replaces it whole. `lazy`: it has been used, and nothing is promised of when that was.
    KeepWeb {
        record: Box<WebRecord>,
        lazy: bool,
    },
    WebGone(WebKey),
    /// The web gateways that run; `None`: not all of them can be seen.
    WebGateways(Option<Vec<Process>>),
    /// Adds it, or takes the place of the one with the same key.
    KeepLetter(Letter),
    LetterTold(LetterKey),
    KnownEtcd(KnownEtcd),
    /// Adds it, or replaces it whole.
    KeepAdmission(Admission),
    AdmissionGone(SessionId),
    /// A line is added; lines beyond the log's bounds go.
    Audit(Audit),
    /// The number that the next revocation gets. Never goes back; [`Write::Keep`] raises it by itself.
    NextNumber(u64),
    /// What the wall clock shows, and the boot in which it shows it.
    Clock {
        wall: u64,
        boot_id: String,
    },
}
