//! How often a password may be tried: limits by user and by client address, pure (time goes in).
//!
//! Each user and each address has a bucket of tries; one comes back after each interval. A try that is refused takes
//! nothing, so nobody ever waits longer than one interval, and **nobody is locked out for good**. Somebody who tries a
//! user's passwords without an end would take every try that comes back; so who has logged in from an address before
//! has a bucket of their own there, which no other address can empty.
//!
//! Ask before the password is looked at ([`Attempts::ask`]), for users that exist and for those that do not: the answer
//! must not tell them apart. Say it when it was right ([`Attempts::succeeded`]).
//!
//! **Bounds.** Every table has an end. When one is full, the entry goes that is nearest to a full bucket: to make room
//! for a try at a name that was tried often, as many names have to be tried as often as the table has places.
//!
//! An IPv6 client is its /64: it can have every address in it.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use ring::digest::{SHA256, digest};

/// A bucket: so many tries at once, and one more after each interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    /// At least 1.
    pub tries: u32,
    pub interval: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub user: Bucket,
    pub address: Bucket,
    /// A user at an address from which that user has logged in before: in place of the user's.
    pub known: Bucket,
    /// How long such an address is known, since the last login from it.
    pub remembered: Duration,
    /// Places of each table.
    pub places: usize,
}

impl Default for Limits {
    /// A user: 10 tries, then one every 30 s (2,880 a day). An address: 30, then one every 5 s. A known address: as a
    /// user, for 30 days. 16,384 places (some 8 MB in all).
    fn default() -> Self {
        let user = Bucket { tries: 10, interval: Duration::from_secs(30) };
        Self {
            user,
            address: Bucket { tries: 30, interval: Duration::from_secs(5) },
            known: user,
            remembered: Duration::from_secs(30 * 86_400),
            places: 16_384,
        }
    }
}

/// Too many tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many tries: wait {} s", .time.as_secs().saturating_add(1))]
pub struct Wait {
    /// After this long one try is free, unless somebody else takes it.
    pub time: Duration,
    /// Whose tries are used up: for the log, and not for the client.
    pub whose: Whose,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    User,
    Address,
}

type Name = [u8; 16];
type Network = u64;

/// Who has tried how often.
#[derive(Debug)]
pub struct Attempts {
    limits: Limits,
    users: Table<Name>,
    addresses: Table<(bool, Network)>,
    known: Table<(Name, bool, Network)>,
    /// When each user has last logged in from where.
    logins: Logins,
}

impl Attempts {
    pub fn new(limits: Limits) -> Self {
        let places = limits.places.max(1);
        Self {
            users: Table::new(limits.user, places),
            addresses: Table::new(limits.address, places),
            known: Table::new(limits.known, places),
            logins: Logins { places, ..Logins::default() },
            limits,
        }
    }

    /// Takes one try of this user from this address. `user`: by the realm's case rule, whether there is such a user or
    /// not.
    ///
    /// # Errors
    /// [`Wait`], and nothing is taken.
    pub fn ask(&mut self, user: &str, address: IpAddr, now: Instant) -> Result<(), Wait> {
        let (name, (six, network)) = (name(user), network(address));
        let pair = (name, six, network);
        let known = self.logins.is_known(&pair, now, self.limits.remembered);
        let user = if known { self.known.wait(&pair, now) } else { self.users.wait(&name, now) };
        if let Some(time) = user {
            return Err(Wait { time, whose: Whose::User });
        }
        if let Some(time) = self.addresses.wait(&(six, network), now) {
            return Err(Wait { time, whose: Whose::Address });
        }
        self.addresses.take((six, network), now);
        if known {
            self.known.take(pair, now)
        } else {
            self.users.take(name, now)
        }
        Ok(())
    }

    /// The password was right: the user has all tries again, the address the one that this took.
    pub fn succeeded(&mut self, user: &str, address: IpAddr, now: Instant) {
        let (name, (six, network)) = (name(user), network(address));
        self.users.forget(&name);
        self.known.forget(&(name, six, network));
        self.addresses.give_back(&(six, network));
        self.logins.note((name, six, network), now);
    }

