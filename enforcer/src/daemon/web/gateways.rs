//! Which process a web gateway is, and the table of its sockets, by which the daemon destroys what a gateway that hangs
//! does not close.
//!
//! The table is the gateway's, and nothing in it is believed: it has to be a plain file of the gateway's own user, written
//! by the gateway's process by its own word; and of what it names only that user's sockets are destroyed. So a gateway that
//! was broken into can have its own connections destroyed, and nobody else's.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::config::Sockets;
use crate::control::Caller;
use crate::process::{self, Worker};
use crate::registry::{Event, Gateway};
use crate::session::{Process, WebKey};
use crate::sockets::{self, Named, NamedOutcome};
use crate::web::proxy::table::{Condition, Entry, Reader, Side};

use super::super::{Daemon, Input};

/// How many sockets, and sessions beside those that are meant, one look at a table may find.
const MAX_FOUND: usize = 262_144;
/// How many processes are held on to; a further one is as one that cannot be seen.
const MAX_KNOWN: usize = 64;

/// The gateways of this run.
#[derive(Default)]
pub(super) struct Gateways {
    next: u64,
    known: BTreeMap<Process, Known>,
}

struct Known {
    id: u64,
    table: Option<Arc<Table>>,
    /// Until its end is waited for, which takes the runtime.
    worker: Option<Worker>,
}

/// The table of a gateway's sockets.
pub(in super::super) struct Table {
    reader: Reader,
    process: Process,
}

/// What a table has of sessions that are over.
pub(in super::super) struct Found {
    table: Arc<Table>,
    keys: BTreeSet<WebKey>,
    /// By their cookies, with every session that each is said to be of.
    sockets: BTreeMap<u64, (Entry, BTreeSet<WebKey>)>,
}

impl Gateways {
    pub(super) fn forget(&mut self, id: u64) {
        self.known.retain(|_, known| known.id != id);
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// The gateway of that process. `open`: its table, where that was not opened yet.
    fn of(&mut self, process: Option<Process>, open: impl FnOnce(Process) -> Option<Table>) -> Gateway {
        // whose end could not be told is as good as one that cannot be seen
        let worker = process.and_then(|process| Worker::open(process).ok().map(|worker| (process, worker)));
        let Some((process, worker)) = worker else {
            return Gateway { id: self.number(), process: None, table: false };
        };
        if !self.known.contains_key(&process) && self.known.len() < MAX_KNOWN {
            let id = self.number();
            self.known.insert(process, Known { id, table: None, worker: Some(worker) });
        }
        let Some(known) = self.known.get_mut(&process) else {
            return Gateway { id: self.number(), process: None, table: false };
        };
        if known.table.is_none() {
            known.table = open(process).map(Arc::new);
        }
        Gateway { id: known.id, process: Some(process), table: known.table.is_some() }
    }

    /// Its number, while that process runs. Whoever has it has not ended: its successor comes to be known by its own.
    fn of_process(&self, pid: i32) -> Option<u64> {
        self.known.iter().find(|(process, _)| process.pid == pid).map(|(_, known)| known.id)
    }

    fn table(&self, id: u64) -> Option<Arc<Table>> {
        self.known.values().find(|known| known.id == id)?.table.clone()
    }

    /// The end of each is told from now on. Within the runtime.
    fn watch(&mut self, inputs: &mpsc::Sender<Input>) {
        for known in self.known.values_mut() {
            let (Some(worker), id, inputs) = (known.worker.take(), known.id, inputs.clone()) else {
                continue;
            };
            tokio::spawn(async move {
                // an error says as much as an exit: it cannot be watched any more
                let _ = worker.exited().await;
                let _ = inputs.send(Input::Event(Event::WebGatewayGone { id })).await;
            });
        }
    }
}

impl Daemon {
    /// Who asks to be told of ends.
    pub(super) fn web_gateway(&mut self, caller: Caller) -> Gateway {
        let process = caller.pid.and_then(|pid| process::identify(pid).ok());
        // whoever has connected may have ended, and its number may be another's by now
        let process = process.filter(|its| process::uid_of(its.pid).is_ok_and(|uid| uid == caller.uid));
        let path = self.web_table().map(Path::to_owned);
        let gateway = self.web.gateways.of(process, |process| {
            let reader = Reader::open(path.as_deref()?).ok()?;
            let is_its = reader.owner() == caller.uid && i64::from(reader.pid()) == i64::from(process.pid);
            is_its.then_some(Table { reader, process })
        });
        self.watch_gateways();
        gateway
    }

