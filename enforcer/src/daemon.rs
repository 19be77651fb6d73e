//! The daemon: one loop. An event comes in, the registry says what follows from it, the adapters do it.

mod answers;
mod checks;
mod choice;
mod cluster;
mod connections;
mod drops;
mod effects;
mod following;
mod guard;
mod interfaces;
mod namespaces;
mod privileges;
mod proofs;
mod shows;
mod sightings;
mod state;
mod web;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

use crate::config::{self, Config};
use crate::control::{self, Call, Reply, api};
use crate::dataplane::{Dataplane, Hits};
use crate::ocserv::{self, Client, FeedEvent, FeedState};
use crate::process;
use crate::registry::{
    Adopted, Answer, Ask, Effect, Event, Left, Now, Number, Order, Registry, Request, Rules, SessionRow,
};
use crate::session::{Author, Cookie, Device, Netns, Observed, Process, ServerName, SessionRecord, Stands};

pub use checks::check_without_daemon;
pub use state::{forget_etcd, repair};

/// How long one question to ocserv may take.
const OCSERV_WITHIN: Duration = Duration::from_millis(1_500);
/// How often workers are listed where the feed cannot tell.
const POLL_EVERY: Duration = Duration::from_secs(1);
/// The lease of what could hit a stranger is 10 s: this leaves room for a loaded machine.
const BEAT_EVERY: Duration = Duration::from_secs(1);
/// How often it is looked whether tunnel devices are gone, besides what the kernel tells.
const SWEEP_EVERY: Duration = Duration::from_millis(500);
/// How many inputs may wait for the loop.
const QUEUE: usize = 4_096;
/// How many events `show events` remembers.
const MAX_EVENTS: usize = 1_000;
/// How many of these tell of web gateways, which may come and go as often as they like.
const MAX_WEB_EVENTS: usize = 200;
/// So many effects are looked at together before the first of them is done.
const AT_ONCE: usize = 32;

/// What the loop waits for.
enum Input {
    Call(Call),
    Feed(ServerName, FeedEvent),
    Event(Event),
    /// The interfaces of a namespace have changed.
    Links(interfaces::Told),
    /// A complete list of workers, asked for at `asked`.
    Listed {
        server: ServerName,
        asked: Duration,
        outcome: Result<Vec<Observed>, String>,
    },
    /// What ocserv says of the login that the gate asks about.
    Looked {
        name: ServerName,
        look: api::GateLook,
        observed: Result<Option<Observed>, String>,
        reply: Answerer,
    },
    /// The cookies that a question had to wait for.
    Fetched(Vec<(ServerName, Vec<Cookie>)>, Then),
    /// What a web gateway's table has of sessions that are over.
    WebSockets {
        id: u64,
        found: web::Found,
    },
    /// Connections were taken out of that namespace's tracking, or could not be.
    Forgotten {
        netns: Netns,
        done: Vec<connections::Forgotten>,
    },
    /// What etcd has, or its adapter.
    Cluster(Box<crate::cluster::Told>),
    /// ocserv's own answer to a plain disconnect.
    Disconnected {
        rows: Vec<SessionRow>,
        notes: Vec<String>,
        any: bool,
        reply: Answerer,
    },
}

type Answerer = oneshot::Sender<Result<Reply, Status>>;

/// What is done once the cookies are there.
enum Then {
    ShowSessions(Answerer),
    Preview(Box<Order>, Answerer),
}

/// What the daemon knows of a server besides its rules.
struct Server {
    settings: config::Server,
    client: Client,
    main: Option<Process>,
    /// The namespaces that it and its workers live in, other than ours.
    followed: BTreeSet<Netns>,
    /// Since when its main process is not there, where it has such a namespace.
    left: Option<Instant>,
    feed: FeedState,
    /// Why its configuration could not be read, if so.
    scripts: Result<bool, String>,
    /// ocserv's firewall script would hand the gate to a shell, and the gate is a program.
    needs_wrapper: bool,
}

