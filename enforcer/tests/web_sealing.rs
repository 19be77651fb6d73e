//! Sealing from the outside: its rules, how real applications read what it lets pass; a corpus of real-life and odd fields goes through unchanged but for the value, and nothing
//! that was changed opens.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

#[path = "web/disk.rs"]
mod disk;
#[path = "web/readers.rs"]
mod readers;
#[path = "web/rules.rs"]
mod rules;
#[path = "web/world.rs"]
mod world;

use std::collections::BTreeSet;

use enforcer::web::cookie::{self, Fate, Rewritten};
use enforcer::web::seal::{PREFIX, Sealer, SealingSecret};
use enforcer::web::sealing::{Policy, Why};
use world::{World, group};

/// The lines of a corpus, with `\xHH`, `\\` and `\{N*TEXT}` read.
fn lines(text: &str) -> Vec<Vec<u8>> {
    text.lines().filter(|line| !line.starts_with('#')).map(read).collect()
}

fn read(line: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once('\\') {
        bytes.extend_from_slice(before.as_bytes());
        rest = match after.as_bytes()[0] {
            b'\\' => {
                bytes.push(b'\\');
                &after[1..]
            }
            b'x' => {
                bytes.push(u8::from_str_radix(&after[1..3], 16).unwrap());
                &after[3..]
            }
            b'{' => {
                let (inside, after) = after[1..].split_once('}').unwrap();
                let (times, text) = inside.split_once('*').unwrap();
                bytes.extend_from_slice(text.repeat(times.parse().unwrap()).as_bytes());
                after
            }
            other => panic!("\\{} in {line}", char::from(other)),
        };
    }
    bytes.extend_from_slice(rest.as_bytes());
    bytes
}

fn set_cookies() -> Vec<(bool, Vec<u8>)> {
    let lines = lines(include_str!("web/set_cookie.txt"));
    let read = |line: Vec<u8>| match line.split_at(5) {
        (b"seal ", field) => (true, field.to_vec()),
        (b"pass ", field) => (false, field.to_vec()),
        _ => panic!("neither seal nor pass: {}", line.escape_ascii()),
    };
    lines.into_iter().map(read).collect()
}

fn cookies() -> Vec<Vec<u8>> {
    lines(include_str!("web/cookie.txt"))
}

/// Where the one sealed value stands in a field: found by its letters alone.
fn sealed_at(field: &[u8]) -> std::ops::Range<usize> {
    let start = field.windows(PREFIX.len()).position(|bytes| bytes == PREFIX).unwrap();
    let letter = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    start..start + field[start..].iter().take_while(|byte| letter(byte)).count()
}

#[test]
fn the_corpus_is_large_and_has_no_line_twice() {
    let (set, sent) = (set_cookies(), cookies());
    assert_eq!(set.iter().collect::<BTreeSet<_>>().len(), set.len());
    assert_eq!(sent.iter().collect::<BTreeSet<_>>().len(), sent.len());
    assert!(set.len() >= 200 && sent.len() >= 90, "{} and {}", set.len(), sent.len());
    // HTTP would not carry others
    let carried = |bytes: &Vec<u8>| bytes.iter().all(|&byte| byte == b'\t' || (byte >= b' ' && byte != 0x7f));
    assert!(set.iter().all(|(_, field)| carried(field)) && sent.iter().all(carried));
}

