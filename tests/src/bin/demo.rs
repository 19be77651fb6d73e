//! `cargo xtask demo`: one VPN session ended, first as stock ocserv does it, then as the enforcer does.

use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use enforcer_tests::enforcer::Config;
use enforcer_tests::lab::LAN;
use enforcer_tests::receipt;
use enforcer_tests::scene::Pair;
use enforcer_tests::timeline::Act;
use enforcer_tests::traffic::FLOOD;
use enforcer_tests::{
    Client, Connect, Cookie, Enforcer, Era, Flood, Lab, Moment, Ocserv, Outcome, Server, Tap, Tunnel,
};

fn main() -> ExitCode {
    let json = match std::env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [] => false,
        [only] if only == "--json" => true,
        _ => {
            eprintln!("usage: demo [--json]");
            return ExitCode::from(2);
        }
    };
    let mut acts = Vec::new();
    for era in [Era::Bookworm, Era::Sid] {
        for (title, play) in [
            (format!("Stock {era}: occtl disconnect user alice"), stock as fn(Era, &mut Act)),
            (format!("{era} with the enforcer: enforcer disconnect user --invalidate alice"), guarded),
        ] {
            let mut act = Act::new(&title);
            // the lab's way to fail is a panic, which names what did not come
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| play(era, &mut act))) {
                act.step(None, "the demo broke off", reason(panic.as_ref()), false);
            }
            if !json {
                println!("{}", act.table());
            }
            acts.push(act);
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

/// alice and bob, connected, with packets in both directions.
struct Stage {
    server: Server,
    lab: Lab,
    alice: Client,
    bob: Client,
    tap: Tap,
}

impl Stage {
    fn new(mut lab: Lab, server: Server) -> Self {
        let alice = lab.client("alice");
        let bob = lab.client("bob");
        let tap = Tap::start(&lab.gateway);
        Self { server, lab, alice, bob, tap }
    }

    fn up(&self) -> (Cookie, Tunnel, Tunnel) {
        let (cookie, alices) = self.alice.session(&self.server, "alice");
        let (_, bobs) = self.bob.session(&self.server, "bob");
        (cookie, alices, bobs)
    }

    fn flood(&self, client: &Client, tunnel: &Tunnel, rate: u32) -> Pair {
        Pair::new(&self.lab, client, tunnel, false, rate)
    }

    /// The last packet of alice's on the LAN side up to now.
    fn last_on_lan(&self, tunnel: &Tunnel) -> Option<Moment> {
        self.tap.last_out(LAN, IpAddr::V4(tunnel.v4)).map(|packet| packet.at)
    }
}

fn stock(era: Era, act: &mut Act) {
    let lab = Lab::new("demo-stock");
    let server = Ocserv::new(&lab, era, 0).start();
    let stage = Stage::new(lab, server);
    let (cookie, mut tunnel, bobs) = stage.up();
    let alices = stage.flood(&stage.alice, &tunnel, FLOOD);
    let mut bob = stage.flood(&stage.bob, &bobs, FLOOD / 5);
    flows(act, &alices, &bob);
    let begun = Moment::now();
    act.zero(begun);
    act.step(Some(begun), "the command", "occtl disconnect user alice", true);
    let answer = stage.server.occtl(&["disconnect", "user", "alice"]);
    let answered = Moment::now();
    tunnel.wait_end();
    let last = stage.last_on_lan(&tunnel);
    act.step(last, "last packet", "from alice on the LAN side", last.is_some());
    act.step(Some(answered), "the answer", answer.stdout.trim().to_owned(), answer.code == 0);
    let tried = Moment::now();
    act.step(Some(tried), "the saved cookie", "tried by a fresh client", true);
    match stage.alice.connect(&stage.server, &cookie, &Connect::default()) {
        Outcome::Up(again) => {
            let same = if again.v4 == tunnel.v4 { "the same address" } else { "another address" };
            let found = format!("LET IN AGAIN, {same} {}: this is the hole", again.v4);
            act.step(Some(Moment::now()), "  outcome", found, again.v4 == tunnel.v4);
            alices.up.flowing();
            let back = alices.up.first_after(tried).map(|packet| packet.at);
            act.step(back, "packets flow again", "from alice on the LAN side", back.is_some());
        }
        Outcome::Refused { .. } | Outcome::Failed { .. } => {
            act.step(Some(Moment::now()), "  outcome", "refused, which stock ocserv does not promise", false);
        }
    }
    untouched(act, &mut bob, begun);
}

