//! The web gateway, end to end: the real process, the real daemon, small applications, and curl as the browser.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use std::os::unix::fs::PermissionsExt as _;

use enforcer_tests::enforcer::{DONE, ERROR, NOTHING_MATCHED, PARTIAL, quoted};
use enforcer_tests::portal::{Browser, ONE, PASSWORD, Portal, TWO, USER};
use enforcer_tests::process::{BOUND, eventually};
use nix::sys::signal::Signal;

fn one(path: &str) -> String {
    format!("https://{ONE}{path}")
}

fn two(path: &str) -> String {
    format!("https://{TWO}{path}")
}

const TOKEN: &str = "__Host-enforcer";

/// R1, R2, R3, R4: a session of alice is ended from the shell while she downloads something. Her download dies, her cookies
/// are worth nothing, also to who has stolen both; bob's download goes on; a fresh login works.
#[test]
fn r1_r2_r3_r4_a_revocation_ends_the_session_and_its_cookies() {
    let portal = Portal::new("gw-revoke");
    let (alice, bob) = (portal.logged_in("alice"), portal.logged_in("bob"));
    for (browser, name) in [(&alice, "alice"), (&bob, "bob")] {
        browser.get(&one(&format!("/set/sid/of-{name}"))).expect(200);
        let kept = browser.cookie(ONE, "sid").unwrap();
        assert!(kept.starts_with("es1.") && !kept.contains(name), "{kept}");
        let page = browser.get(&one("/who"));
        assert_eq!(page.cookies(), format!("sid=of-{name}"), "opened, and without the gateway's own");
        assert!(page.body.contains(&format!("x-forwarded-user: {name}")), "{}", page.body);
    }
    let stolen = alice.copy(&portal.scene.bob.namespace, "thief");
    assert_eq!(
        stolen.get(&one("/")).cookies(),
        "sid=of-alice",
        "a copy is as good as the original until then"
    );
    let mut hers = alice.download(&one("/stream"));
    let _his = bob.download(&one("/stream"));
    eventually("both download", BOUND, || (portal.one.streams() == 2).then_some(()));

    portal.scene.enforcer.revoke("alice");
    hers.wait(BOUND);
    eventually("hers is gone at the application too", BOUND, || (portal.one.streams() == 1).then_some(()));
    let had = bob.downloaded();
    eventually("his goes on", BOUND, || (bob.downloaded() > had).then_some(()));
    for browser in [&alice, &stolen] {
        assert!(browser.get(&one("/")).is_login());
        let script = browser.copy(&portal.scene.alice.namespace, "script").only("Accept: application/json");
        let refused = script.once(&one("/")).expect(401);
        assert!(refused.field("www-authenticate").is_some());
    }
    assert!(!portal.one.seen().iter().any(|seen| seen.contains(TOKEN)), "no application sees a token");

    // she logs in again: another session, and the cookie of the one before opens no more
    let page = alice.login(&one("/app"), "alice", PASSWORD);
    assert_eq!(page.cookies(), "");
    assert_eq!(alice.cookie(ONE, "sid"), None, "and the browser has forgotten it");
    alice.get(&one("/set/sid/fresh")).expect(200);
    assert_eq!(alice.get(&one("/")).cookies(), "sid=fresh");
    assert_eq!(bob.get(&one("/")).cookies(), "sid=of-bob");
    assert!(stolen.get(&one("/")).is_login());
    let log = portal.log();
    for secret in [bob.cookie(ONE, TOKEN).unwrap(), PASSWORD.to_owned(), "of-bob".into()] {
        assert!(!log.contains(&secret), "a secret is in the log");
    }
}

