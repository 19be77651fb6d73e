//! The daemon dies, and another one takes over what is left.

use super::*;

impl World {
    pub fn kill_daemon(&mut self) {
        self.tasks.clear();
        self.watched.clear();
        self.devices.clear();
        self.told.clear();
        self.disk.forget();
        self.depth = 0;
        (self.dies_after, self.died) = (None, false);
        let first_number = self.numbered.max(self.disk.next_number);
        let rules = Rules { first_number, ..self.rules.clone() };
        self.registry = Registry::new(self.ocservs.keys().cloned(), self.netns, rules);
    }

    /// As at the daemon's start. `leases`: it comes back before they lapsed.
    pub fn adopt_kernel(&mut self, leases: bool) {
        self.adopt_after(leases, false);
    }

    pub fn adopt_after(&mut self, leases: bool, rebooted: bool) {
        self.kernel.retain(|_, it| leases || it.stands != Stands::Leased);
        let entries = (self.kernel.iter())
            .map(|(entry, it)| Adopted {
                entry: entry.clone(),
                number: it.number,
                stands: it.stands,
                server: self.kernel_server.get(entry).cloned().flatten(),
                moment: it.moment,
            })
            .collect();
        let left = self.disk.left(entries, rebooted);
        self.handle(Event::Adopt(Box::new(left)));
        // the daemon's sweep finds what is gone already
        let gone: Vec<Device> = (self.devices.iter())
            .filter(|device| !self.workers.values().any(|w| w.device == **device))
            .copied()
            .collect();
        for device in gone {
            self.devices.remove(&device);
            self.handle(Event::DeviceGone { device });
        }
    }

    pub(super) fn adopt(&mut self) {
        self.adopt_kernel(true);
        self.servers_up();
    }

    pub fn restart_daemon(&mut self) {
        self.kill_daemon();
        self.adopt();
    }
}
