//! What is broken on purpose, to see that it is found.

use super::super::super::scenarios::disk::Broken;
use super::model::Machine;
use crate::registry::*;
use crate::session::{Entry, Stands};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    /// What the gate refuses is lost at the daemon's restart.
    ForgetsTheGate,
    /// Of what the gate refuses one cookie is lost at the daemon's restart.
    ForgetsOneMark,
    /// What is said of a tunnel address is not taken out.
    AddressesStay,
    /// Every list is told as if it had been asked for just now.
    OldListsAreNew,
    /// The end of a device is not told.
    DevicesStay,
    /// The gate does not tell the registry whom it lets in.
    GateKeepsToItself,
    /// Nobody looks whether a person is locked.
    GateForgetsLocks,
    /// What is lifted is taken out of the kernel, and stays on the disk.
    LiftsLeaveTheDisk,
    /// What was lifted is not remembered until it is out of the kernel.
    TombstonesAreForgotten,
    AnswersBeforeTheDisk,
    /// A cutoff is not written down.
    CutoffsAreNotKept,
    /// Devices of sessions are in force again after a reboot.
    DevicesComeBack,
    /// A clock that is set moves what stands for a time.
    ExpiryByTheWallClock,
}

pub const ALL: [Fault; 13] = [
    Fault::ForgetsTheGate,
    Fault::ForgetsOneMark,
    Fault::AddressesStay,
    Fault::OldListsAreNew,
    Fault::DevicesStay,
    Fault::GateKeepsToItself,
    Fault::GateForgetsLocks,
    Fault::LiftsLeaveTheDisk,
    Fault::TombstonesAreForgotten,
    Fault::AnswersBeforeTheDisk,
    Fault::CutoffsAreNotKept,
    Fault::DevicesComeBack,
    Fault::ExpiryByTheWallClock,
];

impl Fault {
    pub fn of_the_disk(self) -> Option<Broken> {
        match self {
            Self::LiftsLeaveTheDisk => Some(Broken::Lifts),
            Self::TombstonesAreForgotten => Some(Broken::Tombstones),
            Self::AnswersBeforeTheDisk => Some(Broken::TellsEarly),
            Self::CutoffsAreNotKept => Some(Broken::Cutoffs),
            _ => None,
        }
    }
}

impl Machine {
    /// Before the next daemon looks at what is left.
    pub fn break_before_start(&mut self) {
        match self.fault {
            Fault::ForgetsTheGate => {
                self.world.kernel.retain(|entry, _| !matches!(entry, Entry::SafeId(_) | Entry::Cutoff(_)));
                self.world.disk.records.values_mut().for_each(|record| record.guards.clear());
            }
            Fault::ForgetsOneMark => {
                let mark = self.world.kernel.keys().find(|entry| matches!(entry, Entry::SafeId(_))).cloned();
                if let Some(Entry::SafeId(id)) = mark {
                    self.world.kernel.remove(&Entry::SafeId(id));
                    for record in self.world.disk.records.values_mut() {
                        record.guards.retain(|guard| guard.what != crate::session::Guarded::SafeId(id));
                    }
                }
            }
            _ => {}
        }
    }

    /// What a reboot leaves in the kernel: nothing.
    pub fn empty_kernel(&mut self) {
        let back = self.fault == Fault::DevicesComeBack;
        self.world.kernel.retain(|entry, _| back && matches!(entry, Entry::Device(_)));
        self.world.kernel_server.clear();
    }

    /// Before the verdicts are taken to heart.
    pub fn break_verdicts(&mut self) {
        for verdict in self.world.verdicts.values_mut() {
            let locked = matches!(verdict, Verdict::Refuse(why) if why.contains("is locked"));
            match self.fault {
                Fault::GateKeepsToItself => *verdict = Verdict::Admit,
                Fault::GateForgetsLocks if locked => *verdict = Verdict::Admit,
                _ => {}
            }
        }
    }

    pub fn break_clock(&mut self, by: i64) {
        if self.fault == Fault::ExpiryByTheWallClock {
            let moved = by.saturating_mul(-1_000_000_000);
            for it in self.world.kernel.values_mut() {
                if let Stands::Until(at) = &mut it.stands {
                    *at = at.saturating_add_signed(moved);
                }
            }
        }
    }
}