/// R2, R3: the next person at the same browser is in nobody's session: after a logout, and after an idle time.
#[test]
fn r2_r3_the_next_person_at_the_same_browser_is_in_nobodys_session() {
    let portal = Portal::with("gw-next", |config| config.set("gateway", "idle-timeout", "\"10s\""));
    let browser = portal.logged_in("alice");
    browser.get(&one("/set/sid/of-alice")).expect(200);
    let stolen = browser.copy(&portal.scene.bob.namespace, "thief");
    let page = browser.get(&one("/AGLogout")).expect(200);
    assert!(page.field("clear-site-data").unwrap().contains("\"storage\""), "{}", page.head);
    assert_eq!((portal.sessions("alice"), browser.cookie(ONE, TOKEN)), (0, None));
    assert_eq!(browser.cookie(ONE, "sid"), None, "what was learned is deleted");
    assert!(stolen.get(&one("/")).is_login());

    let page = browser.login(&one("/"), "bob", PASSWORD);
    assert_eq!(page.cookies(), "");
    // a browser that has kept alice's cookie all the same
    browser.plant(ONE, "sid", &stolen.cookie(ONE, "sid").unwrap());
    let page = browser.get(&one("/"));
    assert_eq!(page.cookies(), "");
    assert!(page.fields("set-cookie").any(|field| field.starts_with("sid=;")), "{}", page.head);

    // nobody clicks: it ends by itself
    browser.get(&one("/set/sid/of-bob")).expect(200);
    eventually("bob was idle for too long", BOUND * 2, || (portal.sessions("bob") == 0).then_some(()));
    let page = browser.login(&one("/"), "alice", PASSWORD);
    assert_eq!(page.cookies(), "", "not bob's");
}

/// R3, R4: who is locked is told so after the right password alone; the other one gets in.
#[test]
fn r3_r4_who_is_locked_is_told_after_the_right_password_alone() {
    let portal = Portal::new("gw-lock");
    let browser = portal.logged_in("alice");
    portal.scene.enforcer.cli(&["lock", "user", "alice"]).code(DONE);
    assert!(browser.get(&one("/")).is_login(), "the session is over");
    let wrong = browser.try_login(&one("/"), "alice", "wrong").expect(403);
    let nobody = browser.try_login(&one("/"), "eve", "wrong").expect(403);
    for page in [&wrong, &nobody] {
        assert!(page.body.contains("role=\"alert\"") && page.body.contains("is not right"), "{}", page.body);
        assert!(!page.body.contains("locked"), "{}", page.body);
    }
    let right = browser.try_login(&one("/"), "alice", PASSWORD).expect(403);
    assert!(right.body.contains("Your account is locked"), "{}", right.body);
    assert!(browser.get(&one("/")).is_login());
    portal.logged_in("bob");
    portal.scene.enforcer.cli(&["unlock", "user", "alice"]).code(DONE);
    browser.login(&one("/"), "alice", PASSWORD);
}

/// R2, R3: one session over two hosts, each with a token of its own; a logout on one ends both. The code that leads from one
/// to the other counts once, and in that browser alone.
#[test]
fn r2_r3_one_session_over_two_hosts() {
    let portal = Portal::new("gw-hosts");
    let browser = portal.browser("browser");
    // the second host first: the login is on the first one, and it comes back with its path
    let page = browser.login(&two("/deep/path?a=b&c=%2F"), "alice", PASSWORD);
    assert_eq!(page.url, two("/deep/path?a=b&c=%2F"));
    assert!(page.body.starts_with("GET /deep/path?a=b&c=%2F "), "{}", page.body);
    assert!(browser.get(&one("/")).is_of_the_app(), "no second login");
    assert_eq!(portal.sessions("alice"), 1);
    let (first, second) = (browser.cookie(ONE, TOKEN).unwrap(), browser.cookie(TWO, TOKEN).unwrap());
    assert_ne!(first, second);
    // a token counts on its own host alone
    let thief = portal.browser("thief");
    thief.plant(ONE, TOKEN, &second);
    assert!(thief.get(&one("/")).is_login());
    // each host's cookies are its own group's
    browser.get(&one("/set/sid/first")).expect(200);
    browser.get(&two("/set/sid/second")).expect(200);
    assert_eq!(
        (browser.get(&one("/")).cookies(), browser.get(&two("/")).cookies()),
        ("sid=first".into(), "sid=second".into())
    );
    let moved = browser.copy(&portal.scene.bob.namespace, "moved");
    let sealed = browser.cookie(ONE, "sid").unwrap();
    moved.ask(&["-H", &format!("Cookie: sid={sealed}; {TOKEN}={second}"), &two("/moved")]);
    let seen = portal.two.seen().into_iter().filter(|seen| seen.contains("/moved"));
    assert!(seen.into_iter().all(|seen| !seen.contains("first")), "sealed for the other host");

    browser.get(&two("/nesp/app/plogout")).expect(200);
    assert_eq!(portal.sessions("alice"), 0);
    assert!(browser.get(&one("/")).is_login() && moved.get(&two("/")).is_login());
}

