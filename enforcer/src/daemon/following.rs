//! Network namespaces whose interfaces are followed: our own, and those that servers live in, for as long as they do.

use std::time::{Duration, Instant};

use crate::links::{Change, Lister, Wanted, Watcher};
use crate::process;
use crate::session::Netns;

use super::choice::Patterns;
use super::interfaces::Told;
use super::{Daemon, Input};

/// How long what is chosen in a namespace that is new may keep the loop; the rest is queued.
const AT_ONCE: Duration = Duration::from_secs(1);
/// How long a namespace is held after its server ended: until then its sessions' connections have been taken out of
/// connection tracking, and a server that is started again is there.
const LEAVE_AFTER: Duration = Duration::from_secs(15);
/// Between two lists of a namespace's interfaces: a burst is one change.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a watcher that fails waits.
const FAILED_PAUSE: Duration = Duration::from_secs(1);

/// How often the log says that a watcher is overrun.
const TOLD_EVERY: Duration = Duration::from_secs(60);
/// How many namespaces beside our own are followed.
pub(super) const MAX_FOLLOWED: usize = 64;

/// A watcher, which ends with its handle.
pub(super) struct Watching(tokio::task::JoinHandle<()>);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Daemon {
    /// From now on the loop is told of changes there. To be called within the runtime.
    pub(super) fn watch_interfaces(&mut self, netns: Netns) {
        let (inputs, wanted) = (self.inputs.clone(), self.wanted_in(netns));
        let opened = (|| {
            let fd = self.namespaces.fd(netns);
            Ok::<_, std::io::Error>((Watcher::open(fd, wanted, None)?, Lister::open(fd, wanted)?))
        })();
        match opened {
            Ok((watcher, lister)) => {
                let task = tokio::spawn(watch(netns, watcher, lister, inputs));
                self.interfaces.watchers.insert(netns, Watching(task));
            }
            Err(error) => self.warn(format!(
                "interfaces that come later in net:[{}] will not be noticed: {error}",
                netns.0
            )),
        }
    }

    /// A server lives there, and its interfaces are followed as ours are.
    pub(super) fn follow(&mut self, netns: Netns) {
        self.list_interfaces(netns);
        let until = Instant::now() + AT_ONCE;
        while self.interfaces.is_due() && Instant::now() < until {
            self.attach_due();
        }
        self.watch_interfaces(netns);
    }

    /// Lets go of namespaces in which no server has lived for a time: whoever holds one open keeps it alive. What hangs
    /// there stays, and goes with the namespace.
    pub(super) fn leave_namespaces(&mut self) {
        let own = self.namespaces.own();
        for server in self.servers.values_mut() {
            if server.followed.is_empty() || server.main.is_some_and(process::is_alive) {
                server.left = None;
            } else if server.left.get_or_insert_with(Instant::now).elapsed() >= LEAVE_AFTER {
                server.followed.clear();
                server.left = None;
            }
        }
        for netns in self.namespaces.known() {
            let followed = self.servers.values().any(|server| server.followed.contains(&netns));
            let sessions = self.interfaces.sessions.iter().any(|device| device.netns == netns);
            if netns != own && !followed && !sessions {
                self.interfaces.watchers.remove(&netns);
                self.interfaces.missing.remove(&netns);
                self.namespaces.leave(netns);
                tracing::info!("no server lives in net:[{}] any more: it is not followed", netns.0);
            }
        }
    }

    /// What the configuration says of a namespace: `[kernel]` of our own, and of another one every server in it.
    pub(super) fn patterns_in(&self, netns: Netns) -> Vec<Patterns> {
        if netns == self.namespaces.own() {
            let kernel = &self.config.kernel;
            return vec![Patterns { outer: kernel.outer.clone(), inner: kernel.inner.clone() }];
        }
        (self.servers.values())
            .filter(|server| server.followed.contains(&netns))
            .map(|server| Patterns {
                outer: server.settings.outer.clone(),
                inner: server.settings.inner.clone(),
            })
            .collect()
    }

    pub(super) fn wanted_in(&self, netns: Netns) -> Wanted {
        let all = self.patterns_in(netns);
        let any = |which: fn(&Wanted) -> bool| all.iter().any(|patterns| which(&patterns.wanted()));
        Wanted { addresses: any(|wanted| wanted.addresses), routes: any(|wanted| wanted.routes) }
    }
}

/// Lists at once when something changes, and tells the loop; not more often than every [`PAUSE`].
async fn watch(netns: Netns, mut watcher: Watcher, lister: Lister, inputs: tokio::sync::mpsc::Sender<Input>) {
    let mut lister = Some(lister);
    // what has changed between the first list and the first word
    let mut change = Change::default();
    let mut told: Option<Instant> = None;
    loop {
        if change.overrun && told.is_none_or(|told| told.elapsed() >= TOLD_EVERY) {
            told = Some(Instant::now());
            tracing::info!(
                "more interfaces have changed in net:[{}] than could be told: listing all",
                netns.0
            );
        }
        let Some(mut its) = lister.take() else { return };
        let listed = tokio::task::spawn_blocking(move || {
            let links = its.list().map_err(|error| error.to_string());
            (its, links)
        });
        let Ok((its, links)) = listed.await else { return };
        lister = Some(its);
        let failed = links.is_err();
        if inputs
            .send(Input::Links(Told { netns, change: std::mem::take(&mut change), links }))
            .await
            .is_err()
        {
            return;
        }
        tokio::time::sleep(if failed { FAILED_PAUSE } else { PAUSE }).await;
        if failed {
            continue;
        }
        match watcher.changed().await {
            Ok(what) => change.join(what),
            Err(error) => {
                tracing::warn!(%error, "interfaces cannot be watched; listing them every second");
                tokio::time::sleep(FAILED_PAUSE).await;
            }
        }
    }
}
