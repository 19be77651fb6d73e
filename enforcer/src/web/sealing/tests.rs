use std::time::Duration;

use super::*;
use crate::web::cookie::Scope;
use crate::web::learned::{Bounds, Entry};
use crate::web::seal::{SealingSecret, is_sealed, sealed_len};
use proptest::prelude::*;

/// A session at a gateway with two groups. Asks as `app.example` for `/app/page`, over TLS.
struct World {
    sealer: Sealer,
    recent: Recent,
    policy: Policy,
    groups: Vec<Group>,
    learned: Learned,
    steady: Instant,
}

fn group(name: &str) -> Group {
    Group::new(name).unwrap()
}

impl World {
    fn new() -> Self {
        let mut policy = Policy::new(group("app")).with_own(b"__Host-enforcer");
        policy.readable.insert(b"csrftoken".to_vec());
        Self {
            sealer: Sealer::new(&SealingSecret::new().unwrap()).unwrap(),
            recent: Recent::default(),
            policy,
            groups: vec![group("app"), group("other")],
            learned: Learned::default(),
            steady: Instant::now(),
        }
    }

    /// Another session in the same browser, some time later.
    fn another_session(&mut self) {
        self.sealer = Sealer::new(&SealingSecret::new().unwrap()).unwrap();
        self.recent = Recent::default();
    }

    fn sealing(&self) -> Sealing<'_> {
        Sealing {
            sealer: &self.sealer,
            recent: &self.recent,
            policy: &self.policy,
            groups: &self.groups,
            learned: &self.learned,
            host: b"app.example",
            path: b"/app/page?x=/y",
            secure: true,
        }
    }

    fn now(&self) -> Now {
        Now { wall: SystemTime::now(), steady: self.steady }
    }

    fn outgoing(&mut self, fields: &[&str], deletions: &[Deletion]) -> Outgoing {
        let sealed = self.sealing().outgoing(fields, deletions, self.now()).unwrap();
        for entry in sealed.news.clone() {
            self.learned.learn(entry);
        }
        sealed
    }

    /// The application sets a cookie: `name=value` as the browser keeps it.
    fn set(&mut self, field: &str) -> String {
        let sealed = self.outgoing(&[field], &[]);
        let text = String::from_utf8(sealed.fields[0].clone()).unwrap();
        text.split(';').next().unwrap().to_owned()
    }

    fn incoming(&self, fields: &[&str]) -> Incoming {
        self.sealing().incoming(fields, self.steady)
    }

    /// What the application gets of one field, why something was stripped, and where what is deleted.
    fn got(&self, field: &str) -> (String, Vec<Why>, Vec<String>) {
        let incoming = self.incoming(&[field]);
        let field = incoming.fields.first().cloned().unwrap_or_default();
        let deleted = |deletion: &Deletion| {
            let field = String::from_utf8(deletion.field(false)).unwrap();
            field.replace("; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=0", "")
        };
        (
            String::from_utf8(field).unwrap(),
            incoming.stripped.iter().map(|stripped| stripped.why).collect(),
            incoming.deletions.iter().map(deleted).collect(),
        )
    }

    fn later(&mut self) {
        self.steady += Recent::WINDOW;
    }
}

const NONE: Vec<String> = Vec::new();

#[test]
fn a_cookie_goes_to_the_browser_sealed_and_comes_back_open() {
    let mut world = World::new();
    let sealed = world.outgoing(&["sid=secret; Path=/; HttpOnly; Unknown = x "], &[]);
    let field = String::from_utf8(sealed.fields[0].clone()).unwrap();
    assert!(field.starts_with("sid=es1.") && field.ends_with("; Path=/; HttpOnly; Unknown = x "));
    assert!(!field.contains("secret") && sealed.notes.is_empty());
    let cookie = field.split(';').next().unwrap();
    assert_eq!(world.got(&format!("a=1; {cookie}; b=2")), ("a=1; sid=secret; b=2".to_owned(), vec![], NONE));
}

/// R2: what the request is about. B logs in in A's browser: A's cookies do not open, and are deleted where they were set.
#[test]
fn r2_another_session_gets_nothing_of_an_earlier_one() {
    let mut world = World::new();
    let host = world.set("sid=secret; Path=/app");
    let domain = world.set("wide=secret; Domain=.example; Path=/");
    world.another_session();
    let (got, why, deleted) = world.got(&format!("{host}; {domain}; mine=1"));
    assert_eq!(got, "mine=1");
    assert_eq!(why, [Why::Stale, Why::Stale]);
    assert_eq!(deleted, ["sid=; Path=/app", "wide=; Path=/; Domain=example"]);
    // all of a field: it is not sent at all
    assert_eq!(world.incoming(&[&host]).fields, Vec::<Vec<u8>>::new());
}

