//! The writer, as a reader sees it after each step. Here the memory is a file's; in the kernel, see
//! `tests/dataplane_packed.rs`.

use std::collections::BTreeMap;
use std::fs::File;

use enforcer_ebpf::layout::{Address, AddressKey, FOREVER, LEASED};
use enforcer_ebpf::packed::{Bloom, Bucket, Line, Place, SLOTS, TICK_NS, Table};
use proptest::prelude::*;

use super::*;

/// The files behind a table.
struct Files([File; 3], u32);

impl Files {
    fn new(buckets: u32) -> Self {
        let sized = |size: usize| {
            let file = tempfile::tempfile().unwrap();
            file.set_len(size as u64 * u64::from(buckets)).unwrap();
            file
        };
        Self(
            [Bloom::BITS as usize / 8, size_of::<Line>(), size_of::<Bucket<AddressKey>>()].map(sized),
            buckets,
        )
    }

    fn memory(&self) -> Memory<AddressKey> {
        Memory::of([&self.0[1], &self.0[2]], self.1)
    }

    fn blooms(&self) -> Blooms {
        Blooms::of(&self.0[0], self.1)
    }

    /// A writer that takes over what is there.
    fn open(&self, secret: HashKeys, plain: &BTreeMap<u32, Standing>) -> Packed<AddressKey> {
        Packed::with(self.blooms(), self.memory(), secret, plain.keys().map(|number| key(*number))).unwrap()
    }
}

fn key(number: u32) -> AddressKey {
    AddressKey { address: Address::v4(u32::to_be(0x0a00_0000 + number)), netns: 7 }
}

/// A secret under which every key has the same places, and one under which they spread.
fn secrets() -> [HashKeys; 2] {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let spread = std::array::from_fn(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    });
    [alike(), spread]
}

/// What makes the product of the third and the fourth word 0, and with it the hash of every key here.
fn alike() -> HashKeys {
    let mut secret = HashKeys::default();
    secret[3] = 0_u64.wrapping_sub(Address::v4(0).word(2).into());
    secret
}

fn standing(revocation: u64) -> Standing {
    Standing { revocation, expires_ns: FOREVER, hits: 0, last_ns: 0 }
}

struct Reader<'a>(&'a Packed<AddressKey>);

impl Table<AddressKey> for Reader<'_> {
    type Found = Spot;

    fn bloom(&self, bucket: u32) -> Option<Bloom> {
        self.0.blooms.word(bucket).map(|word| word.load(Ordering::Relaxed))
    }

    fn line(&self, bucket: u32) -> Option<[u64; 4]> {
        self.0.memory.words(bucket)
    }

    fn search(&self, bucket: u32, slots: u32, key: &AddressKey) -> Option<Spot> {
        Memory::<AddressKey>::spots(bucket)
            .filter(|spot| slots >> spot.slot & 1 != 0)
            .find(|spot| self.0.memory.key(*spot).as_ref() == Some(key))
    }
}

/// The table and the plain map that goes with it, kept as `Standings` keeps them, beside a model.
struct World {
    files: Files,
    secret: HashKeys,
    table: Packed<AddressKey>,
    plain: BTreeMap<u32, Standing>,
    model: BTreeMap<u32, u64>,
}

impl World {
    fn new(buckets: u32, secret: HashKeys) -> Self {
        let files = Files::new(buckets);
        let table = files.open(secret, &BTreeMap::new());
        Self { files, secret, table, plain: BTreeMap::new(), model: BTreeMap::new() }
    }

    fn put(&mut self, number: u32, revocation: u64) {
        let key = key(number);
        let new = standing(revocation);
        let places = self.table.places(key);
        match self.table.find(&places) {
            Some(spot) => {
                let old = self.table.memory().read(spot).unwrap();
                assert!(self.table.overwrite(spot, old, new));
            }
            None if self.plain.contains_key(&number) => {
                self.plain.insert(number, new);
            }
            None => {
                if !self.table.insert(&places, new) {
                    self.table.enters_plain(&places);
                    self.plain.insert(number, new);
                }
            }
        }
        self.model.insert(number, revocation);
    }