struct Daemon {
    config: Config,
    registry: Registry,
    dataplane: Dataplane,
    namespaces: namespaces::Namespaces,
    servers: BTreeMap<ServerName, Server>,
    inputs: mpsc::Sender<Input>,
    state: state::State,
    /// Sessions of an earlier run, until the loop begins: what is done with them takes the runtime.
    remembered: Vec<SessionRecord>,
    requests: BTreeMap<Request, (answers::Waiter, Instant)>,
    parts: BTreeMap<u64, answers::Part>,
    next_part: u64,
    next_request: Request,
    asks: BTreeMap<Ask, cluster::AtGate>,
    next_ask: Ask,
    /// What is looked for: devices with programs, and those of which something is said in the kernel.
    devices: BTreeSet<Device>,
    interfaces: interfaces::Interfaces,
    forgetting: connections::Forgetting,
    web: web::Web,
    /// The other gateways, where there are any.
    cluster: Option<Box<cluster::Link>>,
    /// Hits of entries that were taken out, by revocation.
    past_hits: BTreeMap<Number, Hits>,
    events: VecDeque<api::Event>,
    drops: drops::Told,
    started: Instant,
    /// The same, in unix seconds.
    started_at: u64,
    leftovers_done: bool,
    warnings: Vec<String>,
}

#[derive(serde::Serialize)]
pub struct Unloaded {
    pub text: String,
}

/// Takes everything out of the kernel.
pub fn unload(config: &Config) -> anyhow::Result<Unloaded> {
    let report = Dataplane::unload(&config.kernel.pin_path)?;
    anyhow::ensure!(report.left.is_empty(), "could not be taken out: {}", report.left.join("; "));
    let text = format!(
        "{} programs, {} clsact filters and {} maps were taken out",
        report.links, report.filters, report.maps
    );
    Ok(Unloaded { text })
}

/// Runs the daemon in the foreground until SIGTERM or SIGINT. What is in force in the kernel stays in force.
pub fn run(config: Config) -> anyhow::Result<()> {
    crate::logging::start();
    anyhow::ensure!(
        nix::unistd::geteuid().is_root(),
        "the daemon needs root (CAP_BPF, CAP_NET_ADMIN, CAP_SYS_PTRACE …)"
    );
    // before anything is loaded: two daemons would each take the other's entries out
    let control = control::bind(&config.control.socket)?;
    let gate = control::bind(&config.gate.socket)?;
    // a web gateway that cannot be served is told of, and keeps nobody else waiting
    let (web, unserved) = match web::bind(&config) {
        Ok(web) => (web, None),
        Err(error) => (None, Some(error)),
    };
    let (inputs, received) = mpsc::channel(QUEUE);
    let mut daemon = Daemon::start(config, inputs)?;
    if let Some(error) = unserved {
        daemon.web_unserved(&error);
    }
    // before the runtime starts threads, which inherit what is left
    if let Err(error) = privileges::drop_the_rest() {
        daemon.warn(format!("capabilities that are not needed could not be dropped: {error:#}"));
    }
    let runtime = (tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build())
        .context("cannot start the runtime")?;
    runtime.block_on(daemon.serve(control, gate, web, received))
}

fn now() -> Now {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    Now { mono: Duration::from_nanos(Dataplane::kernel_monotonic_ns()), wall }
}

/// Unix milliseconds.
fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
    u64::try_from(now).unwrap_or(u64::MAX)
}