#[test]
fn r2_a_stale_cookie_of_an_unknown_place_is_deleted_where_it_may_be() {
    let mut world = World::new();
    let cookie = world.set("sid=secret");
    world.another_session();
    world.learned = Learned::default();
    let (got, why, deleted) = world.got(&cookie);
    assert_eq!((got.as_str(), why), ("", vec![Why::Stale]));
    assert_eq!(deleted, ["sid=; Path=/", "sid=; Path=/app"]);
}

/// R3: two applications below one host share the browser's cookies.
#[test]
fn r3_a_cookie_of_another_group_is_kept_in_the_browser_and_from_the_application() {
    let mut world = World::new();
    let cookie = world.set("sid=secret; Path=/");
    world.policy.group = group("other");
    assert_eq!(world.got(&format!("{cookie}; a=1")), ("a=1".to_owned(), vec![Why::OtherGroup], NONE));
    world.policy.group = group("app");
    assert_eq!(world.got(&cookie).0, "sid=secret");
    // of a group that is configured no more nobody knows it
    world.policy.group = group("other");
    world.groups = vec![group("other")];
    assert_eq!(world.got(&cookie).1, [Why::Stale]);
}

#[test]
fn r2_once_sealed_always_sealed() {
    let mut world = World::new();
    assert_eq!(world.got("sid=planted; a=1").0, "sid=planted; a=1", "nobody knows it yet");
    world.set("sid=secret; Path=/");
    world.later();
    let (got, why, deleted) = world.got("sid=planted; a=1");
    assert_eq!((got.as_str(), why), ("a=1", vec![Why::Unsealed]));
    assert_eq!(deleted, ["sid=; Path=/"]);
    // also as an application may read it that is less exact, and inside of other cookies
    for (field, why) in [
        ("SID=planted", Why::Unsealed),
        ("%73id=planted", Why::Unsealed),
        ("a=1,sid=planted", Why::Smuggled),
        ("a=\"1 sid=planted\"", Why::Smuggled),
        ("=sid=planted", Why::Smuggled),
        ("sid = planted", Why::Unsealed),
    ] {
        assert_eq!(world.got(field).1, [why], "{field}");
    }
    assert_eq!(world.got("csrftoken=x,sid=planted").1, [Why::Smuggled], "nor on the allowlist's ticket");
    // and its twins pass
    for field in ["side=x", "a=sid=x", "sid=", "sid", "a=1,b=2", "sid =", "csrftoken=a,b=c"] {
        assert_eq!(world.got(field), (field.to_owned(), vec![], NONE), "{field}");
    }
    // in the other group nobody has sealed it
    world.policy.group = group("other");
    assert_eq!(world.got("sid=theirs").0, "sid=theirs");
}

/// R3: an unsealed cookie may be another application's below the same host: it is not deleted where it may be, as a sealed
/// one is, but only where this application has put one.
#[test]
fn r3_an_unsealed_cookie_is_deleted_only_where_this_application_has_set_it() {
    let mut world = World::new();
    world.set("sid=secret; Path=/elsewhere");
    world.later();
    for field in ["sid=theirs", "SID=theirs"] {
        assert_eq!(world.got(field), (String::new(), vec![Why::Unsealed], NONE), "{field}");
    }
    world.set("sid=secret; Path=/app");
    world.later();
    assert_eq!(world.got("sid=planted").2, ["sid=; Path=/app"]);
    assert_eq!(world.got("SID=theirs").2, NONE);
}

#[test]
fn r7_in_a_full_group_nothing_unsealed_passes_and_that_is_said() {
    let mut world = World::new();
    world.learned = Learned::with_bounds(Bounds { sealed_in_group: 1, ..Bounds::default() });
    let one = world.set("one=1");
    let news = world.outgoing(&["two=2"], &[]).news;
    assert!(news.iter().any(|entry| matches!(entry, Entry::Sealed { .. })), "{news:?}");
    assert!(world.learned.is_full(&group("app")));
    world.later();
    assert_eq!(
        world.got(&format!("{one}; script=1; two=planted; csrftoken=x; empty=")),
        ("one=1; csrftoken=x; empty=".to_owned(), vec![Why::TooManyNames, Why::TooManyNames], NONE)
    );
    let three = world.set("three=3");
    assert_eq!(world.got(&three).0, "three=3");
    assert!(world.outgoing(&["three=3"], &[]).news.is_empty(), "it is full: that is no news any more");
}