    /// Whether it reads of ends, or has and runs still: so whether each end waits for it.
    pub(super) fn may_be_told(&self, caller: Caller) -> bool {
        match caller.pid.and_then(|pid| self.web.gateways.of_process(pid)) {
            Some(id) => self.registry.knows_web_gateway(id),
            None => self.registry.knows_unseen_web_gateway(),
        }
    }

    /// Their ends are told from now on.
    pub(in super::super) fn watch_gateways(&mut self) {
        self.web.gateways.watch(&self.inputs);
    }

    /// The gateways that there were before the daemon was started, and that run still: those that were `noted` on the disk,
    /// and the one that the table tells of. `None`: neither tells of any.
    pub(in super::super) fn earlier_gateways(&mut self, noted: Option<Vec<Process>>) -> Option<Vec<Gateway>> {
        let user = self.config.web.as_ref().and_then(|web| super::user_of(web).ok())?;
        let is_its = |process: Process, uid| process::uid_of(process.pid).is_ok_and(|its| its == uid);
        let is_known = noted.is_some();
        let mut earlier: BTreeMap<Process, Option<Reader>> = (noted.into_iter().flatten())
            .filter(|process| process::is_alive(*process))
            .filter(|process| is_its(*process, user) || is_its(*process, 0))
            .map(|process| (process, None))
            .collect();
        let reader = self.web_table().and_then(|path| Reader::open(path).ok());
        let reader = reader.filter(|reader| reader.owner() == user || reader.owner() == 0);
        if reader.is_none() && !is_known {
            return None;
        }
        // where it has ended its sockets have ended with it
        if let Some(reader) = reader
            && let Some(process) =
                i32::try_from(reader.pid()).ok().and_then(|pid| process::identify(pid).ok())
            && is_its(process, reader.owner())
        {
            earlier.insert(process, Some(reader));
        }
        let known = earlier.into_iter().map(|(process, reader)| {
            let table = |process| reader.map(|reader| Table { reader, process });
            self.web.gateways.of(Some(process), table)
        });
        Some(known.collect())
    }

    /// Where a table is looked for. Without SOCK_DESTROY there is nothing to be done with it.
    fn web_table(&self) -> Option<&Path> {
        let web = self.config.web.as_ref()?;
        (self.config.kernel.sockets == Sockets::Auto).then_some(web.socket_table.as_path())
    }

    /// What that gateway has of these is looked for, off the loop.
    pub(in super::super) fn web_destroy(&mut self, id: u64, keys: Vec<WebKey>) {
        let Some(table) = self.web.gateways.table(id) else {
            let trouble = Some("its table of sockets is gone".to_owned());
            return self.handle(Event::WebDestroyed { id, gone: Vec::new(), trouble });
        };
        let inputs = self.inputs.clone();
        tokio::task::spawn_blocking(move || {
            let input = match look(table, keys.into_iter().collect()) {
                Ok(found) => Input::WebSockets { id, found },
                Err(why) => Input::Event(Event::WebDestroyed { id, gone: Vec::new(), trouble: Some(why) }),
            };
            let _ = inputs.blocking_send(input);
        });
    }

