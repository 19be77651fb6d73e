//! A browser that several people use, one after the other: real Chromium, and real applications behind an access gateway.
//! Needs what `cargo xtask setup` installs for it.

use enforcer_tests::Lab;
use enforcer_tests::portal::{Portal, WEB_V4};
use enforcer_tests::process::{BOUND, eventually};
use enforcer_tests::web::script::{SESSION, Shown, Story, shared_browser, shown};
use enforcer_tests::web::terminal::typed;
use enforcer_tests::web::{
    APP, BEHIND_NGINX, Browser, Django, Ending, Front as _, Jupyter, PLAIN_V4, Papers, Person, Plain,
    Terminal, gateway,
};

/// Seconds without a request after which the gateways here end a session; and where none shall end so.
const IDLE: u32 = 15;
const LONG: u32 = 3_600;

fn alice() -> Shown {
    Shown::Admin("alice".to_owned())
}

/// The fault that the gateway is for, as it is with plain nginx: bob, signed in at the access gateway as himself, is in
/// alice's session of the application, however her session at the access gateway ended.
#[test]
fn the_fault_through_plain_nginx() {
    let mut lab = Lab::new("web-fault");
    let desk = lab.client("desk");
    let papers = Papers::new(&lab.work(), BEHIND_NGINX);
    let _django = Django::start(&lab, &[BEHIND_NGINX]);
    let nginx = Plain::start(&lab, &papers, Django::URL, IDLE);
    let browser = Browser::start(&desk.namespace, lab.shared(), &[(BEHIND_NGINX, PLAIN_V4)], &papers);
    for ending in Ending::ALL {
        let story = shared_browser(&browser, &nginx, ending, None, &mut |_, _| ());
        let Story { alice: hers, protocol, after, bob, stale, stolen, .. } = story;
        assert_eq!((hers, protocol.as_str(), after), (alice(), "h2", Shown::Gateway), "{ending:?}");
        assert_eq!((bob, stolen), (alice(), alice()), "{ending:?}: the fault is gone");
        assert!(stale.iter().any(|name| name == SESSION), "{ending:?}: {stale:?}");
    }
}

/// R1, R2: the same through the gateway. However alice's session at the gateway ended, by her logout, by time, or by
/// `enforcer disconnect user -i alice`, what bob sees in the same browser is the application's login form; her cookies are
/// gone from the browser, and put back into it they are worth nothing.
#[test]
fn r1_r2_the_cure_through_the_gateway() {
    let portal = gateway::before("web-cure", Django::URL, &[], IDLE);
    let _django = Django::start(&portal.scene.lab, &[APP]);
    let browser = browser(&portal);
    for ending in Ending::ALL {
        let story = shared_browser(&browser, &portal, ending, None, &mut |_, _| ());
        let Story { alice: hers, protocol, after, bob, stale, stolen, .. } = story;
        assert_eq!((hers, protocol.as_str(), after), (alice(), "h2", Shown::Gateway), "{ending:?}");
        assert_eq!((bob, stolen), (Shown::Form, Shown::Form), "{ending:?}: alice's session is bob's");
        assert!(stale.is_empty(), "{ending:?}: {stale:?}");
    }
}

/// A browser on alice's host.
fn browser(portal: &Portal) -> Browser {
    let scene = &portal.scene;
    let papers = gateway::papers(portal);
    Browser::start(&scene.alice.namespace, scene.lab.shared(), &[(APP, WEB_V4)], &papers)
}