impl Daemon {
    /// Programs and links in force first, then what an earlier run left, then everything else.
    fn start(config: Config, inputs: mpsc::Sender<Input>) -> anyhow::Result<Self> {
        let (own, own_fd) = process::own_netns().context("cannot tell the own network namespace")?;
        // before anything is changed: what is in force stays so if this fails
        let (state, loaded) = state::open(&config, inputs.clone())?;
        let rebooted = !state.is_this_boot(&loaded);
        let mut dataplane =
            Dataplane::open(effects::settings(&config)).context("the kernel side cannot be set up")?;
        effects::tell_costs(&config);
        let mut servers = BTreeMap::new();
        for settings in config.ocserv.iter() {
            let server = Server {
                client: Client::new(&settings.control_socket, OCSERV_WITHIN),
                settings: settings.clone(),
                main: None,
                followed: BTreeSet::new(),
                left: None,
                feed: FeedState::Off,
                scripts: Err("ocserv has not been reached yet".into()),
                needs_wrapper: false,
            };
            servers.insert(settings.server_name(), server);
        }
        let rules = Rules {
            first_number: dataplane.next_revocation().max(loaded.next_number),
            realms: config.realms(),
            invalidate_on_disconnect: (config.ocserv.iter())
                .filter(|server| server.invalidate_on_disconnect)
                .map(config::Server::server_name)
                .collect(),
            most_web_sessions: config.web.as_ref().map_or(0, |web| web.max_sessions as usize),
            most_web_bytes: config.web.as_ref().map_or(0, config::Web::most_bytes),
            replicates: config.cluster.as_ref().map(|_| answers::realms_of(&config)),
            // what is no id is told below
            author: loaded.gateway.parse().ok().map(Author::Gateway),
            ..Rules::default()
        };
        let left = cluster::Left {
            gateway: loaded.gateway,
            known: loaded.known,
            letters: loaded.letters,
            admissions: loaded.admissions,
        };
        let link = cluster::link(&config, left)?;
        let registry = Registry::new(servers.keys().cloned(), own, rules);
        let entries = adopted(&mut dataplane, servers.keys())?;
        dataplane.beat()?;
        let mut daemon = Self {
            registry,
            dataplane,
            namespaces: namespaces::Namespaces::new(own, own_fd)?,
            servers,
            inputs,
            state,
            remembered: Vec::new(),
            requests: BTreeMap::new(),
            parts: BTreeMap::new(),
            next_part: 1,
            next_request: 1,
            asks: BTreeMap::new(),
            next_ask: 1,
            devices: BTreeSet::new(),
            interfaces: interfaces::Interfaces::default(),
            forgetting: connections::Forgetting::default(),
            web: web::Web::new()?,
            cluster: link.map(Box::new),
            past_hits: BTreeMap::new(),
            events: VecDeque::new(),
            drops: drops::Told::default(),
            started: Instant::now(),
            started_at: now().wall,
            leftovers_done: false,
            warnings: Vec::new(),
            config,
        };
        if let Some(why) = loaded.unwritable {
            daemon.warn(format!("the state directory: {why}"));
        }
        daemon.attach_own_interfaces();
        let wall = if loaded.fresh { 0 } else { loaded.wall };
        let gateways = daemon.earlier_gateways(loaded.web_gateways);
        let left = Left {
            entries,
            records: loaded.records,
            lifted: loaded.lifted,
            wall,
            rebooted,
            web: loaded.web,
            gateways,
        };
        daemon.handle(Event::Adopt(Box::new(left)));
        daemon.dataplane.filled()?;
        daemon.remembered = if rebooted { Vec::new() } else { loaded.sessions };
        daemon.write_clock();
        Ok(daemon)
    }

