//! The provider in a real browser: people log in at its own pages, and use a real application behind the gateway.

use std::net::Ipv4Addr;

use enforcer_tests::portal::WEB_V4;
use enforcer_tests::process::{BOUND, eventually};
use enforcer_tests::web::papers::pin_of;
use enforcer_tests::web::script::{SESSION, Shown, log_in, shown};
use enforcer_tests::web::{APP, Browser, Django, Person, gateway};

use crate::whole::World;

/// What stands on the gateway's login page beside the form for a password.
const TO_PROVIDER: &str = "a[href^='/.enforcer/oidc/begin']";
/// A page of Django's admin behind its first one, and the link to it there.
const FURTHER: &str = "#user-tools a[href='/admin/password_change/']";

/// From the gateway's login page by way of the provider's back to what was asked for.
#[track_caller]
fn sign_in(world: &World, person: &Person<'_>, user: &str) {
    assert_eq!(shown(person), Shown::Gateway);
    let mut at = person.submit(TO_PROVIDER);
    assert!(at.url.starts_with(&world.provider.issuer()), "{at:?}");
    // its form, and the question what the gateway may know
    for _ in 0..4 {
        if !at.url.starts_with(&world.provider.issuer()) {
            break;
        }
        if person.has("input[name=login]") {
            person.fill("input[name=login]", user);
            person.fill("input[name=password]", "any");
        }
        at = person.submit("button[type=submit]");
    }
    assert!(at.url.starts_with(&admin()), "{at:?}\n{}", world.portal.log());
}

fn admin() -> String {
    format!("https://{APP}/admin/")
}

/// An answer that never ends: how much of it has come, and whether it was cut.
const STREAM: &str = "
globalThis.ticks = 0;
globalThis.over = false;
const answer = await fetch('/ticks/');
const reader = answer.body.getReader();
(async () => {
  try {
    while (!(await reader.read()).done) ticks += 1;
  } finally {
    over = true;
  }
})().catch(() => {});
return answer.status;
";

/// R1, R2, R3, R4: alice logs out at the provider, in another tab. What her page has open is cut, her next click shows the
/// gateway's login page, and when she is back by a fresh login the application's cookie of before is worth nothing. Bob,
/// in a browser of his own, notices nothing.
#[test]
fn r1_r2_r3_r4_a_logout_at_the_provider_in_a_real_browser() {
    let world = World::with("oidc-browser", |config| gateway::origin(config, Django::URL, &[]));
    let scene = &world.portal.scene;
    let _django = Django::start(&scene.lab, &[APP]);
    let provider = WEB_V4.to_string();
    let hosts: [(&str, Ipv4Addr); 2] = [(APP, WEB_V4), (&provider, WEB_V4)];
    let keys = [gateway::papers(&world.portal).pin(), pin_of(&world.provider.certificate())];
    let browser = Browser::believing(&scene.alice.namespace, scene.lab.shared(), &hosts, &keys);

    let people = ["alice", "bob"].map(|user| {
        let person = browser.open(user);
        person.goto(&admin());
        sign_in(&world, &person, user);
        assert_eq!(shown(&person), Shown::Form);
        log_in(&person, user);
        assert_eq!(shown(&person), Shown::Admin(user.to_owned()));
        assert_eq!(person.run(STREAM), 200);
        person.wait("ticks > 0");
        person
    });
    let [alice, bob] = &people;
    let cookies = alice.cookies(&admin());
    let hers = cookies.iter().find(|cookie| cookie.name == SESSION).expect("Django's session cookie");

    let other = alice.tab("alice's other tab");
    other.goto(&format!("{}/session/end?client_id=ES256", world.provider.issuer()));
    other.submit("button[name=logout][value=yes]");
    eventually("her session is over", BOUND, || (world.portal.sessions("alice") == 0).then_some(()));
    alice.wait("over");
    bob.run("globalThis.had = ticks");
    bob.wait("ticks > had && !over");
    alice.submit(FURTHER);
    assert_eq!(shown(alice), Shown::Gateway, "her next click");
    assert_eq!(world.portal.sessions("bob"), 1);

    alice.goto(&admin());
    sign_in(&world, alice, "alice");
    assert_eq!(shown(alice), Shown::Form, "her session at the application is over");
    assert!(!alice.cookies(&admin()).contains(hers), "and its cookie is gone");
    alice.put(hers);
    alice.goto(&admin());
    assert_eq!(shown(alice), Shown::Form, "it is worth nothing");

    bob.wait("ticks > had && !over");
    bob.submit(FURTHER);
    assert_eq!(shown(bob), Shown::Admin("bob".to_owned()), "his next click");
    assert!(!world.provider.log().contains("backchannel.error"), "{}", world.provider.log());
}
