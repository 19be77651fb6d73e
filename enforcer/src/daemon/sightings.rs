//! From what ocserv tells of a worker to what this host can tell of it: its process, its device, its namespace.

use crate::ocserv;
use crate::process;
use crate::registry::{Event, Phase, Sighting};
use crate::session::{Netns, Observed, Process, ServerName};

use super::Daemon;
use super::following::MAX_FOLLOWED;

impl Daemon {
    /// `fresh`: told just now, at the connect event or by the gate; then its device's name is its own.
    pub(super) fn sighting(&mut self, name: &ServerName, observed: Observed, fresh: bool) -> Sighting {
        let Some(main) = self.servers.get(name).and_then(|server| server.main) else {
            return Sighting { observed, ..Sighting::default() };
        };
        // a long list would cost a look into /proc for each: what is known of a live session stays as it is
        let known = (self.registry.session(name, observed.id))
            .filter(|s| !fresh && s.phase == Phase::Live && s.device.is_some())
            .filter(|s| s.worker.is_some_and(process::is_alive));
        if let Some(session) = known {
            let (worker, device, netns) = (session.worker, session.device, session.netns);
            return Sighting { observed, worker, device, netns, has_tun: true };
        }
        let Ok(worker) = ocserv::worker_of(main, observed.id) else {
            return Sighting { observed, ..Sighting::default() };
        };
        let process = worker.process();
        let netns = self.netns_of(name, process);
        let tun = process::tun_of(&worker).ok().flatten();
        let device = (observed.device.as_deref().zip(netns)).and_then(|(device, netns)| {
            // the name may be another session's by now: it is this one's if the worker holds it, or if ocserv has
            // just told so; and only while the worker lives, since its device cannot change hands before
            let own = tun.as_deref() == Some(device) || (fresh && tun.is_none());
            own.then(|| self.namespaces.index_of(netns, device)).flatten()
        });
        if worker.has_exited() {
            return Sighting { observed, ..Sighting::default() };
        }
        Sighting { observed, worker: Some(process), device, netns, has_tun: tun.is_some() }
    }

    fn netns_of(&mut self, name: &ServerName, process: Process) -> Option<Netns> {
        let (netns, fd) = process::netns_of(process.pid).ok()?;
        self.enter_netns(name, netns, fd);
        Some(netns)
    }

    pub(super) fn know_netns(&mut self, name: &ServerName, main: Process, netns: Netns) {
        if let Ok((found, fd)) = process::netns_of(main.pid)
            && found == netns
        {
            self.enter_netns(name, netns, fd);
        }
    }

    /// The server, or a worker of its, lives there.
    fn enter_netns(&mut self, name: &ServerName, netns: Netns, fd: std::os::fd::OwnedFd) {
        if netns == self.namespaces.own() {
            return;
        }
        let Some(server) = self.servers.get_mut(name) else { return };
        let known = self.namespaces.knows(netns);
        if !known && self.namespaces.known().len() > MAX_FOLLOWED {
            return self.warn(format!(
                "{name}: more than {MAX_FOLLOWED} network namespaces: nothing is dropped in the further ones"
            ));
        }
        let new = server.followed.insert(netns);
        if known {
            // another server's already: this one may name other interfaces
            if new {
                self.follow(netns);
            }
            return;
        }
        match self.namespaces.add(netns, fd) {
            Ok(()) => {
                self.follow(netns);
                self.handle(Event::NetnsAdded { netns });
            }
            Err(error) => self.warn(format!(
                "{name}: its network namespace cannot be entered, so nothing is dropped there: {error:#} (under systemd \
                 the drop-in containers.conf, beside the unit, grants what that takes)"
            )),
        }
    }
}