/// R1, R3, R4: alice and bob each have a shell on a WebSocket. Once a revocation of alice is answered, nothing that she types
/// arrives, and her socket is closed; bob's goes on, also where both are on one HTTP/2 connection. And she may log in again.
#[test]
fn r1_r3_r4_a_terminal_on_a_websocket() {
    let portal = gateway::before("web-terminal", Jupyter::URL, &["_xsrf"], LONG);
    let jupyter = Jupyter::start(&portal.scene.lab, APP);
    let browser = browser(&portal);
    let enter = |person: &Person<'_>, user: &str| {
        person.goto(&format!("https://{APP}/"));
        portal.sign_in(person, user);
    };
    let (alice, bob) = (browser.open("alice"), browser.open("bob"));
    enter(&alice, "alice");
    enter(&bob, "bob");
    let (hers, his) = (Terminal::open(&alice), Terminal::open(&bob));
    // the answer is not in the line that is typed, which is shown as well
    for terminal in [&hers, &his] {
        terminal.types("echo answer-$((6*7))");
        terminal.shows("answer-42");
    }
    let touch = |name: &str| format!("touch {}", jupyter.folder.join(name).display());
    let file = |name: &str| jupyter.folder.join(name).exists();
    hers.types(&touch("before-alice"));
    eventually("what she types arrives", BOUND, || file("before-alice").then_some(()));

    portal.scene.enforcer.revoke("alice");
    hers.types(&touch("after-alice"));
    his.types(&format!("{}; echo still-$((6*7))", touch("after-bob")));
    his.shows("still-42");
    assert!(file("after-bob") && !file("after-alice"), "what alice typed after the answer arrived");
    hers.ends();
    assert!(his.is_open(), "bob's socket is closed");
    his.types("echo and-on-$((6*7))");
    his.shows("and-on-42");
    assert!(!file("after-alice"));

    enter(&alice, "alice");
    let again = Terminal::open(&alice);
    again.types("echo again-$((6*7))");
    again.shows("again-42");

    // once more, with both terminals on one HTTP/2 connection, which no browser does
    let connection = browser.connect(APP, WEB_V4, &gateway::papers(&portal));
    let says = |who: &str, text: &str| {
        eventually(&format!("{who}: {text}"), BOUND, || {
            let stream = connection.stream(who);
            assert!(stream.over.is_none(), "{who}: {stream:?}");
            stream.text.contains(text).then_some(())
        });
    };
    for (who, person, terminal) in [("alice", &alice, &again), ("bob", &bob, &his)] {
        let (cookies, origin) = (cookies(person), format!("https://{APP}"));
        let fields = [("cookie", cookies.as_str()), ("origin", &origin)];
        let status = connection.socket(who, &terminal.path, &fields);
        assert_eq!(status, 200, "{:?}", connection.stream(who));
        connection.send(who, &typed("echo shared-$((6*7))"));
        says(who, "shared-42");
    }
    portal.scene.enforcer.revoke("alice");
    connection.send("alice", &typed(&touch("late-alice")));
    connection.send("bob", &typed(&format!("{}; echo last-$((6*7))", touch("late-bob"))));
    says("bob", "last-42");
    assert!(file("late-bob") && !file("late-alice"), "what alice typed after the answer arrived");
    eventually("hers ends", BOUND, || connection.stream("alice").over);
    assert_eq!(connection.stream("bob").connection, None, "the connection was closed");
    his.types("echo still-there-$((6*7))");
    his.shows("still-there-42");
}

/// What a browser would send to the application.
fn cookies(person: &Person<'_>) -> String {
    let cookies = person.cookies(&format!("https://{APP}/"));
    let pairs: Vec<_> = cookies.iter().map(|cookie| format!("{}={}", cookie.name, cookie.value)).collect();
    pairs.join("; ")
}

/// R1, R3: alice and bob on one HTTP/2 connection, each with an answer that never ends. With alice's session only her stream
/// ends; bob's goes on, and so does the connection.
#[test]
fn r1_r3_two_people_on_one_connection() {
    let portal = gateway::before("web-shared", Django::URL, &[], LONG);
    let _django = Django::start(&portal.scene.lab, &[APP]);
    let browser = browser(&portal);
    let address = format!("https://{APP}/admin/");
    let enter = |user: &str| {
        let person = browser.open(user);
        person.goto(&address);
        portal.sign_in(&person, user);
        assert_eq!(shown(&person), Shown::Form);
        let cookies = person.cookies(&address);
        let pairs: Vec<_> =
            cookies.iter().map(|cookie| format!("{}={}", cookie.name, cookie.value)).collect();
        pairs.join("; ")
    };
    let (hers, his) = (enter("alice"), enter("bob"));
    let connection = browser.connect(APP, WEB_V4, &gateway::papers(&portal));
    for (name, cookies) in [("alice", &hers), ("bob", &his)] {
        let (status, fields) = connection.ask(name, "/ticks/", &[("cookie", cookies)]);
        assert_eq!((status, &fields["content-type"]), (200, &"text/event-stream".into()), "{fields}");
    }
    let grows = |name: &str| {
        let from = connection.stream(name).bytes;
        eventually(&format!("more for {name}"), BOUND, || {
            let stream = connection.stream(name);
            assert!(stream.over.is_none(), "{name}: {stream:?}");
            (stream.bytes > from).then_some(())
        });
    };
    grows("alice");
    grows("bob");

    portal.scene.enforcer.revoke("alice");
    let over = eventually("alice's stream ends", BOUND, || {
        let stream = connection.stream("alice");
        stream.over.is_some().then_some(stream)
    });
    grows("bob");
    assert_eq!(connection.stream("alice").bytes, over.bytes, "something came behind the end");
    let (status, _) = connection.ask("alice again", "/ticks/", &[("cookie", &hers)]);
    assert_eq!(status, 401);
    let (status, _) = connection.ask("bob again", "/admin/login/", &[("cookie", &his)]);
    assert_eq!(status, 200);
    grows("bob");
    assert_eq!(connection.stream("bob").connection, None, "the connection was closed");
}