fn guarded(era: Era, act: &mut Act) {
    let lab = Lab::new("demo-guarded");
    let plain = Ocserv::new(&lab, era, 0);
    let mut enforcer = Enforcer::prepare(&lab, &Config::new(&[&plain]));
    let server = enforcer.guard(plain).start();
    enforcer.start();
    let stage = Stage::new(lab, server);
    let (cookie, mut tunnel, bobs) = stage.up();
    enforcer.knows("alice");
    let alices = stage.flood(&stage.alice, &tunnel, FLOOD);
    let mut bob = stage.flood(&stage.bob, &bobs, FLOOD / 5);
    flows(act, &alices, &bob);
    let before = receipt::dropped(&enforcer.status());

    let answer = enforcer.cli(&["disconnect", "user", "--invalidate", "alice", "--json"]);
    let begun = answer.asked;
    act.zero(begun);
    act.step(Some(begun), "the command", "enforcer disconnect user --invalidate alice", true);
    alices.up.wait_sent(50);
    alices.down.wait_sent(50);
    let receipt = answer.receipt();
    let last = stage.last_on_lan(&tunnel);
    let found = "from alice on the LAN side";
    act.step(last, "last packet", found, last.is_some_and(|last| last <= answer.answered));
    let passed =
        alices.up.passed_after(answer.answered).len() + alices.down.passed_after(answer.answered).len();
    let found = format!("exit {}, revocation {}", answer.code, receipt.number().unwrap_or(0));
    act.step(Some(answer.answered), "the answer", found, answer.code == 0 && receipt.number().is_some());
    let tried = alices.up.sent_after(answer.answered) + alices.down.sent_after(answer.answered);
    act.step(
        None,
        "after the answer",
        format!("{passed} of {tried} packets passed, both directions"),
        passed == 0,
    );
    let dropped = receipt::dropped(&enforcer.status()).saturating_sub(before);
    act.step(None, "packets dropped", format!("{dropped} by the kernel so far"), true);
    let destroyed = receipt.done("sockets");
    act.step(None, "sockets", format!("{destroyed} gone ({})", receipt.text("sockets")), destroyed >= 1);
    let gone = receipt.done("cookie");
    let fate = match (gone, receipt.guarded("cookie")) {
        (1.., _) => "invalidated at ocserv",
        (0, 1..) => "still valid at ocserv, which cannot take it back; refused at the gate",
        (0, 0) => "not said",
    };
    let promised = if era.has_terminate() { gone >= 1 } else { receipt.guarded("cookie") >= 1 };
    act.step(None, "the cookie", fate, promised);
    tunnel.wait_end();
    for _ in 0..3 {
        act.step(Some(Moment::now()), "the saved cookie", "tried by a fresh client", true);
        let outcome = stage.alice.connect(&stage.server, &cookie, &Connect::default());
        let refused = matches!(outcome, Outcome::Refused { .. });
        let found = if refused { "refused" } else { "NOT REFUSED" };
        act.step(Some(Moment::now()), "  outcome", found, refused);
    }
    let login = Moment::now();
    act.step(Some(login), "a fresh login", "with her password", true);
    let (_, again) = stage.alice.session(&stage.server, "alice");
    let found = format!("let in, address {}", again.v4);
    act.step(Some(Moment::now()), "  outcome", found, true);
    alices.up.flowing();
    let first = alices.up.first_after(login).map(|packet| packet.at);
    act.step(first, "packets flow again", "from alice on the LAN side", first.is_some());
    untouched(act, &mut bob, begun);
}

fn flows(act: &mut Act, alice: &Pair, bob: &Pair) {
    alice.flowing();
    bob.flowing();
    act.step(None, "alice, bob", "connected; packets flow both ways", true);
}

/// bob's packets from the command on: none may be lost.
fn untouched(act: &mut Act, bob: &mut Pair, from: Moment) {
    bob.flowing();
    let to = Moment::now();
    let count = |flood: &mut Flood| {
        flood.stop_sending();
        (flood.lost_between(from, to).len(), flood.sent_after(from))
    };
    let (lost_up, sent_up) = count(&mut bob.up);
    let (lost_down, sent_down) = count(&mut bob.down);
    let lost = lost_up + lost_down;
    act.step(None, "bob", format!("lost {lost} of {} packets", sent_up + sent_down), lost == 0);
}
