//! What becomes of each kind of cookie, in both directions.

use std::time::Duration;

use enforcer::web::cookie::{Place, Scope, SetCookie};
use enforcer::web::learned::{Bounds, Entry, Learned};
use enforcer::web::seal::{is_sealed, sealed_len};
use enforcer::web::sealing::{
    Clear, MAX_DELETIONS, MAX_LOGOUT, Note, OutgoingError, Oversized, Policy, Recent, ScriptSet, Why, logout,
};
use proptest::prelude::*;

use super::world::{World, group};

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
    world.path = "/app/a/b/page";
    assert_eq!(
        world.got(&cookie).2,
        ["sid=; Path=/", "sid=; Path=/app", "sid=; Path=/app/a", "sid=; Path=/app/a/b"]
    );
}

/// R3: who asks for a path with a `;` gets no attributes of his choice into a deletion, and no other place deleted.
#[test]
fn r3_what_is_asked_for_gets_into_no_deletion() {
    let mut world = World::new();
    for path in ["/app;Domain=example/page", "/a\tb/page", "/%0d%0a;x/page", "/\u{e9}/page"] {
        world.path = path;
        let news = world.outgoing(&["sid=secret"], &[]).news;
        assert!(!news.iter().any(|entry| matches!(entry, Entry::Place { .. })), "{path}: {news:?}");
        let cookie = world.set("sid=secret");
        world.another_session();
        let (got, why, deleted) = world.got(&cookie);
        assert_eq!((got.as_str(), why, deleted), ("", vec![Why::Stale], NONE), "{path}");
    }
    // and its twin
    world.path = "/app/page;Domain=example?a;b";
    let cookie = world.set("sid=secret");
    world.another_session();
    assert_eq!(world.got(&cookie).2, ["sid=; Path=/app"]);
}

/// R7: an application that names no path sets its cookie wherever somebody asks. That fills no table: where there are
/// more places than are kept, a stale cookie is deleted in each folder of what is asked for.
#[test]
fn r7_who_asks_for_many_paths_hides_no_stale_cookie() {
    let mut world = World::new();
    world.set("sid=secret; Path=/app/deep");
    let paths: Vec<String> = (0..100).map(|number| format!("/{number:03}/page")).collect();
    for path in paths {
        world.path = path.leak();
        world.set("sid=secret");
    }
    assert_eq!(world.learned.places(&group("app"), b"sid").count(), 3);
    world.path = "/app/deep/er/page";
    let cookie = world.set("sid=secret");
    world.another_session();
    let deleted = world.got(&cookie).2;
    assert_eq!(
        deleted,
        ["sid=; Path=/", "sid=; Path=/app", "sid=; Path=/app/deep", "sid=; Path=/app/deep/er"]
    );
}

/// R3: hosts of one group share a `Domain` cookie: it opens on each of them. To a host of another group the browser sends
/// it as well; that application does not get it, and the browser keeps it.
#[test]
fn r3_a_domain_cookie_opens_on_each_host_of_its_group_and_stays_beside_the_others() {
    let mut world = World::new();
    world.host = "one.example";
    let cookie = world.set("sid=shared; Domain=example; Path=/");
    let own = world.set("own=1; Path=/");
    for host in ["one.example", "two.example", "example"] {
        world.host = host;
        assert_eq!(world.got(&cookie), ("sid=shared".to_owned(), vec![], NONE), "{host}");
        assert_eq!(world.got("sid=planted").1, [Why::Unsealed], "{host}");
    }
    // another group's host, whose application has a cookie of that name in that place too
    world.host = "three.example";
    world.policy.group = group("other");
    for _ in 0..2 {
        let (got, why, deleted) = world.got(&format!("a=1; {cookie}; {own}"));
        assert_eq!((got.as_str(), why), ("a=1", vec![Why::OtherGroup; 2]));
        assert_eq!(deleted, NONE);
        world.set("sid=theirs; Domain=example; Path=/");
        world.later();
    }
    // in the next session it is stale on all of them
    world.another_session();
    world.host = "two.example";
    world.policy.group = group("app");
    let (got, why, deleted) = world.got(&cookie);
    assert_eq!((got.as_str(), why), ("", vec![Why::Stale]));
    assert_eq!(deleted, ["sid=; Path=/; Domain=example"]);
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
        ("sid[]=planted", Why::Unsealed),
        ("sid%00x=planted", Why::Unsealed),
        ("+sid=planted", Why::Unsealed),
        ("secure sid=planted", Why::Smuggled),
        ("a=1 sid =planted", Why::Smuggled),
        ("a=1\tsid\t=planted", Why::Smuggled),
        ("a,sid=planted", Why::Smuggled),
        ("a=1, sid = planted", Why::Smuggled),
        ("$Version=1,sid=planted", Why::Smuggled),
        ("\"sid\"=planted", Why::Smuggled),
        ("(sid=planted", Why::Smuggled),
        ("a=\"x\\\"sid=planted\"", Why::Smuggled),
    ] {
        assert_eq!(world.got(field).1, [why], "{field}");
    }
    assert_eq!(world.got("csrftoken=x,sid=planted").1, [Why::Smuggled], "nor on the allowlist's ticket");
    // and its twins pass
    for field in [
        "side=x",
        "a=sid=x",
        "a= sid=x",
        "sid=",
        "sid",
        "a=1,b=2",
        "sid =",
        "csrftoken=a,b=c",
        "from=/page?sid=x&y=z",
        "a={\"from\":\"/page?sid=x\"}",
        "a sid",
        "a,sid",
    ] {
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
    let refused = world.sealing().outgoing(&["a=1", &long], &[], world.now);
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
    let first = world.sealing().outgoing(&fields, &[], world.now).unwrap();
    assert_eq!(first.news.len(), 2, "a name and a place, each once: {:?}", first.news);
    assert_eq!(world.outgoing(&fields, &[]).news, first.news);
    assert!(world.outgoing(&fields, &[]).news.is_empty());
    let elsewhere = world.outgoing(&["sid=3; Path=/x"], &[]).news;
    let place =
        Place { scope: Scope::Host(b"app.example".to_vec()), path: b"/x".to_vec(), partitioned: false };
    assert_eq!(elsewhere, [Entry::Place { group: group("app"), name: b"sid".to_vec(), place, stated: true }]);
    // a domain that the browser refuses: sealed, and nowhere to be found
    let news = world.outgoing(&["bad=1; Domain=elsewhere.example"], &[]).news;
    assert!(matches!(news[..], [Entry::Sealed { .. }]), "{news:?}");
}

