//! Cookie fields: `Set-Cookie` and `Cookie`, sealed and opened, and the lines in which it is kept what was learned.
//!
//! First byte: what the rest is. Beside "no bytes make it panic": whatever is set is handed back with the same bytes,
//! every byte of a field but its value stays, and nothing that was not sealed opens.

#[path = "../../../enforcer/tests/web/world.rs"]
mod world;

use std::time::UNIX_EPOCH;

use enforcer::web::cookie::{Folded, Rewritten, SetCookie, join, pairs, parse_date, rewrite};
use enforcer::web::learned::{Entry, Learned};
use enforcer::web::seal::{Token, is_sealed};
use enforcer::web::sealing::{Deletion, MAX_DELETIONS, Oversized, ScriptSet};
use world::World;

pub fn body(input: &[u8]) {
    let Some((&first, bytes)) = input.split_first() else { return };
    // what HTTP would not carry does not come here
    let field: Vec<u8> =
        bytes.iter().copied().filter(|&byte| byte == b'\t' || (byte >= b' ' && byte != 0x7f)).collect();
    match first % 5 {
        0 => set(&field, first),
        1 => sent(&field, first),
        2 => sealed(&field),
        3 => line(bytes),
        _ => words(&field),
    }
}

/// A world whose policy this byte decides, in which `sid` was sealed.
fn world(choice: u8) -> World {
    let mut world = World::new();
    world.policy.oversized = [Oversized::Pass, Oversized::Strip][usize::from(choice / 8 % 2)];
    world.policy.script_set = [ScriptSet::Pass, ScriptSet::Strip][usize::from(choice / 16 % 2)];
    world.learn_sealed(b"sid");
    world
}

fn set(field: &[u8], choice: u8) {
    let mut world = world(choice);
    let outgoing =
        world.sealing().outgoing(&[field], &[], world.now).expect("nothing is refused by this policy");
    let original = SetCookie::parse(field);
    for entry in outgoing.news {
        assert_eq!(Entry::read(&entry.write()).as_ref(), Some(&entry));
        world.learned.learn(entry);
    }
    let Some(written) = outgoing.fields.first() else {
        assert_eq!(outgoing.notes.len(), 1);
        return;
    };
    let written = SetCookie::parse(written);
    assert_eq!(written.with_value(original.value()), field);
    if written.value() == original.value() {
        return;
    }
    assert!(is_sealed(written.value()) && !original.deletes(world.now.wall));
    let in_request = |value: &[u8]| match original.name() {
        b"" => value.to_vec(),
        name => [name, b"=", value].concat(),
    };
    let incoming = world.incoming(&[in_request(written.value())]);
    assert_eq!(incoming.fields, [in_request(original.value())]);
    if let Some(place) = original.place(world.host.as_bytes(), world.path.as_bytes()) {
        let deletion = place.deletion(original.name(), true);
        let read = SetCookie::parse(&deletion);
        assert!(read.deletes(UNIX_EPOCH) && read.place(world.host.as_bytes(), b"/elsewhere") == Some(place));
        assert_eq!(read.name(), original.name());
    }
}

fn sent(field: &[u8], choice: u8) {
    let world = world(choice);
    // cut as HTTP/2 may cut it
    let crumbs: Vec<&[u8]> = field.split(|&byte| byte == b'\t').collect();
    let incoming = world.incoming(&crumbs);
    let count = |fields: &[Vec<u8>]| fields.iter().map(|field| pairs(field).count()).sum::<usize>();
    let before: usize = crumbs.iter().map(|crumb| pairs(crumb).count()).sum();
    assert_eq!(count(&incoming.fields) + incoming.stripped.len(), before);
    assert!(incoming.deletions.len() <= MAX_DELETIONS);
    for field in &incoming.fields {
        for pair in pairs(field) {
            // none of this session's: nobody has sealed anything
            assert!(!is_sealed(pair.value()) && !pair.name().eq_ignore_ascii_case(b"__Host-enforcer"));
            assert!(
                Folded::of(pair.name()) != Folded::of(b"sid")
                    || pair.value().is_empty()
                    || pair.value().len() > 3_000
            );
        }
    }
    let again = world.incoming(&incoming.fields);
    assert_eq!(again.fields, incoming.fields);
    assert!(again.stripped.is_empty());
    let owed: Vec<Deletion> = incoming.deletions;
    let answer = world.sealing().outgoing::<&[u8]>(&[], &owed, world.now).expect("nothing is set");
    assert_eq!(answer.fields.len(), owed.len());
    if incoming.stripped.is_empty() {
        assert_eq!(join(&incoming.fields), join(&crumbs));
    }
}

fn sealed(value: &[u8]) {
    let world = world(0);
    for name in [&b"sid"[..], b""] {
        assert_eq!(world.sealer.open(&world.groups[0], name, value), None);
        assert_eq!(world.sealer.open(&world.groups[0], name, &[b"es1.", value].concat()), None);
    }
    if let Some(token) = Token::parse(value) {
        assert_eq!(token.write().as_bytes(), value);
    }
}

fn line(bytes: &[u8]) {
    let text = super::text(bytes);
    if let Some(entry) = Entry::read(text) {
        assert_eq!(entry.write(), text);
        let mut learned = Learned::default();
        learned.learn(entry.clone());
        assert!(!learned.is_news(&entry));
    }
    // a users file; a hash that a line of it holds is not computed
    if let Err((number, what)) = enforcer::web::users::Users::parse(bytes) {
        assert!(number > 0 && what.len() < 2_000);
    }
}

fn words(field: &[u8]) {
    if let Some(at) = parse_date(field) {
        // the years 1601 to 9999
        assert!((-11_644_473_600..253_402_300_800).contains(&at));
    }
    let mut count = 0;
    let all = rewrite(field, |_| {
        count += 1;
        enforcer::web::cookie::Fate::Strip
    });
    assert_eq!(count, pairs(field).count());
    assert_eq!(all, if count == 0 { Rewritten::Same } else { Rewritten::Gone });
}
