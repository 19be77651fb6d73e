//! `cargo xtask demo cluster`: three gateways, first as stock ocserv has them, then with the enforcer on each.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use enforcer_tests::enforcer::{DONE, PARTIAL};
use enforcer_tests::gateways::{A, B, C, Gateways, NAMES, Plan, Session, Tried, hammered};
use enforcer_tests::scene::Pair;
use enforcer_tests::timeline::Act;
use enforcer_tests::traffic::FLOOD;
use enforcer_tests::{Answer, Client, Moment, Outcome};

fn main() -> ExitCode {
    let json = match std::env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [] => false,
        [only] if only == "--json" => true,
        _ => {
            eprintln!("usage: demo_cluster [--json]");
            return ExitCode::from(2);
        }
    };
    let mut acts = Vec::new();
    let mut tell = |act: Act| {
        if !json {
            println!("{}", act.table());
        }
        acts.push(act);
    };
    // the lab's way to fail is a panic, which names what did not come
    for play in [stock as fn(&mut dyn FnMut(Act)), guarded] {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| play(&mut tell))) {
            let mut act = Act::new("The demo broke off");
            act.step(None, "reason", reason(panic.as_ref()), false);
            tell(act);
        }
    }
    let ok = acts.iter().all(Act::ok);
    if json {
        println!("{:#}", serde_json::json!({ "ok": ok, "acts": acts }));
    } else if ok {
        println!("Everything went as promised.");
    } else {
        println!("Something went otherwise than promised: see the marks.");
    }
    if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn reason(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic").lines().next().unwrap_or_default().to_owned()
}

/// The way without the enforcer: she is on two gateways at once, and what ends her session on one lasts a moment.
fn stock(tell: &mut dyn FnMut(Act)) {
    let mut world = Plan::new("demo-gws-stock").unguarded().start();
    let [laptop, phone] = ["laptop", "phone"].map(|name| world.lab.client(name));
    let mut act = Act::new("Three stock ocserv: alice goes from gateway A to gateway B");
    let on = |place: usize, client: &Client| {
        let (cookie, tunnel) = client.session(&world[place].server, "alice");
        let pair = Pair::new(&world.lab, client, &tunnel, false, FLOOD / 5);
        pair.flowing();
        (cookie, tunnel, pair)
    };
    let (cookie, mut tunnel, old) = on(A, &laptop);
    let (_, _second, new) = on(B, &phone);
    act.zero(Moment::now());
    old.flowing();
    new.flowing();
    act.step(Some(Moment::now()), "packets", "SHE IS ON BOTH: this is the first hole", true);
    let answer = world[A].server.occtl(&["disconnect", "user", "alice"]);
    act.step(Some(Moment::now()), "occtl on A", "disconnect user alice", answer.code == 0);
    tunnel.wait_end();
    let tried = Moment::now();
    match world.tried(&laptop, A, &cookie) {
        Outcome::Up(_again) => {
            let found = "LET IN AGAIN: this is the second hole";
            act.step(Some(Moment::now()), "her old cookie on A", found, true);
        }
        _ => act.step(
            Some(tried),
            "her old cookie on A",
            "refused, which stock ocserv does not promise",
            false,
        ),
    }
    tell(act);
}

struct Stage {
    world: Gateways,
    laptop: Client,
    phone: Client,
    bobs: Client,
}

fn guarded(tell: &mut dyn FnMut(Act)) {
    let plan = Plan::new("demo-gws").at_most(1).set("cluster", "login-wait", "\"3s\"");
    let mut world = plan.start();
    let [laptop, phone, bobs] = ["laptop", "phone", "bobs"].map(|name| world.lab.client(name));
    let mut stage = Stage { world, laptop, phone, bobs };
    let bob = stage.world.session(B, &stage.bobs, "bob");
    let mut neighbour = stage.world.flood(&stage.bobs, &bob, FLOOD / 5);
    neighbour.flowing();
    let begun = Moment::now();

    let mut act = Act::new("Three gateways with the enforcer, one session per user: alice goes from A to B");
    let current = moves(&stage, &mut act);
    tell(act);

    let mut act = Act::new("enforcer disconnect user --invalidate alice, on gateway C; she is on B");
    revoked_elsewhere(&stage, current, &mut act);
    tell(act);

    let mut act = Act::new("All of etcd is away, and alice is revoked on C; she is on A");
    let away = etcd_away(&mut stage, &mut act);
    tell(act);

    let mut act = Act::new("etcd is back");
    etcd_back(&mut stage, away, &mut act);
    tell(act);

    let mut act = Act::new("bob, on B all the while");
    let to = Moment::now();
    let mut lost = 0;
    let mut sent = 0;
    for flood in [&mut neighbour.up, &mut neighbour.down] {
        flood.stop_sending();
        lost += flood.lost_between(begun, to).len();
        sent += flood.sent_after(begun);
    }
    act.step(None, "bob", format!("lost {lost} of {sent} packets"), lost == 0);
    tell(act);
}

/// The first and the last of her packets on the LAN side.
fn up(pair: &Pair) -> Option<Moment> {
    pair.up.last().map(|packet| packet.at)
}

fn told(act: &mut Act, tries: &[Tried], after: Moment) {
    let later: Vec<_> = tries.iter().filter(|tried| tried.begun > after).collect();
    let let_in = later.iter().filter(|tried| tried.up).count();
    let found = format!("{let_in} of {} attempts with her old cookie were let in", later.len());
    act.step(None, "the old client", found, let_in == 0 && !later.is_empty());
}

