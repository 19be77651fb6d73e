//! What connection tracking has of a revoked session's address is taken out before the address is somebody else's, and
//! nothing of anybody else.

use std::net::IpAddr;

use super::super::*;
use super::harness::*;
use crate::session::{Entry, Process};

/// A world whose connection tracking takes its time.
fn slow() -> World {
    let mut world = World::new();
    world.slow_conntrack = true;
    world
}

fn is_order(task: &Task) -> bool {
    matches!(task.what, Effect::ForgetConnections { .. })
}

fn orders(world: &World) -> usize {
    world.tasks.iter().filter(|task| is_order(task)).count()
}

/// Everything happens but what connection tracking is to do.
fn run_without_conntrack(world: &mut World) {
    let mut held = Vec::new();
    while let Some(task) = world.tasks.pop_front() {
        if is_order(&task) { held.push(task) } else { world.carry_out(task) }
    }
    world.tasks.extend(held);
}

fn pass_without_conntrack(world: &mut World, time: Duration) {
    let until = world.now.mono + time;
    while world.now.mono < until {
        let step = world.registry.next_tick(world.now).min(until - world.now.mono);
        world.pass_time(step);
        world.handle(Event::Tick);
        run_without_conntrack(world);
    }
}

fn owns(world: &mut World, id: i32, connections: usize) -> IpAddr {
    let worker = world.workers[&id].clone();
    let tracked = world.tracked.as_mut().unwrap().get_or_insert_default();
    tracked.insert(worker.address, vec![worker.process; connections]);
    worker.address
}

fn tracked(world: &World, address: IpAddr) -> usize {
    world.tracked.as_ref().unwrap().as_ref().and_then(|all| all.get(&address)).map_or(0, Vec::len)
}

#[test]
fn r1_r6_connections_are_taken_out_at_the_sessions_end_and_the_answer_says_how_many() {
    let mut world = slow();
    let (alices, bobs) = (world.login("alice"), world.login("bob"));
    let (alice, bob) = (world.up(alices), world.up(bobs));
    let (hers, his) = (owns(&mut world, alice, 3), owns(&mut world, bob, 2));
    let receipt = world.revoke_user("alice");
    let it = layer(&receipt, Layer::Conntrack);
    assert_eq!((it.done, it.failed, it.text.as_str()), (3, 0, "3 connections taken out"));
    assert!(receipt.is_complete(), "{receipt:?}");
    // R3
    assert_eq!((tracked(&world, hers), tracked(&world, his)), (0, 2));
}

#[test]
fn r6_a_revocation_with_nothing_to_take_out_says_so() {
    let mut world = slow();
    let alices = world.login("alice");
    world.up(alices);
    let receipt = world.revoke_user("alice");
    assert_eq!(layer(&receipt, Layer::Conntrack).text, "none to take out");
    // a cookie without a session
    world.login("bob");
    let receipt = world.revoke_user("bob");
    assert_eq!(layer(&receipt, Layer::Conntrack).text, "none to take out");
    // no connection tracking
    let carols = world.login("carol");
    world.up(carols);
    world.tracked = Ok(None);
    let receipt = world.revoke_user("carol");
    assert_eq!(layer(&receipt, Layer::Conntrack).text, "not tracked here");
    assert!(receipt.is_complete());
}

#[test]
fn r1_an_address_is_dropped_until_its_connections_are_taken_out() {
    let mut world = slow();
    let alices = world.login("alice");
    let alice = world.up(alices);
    let entry = Entry::Address(NETNS, owns(&mut world, alice, 1));
    let request = world.ask(World::order(Target::User("alice".into())));
    run_without_conntrack(&mut world);
    assert!(!world.workers.contains_key(&alice), "worker and device are gone");
    assert_eq!(orders(&world), 1);
    assert!(world.drops(&entry));
    assert!(!world.answers.contains_key(&request), "what is under way is waited for");
    world.run();
    assert!(!world.drops(&entry));
    assert!(world.answers.contains_key(&request));
}

#[test]
fn r1_r3_the_next_owner_waits_at_the_gate_until_the_address_is_his_alone() {
    let mut world = slow();
    let (alices, bobs) = (world.login("alice"), world.login("bob"));
    let alice = world.up(alices);
    let address = owns(&mut world, alice, 1);
    world.ask(World::order(Target::User("alice".into())));
    run_without_conntrack(&mut world);
    let worker = Worker { address, ..world.worker(bobs) };
    let bob = world.connect(worker);
    for last in [false, true] {
        let ask = world.ask_gate(bob, last);
        run_without_conntrack(&mut world);
        assert_eq!(world.verdicts.get(&ask), if last { Some(&Verdict::Admit) } else { None });
        assert_eq!(world.drops(&Entry::Address(NETNS, address)), !last);
        world.run();
        assert_eq!(world.verdicts.get(&ask), Some(&Verdict::Admit));
        assert_eq!(tracked(&world, address), 0);
    }
    world.come_up(bob);
    assert!(!world.is_hit(bob));
    // his own are nobody's business from now on
    owns(&mut world, bob, 5);
    world.pass(10 * SECOND);
    assert_eq!(tracked(&world, address), 5);
}

