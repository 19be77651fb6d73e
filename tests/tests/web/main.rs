//! Web sessions with a real daemon: what a web gateway sees of it, through the link that it is built on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

mod gateways;
mod process;

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use enforcer::session::WebDigest;
use enforcer::web::link::{Cause, LinkError};
use enforcer_tests::Era;
use enforcer_tests::enforcer::{Answer, Config, DONE, ERROR, NOTHING_MATCHED, PARTIAL, binary, quoted};
use enforcer_tests::process::{copy_program, eventually};
use enforcer_tests::receipt::list;
use enforcer_tests::scene::Scene;
use enforcer_tests::web_link::{WebLink, digest, new_session};
use serde_json::Value;

const BOUND: Duration = Duration::from_secs(10);
/// Whom the gateway's socket is for, and somebody else.
const USER: &str = "nobody";
const STRANGER: u32 = 1;

fn socket(scene: &Scene) -> PathBuf {
    scene.lab.work().join("web")
}

fn scene(name: &str) -> Scene {
    scene_with(name, |config| config)
}

fn scene_with(name: &str, change: impl FnOnce(Config) -> Config) -> Scene {
    Scene::with(
        name,
        Era::Bookworm,
        |ocserv| ocserv,
        |config| {
            let socket = format!("/tmp/enforcer-lab-{name}-{}/w/web", std::process::id());
            let table = process::table_of(Path::new(&socket)).display().to_string();
            let config = config.set("web", "socket", &quoted(&socket)).set("web", "user", &quoted(USER));
            change(config.set("web", "socket-table", &quoted(&table)))
        },
    )
}

/// A gateway at the scene's daemon.
struct Gateway(WebLink);

impl Gateway {
    fn start(scene: &Scene) -> Self {
        Self(WebLink::start(&socket(scene)))
    }

    /// `closes`: whether it comes to an end with closing a session's sockets.
    fn with(scene: &Scene, closes: fn(Cause) -> bool) -> Self {
        Self(WebLink::with(&socket(scene), closes))
    }
}

impl std::ops::Deref for Gateway {
    type Target = WebLink;

    fn deref(&self) -> &WebLink {
        &self.0
    }
}

fn layer(answer: &Answer, name: &str) -> Value {
    list(&answer.json, "layers").iter().find(|layer| layer["layer"] == name).cloned().unwrap_or_default()
}

/// The web sessions that are shown, by their keys, with their users.
fn shown(scene: &Scene) -> BTreeMap<String, Value> {
    let all = scene.enforcer.cli(&["show", "sessions", "--json"]).code(DONE).json;
    let web = list(&all, "sessions").iter().filter(|session| session["server"] == "web");
    web.map(|session| (session["web"].as_str().unwrap().to_owned(), session.clone())).collect()
}

