//! What the provider does to the whole gateway, with curl as the browser.

use enforcer_tests::enforcer::quoted;
use enforcer_tests::portal::ONE;
use enforcer_tests::process::{BOUND, eventually};

use crate::whole::World;

/// R1, R2, R3, R4: a logout at the provider ends the session at the gateway: what it has under way, and its cookies. Nobody
/// else's. And the same person may come again, with her password.
#[test]
fn r1_r2_r3_r4_a_logout_at_the_provider_ends_the_session_at_the_gateway() {
    let world = World::new("gw-oidc");
    let portal = &world.portal;
    let (alice, bob) = (portal.browser("alice"), portal.browser("bob"));
    for (browser, user) in [(&alice, "alice"), (&bob, "bob")] {
        world.log_in(browser, user);
        browser.get(&format!("https://{ONE}/set/sid/of-{user}")).expect(200);
        assert_eq!(browser.get(&format!("https://{ONE}/")).cookies(), format!("sid=of-{user}"));
        assert_eq!(portal.sessions(user), 1);
    }
    let stolen = alice.copy(&portal.scene.bob.namespace, "thief");
    let mut hers = alice.download(&format!("https://{ONE}/stream"));
    let _his = bob.download(&format!("https://{ONE}/stream"));
    eventually("both download", BOUND, || (portal.one.streams() == 2).then_some(()));

    world.log_out(&alice);
    hers.wait(BOUND);
    eventually("her session is over", BOUND, || (portal.sessions("alice") == 0).then_some(()));
    let had = bob.downloaded();
    eventually("his goes on", BOUND, || (bob.downloaded() > had).then_some(()));
    for browser in [&alice, &stolen] {
        assert!(browser.get(&format!("https://{ONE}/")).is_login());
    }
    assert_eq!(bob.get(&format!("https://{ONE}/")).cookies(), "sid=of-bob");
    assert!(!world.provider.log().contains("backchannel.error"), "{}", world.provider.log());
    let page = world.log_in(&alice, "alice");
    assert_eq!(page.cookies(), "", "R4; and her former cookie opens no more");
    assert!(stolen.get(&format!("https://{ONE}/")).is_login());
}

/// R2, R5: who was logged out at the gateway is not let in again by the provider's own session; and a session is ended by
/// the provider also after a restart of the gateway.
#[test]
fn r2_r5_the_provider_ends_a_session_after_a_restart_of_the_gateway() {
    let mut world = World::new("gw-oidc-anew");
    let browser = world.portal.browser("browser");
    world.log_in(&browser, "alice");
    browser.get(&format!("https://{ONE}/AGLogout")).expect(200);
    assert_eq!(world.portal.sessions("alice"), 0);
    // the provider has a session of its own in this browser: it asks all the same, and it is bob who comes
    world.log_in(&browser, "bob");
    assert_eq!((world.portal.sessions("alice"), world.portal.sessions("bob")), (0, 1));

    world.portal.kill();
    world.portal.start();
    assert!(browser.get(&format!("https://{ONE}/")).is_of_the_app(), "the session goes on");
    world.log_out(&browser);
    eventually("his session is over", BOUND, || (world.portal.sessions("bob") == 0).then_some(()));
    assert!(browser.get(&format!("https://{ONE}/")).is_login());
}

/// R1, R2, R3, R5, R6: an end that comes while the daemon is away is not called done, and is in force at once all the same:
/// nothing of the session is served, and what is open is closed, while others go on. It is done when the daemon is back,
/// whether or not the gateway was killed meanwhile: the provider says it once.
#[test]
fn r1_r2_r3_r5_r6_an_end_while_the_daemon_is_away_is_done_when_it_is_back() {
    let mut world = World::with("gw-oidc-away", |config| config.set("gateway", "grace", &quoted("60s")));
    let refused = |world: &World, times: usize| {
        eventually("the provider is told that it was not done", BOUND, || {
            (world.provider.log().matches("backchannel.error").count() == times).then_some(())
        });
    };
    let browsers = ["alice", "bob"].map(|user| (user, world.portal.browser(user)));
    for (user, browser) in &browsers {
        world.log_in(browser, user);
    }
    let [(_, alice), (_, bob)] = browsers;
    let page = format!("https://{ONE}/");
    let mut hers = alice.download(&format!("https://{ONE}/stream"));
    let _his = bob.download(&format!("https://{ONE}/stream"));
    eventually("both download", BOUND, || (world.portal.one.streams() == 2).then_some(()));
    world.portal.scene.enforcer.kill();
    world.log_out(&alice);
    refused(&world, 1);
    hers.wait(BOUND);
    assert!(!alice.get(&page).is_of_the_app(), "her session goes on");
    assert!(bob.get(&page).is_of_the_app(), "his does not");
    let had = bob.downloaded();
    eventually("and his download goes on", BOUND, || (bob.downloaded() > had).then_some(()));
    world.portal.scene.enforcer.start();
    eventually("hers is over", BOUND, || (world.portal.sessions("alice") == 0).then_some(()));
    world.portal.answers();
    assert!(alice.get(&page).is_login() && bob.get(&page).is_of_the_app());

    world.log_in(&alice, "alice");
    world.portal.scene.enforcer.kill();
    world.log_out(&alice);
    refused(&world, 2);
    world.portal.kill();
    world.portal.scene.enforcer.start();
    assert_eq!(world.portal.sessions("alice"), 1, "nobody has told the daemon");
    world.portal.start();
    assert!(alice.get(&page).is_login(), "not for a moment");
    eventually("hers is over", BOUND, || (world.portal.sessions("alice") == 0).then_some(()));
    assert!(bob.get(&page).is_of_the_app());
}
