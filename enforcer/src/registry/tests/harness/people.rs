//! What clients and administrators do.

use super::*;

impl World {
    pub fn login(&mut self, user: &str) -> SafeId {
        self.login_at(&vpn(), user)
    }

    pub fn login_at(&mut self, server: &ServerName, user: &str) -> SafeId {
        let mut bytes = [0; 20];
        bytes[..4].copy_from_slice(&self.count().to_be_bytes());
        let safe_id = SafeId::from_bytes(bytes);
        let cookie = Cookie {
            safe_id,
            user: user.into(),
            vhost: String::new(),
            created: self.now.wall,
            in_use: false,
        };
        self.ocservs.get_mut(server).unwrap().cookies.insert(safe_id, cookie);
        safe_id
    }

    /// A worker as it will be, with everything of its own.
    pub fn worker(&mut self, cookie: SafeId) -> Worker {
        let n = self.count();
        let (server, known) = (self.ocservs.iter())
            .find_map(|(name, ocserv)| Some((name.clone(), ocserv.cookies.get(&cookie)?.clone())))
            .expect("ocserv lets nobody in whose cookie it does not know");
        Worker {
            process: Process { pid: n as i32, start: u64::from(n) },
            server,
            cookie,
            user: known.user,
            device: Device { netns: self.netns, index: n },
            address: ip((n % 250) as u8),
            flow: outer(1_000 + n as u16),
            since: self.now.wall,
            tun: false,
            hangs: false,
            let_go: false,
        }
    }

    /// It is in its connect-script; nobody has been told yet.
    pub fn arrive(&mut self, worker: Worker) -> i32 {
        let id = worker.process.pid;
        assert!(self.workers.insert(id, worker).is_none(), "pid {id} is taken");
        id
    }

    /// It is in its connect-script, and the feed has told so.
    pub fn connect(&mut self, worker: Worker) -> i32 {
        let id = self.arrive(worker);
        self.feed_connected(id);
        id
    }

    pub fn feed_connected(&mut self, id: i32) {
        let worker = self.workers[&id].clone();
        let sighting = self.sighting(&worker);
        self.handle(Event::Sighted { server: worker.server, sighting });
    }

    pub fn ask_gate(&mut self, id: i32, last: bool) -> Ask {
        let worker = self.workers[&id].clone();
        let (ask, sighting) = (Ask::from(self.count()), self.sighting(&worker));
        self.handle(Event::GateAsked { ask, server: worker.server, sighting, last });
        ask
    }

    /// The gate's look, with everything that it waits for.
    pub fn look(&mut self, id: i32, last: bool) -> Verdict {
        let ask = self.ask_gate(id, last);
        self.run();
        self.verdicts.remove(&ask).expect("the gate was not answered")
    }

    pub fn come_up(&mut self, id: i32) {
        self.workers.get_mut(&id).unwrap().tun = true;
    }

    /// A client with this cookie comes to the gate, and is up if it is let in.
    pub fn try_in(&mut self, worker: Worker) -> (i32, Verdict) {
        let id = self.connect(worker);
        let verdict = self.look(id, true);
        match verdict {
            Verdict::Admit => self.come_up(id),
            _ => self.exit(id),
        }
        (id, verdict)
    }

    /// A session that is up.
    pub fn up(&mut self, cookie: SafeId) -> i32 {
        let worker = self.worker(cookie);
        let (id, verdict) = self.try_in(worker);
        assert_eq!(verdict, Verdict::Admit);
        id
    }

    pub fn is_let_in(&mut self, cookie: SafeId) -> bool {
        let worker = self.worker(cookie);
        self.try_in(worker).1 == Verdict::Admit
    }

    /// The worker's process ends, and its device with it.
    pub fn exit(&mut self, id: i32) {
        let Some(worker) = self.workers.remove(&id) else { return };
        let keys: Vec<_> =
            self.watched.iter().filter(|(_, p)| **p == worker.process).map(|(key, _)| *key).collect();
        self.ended.push(worker.clone());
        let mut news = Vec::new();
        for key in keys {
            self.watched.remove(&key);
            news.push(Effect::Watch { key, worker: worker.process });
        }
        if self.devices.remove(&worker.device) {
            news.push(Effect::WatchDevice { device: worker.device });
        }
        for what in news {
            self.start(what);
            if !self.late {
                let task = self.tasks.pop_back().unwrap();
                self.carry_out(task);
            }
        }
    }

    pub fn order(target: Target) -> Order {
        Order {
            target,
            server: None,
            stands: None,
            reason: "left".into(),
            by: "root".into(),
            origin: None,
            spare: Default::default(),
            bulk: false,
        }
    }

    pub fn ask(&mut self, order: Order) -> Request {
        let request = Request::from(self.count());
        self.handle(Event::Revoke { request: Some(request), order });
        request
    }

    /// Given, carried out, and answered.
    pub fn revoke(&mut self, target: Target) -> Answer {
        let request = self.ask(Self::order(target));
        self.answered(request)
    }

    pub fn answered(&mut self, request: Request) -> Answer {
        self.run();
        for _ in 0..100 {
            match self.answers.remove(&request) {
                Some(answer) => return answer,
                None => self.pass(ms(50)),
            }
        }
        panic!("a command was not answered");
    }

    pub fn receipt(&mut self, target: Target) -> Receipt {
        match self.revoke(target.clone()) {
            Answer::Receipt(receipt) => *receipt,
            other => panic!("{target}: {other:?}"),
        }
    }

    pub fn revoke_user(&mut self, user: &str) -> Receipt {
        self.receipt(Target::User(user.into()))
    }

    pub fn lift(&mut self, number: Number) -> Answer {
        let request = Request::from(self.count());
        self.handle(Event::Lift { request, number, by: "b".into() });
        self.answers.remove(&request).expect("a lift is answered as soon as it is written")
    }
}