    /// The password was not looked at: the user and the address have the try again that [`Attempts::ask`] took.
    pub fn untried(&mut self, user: &str, address: IpAddr, now: Instant) {
        let (name, (six, network)) = (name(user), network(address));
        let pair = (name, six, network);
        if self.logins.is_known(&pair, now, self.limits.remembered) {
            self.known.give_back(&pair);
        } else {
            self.users.give_back(&name);
        }
        self.addresses.give_back(&(six, network));
    }
}

/// A name of any length, as 128 bits of its SHA-256.
fn name(user: &str) -> Name {
    let mut short = [0; 16];
    for (to, from) in short.iter_mut().zip(digest(&SHA256, user.as_bytes()).as_ref()) {
        *to = *from;
    }
    short
}

/// Whether it is IPv6, and the first 64 bits; of IPv4 all of it, also where it is written as IPv6.
fn network(address: IpAddr) -> (bool, Network) {
    match address.to_canonical() {
        IpAddr::V4(address) => (false, u64::from(address.to_bits())),
        IpAddr::V6(address) => (true, first_half(address)),
    }
}

fn first_half(address: Ipv6Addr) -> u64 {
    u64::try_from(address.to_bits() >> 64).unwrap_or_default()
}

/// Buckets by key. A full bucket has no entry.
#[derive(Debug)]
struct Table<K> {
    bucket: Bucket,
    places: usize,
    /// When the bucket of each is full again.
    full_at: HashMap<K, Instant>,
    order: BTreeSet<(Instant, K)>,
}

impl<K: Hash + Ord + Copy> Table<K> {
    fn new(bucket: Bucket, places: usize) -> Self {
        Self { bucket, places, full_at: HashMap::new(), order: BTreeSet::new() }
    }

    /// How long until there is a try. None if there is one.
    fn wait(&self, key: &K, now: Instant) -> Option<Duration> {
        let lacks = self.full_at.get(key)?.saturating_duration_since(now);
        let may_lack = self.bucket.interval.saturating_mul(self.bucket.tries.saturating_sub(1));
        lacks.checked_sub(may_lack).filter(|wait| !wait.is_zero())
    }

    fn take(&mut self, key: K, now: Instant) {
        let from = self.full_at.get(&key).map_or(now, |at| (*at).max(now));
        if self.full_at.len() >= self.places
            && !self.full_at.contains_key(&key)
            && let Some((_, least)) = self.order.pop_first()
        {
            self.full_at.remove(&least);
        }
        self.set(key, from + self.bucket.interval);
    }

    fn give_back(&mut self, key: &K) {
        if let Some(at) = self.full_at.get(key).and_then(|at| at.checked_sub(self.bucket.interval)) {
            self.set(*key, at);
        }
    }

    fn set(&mut self, key: K, at: Instant) {
        self.forget(&key);
        self.full_at.insert(key, at);
        self.order.insert((at, key));
    }

    fn forget(&mut self, key: &K) {
        if let Some(at) = self.full_at.remove(key) {
            self.order.remove(&(at, *key));
        }
    }
}

#[derive(Debug, Default)]
struct Logins {
    places: usize,
    last: HashMap<(Name, bool, Network), Instant>,
    order: BTreeSet<(Instant, (Name, bool, Network))>,
}

impl Logins {
    fn is_known(&self, pair: &(Name, bool, Network), now: Instant, remembered: Duration) -> bool {
        self.last.get(pair).is_some_and(|at| now.saturating_duration_since(*at) < remembered)
    }

