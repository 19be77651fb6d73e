//! The web gateway before people who mean it no good, and before odd browsers: the real process, the real daemon, and curl.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use enforcer_tests::enforcer::quoted;
use enforcer_tests::portal::{ONE, PASSWORD, Portal, TWO};
use enforcer_tests::process::{BOUND, eventually};
use nix::sys::signal::Signal;

fn one(path: &str) -> String {
    format!("https://{ONE}{path}")
}

fn two(path: &str) -> String {
    format!("https://{TWO}{path}")
}

const TOKEN: &str = "__Host-enforcer";
/// Some 256 bits, as a token and a binding are written.
const BITS: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// R3: with a wildcard among the hosts no address that somebody has written leads a browser, or a code, to another host: not
/// by what ends a host in an address, and not by a number that is an IPv4 address.
#[test]
fn r3_no_odd_name_below_a_wildcard_leads_away() {
    let portal = Portal::with("gw-wild", |config| {
        let wild = "{ host = \"*.wild.example.com\", group = \"wild\", to = \"http://127.0.0.1:1\" }";
        config.more("gateway", "origins", wild)
    });
    let alice = portal.logged_in("alice");
    let login = |host: &str| one(&format!("/.enforcer/login?host={host}.wild.example.com&n={BITS}&to=%2F"));
    let to_code = alice.once(&login("a")).expect(303);
    let there = to_code.field("location").unwrap();
    assert!(there.starts_with("https://a.wild.example.com/.enforcer/code?c="), "{there}");
    let odd = [
        "3221225985%2Fx",
        "3221225985%23",
        "3221225985%3F",
        "3221225985%5C",
        "3221225985:8443%2F",
        "x@3221225985%2F",
    ];
    for host in odd {
        let page = alice.once(&login(host)).expect(400);
        assert!(
            page.field("location").is_none() && page.body.contains("not behind this gateway"),
            "{page:?}"
        );
        portal.browser("nobody").once(&login(host)).expect(400);
    }
}

/// R2, R6: a logout says that the session is over when it is: also from a host that has a token of a former session, and
/// where somebody has put a second token beside the first.
#[test]
fn r2_r6_a_logout_ends_what_it_says() {
    let portal = Portal::new("gw-logouts");
    let browser = portal.browser("browser");
    browser.login(&two("/"), "alice", PASSWORD);
    browser.get(&one("/AGLogout")).expect(200);
    assert!(browser.cookie(TWO, TOKEN).is_some(), "the other host was not told to forget its token");
    browser.login(&one("/"), "alice", PASSWORD);
    assert_eq!(portal.sessions("alice"), 1);
    let script = browser.copy(&portal.scene.alice.namespace, "script").only("Accept: application/json");
    let page = script.once(&two("/AGLogout")).expect(200);
    assert!(page.body.contains(&one("/AGLogout")) && !page.body.contains("is over"), "{page:?}");
    assert_eq!(portal.sessions("alice"), 1);
    let page = browser.get(&two("/AGLogout")).expect(200);
    assert!(page.body.contains("Your session is over"), "{page:?}");
    assert_eq!((portal.sessions("alice"), browser.cookie(TWO, TOKEN)), (0, None));

    let (alice, bob) = (portal.logged_in("alice"), portal.logged_in("bob"));
    let beside = format!("Cookie: {TOKEN}={BITS}");
    // none of two counts, and the browser is told to forget both, wherever it keeps them
    let page = alice.ask(&["-H", &beside, &one("/")]).expect(303);
    let deleted: Vec<&str> =
        page.fields("set-cookie").filter(|field| field.starts_with(&format!("{TOKEN}=;"))).collect();
    assert!(deleted.len() == 2 && deleted.iter().any(|field| field.contains("; Partitioned;")), "{page:?}");
    assert_eq!(portal.sessions("alice"), 1);
    let again = portal.logged_in("alice");
    assert_eq!(portal.sessions("alice"), 2);
    again.ask(&["-H", &beside, &one("/AGLogout")]).expect(200);
    assert_eq!((portal.sessions("alice"), portal.sessions("bob")), (1, 1), "hers alone");
    assert!(bob.get(&one("/")).is_of_the_app());
}

/// R3: a picture in a page of an application is no logout, and nobody is logged out by logging in. A link, a frame and a
/// script's own request are logouts.
#[test]
fn r3_a_picture_and_a_login_are_no_logout() {
    let portal = Portal::new("gw-picture");
    let alice = portal.logged_in("alice");
    for dest in ["image", "script", "style", "video", "serviceworker", "odd"] {
        alice.ask(&["-H", &format!("Sec-Fetch-Dest: {dest}"), &one("/AGLogout")]).expect(403);
    }
    assert_eq!(portal.sessions("alice"), 1);
    for dest in ["document", "iframe", "frame", "empty"] {
        let alice = portal.logged_in("alice");
        let before = portal.sessions("alice");
        alice.ask(&["-H", &format!("Sec-Fetch-Dest: {dest}"), &one("/AGLogout")]).expect(200);
        assert_eq!(portal.sessions("alice"), before - 1, "{dest}");
    }
    for to in ["%2FAGLogout", "%2Fnesp%2Fapp%2Fplogout%3Fa%3Db", "%2FAGLogout%23x"] {
        let browser = portal.browser("browser");
        let page = browser.get(&one(&format!("/.enforcer/login?to={to}")));
        let page = browser.submit(&page, "bob", PASSWORD);
        assert!(page.is_of_the_app() && page.url == one("/"), "{to}: {page:?}");
    }
    assert_eq!(portal.sessions("bob"), 3);
}

