//! Who is who: etcd's roles, passwords and certificates.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use enforcer::cluster::{Author, Key, Op, Outcome, Over, Owners, SessionId, Settings, Tls, Txn, User, Value};
use enforcer::session::SafeId;
use enforcer_tests::enforcer::binary;
use enforcer_tests::etcd::{Authority, PASSWORD, Wanted};
use enforcer_tests::process::{Output, command, output, succeed};

use crate::world::{Gateway, PREFIX, World, id, person, put, reason, user};

fn password(world: &World, name: &str, text: &str) -> PathBuf {
    let path = world.lab.work().join(format!("{name}.password"));
    fs::write(&path, format!("{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

/// Gateway N, as etcd knows it, or as another one.
fn as_user(world: &World, number: u8, user: &str) -> Settings {
    let user = User { name: user.into(), password_file: password(world, user, PASSWORD) };
    Settings { user: Some(user), ..world.settings(number) }
}

fn name(number: u8) -> String {
    format!("gw-{}", id(number))
}

/// R7: etcd's own roles: with its password a gateway can do all that it has to, and write nothing that is another's,
/// whatever runs there; and what etcd says is what is told.
#[test]
fn a_gateways_password_is_good_for_its_own_keys_alone() {
    own_keys_alone("clu-roles", |world| {
        world.etcd.with_roles(PREFIX, &[id(1).to_string(), id(2).to_string()]);
    });
}

/// R7: the same by what `enforcer cluster roles` prints, run as it is.
#[test]
fn the_roles_that_are_printed_are_good_for_a_gateways_own_keys_alone() {
    own_keys_alone("clu-printed", |world| {
        world.etcd.with_roles(PREFIX, &[]);
        let config = configuration(world, "");
        for number in [1, 2] {
            let (gateway, user) = (id(number).to_string(), name(number));
            let file = password(world, &user, PASSWORD).display().to_string();
            let words = ["roles", "--gateway", &gateway, "--name", &user, "--password-file", &file];
            run_as_root(world, &printed(&config, &words));
        }
    });
}

/// What is printed without a word is for the gateway whose configuration it is: its id, its user, its password. And it is
/// taken out by what is printed for that.
#[test]
fn a_gateway_is_made_known_and_taken_out_by_what_is_printed() {
    let mut world = World::new("clu-own", 1);
    world.etcd.with_roles(PREFIX, &[id(2).to_string()]);
    let file = password(&world, "vpn-1", PASSWORD);
    let config = configuration(&world, &format!("user = \"vpn-1\"\npassword-file = {file:?}\n"));
    let none = cluster(&config, &["id"]);
    assert!(none.code == 1 && none.stderr.contains("no id yet"), "{}", none.stderr);
    let directory = world.lab.work().join("own.state");
    let state = enforcer::store::Settings { directory, audit_days: 1, audit_rows: 1 };
    let (_, loaded) = enforcer::store::open(&state).unwrap();
    let own = printed(&config, &["id"]);
    assert_eq!(own.trim(), loaded.gateway);
    run_as_root(&world, &printed(&config, &["roles"]));
    let own: enforcer::cluster::GatewayId = own.trim().parse().unwrap();
    let settings = Settings { gateway: own, ..as_user(&world, 1, "vpn-1") };
    let mut one = Gateway::start(&world.namespace(1), settings);
    one.until("it is up", |view| view.up);
    one.done(put(Key::Gateway(own), Value::Gateway { name: "vpn-1".into(), version: "1".into() }));
    let alice = Over::User(person("alice"));
    let said = one.done(put(Key::Record(Author::Gateway(own), alice.clone()), reason("x")));
    let mut two = Gateway::start(&world.namespace(2), as_user(&world, 2, &name(2)));
    two.has_read(said);
    assert!(two.view.value(&Key::Gateway(own)).is_some());
    run_as_root(&world, &printed(&config, &["remove", &own.to_string()]));
    two.until("it is gone", |view| view.value(&Key::Gateway(own)).is_none());
    assert!(two.view.value(&Key::Record(Author::Gateway(own), alice)).is_some(), "what it has decided stays");
}

/// A configuration with that etcd, its own state directory, and more in [cluster].
fn configuration(world: &World, more: &str) -> PathBuf {
    let path = world.lab.work().join("own.toml");
    let directory = world.lab.work().join("own.state");
    let endpoint = &world.etcd.endpoints()[0];
    let cluster =
        format!("[cluster]\ninsecure = true\nendpoints = [{endpoint:?}]\nprefix = {PREFIX:?}\n{more}");
    fs::write(&path, format!("[state]\ndirectory = {directory:?}\n{cluster}")).unwrap();
    path
}

/// `enforcer cluster ...`
fn cluster(config: &Path, words: &[&str]) -> Output {
    let mut enforcer = command(&binary().display().to_string(), ["cluster"]);
    enforcer.args(words).arg("--config").arg(config);
    output(enforcer, "")
}

fn printed(config: &Path, words: &[&str]) -> String {
    let said = cluster(config, words);
    assert!(said.code == 0, "{words:?}: {}", said.stderr);
    said.stdout
}

/// As a shell script, by etcd's administrator.
fn run_as_root(world: &World, script: &str) {
    let file = world.lab.work().join("printed.sh");
    fs::write(&file, script).unwrap();
    let mut shell = world.etcd.network.command("sh");
    shell.env("ETCDCTL_API", "3").env("ETCDCTL_USER", format!("root:{PASSWORD}"));
    shell.env("ETCDCTL_ENDPOINTS", world.etcd.endpoints().join(",")).arg("-e").arg(&file);
    succeed(shell, "");
}

fn own_keys_alone(lab: &str, make_roles: impl Fn(&mut World)) {
    let mut world = World::new(lab, 1);
    world.etcd.put("/enforcer/v1/from/admin/users/default/bob", "{}");
    make_roles(&mut world);
    let mut one = Gateway::start(&world.namespace(1), as_user(&world, 1, &name(1)));
    one.until("it is up", |view| view.up);
    let session = SessionId::Vpn(SafeId::from_bytes([9; 20]));
    let alice = person("alice");
    for txn in [
        put(Key::Gateway(id(1)), Value::Gateway { name: "one".into(), version: "1".into() }),
        put(Key::Acknowledged(id(1)), Value::Acknowledged(5)),
        put(Key::Barrier(id(1)), Value::Barrier),
        put(user(1, "alice"), reason("x")),
        put(Key::Lift(Author::Gateway(id(1)), Author::Admin, Over::User(alice.clone())), {
            Value::Lift(enforcer::cluster::Lift { up_to: 1, ..Default::default() })
        }),
        put(Key::Admission(id(1), alice.clone(), session), Value::Admission { at: 1 }),
        put(Key::Owners(alice.clone()), Value::Owners(Owners::default())),
        Txn { then: vec![Op::Delete(user(1, "alice"))], ..Txn::default() },
    ] {
        one.done(txn);
    }
    // a gateway that was broken into, and says that it is another one: it writes as number 2 with the password of 1
    let mut thief = Gateway::start(&world.namespace(2), as_user(&world, 2, &name(1)));
    thief.until("etcd says no", |view| {
        view.down.as_ref().is_some_and(|why| why.contains("permission denied"))
    });
    // etcdctl with the same password: nothing of another's, of the administrator's or outside
    let ctl = |words: &[&str]| {
        let user = format!("{}:{PASSWORD}", name(1));
        let mut all = world.etcd.network.command("etcdctl");
        all.env("ETCDCTL_API", "3")
            .args(["--endpoints", &world.etcd.endpoints()[0], "--user", &user])
            .args(words);
        enforcer_tests::process::output(all, "")
    };
    let (own, other) = (id(1), id(2));
    for key in [
        format!("from/{other}/users/default/alice"),
        "from/admin/users/default/alice".into(),
        format!("from/{own}x/users/default/alice"),
        format!("gateways/{other}"),
        format!("gateways/{own}x"),
        format!("alive/{other}"),
        format!("acknowledged/{other}"),
        format!("sessions/{other}/default/alice/{}", "09".repeat(20)),
    ] {
        let key = format!("{PREFIX}{key}");
        for words in [vec!["put", &key, "{}"], vec!["del", &key]] {
            let said = ctl(&words);
            assert!(
                said.code != 0 && said.stderr.contains("permission denied"),
                "{words:?}: {}",
                said.stderr
            );
        }
    }
    let all = ctl(&["del", "--prefix", PREFIX]);
    assert!(all.code != 0 && all.stderr.contains("permission denied"), "{}", all.stderr);
    assert_eq!(
        ctl(&["get", &format!("{PREFIX}from/admin/users/default/bob")]).code,
        0,
        "the twin: reading is for all"
    );
    // the neighbour has felt nothing, and what was there is there
    let last = one.done(put(user(1, "carol"), reason("x")));
    one.has_read(last);
    assert!(one.view.value(&Key::Record(Author::Admin, Over::User(person("bob")))).is_some());
    one.undisturbed();
}

/// A right that was taken away is refused in etcd's own words, the connection stays, and the next order is done; a token
/// that etcd has forgotten, since it was started anew, is asked for again.
#[test]
fn what_etcd_refuses_is_told_and_tokens_are_renewed() {
    let mut world = World::new("clu-token", 1);
    world.etcd.with_roles(PREFIX, &[id(1).to_string()]);
    let mut gateway = Gateway::start(&world.namespace(1), as_user(&world, 1, &name(1)));
    gateway.until("it is up", |view| view.up);
    let owners = put(Key::Owners(person("alice")), Value::Owners(Owners::default()));
    gateway.done(owners.clone());
    let range = format!("{PREFIX}owners/");
    world.etcd.ctl(&["role", "revoke-permission", &name(1), "--prefix=true", &range]);
    let refused = loop {
        // the roles have changed: etcd asks for a new token once
        match gateway.commit(owners.clone()) {
            Outcome::Refused { why } => break why,
            Outcome::NotSent { .. } | Outcome::NotKnown { .. } => gateway.until("it is up", |view| view.up),
            other => panic!("{other:?}"),
        }
    };
    assert!(refused.contains("permission denied"), "{refused}");
    gateway.done(put(user(1, "alice"), reason("x")));
    world.etcd.kill(0);
    gateway.until("it is away", |view| !view.up);
    world.etcd.start_all();
    gateway.until("it is back", |view| view.up);
    gateway.done(put(user(1, "bob"), reason("x")));
}

/// What is wrong with a password, or with its file, is told without it.
#[test]
fn r6_a_wrong_password_is_told_and_never_shown() {
    let mut world = World::new("clu-pass", 1);
    world.etcd.with_roles(PREFIX, &[id(1).to_string()]);
    let mut settings = as_user(&world, 1, &name(1));
    let file = settings.user.as_ref().unwrap().password_file.clone();
    fs::write(&file, "Wrong-Word-4712\n").unwrap();
    let namespace = world.namespace(1);
    let mut gateway = Gateway::start(&namespace, settings.clone());
    gateway.until("it says why", |view| {
        view.down.as_ref().is_some_and(|why| why.contains("authentication failed"))
    });
    assert!(!format!("{:?}", gateway.view).contains("Wrong-Word"));
    // put right, it is read anew
    fs::write(&file, format!("{PASSWORD}\n")).unwrap();
    gateway.until("it is up", |view| view.up);
    drop(gateway);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let mut gateway = Gateway::start(&namespace, settings.clone());
    gateway.until("it says why", |view| view.down.as_ref().is_some_and(|why| why.contains("chmod 600")));
    assert!(!format!("{:?}", gateway.view).contains(PASSWORD));
    settings.user = None;
    let mut nobody = Gateway::start(&world.namespace(2), Settings { gateway: id(2), ..settings });
    nobody.until("it says why", |view| {
        view.down.as_ref().is_some_and(|why| why.contains("user name is empty"))
    });
    assert!(!nobody.view.up);
}

/// TLS: the right authority and name are believed, others are not, and each says why. Renewed certificates are used
/// without a restart of anything here.
#[test]
fn only_the_right_certificate_is_believed_and_shown() {
    let world = World::with("clu-tls", 1, Wanted { tls: true, client_certificates: true });
    let work = world.lab.work();
    let own = world.etcd.authority().issue("gateway", &[]);
    let other = Authority::new(&work, "other");
    let foreign = other.issue("foreign", &[]);
    let tls = |ca: PathBuf, own: Option<(PathBuf, PathBuf)>| Settings {
        tls: Some(Tls { ca, own }),
        ..world.settings(1)
    };
    let namespace = world.namespace(1);
    let mut right = Gateway::start(&namespace, tls(world.etcd.ca(), Some(own.clone())));
    right.until("it is up", |view| view.up);
    right.done(put(user(1, "alice"), reason("x")));
    let named = Settings {
        endpoints: vec!["https://localhost:2379".into()],
        ..tls(world.etcd.ca(), Some(own.clone()))
    };
    let plain = Settings { endpoints: vec!["http://10.99.0.1:2379".into()], ..world.settings(1) };
    fs::write(work.join("none.pem"), "nothing\n").unwrap();
    for (settings, says) in [
        (tls(other.certificate(), Some(own.clone())), "UnknownIssuer"),
        (tls(world.etcd.ca(), None), ""),
        (tls(world.etcd.ca(), Some(foreign)), ""),
        (tls(work.join("missing.pem"), None), "cannot be read"),
        (tls(work.join("none.pem"), Some(own.clone())), ""),
        (Settings { tls: None, ..tls(world.etcd.ca(), None) }, "[cluster] ca"),
        (plain, ""),
    ] {
        let mut wrong = Gateway::start(&namespace, settings.clone());
        wrong.until("it says why", |view| view.down.as_ref().is_some_and(|why| why.contains(says)));
        assert!(!wrong.view.up, "{settings:?}");
        println!("told: {}", wrong.view.down.as_ref().unwrap());
    }
    // a name that the certificate is not for, at the right place
    namespace.within(|| relay("127.0.0.1:2379", "10.99.0.1:2379"));
    let mut wrong = Gateway::start(&namespace, named);
    wrong.until("it says why", |view| {
        view.down.as_ref().is_some_and(|why| why.contains("not valid for name"))
    });
    println!("told: {}", wrong.view.down.as_ref().unwrap());
    // a key that others can read
    fs::set_permissions(&own.1, fs::Permissions::from_mode(0o640)).unwrap();
    let mut wrong = Gateway::start(&namespace, tls(world.etcd.ca(), Some(own.clone())));
    wrong.until("it says why", |view| view.down.as_ref().is_some_and(|why| why.contains("chmod 600")));
    right.undisturbed();
    // put right, it is read anew
    fs::set_permissions(&own.1, fs::Permissions::from_mode(0o600)).unwrap();
    wrong.until("it is up", |view| view.up);
}

/// Passes connections on, so that etcd can be reached by another name; until the test's process ends.
fn relay(from: &str, to: &'static str) {
    let listener = std::net::TcpListener::bind(from).unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(server) = std::net::TcpStream::connect(to) else { continue };
            for (mut one, mut other) in
                [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)]
            {
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut one, &mut other);
                    let _ = other.shutdown(std::net::Shutdown::Both);
                });
            }
        }
    });
}
