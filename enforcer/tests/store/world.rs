//! A state directory of its own for each test, and records to put there.

use std::fs;
use std::ops::RangeInclusive;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use enforcer::session::{
    Admission, Audit, Author, CutoffKey, Decision, Flow, GatewayId, Guard, Guarded, Identity, KnownEtcd,
    Letter, Observed, Origin, Over, Process, Protocol, Record, SafeId, ServerName, SessionId, SessionRecord,
    Target, Token, TokenKind, WebDigest, WebKey, WebRecord, WebTokenRecord,
};
use enforcer::store::{self, Loaded, OpenError, Outcome, Settings, Write, Writer};

/// What never ends fails here, and not in a hung test.
const BOUND: Duration = Duration::from_secs(120);

pub struct Folder(tempfile::TempDir);

impl Folder {
    pub fn new() -> Self {
        Self(tempfile::Builder::new().prefix("enforcer-store-").tempdir().unwrap())
    }

    pub fn path(&self) -> PathBuf {
        self.0.path().join("state")
    }

    pub fn file(&self) -> PathBuf {
        self.path().join(store::FILE)
    }

    pub fn wal(&self) -> PathBuf {
        self.path().join("state.db-wal")
    }

    pub fn settings(&self) -> Settings {
        settings(&self.path())
    }

    pub fn open(&self) -> (Run, Loaded) {
        Run::open(&self.settings()).unwrap()
    }

    pub fn load(&self) -> Loaded {
        load(&self.path())
    }

    /// Why it cannot be opened.
    pub fn refused(&self) -> OpenError {
        store::open(&self.settings()).map(drop).unwrap_err()
    }

    /// What a host that dies at this moment would find.
    pub fn crash_copy(&self) -> Self {
        let copy = Self::new();
        copy_state(&self.path(), &copy.path());
        copy
    }
}

impl Drop for Folder {
    /// What a test mounted there keeps the folder from being removed; elsewhere nothing is mounted, and nothing done.
    fn drop(&mut self) {
        for path in [self.file(), self.path()] {
            while nix::mount::umount2(&path, nix::mount::MntFlags::MNT_DETACH).is_ok() {}
        }
    }
}

/// Everything but the shared index, which no crash of a host leaves.
pub fn copy_state(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    fs::set_permissions(to, fs::Permissions::from_mode(0o700)).unwrap();
    for name in [store::FILE, "state.db-wal"] {
        if from.join(name).exists() {
            fs::copy(from.join(name), to.join(name)).unwrap();
        }
    }
}

pub fn settings(directory: &Path) -> Settings {
    Settings { directory: directory.to_owned(), audit_days: 0, audit_rows: 1_000 }
}

pub fn load(directory: &Path) -> Loaded {
    store::open(&settings(directory)).unwrap().1
}

/// A store that runs, and what it told.
pub struct Run {
    writer: Option<Writer>,
    told: Arc<Told>,
    next: u64,
}

#[derive(Default)]
struct Told {
    outcomes: Mutex<Vec<Outcome>>,
    news: Condvar,
}

impl Run {
    pub fn open(settings: &Settings) -> Result<(Self, Loaded), OpenError> {
        let (store, loaded) = store::open(settings)?;
        let told = Arc::new(Told::default());
        let tell = Arc::clone(&told);
        let writer = store
            .start(move |outcome| {
                tell.outcomes.lock().unwrap().push(outcome);
                tell.news.notify_all();
            })
            .unwrap();
        Ok((Self { writer: Some(writer), told, next: 1 }, loaded))
    }

    /// Hands writes over; their tickets.
    pub fn give(&mut self, writes: impl IntoIterator<Item = Write>) -> RangeInclusive<u64> {
        let first = self.next;
        for write in writes {
            self.writer.as_ref().unwrap().write(self.next, write).unwrap();
            self.next += 1;
        }
        first..=self.next - 1
    }

    /// Hands writes over and waits until each was told of; what became of each.
    pub fn write(&mut self, writes: impl IntoIterator<Item = Write>) -> Vec<Result<(), String>> {
        let tickets = self.give(writes);
        self.results(tickets)
    }

