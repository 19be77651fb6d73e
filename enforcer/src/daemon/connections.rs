//! Connections of revoked sessions are taken out of the kernel's tracking: off the loop, one namespace at a time, and
//! whatever was asked for meanwhile together.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::conntrack;
use crate::registry::Event;
use crate::session::Netns;

use super::{Daemon, Input};

/// How long one look at a table may take. The registry waits less, and says so.
const TAKES: Duration = Duration::from_secs(5);

/// The orders that are wanted still, by their turns.
type Wanted = Arc<Mutex<BTreeSet<u64>>>;

#[derive(Default)]
pub(super) struct Forgetting {
    waiting: BTreeMap<Netns, BTreeMap<IpAddr, u64>>,
    running: BTreeSet<Netns>,
    wanted: Wanted,
}

impl Drop for Forgetting {
    /// The end of the daemon waits for what runs: it stops here.
    fn drop(&mut self) {
        wanted(&self.wanted).clear();
    }
}

fn wanted(turns: &Wanted) -> MutexGuard<'_, BTreeSet<u64>> {
    turns.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What became of one order.
pub(super) struct Forgotten {
    address: IpAddr,
    turn: u64,
    outcome: Result<Option<u64>, String>,
}

impl Daemon {
    pub(super) fn forget_connections(&mut self, netns: Netns, address: IpAddr, turn: u64) {
        if !self.namespaces.knows(netns) {
            // its table went with it
            return self.handle(Event::ConnectionsForgotten { netns, address, turn, outcome: Ok(None) });
        }
        wanted(&self.forgetting.wanted).insert(turn);
        self.forgetting.waiting.entry(netns).or_default().insert(address, turn);
        self.start_forgetting(netns);
    }

    /// Nothing that is read from now on is deleted for that order.
    pub(super) fn keep_connections(&mut self, turn: u64) {
        wanted(&self.forgetting.wanted).remove(&turn);
        for addresses in self.forgetting.waiting.values_mut() {
            addresses.retain(|_, its| *its != turn);
        }
    }

    /// What was asked for before the loop began.
    pub(super) fn start_forgetting_all(&mut self) {
        let places: Vec<Netns> = self.forgetting.waiting.keys().copied().collect();
        places.into_iter().for_each(|netns| self.start_forgetting(netns));
    }

    fn start_forgetting(&mut self, netns: Netns) {
        let before_the_loop = tokio::runtime::Handle::try_current().is_err();
        if before_the_loop || self.forgetting.running.contains(&netns) {
            return;
        }
        let Some(batch) = self.forgetting.waiting.remove(&netns).filter(|batch| !batch.is_empty()) else {
            return;
        };
        let place = self.namespaces.fd(netns).map(|fd| fd.try_clone_to_owned()).transpose();
        self.forgetting.running.insert(netns);
        let (turns, inputs) = (Arc::clone(&self.forgetting.wanted), self.inputs.clone());
        tokio::task::spawn_blocking(move || {
            let done = match place {
                Ok(place) => forget(place.as_ref(), batch, &turns),
                Err(error) => failed(batch, &format!("the namespace's descriptor: {error}")),
            };
            // the loop has stopped: nobody is left to be told
            let _ = inputs.blocking_send(Input::Forgotten { netns, done });
        });
    }

    pub(super) fn forgotten(&mut self, netns: Netns, done: Vec<Forgotten>) {
        self.forgetting.running.remove(&netns);
        for Forgotten { address, turn, outcome } in done {
            wanted(&self.forgetting.wanted).remove(&turn);
            self.handle(Event::ConnectionsForgotten { netns, address, turn, outcome });
        }
        self.start_forgetting(netns);
    }
}

fn forget(netns: Option<&OwnedFd>, batch: BTreeMap<IpAddr, u64>, turns: &Wanted) -> Vec<Forgotten> {
    use std::os::fd::AsFd as _;
    let is_wanted = |address| batch.get(&address).is_some_and(|turn| wanted(turns).contains(turn));
    let until = Instant::now() + TAKES;
    match conntrack::forget(netns.map(|fd| fd.as_fd()), batch.keys().copied(), until, &is_wanted) {
        Err(error) => failed(batch, &error.to_string()),
        Ok(outcomes) => (batch.into_iter())
            .map(|(address, turn)| {
                let outcome = outcomes.as_ref().and_then(|all| all.get(&address));
                let outcome = match outcome {
                    None => Ok(None),
                    Some(outcome) if outcome.is_done() => Ok(Some(outcome.taken)),
                    Some(outcome) => Err(outcome.to_string()),
                };
                Forgotten { address, turn, outcome }
            })
            .collect(),
    }
}

fn failed(batch: BTreeMap<IpAddr, u64>, why: &str) -> Vec<Forgotten> {
    let failed = |(address, turn)| Forgotten { address, turn, outcome: Err(why.to_owned()) };
    batch.into_iter().map(failed).collect()
}