/// The old worker hangs, and ocserv has given its address away.
#[test]
fn r1_connections_of_a_session_that_hangs_are_taken_out_when_its_address_is_given_away() {
    let mut world = slow();
    let (alices, bobs) = (world.login("alice"), world.login("bob"));
    let alice = world.up(alices);
    let address = owns(&mut world, alice, 4);
    world.workers.get_mut(&alice).unwrap().hangs = true;
    let receipt = world.revoke_user("alice");
    let it = layer(&receipt, Layer::Conntrack);
    assert_eq!((it.failed, it.text.as_str()), (1, "1 address not looked at yet"));
    world.workers.get_mut(&alice).unwrap().let_go = true;
    let worker = Worker { address, ..world.worker(bobs) };
    let bob = world.connect(worker);
    let ask = world.ask_gate(bob, true);
    assert_eq!(world.verdicts.get(&ask), None);
    assert!(world.drops(&Entry::Address(NETNS, address)));
    world.run();
    assert_eq!(world.verdicts.get(&ask), Some(&Verdict::Admit));
    assert!(!world.drops(&Entry::Address(NETNS, address)));
    assert_eq!(tracked(&world, address), 0);
    world.come_up(bob);
    owns(&mut world, bob, 5);
    // nor when the old one ends at last
    world.exit(alice);
    world.pass(5 * SECOND);
    assert_eq!(tracked(&world, address), 5);
    let now = world.now;
    let receipt = world.registry.receipt_of(receipt.number, now).unwrap();
    assert_eq!(layer(&receipt, Layer::Conntrack).done, 4);
}

#[test]
fn r4_a_connection_tracking_that_does_not_answer_keeps_nobody_out_for_long() {
    let mut world = slow();
    let (alices, bobs) = (world.login("alice"), world.login("bob"));
    let alice = world.up(alices);
    let address = owns(&mut world, alice, 1);
    let request = world.ask(World::order(Target::User("alice".into())));
    run_without_conntrack(&mut world);
    let worker = Worker { address, ..world.worker(bobs) };
    let bob = world.connect(worker);
    let ask = world.ask_gate(bob, true);
    pass_without_conntrack(&mut world, ms(1_600));
    assert_eq!(world.verdicts.get(&ask), Some(&Verdict::Admit));
    assert!(!world.is_hit(bob));
    world.come_up(bob);
    // R3: what comes too late is not done, and what comes all the same is not believed
    assert_eq!(orders(&world), 0);
    owns(&mut world, bob, 5);
    let late = Event::ConnectionsForgotten { netns: NETNS, address, turn: 1, outcome: Ok(Some(9)) };
    world.handle(late);
    world.pass(10 * SECOND);
    assert_eq!(tracked(&world, address), 5);
    // R6
    let Some(Answer::Receipt(receipt)) = world.answers.remove(&request) else { panic!("no receipt") };
    let it = layer(&receipt, Layer::Conntrack);
    assert_eq!((it.done, it.failed, it.text.as_str()), (0, 1, "1 address NOT cleared"));
    assert!(receipt.notes.iter().any(|note| note.contains("it took too long")), "{:?}", receipt.notes);
    assert!(
        world.notes.iter().any(|(kind, text)| *kind == "conntrack" && text.contains("let in all the same"))
    );
}

#[test]
fn r4_a_command_is_answered_although_connection_tracking_does_not() {
    let mut world = slow();
    let alices = world.login("alice");
    let alice = world.up(alices);
    let address = owns(&mut world, alice, 1);
    let request = world.ask(World::order(Target::User("alice".into())));
    run_without_conntrack(&mut world);
    pass_without_conntrack(&mut world, 5 * SECOND);
    let Some(Answer::Receipt(receipt)) = world.answers.remove(&request) else { panic!("no receipt") };
    assert!(!receipt.is_complete());
    pass_without_conntrack(&mut world, 20 * SECOND);
    assert!(!world.drops(&Entry::Address(NETNS, address)));
}

/// R6, and what R1 asks for: what failed is tried again, also when the address is given away.
#[test]
fn r6_what_could_not_be_taken_out_is_told_and_tried_again() {
    let mut world = slow();
    let (alices, bobs) = (world.login("alice"), world.login("bob"));
    let alice = world.up(alices);
    let address = world.workers[&alice].address;
    world.tracked = Err("CAP_NET_ADMIN is missing".into());
    let receipt = world.revoke_user("alice");
    assert_eq!(layer(&receipt, Layer::Conntrack).failed, 1);
    assert!(receipt.notes.iter().any(|note| note.contains("CAP_NET_ADMIN")), "{:?}", receipt.notes);
    assert!(!world.drops(&Entry::Address(NETNS, address)), "nobody's, and nothing to wait for");
    world.pass(20 * SECOND);
    let process = Process { pid: 1, start: 1 };
    world.tracked = Ok(Some([(address, vec![process; 2])].into()));
    let worker = Worker { address, ..world.worker(bobs) };
    let bob = world.connect(worker);
    assert_eq!(world.look(bob, true), Verdict::Admit);
    assert_eq!(tracked(&world, address), 0);
    let now = world.now;
    let receipt = world.registry.receipt_of(receipt.number, now).unwrap();
    assert_eq!((layer(&receipt, Layer::Conntrack).done, receipt.is_complete()), (2, true));
}