    /// All have to be on the disk.
    pub fn done(&mut self, writes: impl IntoIterator<Item = Write>) {
        for result in self.write(writes) {
            result.unwrap();
        }
    }

    /// What became of each of these.
    pub fn results(&self, tickets: RangeInclusive<u64>) -> Vec<Result<(), String>> {
        let mut outcomes = self.told.outcomes.lock().unwrap();
        while outcomes.last().is_none_or(|last| last.tickets.end() < tickets.end()) {
            let (again, late) = self.told.news.wait_timeout(outcomes, BOUND).unwrap();
            assert!(!late.timed_out(), "the store never told of {tickets:?}");
            outcomes = again;
        }
        tickets
            .map(|ticket| {
                let mut about = outcomes.iter().filter(|outcome| outcome.tickets.contains(&ticket));
                let one = about.next().unwrap();
                assert!(about.next().is_none(), "ticket {ticket} was told of twice");
                one.result.clone()
            })
            .collect()
    }

    pub fn outcomes(&self) -> Vec<Outcome> {
        self.told.outcomes.lock().unwrap().clone()
    }

    pub fn stop(mut self) {
        self.writer.take().unwrap().stop().unwrap();
    }
}

pub fn server(name: &str) -> ServerName {
    ServerName::new(name)
}

