//! OpenID Connect against a real provider (`oidc-provider` from npm, run by node): its own login forms, its own tokens,
//! its own back-channel logout.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

mod chromium;
mod gateway;
mod provider;
mod visitor;
mod whole;
mod world;

use enforcer::web::oidc::{Algorithm, By, OidcError, Settings, TokenError};

use provider::{BACK, Claims, GONE};
use visitor::Visitor;
use world::{World, come, cookie, key, login, session};

/// Why nobody was let in.
#[track_caller]
fn why<T>(result: Result<T, OidcError>) -> OidcError {
    match result {
        Ok(_) => panic!("somebody was let in"),
        Err(error) => error,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn somebody_logs_in_whatever_the_provider_signs_with() {
    let world = World::new(Claims::Userinfo).await;
    for client in ["RS256", "PS256", "ES256", "EdDSA", "by-sub", "by-post"] {
        let oidc = world.gateway(client);
        let login = login(&oidc, &mut Visitor::new(&world.provider), "alice").await;
        assert_eq!((login.user.as_str(), login.subject.as_str()), ("alice", "alice"), "{client}");
        assert_eq!((login.issuer, login.target.as_str()), (world.provider.issuer(), "/first?a=b"));
        assert_eq!(login.sid.is_some(), client != "by-sub");
    }
    assert_eq!(world.provider.asked("GET /me"), 6, "the name is not in the ID token");
    // a signature by a shared secret is none
    let oidc = world.gateway("unsigned");
    let (came, cookie) = come(&oidc, &mut Visitor::new(&world.provider), "alice").await;
    let error = why(oidc.finish(&came.query, Some(cookie.as_bytes())).await);
    assert!(
        matches!(&error, OidcError::Token { why: TokenError::Algorithm(name), .. } if name == "HS256"),
        "{error}"
    );
    // nor is one that is good, and not configured
    let settings = Settings { algorithms: vec![Algorithm::Es256], ..world.settings("RS256") };
    world.gone("RS256");
    let oidc = world.gateway_with(settings);
    let (came, cookie) = come(&oidc, &mut Visitor::new(&world.provider), "alice").await;
    let error = why(oidc.finish(&came.query, Some(cookie.as_bytes())).await);
    assert!(matches!(&error, OidcError::Token { why: TokenError::Algorithm(_), .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_name_comes_from_the_claim_that_is_configured_or_from_none() {
    let world = World::new(Claims::IdToken).await;
    let oidc = world.gateway("ES256");
    assert_eq!(login(&oidc, &mut Visitor::new(&world.provider), "alice").await.user, "alice");
    assert_eq!(world.provider.asked("GET /me"), 0, "it is in the ID token");
    // R3: an address that was not verified makes nobody root
    let (came, cookie) = come(&oidc, &mut Visitor::new(&world.provider), "nameless").await;
    let error = why(oidc.finish(&came.query, Some(cookie.as_bytes())).await);
    assert!(matches!(error, OidcError::Name(_)) && error.status() == 403, "{error}");
    let email = Settings { user_claim: Some("email".into()), ..world.settings("RS256") };
    let oidc = world.gateway_with(email);
    let name = login(&oidc, &mut Visitor::new(&world.provider), "alice").await.user;
    assert_eq!(name, "alice@example.com");
}

/// R2: the provider's own session in the browser lets nobody in again, unless that is wanted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r2_who_comes_next_at_the_same_browser_has_to_log_in() {
    let world = World::new(Claims::IdToken).await;
    let oidc = world.gateway("RS256");
    let mut browser = Visitor::new(&world.provider);
    assert_eq!(login(&oidc, &mut browser, "alice").await.user, "alice");
    let (came, cookie) = come(&oidc, &mut browser, "bob").await;
    assert!(came.asked);
    let next = oidc.finish(&came.query, Some(cookie.as_bytes())).await.unwrap();
    assert_eq!(next.user, "bob");
    // who takes the question out of the URL is not let in
    let begun = oidc.begin(BACK, "/").await.unwrap();
    let silent = begun.location.replace("&prompt=login&max_age=0", "");
    assert_ne!(silent, begun.location);
    let came = browser.log_in(&silent, "mallory").await;
    assert!(!came.asked, "the provider has a session of its own");
    let value = world::cookie(&begun.set_cookie);
    let error = why(oidc.finish(&came.query, Some(value.as_bytes())).await);
    assert!(matches!(error, OidcError::Token { why: TokenError::NoLoginTime, .. }), "{error}");
    // with single sign-on that is what is wanted
    let settings = Settings { single_sign_on: true, ..world.settings("ES256") };
    let single = world.gateway_with(settings);
    let (came, cookie) = come(&single, &mut browser, "mallory").await;
    assert!(!came.asked);
    assert_eq!(single.finish(&came.query, Some(cookie.as_bytes())).await.unwrap().user, "bob");
}

/// R3: nobody finishes what another browser has begun, and no code counts twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r3_a_login_is_finished_by_who_has_begun_it_and_once() {
    let world = World::new(Claims::IdToken).await;
    let oidc = world.gateway("RS256");
    let (alice, alices) = come(&oidc, &mut Visitor::new(&world.provider), "alice").await;
    let (bob, bobs) = come(&oidc, &mut Visitor::new(&world.provider), "bob").await;
    for (query, cookie) in [(&bob.query, &alices), (&alice.query, &bobs)] {
        let error = why(oidc.finish(query, Some(cookie.as_bytes())).await);
        assert!(matches!(error, OidcError::Again(_)) && error.status() == 400, "{error}");
    }
    assert!(matches!(why(oidc.finish(&bob.query, None).await), OidcError::Again(_)));
    let own = world.gateway("ES256");
    let error = why(own.finish(&bob.query, Some(bobs.as_bytes())).await);
    assert!(matches!(error, OidcError::Again(_)), "another process: {error}");
    // bob's code with all that alice's browser has: the provider looks at PKCE's verifier
    let part = |query: &str, name: &str| {
        query.split('&').find_map(|pair| pair.strip_prefix(&format!("{name}="))).unwrap().to_owned()
    };
    let mixed = alice.query.replace(&part(&alice.query, "code"), &part(&bob.query, "code"));
    let error = why(oidc.finish(&mixed, Some(alices.as_bytes())).await);
    assert!(matches!(&error, OidcError::Denied(_)), "{error}");
    assert!(error.to_string().contains("invalid_grant"), "{error}");
    // an answer of another provider, and one that says nothing of it: this one always does
    let iss = part(&alice.query, "iss");
    for other in
        [alice.query.replace(&iss, "https%3A%2F%2Fevil.example"), alice.query.replace("iss=", "was=")]
    {
        assert!(matches!(why(oidc.finish(&other, Some(alices.as_bytes())).await), OidcError::Again(_)));
    }
    // and her own is good, once
    let login = oidc.finish(&alice.query, Some(alices.as_bytes())).await.unwrap();
    assert_eq!(login.user, "alice");
    assert!(matches!(why(oidc.finish(&alice.query, Some(alices.as_bytes())).await), OidcError::Denied(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_want_to_log_in_and_a_wrong_secret_are_told() {
    let world = World::new(Claims::IdToken).await;
    let oidc = world.gateway("RS256");
    let begun = oidc.begin(BACK, "/").await.unwrap();
    let came = Visitor::new(&world.provider).refuse(&begun.location).await;
    let error = why(oidc.finish(&came.query, Some(cookie(&begun.set_cookie).as_bytes())).await);
    assert!(matches!(&error, OidcError::Denied(_)) && error.to_string().contains("access_denied"), "{error}");
    // the secret of another client
    let settings = Settings { secret_file: world.settings("RS256").secret_file, ..world.settings("ES256") };
    let oidc = world.gateway_with(settings.clone());
    let (came, cookie) = come(&oidc, &mut Visitor::new(&world.provider), "alice").await;
    let error = why(oidc.finish(&came.query, Some(cookie.as_bytes())).await);
    let said = error.to_string();
    assert!(matches!(error, OidcError::Provider(_)) && said.contains("client-id and secret"), "{said}");
    assert!(!said.contains("the secret of") && !error.plain().contains("secret"), "{said}");
    // it is mended, without a restart
    std::fs::copy(world.settings("ES256").secret_file, &settings.secret_file).unwrap();
    oidc.reload_secret().unwrap();
    assert_eq!(login(&oidc, &mut Visitor::new(&world.provider), "alice").await.user, "alice");
}

/// R2, R3: a logout at the provider ends what was begun in that session of the provider, and nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r2_the_provider_ends_the_sessions_of_its_own_session() {
    let world = World::new(Claims::IdToken).await;
    let oidc = world.gateway("PS256");
    let (mut one, mut two) = (Visitor::new(&world.provider), Visitor::new(&world.provider));
    session(&oidc, &mut one, "alice", 1).await;
    session(&oidc, &mut two, "alice", 2).await;
    session(&oidc, &mut Visitor::new(&world.provider), "bob", 3).await;
    let place = oidc.end_session(Some(GONE)).await.unwrap().unwrap();
    assert_eq!(one.log_out(&place).await.unwrap(), GONE);
    let received = world.received().await;
    let out = received.out.unwrap();
    assert_eq!((out.by, out.sessions), (By::Sid, vec![key(1)]));
    // the same token again ends nothing: also not what has come since
    let again = why(oidc.backchannel(&received.form).await);
    assert!(matches!(again, OidcError::Token { why: TokenError::Seen, .. }), "{again}");
    // R4: and she may come again
    session(&oidc, &mut one, "alice", 4).await;
    assert_eq!(oidc.sessions(), 3);
    // one that is over by itself is not ended again
    oidc.forget(&key(2));
    two.log_out(&oidc.end_session(None).await.unwrap().unwrap()).await;
    assert!(world.received().await.out.unwrap().sessions.is_empty());
    assert!(world.is_quiet());
    assert!(!world.provider.log().contains("backchannel.error"), "{}", world.provider.log());
}

/// R5: also after a restart of the gateway; and a token that names nobody's session ends all of that person.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r5_the_provider_ends_all_sessions_of_a_person_after_a_restart() {
    let world = World::new(Claims::IdToken).await;
    let oidc = world.gateway("by-sub");
    let mut alice = Visitor::new(&world.provider);
    session(&oidc, &mut alice, "alice", 1).await;
    session(&oidc, &mut Visitor::new(&world.provider), "alice", 2).await;
    session(&oidc, &mut Visitor::new(&world.provider), "bob", 3).await;
    world.gone("by-sub");
    drop(oidc);
    let oidc = world.gateway("by-sub");
    assert_eq!(oidc.sessions(), 3);
    alice.log_out(&oidc.end_session(None).await.unwrap().unwrap()).await;
    let out = world.received().await.out.unwrap();
    assert_eq!((out.by, out.sessions), (By::Sub, vec![key(1), key(2)]));
}

/// R2: a login whose end overtakes it is not completed; the next one is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r2_an_end_that_overtakes_its_login_counts() {
    let world = World::new(Claims::IdToken).await;
    let oidc = world.gateway("ES256");
    let mut alice = Visitor::new(&world.provider);
    let first = login(&oidc, &mut alice, "alice").await;
    alice.log_out(&oidc.end_session(None).await.unwrap().unwrap()).await;
    assert!(world.received().await.out.unwrap().sessions.is_empty());
    let error = why(oidc.register(key(1), &first, first.issued + 60).await);
    assert!(matches!(error, OidcError::Ended), "{error}");
    assert_eq!(oidc.sessions(), 0);
    session(&oidc, &mut alice, "alice", 2).await;
}

/// R6: what could not be ended is not called ended, and the provider may say it again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r6_an_end_that_could_not_be_done_is_told_and_can_come_again() {
    let world = World::new(Claims::IdToken).await;
    let oidc = world.gateway("EdDSA");
    let mut alice = Visitor::new(&world.provider);
    session(&oidc, &mut alice, "alice", 1).await;
    world.fails(true);
    alice.log_out(&oidc.end_session(None).await.unwrap().unwrap()).await;
    let received = world.received().await;
    assert_eq!(received.out.unwrap().sessions, [key(1)]);
    assert!(oidc.has_ended(&key(1)) && oidc.to_end() == [key(1)], "nothing of it is to be served");
    enforcer_tests::process::eventually("the provider hears it", enforcer_tests::process::BOUND, || {
        world.provider.log().contains("backchannel.error").then_some(())
    });
    assert_eq!(oidc.backchannel(&received.form).await.unwrap().sessions, [key(1)]);
}

/// R7: keys that the provider has changed are fetched at once, and nonsense makes nobody ask for more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r7_other_keys_are_fetched_when_they_are_needed_and_not_more_often() {
    let world = World::new(Claims::IdToken).await;
    let oidc = world.gateway("RS256");
    assert_eq!(login(&oidc, &mut Visitor::new(&world.provider), "alice").await.user, "alice");
    assert_eq!(world.provider.asked("GET /jwks"), 1);
    world.provider.rotate();
    assert_eq!(login(&oidc, &mut Visitor::new(&world.provider), "alice").await.user, "alice");
    assert_eq!(world.provider.asked("GET /jwks"), 2);
    // a good form, signed by nobody whom the provider knows
    let token = "eyJhbGciOiJFUzI1NiIsImtpZCI6IngifQ.e30.AAAA";
    for _ in 0..50 {
        let error = why(oidc.backchannel(format!("logout_token={token}").as_bytes()).await);
        assert!(matches!(error, OidcError::Token { why: TokenError::UnknownKey, .. }), "{error}");
    }
    assert_eq!(world.provider.asked("GET /jwks"), 2);
    for form in
        ["", "logout_token=", "logout_token=a.b.c", &format!("logout_token={token}&logout_token={token}")]
    {
        let error = why(oidc.backchannel(form.as_bytes()).await);
        assert!(matches!(error, OidcError::Token { why: TokenError::Form, .. }), "{form}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_provider_nobody_logs_in() {
    let mut world = World::new(Claims::IdToken).await;
    let oidc = world.gateway("RS256");
    let (came, cookie) = come(&oidc, &mut Visitor::new(&world.provider), "alice").await;
    let fresh = world.gateway("ES256");
    // one who would have to believe another one's certificate
    let settings = Settings { issuer: world.provider.issuer(), roots: None, ..world.settings("PS256") };
    let stranger = world.gateway_with(settings);
    let error = why(stranger.begin(BACK, "/").await);
    assert!(matches!(error, OidcError::Provider(_)) && error.to_string().contains("TLS"), "{error}");
    // one who expects another name
    let issuer = format!("https://localhost:{}/", world.provider.port);
    let other = world.gateway_with(Settings { issuer, ..world.settings("EdDSA") });
    let error = why(other.begin(BACK, "/").await);
    assert!(error.to_string().contains("has to be exactly that"), "{error}");
    world.provider.stop();
    let error = why(oidc.finish(&came.query, Some(cookie.as_bytes())).await);
    assert!(matches!(error, OidcError::Provider(_)) && error.status() == 503, "{error}");
    assert!(error.to_string().contains("/token: cannot connect"), "{error}");
    let error = why(fresh.begin(BACK, "/").await);
    assert!(error.to_string().contains("/.well-known/openid-configuration: cannot connect"), "{error}");
    assert!(matches!(
        why(fresh.backchannel(b"logout_token=eyJhbGciOiJFUzI1NiJ9.e30.AAAA").await),
        OidcError::Provider(_)
    ));
}
