//! What people do, and what breaks.

use enforcer::registry::cluster::{Author, Key, Op, Over, Record, Txn, Value};

use super::gateway::{Ways, cookie, identity};
use super::queue::What;
use super::random::{MS, SECOND, Time};
use super::world::World;

/// Before that all gateways are started.
pub const BEGINS: Time = 10 * SECOND;
/// Between two revocations or locks.
const DECISIONS: Time = SECOND;
/// Between two faults, where there are as many gateways; of fewer each breaks no more often.
const FAULTS: Time = 2 * SECOND;
const OF_GATEWAYS: u64 = 50;

impl World {
    pub fn begin(&mut self) {
        for what in [What::Login, What::Decide, What::Fault] {
            self.queue.give(BEGINS, what);
        }
    }

    /// `false`: it is nobody's doing.
    pub fn act(&mut self, what: &What, end: Time) -> bool {
        let pause = match what {
            What::Login => self.within * SECOND / self.of_person.len().max(1) as u64,
            What::Decide => DECISIONS,
            What::Fault => FAULTS.max(FAULTS * OF_GATEWAYS / self.gateways.len().max(1) as u64),
            What::Lift { person, author } => {
                if self.now < end {
                    let at = self.any_gateway();
                    self.lift(at, *author, *person);
                }
                return true;
            }
            _ => return false,
        };
        if self.now >= end {
            return true;
        }
        let again = self.now + self.random.between(pause / 2, pause * 3 / 2).max(1);
        match what {
            What::Login => {
                self.at_the_door();
                self.queue.give(again, What::Login);
            }
            What::Decide => {
                self.somebody_decides();
                self.queue.give(again, What::Decide);
            }
            _ => {
                self.something_breaks();
                self.queue.give(again, What::Fault);
            }
        }
        true
    }

    fn somebody(&mut self) -> u32 {
        u32::try_from(self.random.index(self.of_person.len())).unwrap_or(0)
    }

    fn at_the_door(&mut self) {
        let person = self.somebody();
        self.counts.logins += 1;
        let own = self.of_person[person as usize].clone();
        match self.random.below(100) {
            // a fresh login: whoever has sessions moves
            0..50 => {
                let at = self.any_gateway();
                if !self.is_up(at) {
                    return;
                }
                if own.len() >= 4 {
                    self.end(own[0]);
                }
                let session = self.new_session(person, at);
                self.knock(session);
            }
            // a cookie is given back
            50..70 => {
                if let Some(session) = own.first() {
                    self.end(*session);
                }
            }
            // its client lost the connection
            70..85 => {
                if let Some(session) = own.last() {
                    self.sessions[*session as usize].tunnel = false;
                    self.knock(*session);
                }
            }
            // an old cookie
            _ => {
                let any = u32::try_from(self.random.index(self.sessions.len())).unwrap_or(0);
                self.counts.old_cookies += u64::from(self.sessions[any as usize].dead);
                self.knock(any);
            }
        }
    }

    fn somebody_decides(&mut self) {
        let (person, at) = (self.somebody(), self.any_gateway());
        if !self.is_up(at) {
            return;
        }
        let who = identity(person);
        match self.random.below(100) {
            0..50 => self.decide(at, Over::User(who)),
            // at once at two gateways
            50..60 => {
                let other = self.any_gateway();
                self.decide(at, Over::User(who.clone()));
                if self.is_up(other) {
                    self.decide(other, Over::User(who));
                }
            }
            60..75 => {
                if let Some(session) = self.of_person[person as usize].first().copied() {
                    self.decide(at, cookie(session).over());
                }
            }
            75..80 => {
                let record = Record {
                    number: 0,
                    by: "etcdctl".into(),
                    reason: String::new(),
                    at: 0,
                    until: None,
                    lasts: None,
                };
                let then = vec![Op::Put(Key::Record(Author::Admin, Over::User(who)), Value::Record(record))];
                self.commit(&Txn { then, ..Txn::default() });
            }
            _ => {
                self.decide(at, Over::Lock(who));
                let when = self.now + self.random.between(SECOND, 30 * SECOND);
                self.queue.give(when, What::Lift { person, author: at });
                // and by somebody else as well
                self.queue.give(when + SECOND, What::Lift { person, author: at });
            }
        }
    }

    fn something_breaks(&mut self) {
        let at = self.any_gateway();
        if !self.is_well(at) || !self.is_up(at) {
            return;
        }
        self.counts.faults += 1;
        let time = match self.random.below(10) {
            0..5 => self.random.between(200 * MS, 5 * SECOND),
            5..8 => self.random.between(5 * SECOND, 20 * SECOND),
            _ => self.random.between(40 * SECOND, 60 * SECOND),
        };
        match self.random.below(4) {
            0 => self.cut(at, Ways { there: false, back: false }, time),
            1 => self.cut(at, Ways { there: false, back: true }, time),
            2 => self.cut(at, Ways { there: true, back: false }, time),
            _ => self.crash(at, time.min(20 * SECOND)),
        }
    }
}
