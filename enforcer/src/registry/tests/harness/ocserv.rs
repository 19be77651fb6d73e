//! What ocserv tells when it is asked, and how it comes and goes.

use super::*;

impl World {
    pub fn sighting(&self, worker: &Worker) -> Sighting {
        let observed = Observed {
            id: worker.process.pid,
            user: worker.user.clone(),
            device: Some("vpns0".into()),
            addresses: if worker.let_go { Vec::new() } else { vec![worker.address] },
            safe_id: Some(worker.cookie),
            since: worker.since,
            ..Observed::default()
        };
        if self.blind {
            return Sighting { observed, ..Sighting::default() };
        }
        Sighting {
            observed,
            worker: Some(worker.process),
            device: Some(worker.device),
            netns: Some(self.netns),
            has_tun: worker.tun,
        }
    }

    pub fn list(&self, server: &ServerName) -> Result<Vec<Sighting>, String> {
        let workers = self.workers.values().filter(|w| w.server == *server && !w.let_go);
        self.ocservs[server]
            .up
            .then(|| workers.map(|w| self.sighting(w)).collect())
            .ok_or_else(|| "no answer".into())
    }

    /// A list from before, as the daemon reads it now: it looks the processes up by their pids.
    pub fn read_late(&self, list: &mut [Sighting]) {
        for sighting in list {
            let worker = self.workers.get(&sighting.observed.id);
            let same = worker.is_some_and(|w| sighting.worker == Some(w.process));
            sighting.worker = worker.map(|w| w.process);
            sighting.has_tun = worker.is_some_and(|w| w.tun);
            if !same {
                (sighting.device, sighting.netns) = (None, worker.map(|_| self.netns));
            }
        }
    }

    pub fn list_cookies(&self, server: &ServerName) -> Result<Vec<Cookie>, String> {
        let ocserv = &self.ocservs[server];
        if !ocserv.up || !ocserv.lists_cookies {
            return Err("no answer".into());
        }
        Ok(ocserv
            .cookies
            .values()
            .filter(|cookie| !ocserv.hidden.contains(&cookie.safe_id))
            .cloned()
            .collect())
    }

    pub fn servers_up(&mut self) {
        let all: Vec<_> =
            self.ocservs.iter().map(|(name, o)| (name.clone(), o.main, o.terminate, o.up)).collect();
        for (server, main, terminate, _) in all.into_iter().filter(|(.., up)| *up) {
            self.handle(Event::ServerUp { server: server.clone(), main, terminate });
            self.handle(Event::GateConfigured { server, configured: true });
        }
        self.run();
    }

    pub fn stop_ocserv(&mut self) {
        self.vpn().up = false;
        self.vpn().cookies.clear();
        let ids: Vec<i32> =
            self.workers.values().filter(|w| w.server == vpn()).map(|w| w.process.pid).collect();
        for id in ids {
            self.exit(id);
        }
        self.handle(Event::ServerDown { server: vpn(), gone: true });
    }

    pub fn start_ocserv(&mut self) {
        let pid = self.count() as i32;
        self.vpn().main = Process { pid, start: pid as u64 };
        self.vpn().up = true;
        self.servers_up();
    }
}