#[test]
fn r3_connections_of_a_session_that_is_not_revoked_stay_also_when_its_address_is_given_away() {
    let mut world = slow();
    let (alices, bobs) = (world.login("alice"), world.login("bob"));
    let alice = world.up(alices);
    let address = owns(&mut world, alice, 2);
    // she comes back from another network, and has her connections still
    world.exit(alice);
    let worker = Worker { address, ..world.worker(alices) };
    let (again, _) = world.try_in(worker);
    assert_eq!(tracked(&world, address), 2);
    world.exit(again);
    let worker = Worker { address, ..world.worker(bobs) };
    world.try_in(worker);
    assert_eq!(tracked(&world, address), 2);
}

/// R7: who knocks at the gate with a refused cookie makes nobody go through the kernel's table.
#[test]
fn r7_a_client_that_is_refused_at_the_gate_costs_no_look() {
    let mut world = slow();
    let alices = world.login("alice");
    world.up(alices);
    world.revoke_user("alice");
    for _ in 0..20 {
        let worker = Worker { address: ip(77), ..world.worker(alices) };
        let id = world.connect(worker);
        let ask = world.ask_gate(id, true);
        assert_eq!(orders(&world), 0);
        world.run();
        assert!(matches!(world.verdicts.remove(&ask), Some(Verdict::Refuse(_))));
        world.exit(id);
        assert_eq!(orders(&world), 0);
    }
}

/// The daemon was killed between the mark and the end, and ocserv has ended the worker since.
#[test]
fn r1_what_a_killed_daemon_left_is_taken_out_by_the_next_one() {
    for given_away in [false, true] {
        let mut world = slow();
        let (alices, bobs) = (world.login("alice"), world.login("bob"));
        let alice = world.up(alices);
        let address = owns(&mut world, alice, 1);
        world.ask(World::order(Target::User("alice".into())));
        world.kill_daemon();
        world.exit(alice);
        if given_away {
            let worker = Worker { address, ..world.worker(bobs) };
            let bob = world.arrive(worker);
            world.come_up(bob);
        }
        world.adopt_kernel(true);
        world.servers_up();
        world.pass(SECOND);
        assert!(!world.drops(&Entry::Address(NETNS, address)));
        // R3: what is somebody else's is not touched
        assert_eq!(tracked(&world, address), usize::from(given_away));
    }
}

/// Its worker hangs, and it is let go again: its connections are nobody's business any more.
#[test]
fn r3_connections_of_a_session_that_is_not_revoked_any_more_stay() {
    // with the daemon that revoked it, with the next one, and with another revocation that means it too
    for (restarts, twice) in [(false, false), (true, false), (false, true)] {
        let mut world = slow();
        let alices = world.login("alice");
        let alice = world.up(alices);
        let address = owns(&mut world, alice, 2);
        world.workers.get_mut(&alice).unwrap().hangs = true;
        if restarts {
            world.ask(World::order(Target::User("alice".into())));
            world.kill_daemon();
            world.adopt_kernel(true);
            // nobody has told of its worker yet
            world.handle(Event::Listed { server: vpn(), asked: world.now.mono, outcome: Ok(vec![]) });
            assert_eq!(orders(&world), 1);
        } else {
            world.revoke_user("alice");
        }
        if twice {
            world.revoke_user("alice");
        }
        let number = world.registry.revocations().next().unwrap().number;
        world.lift(number);
        world.workers.get_mut(&alice).unwrap().hangs = false;
        world.run();
        world.exit(alice);
        world.run();
        assert_eq!(tracked(&world, address), if twice { 0 } else { 2 }, "{restarts} {twice}");
        assert_eq!(orders(&world), 0);
    }
}

/// Its worker hangs, and the daemon is another one.
#[test]
fn r3_connections_of_a_session_that_has_not_ended_are_not_taken_out_when_it_is_first_seen() {
    let mut world = slow();
    let alices = world.login("alice");
    let alice = world.up(alices);
    let address = owns(&mut world, alice, 2);
    world.workers.get_mut(&alice).unwrap().hangs = true;
    world.revoke_user("alice");
    world.kill_daemon();
    world.adopt_kernel(true);
    world.servers_up();
    assert_eq!(tracked(&world, address), 2, "it may be let go again");
    world.exit(alice);
    world.run();
    assert_eq!(tracked(&world, address), 0);
}

#[test]
fn r7_nothing_is_left_when_all_is_over() {
    let mut world = slow();
    for round in 0..50 {
        let cookie = world.login("alice");
        world.up(cookie);
        world.tracked = if round % 2 == 0 { Ok(None) } else { Err("no".into()) };
        world.revoke_user("alice");
    }
    world.tracked = Ok(None);
    world.pass(10 * SECOND);
    // those that failed wait for the addresses' next owners, each address once
    assert!(world.registry.traces.len() <= 25, "{:?}", world.registry.traces);
}