#[test]
fn deletions_pass_as_they_are() {
    let mut world = World::new();
    for field in [
        "sid=; Path=/",
        "sid=gone; Max-Age=0",
        "sid=\"\"; expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=0; Path=/",
        "sid=deleted; expires=Thu, 01-Jan-1970 00:00:01 GMT; Max-Age=0; path=/",
    ] {
        let sealed = world.outgoing(&[field], &[]);
        assert_eq!(sealed.fields, [field.as_bytes()]);
        assert!(sealed.news.is_empty() && sealed.notes.is_empty());
    }
}

#[test]
fn the_allowlist_passes_both_ways_and_what_was_sealed_before_it_still_opens() {
    let mut world = World::new();
    let field = "csrftoken=abc; Path=/; SameSite=Lax";
    assert_eq!(world.outgoing(&[field], &[]).fields, [field.as_bytes()]);
    assert_eq!(world.got("csrftoken=abc").0, "csrftoken=abc");
    world.policy.readable.clear();
    let sealed = world.set(field);
    assert_eq!(world.got("csrftoken=abc").1, [Why::Unsealed]);
    world.policy.readable.insert(b"csrftoken".to_vec());
    assert_eq!(world.got(&sealed).0, "csrftoken=abc");
    assert_eq!(world.got("csrftoken=abc").0, "csrftoken=abc");
    assert!(world.outgoing(&["CSRFToken=abc"], &[]).fields[0].starts_with(b"CSRFToken=es1."));
}

#[test]
fn r7_what_is_too_long_goes_by_policy() {
    let mut world = World::new();
    let fits = format!("sid={}; Path=/", "x".repeat(3038));
    let long = format!("sid={}; Path=/", "x".repeat(3039));
    assert_eq!(world.outgoing(&[&fits], &[]).fields[0].len(), "sid=; Path=/".len() + sealed_len(3038));
    assert!(sealed_len(3038) + 3 <= 4096 && sealed_len(3039) + 3 > 4096);
    let refused = world.sealing().outgoing(&["a=1", &long], &[], world.now());
    let error = refused.unwrap_err();
    assert_eq!(error, OutgoingError::Oversized { name: b"sid".to_vec(), length: 3042 });
    assert!(error.to_string().contains("the cookie \"sid\" of 3042 bytes"), "{error}");
    // an unsealed value does not become better by being long
    let value = long.split(';').next().unwrap();
    assert_eq!(world.got(value).1, [Why::Unsealed]);

    world.policy.oversized = Oversized::Strip;
    let stripped = world.outgoing(&["a=1", &long], &[]);
    assert_eq!(stripped.fields.len(), 1);
    assert_eq!(stripped.notes, [Note::StrippedOversized { name: b"sid".to_vec(), length: 3042 }]);
    assert_eq!(world.got(value).1, [Why::Unsealed]);

    world.policy.oversized = Oversized::Pass;
    let passed = world.outgoing(&[&long], &[]);
    assert_eq!(passed.fields, [long.as_bytes()]);
    assert_eq!(passed.notes, [Note::PassedOversized { name: b"sid".to_vec(), length: 3042 }]);
    assert_eq!(world.got(value), (value.to_owned(), vec![], NONE));
    assert_eq!(world.got("sid=short").1, [Why::Unsealed], "one that could have been sealed");
}

#[test]
fn script_set_cookies_go_by_policy() {
    let mut world = World::new();
    assert_eq!(world.got("theme=dark").0, "theme=dark");
    world.policy.script_set = ScriptSet::Strip;
    let sealed = world.set("sid=secret");
    let (got, why, deleted) = world.got(&format!("theme=dark; csrftoken=x; {sealed}"));
    assert_eq!(got, "csrftoken=x; sid=secret");
    assert_eq!((why, deleted), (vec![Why::ScriptSet], NONE));
}

#[test]
fn the_gateways_own_cookie_goes_to_no_application_and_comes_from_none() {
    let mut world = World::new();
    assert_eq!(world.got("__Host-enforcer=token; a=1"), ("a=1".to_owned(), vec![Why::Own], NONE));
    assert_eq!(world.got("__host-ENFORCER=token").1, [Why::Own]);
    assert_eq!(world.got("a=1,__Host-enforcer=token").1, [Why::Smuggled]);
    for field in
        ["__Host-enforcer=evil; Secure; Path=/", "__Host-enforcer=; Max-Age=0", "=__Host-enforcer=evil"]
    {
        let sealed = world.outgoing(&[field, "a=1"], &[]);
        assert_eq!((sealed.fields.len(), sealed.notes.len()), (1, 1), "{field}");
    }
}

