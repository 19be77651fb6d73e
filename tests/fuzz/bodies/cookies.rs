//! Cookie fields: `Set-Cookie` and `Cookie`, sealed and opened, and the lines in which it is kept what was learned.
//!
//! First byte: what the rest is. Beside "no bytes make it panic": whatever is set is handed back with the same bytes,
//! every byte of a field but its value stays, and nothing that was not sealed opens.

use std::time::{Duration, Instant, UNIX_EPOCH};

use enforcer::web::cookie::{Folded, Rewritten, SetCookie, join, pairs, parse_date, rewrite};
use enforcer::web::learned::{Entry, Learned};
use enforcer::web::seal::{Group, Sealer, SealingSecret, Token, is_sealed};
use enforcer::web::sealing::{Deletion, MAX_DELETIONS, Now, Oversized, Policy, Recent, ScriptSet, Sealing};

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

struct World {
    sealer: Sealer,
    recent: Recent,
    policy: Policy,
    groups: [Group; 2],
    learned: Learned,
}

impl World {
    fn new(choice: u8) -> Option<Self> {
        let groups = [Group::new("app").ok()?, Group::new("other").ok()?];
        let mut policy = Policy::new(groups[0].clone()).with_own(b"__Host-enforcer");
        policy.oversized = [Oversized::Pass, Oversized::Strip][usize::from(choice / 8 % 2)];
        policy.script_set = [ScriptSet::Pass, ScriptSet::Strip][usize::from(choice / 16 % 2)];
        policy.readable.insert(b"csrftoken".to_vec());
        let mut learned = Learned::default();
        learned.learn(Entry::Sealed { group: groups[0].clone(), name: Folded::of(b"sid") });
        let sealer = Sealer::new(&SealingSecret::new().ok()?).ok()?;
        Some(Self { sealer, recent: Recent::default(), policy, groups, learned })
    }

    fn sealing(&self) -> Sealing<'_> {
        Sealing {
            sealer: &self.sealer,
            recent: &self.recent,
            policy: &self.policy,
            groups: &self.groups,
            learned: &self.learned,
            host: b"app.example",
            path: b"/a/b?c",
            secure: true,
        }
    }
}

fn now() -> Now {
    Now { wall: UNIX_EPOCH + Duration::from_secs(1_800_000_000), steady: Instant::now() }
}

fn set(field: &[u8], choice: u8) {
    let Some(mut world) = World::new(choice) else { return };
    let outgoing = world.sealing().outgoing(&[field], &[], now()).expect("nothing is refused by this policy");
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
    assert!(is_sealed(written.value()) && !original.deletes(now().wall));
    let in_request = |value: &[u8]| match original.name() {
        b"" => value.to_vec(),
        name => [name, b"=", value].concat(),
    };
    let incoming = world.sealing().incoming(&[in_request(written.value())], now().steady);
    assert_eq!(incoming.fields, [in_request(original.value())]);
    if let Some(place) = original.place(b"app.example", b"/a/b?c") {
        let deletion = place.deletion(original.name(), true);
        let read = SetCookie::parse(&deletion);
        assert!(read.deletes(UNIX_EPOCH) && read.place(b"app.example", b"/elsewhere") == Some(place));
        assert_eq!(read.name(), original.name());
    }
}

fn sent(field: &[u8], choice: u8) {
    let Some(world) = World::new(choice) else { return };
    // cut as HTTP/2 may cut it
    let crumbs: Vec<&[u8]> = field.split(|&byte| byte == b'\t').collect();
    let incoming = world.sealing().incoming(&crumbs, now().steady);
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
    let again = world.sealing().incoming(&incoming.fields, now().steady);
    assert_eq!(again.fields, incoming.fields);
    assert!(again.stripped.is_empty());
    let owed: Vec<Deletion> = incoming.deletions;
    let answer = world.sealing().outgoing::<&[u8]>(&[], &owed, now()).expect("nothing is set");
    assert_eq!(answer.fields.len(), owed.len());
    if incoming.stripped.is_empty() {
        assert_eq!(join(&incoming.fields), join(&crumbs));
    }
}

fn sealed(value: &[u8]) {
    let Some(world) = World::new(0) else { return };
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
        assert!(learned.learn(entry.clone()).is_none_or(|new| new == entry));
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