fn moves(stage: &Stage, act: &mut Act) -> (Session, Pair) {
    let Stage { world, laptop, phone, .. } = stage;
    let mut old = world.session(A, laptop, "alice");
    let before = world.flood(laptop, &old, FLOOD);
    before.flowing();
    act.step(None, "alice", "connected to A with her laptop; packets flow both ways", true);
    let cookie = phone.authenticate(&world[B].server, "alice");
    act.zero(Moment::now());
    act.step(Some(Moment::now()), "alice", "comes to B with her phone", true);
    let new = world.session_of(B, phone, "alice", cookie);
    let since = new.tunnel.since();
    act.step(Some(since), "B", format!("let her in, address {}", new.tunnel.v4), true);
    world.ends(&mut old);
    let last = up(&before);
    act.step(last, "last packet", "of her session on A, on the LAN side", last.is_some());
    let both = last.map_or(0.0, |last| last.millis_since(since).max(0.0));
    act.step(None, "both at once", format!("for {both:.1} ms"), true);
    let after = world.flood(phone, &new, FLOOD);
    let (from, tries) = hammered(world, (laptop, A, &old.cookie), || {
        let from = Moment::now();
        after.flowing();
        after.up.wait_sent(usize::try_from(FLOOD * 2).unwrap_or(1_000));
        from
    });
    told(act, &tries, from);
    let mut new = new;
    let stays = !new.tunnel.ended() && new.tunnel.reconnects() == 0;
    act.step(None, "her session on B", if stays { "was not disturbed" } else { "WAS DISTURBED" }, stays);
    (new, after)
}

/// An order, its answer, and what the receipt says of the other gateways.
fn order(act: &mut Act, world: &Gateways, place: usize, code: i32) -> Answer {
    act.zero(Moment::now());
    act.step(Some(Moment::now()), "the command", format!("on {}", NAMES[place]), true);
    let words = ["disconnect", "user", "--invalidate", "alice"];
    let answer = if code == DONE { world[place].order(&words) } else { world[place].order_at_once(&words) };
    let receipt = answer.receipt();
    let others = format!("{} in force, {} not yet", receipt.done("gateways"), receipt.failed("gateways"));
    act.step(Some(answer.answered), "the answer", format!("exit code {}", answer.code), answer.code == code);
    let promised = if code == DONE { receipt.done("gateways") == 2 } else { receipt.failed("gateways") == 2 };
    act.step(None, "the other gateways", others, promised);
    answer
}

fn revoked_elsewhere(stage: &Stage, (mut session, pair): (Session, Pair), act: &mut Act) {
    let Stage { world, phone, laptop, .. } = stage;
    pair.flowing();
    let answer = order(act, world, C, DONE);
    pair.up.wait_sent(50);
    let last = up(&pair);
    act.step(last, "last packet", "of her session on B, on the LAN side", last.is_some());
    let passed = pair.up.passed_after(answer.answered).len() + pair.down.passed_after(answer.answered).len();
    act.step(None, "after the answer", format!("{passed} packets passed, both directions"), passed == 0);
    world.ends(&mut session);
    for _ in 0..2 {
        let refused = matches!(world.tried(phone, B, &session.cookie), Outcome::Refused { .. });
        act.step(
            Some(Moment::now()),
            "her cookie on B",
            if refused { "refused" } else { "NOT REFUSED" },
            refused,
        );
    }
    let login = Moment::now();
    let again = world.session(A, laptop, "alice");
    act.step(Some(login), "a fresh login", "with her password, on A", true);
    act.step(Some(again.tunnel.since()), "  outcome", format!("let in, address {}", again.tunnel.v4), true);
    again.tunnel.log_out();
}

fn etcd_away(stage: &mut Stage, act: &mut Act) -> (Session, Pair) {
    let session = stage.world.session(A, &stage.laptop, "alice");
    stage.world.etcd.kill_all();
    let Stage { world, laptop, phone, .. } = stage;
    let pair = world.flood(laptop, &session, FLOOD / 5);
    pair.flowing();
    let _answer = order(act, world, C, PARTIAL);
    pair.flowing();
    act.step(Some(Moment::now()), "her session on A", "goes on: nobody has told A", true);
    let cookie = phone.authenticate(&world[B].server, "alice");
    let refused = matches!(world.tried(phone, B, &cookie), Outcome::Refused { .. });
    let found = if refused { "refused: the other gateways cannot be asked" } else { "NOT REFUSED" };
    act.step(Some(Moment::now()), "a login on B", found, refused);
    (session, pair)
}

fn etcd_back(stage: &mut Stage, (mut session, pair): (Session, Pair), act: &mut Act) {
    act.zero(Moment::now());
    stage.world.etcd.start_all();
    act.step(Some(Moment::now()), "etcd", "answers", true);
    let Stage { world, laptop, phone, .. } = stage;
    world.ends(&mut session);
    let last = up(&pair);
    act.step(last, "last packet", "of her session on A, on the LAN side", last.is_some());
    world.settled();
    act.step(Some(Moment::now()), "show gateways", "nothing is left to be told", true);
    let refused = matches!(world.tried(laptop, A, &session.cookie), Outcome::Refused { .. });
    act.step(
        Some(Moment::now()),
        "her cookie on A",
        if refused { "refused" } else { "NOT REFUSED" },
        refused,
    );
    let login = Moment::now();
    let again = world.session(B, phone, "alice");
    act.step(Some(login), "a fresh login", "with her password, on B", true);
    act.step(Some(again.tunnel.since()), "  outcome", format!("let in, address {}", again.tunnel.v4), true);
}