    fn remove(&mut self, number: u32) {
        let places = self.table.places(key(number));
        if let Some(spot) = self.table.find(&places) {
            self.table.remove(&places, spot);
        } else if self.plain.remove(&number).is_some() {
            self.table.leaves_plain(&places);
        }
        self.model.remove(&number);
    }

    fn find(&self, key: AddressKey) -> Option<Spot> {
        self.table.find(&self.table.places(key))
    }

    fn blooms(&self) -> Vec<Bloom> {
        let word = |bucket| self.table.blooms.word(bucket).unwrap().load(Ordering::Relaxed);
        (0..self.files.1).map(word).collect()
    }

    /// The writer dies, and another one comes.
    fn restart(&mut self) {
        self.table = self.files.open(self.secret, &self.plain);
    }

    fn check(&self, keys: u32) {
        let reader = Reader(&self.table);
        for number in 0..keys {
            let key = key(number);
            let secret = |at: usize| self.secret[at];
            let seen = match packed::find(&reader, self.files.1, secret, &key) {
                Place::Here(spot) => self.table.memory().read(spot).map(|standing| standing.revocation),
                Place::Plain => self.plain.get(&number).map(|standing| standing.revocation),
                Place::Nowhere => None,
            };
            assert_eq!(seen, self.model.get(&number).copied(), "key {number}, as a program sees it");
        }
        let mut all = BTreeMap::new();
        self.table.memory().each(|key, standing| {
            assert!(all.insert(key.address.word(3), standing.revocation).is_none(), "twice");
        });
        assert_eq!(all.len() + self.plain.len(), self.model.len());
        assert_eq!(self.table.used(), all.len() as u64);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Put(u32, u64),
    Remove(u32),
    Restart,
    /// A grace period goes by.
    Wait,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..60_u32, 1..9_u64).prop_map(|(number, revocation)| Step::Put(number, revocation)),
        5 => (0..60_u32).prop_map(Step::Remove),
        1 => Just(Step::Restart),
        1 => Just(Step::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// R1, R3: whatever is put in and taken out, a program finds exactly what stands; also where every key wants the
    /// same places, more of them than there is room for.
    #[test]
    fn r1_r3_a_program_finds_what_stands_and_nothing_else(
        steps in proptest::collection::vec(step(), 1..120), buckets in 1..6_u32, which in 0..2_usize,
    ) {
        let mut world = World::new(buckets, secrets()[which]);
        for step in steps {
            match step {
                Step::Put(number, revocation) => world.put(number, revocation),
                Step::Remove(number) => world.remove(number),
                Step::Restart => world.restart(),
                Step::Wait => world.table.wait(),
            }
            world.check(60);
        }
    }
}

/// Hash floods: a lookup asks two lines and the plain map, whatever keys somebody chooses.
#[test]
fn a_flood_of_keys_for_one_place_goes_into_the_plain_map() {
    let mut world = World::new(4, alike());
    for number in 0..200 {
        world.put(number, 1);
    }
    world.check(200);
    assert!(world.plain.len() >= 200 - 2 * SLOTS, "{} went there", world.plain.len());
    for number in 0..200 {
        world.remove(number);
    }
    world.check(200);
    // 255 and more would stay; fewer are counted down again
    assert_eq!(world.table.memory().words(0).map(|words| packed::elsewhere(&words)), Some(0));
    assert_eq!(world.blooms(), [0; 4], "and of nobody is a bit left");
}

/// An honest packet pays for bits that nobody has any more: they go with the key, unless another key has them.
#[test]
fn bits_go_with_their_key_and_not_with_another() {
    let mut world = World::new(8, secrets()[1]);
    let of = |world: &World, numbers: std::ops::Range<u32>| {
        let mut words = vec![0; 8];
        for number in numbers {
            let places = world.table.places(key(number));
            words[places.home as usize] |= places.bits;
        }
        words
    };
    for number in 0..60 {
        world.put(number, 1);
    }
    assert_eq!(world.blooms(), of(&world, 0..60));
    for number in 20..60 {
        world.remove(number);
    }
    assert_eq!(world.blooms(), of(&world, 0..20), "nobody was elsewhere");
    world.check(60);
    // a writer died after it had set bits, and before there was an entry
    world.table.blooms.word(3).unwrap().store(Bloom::MAX, Ordering::Relaxed);
    world.restart();
    assert_eq!(world.blooms(), of(&world, 0..20));
    // R1: ... and whatever else has come over them
    for bucket in 0..8 {
        world.table.blooms.word(bucket).unwrap().store(0, Ordering::Relaxed);
    }
    world.restart();
    world.check(60);
}

/// R1: where keys are elsewhere, nobody knows whose bits can go: they stay, until nobody is elsewhere.
#[test]
fn r1_bits_stay_while_a_key_is_elsewhere() {
    let mut world = World::new(4, alike());
    for number in 0..=SLOTS as u32 {
        world.put(number, 1);
    }
    let home = world.table.places(key(0)).home;
    let word = |world: &World| world.blooms()[home as usize];
    let bits = word(&world);
    world.remove(2);
    assert_eq!(word(&world), bits);
    world.check(20);
    world.remove(SLOTS as u32);
    world.check(20);
    for number in 0..SLOTS as u32 {
        world.remove(number);
    }
    assert_eq!(word(&world), 0);
}

/// R3: of who reads slowly, nobody gets another entry in the slot that he looks at.
#[test]
fn r3_a_freed_slot_gets_no_other_entry_before_a_grace_period_is_over() {
    let mut world = World::new(1, secrets()[1]);
    for number in 0..SLOTS as u32 {
        world.put(number, 1);
    }
    let spot = world.find(key(3)).unwrap();
    // as if the period took for ever
    world.table.grace = Grace::stuck();
    world.remove(3);
    world.put(100, 2);
    assert_eq!(world.find(key(100)), None, "it is in the plain map: no slot can be used yet");
    assert_eq!(world.table.memory().key(spot), Some(key(3)), "a slow reader still sees the whole old entry");
    world.check(101);
    world.restart();
    world.put(101, 3);
    assert_eq!(world.find(key(101)), Some(spot), "by now nobody can be looking at it");
    world.check(102);
}

/// R5: what a writer leaves that dies between two steps is put right, and nothing that stood is missing.
#[test]
fn r5_whatever_a_writer_leaves_half_done_is_put_right() {
    let mut world = World::new(2, alike());
    for number in 0..40 {
        world.put(number, 1);
    }
    let memory = world.files.memory();
    let free_one = |memory: &Memory<AddressKey>| {
        let spot = Spot { bucket: 0, slot: 2 };
        let gone = memory.key(spot).unwrap();
        memory.tag(spot).unwrap().store(FREED, Ordering::Relaxed);
        gone
    };
    // removing: the tag is gone, and nothing else was done
    let gone = free_one(&memory);
    let number = u32::from_be(gone.address.word(3)) - 0x0a00_0000;
    world.model.remove(&number);
    // adding: counted as elsewhere, and not there yet
    memory.in_other(0).unwrap().fetch_add(1, Ordering::Relaxed);
    memory.in_plain(1).unwrap().fetch_add(1, Ordering::Relaxed);
    // adding: the entry is written, and its tag is not
    world.restart();
    world.check(40);
    assert_eq!(memory.with_tag(0, FREED).count(), 0);
    assert_eq!(memory.in_plain(1).unwrap().load(Ordering::Relaxed), 0);
    world.put(number, 5);
    assert_eq!(world.find(gone), Some(Spot { bucket: 0, slot: 2 }));
    world.check(40);
}

#[test]
fn values_come_back_and_hits_add_up_to_their_end() {
    let mut world = World::new(3, secrets()[1]);
    let full = Standing { revocation: 9, expires_ns: LEASED, hits: 5, last_ns: TICK_NS * 4 };
    assert!(world.table.insert(&world.table.places(key(1)), full));
    let spot = world.find(key(1)).unwrap();
    assert_eq!(world.table.memory().read(spot), Some(full));
    world.table.add(spot, 10, TICK_NS * 3);
    let sum = Standing { hits: 15, ..full };
    assert_eq!(world.table.memory().read(spot), Some(sum), "and the later moment stays");
    world.table.add(spot, u64::MAX, 0);
    assert_eq!(world.table.memory().read(spot).unwrap().hits, u64::from(MOST_HITS));
    let large = Standing { revocation: 1 << 32, ..full };
    assert!(!world.table.insert(&world.table.places(key(2)), large), "a number that has no room in a slot");
    assert_eq!(world.find(key(2)), None);
}