    fn note(&mut self, pair: (Name, bool, Network), now: Instant) {
        match self.last.insert(pair, now) {
            Some(at) => {
                self.order.remove(&(at, pair));
            }
            None if self.last.len() > self.places => {
                if let Some((_, oldest)) = self.order.pop_first() {
                    self.last.remove(&oldest);
                }
            }
            None => {}
        }
        self.order.insert((now, pair));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    const SECOND: Duration = Duration::from_secs(1);

    fn small() -> Limits {
        Limits {
            user: Bucket { tries: 3, interval: 10 * SECOND },
            address: Bucket { tries: 5, interval: 2 * SECOND },
            known: Bucket { tries: 2, interval: 10 * SECOND },
            remembered: 100 * SECOND,
            places: 4,
        }
    }

    /// How many tries pass of so many.
    fn tries(attempts: &mut Attempts, user: &str, from: &str, now: Instant, of: usize) -> usize {
        (0..of).filter(|_| attempts.ask(user, ip(from), now).is_ok()).count()
    }

    #[test]
    fn a_user_is_tried_so_often_and_then_once_an_interval() {
        let (mut attempts, now) = (Attempts::new(small()), Instant::now());
        assert_eq!(tries(&mut attempts, "alice", "192.0.2.1", now, 9), 3);
        assert_eq!(tries(&mut attempts, "alice", "192.0.2.2", now, 9), 0, "from wherever it is");
        let wait = attempts.ask("alice", ip("192.0.2.3"), now).unwrap_err();
        assert_eq!(wait, Wait { time: 10 * SECOND, whose: Whose::User });
        assert!(wait.to_string().contains("wait 11 s"));
        assert_eq!(tries(&mut attempts, "bob", "192.0.2.4", now, 9), 3, "and nobody else waits");
        assert!(attempts.ask("alice", ip("192.0.2.3"), now + 9 * SECOND).is_err());
        assert_eq!(tries(&mut attempts, "alice", "192.0.2.3", now + 10 * SECOND, 9), 1);
        assert_eq!(tries(&mut attempts, "alice", "192.0.2.3", now + 1000 * SECOND, 4), 3);
    }

    /// However long it is hammered, the wait is one interval: nobody is locked out for good.
    #[test]
    fn nobody_is_locked_out_for_good() {
        let (mut attempts, start) = (Attempts::new(small()), Instant::now());
        for second in 0..10_005 {
            let _ = attempts.ask("alice", ip("192.0.2.1"), start + second * SECOND);
        }
        let now = start + 10_005 * SECOND;
        if let Err(wait) = attempts.ask("alice", ip("192.0.2.9"), now) {
            assert!(wait.time <= 10 * SECOND, "{wait:?}");
            assert!(attempts.ask("alice", ip("192.0.2.9"), now + wait.time).is_ok());
        }
    }

    #[test]
    fn who_has_logged_in_from_there_does_not_wait_for_somebody_elsewhere() {
        let (mut attempts, now) = (Attempts::new(small()), Instant::now());
        attempts.ask("alice", ip("2001:db8:1::1"), now).unwrap();
        attempts.succeeded("alice", ip("2001:db8:1::1"), now);
        assert_eq!(tries(&mut attempts, "alice", "192.0.2.1", now, 9), 3);
        assert!(attempts.ask("alice", ip("192.0.2.2"), now).is_err());
        assert_eq!(tries(&mut attempts, "alice", "2001:db8:1::2", now, 9), 2, "a bucket of their own");
        assert_eq!(tries(&mut attempts, "bob", "2001:db8:1::1", now, 1), 1);
        // and nobody gets another user's
        attempts.succeeded("bob", ip("2001:db8:1::1"), now);
        assert!(attempts.ask("alice", ip("2001:db8:1::1"), now).is_err());
        // once it is forgotten they are as everybody
        assert_eq!(tries(&mut attempts, "alice", "2001:db8:1::1", now + 100 * SECOND, 9), 3);
    }

    #[test]
    fn an_address_tries_so_often_whoever_it_is() {
        let (mut attempts, now) = (Attempts::new(small()), Instant::now());
        let passed = (0..9).filter(|n| attempts.ask(&format!("u{n}"), ip("192.0.2.1"), now).is_ok()).count();
        assert_eq!(passed, 5);
        let wait = attempts.ask("new", ip("192.0.2.1"), now).unwrap_err();
        assert_eq!(wait, Wait { time: 2 * SECOND, whose: Whose::Address });
        assert!(attempts.ask("new", ip("::ffff:192.0.2.1"), now).is_err(), "the same in IPv6's words");
        assert!(attempts.ask("new", ip("192.0.2.2"), now).is_ok());
        let passed = (0..9)
            .filter(|n| attempts.ask(&format!("v{n}"), ip(&format!("2001:db8::{n}")), now).is_ok())
            .count();
        assert_eq!(passed, 5, "one /64 is one client");
        assert!(attempts.ask("other", ip("2001:db8:0:1::1"), now).is_ok());
    }

    #[test]
    fn what_is_refused_takes_nothing() {
        let (mut attempts, now) = (Attempts::new(small()), Instant::now());
        assert_eq!(tries(&mut attempts, "alice", "192.0.2.1", now, 100), 3);
        assert_eq!(tries(&mut attempts, "bob", "192.0.2.1", now, 100), 2, "of the address three are used");
    }

    #[test]
    fn a_success_gives_back() {
        let (mut attempts, now) = (Attempts::new(small()), Instant::now());
        for _ in 0..50 {
            attempts.ask("alice", ip("192.0.2.1"), now).unwrap();
            attempts.succeeded("alice", ip("192.0.2.1"), now);
        }
        // a success of one user gives the address no tries at another's
        for round in 0..9 {
            let asked = attempts.ask("victim", ip("192.0.2.1"), now);
            assert_eq!(asked.is_ok(), round < 3);
            attempts.ask("alice", ip("192.0.2.1"), now).unwrap();
            attempts.succeeded("alice", ip("192.0.2.1"), now);
        }
    }

    #[test]
    fn what_nobody_has_looked_at_was_no_try() {
        let (mut attempts, now) = (Attempts::new(small()), Instant::now());
        for known in [false, true] {
            if known {
                attempts.succeeded("alice", ip("192.0.2.1"), now);
            }
            for _ in 0..50 {
                attempts.ask("alice", ip("192.0.2.1"), now).unwrap();
                attempts.untried("alice", ip("192.0.2.1"), now);
            }
        }
        // and no more than what was taken comes back; of a known address there are two
        assert_eq!(tries(&mut attempts, "alice", "192.0.2.1", now, 9), 2);
        attempts.untried("alice", ip("192.0.2.1"), now);
        assert_eq!(tries(&mut attempts, "alice", "192.0.2.1", now, 9), 1);
    }

    #[test]
    fn r7_tables_are_bounded_and_who_was_tried_most_is_kept() {
        let (mut attempts, now) = (Attempts::new(small()), Instant::now());
        assert_eq!(tries(&mut attempts, "alice", "192.0.2.1", now, 9), 3);
        for number in 0..100 {
            let address = ip(&format!("198.51.100.{number}"));
            attempts.ask(&format!("u{number}"), address, now).unwrap();
            attempts.succeeded(&format!("w{number}"), address, now);
        }
        assert!(attempts.ask("alice", ip("192.0.2.9"), now).is_err());
        assert!(attempts.users.full_at.len() <= 4 && attempts.users.order.len() <= 4);
        assert!(attempts.addresses.full_at.len() <= 4 && attempts.known.full_at.len() <= 4);
        assert!(attempts.logins.last.len() <= 4 && attempts.logins.order.len() <= 4);
    }

    proptest! {
        #[test]
        fn tables_hold_together(steps in prop::collection::vec((0..6u8, 0..6u8, 0..30u64, any::<bool>()), 0..200)) {
            let (mut attempts, mut now) = (Attempts::new(small()), Instant::now());
            for (user, address, seconds, right) in steps {
                now += Duration::from_millis(seconds * 143);
                let (user, address) = (format!("u{user}"), ip(&format!("192.0.2.{address}")));
                match attempts.ask(&user, address, now) {
                    Ok(()) if right => attempts.succeeded(&user, address, now),
                    Ok(()) => {}
                    Err(wait) => {
                        prop_assert!(wait.time <= 10 * SECOND && !wait.time.is_zero());
                    }
                }
                prop_assert!(attempts.users.full_at.len() == attempts.users.order.len());
                prop_assert!(attempts.users.full_at.len() <= 4 && attempts.addresses.full_at.len() <= 4);
                prop_assert!(attempts.addresses.full_at.len() == attempts.addresses.order.len());
                prop_assert!(attempts.known.full_at.len() == attempts.known.order.len());
                prop_assert!(attempts.logins.last.len() == attempts.logins.order.len());
            }
        }
    }
}
