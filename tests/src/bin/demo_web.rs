//! `cargo xtask demo web`: a browser that two people use, first behind plain nginx, then behind the enforcer.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;

use enforcer_tests::Moment;
use enforcer_tests::era::target_folder;
use enforcer_tests::portal::WEB_V4;
use enforcer_tests::timeline::Act;
use enforcer_tests::web::script::{Shown, Story, shared_browser};
use enforcer_tests::web::{APP, BEHIND_NGINX, Browser, Django, Ending, Front, PLAIN_V4, Plain, gateway};

/// Seconds after which the gateways end an unused session.
const IDLE: u32 = 10;

fn main() -> ExitCode {
    let json = match std::env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [] => false,
        [only] if only == "--json" => true,
        _ => {
            eprintln!("usage: demo_web [--json]");
            return ExitCode::from(2);
        }
    };
    let pictures = target_folder().join("demo-web");
    let _ = fs::remove_dir_all(&pictures);
    if let Err(error) = fs::create_dir_all(&pictures) {
        eprintln!("demo_web: {}: {error}", pictures.display());
        return ExitCode::FAILURE;
    }
    let mut acts = Vec::new();
    // the lab's way to fail is a panic, which names what did not come
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| all(&pictures, json, &mut acts))) {
        let mut act = Act::new("The demo broke off");
        act.step(None, "reason", reason(panic.as_ref()), false);
        show(act, json, &mut acts);
    }
    let ok = acts.iter().all(Act::ok);
    if json {
        println!("{:#}", serde_json::json!({ "ok": ok, "acts": acts, "screenshots": pictures }));
    } else {
        println!("What the browser showed: {}", pictures.display());
        println!(
            "{}",
            if ok {
                "Everything went as promised."
            } else {
                "Something went otherwise than promised: see the marks."
            }
        );
    }
    if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn reason(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic").lines().take(2).collect::<Vec<_>>().join(" ")
}

fn show(act: Act, json: bool, acts: &mut Vec<Act>) {
    if !json {
        println!("{}", act.table());
    }
    acts.push(act);
}

/// One lab, one Django, one browser program; nginx and the gateway beside each other.
fn all(pictures: &Path, json: bool, acts: &mut Vec<Act>) {
    let portal = gateway::before("demo-web", Django::URL, &[], IDLE);
    let lab = &portal.scene.lab;
    let papers = gateway::papers(&portal);
    let _django = Django::start(lab, &[APP, BEHIND_NGINX]);
    let nginx = Plain::start(lab, &papers, Django::URL, IDLE);
    let at = [(APP, WEB_V4), (BEHIND_NGINX, PLAIN_V4)];
    let browser = Browser::start(&portal.scene.alice.namespace, lab.shared(), &at, &papers);
    for ending in Ending::ALL {
        for (front, title) in [
            (&nginx as &dyn Front, "Plain nginx before Django's admin"),
            (&portal, "enforcer gateway before Django's admin"),
        ] {
            let mut act = Act::new(&format!("{title}: {}", how(ending, front)));
            let begun = Moment::now();
            act.zero(begun);
            let mut told = |who: &str, what: String| act.step(Some(Moment::now()), who, what, true);
            let story = shared_browser(&browser, front, ending, Some(pictures), &mut told);
            judge(&mut act, front, &story);
            show(act, json, acts);
        }
    }
}

fn how(ending: Ending, front: &dyn Front) -> &'static str {
    match ending {
        Ending::Logout => "alice logs out at the gateway (/AGLogout)",
        Ending::Idle => "alice goes away, her session at the gateway ends by itself",
        Ending::Administrator if front.name() == "nginx" => "an administrator ends alice's session",
        Ending::Administrator => "enforcer disconnect user -i alice",
    }
}

/// What was promised of each: with nginx the fault, with the gateway none.
fn judge(act: &mut Act, front: &dyn Front, story: &Story) {
    let hers = Shown::Admin("alice".to_owned());
    let gateway = story.after == Shown::Gateway;
    act.step(None, "the gateway", "asked who is there, after her session had ended", gateway);
    if front.name() == "nginx" {
        let fault = story.bob == hers && story.stolen == hers;
        act.step(None, "so", "BOB IS IN ALICE'S SESSION: this is the hole", fault);
    } else {
        let cured = story.bob == Shown::Form && story.stolen == Shown::Form;
        act.step(None, "so", "nothing of alice's session is left for bob", cured);
        let found = format!("{} of Django's cookies of hers left in the browser", story.stale.len());
        act.step(None, "stale cookies", found, story.stale.is_empty());
    }
}