/// R1, R3, R4, R6: one revocation ends alice's tunnel and her web sessions on every host; bob's goes on; a fresh login works.
/// What a dry run shows is what is ended.
#[test]
fn r1_r3_r4_r6_one_revocation_for_vpn_and_web() {
    let scene = scene("web-revoke");
    let gateway = Gateway::start(&scene);
    let (_cookie, mut tunnel) = scene.session(&scene.alice, "alice");
    let alice = gateway.login("alice", 1).unwrap();
    let second = gateway.login("alice", 2).unwrap();
    let bob = gateway.login("bob", 3).unwrap();
    let (first, other) = (digest(1), digest(4));
    let further = gateway.link().add_token(&first, "other.example", &other, vec![9; 60]);
    let further = gateway.runtime.block_on(further).unwrap();
    assert_eq!(
        (further.key, further.host.as_str(), further.wrapped.as_slice()),
        (alice.key, "other.example", &[9; 60][..])
    );
    assert!(gateway.link().remembered(&digest(4)).is_some(), "a request costs no round trip");
    let web = shown(&scene);
    assert_eq!(web.len(), 3);
    let row = &web[&alice.key.to_string()];
    assert_eq!((&row["user"], &row["client"]), (&"alice".into(), &"192.0.2.7".into()));
    assert_eq!(row["hosts"], serde_json::json!(["app.example", "other.example"]));
    let table = scene.enforcer.cli(&["show", "sessions"]).code(DONE).stdout;
    assert!(table.contains(&bob.key.to_string()), "{table}");
    let users = scene.enforcer.cli(&["show", "users", "--json"]).code(DONE).json;
    let user = list(&users, "users").iter().find(|user| user["user"] == "alice").unwrap().clone();
    assert_eq!((&user["sessions"], &user["web"]), (&3.into(), &2.into()), "{user}");
    let rehearsed = scene.enforcer.cli(&["terminate", "user", "alice", "--dry-run", "--json"]).code(DONE);
    let would: Vec<Value> = list(&rehearsed.json, "sessions").iter().map(|row| row["user"].clone()).collect();
    assert_eq!(would, ["alice", "alice", "alice"]);
    assert!(gateway.is_alive(1));

    let answer = scene.enforcer.revoke("alice");
    let told = layer(&answer, "web");
    assert_eq!(
        (&told["done"], &told["failed"], &told["guarded"]),
        (&2.into(), &0.into(), &0.into()),
        "{told}"
    );
    assert!(told["text"].as_str().unwrap().contains("4 connections closed"), "{told}");
    for (byte, session) in [(1, &alice), (2, &second), (4, &alice)] {
        assert!(!gateway.is_alive(byte) && gateway.link().remembered(&digest(byte)).is_none());
        assert!(!gateway.link().is_alive(&session.key));
        assert_eq!(gateway.was_ended(session), Some(Cause::Revoked));
    }
    tunnel.wait_end();
    assert!(gateway.is_alive(3) && gateway.link().is_alive(&bob.key) && gateway.was_ended(&bob).is_none());
    assert!(shown(&scene).into_keys().eq([bob.key.to_string()]));
    let fresh = gateway.login("alice", 5).unwrap();
    assert!(gateway.is_alive(5) && fresh.key != alice.key);

    // one by its key; a key of nobody, and one that is over, match nothing
    let key = fresh.key.to_string();
    let answer = scene.enforcer.cli(&["terminate", "session", &key, "--json"]).code(DONE);
    assert_eq!(layer(&answer, "web")["done"], 1);
    assert!(!gateway.is_alive(5) && gateway.is_alive(3));
    scene.enforcer.cli(&["terminate", "session", &key]).code(NOTHING_MATCHED);
    scene.enforcer.cli(&["terminate", "session", &"0".repeat(32), "--dry-run"]).code(NOTHING_MATCHED);

    // a logout by the gateway itself, on one host, ends the session on all; and what is used is told
    let carol = gateway.login("carol", 6).unwrap();
    eventually("its use is told", BOUND, || {
        assert!(gateway.is_alive(6));
        let row = &shown(&scene)[&carol.key.to_string()];
        (row["seen"].as_u64() > row["since"].as_u64()).then_some(())
    });
    gateway.runtime.block_on(gateway.link().end(&digest(6), Cause::Logout)).unwrap();
    assert!(!gateway.is_alive(6));
    let again = gateway.runtime.block_on(gateway.link().end(&digest(6), Cause::Logout));
    assert_eq!(again, Err(LinkError::Gone));
    eventually("it was told", BOUND, || gateway.was_ended(&carol).filter(|cause| *cause == Cause::Logout));
}

/// R2, R5: kill -9 of the daemon. While it is gone nobody gets in; when it is back what was alive is, and what was revoked
/// before the kill is not.
#[test]
fn r5_r2_kill_nine() {
    let mut scene = scene("web-killed");
    let gateway = Gateway::start(&scene);
    let alice = gateway.login("alice", 1).unwrap();
    gateway.login("bob", 2).unwrap();
    gateway.runtime.block_on(gateway.link().rewrap(&digest(2), vec![7; 99])).unwrap();
    scene.enforcer.revoke("alice");
    // what was answered before the revocation was written before it
    scene.enforcer.kill();
    eventually("the link notices", BOUND, || (!gateway.link().is_connected()).then_some(()));
    assert!(matches!(gateway.check(2), Err(LinkError::Unavailable(_))), "memory is not used");
    assert!(gateway.link().remembered(&digest(2)).is_none());
    assert!(matches!(gateway.login("carol", 3), Err(LinkError::Unavailable(_))));
    scene.enforcer.start();
    gateway.connected();
    let bob = gateway.check(2).unwrap().unwrap();
    assert_eq!((bob.user.as_str(), bob.wrapped.as_slice()), ("bob", &[7; 99][..]));
    assert!(!gateway.is_alive(1), "what was revoked stays revoked");
    assert!(gateway.was_ended(&bob).is_none());
    // and once more, from the kill on
    scene.enforcer.revoke("bob");
    scene.enforcer.kill();
    scene.enforcer.start();
    gateway.connected();
    assert!(!gateway.is_alive(2) && shown(&scene).is_empty());
    assert!(gateway.login("alice", 5).unwrap().key != alice.key, "a fresh login is welcome");
    // SIGTERM is no end of a session
    scene.enforcer.stop();
    scene.enforcer.start();
    gateway.connected();
    assert!(gateway.is_alive(5));
}