    /// Now it is known who else may be on these sockets.
    pub(in super::super) fn web_found(&mut self, id: u64, found: Found) {
        let others = found.sockets.values().flat_map(|(_, sessions)| sessions);
        let over: BTreeSet<WebKey> = others.filter(|key| !self.registry.is_web_alive(key)).copied().collect();
        let inputs = self.inputs.clone();
        tokio::task::spawn_blocking(move || {
            let (gone, trouble) = match destroy(&found, &over) {
                Ok(gone) => (gone, None),
                Err(why) => (Vec::new(), Some(why)),
            };
            let _ = inputs.blocking_send(Input::Event(Event::WebDestroyed { id, gone, trouble }));
        });
    }
}

/// The sockets of these sessions, and who else is on each.
fn look(table: Arc<Table>, keys: BTreeSet<WebKey>) -> Result<Found, String> {
    let mut sockets: BTreeMap<u64, (Entry, BTreeSet<WebKey>)> = BTreeMap::new();
    let mut many = false;
    let read = table.reader.each(|entry| {
        if keys.contains(&key_of(&entry)) {
            many |= sockets.len() >= MAX_FOUND;
            if !many {
                sockets.insert(entry.cookie, (entry, BTreeSet::new()));
            }
        }
    });
    read.map_err(|error| error.to_string())?;
    let mut found = 0;
    let read = table.reader.each(|entry| {
        if let Some((_, sessions)) = sockets.get_mut(&entry.cookie) {
            many |= found >= MAX_FOUND;
            if !many {
                found += usize::from(sessions.insert(key_of(&entry)));
            }
        }
    });
    read.map_err(|error| error.to_string())?;
    if many {
        return Err(format!("its table of sockets tells of more than {MAX_FOUND}"));
    }
    Ok(Found { table, keys, sockets })
}

fn key_of(entry: &Entry) -> WebKey {
    WebKey::from_bytes(entry.session.0)
}

/// Destroys what may be destroyed: each socket to an origin, and each client's that nobody who lives is on. `over`: those
/// on them that are known to be over. Returns how many were destroyed of each session, of which nothing is left then; or what
/// was in the way of that.
fn destroy(found: &Found, over: &BTreeSet<WebKey>) -> Result<Vec<(WebKey, u64)>, String> {
    let Table { reader, process } = found.table.as_ref();
    // once more, now: a socket may have become another session's
    let (mut due, mut spared) = (BTreeMap::new(), BTreeSet::new());
    let condition = reader.each(|entry| {
        if !found.sockets.contains_key(&entry.cookie) {
            return;
        }
        let key = key_of(&entry);
        if !over.contains(&key) || entry.side == (Side::Client { trusted: true }) {
            spared.insert(entry.cookie);
        }
        if found.keys.contains(&key) {
            due.entry(entry.cookie).or_insert((entry, BTreeSet::new())).1.insert(key);
        }
    });
    let condition = condition.map_err(|error| error.to_string())?;
    due.retain(|cookie, _| !spared.contains(cookie));
    let (its, netns) = process::netns_of(process.pid).map_err(|error| error.to_string())?;
    // by its number alone it might be another's by now
    if !process::is_alive(*process) {
        return Err("the gateway has ended".into());
    }
    let (own, _) = process::own_netns().map_err(|error| error.to_string())?;
    // where both are the same no right to move is needed
    let netns = (its != own).then_some(netns);
    let named: Vec<Named> = (due.values())
        .map(|(entry, _)| Named { cookie: entry.cookie, ours: entry.ours, theirs: entry.theirs })
        .collect();
    let outcomes = sockets::destroy_named(netns.as_ref().map(OwnedFd::as_fd), reader.owner(), &named);
    let outcomes = outcomes.map_err(|error| error.to_string())?;
    let mut gone: BTreeMap<WebKey, u64> = found.keys.iter().map(|key| (*key, 0)).collect();
    let mut strangers = 0;
    for ((_, keys), outcome) in due.values().zip(outcomes) {
        strangers += usize::from(outcome == NamedOutcome::Strangers);
        for key in keys {
            match outcome {
                NamedOutcome::Destroyed => gone.entry(*key).and_modify(|sockets| *sockets += 1),
                _ => gone.entry(*key),
            };
        }
    }
    if strangers > 0 {
        return Err(format!("its table names {strangers} sockets of other users, which were let be"));
    }
    match condition {
        Condition { missed: 0, torn: 0 } => Ok(gone.into_iter().collect()),
        Condition { missed: 0, torn } => {
            Err(format!("{torn} lines of its table of sockets were being written: they may be anybody's"))
        }
        Condition { missed, .. } => {
            Err(format!("its table of sockets had no room for {missed} (limits.table-slots)"))
        }
    }
}