/// R3: the code that hands a session over to another host counts once, and in the browser that it was made for.
#[test]
fn r3_a_code_cannot_be_planted_nor_used_twice() {
    let portal = Portal::new("gw-codes");
    let alice = portal.logged_in("alice");
    // by hand, one step after the other
    let to_login = alice.once(&two("/x")).expect(303);
    let login = to_login.field("location").unwrap().to_owned();
    assert!(login.starts_with(&one("/.enforcer/login?")), "{login}");
    let to_code = alice.once(&login).expect(303);
    let code = to_code.field("location").unwrap().to_owned();
    assert!(code.starts_with(&two("/.enforcer/code?c=")), "{code}");
    // into bob's browser, who has a nonce of his own there: he is not logged in as alice
    let bob = portal.browser("bob");
    bob.once(&two("/")).expect(303);
    let planted = bob.get(&code).expect(403);
    assert!(planted.body.contains("another browser"), "{}", planted.body);
    assert_eq!(bob.cookie(TWO, TOKEN), None);
    alice.get(&code).expect(403);
    // and a whole round works; its address is worth nothing afterwards
    let to_code = alice.once(alice.once(&two("/x")).field("location").unwrap());
    let code = to_code.field("location").unwrap().to_owned();
    assert_eq!(alice.once(&code).expect(303).field("location").unwrap(), two("/x"));
    let thief = portal.browser("thief");
    thief.once(&two("/")).expect(303);
    thief.get(&code).expect(403);
    // a code for a host that is not ours is made for nobody
    for query in
        ["host=evil.example&n=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA&to=/", "host=evil.example&to=/"]
    {
        let page = alice.once(&one(&format!("/.enforcer/login?{query}")));
        let leads = page.field("location").unwrap_or_default();
        assert!(!leads.contains("evil"), "{query}: {page:?}");
    }
}

/// R3: a login form of another site, an old one, and odd targets lead nowhere; a token from before the login is none after it.
#[test]
fn r3_the_login_is_this_sites_own() {
    let portal = Portal::new("gw-login");
    let browser = portal.browser("browser");
    let page = browser.get(&one("/"));
    for part in [
        "lang=\"en\"",
        "<label for=\"user\">",
        "autocomplete=\"username\"",
        "autocomplete=\"current-password\"",
    ] {
        assert!(page.body.contains(part), "{part}: {}", page.body);
    }
    assert!(!page.body.contains("<script") && !page.body.contains("http://"), "{}", page.body);
    assert_eq!(
        (page.field("cache-control"), page.field("x-frame-options")),
        (Some("no-store"), Some("DENY"))
    );
    assert!(page.field("content-security-policy").unwrap().contains("default-src 'none'"));
    // from elsewhere, as browsers tell it, or without this browser's nonce
    for line in [
        "Origin: https://evil.example",
        "Origin: null",
        "Sec-Fetch-Site: cross-site",
        "Sec-Fetch-Site: same-site",
    ] {
        let foreign = browser.copy(&portal.scene.alice.namespace, "foreign").header(line);
        foreign.submit(&page, "alice", PASSWORD).expect(403);
        assert_eq!(foreign.cookie(ONE, TOKEN), None, "{line}");
    }
    portal.browser("other").submit(&page, "alice", PASSWORD).expect(403);
    for to in ["//evil.example", "/%5Cevil.example", "https:evil.example", "%0d%0aX:y", "/%09/evil.example"] {
        let page = browser.get(&one(&format!("/.enforcer/login?to={to}")));
        let page = browser.submit(&page, "alice", PASSWORD);
        assert_eq!(page.url, one("/"), "{to}");
        browser.get(&one("/AGLogout")).expect(200);
    }
    // tries have an end, and it is said when there are more
    let guesser = portal.browser("guesser");
    let page = guesser.get(&one("/"));
    let answers: Vec<_> = (0..12).map(|_| guesser.submit(&page, "mallory", "guess")).collect();
    let refused = answers.iter().find(|page| page.status == 429).expect("a limit");
    let wait: u64 = refused.field("retry-after").unwrap().parse().unwrap();
    assert!((1..=31).contains(&wait) && refused.body.contains("Too many tries"), "{}", refused.body);

    // fixation: a token that somebody has put there before counts for nothing, and is not kept
    let attacker = portal.logged_in("bob");
    let planted = attacker.cookie(ONE, TOKEN).unwrap();
    let victim = portal.browser("victim");
    victim.plant(ONE, TOKEN, &planted);
    let form = portal.browser("form");
    let page = form.get(&one("/.enforcer/login"));
    assert!(page.is_login());
    let nonce = form.cookie(ONE, "__Host-enforcer-login").unwrap();
    victim.plant(ONE, "__Host-enforcer-login", &nonce);
    victim.submit(&page, "alice", PASSWORD);
    assert_ne!(victim.cookie(ONE, TOKEN).unwrap(), planted);
    assert!(victim.get(&one("/")).body.contains("x-forwarded-user: alice"));
    assert!(attacker.get(&one("/")).is_login(), "bob's session there is over");
}

