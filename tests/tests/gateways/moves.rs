//! One session per user: who comes on another gateway has moved there.

use std::time::Duration;

use enforcer_tests::gateways::{A, B, C, Gateways, LET_IN, Plan, Session, hammered, none_let_in};
use enforcer_tests::scene::Pair;
use enforcer_tests::traffic::FLOOD;
use enforcer_tests::{Client, Connect, Moment, Outcome};

/// How long packets of the old session came through while the new one had its tunnel.
fn both_there(old: &Pair, new: &Session) -> Duration {
    old.up.last().map_or(Duration::ZERO, |last| last.at - new.tunnel.since())
}

/// R1, R2, R3, R4: alice logs in on one gateway after the other, `ENFORCER_TEST_MOVES` times, from two hosts in turn. Each time
/// her session on the gateway before ends, her old client hammers with its cookie and is never let in, and the new session is
/// not disturbed by it. In the end she has one. How long two of them had packets is measured, and printed. Miss twin: bob, on
/// one of the gateways all the while, loses no packet.
#[test]
fn r1_r2_r3_r4_she_moves_and_her_old_cookie_never_wins_her_back() {
    let moves = super::number("ENFORCER_TEST_MOVES", 12);
    let mut world = Plan::new("gws-moves").at_most(1).start();
    let hosts = ["laptop", "phone"].map(|name| world.lab.client(name));
    let bobs = world.lab.client("bobs");
    let bob = world.session(B, &bobs, "bob");
    let mut neighbour = world.flood(&bobs, &bob, 50);
    neighbour.flowing();
    let begun = Moment::now();
    let mut old: Option<(Session, Pair, &Client)> = None;
    let mut times = Vec::new();
    for (number, place) in (0..moves).zip([A, B, C].into_iter().cycle()) {
        let client = &hosts[usize::from(number % 2 == 1)];
        let mut new = world.session(place, client, "alice");
        let flood = world.flood(client, &new, FLOOD);
        flood.flowing();
        if let Some((mut session, pair, host)) = old.take() {
            world.ends(&mut session);
            times.push(both_there(&pair, &new));
            let begun = Moment::now();
            let ((), tries) = hammered(&world, (host, session.place, &session.cookie), || {
                flood.up.wait_sent(200);
                flood.flowing();
            });
            none_let_in(&tries, begun);
            let late = pair.up.passed_after(begun);
            assert!(late.is_empty(), "move {number}: {} packets of the old session passed", late.len());
            assert!(!new.tunnel.ended(), "move {number}: the new session ended\n{}", new.tunnel.log());
            assert_eq!(new.tunnel.reconnects(), 0, "move {number}");
        }
        old = Some((new, flood, client));
    }
    neighbour.lost_nothing(begun, Moment::now());
    only_one(&world, "alice");
    times.sort();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e3;
    eprintln!(
        "{moves} moves; packets of the session before, after the next one had its tunnel: median {:.1} ms, p90 {:.1} ms, at \
         most {:.1} ms",
        at(0.5),
        at(0.9),
        at(1.0)
    );
}

/// All gateways together have one session of that person, and one place is taken.
#[track_caller]
pub fn only_one(world: &Gateways, user: &str) {
    world.lab.eventually("one session is left", || {
        let there: usize = world.iter().map(|gateway| gateway.server.sessions(user).len()).sum();
        (there == 1).then_some(())
    });
    let owners = world.has_stored(&format!("owners/default/{user}"));
    let holders = owners.value["holders"].as_array().expect("holders");
    assert_eq!(holders.len(), 1, "{holders:?}");
    assert!(world.iter().any(|gateway| holders[0]["gateway"] == gateway.id()), "{holders:?}");
}

/// R2, R4: the current session's cookie reconnect is no new session: alice comes back on her gateway after her client was
/// killed and after its worker was, her place is the same, and so is the order. Twin: a fresh login takes the place.
#[test]
fn r4_a_reconnect_with_the_current_cookie_is_no_new_session() {
    let mut world = Plan::new("gws-back").at_most(1).start();
    let [hers, other] = ["hers", "other"].map(|name| world.lab.client(name));
    let first = world.session(A, &hers, "alice");
    let key = "owners/default/alice";
    let place = world.has_stored(key);
    let Session { cookie, tunnel, safe_id, .. } = first;
    tunnel.kill();
    let mut again = world.session_of(A, &hers, "alice", cookie);
    assert_eq!(again.safe_id, safe_id);
    let worker = world[A].server.session_at("alice", again.tunnel.v4).id;
    // a worker of the ocserv that this lab started
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(worker), nix::sys::signal::Signal::SIGKILL).unwrap();
    world.lab.eventually("its client comes back by itself", || (again.tunnel.reconnects() > 0).then_some(()));
    world.flood(&hers, &again, 50).flowing();
    assert_eq!(world.has_stored(key).revision, place.revision, "nobody has come or gone");
    let _moved = world.session(C, &other, "alice");
    world.ends(&mut again);
    world.refused(&hers, A, &again.cookie);
    assert!(world.has_stored(key).revision > place.revision);
    only_one(&world, "alice");
}

/// R2: two of her clients come on two gateways in the same moment: exactly one remains, the other one's cookie is worth
/// nothing, and nothing goes back and forth.
#[test]
fn r2_of_two_that_come_at_once_exactly_one_remains() {
    let mut world = Plan::new("gws-at-once").at_most(1).start();
    let hosts = ["one", "two"].map(|name| world.lab.client(name));
    for round in 0..4 {
        let places = [B, if round % 2 == 0 { C } else { A }];
        let cookies = [0, 1].map(|n| hosts[n].authenticate(&world[places[n]].server, "alice"));
        let how = Connect::default();
        let started = [0, 1].map(|n| hosts[n].start(&world[places[n]].server, &cookies[n], &how));
        let mut tunnels: Vec<_> = started
            .into_iter()
            .map(|attempt| match attempt.outcome() {
                Outcome::Up(tunnel) => Some(tunnel),
                Outcome::Refused { .. } => None,
                // let in, and ended before it had its tunnel
                Outcome::Failed { log } if log.contains(LET_IN) => None,
                Outcome::Failed { log } => panic!("neither let in nor refused:\n{log}"),
            })
            .collect();
        let winner = world.lab.eventually("one has ended", || {
            let there: Vec<_> =
                (0..2).filter(|n| tunnels[*n].as_mut().is_some_and(|tunnel| !tunnel.ended())).collect();
            assert!(!there.is_empty(), "round {round}: both have ended");
            (there.len() == 1).then(|| there[0])
        });
        let loser = 1 - winner;
        let ((), tries) = hammered(&world, (&hosts[loser], places[loser], &cookies[loser]), || {
            let source = tunnels[winner].as_ref().unwrap();
            let flood = Pair::new(&world.lab, &hosts[winner], source, false, 100);
            flood.flowing();
            flood.up.wait_sent(100);
            flood.flowing();
        });
        none_let_in(&tries, Moment(0));
        let remains = tunnels[winner].as_mut().unwrap();
        assert!(
            !remains.ended() && remains.reconnects() == 0,
            "round {round}: the one that remained was disturbed"
        );
        only_one(&world, "alice");
    }
}