    async fn serve(
        mut self,
        control: UnixListener,
        gate: UnixListener,
        web: Option<(UnixListener, u32)>,
        mut received: mpsc::Receiver<Input>,
    ) -> anyhow::Result<()> {
        let control = tokio::net::UnixListener::from_std(control)?;
        let gate = tokio::net::UnixListener::from_std(gate)?;
        for (name, server) in &self.servers {
            tokio::spawn(feed(
                name.clone(),
                server.client.clone(),
                server.settings.feed,
                self.inputs.clone(),
            ));
        }
        self.watch_interfaces(self.namespaces.own());
        let logger = self.dataplane.logger()?;
        // SAFETY: the logger owns its ring buffer's descriptor, and neither closes nor replaces it before it is
        // dropped, which is after its registration.
        let mut kernel_log = unsafe {
            tokio::io::unix::AsyncFd::register_with_interest(logger, tokio::io::Interest::READABLE)?
        };
        // SAFETY: likewise.
        let mut kernel_drops = unsafe {
            let drops = self.dataplane.drops()?;
            tokio::io::unix::AsyncFd::register_with_interest(drops, tokio::io::Interest::READABLE)?
        };
        let (calls, called) = mpsc::channel(QUEUE);
        tokio::spawn(control::serve_control(control, calls.clone()));
        tokio::spawn(control::serve_gate(gate, calls));
        let (web_calls, web_called) = mpsc::channel(control::WEB_QUEUE);
        if let Some((web, uid)) = web {
            let web = tokio::net::UnixListener::from_std(web)?;
            tokio::spawn(control::serve_web(web, uid, web_calls));
        }
        let mut called = Calls { control: called, web: web_called, web_is_next: false };
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let remembered = std::mem::take(&mut self.remembered);
        self.remember_sessions(remembered);
        self.watch_gateways();
        self.start_forgetting_all();
        self.start_cluster();
        let mut beat = tokio::time::interval(BEAT_EVERY);
        let mut sweep = tokio::time::interval(SWEEP_EVERY);
        let mut clock = tokio::time::interval(state::CLOCK_EVERY);
        let mut sessions = tokio::time::interval(state::SESSIONS_EVERY);
        let mut ticked = tokio::time::Instant::now();
        let mut tick_at = ticked;
        let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]);
        tracing::info!(socket = %self.config.control.socket.display(), "ready");
        loop {
            tokio::select! {
                biased;
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = beat.tick() => {
                    if let Err(error) = self.dataplane.beat() {
                        self.warn(format!("the lease of addresses and flows could not be renewed: {error:#}"));
                    }
                    self.mend_pins();
                    self.allow_drops();
                    self.cluster_tick();
                    // a loop that hangs is started anew by systemd
                    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Watchdog]);
                }
                _ = clock.tick() => self.write_clock(),
                _ = sessions.tick() => self.write_sessions(),
                _ = sweep.tick() => self.sweep(),
                _ = tokio::time::sleep_until(tick_at) => {
                    self.handle(Event::Tick);
                    ticked = tokio::time::Instant::now();
                }
                Some(input) = received.recv() => self.take(input),
                Some(call) = called.next() => self.take(Input::Call(call)),
                guard = kernel_log.readable_mut() => {
                    let mut guard = guard?;
                    guard.get_inner_mut().flush();
                    guard.clear_ready();
                }
                guard = kernel_drops.readable_mut() => {
                    let mut guard = guard?;
                    let dropped = drops::read(guard.get_inner_mut());
                    // there may be more: others first
                    if dropped.len() < drops::AT_ONCE {
                        guard.clear_ready();
                    }
                    drop(guard);
                    dropped.into_iter().for_each(|dropped| self.tell_drop(dropped));
                }
                // after all else; and the others are looked at again before the next part
                () = tokio::task::yield_now(), if self.interfaces.is_due() => self.attach_due(),
            }
            // counted from the last tick, so that no amount of other work puts the next one off
            tick_at = ticked + self.registry.next_tick(now());
        }
        let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Stopping]);
        tracing::info!(
            "stopping; what is in force in the kernel stays in force (enforcer unload takes it out)"
        );
        let _ = std::fs::remove_file(&self.config.control.socket);
        let _ = std::fs::remove_file(&self.config.gate.socket);
        if let Some(web) = &self.config.web {
            let _ = std::fs::remove_file(&web.socket);
        }
        self.write_clock();
        // the writer tells the loop what it has written, and nobody listens any more
        drop(received);
        self.state.stop();
        Ok(())
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Call(call) => self.call(call),
            Input::Feed(server, event) => self.feed(&server, event),
            Input::Event(event) => self.handle(event),
            Input::Links(told) => self.interfaces_changed(told),
            Input::Listed { server, asked, outcome } => self.listed(server, asked, outcome),
            Input::Looked { name, look, observed, reply } => self.looked(name, look, observed, reply),
            Input::Fetched(cookies, then) => self.fetched(&cookies, then),
            Input::WebSockets { id, found } => self.web_found(id, found),
            Input::Forgotten { netns, done } => self.forgotten(netns, done),
            Input::Cluster(told) => self.cluster_told(*told),
            Input::Disconnected { rows, notes, any, reply } => {
                let _ = reply.send(answers::disconnected(rows, notes, any));
            }
        }
    }

    /// The registry's rules, and what they want done, in their order.
    fn handle(&mut self, event: Event) {
        tracing::debug!(?event);
        self.web_before(&event);
        let mut effects = self.registry.handle(event, now()).into_iter();
        loop {
            let some: Vec<Effect> = effects.by_ref().take(AT_ONCE).collect();
            if some.is_empty() {
                return;
            }
            self.dataplane.expect(some.iter().filter_map(|effect| match effect {
                Effect::Insert { entry, .. } => Some(entry),
                _ => None,
            }));
            for effect in some {
                tracing::debug!(?effect);
                self.apply(effect);
            }
        }
    }

    fn feed(&mut self, name: &ServerName, event: FeedEvent) {
        match event {
            FeedEvent::Up { main, capabilities, netns } => {
                let scripts = ocserv::scripts(
                    main,
                    self.servers.get(name).and_then(|server| server.settings.config.as_deref()),
                );
                let configured = match &scripts {
                    Ok(scripts) => {
                        Ok(scripts.connect.as_ref().is_some_and(|script| ocserv::names_gate(main, script)))
                    }
                    Err(error) => Err(error.to_string()),
                };
                let needs_wrapper = scripts.is_ok_and(|scripts| {
                    let shell = |script| ocserv::is_shell_script(main, script);
                    scripts.firewall && scripts.connect.as_deref().is_some_and(|script| !shell(script))
                });
                if let Some(server) = self.servers.get_mut(name) {
                    server.needs_wrapper = needs_wrapper;
                    server.main = Some(main);
                    server.scripts.clone_from(&configured);
                }
                self.know_netns(name, main, netns);
                self.handle(Event::ServerUp {
                    server: name.clone(),
                    main,
                    terminate: capabilities.terminate,
                });
                self.handle(Event::GateConfigured {
                    server: name.clone(),
                    configured: configured == Ok(true),
                });
            }
            FeedEvent::Down { why } => {
                let gone =
                    self.servers.get(name).and_then(|s| s.main).is_some_and(|main| !process::is_alive(main));
                self.note("ocserv", format!("{name}: {why}"));
                self.handle(Event::ServerDown { server: name.clone(), gone });
            }
            FeedEvent::List(list) => self.listed(name.clone(), Duration::ZERO, Ok(list)),
            FeedEvent::Connected(observed) => {
                let sighting = self.sighting(name, observed, true);
                self.handle(Event::Sighted { server: name.clone(), sighting });
            }
            FeedEvent::Disconnected { observed, reason, .. } => {
                let (server, id, safe_id, user) =
                    (name.clone(), observed.id, observed.safe_id, observed.user);
                self.handle(Event::FeedDisconnected { server, id, safe_id, user, reason });
            }
            FeedEvent::Mode(state) => {
                if let FeedState::Polling { why } = &state {
                    self.note("feed", format!("{name}: polling: {why}"));
                }
                if let Some(server) = self.servers.get_mut(name) {
                    server.feed = state;
                }
            }
        }
    }

    fn listed(&mut self, server: ServerName, asked: Duration, outcome: Result<Vec<Observed>, String>) {
        let outcome = outcome
            .map(|list| list.into_iter().map(|observed| self.sighting(&server, observed, false)).collect());
        self.handle(Event::Listed { server, asked, outcome });
    }

    fn note(&mut self, kind: &str, text: String) {
        tracing::info!(kind, "{text}");
        remember(&mut self.events, api::Event { at_ms: now_ms(), kind: kind.to_owned(), text, drop: None });
    }

    /// For `show status` and `check`; each is said once.
    fn warn(&mut self, text: String) {
        if !self.warnings.contains(&text) {
            tracing::warn!("{text}");
            if self.warnings.len() < 100 {
                self.warnings.push(text);
            }
        }
    }

    fn answer(&mut self, request: Request, answer: Answer) {
        match self.requests.remove(&request) {
            Some((answers::Waiter::One(reply), since)) => self.answer_or_hold(request, answer, reply, since),
            Some((answers::Waiter::Cluster, _)) => self.cluster_answered(request, &answer),
            Some((answers::Waiter::Part(part), _)) => self.part_answered(part, answer),
            None => {}
        }
    }
}