/// R3: a logout that another site has led to is asked for once more; what only looks ahead is no logout.
#[test]
fn r3_a_logout_is_this_sites_own() {
    let portal = Portal::new("gw-logout");
    let alice = portal.logged_in("alice");
    let led = alice.ask(&["-H", "Sec-Fetch-Site: cross-site", &one("/AGLogout")]).expect(200);
    assert!(led.body.contains("Do you want to log out?"), "{}", led.body);
    alice.ask(&["-H", "Sec-Purpose: prefetch", &one("/AGLogout")]).expect(403);
    alice.ask(&["-X", "DELETE", &one("/AGLogout")]).expect(405);
    assert!(alice.get(&one("/")).is_of_the_app(), "she is still logged in");
    let posted =
        alice.ask(&["-X", "POST", "-H", &format!("Origin: {}", one("")), &one("/AGLogout")]).expect(200);
    assert!(posted.body.contains("Your session is over"), "{}", posted.body);
    assert_eq!(portal.sessions("alice"), 0);
}

/// R2, R6: without the daemon nobody gets in, and it says so; with it the sessions go on.
#[test]
fn r2_r6_without_the_daemon_nobody_gets_in() {
    let mut portal = Portal::new("gw-daemon");
    let alice = portal.logged_in("alice");
    let stolen = alice.copy(&portal.scene.bob.namespace, "stolen");
    portal.scene.enforcer.stop();
    eventually("nobody gets in", BOUND, || (alice.get(&one("/")).status == 503).then_some(()));
    let page = alice.get(&one("/.enforcer/login")).expect(503);
    assert!(page.field("retry-after").is_some() && page.body.contains("Try again"), "{page:?}");
    let script = alice.copy(&portal.scene.alice.namespace, "script").only("Accept: application/json");
    assert!(!script.once(&one("/")).expect(503).body.contains("<html"), "a line for who is no person");
    let page = alice.get(&one("/AGLogout")).expect(503);
    assert!(page.body.contains("Not logged out everywhere"), "{}", page.body);
    assert_eq!(alice.cookie(ONE, TOKEN), None, "but forgotten here");
    portal.scene.enforcer.start();
    portal.answers();
    eventually("and goes on", BOUND, || stolen.get(&one("/")).is_of_the_app().then_some(()));
}

/// R2, R5: after a restart of the gateway the session goes on, and what was sealed is asked for sealed.
#[test]
fn r2_r5_a_restart_loses_nothing_and_opens_nothing() {
    let mut portal = Portal::new("gw-restart");
    let alice = portal.logged_in("alice");
    alice.get(&one("/set/sid/of-alice")).expect(200);
    for killed in [false, true] {
        if killed {
            portal.kill();
        } else {
            assert_eq!(portal.stop(), Some(0), "{}", portal.log());
        }
        portal.start();
        assert_eq!(alice.get(&one("/")).cookies(), "sid=of-alice");
        // a value that somebody has planted is kept from the application
        let planter = alice.copy(&portal.scene.bob.namespace, "planter");
        planter.plant(ONE, "sid", "planted");
        let seen = planter.get(&one("/"));
        assert!(!seen.cookies().contains("planted"), "{}", seen.body);
    }
    // an end while the gateway is away is an end
    portal.stop();
    portal.scene.enforcer.cli(&["disconnect", "user", "-i", "alice"]);
    portal.start();
    assert!(alice.get(&one("/")).is_login());
}

