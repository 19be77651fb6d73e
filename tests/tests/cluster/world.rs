//! Gateways that have the adapter alone, each in a namespace of its own; and what each of them knows.

use std::collections::BTreeMap;
use std::sync::mpsc as std_mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use enforcer::cluster::{
    Author, Change, Condition, GatewayId, Key, Known, Now, Op, Order, Outcome, Over, Prefix, Record,
    Revision, Settings, Ticket, Told, Txn, Value, run,
};
use enforcer::session::{Identity, SafeId};
use enforcer_tests::etcd::{Etcd, NOTICED};
use enforcer_tests::{Lab, Namespace};
use tokio::sync::{mpsc, watch};

pub const PREFIX: &str = "/enforcer/v1/";

/// A lab with an etcd in it.
pub struct World {
    // the order in which they end
    pub etcd: Etcd,
    pub lab: Lab,
}

impl World {
    #[track_caller]
    pub fn new(name: &str, members: u8) -> Self {
        Self::with(name, members, enforcer_tests::etcd::Wanted::default())
    }

    #[track_caller]
    pub fn with(name: &str, members: u8, wanted: enforcer_tests::etcd::Wanted) -> Self {
        let lab = Lab::new(name);
        Self { etcd: Etcd::start(&lab, members, wanted), lab }
    }

    /// Gateway number N, with times that a busy machine does not exceed.
    pub fn settings(&self, number: u8) -> Settings {
        Settings {
            gateway: id(number),
            endpoints: self.etcd.endpoints(),
            prefix: Prefix::new(PREFIX).unwrap(),
            tls: None,
            user: None,
            connect_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(20),
            lease: Duration::from_secs(30),
            most: 1_000_000,
            known: None,
        }
    }

    /// One who soon notices that he was cut off, and of whom others soon notice it.
    pub fn quick_settings(&self, number: u8) -> Settings {
        Settings {
            connect_timeout: Duration::from_secs(1),
            request_timeout: Duration::from_secs(2),
            lease: Duration::from_secs(3),
            ..self.settings(number)
        }
    }

    pub fn namespace(&self, number: u8) -> Namespace {
        self.etcd.attach(&self.lab, &format!("gw{number}"), number)
    }

    /// A gateway that runs.
    pub fn gateway(&self, number: u8) -> Gateway {
        Gateway::start(&self.namespace(number), self.settings(number))
    }

    /// One that runs, and is up with the whole state.
    #[track_caller]
    pub fn up(&self, number: u8) -> Gateway {
        let mut gateway = self.gateway(number);
        gateway.until("up", |view| view.up);
        gateway
    }

    /// As [`Self::up`], with [`Self::quick_settings`].
    #[track_caller]
    pub fn quick(&self, number: u8) -> Gateway {
        let mut gateway = Gateway::start(&self.namespace(number), self.quick_settings(number));
        gateway.until("up", |view| view.up);
        gateway
    }
}

pub fn id(number: u8) -> GatewayId {
    GatewayId::from_bytes([number; 16])
}

pub fn person(name: &str) -> Identity {
    Identity { realm: "default".into(), name: name.into() }
}

/// The revocation of a person by that gateway.
pub fn user(number: u8, name: &str) -> Key {
    Key::Record(Author::Gateway(id(number)), Over::User(person(name)))
}

pub fn session(number: u8, safe_id: u32) -> Key {
    let mut bytes = [0; 20];
    bytes[..4].copy_from_slice(&safe_id.to_be_bytes());
    Key::Record(Author::Gateway(id(number)), Over::Session(SafeId::from_bytes(bytes)))
}

pub fn reason(text: &str) -> Value {
    Value::Record(Record { reason: text.into(), by: "uid 0".into(), at: 1, number: 1, ..Record::default() })
}

pub fn put(key: Key, value: Value) -> Txn {
    Txn { then: vec![Op::Put(key, value)], ..Txn::default() }
}

