//! Events go in, and what comes out happens: at once in the kernel, later where it takes time.

use super::*;

impl World {
    pub fn handle(&mut self, event: Event) {
        if self.died {
            return;
        }
        self.depth += 1;
        if self.late {
            // no two events in one nanosecond
            self.now.mono += Duration::from_nanos(1);
        }
        let effects = self.registry.handle(event, self.now);
        // R1: the kernel drops before anybody is told to go
        let acts = |e: &Effect| {
            matches!(
                e,
                Effect::Disconnect { .. }
                    | Effect::Terminate { .. }
                    | Effect::End { .. }
                    | Effect::Answer { .. }
            )
        };
        if let Some(first) = effects.iter().position(acts) {
            let late = effects[first..].iter().find(|e| matches!(e, Effect::Insert { .. }));
            assert_eq!(late, None, "written to the kernel only after {:?}", effects[first]);
        }
        for effect in effects {
            self.apply(effect);
        }
        // a look at everything, which takes its time where there is much
        if self.check_indexes && self.registry.revocations.len() < 50 && self.registry.sessions.len() < 50 {
            self.registry.check();
        }
        self.depth -= 1;
        // the disk is slower than everything that follows at once
        while self.depth == 0 && !self.told.is_empty() {
            let told = self.told.remove(0);
            self.handle(told);
        }
    }

    fn apply(&mut self, effect: Effect) {
        match &mut self.dies_after {
            Some(0) => self.died = true,
            Some(left) => *left -= 1,
            None => {}
        }
        if self.died {
            return;
        }
        match effect {
            Effect::Insert { entry, number, stands, server, moment } => {
                if self.broken || (self.full && !self.kernel.contains_key(&entry)) {
                    self.handle(Event::InsertFailed { entry, number, error: "the table is full".into() });
                } else {
                    self.kernel_server.insert(entry.clone(), server);
                    self.kernel.insert(entry, InKernel { number, stands, moment });
                }
            }
            Effect::Remove { entry: Entry::Address(..), .. } if self.sticky => {}
            Effect::Remove { entry, .. } => {
                assert!(self.kernel.remove(&entry).is_some() || self.full, "{entry:?} was not there");
                self.kernel_server.remove(&entry);
            }
            Effect::CountRefusal { entry } => self.refusals.push(entry),
            Effect::Attach { .. }
            | Effect::AskBanScore { .. }
            | Effect::Unban { .. }
            | Effect::WebAnswer { .. }
            | Effect::WebListed { .. }
            | Effect::WebEnded { .. }
            | Effect::WebOver { .. }
            | Effect::WebDestroy { .. }
            | Effect::WebBreak { .. } => {}
            effect @ (Effect::Decided { .. }
            | Effect::TakenBack { .. }
            | Effect::LetterStored { .. }
            | Effect::CookiesListed { .. }) => self.replicated.push(effect),
            Effect::Numbered { next } => self.numbered = next,
            Effect::Watch { key, worker } => {
                self.watched.insert(key, worker);
                if self.worker_of(worker).is_none() {
                    self.start(Effect::Watch { key, worker });
                }
            }
            Effect::WatchDevice { device } => {
                self.devices.insert(device);
            }
            Effect::FindFlows { key, worker } => {
                let flows =
                    self.worker_of(worker).map(|w| vec![w.flow]).ok_or_else(|| "it is gone".to_owned());
                self.handle(Event::Flows { key, outcome: flows.map(|flows| (self.netns, flows)) });
            }
            Effect::ForgetConnections { netns, address, turn } if !self.slow_conntrack => {
                let outcome = self.forget_connections(netns, address);
                self.handle(Event::ConnectionsForgotten { netns, address, turn, outcome });
            }
            Effect::KeepConnections { turn } => {
                let its = |task: &Task| matches!(task.what, Effect::ForgetConnections { turn: its, .. } if its == turn);
                self.tasks.retain(|task| !its(task));
            }
            Effect::DestroyFlow { number, flow } => {
                let hit = self.workers.values().filter(|w| w.flow == flow).count() as u64;
                self.handle(Event::FlowDestroyed { number, outcome: Ok(hit) });
            }
            Effect::Probe { server, observed, .. } => {
                let seen = self.workers.get(&observed.id).filter(|_| !self.blind).cloned();
                if let Some(worker) = seen {
                    let sighting = self.sighting(&worker);
                    self.handle(Event::Sighted { server, sighting });
                }
            }
            Effect::Save => self.save(),
            Effect::Confirm { number } => self.handle(Event::Confirmed { number }),
            Effect::GateAnswer { ask, verdict } => {
                assert!(self.verdicts.insert(ask, verdict).is_none(), "a gate is answered twice");
            }
            Effect::Answer { request, answer } => {
                assert!(self.answers.insert(request, answer).is_none(), "a command is answered twice");
            }
            Effect::Note { kind, text } => self.notes.push((kind, text)),
            Effect::AskList { .. }
            | Effect::AskCookies { .. }
            | Effect::Terminate { .. }
            | Effect::Disconnect { .. }
            | Effect::ForgetConnections { .. }
            | Effect::End { .. } => self.start(effect),
        }
    }