/// The ways by which calls come, in turn: whatever a web gateway asks, and how often, an order of the administrator's or a
/// gate's question waits for one of its calls at most; and the other way round.
struct Calls {
    /// Of the control and the gate's socket.
    control: mpsc::Receiver<Call>,
    web: mpsc::Receiver<Call>,
    web_is_next: bool,
}

impl Calls {
    /// `None`: nobody can call any more. Nothing is lost where this is given up.
    async fn next(&mut self) -> Option<Call> {
        let (first, second) = match self.web_is_next {
            true => (&mut self.web, &mut self.control),
            false => (&mut self.control, &mut self.web),
        };
        let (call, was_first) = tokio::select! {
            biased;
            Some(call) = first.recv() => (call, true),
            Some(call) = second.recv() => (call, false),
            else => return None,
        };
        // whoever was served comes after the other
        self.web_is_next ^= was_first;
        Some(call)
    }
}

/// The oldest event makes room; of those that gateways bring about as they like one of their own.
fn remember(events: &mut VecDeque<api::Event>, event: api::Event) {
    let of_web = |event: &api::Event| event.kind == "web";
    let full = events.len() >= MAX_EVENTS;
    if of_web(&event) && events.iter().filter(|event| of_web(event)).count() >= MAX_WEB_EVENTS {
        let oldest = events.iter().position(of_web);
        oldest.map(|oldest| events.remove(oldest));
    } else if full {
        events.pop_front();
    }
    events.push_back(event);
}

