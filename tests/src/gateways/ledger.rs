//! What was ordered and what was answered, and whether the gateways are so: a checker, and not an eye.
//!
//! Each session has a fate: it stands, since nobody has spoken against it; it is over, since an order that was answered
//! says so; or either may be, since an order was given and its answer never came. [`Ledger::check`] holds that against what
//! every gateway shows, what its ocserv says, what packets do and what the cookie is worth.

use std::collections::BTreeMap;

use super::{Gateways, Session};
use crate::client::{Client, Outcome};
use crate::clock::Moment;
use crate::process::{BOUND, eventually};
use crate::scene::Pair;

/// Packets a second of a session that is looked at.
const RATE: u32 = 50;
/// So many packets are tried in each direction where none may pass.
const TRIED: usize = 15;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Stands,
    Over,
    Either,
}

/// A session and its traffic.
struct Kept<'a> {
    session: Session,
    client: &'a Client,
    pair: Pair,
    fate: Fate,
    /// By a lock alone, and nobody has looked since: whoever has not heard of it when it is taken back does not hear of it.
    by_lock: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lock {
    Locked,
    Open,
    Either,
}

/// What is known of every session that was made, and of every person.
#[derive(Default)]
pub struct Ledger<'a> {
    sessions: Vec<Kept<'a>>,
    locks: BTreeMap<String, Lock>,
}

/// An order that was given: what becomes of it is said by [`Ledger::answered`] or never.
#[derive(Debug)]
#[must_use = "an order is answered, or it is not"]
pub struct Given {
    sessions: Vec<usize>,
    lock: Option<(String, Lock)>,
}

impl<'a> Ledger<'a> {
    /// A session of `user` that is let in at `place`, with packets in both directions.
    #[track_caller]
    pub fn session(&mut self, world: &Gateways, place: usize, client: &'a Client, user: &str) -> usize {
        let session = world.session(place, client, user);
        let pair = world.flood(client, &session, RATE);
        pair.flowing();
        self.sessions.push(Kept { session, client, pair, fate: Fate::Stands, by_lock: false });
        self.sessions.len() - 1
    }

    pub fn get(&self, number: usize) -> &Session {
        &self.sessions[number].session
    }

    /// All sessions of a person are to end: from now on either may be.
    pub fn revokes(&mut self, user: &str) -> Given {
        let mut sessions = Vec::new();
        for (number, kept) in self.sessions.iter_mut().enumerate() {
            if kept.session.user == user && kept.fate != Fate::Over {
                kept.fate = Fate::Either;
                sessions.push(number);
            }
        }
        Given { sessions, lock: None }
    }

    /// As [`Self::revokes`], and every login.
    pub fn locks(&mut self, user: &str) -> Given {
        self.locks.insert(user.to_owned(), Lock::Either);
        Given { lock: Some((user.to_owned(), Lock::Locked)), ..self.revokes(user) }
    }

    pub fn unlocks(&mut self, user: &str) -> Given {
        for kept in self.sessions.iter_mut().filter(|kept| kept.session.user == user && kept.by_lock) {
            kept.fate = Fate::Either;
        }
        self.locks.insert(user.to_owned(), Lock::Either);
        Given { lock: Some((user.to_owned(), Lock::Open)), sessions: Vec::new() }
    }

    /// That order was answered: what it says is in force, or will be as soon as the gateways have heard of each other.
    pub fn answered(&mut self, given: Given) {
        for number in given.sessions {
            let kept = &mut self.sessions[number];
            (kept.fate, kept.by_lock) = (Fate::Over, given.lock.is_some());
        }
        if let Some((user, lock)) = given.lock {
            self.locks.insert(user, lock);
        }
    }

    /// Nobody is locked any more: whoever was has been unlocked, and that was answered.
    pub fn opened(&mut self) {
        self.locks.clear();
    }

    /// Waits until the gateways have heard of each other, and then holds everything against what was answered: R1, R2, R3,
    /// R4 and R5 on every gateway.
    #[track_caller]
    pub fn check(&mut self, world: &Gateways) {
        world.settled();
        let begun = Moment::now();
        for kept in &mut self.sessions {
            kept.check(world, begun);
        }
        // from the loop above on every session is known to stand or to be over
        let mut hosts: BTreeMap<&str, &Client> = BTreeMap::new();
        for kept in &self.sessions {
            hosts.entry(&kept.session.user).or_insert(kept.client);
        }
        for (user, lock) in &mut self.locks {
            let Some(client) = hosts.get(user.as_str()) else { continue };
            check_lock(world, client, user, lock);
        }
    }

