//! A small world around the registry: the kernel's map as the effects make it, and what was asked of ocserv.

use std::collections::BTreeMap;
use std::time::Duration;

use super::disk::Disk;
use crate::registry::*;
use crate::session::*;

pub const NETNS: Netns = Netns(1);

pub struct World {
    pub registry: Registry,
    pub now: Now,
    /// What is in the kernel.
    pub kernel: BTreeMap<Entry, (Number, Stands)>,
    /// Everything but the kernel's effects, in order, since the last look.
    pub effects: Vec<Effect>,
    pub answers: BTreeMap<Request, Answer>,
    pub verdicts: BTreeMap<Ask, Verdict>,
    pub disk: Disk,
    /// What the disk has to tell, once the event at hand is done.
    told: Vec<Event>,
    depth: u32,
    next: u64,
}

pub fn server() -> ServerName {
    ServerName::new("s")
}

pub fn safe_id(byte: u8) -> SafeId {
    SafeId::from_bytes([byte; 20])
}

pub fn device(index: u32) -> Device {
    Device { netns: NETNS, index }
}

pub fn address(byte: u8) -> std::net::IpAddr {
    std::net::IpAddr::from([10, 0, 0, byte])
}

pub fn flow(port: u16) -> Flow {
    let client = std::net::SocketAddr::from(([192, 0, 2, 1], port));
    Flow::new(Protocol::Tcp, client, "198.51.100.1:443".parse().unwrap()).unwrap()
}

pub fn cookie(user: &str, byte: u8, created: u64) -> Cookie {
    Cookie { safe_id: safe_id(byte), user: user.into(), vhost: "default".into(), created, in_use: false }
}

/// A worker: `id` is its pid, and its device and address are numbered alike unless changed.
pub fn sighting(user: &str, id: i32, byte: u8) -> Sighting {
    Sighting {
        observed: Observed {
            id,
            user: user.into(),
            device: Some(format!("vpns{id}")),
            addresses: vec![address(u8::try_from(id).unwrap())],
            client: "192.0.2.1".into(),
            safe_id: Some(safe_id(byte)),
            ..Observed::default()
        },
        worker: Some(Process { pid: id, start: 1 }),
        device: Some(device(u32::try_from(id).unwrap())),
        netns: Some(NETNS),
        has_tun: true,
    }
}

/// The same in its connect-script.
pub fn at_gate(user: &str, id: i32, byte: u8) -> Sighting {
    Sighting { has_tun: false, ..sighting(user, id, byte) }
}

pub fn order(target: Target) -> Order {
    Order {
        target,
        server: None,
        stands: None,
        reason: "r".into(),
        by: "b".into(),
        origin: None,
        spare: Default::default(),
        bulk: false,
    }
}

pub fn user(name: &str) -> Order {
    order(Target::User(name.into()))
}

pub fn identity(name: &str) -> Identity {
    Identity { realm: DEFAULT_REALM.into(), name: name.into() }
}

pub fn lock(name: &str, stands: Option<Duration>) -> Order {
    Order { stands, ..order(Target::Lock(identity(name))) }
}

impl World {
    /// One ocserv without `terminate`, with the gate in its configuration, empty.
    pub fn new() -> Self {
        Self::with(false, Rules::default())
    }

    pub fn with(terminate: bool, rules: Rules) -> Self {
        let mut world = Self {
            registry: Registry::new([server()], NETNS, rules),
            now: Now { mono: Duration::from_secs(100), wall: 1_000 },
            kernel: BTreeMap::new(),
            effects: Vec::new(),
            answers: BTreeMap::new(),
            verdicts: BTreeMap::new(),
            disk: Disk::default(),
            told: Vec::new(),
            depth: 0,
            next: 1,
        };
        world.up(1, terminate);
        world.give(Event::GateConfigured { server: server(), configured: true });
        world.list(vec![]);
        world.cookies(vec![]);
        world.effects.clear();
        world
    }

    pub fn up(&mut self, pid: i32, terminate: bool) {
        self.give(Event::ServerUp { server: server(), main: Process { pid, start: 1 }, terminate });
    }

    /// A new daemon on what the old one left in the kernel and on the disk.
    pub fn restart(&mut self) {
        let entries = self.entries();
        self.start(entries, false);
    }

    /// The same, and the disk has not heard of this boot.
    pub fn start_as_after_a_reboot(&mut self) {
        let entries = self.entries();
        self.start(entries, true);
    }

    fn entries(&self) -> Vec<Adopted> {
        (self.kernel.iter())
            .map(|(entry, (number, stands))| Adopted {
                entry: entry.clone(),
                number: *number,
                stands: *stands,
                server: Some(server()),
                moment: self.now.wall,
            })
            .collect()
    }

    /// The host starts anew: an empty kernel, and what is on the disk.
    pub fn reboot(&mut self) {
        self.kernel.clear();
        self.now.mono = Duration::from_secs(1);
        self.start(Vec::new(), true);
    }

    fn start(&mut self, entries: Vec<Adopted>, rebooted: bool) {
        self.registry = Registry::new([server()], NETNS, Rules::default());
        self.told.clear();
        self.disk.forget();
        self.depth = 0;
        let left = self.disk.left(entries, rebooted);
        self.give(Event::Adopt(Box::new(left)));
        self.give(Event::GateConfigured { server: server(), configured: true });
    }