#[test]
fn every_set_cookie_of_the_corpus_is_the_same_but_for_its_value() {
    let world = World::plain();
    let mut wrong = Vec::new();
    for (sealed, field) in set_cookies() {
        let mut outgoing = world.sealing().outgoing(&[&field], &[], world.now).unwrap();
        assert!(outgoing.notes.is_empty() && outgoing.fields.len() == 1);
        let written = outgoing.fields.remove(0);
        let back = match sealed {
            false => written,
            true if written == field => b"(not sealed)".to_vec(),
            true => {
                let at = sealed_at(&written);
                let name = cookie::SetCookie::parse(&field).name();
                let value = world.sealer.open(&world.policy.group, name, &written[at.clone()]).unwrap();
                assert!(!value.is_empty());
                [&written[..at.start], &value, &written[at.end..]].concat()
            }
        };
        if back != field {
            wrong.push(format!("{}\n  became {}", field.escape_ascii(), back.escape_ascii()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// All of them in one answer: in their order, each as it would be alone.
#[test]
fn many_fields_keep_their_order() {
    let world = World::plain();
    let (sealed, fields): (Vec<bool>, Vec<Vec<u8>>) = set_cookies().into_iter().unzip();
    let outgoing = world.sealing().outgoing(&fields, &[], world.now).unwrap();
    assert_eq!(outgoing.fields.len(), fields.len());
    for ((sealed, field), written) in sealed.into_iter().zip(&fields).zip(&outgoing.fields) {
        let (one, other) = (cookie::SetCookie::parse(field), cookie::SetCookie::parse(written));
        assert_eq!(one.name(), other.name());
        assert!(one.attributes().eq(other.attributes()));
        assert_eq!(sealed, field != written, "{}", field.escape_ascii());
    }
}

#[test]
fn every_cookie_field_of_the_corpus_comes_out_as_it_was_set() {
    let mut world = World::plain();
    for field in cookies() {
        let passed = world.incoming(&[&field]);
        assert_eq!(passed.fields, std::slice::from_ref(&field), "unsealed: {}", field.escape_ascii());
        assert!(passed.stripped.is_empty() && passed.deletions.is_empty());
    }
    for field in cookies() {
        for pair in cookie::pairs(&field) {
            world.learn_sealed(pair.name());
        }
        // as the browser has them
        let sent = cookie::rewrite(&field, |pair| match pair.value() {
            [] => Fate::Keep,
            value => Fate::Value(world.seal(pair.name(), value)),
        });
        let Rewritten::Changed(sent) = sent else { continue };
        assert_ne!(sent, field);
        let opened = world.incoming(&[&sent]);
        assert_eq!(opened.fields, std::slice::from_ref(&field), "sealed: {}", field.escape_ascii());
        assert!(opened.stripped.is_empty(), "{}: {:?}", field.escape_ascii(), opened.stripped);
    }
}

/// R2: the whole corpus in another session, and under another group's policy: not a value of it comes through.
#[test]
fn r2_nothing_of_the_corpus_opens_in_another_session_or_group() {
    let (world, mut other) = (World::plain(), World::plain());
    let mut tried = 0;
    for (_, field) in set_cookies().into_iter().filter(|(sealed, _)| *sealed) {
        let written = world.sealing().outgoing(&[&field], &[], world.now).unwrap().fields.remove(0);
        let cookie = cookie::SetCookie::parse(&written);
        let sent = [cookie.name(), b"=", cookie.value()].concat();
        let stale = other.incoming(&[&sent]);
        assert!(stale.fields.is_empty() && stale.stripped[0].why == Why::Stale);
        assert!(!stale.deletions.is_empty());
        // the same session, another application
        other.sealer = Sealer::new(&SealingSecret::new().unwrap()).unwrap();
        let mut elsewhere = World { policy: Policy::new(group("other")), ..World::plain() };
        std::mem::swap(&mut elsewhere.sealer, &mut other.sealer);
        let value = elsewhere.sealer.seal(&world.policy.group, cookie.name(), b"x").unwrap();
        let sent = [cookie.name(), b"=", &value].concat();
        let kept = elsewhere.incoming(&[&sent]);
        assert!(kept.fields.is_empty() && kept.deletions.is_empty());
        assert_eq!(kept.stripped[0].why, Why::OtherGroup);
        tried += 1;
    }
    assert!(tried > 150, "{tried}");
}

/// R2: 10,000 changed copies of sealed values. Not one opens, and none makes anything panic; the unchanged ones do open.
#[test]
fn r2_no_changed_copy_of_a_sealed_value_opens() {
    let mut world = World::plain();
    let name = b"sid";
    world.learn_sealed(name);
    let values: Vec<Vec<u8>> = [&b"v"[..], b"0123456789abcdef0123456789", &[b'x'; 300]]
        .map(|value| world.seal(name, value))
        .to_vec();
    let mut dice = Dice(0x5eed);
    let (mut tried, mut sent) = (0, 0);
    while tried < 10_000 {
        let value = &values[dice.below(values.len())];
        let mut changed = value.clone();
        for _ in 0..=dice.below(3) {
            change(&mut changed, &values, &mut dice);
        }
        if values.contains(&changed) {
            continue;
        }
        tried += 1;
        for group in &world.groups {
            let opened = world.sealer.open(group, name, &changed);
            assert_eq!(opened, None, "{}", changed.escape_ascii());
        }
        // and in a request, if it is still one cookie there
        let trimmed = cookie::pairs(&changed).map(|pair| pair.value().len()).sum::<usize>() != changed.len();
        if !changed.is_empty() && !trimmed && !changed.contains(&b'=') {
            let field = [name, &b"="[..], &changed].concat();
            let incoming = world.incoming(&[&field]);
            assert!(incoming.fields.is_empty(), "{}", field.escape_ascii());
            assert!(matches!(incoming.stripped[0].why, Why::Stale | Why::Unsealed));
            sent += 1;
        }
    }
    assert!(sent > 5_000, "{sent}");
    for value in values {
        assert!(world.sealer.open(&world.policy.group, name, &value).is_some());
    }
}

fn change(value: &mut Vec<u8>, others: &[Vec<u8>], dice: &mut Dice) {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let at = dice.below(value.len() + 1);
    let to = at + dice.below(value.len() + 1 - at);
    match dice.below(10) {
        0 => value.truncate(at),
        1 => drop(value.drain(at..to)),
        2 => value.insert(at, LETTERS[dice.below(LETTERS.len())]),
        3 => value.push(b"=A .\xff"[dice.below(5)]),
        4 => {
            // two of them, cut and put together
            let other = &others[dice.below(others.len())];
            value.truncate(at);
            value.extend_from_slice(other.get(at..).unwrap_or_default());
        }
        5 => {
            let part = value[at..to].to_vec();
            value.splice(at..at, part);
        }
        6 => {
            let other = dice.below(value.len());
            value.swap(at.min(other), other);
        }
        _ if at == value.len() => value.clear(),
        7 => value[at] ^= 1 << dice.below(8),
        8 => value[at] = LETTERS[dice.below(LETTERS.len())],
        _ => value[at] = value[at].to_ascii_uppercase(),
    }
    if value.is_empty() {
        value.push(b'x');
    }
}

/// Numbers that look random and are the same in every run (splitmix64, in the public domain).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// 0 to `end` - 1; `end` is above 0.
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}