/// R2, R4: a locked person has no web session and gets none; somebody else does; unlocked is unlocked. Also after a restart.
#[test]
fn r2_r4_lock() {
    let mut scene = scene("web-lock");
    let gateway = Gateway::start(&scene);
    gateway.login("alice", 1).unwrap();
    gateway.login("bob", 2).unwrap();
    let answer = scene.enforcer.cli(&["lock", "user", "alice", "--json"]).code(DONE);
    assert_eq!(layer(&answer, "web")["done"], 1);
    assert!(!gateway.is_alive(1) && gateway.is_alive(2));
    assert!(matches!(gateway.login("alice", 3), Err(LinkError::Locked(_))));
    scene.enforcer.kill();
    scene.enforcer.start();
    gateway.connected();
    assert!(matches!(gateway.login("alice", 4), Err(LinkError::Locked(_))));
    gateway.login("bob", 5).unwrap();
    scene.enforcer.cli(&["unlock", "user", "alice"]).code(DONE);
    gateway.login("alice", 6).unwrap();
    assert!(!gateway.is_alive(1) && gateway.is_alive(6));
    // a session of somebody who is locked later, and a lock of somebody who has none
    scene.enforcer.cli(&["lock", "user", "carol", "--for", "1h"]).code(DONE);
    assert!(matches!(gateway.login("carol", 7), Err(LinkError::Locked(_))));
}

/// R7, R5: so many sessions that no ordinary message holds a list of them: all are listed, and taken over after kill -9;
/// one person's end is that person's alone. And at the bound nobody else gets in.
#[test]
fn r7_r5_many_sessions() {
    const MANY: u32 = 20_000;
    let mut scene = scene_with("web-many", |config| config.set("web", "max-sessions", &MANY.to_string()));
    let gateway = Gateway::start(&scene);
    let token = |number: u32| {
        let mut bytes = [7; 32];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        WebDigest::from_bytes(bytes)
    };
    let agent = "x".repeat(250);
    let next = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let tasks: Vec<_> = (0..32)
        .map(|_| {
            let (link, next, agent) = (gateway.shared(), Arc::clone(&next), agent.clone());
            gateway.runtime.spawn(async move {
                loop {
                    let number = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if number >= MANY {
                        return;
                    }
                    let user = format!("user{}", number / 10);
                    link.create(new_session(&user, token(number), vec![1; 60], &agent)).await.unwrap();
                }
            })
        })
        .collect();
    tasks.into_iter().for_each(|task| gateway.runtime.block_on(task).unwrap());
    assert!(matches!(gateway.login("one-more", 1), Err(LinkError::Full(_))));
    assert_eq!(shown(&scene).len(), 20_000);
    let check = scene.enforcer.cli(&["check"]).stdout;
    assert!(check.contains("20000 of 20000 sessions"), "{check}");
    let answer = scene.enforcer.revoke("user777");
    assert_eq!(layer(&answer, "web")["done"], 10);
    scene.enforcer.kill();
    scene.enforcer.start();
    gateway.connected();
    let left = shown(&scene);
    assert_eq!(left.len(), 19_990);
    assert!(left.values().all(|session| session["user"] != "user777"));
    let is_alive = |number| gateway.runtime.block_on(gateway.link().check(&token(number))).unwrap().is_some();
    assert!(is_alive(7_769) && !is_alive(7_770) && !is_alive(7_779) && is_alive(7_780));
    gateway.login("one-more", 1).unwrap();
}

/// The gateway's socket is its user's alone, and serves nothing but web sessions; `check` looks at it. Where [web] is not
/// configured there is none.
#[test]
fn the_socket_is_narrow() {
    let scene = scene("web-socket");
    let socket = socket(&scene);
    let about = std::fs::metadata(&socket).unwrap();
    let nobody = nix::unistd::User::from_name(USER).unwrap().unwrap().uid.as_raw();
    assert_eq!((about.uid(), about.mode() & 0o777), (nobody, 0o600));
    let findings = || scene.enforcer.cli(&["check", "--json"]).json;
    let web = |findings: &Value| -> Vec<Value> {
        let all = list(findings, "findings").iter();
        all.filter(|finding| finding["what"].as_str().unwrap().starts_with("web:")).cloned().collect()
    };
    let told = web(&findings());
    assert!(told.iter().any(|finding| finding["level"] == "ok"), "{told:?}");
    assert!(
        told.iter().any(|f| f["level"] == "warning" && f["what"].as_str().unwrap().contains("no gateway")),
        "{told:?}"
    );
    // what the control socket serves is not to be had here, whoever asks; the binary may be in a folder of root's alone
    let copy = socket.with_file_name("enforcer-of-anybody");
    copy_program(&binary(), &copy);
    let ask = |uid: u32, command: &[&str]| {
        let mut asked = Command::new(&copy);
        asked
            .args(command)
            .arg("--socket")
            .arg(&socket)
            .env_remove("ENFORCER_CONFIG")
            .env_remove("ENFORCER_SOCKET");
        let output = asked.uid(uid).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for command in [
        &["terminate", "user", "alice"][..],
        &["lock", "user", "alice"],
        &["lift", "1"],
        &["show", "sessions"],
    ] {
        for uid in [0, nobody] {
            let (code, said) = ask(uid, command);
            assert_eq!(code, Some(ERROR), "{command:?} as {uid}: {said}");
        }
    }
    let revocations = scene.enforcer.cli(&["show", "revocations", "--json"]).code(DONE).json;
    assert!(list(&revocations, "revocations").is_empty());
    // a stranger is turned away also where the mode would let him in; and that it would is told
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666)).unwrap();
    assert_eq!(ask(STRANGER, &["show", "status"]).0, Some(ERROR));
    assert!(scene.enforcer.log().contains("turned away"), "{}", scene.enforcer.log());
    let told = web(&findings());
    assert!(
        told.iter().any(|f| f["level"] == "error" && f["what"].as_str().unwrap().contains("mode")),
        "{told:?}"
    );
    drop(scene);

    let plain = Scene::new("web-none", Era::Bookworm);
    assert!(plain.enforcer.status()["web"].is_null());
    assert!(web(&plain.enforcer.cli(&["check", "--json"]).json).is_empty());
}

