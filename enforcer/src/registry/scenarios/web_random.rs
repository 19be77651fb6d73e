//! Web sessions in a random world: whatever happens in whatever order, what is over stays over, and nobody else's session
//! ends. Several gateways come, hang, go and come again; clocks are set; the daemon and the host are started anew.

mod after;
mod machine;

use proptest::prelude::*;

use super::harness::*;
use crate::registry::*;
use crate::session::*;

const IDLE: u64 = 100;
const LASTS: u64 = 1_000;
const PEOPLE: [&str; 3] = ["alice", "bob", "carol"];

#[derive(Debug, Clone)]
enum Op {
    Login(u8),
    AddToken(u8),
    Rewrap(u8),
    Use(u8),
    /// By its key, or by one of its tokens.
    End(u8, bool),
    RevokeUser(u8),
    RevokeKey(u8),
    /// For so many seconds, or until unlocked.
    Lock(u8, Option<u8>),
    Unlock(u8),
    Watch(u8),
    WatchGone(u8),
    GatewayGone(u8),
    /// What was asked to be destroyed by a table is, or is not.
    Destroyed(bool),
    /// The oldest so many of the ends that it was told.
    Acknowledge(u8, u8),
    Listed(u8),
    /// What a gateway says that was broken into: of what it was not told, and of what is alive.
    Nonsense(u8),
    Pass(u16),
    /// The clock on the wall is set, by so many seconds.
    Clock(i32),
    Full(bool),
    Hang(bool),
    /// The daemon, while the clock on the wall is set.
    Restart(i32),
    /// The host, which was down for so long; and its clock was set.
    Reboot(u16, i32),
}

/// Seldom, and then far.
fn jump() -> impl Strategy<Value = i32> {
    prop_oneof![3 => Just(0), 1 => -300..300_i32, 1 => -90_000..90_000_i32]
}

fn op() -> impl Strategy<Value = Op> {
    let n = any::<u8>;
    prop_oneof![
        6 => n().prop_map(Op::Login),
        2 => n().prop_map(Op::AddToken),
        2 => n().prop_map(Op::Rewrap),
        4 => n().prop_map(Op::Use),
        1 => (n(), any::<bool>()).prop_map(|(which, by_key)| Op::End(which, by_key)),
        2 => n().prop_map(Op::RevokeUser),
        2 => n().prop_map(Op::RevokeKey),
        1 => (n(), proptest::option::of(5..200_u8)).prop_map(|(whom, seconds)| Op::Lock(whom, seconds)),
        1 => n().prop_map(Op::Unlock),
        2 => n().prop_map(Op::Watch),
        1 => n().prop_map(Op::WatchGone),
        1 => n().prop_map(Op::GatewayGone),
        2 => any::<bool>().prop_map(Op::Destroyed),
        3 => (n(), n()).prop_map(|(watch, many)| Op::Acknowledge(watch, many)),
        1 => n().prop_map(Op::Listed),
        1 => n().prop_map(Op::Nonsense),
        3 => (0..5_000_u16).prop_map(Op::Pass),
        1 => (0..60_000_u16).prop_map(Op::Pass),
        1 => jump().prop_map(Op::Clock),
        1 => any::<bool>().prop_map(Op::Full),
        1 => any::<bool>().prop_map(Op::Hang),
        1 => jump().prop_map(Op::Restart),
        1 => (0..60_u16, jump()).prop_map(|(down, jump)| Op::Reboot(down, jump)),
    ]
}

/// Some gateways can be seen, some keep tables.
fn gateway(n: u8) -> Gateway {
    let id = u64::from(n % 4);
    let process = (id > 0).then(|| Process { pid: i32::from(n % 4), start: 1 });
    Gateway { id, process, table: id > 1 }
}

fn person(n: u8) -> &'static str {
    PEOPLE[usize::from(n) % PEOPLE.len()]
}

proptest! {
    #[test]
    fn r2_r3_r4_r5_r6_web_sessions_in_a_random_world(ops in proptest::collection::vec(op(), 1..160)) {
        let mut machine = machine::Machine::new();
        for op in &ops {
            machine.step(op);
            machine.check();
        }
    }
}