#[test]
fn a_cookie_without_a_name() {
    let mut world = World::new();
    let sealed = world.outgoing(&["alone; Path=/"], &[]).fields[0].clone();
    assert!(sealed.starts_with(b"es1.") && sealed.ends_with(b"; Path=/"));
    let sent = String::from_utf8(sealed).unwrap().replace("; Path=/", "");
    assert_eq!(world.got(&sent).0, "alone");
    // browsers send the `=` or do not
    assert_eq!(world.got(&format!("={sent}")).0, "=alone");
    // sealed, a browser would take what it has to refuse
    let field = "=__Secure-x=1; Path=/";
    assert_eq!(world.outgoing(&[field], &[]).fields, [field.as_bytes()]);
}

#[test]
fn duplicates_stay_in_their_order_in_one_field_and_in_several() {
    let mut world = World::new();
    let (one, two) = (world.set("a=1; Path=/app"), world.set("a=2; Path=/"));
    assert_eq!(world.got(&format!("{one}; {two}; {one}")).0, "a=1; a=2; a=1");
    let incoming = world.incoming(&["x=1", &one, &format!("{two};y=2"), ""]);
    assert_eq!(incoming.fields, [&b"x=1"[..], b"a=1", b"a=2;y=2", b""]);
}

/// R3: the stale cookie goes, and the one of the session that runs stays, although they have one name.
#[test]
fn r3_a_stale_cookie_beside_one_that_opens_is_deleted_alone_or_not_at_all() {
    let mut world = World::new();
    let stale = world.set("sid=old; Path=/app");
    world.another_session();
    let new = world.set("sid=new; Path=/");
    world.later();
    // longer paths come first
    let (got, why, deleted) = world.got(&format!("{stale}; {new}"));
    assert_eq!((got.as_str(), why), ("sid=new", vec![Why::Stale]));
    assert_eq!(deleted, ["sid=; Path=/app"]);
    // which is which cannot be told: stripped all the same, and nothing is deleted
    for field in [format!("{stale}; {stale}; {new}"), format!("{new}; {stale}; {stale}")] {
        let (got, why, deleted) = world.got(&field);
        assert_eq!((got.as_str(), why.len(), deleted), ("sid=new", 2, NONE));
    }
    world.set("sid=new; Path=/; Domain=example");
    world.later();
    assert_eq!(world.got(&format!("{stale}; {new}; {new}")).2, ["sid=; Path=/app"; 0]);
    // without the one that opens, all that could have been sent is deleted
    let all = world.got(&stale).2;
    assert_eq!(all, ["sid=; Path=/", "sid=; Path=/app", "sid=; Path=/; Domain=example"]);
}

/// R4: a request that was under way with the stale cookie does not take the new one away.
#[test]
fn r4_a_late_answer_does_not_delete_what_was_set_meanwhile() {
    let mut world = World::new();
    let stale = world.set("sid=old; Path=/");
    world.another_session();
    let late = world.incoming(&[&stale]);
    let login = world.incoming(&[&stale]);
    assert_eq!(late.deletions.len(), 1);
    let answer = world.outgoing(&["sid=new; Path=/"], &login.deletions);
    assert_eq!(answer.fields.len(), 1, "set, and not deleted: {:?}", answer.fields);
    assert!(world.outgoing(&["other=1"], &late.deletions).fields.len() == 1, "the late answer");
    assert!(world.incoming(&[&stale]).deletions.is_empty(), "and one that is later still");
    world.later();
    assert_eq!(world.incoming(&[&stale]).deletions.len(), 1, "after that it is another stale cookie");
}

#[test]
fn deletions_come_before_what_the_application_sets() {
    let mut world = World::new();
    let stale = world.set("sid=old; Path=/");
    world.another_session();
    let deletions = world.incoming(&[&stale]).deletions;
    let fields = world.outgoing(&["a=1", "sid=; Path=/app; Max-Age=0"], &deletions).fields;
    assert_eq!(fields.len(), 3);
    assert!(fields[0].starts_with(b"sid=; Path=/;") && fields[1].starts_with(b"a=es1."));
    // the application deletes it there itself
    let fields = world.outgoing(&["sid=; Path=/; Max-Age=0"], &deletions).fields;
    assert_eq!(fields, [b"sid=; Path=/; Max-Age=0"]);
}