    /// After [`Self::check`]: R4, whoever is not locked is let in everywhere.
    #[track_caller]
    pub fn lets_in(&self, world: &Gateways) {
        let mut done: Vec<&str> = Vec::new();
        for kept in &self.sessions {
            let user = kept.session.user.as_str();
            if !done.contains(&user) && self.locks.get(user) != Some(&Lock::Locked) {
                world.lets_in_everywhere(kept.client, user);
                done.push(user);
            }
        }
    }
}

impl Kept<'_> {
    fn what(&self, world: &Gateways) -> String {
        let Session { user, place, tunnel, safe_id, .. } = &self.session;
        format!("{user} at {} ({}, {safe_id}, {:?})", world[*place].name, tunnel.v4, self.fate)
    }

    #[track_caller]
    fn check(&mut self, world: &Gateways, begun: Moment) {
        if self.fate == Fate::Either {
            // it is one of the two, and then wholly
            let gone = !world[self.session.place].shows(&self.session.safe_id);
            self.fate = if gone { Fate::Over } else { Fate::Stands };
        }
        self.by_lock = false;
        match self.fate {
            Fate::Stands => self.stands(world),
            Fate::Over | Fate::Either => self.is_over(world, begun),
        }
    }

    /// R3: nobody has touched it.
    #[track_caller]
    fn stands(&mut self, world: &Gateways) {
        let what = self.what(world);
        let place = &world[self.session.place];
        assert!(!self.session.tunnel.ended(), "{what}: its client has ended\n{}", self.session.tunnel.log());
        assert_eq!(self.session.tunnel.reconnects(), 0, "{what}: it had to come back");
        assert!(place.shows(&self.session.safe_id), "{what}: {} does not show it", place.name);
        self.pair.flowing();
    }

    /// R1, R2: it has ended, and nothing brings it back.
    #[track_caller]
    fn is_over(&mut self, world: &Gateways, begun: Moment) {
        let what = self.what(world);
        let Session { user, place, tunnel, safe_id, cookie } = &mut self.session;
        let gateway = &world[*place];
        assert!(!gateway.shows(safe_id), "{what}: {} still shows it", gateway.name);
        eventually(&format!("the client ends: {what}"), BOUND, || tunnel.ended().then_some(()));
        let at = tunnel.v4.to_string();
        let there = gateway.server.sessions(user).into_iter().find(|session| session.v4 == at);
        // who has logged in since, or tries to, may have the same address
        let another = there.as_ref().is_some_and(|session| !gateway.is(session.id, safe_id));
        assert!(there.is_none() || another, "{what}: ocserv has it");
        self.pair.up.wait_sent(TRIED);
        for (flood, whose) in [(&self.pair.up, "from"), (&self.pair.down, "to")] {
            let passed = flood.passed_after(begun);
            // the next owner of that address may answer the ones to it; none is this client's
            assert!(
                another || passed.is_empty(),
                "{what}: {} packets passed {whose} it: {passed:?}",
                passed.len()
            );
        }
        match world.tried(self.client, *place, cookie) {
            Outcome::Refused { .. } => {}
            Outcome::Failed { log } => panic!("{what}: the client failed otherwise than by a refusal\n{log}"),
            Outcome::Up(tunnel) => panic!("{what}: its cookie was let in again\n{}", tunnel.log()),
        }
    }
}

impl super::Gateway {
    /// Whether ocserv's session of that id has this cookie.
    fn is(&self, id: i32, safe_id: &str) -> bool {
        let shown = self.enforcer.cli(&["show", "sessions", "--json"]).json;
        crate::receipt::safe_id(&shown, id).as_deref() == Some(safe_id)
    }
}

#[track_caller]
fn check_lock(world: &Gateways, client: &Client, user: &str, lock: &mut Lock) {
    let let_in: Vec<bool> = (0..world.iter().count())
        .map(|place| {
            let cookie = client.authenticate(&world[place].server, user);
            match world.tried(client, place, &cookie) {
                Outcome::Up(tunnel) => {
                    tunnel.log_out();
                    true
                }
                Outcome::Refused { .. } => false,
                Outcome::Failed { log } => panic!("{user}: neither let in nor refused\n{log}"),
            }
        })
        .collect();
    let same = let_in.windows(2).all(|pair| pair[0] == pair[1]);
    assert!(same, "{user} ({lock:?}): the gateways do not agree: {let_in:?}");
    let open = let_in.first() == Some(&true);
    match lock {
        Lock::Locked => assert!(!open, "{user}: an answered lock is missing"),
        Lock::Open => assert!(open, "{user}: locked after an answered unlock"),
        Lock::Either => *lock = if open { Lock::Open } else { Lock::Locked },
    }
}
