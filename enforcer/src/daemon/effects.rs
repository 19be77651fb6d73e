//! What the registry wants done, done.

use std::time::Duration;

use tokio::sync::mpsc;

use crate::config::{Config, Sockets, Tc, Xdp};
use crate::dataplane::{Capacities, GateFacts, Settings, TcPreference, XdpPreference};
use crate::ocserv::Client;
use crate::process::{self, Worker};
use crate::registry::{Effect, Ended, Event, Number, SessionKey};
use crate::session::{Entry, Flow, Netns, Observed, Process, ServerName, Stands, Token};
use crate::sockets::{self, EndSettings, Method};

use super::{Daemon, Input};

/// How long the polite disconnect has until the sockets are destroyed: a worker says goodbye in 1 to 3 ms.
const HEAD_START: Duration = Duration::from_millis(250);
/// For how many revocations the hits of entries that are gone are remembered.
const MAX_PAST_HITS: usize = 100_000;
/// How long the daemon runs before it takes out what an earlier run attached and nobody wants.
const LEFTOVERS_AFTER: Duration = Duration::from_secs(5);
/// How long a worker may live without its sockets.
const KILL_AFTER: Duration = Duration::from_millis(100);

pub(super) fn settings(config: &Config) -> Settings {
    let capacity = &config.kernel.capacity;
    Settings {
        pin_path: config.kernel.pin_path.clone(),
        xdp: match config.kernel.xdp {
            Xdp::Auto => XdpPreference::Auto,
            Xdp::Native => XdpPreference::Native,
            Xdp::Generic => XdpPreference::Generic,
        },
        tc: match config.kernel.tc {
            Tc::Auto => TcPreference::Auto,
            Tc::Tcx => TcPreference::Tcx,
            Tc::Clsact => TcPreference::Clsact,
        },
        capacities: Capacities {
            flows: capacity.flows,
            addresses: capacity.addresses,
            devices: capacity.devices,
            tokens: capacity.tokens,
            safe_ids: capacity.safe_ids,
            cutoffs: capacity.cutoffs,
            locks: capacity.locks,
        },
        openvpn_ports: config.kernel.openvpn_ports.clone(),
        fill: true,
    }
}

/// What the kernel's tables cost, for whoever has to plan the host's memory.
pub(super) fn tell_costs(config: &Config) {
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let costs = settings(config).capacities.costs();
    for cost in &costs {
        tracing::info!(
            "table {}: {} MiB empty, {} bytes for each entry, {} MiB full",
            cost.name,
            mib(cost.empty),
            cost.each,
            mib(cost.full)
        );
    }
    let (empty, full) = costs.iter().fold((0, 0), |sum, cost| (sum.0 + cost.empty, sum.1 + cost.full));
    tracing::info!("kernel memory of all tables: {} MiB empty, {} MiB full", mib(empty), mib(full));
}