#[test]
fn r7_deletions_are_bounded_and_the_rest_comes_later() {
    let mut world = World::new();
    let cookies: Vec<String> = (0..100).map(|number| world.set(&format!("c{number}=x; Path=/"))).collect();
    world.another_session();
    let first = world.incoming(&[&cookies.join("; ")]);
    assert_eq!((first.stripped.len(), first.deletions.len()), (100, MAX_DELETIONS));
    let gone: Vec<&[u8]> = first.deletions.iter().map(|deletion| deletion.name.as_slice()).collect();
    let left: Vec<&str> = cookies
        .iter()
        .filter(|cookie| !gone.contains(&cookie.split('=').next().unwrap().as_bytes()))
        .map(String::as_str)
        .collect();
    assert_eq!((left.len(), world.incoming(&left).deletions.len()), (100 - MAX_DELETIONS, MAX_DELETIONS));
}

#[test]
fn news_are_said_until_they_are_learned() {
    let mut world = World::new();
    let fields = ["sid=1; Path=/", "sid=2; Path=/"];
    let first = world.sealing().outgoing(&fields, &[], world.now()).unwrap();
    assert_eq!(first.news.len(), 2, "a name and a place, each once: {:?}", first.news);
    assert_eq!(world.outgoing(&fields, &[]).news, first.news);
    assert!(world.outgoing(&fields, &[]).news.is_empty());
    let elsewhere = world.outgoing(&["sid=3; Path=/x"], &[]).news;
    let place =
        Place { scope: Scope::Host(b"app.example".to_vec()), path: b"/x".to_vec(), partitioned: false };
    assert_eq!(elsewhere, [Entry::Place { group: group("app"), name: b"sid".to_vec(), place }]);
    // a domain that the browser refuses: sealed, and nowhere to be found
    let news = world.outgoing(&["bad=1; Domain=elsewhere.example"], &[]).news;
    assert!(matches!(news[..], [Entry::Sealed { .. }]), "{news:?}");
}

fn bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![
        3 => prop::sample::select(b"=;, \"\tabsid%.\x80".to_vec()),
        1 => any::<u8>().prop_filter("no control characters", |byte| *byte >= 0x20 && *byte != 0x7f)
    ];
    prop::collection::vec(byte, 0..most)
}

/// As a browser sends it.
fn beside_a_neighbour(name: &[u8], value: &[u8]) -> Vec<u8> {
    let equals: &[u8] = if name.is_empty() { b"" } else { b"=" };
    [b"a-neighbour-that-stays=1; ", name, equals, value].concat()
}

proptest! {
    /// Whatever an application sets, the browser sends back, and the application gets the bytes that it has set.
    #[test]
    fn rewriting_and_reading_back_gives_the_same_bytes(field in bytes(80), before in "[a-z=; ]{0,12}") {
        let mut world = World::new();
        let sealed = world.sealing().outgoing(&[&field], &[], world.now()).unwrap();
        for entry in sealed.news { world.learned.learn(entry); }
        let original = crate::web::cookie::SetCookie::parse(&field);
        if sealed.fields.is_empty() { return Ok(()); }
        let kept = crate::web::cookie::SetCookie::parse(&sealed.fields[0]);
        prop_assert_eq!(kept.with_value(original.value()), field.clone());
        if !is_sealed(kept.value()) {
            prop_assert_eq!(&sealed.fields[0], &field);
            return Ok(());
        }
        let sent = beside_a_neighbour(kept.name(), kept.value());
        let got = world.sealing().incoming(&[&sent], world.steady);
        prop_assert_eq!(got.fields, vec![beside_a_neighbour(original.name(), original.value())]);
        let _ = world.sealing().incoming(&[before.as_bytes()], world.steady);
    }

    /// What was let through once is let through again, byte for byte: nothing is left that a second look would strip.
    #[test]
    fn looking_again_changes_nothing(fields in prop::collection::vec(bytes(60), 0..4)) {
        let mut world = World::new();
        world.learned.learn(Entry::Sealed { group: group("app"), name: crate::web::cookie::Folded::of(b"sid") });
        let once = world.sealing().incoming(&fields, world.steady);
        let again = world.sealing().incoming(&once.fields, world.steady);
        prop_assert_eq!(&again.fields, &once.fields);
        prop_assert!(again.stripped.is_empty() && again.deletions.is_empty());
        if once.stripped.is_empty() {
            prop_assert_eq!(once.fields, fields);
        }
    }
}

/// A window of this long is said in the documentation.
#[test]
fn just_now_is_a_minute() {
    assert_eq!(Recent::WINDOW, Duration::from_secs(60));
}