pub fn safe_id(number: u64) -> SafeId {
    let mut bytes = [7; 20];
    bytes[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    SafeId::from_bytes(bytes)
}

pub fn record(number: u64, target: Target) -> Record {
    Record {
        number,
        target,
        server: None,
        reason: "a reason".to_owned(),
        by: "uid 0".to_owned(),
        at: 1_700_000_000_u64.saturating_add(number),
        lasts: None,
        until: None,
        guards: Vec::new(),
        origin: None,
    }
}

/// One of every kind in turn, always the same of one number.
pub fn sample(number: u64) -> Record {
    let address = format!("10.{}.{}.{}", number >> 16 & 255, number >> 8 & 255, number & 255);
    let target = match number % 8 {
        0 if number % 16 == 8 => Target::Person(person(number)),
        0 => Target::User(format!("user {number} 'x' \u{0}\n\"; DROP TABLE revocation; --")),
        1 => Target::Id(number as i32 - 1_000),
        2 => Target::Session(safe_id(number)),
        3 => Target::Address(address.parse().unwrap()),
        4 => Target::Flow(
            Flow::new(
                Protocol::Udp,
                format!("[2001:db8::{:x}]:{}", number & 0xffff, 1 + number % 60_000).parse().unwrap(),
                "[2001:db8:1::1]:443".parse().unwrap(),
            )
            .unwrap(),
        ),
        5 => Target::Token(Token::new(TokenKind::Dtls, number.to_be_bytes().to_vec()).unwrap()),
        6 => Target::Lock(Identity { realm: "default".to_owned(), name: format!("Zoë {number}") }),
        _ => Target::Adopted,
    };
    let guard = |index: u64| Guard {
        what: if index.is_multiple_of(2) {
            Guarded::SafeId(safe_id(number * 10 + index))
        } else {
            Guarded::Cutoff(CutoffKey::new(&server("vpn"), &format!("user {number}")))
        },
        server: (index < 2).then(|| server("vpn")),
        moment: 1_700_000_000 + index,
    };
    Record {
        server: number.is_multiple_of(3).then(|| server("näme with blanks")),
        lasts: number.is_multiple_of(4).then_some(3_600),
        until: number.is_multiple_of(4).then_some(1_700_003_600 + number),
        guards: (0..number % 4).map(guard).collect(),
        origin: number.is_multiple_of(5).then(|| Origin { author: author(number), revision: 9_000 + number }),
        ..record(number, target)
    }
}

/// In one of three realms.
pub fn person(number: u64) -> Identity {
    let realm = ["default", "staff", ""][(number % 3) as usize].to_owned();
    Identity { realm, name: format!("Zoë {number} \u{0}'\n") }
}

pub fn author(number: u64) -> Author {
    if number.is_multiple_of(2) {
        Author::Admin
    } else {
        Author::Gateway(GatewayId::from_bytes([number as u8; 16]))
    }
}

/// One of every kind in turn, each with a key of its own, always the same of one number.
pub fn letter(number: u64) -> Letter {
    let over = match number % 4 {
        0 => Over::User(person(number)),
        1 => Over::Session(safe_id(number)),
        2 => {
            let mut key = [9; 16];
            key[..8].copy_from_slice(&number.to_be_bytes());
            Over::Web(WebKey::from_bytes(key))
        }
        _ => Over::Lock(person(number)),
    };
    let (by, at) = ("uid 0".to_owned(), 1_700_000_000 + number);
    if number % 8 < 4 {
        let until = number.is_multiple_of(3).then_some(1_700_003_600);
        let reason = format!("reason {number}");
        let decision = Decision { number, by, reason, at, until, lasts: until.map(|_| 3_600) };
        return Letter::Decided { over, decision };
    }
    let up_to = number.is_multiple_of(3).then_some(5_000 + number);
    Letter::Lifted { author: author(number / 2), over, up_to, by, at }
}

pub fn admission(number: u64) -> Admission {
    Admission {
        session: match number % 4 {
            1 => SessionId::Web(WebKey::from_bytes(u128::from(number).to_be_bytes())),
            _ => SessionId::Vpn(safe_id(number)),
        },
        server: (number % 4 != 1).then(|| server("vpn")),
        who: person(number),
        group: "contractors".to_owned(),
        at: (!number.is_multiple_of(3)).then_some(7_000 + number),
        claimed: number.is_multiple_of(2),
    }
}

/// An id of 64 bits, as etcd's are.
pub fn known(revision: u64) -> Write {
    Write::KnownEtcd(KnownEtcd { cluster: 0xfedc_ba98_7654_3210, revision })
}

pub fn keep(number: u64) -> Write {
    Write::Keep(sample(number))
}

pub fn session(key: u64) -> SessionRecord {
    SessionRecord {
        key,
        server: server("vpn"),
        observed: Observed {
            id: 4_000 + key as i32,
            user: "alice\t".to_owned(),
            group: String::new(),
            vhost: "vpn.example".to_owned(),
            device: key.is_multiple_of(2).then(|| "vpns0".to_owned()),
            addresses: (0..key % 3).map(|one| format!("fd00::{key}:{one}").parse().unwrap()).collect(),
            client: "192.0.2.7".to_owned(),
            safe_id: key.is_multiple_of(2).then(|| safe_id(key)),
            since: 1_700_000_000,
        },
        worker: key.is_multiple_of(2).then_some(Process { pid: 77, start: 123_456 }),
    }
}

/// A web session with one to three tokens, always the same of one number.
pub fn web(number: u8) -> WebRecord {
    let token = |index: u8| {
        let mut digest = [number; 32];
        digest[0] = index;
        WebTokenRecord {
            digest: WebDigest::from_bytes(digest),
            host: format!("host{index}.example"),
            wrapped: vec![number; 40 + usize::from(index)],
        }
    };
    WebRecord {
        key: WebKey::from_bytes([number; 16]),
        realm: "default".to_owned(),
        user: format!("user {number} 'x' Zoë"),
        since: 1_700_000_000,
        seen: 1_700_000_000 + u64::from(number),
        idle: 600,
        lasts: 28_800,
        until: 1_700_028_800,
        peer: "2001:db8::7".to_owned(),
        agent: "a browser; \"quoted\"".to_owned(),
        tokens: (0..=number % 3).map(token).collect(),
    }
}

pub fn keep_web(number: u8) -> Write {
    Write::KeepWeb { record: Box::new(web(number)), lazy: number.is_multiple_of(2) }
}

pub fn line(at: u64, text: &str) -> Audit {
    Audit {
        at,
        what: "revoked",
        number: 1,
        target: "user alice".to_owned(),
        by: "uid 0".to_owned(),
        reason: "left".to_owned(),
        complete: true,
        text: text.to_owned(),
    }
}

/// As an administrator would: with another connection.
pub fn look<T: rusqlite::types::FromSql>(file: &Path, sql: &str) -> T {
    let db = rusqlite::Connection::open(file).unwrap();
    db.busy_timeout(Duration::from_secs(10)).unwrap();
    db.query_row(sql, [], |row| row.get(0)).unwrap()
}

/// Numbers that look random and can be had again.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % below
    }
}