pub fn swap(key: Key, value: Value, was: Revision) -> Txn {
    let only_if =
        vec![if was == 0 { Condition::Absent(key.clone()) } else { Condition::Unchanged(key.clone(), was) }];
    Txn { only_if, then: vec![Op::Put(key.clone(), value)], otherwise: vec![Op::Get(key)] }
}

/// What a gateway was told, put together.
#[derive(Debug, Default)]
pub struct View {
    pub state: BTreeMap<Key, Change>,
    pub known: Option<Known>,
    pub endpoint: String,
    pub read: Revision,
    pub up: bool,
    /// How often it came up, and how often with a whole state.
    pub ups: u32,
    pub wholes: u32,
    pub down: Option<String>,
    pub downs: Vec<String>,
    pub malformed: Vec<(String, Revision, String, bool)>,
    pub untold: u64,
    pub replaced: Vec<(Known, Known)>,
    pub outcomes: BTreeMap<Ticket, Outcome>,
    /// How many changes each revision had.
    pub sizes: BTreeMap<Revision, usize>,
}

impl View {
    /// Also checks what is promised of every told word.
    fn take(&mut self, told: Told) {
        match told {
            Told::Up { known, state, endpoint } => {
                self.endpoint = endpoint;
                assert!(known.revision >= self.read || !self.replaced.is_empty(), "the order goes on");
                if let Some(state) = state {
                    assert!(state.windows(2).all(|pair| pair[0].revision <= known.revision));
                    assert!(state.iter().all(|entry| entry.key.is_watched() && entry.now != Now::Gone));
                    self.state = state.into_iter().map(|entry| (entry.key.clone(), entry)).collect();
                    self.wholes += 1;
                } else {
                    assert_eq!(known.revision, self.read, "what was told before is all up to there");
                }
                self.read = known.revision;
                self.known = Some(known);
                (self.up, self.down) = (true, None);
                self.ups += 1;
            }
            Told::Changed { revision, changes } => {
                assert!(self.up, "a change without a connection");
                assert!(revision > self.read, "{revision} after {}", self.read);
                self.sizes.insert(revision, changes.len());
                for change in changes {
                    assert_eq!(change.revision, revision);
                    assert!(change.key.is_watched());
                    if change.now == Now::Gone {
                        self.state.remove(&change.key);
                    } else {
                        self.state.insert(change.key.clone(), change);
                    }
                }
                self.read = revision;
            }
            Told::Down { why } => {
                self.up = false;
                self.downs.push(why.clone());
                self.down = Some(why);
            }
            Told::Replaced { was, is, .. } => self.replaced.push((was, is)),
            Told::Done { ticket, outcome } => {
                assert!(
                    self.outcomes.insert(ticket, outcome).is_none(),
                    "ticket {ticket} was answered twice"
                );
            }
            Told::Malformed { key, revision, why, taken } => self.malformed.push((key, revision, why, taken)),
            Told::Untold { count } => self.untold += count,
        }
    }

    pub fn value(&self, key: &Key) -> Option<&Value> {
        match &self.state.get(key)?.now {
            Now::Is(value) => Some(value),
            _ => None,
        }
    }

    /// All but the signs of life, which come and go by themselves.
    pub fn lasting(&self) -> BTreeMap<&Key, &Change> {
        self.state.iter().filter(|(key, _)| !matches!(key, Key::Alive(_))).collect()
    }
}

/// The adapter on a thread of its own. Dropped: its connection is gone at once, as with kill -9.
pub struct Gateway {
    pub view: View,
    pub namespace: Namespace,
    orders: Option<mpsc::Sender<Order>>,
    told: std_mpsc::Receiver<Told>,
    kill: mpsc::Sender<()>,
    paused: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
    tickets: Ticket,
}