/// The feed of one server, into the loop. Drained by its adapter whatever the loop does.
async fn feed(name: ServerName, client: Client, listen: bool, inputs: mpsc::Sender<Input>) {
    let mode = if listen { ocserv::Mode::Feed } else { ocserv::Mode::Poll };
    let (events, mut told) = mpsc::channel(QUEUE);
    tokio::spawn(ocserv::run(client, mode, POLL_EVERY, events));
    while let Some(event) = told.recv().await {
        if inputs.send(Input::Feed(name.clone(), event)).await.is_err() {
            return;
        }
    }
}

/// What is in the kernel already. Leases that lapsed while no daemon was there are taken out before they could
/// come into force again.
fn adopted<'a>(
    dataplane: &mut Dataplane,
    servers: impl Iterator<Item = &'a ServerName>,
) -> anyhow::Result<Vec<Adopted>> {
    let servers: BTreeMap<u64, ServerName> =
        servers.map(|name| (effects::server_number(name), name.clone())).collect();
    let lapsed = dataplane.lapsed();
    let mut adopted = Vec::new();
    for stored in dataplane.entries()? {
        if lapsed && stored.stands == Stands::Leased {
            dataplane.remove(&stored.entry)?;
            continue;
        }
        adopted.push(Adopted {
            server: servers.get(&stored.gate.server).cloned(),
            moment: stored.gate.moment,
            entry: stored.entry,
            number: stored.revocation,
            stands: stored.stands,
        });
    }
    Ok(adopted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::WebRequest;

    /// R7: one call in turn, however many wait of the web gateway's, or of the others; and with none of the one kind the
    /// other goes on.
    #[tokio::test]
    async fn r7_calls_come_in_turn() {
        let call = |uid| {
            let caller = control::Caller { uid, pid: None };
            Call { request: control::Request::Web(WebRequest::Watch), caller, reply: oneshot::channel().0 }
        };
        let (order, control) = mpsc::channel(100);
        let (ask, web) = mpsc::channel(100);
        let mut calls = Calls { control, web, web_is_next: false };
        for _ in 0..20 {
            ask.send(call(1)).await.unwrap();
        }
        let mut came = Vec::new();
        for round in 0..40 {
            if round == 10 {
                for _ in 0..20 {
                    order.send(call(0)).await.unwrap();
                }
            }
            came.push(calls.next().await.unwrap().caller.uid);
        }
        assert_eq!(came[..10], [1; 10]);
        assert!(came[10..30].chunks(2).all(|two| two.contains(&0) && two.contains(&1)), "{came:?}");
        assert_eq!(came[30..], [0; 10]);
        drop((order, ask));
        assert!(calls.next().await.is_none());
    }

    /// R7: however often a web gateway comes and goes, what else has happened is remembered; and its twin: without it every
    /// place is the others'.
    #[test]
    fn r7_events_of_the_web_gateway_push_out_no_others() {
        let event = |kind: &str, at_ms| api::Event { kind: kind.into(), at_ms, ..api::Event::default() };
        let mut events = VecDeque::new();
        (0..700).for_each(|at| remember(&mut events, event("revoked", at)));
        (700..5_000).for_each(|at| remember(&mut events, event("web", at)));
        let of = |events: &VecDeque<api::Event>, kind: &str| events.iter().filter(|e| e.kind == kind).count();
        assert_eq!((of(&events, "revoked"), of(&events, "web")), (700, MAX_WEB_EVENTS));
        assert_eq!(events.back().map(|event| event.at_ms), Some(4_999), "the newest of them are there");
        (5_000..9_000).for_each(|at| remember(&mut events, event("revoked", at)));
        assert_eq!((of(&events, "revoked"), of(&events, "web")), (MAX_EVENTS, 0));
        assert!(events.iter().map(|event| event.at_ms).is_sorted());
    }
}