/// R3: where a server before the gateway names the user, another name under the same cookie ends the session; from anybody
/// else the name counts for nothing.
#[test]
fn r3_another_user_under_the_same_cookie_ends_the_session() {
    let portal = Portal::with("gw-header", |config| {
        config.set("gateway", "trusted-header", "{ name = \"X-Remote-User\", peers = [\"203.0.113.1\"] }")
    });
    // alice's host is the named peer; bob's is none
    let front = portal.browser("front").header("X-Remote-User: alice");
    let page = front.get(&one("/"));
    assert!(page.is_of_the_app() && page.body.contains("x-forwarded-user: alice"), "{page:?}");
    assert!(!page.body.contains("x-remote-user"), "{}", page.body);
    let token = front.cookie(ONE, TOKEN).unwrap();
    assert_eq!(portal.sessions("alice"), 1);
    assert!(front.get(&one("/")).is_of_the_app());
    assert_eq!((front.cookie(ONE, TOKEN).unwrap(), portal.sessions("alice")), (token.clone(), 1));
    front.get(&one("/set/sid/of-alice")).expect(200);
    assert!(front.get(&two("/")).is_of_the_app(), "one session over both hosts");
    assert_eq!(portal.sessions("alice"), 1);

    let changed = front.copy(&portal.scene.alice.namespace, "changed").only("X-Remote-User: bob");
    let page = changed.get(&one("/"));
    assert!(page.body.contains("x-forwarded-user: bob"), "{page:?}");
    assert_eq!((page.cookies(), portal.sessions("alice"), portal.sessions("bob")), (String::new(), 0, 1));
    assert_ne!(changed.cookie(ONE, TOKEN).unwrap(), token);
    // the named peer that names nobody, and somebody who names himself
    portal.browser("nobody").get(&one("/")).expect(403);
    let liar = Browser::new(&portal.scene.bob.namespace, &portal.file("liar"));
    assert!(liar.header("X-Remote-User: alice").get(&one("/")).is_login());
}

/// R4, R5: a new master key logs nobody out; once the old one is gone what was seen goes on.
#[test]
fn r4_r5_a_new_master_key_logs_nobody_out() {
    let mut portal = Portal::new("gw-keys");
    let (alice, bob) = (portal.logged_in("alice"), portal.logged_in("bob"));
    for browser in [&alice, &bob] {
        browser.get(&one("/set/sid/mine")).expect(200);
    }
    let keys = |arguments: &[&str]| portal.scene.enforcer.cli(&[&["gateway-keys"], arguments].concat());
    keys(&["rotate"]).code(DONE);
    portal.signal(Signal::SIGHUP);
    eventually("the gateway has read the keys again", BOUND, || {
        portal.log().contains("number 2 wraps").then_some(())
    });
    // alice is seen under the new key, bob is not
    assert_eq!(alice.get(&one("/")).cookies(), "sid=mine");
    let listed = keys(&["list"]).code(DONE).stdout;
    assert!(listed.contains('1') && listed.contains('2'), "{listed}");
    keys(&["retire"]).code(NOTHING_MATCHED);
    let file = portal.file("gateway/master.keys");
    let first_gone: String = std::fs::read_to_string(&file)
        .unwrap()
        .lines()
        .filter(|line| !line.starts_with("1 "))
        .map(|line| format!("{line}\n"))
        .collect();
    std::fs::write(&file, first_gone).unwrap();
    portal.kill();
    portal.start();
    assert_eq!(alice.get(&one("/")).cookies(), "sid=mine");
    assert!(bob.get(&one("/")).is_login(), "nobody has seen bob since: he logs in again");
    bob.login(&one("/"), "bob", PASSWORD);
}