#[test]
fn a_logout_deletes_what_the_host_has_and_the_unsealed_ones_first() {
    let mut world = World::new();
    world.set("sid=1; Path=/app");
    world.set("csrftoken=1; Path=/");
    world.set("wide=1; Domain=example; Path=/");
    world.host = "elsewhere.example";
    world.set("not-here=1; Path=/");
    world.host = "app.example";
    let ours = world.policy.clone();
    world.policy.group = group("other");
    world.set("theirs=1; Path=/");
    world.set("sid=1; Path=/app");
    let theirs = world.policy.clone();
    let said = |policies: &[&Policy], secure, clear| {
        let logout = logout(&world.learned, policies.iter().copied(), b"app.example", secure, clear);
        assert_eq!(logout.left_out, 0);
        let names = logout.set_cookies.iter().map(|field| {
            let cookie = SetCookie::parse(field);
            assert!(cookie.deletes(std::time::UNIX_EPOCH));
            String::from_utf8(cookie.name().to_vec()).unwrap()
        });
        (names.collect::<Vec<_>>(), logout.clear_site_data)
    };
    let host_alone = Some("\"cache\", \"storage\"");
    assert_eq!(said(&[&ours], true, Clear::Host), (strings(["csrftoken", "wide", "sid"]), host_alone));
    let both = strings(["csrftoken", "wide", "sid", "theirs"]);
    assert_eq!(said(&[&ours, &theirs, &ours], true, Clear::Host), (both, host_alone));
    let (_, whole_site) = said(&[], true, Clear::Site);
    assert_eq!(whole_site, Some("\"cache\", \"cookies\", \"storage\""));
    assert_eq!(said(&[&ours], false, Clear::Site).1, None);
}

fn strings<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).to_vec()
}

#[test]
fn r7_a_logout_fits_into_a_head_and_says_what_is_left_out() {
    let mut world = World::new();
    for number in 0..200 {
        world.set(&format!("sealed-{number}=x; Path=/"));
    }
    world.set("csrftoken=x; Path=/");
    let logout = logout(&world.learned, [&world.policy], b"app.example", true, Clear::Host);
    let length: usize = logout.set_cookies.iter().map(|field| field.len() + 14).sum();
    assert!(length <= MAX_LOGOUT && length + 150 > MAX_LOGOUT, "{length}");
    assert!(logout.set_cookies[0].starts_with(b"csrftoken=;"), "what would survive comes first");
    assert_eq!(logout.set_cookies.len() + logout.left_out, 201);
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
        let sealed = world.sealing().outgoing(&[&field], &[], world.now).unwrap();
        world.learn(&sealed.news);
        let original = SetCookie::parse(&field);
        if sealed.fields.is_empty() { return Ok(()); }
        let kept = SetCookie::parse(&sealed.fields[0]);
        prop_assert_eq!(kept.with_value(original.value()), field.clone());
        if !is_sealed(kept.value()) {
            prop_assert_eq!(&sealed.fields[0], &field);
            return Ok(());
        }
        let sent = beside_a_neighbour(kept.name(), kept.value());
        let got = world.sealing().incoming(&[&sent], world.now.steady);
        prop_assert_eq!(got.fields, vec![beside_a_neighbour(original.name(), original.value())]);
        let _ = world.sealing().incoming(&[before.as_bytes()], world.now.steady);
    }

    /// What was let through once is let through again, byte for byte: nothing is left that a second look would strip.
    #[test]
    fn looking_again_changes_nothing(fields in prop::collection::vec(bytes(60), 0..4)) {
        let mut world = World::new();
        world.learn_sealed(b"sid");
        let once = world.sealing().incoming(&fields, world.now.steady);
        let again = world.sealing().incoming(&once.fields, world.now.steady);
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
