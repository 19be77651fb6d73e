//! `enforcer setup ocserv` with each real ocserv: what it shows, what it makes, and the way back.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use std::fs;

use enforcer_tests::enforcer::{Config, DONE, ERROR, NOTHING_MATCHED, USAGE, quoted};
use enforcer_tests::receipt::list;
use enforcer_tests::{Connect, Enforcer, Era, Lab, Ocserv, Server};

struct World {
    server: Server,
    enforcer: Enforcer,
    /// What the administrator's own connect-script leaves behind.
    ran: std::path::PathBuf,
    script: String,
    lab: Lab,
}

impl World {
    fn new(name: &str, era: Era) -> Self {
        let lab = Lab::new(name);
        let plain = Ocserv::new(&lab, era, 0);
        let enforcer = Enforcer::prepare(&lab, &Config::new(&[&plain]));
        let ran = enforcer.config().with_file_name("own-script-ran");
        let plain = plain
            .connect_shell(&format!("touch {}", ran.display()))
            .env("ENFORCER_CONFIG", &enforcer.config().display().to_string());
        let server = plain.start();
        let text = fs::read_to_string(server.conf()).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("connect-script = "));
        let script = line.unwrap().to_owned();
        Self { server, enforcer, ran, script, lab }
    }

    fn setup(&self, more: &[&str]) -> enforcer_tests::enforcer::Answer {
        let (file, gate) = (self.server.conf(), self.enforcer.gate());
        let named = ["--file", file.to_str().unwrap(), "--gate", gate.to_str().unwrap()];
        self.enforcer.cli(&[&["setup", "ocserv"][..], &named, more].concat())
    }

    fn conf(&self) -> Vec<u8> {
        fs::read(self.server.conf()).unwrap()
    }

    fn hands_over(&self) {
        let config = Config::new(&[self.server.config()]).server("next-script", &quoted(&self.script));
        self.enforcer.configure(&config);
    }
}

/// R2, R4: from stock ocserv with a connect-script of its own to one whose revoked cookies stay refused, and back, with what is
/// printed alone; nothing is changed that was not asked for.
#[test]
fn r2_r4_the_gate_is_set_up_and_taken_back() {
    for era in Era::ALL {
        let mut world = World::new(&format!("setup-{era:?}").to_lowercase(), era);
        let before = world.conf();
        let shown = world.setup(&["--json"]).code(DONE).json;
        assert_eq!(shown["state"], "to do", "{shown}");
        assert_eq!(list(&shown, "removed"), [format!("connect-script = {}", world.script)]);
        let problem = shown["problems"][0].as_str().unwrap();
        assert!(problem.contains(&format!("next-script = {:?} below [ocserv]", world.script)), "{shown}");
        let said = world.setup(&["--apply"]).code(ERROR).stderr;
        assert!(said.contains("was not changed") && said.contains("next-script"), "{said}");
        world.setup(&["--undo"]).code(NOTHING_MATCHED);
        assert_eq!(world.conf(), before);

        world.hands_over();
        world.setup(&["--apply"]).code(DONE);
        let said = world.setup(&[]).code(DONE).stdout;
        assert!(said.contains("there is nothing to change"), "{said}");
        world.server.restart();
        world.enforcer.start();
        let alice = world.lab.client("alice");
        let (cookie, mut tunnel) = alice.session(&world.server, "alice");
        world.enforcer.knows("alice");
        assert!(world.ran.exists(), "{era:?}: the administrator's own script runs");
        let said = world.enforcer.cli(&["check"]).code(DONE).stdout;
        assert!(said.contains("the gate is at its door"), "{era:?}: {said}");
        world.enforcer.revoke("alice");
        tunnel.wait_end();
        alice.connect(&world.server, &cookie, &Connect::default()).refused();
        drop(alice.session(&world.server, "alice"));

        let said = world.setup(&["--undo"]).code(DONE).stdout;
        assert!(said.contains("is as it was before"), "{said}");
        assert_eq!(world.conf(), before, "{era:?}");
        world.server.restart();
        let said = world.lab.eventually("the daemon sees that the gate is gone", || {
            let said = world.enforcer.cli(&["check"]);
            (said.code == ERROR && said.stdout.contains("its connect-script is not the gate"))
                .then_some(said.stdout)
        });
        assert!(said.contains("a revoked cookie is NOT refused"), "{era:?}: {said}");
    }
}

/// R6: what would shut everybody out, or would not mean what it says, is refused with what to do, and nothing is changed.
#[test]
fn r6_what_would_go_wrong_is_refused_and_said() {
    let world = World::new("setup-refuses", Era::Bookworm);
    world.hands_over();
    let (file, before) = (world.server.conf(), world.conf());
    let path = file.to_str().unwrap();
    let apply = |more: &[&str]| {
        world.enforcer.cli(&[&["setup", "ocserv", "--apply", "--file", path][..], more].concat())
    };
    let refused = |more: &[&str], word: &str| {
        let said = apply(more).code(ERROR).stderr;
        assert!(said.contains(word), "{more:?}: {said}");
    };
    refused(&["--gate", "/nowhere/enforcer-gate"], "every login would be refused");
    refused(&["--gate", "enforcer-gate"], "enforcer-gate");
    refused(&["--server", "other"], "there is no server \"other\"");
    let said = world.enforcer.cli(&["setup", "ocserv", "--file", "/nowhere/ocserv.conf"]).code(ERROR).stderr;
    assert!(said.contains("cannot read /nowhere/ocserv.conf"), "{said}");
    apply(&["--undo"]).code(USAGE);
    let gate = world.enforcer.gate();
    let gate = gate.to_str().unwrap();
    let with = |line: &str| fs::write(&file, [&before[..], line.as_bytes()].concat()).unwrap();
    with("restrict-user-to-routes = true\n");
    refused(&["--gate", gate], "/bin/sh");
    with("banner = hello\n connect-script = /etc/up.sh\n");
    let changed = fs::read(&file).unwrap();
    // that line goes on with the banner: it is let be, and the change can be made
    apply(&["--gate", gate]).code(DONE);
    world.setup(&["--undo"]).code(DONE);
    assert_eq!(world.conf(), changed);
    fs::write(&file, [b" use-occtl = true\n", &before[..]].concat()).unwrap();
    refused(&["--gate", gate], "ocserv would not read it as");
    fs::write(&file, [&before[..], b"# <<< enforcer\n"].concat()).unwrap();
    refused(&["--gate", gate], "by hand");
    fs::write(&file, &before).unwrap();
    apply(&["--gate", gate]).code(DONE);
}