/// A server's name as the gate's maps carry it: the first 8 bytes of SHA-256 over it.
pub(super) fn server_number(name: &ServerName) -> u64 {
    use sha2::Digest as _;
    let digest = sha2::Sha256::digest(name.as_str());
    digest.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

impl Daemon {
    pub(super) fn apply(&mut self, effect: Effect) {
        match effect {
            Effect::Insert { entry, number, stands, server, moment } => {
                let gate = GateFacts { server: server.as_ref().map_or(0, server_number), moment };
                let refused = match &entry {
                    Entry::SafeId(id) => Some(*id),
                    _ => None,
                };
                self.insert(entry, number, stands, gate);
                refused.into_iter().for_each(|id| self.cookie_refused(id));
            }
            Effect::CountRefusal { entry } => self.dataplane.count_gate_hit(&entry),
            Effect::Remove { entry, number } => {
                self.remember_hits(&entry, number);
                if let Err(error) = self.dataplane.remove(&entry) {
                    self.warn(format!("an entry could not be taken out of the kernel: {error:#}"));
                }
            }
            Effect::Attach { device, .. } => self.attach_session(device),
            Effect::Watch { key, worker } => self.watch(key, worker),
            Effect::FindFlows { key, worker } => {
                let outcome = flows_of(worker);
                let tokens: Vec<Token> = match &outcome {
                    Ok((netns, flows)) => {
                        flows.iter().filter_map(|flow| self.dataplane.learned(*netns, *flow)).collect()
                    }
                    Err(_) => Vec::new(),
                };
                self.handle(Event::Flows { key, outcome });
                if !tokens.is_empty() {
                    self.handle(Event::Tokens { key, tokens });
                }
            }
            Effect::AskList { server } => self.ask_list(server),
            Effect::AskCookies { server } => self.ask_cookies(server),
            Effect::Terminate { server, safe_id } => {
                let Some(client) = self.client(&server) else { return };
                self.spawn(async move {
                    let outcome = client.terminate_session(safe_id).await.map_err(|error| error.to_string());
                    Event::Terminated { server, safe_id, outcome }
                });
            }
            Effect::Disconnect { server, id } => {
                let Some(client) = self.client(&server) else { return };
                tokio::spawn(async move {
                    if let Err(error) = client.disconnect_id(id).await {
                        // its sockets are ended all the same
                        tracing::info!(%server, id, %error, "ocserv was not told to disconnect");
                    }
                });
            }
            Effect::End { key, worker } => self.end(key, worker),
            Effect::DestroyFlow { number, flow } => {
                let outcome = self.destroy_flow(&flow);
                self.handle(Event::FlowDestroyed { number, outcome });
            }
            Effect::ForgetConnections { netns, address, turn } => {
                self.forget_connections(netns, address, turn);
            }
            Effect::KeepConnections { turn } => self.keep_connections(turn),
            Effect::Probe { server, observed, .. } => self.probe(&server, observed),
            Effect::WatchDevice { device } => {
                self.devices.insert(device);
            }
            Effect::AskBanScore { server, client: address } => {
                let Some(client) = self.client(&server) else { return };
                let inputs = self.inputs.clone();
                tokio::spawn(async move {
                    match client.ban_score(address).await {
                        Ok(score) => tell(&inputs, Event::BanScore { server, client: address, score }).await,
                        Err(error) => tracing::info!(%server, %error, "ocserv does not tell its ban scores"),
                    }
                });
            }
            Effect::Unban { server, client: address } => {
                let Some(client) = self.client(&server) else { return };
                tokio::spawn(async move {
                    if let Err(error) = client.unban(address).await {
                        tracing::warn!(%server, %error, "ban points could not be taken back");
                    }
                });
            }
            Effect::Save => self.save(),
            Effect::Confirm { number } => self.handle(Event::Confirmed { number }),
            Effect::GateAnswer { ask, verdict } => self.answer_gate(ask, verdict),
            Effect::Answer { request, answer } => self.answer(request, answer),
            Effect::WebAnswer { request, answer } => self.web_answer(request, answer),
            Effect::WebListed { watch, keys, ends } => self.web_listed(watch, keys, ends),
            Effect::WebOver { key } => self.web_is_over(key),
            Effect::WebEnded { watch, key, cause, ends } => self.web_ended(watch, key, cause, ends),
            Effect::WebBreak { watch } => self.web_break(watch),
            Effect::WebDestroy { id, keys } => self.web_destroy(id, keys),
            Effect::Decided { number, request, over, decision } => {
                self.decided(number, request, over, decision);
            }
            Effect::TakenBack { number, request, origin, over, by } => {
                self.taken_back(number, request, origin, over, by);
            }
            Effect::LetterStored { key, outcome } => self.letter_stored(&key, outcome),
            Effect::CookiesListed { server, asked, ids } => self.cookies_listed(&server, asked, &ids),
            Effect::Numbered { next } => {
                if let Err(error) = self.dataplane.set_next_revocation(next) {
                    self.warn(format!("the next revocation's number could not be kept: {error:#}"));
                }
            }
            Effect::Note { kind, text } => self.note(kind, text),
        }
    }

    fn insert(&mut self, entry: Entry, number: Number, stands: Stands, gate: GateFacts) {
        if let Err(error) = self.dataplane.insert(&entry, number, stands, gate) {
            let error = error.to_string();
            self.warn(format!("revocation {number} is not in force in the kernel: {error}"));
            self.handle(Event::InsertFailed { entry, number, error });
        }
    }

    /// An entry's hits go with it: they are added to its revocation's.
    fn remember_hits(&mut self, entry: &Entry, number: Number) {
        if let Some(hits) = self.dataplane.hits_and_last(entry).filter(|hits| hits.count > 0)
            && (self.past_hits.len() < MAX_PAST_HITS || self.past_hits.contains_key(&number))
        {
            let past = self.past_hits.entry(number).or_default();
            *past = past.and(hits);
        }
    }

    /// What keeps everything in force without the daemon is looked after: somebody may have unmounted the bpffs.
    pub(super) fn mend_pins(&mut self) {
        match self.dataplane.mend_pins() {
            Ok(mended) if mended.is_nothing() => {}
            Ok(mended) => {
                let (pinned, attached) = (mended.pinned, mended.attached);
                let mounted = if mended.mounted { "a bpffs was mounted, " } else { "" };
                self.note(
                    "kernel",
                    format!(
                        "pins were missing: {mounted}{pinned} pinned again, {attached} devices attached again"
                    ),
                );
            }
            Err(error) => self.warn(format!("pins are missing and cannot be made again: {error:#}")),
        }
    }

    /// A task of its own, whose event comes back into the loop.
    fn spawn(&self, task: impl Future<Output = Event> + Send + 'static) {
        let inputs = self.inputs.clone();
        tokio::spawn(async move { tell(&inputs, task.await).await });
    }

    pub(super) fn client(&self, server: &ServerName) -> Option<Client> {
        self.servers.get(server).map(|server| server.client.clone())
    }

    fn watch(&self, key: SessionKey, worker: Process) {
        self.spawn(async move {
            if let Ok(worker) = Worker::open(worker) {
                // an error says as much as an exit: it cannot be watched any more
                let _ = worker.exited().await;
            }
            Event::WorkerGone { key }
        });
    }

    fn ask_list(&self, server: ServerName) {
        let Some(client) = self.client(&server) else { return };
        let inputs = self.inputs.clone();
        let asked = super::now().mono;
        tokio::spawn(async move {
            let outcome =
                client.list().await.map(|listing| listing.sessions).map_err(|error| error.to_string());
            let _ = inputs.send(Input::Listed { server, asked, outcome }).await;
        });
    }

    fn ask_cookies(&self, server: ServerName) {
        let Some(client) = self.client(&server) else { return };
        let asked = super::now().mono;
        self.spawn(async move {
            let outcome = match client.cookies().await {
                // a cookie whose record cannot be read could be anybody's
                Ok(cookies) if cookies.odd.is_empty() => Ok(cookies.cookies),
                Ok(cookies) => Err(format!("{} of its cookies cannot be read", cookies.odd.len())),
                Err(error) => Err(error.to_string()),
            };
            Event::Cookies { server, asked, outcome }
        });
    }

    fn end(&self, key: SessionKey, worker: Process) {
        let method = match self.config.kernel.sockets {
            Sockets::Auto => Method::Auto,
            Sockets::Kill => Method::Kill,
        };
        self.spawn(async move {
            let ended = match Worker::open(worker) {
                Ok(worker) => {
                    let settings = EndSettings { head_start: HEAD_START, method, kill_after: KILL_AFTER };
                    ended(sockets::end_worker(&worker, settings).await)
                }
                Err(error) if !process::is_alive(worker) => {
                    tracing::debug!(%error, "the worker has ended already");
                    Ended { politely: true, ..Ended::default() }
                }
                Err(error) => Ended { left: vec![error.to_string()], ..Ended::default() },
            };
            Event::Ended { key, ended }
        });
    }

    fn destroy_flow(&self, flow: &Flow) -> Result<u64, String> {
        let mut destroyed = 0;
        for netns in self.namespaces.known() {
            match sockets::destroy_flow(self.namespaces.fd(netns), flow) {
                Ok(sockets::Outcome::Destroyed) => destroyed += 1,
                Ok(sockets::Outcome::AlreadyGone) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(destroyed)
    }

    fn probe(&mut self, server: &ServerName, observed: Observed) {
        let sighting = self.sighting(server, observed, false);
        // without a worker there is nothing to be seen: its end is told by its process
        if sighting.worker.is_some() {
            self.handle(Event::Sighted { server: server.clone(), sighting });
        }
    }

    /// What an earlier run attached where nothing is wanted any more. Only once every server has told of its
    /// sessions, and their devices have been taken over: before that, it may still be needed.
    pub(super) fn detach_leftovers(&mut self) {
        if self.leftovers_done || self.started.elapsed() < LEFTOVERS_AFTER || !self.registry.knows_everybody()
        {
            return;
        }
        self.leftovers_done = true;
        match self.dataplane.detach_others() {
            Ok(0) => {}
            Ok(count) => {
                self.note("kernel", format!("{count} programs of an earlier run were not wanted any more"))
            }
            Err(error) => self.warn(format!("programs of an earlier run could not be taken out: {error:#}")),
        }
    }
}

async fn tell(inputs: &mpsc::Sender<Input>, event: Event) {
    // the loop has stopped: nobody is left to be told
    let _ = inputs.send(Input::Event(event)).await;
}

fn flows_of(worker: Process) -> Result<(Netns, Vec<Flow>), String> {
    let worker = Worker::open(worker).map_err(|error| error.to_string())?;
    let sockets = sockets::connected_sockets(&worker).map_err(|error| error.to_string())?;
    let netns = match sockets.first() {
        Some(socket) => socket.netns,
        None => process::netns_of(worker.process().pid).map_err(|error| error.to_string())?.0,
    };
    Ok((netns, sockets.into_iter().map(|socket| socket.flow).collect()))
}

fn ended(ended: sockets::Ended) -> Ended {
    let left =
        ended.left.iter().map(|(flow, why)| format!("{flow}: {why}")).chain(ended.problems.iter().cloned());
    Ended {
        politely: ended.exited_by_itself,
        destroyed: ended.destroyed.len() as u64,
        killed: ended.killed,
        unsupported: ended.unsupported,
        left: left.collect(),
    }
}
