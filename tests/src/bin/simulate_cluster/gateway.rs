//! A gateway around the rules: its connection, its disk, and what its registry would know.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use enforcer::registry::Now;
use enforcer::registry::cluster::{
    Author, Cluster, ClusterEvent, ClusterRules, GatewayId, LetterKey, Limit, Over, Record, Revision, Ticket,
    Txn, WhenAway, Yields,
};
use enforcer::session::{DEFAULT_REALM, Identity, SafeId, SessionId};

use super::random::{SECOND, Time};

pub const LOGIN_WAIT: Time = 2 * SECOND;
/// So that no time before the first event is below 0.
const START: Time = 1_000 * SECOND;

/// A session, or what is left of it.
#[derive(Clone, Copy)]
pub struct Session {
    pub person: u32,
    pub gateway: u16,
    /// Its cookie is worth nothing.
    pub dead: bool,
    pub tunnel: bool,
    pub passed: bool,
    pub claimed: bool,
    /// 0: it passed while etcd was away.
    pub at: Revision,
}

pub fn identity(person: u32) -> Identity {
    Identity { realm: DEFAULT_REALM.into(), name: format!("user{person:07}") }
}

pub fn cookie(session: u32) -> SessionId {
    let mut bytes = [0x5e; 20];
    bytes[..4].copy_from_slice(&session.to_be_bytes());
    SessionId::Vpn(SafeId::from_bytes(bytes))
}

/// The other way round; whatever else it is, is nobody's.
pub fn session_of(cookie: &SessionId) -> usize {
    let SessionId::Vpn(cookie) = cookie else { return usize::MAX };
    let [a, b, c, d, ..] = *cookie.as_bytes();
    u32::from_be_bytes([a, b, c, d]) as usize
}

/// Of four persons one has no limit; the second and third have one or two sessions and the newest wins; of the fourth a
/// second one is refused.
pub fn limit(person: u32) -> Option<Limit> {
    match person % 4 {
        0 => None,
        1 => Some(Limit { most: 1, yields: Yields::Oldest }),
        2 => Some(Limit { most: 2, yields: Yields::Oldest }),
        _ => Some(Limit { most: 1, yields: Yields::Newest }),
    }
}

pub fn when_away(person: u32) -> WhenAway {
    if person % 8 < 6 { WhenAway::Closed } else { WhenAway::Open }
}

pub fn now(time: Time) -> Now {
    Now { mono: Duration::from_micros(START + time), wall: 1_732_360_000 + time / SECOND }
}

#[derive(Clone)]
pub enum Letter {
    Decided(u64, Record),
    Lifted(Option<Revision>),
}

/// What survives a crash.
#[derive(Default)]
pub struct Disk {
    pub known: Revision,
    /// What is not below `known`.
    pub carried_out: BTreeSet<(Revision, Author, Over)>,
    /// In the order in which they were written.
    pub letters: Vec<(LetterKey, Letter)>,
}

impl Disk {
    pub fn write(&mut self, key: LetterKey, letter: Letter) {
        self.letters.retain(|(of, _)| *of != key);
        self.letters.push((key, letter));
    }
}

/// Which ways a packet gets between the gateway and etcd.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Ways {
    pub there: bool,
    pub back: bool,
}

pub struct Gateway {
    pub id: GatewayId,
    /// `None`: its daemon is dead.
    pub cluster: Option<Cluster>,
    /// Counts its daemons.
    pub life: u32,
    pub ways: Ways,
    pub connected: bool,
    /// Counts its connections: what comes of an earlier one is not for it.
    pub connection: u32,
    /// The connection whose orders etcd carries out.
    pub fence: u32,
    /// It has read nothing in this life.
    pub is_new: bool,
    /// Where in etcd's log it reads next, and up to which revision it has read.
    pub place: u64,
    pub read: Revision,
    pub wakes: bool,
    pub last_sent: Time,
    pub last_answered: Time,
    /// What cannot get through now, and will if the connection lives long enough.
    pub stuck: Vec<(Ticket, Txn)>,
    /// Since when nothing was in its way.
    pub well_since: Time,
    /// Since when it is connected.
    pub up_since: Time,
    pub disk: Disk,
    /// `None`: not in etcd yet.
    pub locks: BTreeMap<(Author, u32), Option<Revision>>,
    pub lock_numbers: BTreeMap<u32, u64>,
    pub locked: BTreeMap<u32, u32>,
    pub sessions: BTreeSet<u32>,
    pub asks: BTreeMap<u64, u32>,
    pub last_ask: u64,
    pub next_number: u64,
}

pub fn rules(id: GatewayId, known: Revision) -> ClusterRules {
    let name = format!("gw{}", u16::from_be_bytes([id.as_bytes()[14], id.as_bytes()[15]]));
    ClusterRules { me: id, name, login_wait: Duration::from_micros(LOGIN_WAIT), known }
}

impl Gateway {
    pub fn new(number: u16) -> Self {
        let mut bytes = [0xa0; 16];
        bytes[14..].copy_from_slice(&number.to_be_bytes());
        let id = GatewayId::from_bytes(bytes);
        Self {
            id,
            cluster: Some(Cluster::new(rules(id, 0), now(0))),
            life: 0,
            ways: Ways { there: true, back: true },
            connected: false,
            connection: 0,
            fence: 0,
            is_new: true,
            place: 0,
            read: 0,
            wakes: false,
            last_sent: 0,
            last_answered: 0,
            stuck: Vec::new(),
            well_since: 0,
            up_since: 0,
            disk: Disk::default(),
            locks: BTreeMap::new(),
            lock_numbers: BTreeMap::new(),
            locked: BTreeMap::new(),
            sessions: BTreeSet::new(),
            asks: BTreeMap::new(),
            last_ask: 0,
            next_number: 0,
        }
    }

    pub fn lock(&mut self, author: Author, person: u32, at: Option<Revision>) {
        if self.locks.insert((author, person), at).is_none() {
            *self.locked.entry(person).or_default() += 1;
        }
    }

    pub fn unlock(&mut self, author: Author, person: u32) -> Option<Option<Revision>> {
        let at = self.locks.remove(&(author, person))?;
        if let Some(count) = self.locked.get_mut(&person) {
            *count -= 1;
            if *count == 0 {
                self.locked.remove(&person);
            }
        }
        Some(at)
    }

    /// What the disk has is given to a new daemon; the sessions are given before.
    pub fn letters(&self) -> Vec<ClusterEvent> {
        let event = |(key, letter): &(LetterKey, Letter)| match (key.clone(), letter.clone()) {
            (LetterKey::Decided(over), Letter::Decided(number, record)) => {
                Some(ClusterEvent::Decided { number, over, record })
            }
            (LetterKey::Lifted(author, over), Letter::Lifted(up_to)) => {
                Some(ClusterEvent::Lifted { author, over, up_to, by: "uid 0".into() })
            }
            _ => None,
        };
        self.disk.letters.iter().filter_map(event).collect()
    }
}
