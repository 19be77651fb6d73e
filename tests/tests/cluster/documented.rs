//! What enforcer/docs/cluster.md has people write with etcdctl is what is read.

use std::path::Path;

use enforcer::cluster::{Author, Key, Lift, Now, Over, Record, Value};
use enforcer::session::{Identity, SafeId, WebKey};
use enforcer_tests::process::succeed;

use crate::world::{PREFIX, World, person};

/// The part of the page that is for people with etcdctl.
fn section() -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../enforcer/docs/cluster.md");
    let page = std::fs::read_to_string(page).unwrap();
    let (_, rest) = page.split_once("\n## By hand, with etcdctl\n").expect("the section");
    rest.split("\n## ").next().unwrap().to_owned()
}

/// Key below the prefix and value of each example in the table.
fn table(section: &str) -> Vec<(String, String)> {
    let code = |cell: &str| cell.trim().strip_prefix('`')?.strip_suffix('`').map(str::to_owned);
    let row = |line: &str| {
        let [_, _, key, value, _] = line.split('|').collect::<Vec<_>>().try_into().ok()?;
        Some((code(key)?, code(value)?)).filter(|(key, _)| key.starts_with("from/"))
    };
    section.lines().filter_map(row).collect()
}

/// The shell's examples.
fn scripts(section: &str) -> Vec<String> {
    let block = |part: &str| part.split("```").next().unwrap().to_owned();
    section.split("```sh\n").skip(1).map(block).collect()
}

fn record(by: &str, reason: &str) -> Record {
    Record { by: by.into(), reason: reason.into(), ..Record::default() }
}

const SAFE_ID: &str = "da38fb979ae54b0d3256fbf959580a40afd80709";
const ID: &str = "8f2b6c0d9e4a41d7b3c5e6f708192a3b";

fn hex<const N: usize>(text: &str) -> [u8; N] {
    std::array::from_fn(|n| u8::from_str_radix(&text[2 * n..2 * n + 2], 16).unwrap())
}

/// What each row of the table says that it means, in its order.
fn meant() -> Vec<(Key, Value)> {
    let admin = |over, record| (Key::Record(Author::Admin, over), Value::Record(record));
    let lift = |author, over, lift| (Key::Lift(Author::Admin, author, over), Value::Lift(lift));
    let rene = Identity { realm: "staff".into(), name: "René Roy".into() };
    let until = Record { until: Some(4_102_444_800), ..record("", "on leave") };
    vec![
        admin(Over::User(person("alice")), record("helpdesk", "lost her laptop")),
        admin(Over::User(rene), record("", "")),
        admin(Over::Session(SafeId::from_bytes(hex(SAFE_ID))), record("", "stolen phone")),
        admin(Over::Web(WebKey::from_bytes(hex(ID))), record("", "left it open")),
        admin(Over::Lock(person("alice")), record("", "left the house")),
        admin(Over::Lock(person("bob")), until),
        lift(
            Author::Admin,
            Over::Lock(person("alice")),
            Lift { up_to: 12, by: "helpdesk".into(), ..Lift::default() },
        ),
        lift(
            Author::Gateway(ID.parse().unwrap()),
            Over::User(person("bob")),
            Lift { up_to: 7, ..Lift::default() },
        ),
    ]
}

/// R6: each record of the page is read as the page says, by a gateway that is there and by one that comes later, and nothing
/// in it is odd; and its lines for a shell do what they say.
#[test]
fn r6_the_documented_records_are_read_as_they_are_meant() {
    let section = section();
    let (rows, meant) = (table(&section), meant());
    assert_eq!(rows.len(), meant.len(), "{rows:#?}");
    let world = World::new("clu-documented", 1);
    let mut gateway = world.up(1);
    for ((key, value), (is, says)) in rows.iter().zip(&meant) {
        world.etcd.put(&format!("{PREFIX}{key}"), value);
        gateway.until(key, |view| view.state.contains_key(is));
        assert_eq!(gateway.view.value(is), Some(says), "{key}");
    }

    let scripts = scripts(&section);
    let [safe_id, lift] = scripts.as_slice() else { panic!("{scripts:#?}") };
    let shell = |script: &str| {
        let mut shell = world.etcd.network.command("sh");
        shell.env("ETCDCTL_API", "3").env("ETCDCTL_ENDPOINTS", world.etcd.endpoints().join(","));
        succeed(
            {
                shell.args(["-euc", script]);
                shell
            },
            "",
        )
    };
    assert_eq!(shell(safe_id), SAFE_ID);
    let base64 = safe_id.split('\'').nth(1).unwrap();
    assert_eq!(SafeId::from_bytes(hex(SAFE_ID)).to_string(), base64, "as `show sessions` has it");
    shell(lift);
    let carol = Over::Lock(person("carol"));
    let lifts = Key::Lift(Author::Admin, Author::Admin, carol.clone());
    gateway.until("carol's lift", |view| view.state.contains_key(&lifts));
    let lock = gateway.view.state[&Key::Record(Author::Admin, carol)].clone();
    assert_eq!(lock.now, Now::Is(Value::Record(record("", "left the house"))));
    let lifted = Value::Lift(Lift { up_to: lock.revision, ..Lift::default() });
    assert_eq!(gateway.view.value(&lifts), Some(&lifted), "it lifts what stands there, and no more");

    let late = world.up(2);
    for (is, says) in &meant {
        assert_eq!(late.view.value(is), Some(says));
    }
    let mark = late.view.read;
    gateway.has_read(mark);
    for view in [&gateway.view, &late.view] {
        assert_eq!((&view.malformed, view.untold), (&vec![], 0));
    }
}