/// R2, R6: a daemon that hangs, with its sockets open, is gone: nobody is served by what was known of him. When it goes on
/// so do the sessions.
#[test]
fn r2_r6_with_a_daemon_that_hangs_nobody_gets_in() {
    let portal = Portal::new("gw-stopped");
    let alice = portal.logged_in("alice");
    portal.scene.enforcer.signal(Signal::SIGSTOP);
    eventually("nobody gets in", BOUND * 2, || (alice.get(&one("/")).status == 503).then_some(()));
    assert!(alice.get(&one("/")).expect(503).field("retry-after").is_some());
    portal.scene.enforcer.signal(Signal::SIGCONT);
    eventually("and goes on", BOUND, || alice.get(&one("/")).is_of_the_app().then_some(()));
    assert_eq!(portal.sessions("alice"), 1);
}

/// With a server on alice's host that names the user, and an application that does not answer.
fn with_a_front(name: &str, login: &str) -> Portal {
    Portal::with(name, |config| {
        let down = format!("{{ host = \"{ONE}\", path = \"/down\", to = \"http://127.0.0.1:1\" }}");
        let header = "{ name = \"X-Remote-User\", peers = [\"203.0.113.1\"] }";
        let config = config.more("gateway", "origins", &down).set("gateway", "trusted-header", header);
        config.set("gateway", "login-host", &quoted(login))
    })
}

/// R7: behind a trusted header a browser is told of the session that was made for it also where no application is.
#[test]
fn r7_a_session_that_was_made_is_the_browsers_where_no_application_is() {
    let login = "login.example.com";
    let portal = with_a_front("gw-made", login);
    let front = portal.browser("front").header("X-Remote-User: alice");
    for _ in 0..3 {
        front.get(&format!("https://{login}/nothing")).expect(404);
    }
    assert!(front.cookie(login, TOKEN).is_some());
    assert_eq!(portal.sessions("alice"), 1);
    let page = front.get(&format!("https://{login}/")).expect(200);
    assert!(page.body.contains("logged in as alice"), "{page:?}");
}

/// R7: and where the application does not answer.
#[test]
fn r7_a_session_that_was_made_is_the_browsers_where_no_application_answers() {
    let portal = with_a_front("gw-down", ONE);
    let front = portal.browser("front").header("X-Remote-User: alice");
    let front = front.header("Sec-Fetch-Mode: navigate").header("Sec-Fetch-Dest: document");
    for _ in 0..3 {
        front.get(&one("/down/x?y")).expect(502);
    }
    assert_eq!(portal.sessions("alice"), 1);
    assert!(front.get(&one("/")).is_of_the_app());
}

/// One host in all its spellings, the methods of the gateway's own pages, and the other shapes of a request.
#[test]
fn a_host_is_one_however_it_is_written() {
    let portal = Portal::new("gw-shapes");
    let alice = portal.logged_in("alice");
    for version in ["--http1.1", "--http2"] {
        // the scheme's own port is not told: an application that compares it with the page's Origin would refuse it
        let page = alice.ask(&[version, "-H", &format!("Host: {ONE}:443"), &one("/")]).expect(200);
        for said in
            [format!("host: {ONE}\n"), format!("x-forwarded-host: {ONE}\n"), format!("host=\"{ONE}\"\n")]
        {
            assert!(format!("{}\n", page.body).contains(&said), "{version} {said}: {}", page.body);
        }
        let page = alice.ask(&[version, "-H", "Host: ONE.Example.com", &one("/who")]);
        assert!(page.is_of_the_app(), "{page:?}");
        let page = alice.ask(&[version, "-H", &format!("Host: {ONE}:8443"), &one("/")]).expect(200);
        assert!(page.body.contains(&format!("host: {ONE}:8443")), "{}", page.body);
        alice.ask(&[version, "-H", &format!("Host: {ONE}."), &one("/")]).expect(404);
    }
    let whole = one("/.enforcer/login");
    let page = portal.browser("whole").ask(&["--http1.1", "--request-target", &whole, &one("/")]).expect(200);
    assert!(page.is_login());
    portal.browser("old").ask(&["--http1.0", &whole]).expect(200);
    let head = portal.browser("head").ask(&["-I", &whole]).expect(200);
    assert_eq!(head.field("cache-control"), Some("no-store"));
    for (method, path, allowed) in [
        ("OPTIONS", "/.enforcer/login", "GET, HEAD, POST"),
        ("PUT", "/.enforcer/login", "GET, HEAD, POST"),
        ("POST", "/.enforcer/code", "GET"),
        ("HEAD", "/AGLogout", "GET, POST"),
        ("OPTIONS", "/AGLogout", "GET, POST"),
    ] {
        let mut arguments = vec!["-X", method];
        if method == "HEAD" {
            arguments = vec!["-I"];
        }
        let address = one(path);
        arguments.push(&address);
        let page = alice.ask(&arguments).expect(405);
        assert_eq!(
            (page.field("allow"), page.field("cache-control")),
            (Some(allowed), Some("no-store")),
            "{method} {path}"
        );
    }
    assert!(alice.get(&one("/")).is_of_the_app());
}