impl Gateway {
    pub fn start(namespace: &Namespace, settings: Settings) -> Self {
        let (orders, taken) = mpsc::channel(1_024);
        let (tell, told) = std_mpsc::channel();
        let (kill, mut killed) = mpsc::channel::<()>(1);
        let (paused, mut is_paused) = watch::channel(false);
        let there = namespace.clone();
        let thread = std::thread::spawn(move || {
            there.enter();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let (say, mut said) = mpsc::channel(64);
                let pass_on = async move {
                    while let Some(told) = said.recv().await {
                        let _ = is_paused.wait_for(|paused| !*paused).await;
                        if tell.send(told).is_err() {
                            break;
                        }
                    }
                };
                tokio::select! {
                    ((), ()) = async { tokio::join!(run(settings, taken, say), pass_on) } => {}
                    _ = killed.recv() => {}
                }
            });
        });
        Self {
            view: View::default(),
            namespace: namespace.clone(),
            orders: Some(orders),
            told,
            kill,
            paused,
            thread: Some(thread),
            tickets: 0,
        }
    }

    /// Reads what is told until `condition` holds.
    #[track_caller]
    pub fn until(&mut self, what: &str, mut condition: impl FnMut(&View) -> bool) {
        let end = Instant::now() + NOTICED;
        while !condition(&self.view) {
            let left = end.saturating_duration_since(Instant::now());
            match self.told.recv_timeout(left) {
                Ok(told) => self.view.take(told),
                Err(error) => panic!("{error}: {what}; down: {:?}, read: {}", self.view.down, self.view.read),
            }
        }
    }

    /// What the adapter tells is not read, or read again.
    pub fn pause(&self, paused: bool) {
        self.paused.send(paused).unwrap();
    }

    /// Gives an order and does not wait.
    pub fn order(&mut self, txn: Txn) -> Ticket {
        self.tickets += 1;
        let ticket = self.tickets;
        self.give(Order::Commit { ticket, txn });
        ticket
    }

    pub fn give(&self, order: Order) {
        self.orders.as_ref().unwrap().blocking_send(order).unwrap();
    }

    #[track_caller]
    pub fn outcome(&mut self, ticket: Ticket) -> Outcome {
        self.until("an order is answered", |view| view.outcomes.contains_key(&ticket));
        self.view.outcomes[&ticket].clone()
    }

    /// Gives an order and waits for its answer.
    #[track_caller]
    pub fn commit(&mut self, txn: Txn) -> Outcome {
        let ticket = self.order(txn);
        self.outcome(ticket)
    }

    /// It has to be done: at which revision.
    #[track_caller]
    pub fn done(&mut self, txn: Txn) -> Revision {
        match self.commit(txn) {
            Outcome::Done { held: true, revision, .. } => revision,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    pub fn list(&mut self, what: enforcer::cluster::Listing) -> Outcome {
        self.tickets += 1;
        let ticket = self.tickets;
        self.give(Order::List { ticket, what });
        self.outcome(ticket)
    }

    #[track_caller]
    pub fn has_read(&mut self, revision: Revision) {
        self.until("a revision is read", |view| view.up && view.read >= revision);
    }

    /// Its connection has never been away.
    #[track_caller]
    pub fn undisturbed(&self) {
        assert!(self.view.downs.is_empty(), "{:?}", self.view.downs);
    }

    /// Orders are over: it ends as when the daemon is stopped.
    pub fn stop(mut self) {
        self.orders = None;
        self.thread.take().unwrap().join().unwrap();
    }

    /// What comes from etcd, what goes to it, or both is dropped on the way.
    pub fn cut(&self, incoming: bool, outgoing: bool) {
        let mut rules = String::from("table inet cut {\n");
        for (cut, hook) in [(incoming, "input"), (outgoing, "output")] {
            let policy = if cut { "drop" } else { "accept" };
            rules.push_str(&format!(
                "chain {hook} {{ type filter hook {hook} priority 0; policy {policy}; }}\n"
            ));
        }
        rules.push('}');
        self.namespace.nft(&rules);
    }

    pub fn heal(&self) {
        self.namespace.nft("delete table inet cut");
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.kill.try_send(());
        self.orders = None;
        if let Some(thread) = self.thread.take()
            && let Err(panic) = thread.join()
            && !std::thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

/// Numbers that look random and are the same in every run (splitmix64, in the public domain).
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }
}