/// R6: whoever would not hear of a session's end is told of none, since no end would wait for what he has in hand: not before
/// he reads the stream of ends, and on when that has broken. What ends sessions is taken from him all the same.
#[test]
fn r6_no_session_is_told_of_to_whom_no_end_is_told() {
    use enforcer::control::{api, connect_web};
    let scene = scene("web-unheard");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut client = connect_web(&socket(&scene)).await.unwrap();
        let token = api::WebToken { digest: vec![1; 32] };
        let create = api::WebCreate {
            user: "alice".into(),
            host: "app.example".into(),
            digest: vec![1; 32],
            wrapped: vec![1; 60],
            idle_seconds: 600,
            for_seconds: 3_600,
            ..api::WebCreate::default()
        };
        let which = Some(api::web_end::Which::Digest(vec![1; 32]));
        let end = api::WebEnd { which, cause: api::WebCause::Logout.into() };
        let refused = [
            client.create(create.clone()).await.unwrap_err(),
            client.check(token.clone()).await.unwrap_err(),
            client.end(end).await.unwrap_err(),
        ];
        let codes = refused.map(|status| format!("{:?}", status.code()));
        assert_eq!(codes, ["Unavailable", "Unavailable", "NotFound"]);
        let stream = client.watch(api::WebWatch {}).await.unwrap();
        client.create(create).await.unwrap();
        client.check(token.clone()).await.unwrap();
        drop(stream);
        client.check(token).await.expect("it is known, and each end waits for it");
    });
}

/// What the web part cannot have is told by the log, `check` and the status, and takes nothing else down: the VPN part
/// revokes. With what is wrong mended it is served.
#[test]
fn what_cannot_be_served_is_told_and_the_vpn_part_does_its_work() {
    let mut scene = scene("web-refused");
    let config = scene.enforcer.config();
    let text = std::fs::read_to_string(&config).unwrap();
    // a folder in which others could put a file of theirs in the socket's place
    let open = scene.lab.work().join("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
    let there = socket(&scene).display().to_string();
    for (wrong, says) in [
        (text.replace(&quoted(USER), "\"no-such-user\""), ["no-such-user", "useradd"]),
        (
            text.replace(&quoted(&there), &quoted(&open.join("web").display().to_string())),
            ["open", "by others"],
        ),
    ] {
        scene.enforcer.stop();
        std::fs::write(&config, wrong).unwrap();
        scene.enforcer.start();
        let status = scene.enforcer.status();
        let check = scene.enforcer.cli(&["check"]).code(ERROR).stdout;
        let log = scene.enforcer.log();
        for told in [status["web"]["trouble"].as_str().unwrap(), &check, &log] {
            assert!(told.contains(says[0]) && told.contains(says[1]), "{told}");
        }
        let shown = scene.enforcer.cli(&["show", "status"]).code(DONE).stdout;
        assert!(shown.contains("NO gateway is served"), "{shown}");
        let (_cookie, mut tunnel) = scene.session(&scene.alice, "alice");
        scene.enforcer.revoke("alice");
        tunnel.wait_end();
    }
    scene.enforcer.stop();
    std::fs::write(&config, text).unwrap();
    scene.enforcer.start();
    let gateway = Gateway::start(&scene);
    gateway.login("alice", 1).unwrap();
    assert_eq!(scene.enforcer.status()["web"]["trouble"], "");
}