    pub fn give(&mut self, event: Event) {
        self.depth += 1;
        let effects = self.registry.handle(event, self.now);
        self.registry.sessions.check();
        for effect in effects {
            match effect {
                Effect::Insert { entry, number, stands, .. } => {
                    self.kernel.insert(entry, (number, stands));
                }
                Effect::Remove { entry, .. } => {
                    assert!(self.kernel.remove(&entry).is_some(), "{entry:?} was not in the kernel");
                }
                Effect::Answer { request, answer } => {
                    self.answers.insert(request, answer);
                }
                Effect::GateAnswer { ask, verdict } => {
                    self.verdicts.insert(ask, verdict);
                }
                Effect::Save => {
                    let writes = self.registry.take_writes(self.now);
                    self.told.extend(self.disk.write(&writes));
                }
                Effect::ForgetConnections { netns, address, turn } => {
                    self.give(Event::ConnectionsForgotten { netns, address, turn, outcome: Ok(Some(0)) });
                }
                Effect::Confirm { number } => self.give(Event::Confirmed { number }),
                other => self.effects.push(other),
            }
        }
        self.depth -= 1;
        // the disk is slower than everything that follows at once
        while self.depth == 0 && !self.told.is_empty() {
            let told = self.told.remove(0);
            self.give(told);
        }
    }

    pub fn pass(&mut self, millis: u64) {
        self.now.mono += Duration::from_millis(millis);
        self.now.wall += millis / 1_000;
        self.give(Event::Tick);
    }

    pub fn see(&mut self, sighting: Sighting) {
        self.give(Event::Sighted { server: server(), sighting });
    }

    /// ocserv's answer to a list that was asked for now.
    pub fn list(&mut self, sightings: Vec<Sighting>) {
        self.now.mono += Duration::from_millis(1);
        let asked = self.now.mono;
        self.give(Event::Listed { server: server(), asked, outcome: Ok(sightings) });
    }

    pub fn cookies(&mut self, cookies: Vec<Cookie>) {
        self.now.mono += Duration::from_millis(1);
        let asked = self.now.mono;
        self.give(Event::Cookies { server: server(), asked, outcome: Ok(cookies) });
    }

    /// ocserv does not answer any more.
    pub fn silence(&mut self) {
        let asked = self.now.mono;
        self.give(Event::Cookies { server: server(), asked, outcome: Err("silent".into()) });
        self.give(Event::Listed { server: server(), asked, outcome: Err("silent".into()) });
    }

    pub fn look(&mut self, sighting: Sighting, last: bool) -> Ask {
        let ask = self.number();
        self.give(Event::GateAsked { ask, server: server(), sighting, last });
        ask
    }

    /// Asks twice, as the gate does around next-script; true: let in.
    pub fn admitted(&mut self, sighting: Sighting) -> bool {
        [false, true].into_iter().all(|last| {
            let ask = self.look(sighting.clone(), last);
            self.verdicts.get(&ask) == Some(&Verdict::Admit)
        })
    }

    /// A session that has passed the gate and is up.
    pub fn connect(&mut self, user: &str, id: i32, byte: u8) -> SessionKey {
        assert!(self.admitted(at_gate(user, id, byte)), "{user} was refused");
        self.see(sighting(user, id, byte));
        self.key(id)
    }

    pub fn key(&self, id: i32) -> SessionKey {
        self.registry.session(&server(), id).unwrap().key
    }

    pub fn revoke(&mut self, order: Order) -> Request {
        let request = self.number();
        self.give(Event::Revoke { request: Some(request), order });
        request
    }

    /// The worker is ended as asked, and its device goes.
    pub fn end(&mut self, key: SessionKey, index: u32) {
        self.give(Event::Ended { key, ended: Ended { politely: true, ..Ended::default() } });
        self.give(Event::WorkerGone { key });
        self.give(Event::DeviceGone { device: device(index) });
    }

    /// A revocation of a user with one session, to its end; `left`: the cookies that ocserv then holds.
    pub fn revoke_fully(&mut self, name: &str, id: i32, left: Vec<Cookie>) -> Request {
        let key = self.key(id);
        let request = self.revoke(user(name));
        self.list(vec![]);
        self.cookies(left.clone());
        self.end(key, u32::try_from(id).unwrap());
        self.cookies(left);
        request
    }

    pub fn lift(&mut self, number: Number) -> Request {
        let request = self.number();
        self.give(Event::Lift { request, number, by: "b".into() });
        request
    }

    pub fn unlock(&mut self, name: &str) -> Request {
        let request = self.number();
        self.give(Event::Unlock { request, identity: identity(name), by: "b".into() });
        request
    }

    pub fn receipt(&self, request: Request) -> &Receipt {
        match self.answers.get(&request) {
            Some(Answer::Receipt(receipt)) => receipt,
            other => panic!("no receipt, but {other:?}"),
        }
    }

    pub fn refuses(&self, ask: Ask) -> bool {
        matches!(self.verdicts.get(&ask), Some(Verdict::Refuse(_)))
    }

    pub fn has(&self, entry: &Entry) -> bool {
        self.kernel.contains_key(entry)
    }

    pub fn asked(&self, wanted: impl Fn(&Effect) -> bool) -> usize {
        self.effects.iter().filter(|effect| wanted(effect)).count()
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

pub fn on_address(byte: u8) -> Entry {
    Entry::Address(NETNS, address(byte))
}
