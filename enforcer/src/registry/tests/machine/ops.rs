//! What may happen in the random world, and how often.

use proptest::prelude::*;

#[derive(Debug, Clone)]
pub enum Op {
    Login(u8),
    /// With that cookie; `like`: with a dead worker's pid, a dead neighbour's port, its or a let-go one's address,
    /// and its device's number if no one can know that device any more.
    Arrive {
        cookie: u8,
        like: Option<u8>,
    },
    Feed(u8),
    Look {
        worker: u8,
        last: bool,
    },
    Exit(u8),
    Hang(u8),
    /// What is under way: this one happens. `stale`: ocserv answers with what was so when it was asked.
    Task {
        nth: u8,
        stale: bool,
    },
    /// What is under way: this one fails.
    Lose(u8),
    All,
    Pass(u16),
    /// Hours.
    PassLong(u16),
    RevokeUser(u8),
    RevokeId(u8),
    RevokeSession(u8),
    /// `stands`: seconds; 0: without end.
    Lock {
        user: u8,
        stands: u16,
    },
    RevokeExplicit {
        what: u8,
        stands: u16,
    },
    Unlock(u8),
    Lift(u8),
    Disk(Disk),
    Kill,
    /// The daemon dies after so many effects.
    Crash(u8),
    Start,
    /// `down`: seconds; `cookies`: ocserv still has them; `same`: the namespace has the same number.
    Reboot {
        down: u16,
        cookies: bool,
        same: bool,
    },
    PinsGone,
    ListsCookies(bool),
    Silent(bool),
    RestartOcserv,
    Forget(u8),
    Clock(i8),
    WriteClock,
    /// Remember what is seen now, and tell it later.
    TakeList,
    LateList,
    LateDisconnect(u8),
    /// A fresh login has to work.
    Fresh(u8),
}

/// What becomes of writes.
#[derive(Debug, Clone)]
pub enum Disk {
    /// So many of those that wait are written.
    Batch(u8),
    /// What became of the oldest batch is told.
    Tell,
    Takes,
    Full,
    /// It says that it did not take what it took.
    Lies,
    Hangs,
}

pub fn ops() -> impl Strategy<Value = Op> {
    let n = any::<u8>();
    // none, some seconds, a day
    let stands = || prop_oneof![2 => Just(0), 3 => 1..60u16, 1 => Just(50_000u16)];
    let disk = prop_oneof![
        6 => n.prop_map(|n| Disk::Batch(n % 8)),
        6 => Just(Disk::Tell),
        4 => Just(Disk::Takes),
        1 => Just(Disk::Full),
        1 => Just(Disk::Lies),
        2 => Just(Disk::Hangs),
    ];
    prop_oneof![
        4 => n.prop_map(Op::Login),
        8 => (n, proptest::option::of(n)).prop_map(|(cookie, like)| Op::Arrive { cookie, like }),
        4 => n.prop_map(Op::Feed),
        12 => (n, any::<bool>()).prop_map(|(worker, last)| Op::Look { worker, last }),
        3 => n.prop_map(Op::Exit),
        2 => n.prop_map(Op::Hang),
        12 => (n, any::<bool>()).prop_map(|(nth, stale)| Op::Task { nth, stale }),
        2 => n.prop_map(Op::Lose),
        4 => Just(Op::All),
        6 => (1..5_000u16).prop_map(Op::Pass),
        1 => (1..30u16).prop_map(Op::PassLong),
        4 => n.prop_map(Op::RevokeUser),
        2 => n.prop_map(Op::RevokeId),
        2 => n.prop_map(Op::RevokeSession),
        3 => (n, stands()).prop_map(|(user, stands)| Op::Lock { user, stands }),
        2 => (n, stands()).prop_map(|(what, stands)| Op::RevokeExplicit { what, stands }),
        2 => n.prop_map(Op::Unlock),
        3 => n.prop_map(Op::Lift),
        8 => disk.prop_map(Op::Disk),
        1 => Just(Op::Kill),
        3 => (0..40u8).prop_map(Op::Crash),
        5 => Just(Op::Start),
        1 => (1..300u16, any::<bool>(), any::<bool>())
            .prop_map(|(down, cookies, same)| Op::Reboot { down, cookies, same }),
        1 => Just(Op::PinsGone),
        2 => any::<bool>().prop_map(Op::ListsCookies),
        2 => any::<bool>().prop_map(Op::Silent),
        1 => Just(Op::RestartOcserv),
        2 => n.prop_map(Op::Forget),
        1 => any::<i8>().prop_map(Op::Clock),
        1 => Just(Op::WriteClock),
        2 => Just(Op::TakeList),
        2 => Just(Op::LateList),
        1 => n.prop_map(Op::LateDisconnect),
        3 => n.prop_map(Op::Fresh),
    ]
}

/// One story.
#[derive(Debug, Clone)]
pub struct Story {
    /// This ocserv has `terminate`.
    pub terminate: bool,
    /// The case of a name does not count.
    pub folds: bool,
    pub ops: Vec<Op>,
}

pub fn stories() -> impl Strategy<Value = Story> {
    (any::<bool>(), any::<bool>(), prop::collection::vec(ops(), 1..120))
        .prop_map(|(terminate, folds, ops)| Story { terminate, folds, ops })
}