    fn forget_connections(&mut self, netns: Netns, address: IpAddr) -> Result<Option<u64>, String> {
        assert_eq!(netns, self.netns);
        let tracked = self.tracked.as_mut().map_err(|why| why.clone())?;
        let Some(all) = tracked else { return Ok(None) };
        let theirs = all.remove(&address).unwrap_or_default();
        let count = theirs.len() as u64;
        self.deleted.extend(theirs);
        Ok(Some(count))
    }

    pub fn save(&mut self) {
        let writes = self.registry.take_writes(self.now);
        self.told.extend(self.disk.write(&writes));
    }

    pub(super) fn start(&mut self, what: Effect) {
        let stale = match &what {
            Effect::AskList { server } => self.list(server).ok().map(Stale::List),
            Effect::AskCookies { server } => self.list_cookies(server).ok().map(Stale::Cookies),
            _ => None,
        };
        self.tasks.push_back(Task { at: self.now.mono, what, stale });
    }

    fn worker_of(&self, process: Process) -> Option<&Worker> {
        self.workers.values().find(|w| w.process == process)
    }

    /// Lets one thing happen that is under way.
    pub fn carry_out(&mut self, task: Task) {
        let Task { at: asked, what, .. } = task;
        match what {
            Effect::AskList { server } => {
                let outcome = self.list(&server);
                self.handle(Event::Listed { server, asked, outcome });
            }
            Effect::AskCookies { server } => {
                let outcome = self.list_cookies(&server);
                self.handle(Event::Cookies { server, asked, outcome });
            }
            Effect::Terminate { server, safe_id } => {
                let ocserv = self.ocservs.get_mut(&server).unwrap();
                let outcome = match ocserv.up {
                    true => Ok(ocserv.cookies.remove(&safe_id).is_some()),
                    false => Err("no answer".into()),
                };
                self.handle(Event::Terminated { server, safe_id, outcome });
            }
            Effect::Disconnect { ref server, id } => {
                self.acts.push(what.clone());
                let heard = self.ocservs[server].up;
                // what is in its connect-script has no ears
                if heard && self.workers.get(&id).is_some_and(|w| w.server == *server && w.tun && !w.hangs) {
                    self.exit(id);
                }
            }
            Effect::End { key, worker } => {
                self.acts.push(what);
                let ended = match self.worker_of(worker).cloned() {
                    None => Ended { politely: true, ..Ended::default() },
                    Some(w) if w.hangs => Ended { left: vec!["it hangs".into()], ..Ended::default() },
                    Some(w) => {
                        self.exit(w.process.pid);
                        Ended { destroyed: 1, ..Ended::default() }
                    }
                };
                self.handle(Event::Ended { key, ended });
            }
            Effect::ForgetConnections { netns, address, turn } => {
                let outcome = self.forget_connections(netns, address);
                self.handle(Event::ConnectionsForgotten { netns, address, turn, outcome });
            }
            Effect::Watch { key, .. } => self.handle(Event::WorkerGone { key }),
            Effect::WatchDevice { device } => self.handle(Event::DeviceGone { device }),
            _ => unreachable!(),
        }
    }

    /// Everything that is under way happens.
    pub fn run(&mut self) {
        for _ in 0..10_000 {
            let Some(task) = self.tasks.pop_front() else { return };
            self.carry_out(task);
        }
        panic!("it does not come to rest: {:?}", self.tasks);
    }

    pub fn pass_time(&mut self, time: Duration) {
        let wall = self.now.wall + (self.now.mono + time).as_secs() - self.now.mono.as_secs();
        self.now = Now { mono: self.now.mono + time, wall };
    }

    /// Time passes, with everything that happens in it.
    pub fn pass(&mut self, time: Duration) {
        let until = self.now.mono + time;
        while self.now.mono < until {
            let step = self.registry.next_tick(self.now).min(until - self.now.mono);
            self.pass_time(step);
            self.handle(Event::Tick);
            self.run();
        }
    }
}