/// What a running gateway can take it takes at SIGHUP, and nobody is logged out; what it cannot is named.
#[test]
fn r4_a_reload_logs_nobody_out() {
    let portal = Portal::new("gw-reload");
    let alice = portal.logged_in("alice");
    alice.get(&one("/set/sid/mine")).expect(200);
    let config = std::fs::read_to_string(portal.scene.enforcer.config()).unwrap();
    let reload = |change: &str, said: &str| {
        let before = portal.log().matches(said).count();
        std::fs::write(portal.scene.enforcer.config(), config.replace("[gateway]\n", change)).unwrap();
        portal.signal(Signal::SIGHUP);
        eventually(said, BOUND, || (portal.log().matches(said).count() > before).then_some(()));
    };
    assert!(alice.get(&one("/bye")).is_of_the_app());
    reload("[gateway]\nlogout-paths = [\"/bye\"]\n", "the configuration was read again");
    reload("[gateway]\nplain = [\"127.0.0.1:1\"]\n", "plain changed, which counts from the next start on");
    reload("[gateway]\nplane = []\n", "did you mean `plain`");
    assert_eq!(alice.get(&one("/")).cookies(), "sid=mine");
    // a user who was added a moment ago, with no reload at all
    portal.password("carol", PASSWORD);
    portal.logged_in("carol");
    assert!(alice.get(&one("/bye")).expect(200).body.contains("Your session is over"));
}

/// R6: what is wrong is told before anything is served, with the cure.
#[test]
fn r6_a_gateway_that_cannot_serve_says_why() {
    let mut portal = Portal::new("gw-start");
    portal.stop();
    let users = portal.file("web-users");
    let refused = |portal: &Portal, said: &str| {
        let output = portal.fails_to_start();
        assert_eq!(output.code, ERROR, "{}", output.stderr);
        assert!(output.stderr.contains(said), "{}", output.stderr);
    };
    std::fs::set_permissions(&users, std::fs::Permissions::from_mode(0o600)).unwrap();
    refused(&portal, "web-users");
    portal.password("alice", PASSWORD);
    let config = std::fs::read_to_string(portal.scene.enforcer.config()).unwrap();
    for (from, to, said) in [
        (quoted(USER), quoted("root"), "is root"),
        (quoted(USER), quoted("no-such-user"), "useradd"),
        (
            "[gateway]\n".to_owned(),
            "[gateway]\nloguot-paths = []\n".to_owned(),
            "did you mean `logout-paths`",
        ),
    ] {
        std::fs::write(portal.scene.enforcer.config(), config.replace(&from, &to)).unwrap();
        refused(&portal, said);
    }
    std::fs::write(portal.scene.enforcer.config(), &config).unwrap();
    portal.start();
    // nothing of it is root's
    let status = std::fs::read_to_string(format!("/proc/{}/status", portal.pid())).unwrap();
    let field = |name: &str| status.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    assert!(!field("Uid:").split_whitespace().skip(1).any(|uid| uid == "0"), "{status}");
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        assert!(field(set).ends_with("0000000000000000"), "{status}");
    }
    assert!(field("NoNewPrivs:").ends_with('1'), "{status}");
}

/// R1, R3: of a gateway that hangs the daemon destroys the session's sockets itself, by the table that the gateway has kept of
/// them; the other one's stay.
#[test]
fn r1_r3_a_gateway_that_hangs_keeps_no_session_alive() {
    let portal = Portal::new("gw-hangs");
    let (alice, bob) = (portal.logged_in("alice"), portal.logged_in("bob"));
    let mut hers = alice.download(&one("/stream"));
    let _his = bob.download(&one("/stream"));
    eventually("both download", BOUND, || (portal.one.streams() == 2).then_some(()));
    portal.signal(Signal::SIGSTOP);
    let answer = portal.scene.enforcer.cli(&["disconnect", "user", "-i", "alice", "--json"]);
    assert!([DONE, PARTIAL].contains(&answer.code), "{answer:?}");
    eventually("hers is gone at the application", BOUND, || (portal.one.streams() == 1).then_some(()));
    hers.wait(BOUND);
    portal.signal(Signal::SIGCONT);
    let had = bob.downloaded();
    eventually("his goes on", BOUND, || (bob.downloaded() > had).then_some(()));
    eventually("she has to log in", BOUND, || alice.get(&one("/")).is_login().then_some(()));
    assert!(bob.get(&one("/who")).is_of_the_app());
}
