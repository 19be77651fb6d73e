//! The control API's records: what is asked becomes an order, what the registry tells becomes an answer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use tonic::Status;

use crate::config::{Config, WhenBlind};
use crate::control::target::{self, Asked, MAX_REASON};
use crate::control::{Call, Caller, MAX_ERRORS, Reply, Request, SessionsFrom, api};
use crate::ocserv;
use crate::registry::{Answer, Event, Order, SessionRow, Target, Verdict};
use crate::session::{Audit, Cookie, Observed, ServerName, TokenKind};

use super::cluster::AtGate;
use super::shows::{layer, row};
use super::{Answerer, Daemon, Input, Then, guard, web};

/// Who waits for an answer.
pub(super) enum Waiter {
    One(Answerer),
    /// A part of a stream.
    Part(u64),
    /// Another gateway has decided it.
    Cluster,
}

/// A part of a stream of revocations, on its way.
pub(super) struct Part {
    left: usize,
    /// Of how many the other gateways have to be told.
    replicated: u64,
    bulk: api::BulkReceipt,
    reply: Answerer,
    by: String,
    /// The first and the last that it was given.
    numbers: Option<(u64, u64)>,
}

impl Daemon {
    pub(super) fn call(&mut self, call: Call) {
        let Call { request, caller, reply } = call;
        match request {
            Request::Revoke(request) => self.call_revoke(request, caller, reply),
            Request::RevokeMany(requests) => self.call_revoke_many(requests, caller, reply),
            Request::Lock(request) => self.call_lock(request, caller, reply),
            Request::Unlock(request) => self.call_unlock(&request, caller, reply),
            Request::Lift(request) => self.call_lift(&request, caller, reply),
            Request::Disconnect(request) => self.call_disconnect(request, caller, reply),
            Request::Status(_) => {
                let _ = reply.send(Ok(Reply::Status(Box::new(self.status()))));
            }
            Request::Users(from) => {
                let (some, next) = self.users(from);
                let _ = reply.send(Ok(Reply::Users(some, next)));
            }
            Request::Sessions(SessionsFrom::Vpn) => self.fetch_cookies(Then::ShowSessions(reply)),
            Request::Sessions(SessionsFrom::Web(after)) => {
                let (some, next) = self.web_sessions_after(after);
                let _ = reply.send(Ok(Reply::Sessions(some, next)));
            }
            Request::Revocations(page) => {
                let (part, next) = self.revocations(page);
                let _ = reply.send(Ok(Reply::Revocations(part, next)));
            }
            Request::CountRevocations(_) => {
                let _ = reply.send(Ok(Reply::Count(self.count_revocations())));
            }
            Request::Events(_) => {
                let _ = reply.send(Ok(Reply::Events(self.all_events())));
            }
            Request::Check(_) => {
                let _ = reply.send(Ok(Reply::Findings(self.findings())));
            }
            Request::Gateways(_) => {
                let _ = reply.send(self.show_gateways());
            }
            Request::AllSessions(after) => self.show_all_sessions(after, reply),
            Request::Web(request) => self.call_web(request, caller, reply),
            Request::Look(look) => self.call_look(look, caller, reply),
            Request::Left(look) => {
                // nothing is believed of a disconnect-script, which may come after the next session's
                // connect-script: a worker's end is told by its process
                let server =
                    self.server_of_gate(caller, look.id).map(|name| name.to_string()).unwrap_or_default();
                let verdict = api::GateVerdict { admit: true, text: String::new(), server };
                self.sweep();
                let _ = reply.send(Ok(Reply::Verdict(verdict)));
            }
        }
    }

    fn call_revoke(&mut self, request: api::RevokeRequest, caller: Caller, reply: Answerer) {
        let order =
            self.order(&request, caller).and_then(|order| Ok((order, target::read_wait(request.wait_ms)?)));
        match order {
            Ok((order, wait)) => self.carry_out(order, request.dry_run, wait, caller, reply),
            Err(status) => {
                let _ = reply.send(Err(status));
            }
        }
    }

    /// An order that could be read: refused where it would hit the gateway itself, shown, or given.
    fn carry_out(
        &mut self,
        order: Order,
        dry_run: bool,
        wait: Option<Duration>,
        caller: Caller,
        reply: Answerer,
    ) {
        let rows = self.registry.preview(&order, &[]).sessions;
        if let Some(why) = guard::Guard::of(caller, self.namespaces.addresses()).refusal(&order, &rows) {
            let _ = reply.send(Err(Status::failed_precondition(why)));
            return;
        }
        if dry_run {
            return self.fetch_cookies(Then::Preview(Box::new(order), reply));
        }
        let request = self.waits(Waiter::One(reply));
        self.will_wait(request, wait);
        self.handle(Event::Revoke { request: Some(request), order });
    }

    /// Whether that answer goes to somebody by itself, and is not one of many.
    pub(super) fn waits_alone(&mut self, request: u64) -> bool {
        match self.requests.get(&request) {
            Some((Waiter::One(_), _)) => true,
            Some((Waiter::Part(part), _)) => {
                if let Some(part) = self.parts.get_mut(part) {
                    part.replicated += 1;
                }
                false
            }
            Some((Waiter::Cluster, _)) | None => false,
        }
    }

    /// A number under which an answer will come.
    pub(super) fn waits(&mut self, waiter: Waiter) -> u64 {
        let request = self.next_request;
        self.next_request += 1;
        self.requests.insert(request, (waiter, Instant::now()));
        request
    }

    fn order(&self, request: &api::RevokeRequest, caller: Caller) -> Result<Order, Status> {
        let Asked { target, server, stands } = target::read_revoke(request)?;
        let is_openvpns = matches!(&target, Target::Token(token) if token.kind() == TokenKind::Openvpn);
        if is_openvpns && self.config.kernel.openvpn_ports.is_empty() {
            return Err(Status::failed_precondition(
                "no port is OpenVPN's, so nothing would be dropped: name its UDP ports in [kernel] openvpn-ports of \
                 the configuration, and restart the daemon",
            ));
        }
        Ok(Order {
            target,
            server,
            stands,
            reason: request.reason.clone(),
            by: who(caller),
            origin: None,
            spare: Default::default(),
            bulk: false,
        })
    }

    fn call_lift(&mut self, request: &api::LiftRequest, caller: Caller, reply: Answerer) {
        if request.dry_run {
            let entries = self.registry.holdings().of(request.number).len();
            let known = self.registry.revocation(request.number);
            let answer = known
                .ok_or_else(|| Status::not_found(format!("there is no revocation {}", request.number)))
                .map(|r| {
                    Reply::Receipt(Box::new(api::Receipt {
                        target: r.order.target.to_string(),
                        complete: true,
                        dry_run: true,
                        notes: vec![format!("{entries} entries would be taken out of the kernel")],
                        ..api::Receipt::default()
                    }))
                });
            let _ = reply.send(answer);
            return;
        }
        let wait = match target::read_wait(request.wait_ms) {
            Ok(wait) => wait,
            Err(status) => {
                let _ = reply.send(Err(status));
                return;
            }
        };
        let by = who_and_why(caller, &request.reason);
        let number = request.number;
        let request = self.waits(Waiter::One(reply));
        self.will_wait(request, wait);
        self.handle(Event::Lift { request, number, by });
    }

    fn call_lock(&mut self, request: api::LockRequest, caller: Caller, reply: Answerer) {
        let order = self
            .lock_order(&request, caller)
            .and_then(|order| Ok((order, target::read_wait(request.wait_ms)?)));
        match order {
            Ok((order, wait)) => self.carry_out(order, request.dry_run, wait, caller, reply),
            Err(status) => {
                let _ = reply.send(Err(status));
            }
        }
    }

    fn lock_order(&self, request: &api::LockRequest, caller: Caller) -> Result<Order, Status> {
        let (identity, stands) = target::read_lock(request, self.configured_realms(), &self.config.realms())?;
        let (reason, by) = (request.reason.clone(), who(caller));
        Ok(Order {
            target: Target::Lock(identity),
            server: None,
            stands,
            reason,
            by,
            origin: None,
            spare: Default::default(),
            bulk: false,
        })
    }

    /// The realms that somebody is of.
    fn configured_realms(&self) -> impl Iterator<Item = &str> {
        configured_realms(&self.config)
    }

    fn call_unlock(&mut self, request: &api::UnlockRequest, caller: Caller, reply: Answerer) {
        let identity = target::read_unlock(request, self.configured_realms(), &self.config.realms());
        let asked = identity.and_then(|identity| Ok((identity, target::read_wait(request.wait_ms)?)));
        let (identity, wait) = match asked {
            Ok(asked) => asked,
            Err(status) => {
                let _ = reply.send(Err(status));
                return;
            }
        };
        if request.dry_run {
            let locks = self.registry.locks_on(&identity);
            let answer = if locks.is_empty() {
                Err(Status::not_found(format!("{identity} is not locked")))
            } else {
                Ok(Reply::Receipt(Box::new(api::Receipt {
                    target: identity.to_string(),
                    complete: true,
                    dry_run: true,
                    notes: vec![format!("{} locks would be taken back", locks.len())],
                    ..api::Receipt::default()
                })))
            };
            let _ = reply.send(answer);
            return;
        }
        let by = who_and_why(caller, &request.reason);
        let request = self.waits(Waiter::One(reply));
        self.will_wait(request, wait);
        self.handle(Event::Unlock { request, identity, by });
    }

    /// A part of a stream: one answer for all of it, once each of them has its own.
    fn call_revoke_many(&mut self, requests: Vec<api::RevokeRequest>, caller: Caller, reply: Answerer) {
        let part = self.next_part;
        self.next_part += 1;
        let mut bulk = api::BulkReceipt::default();
        let mut orders = Vec::with_capacity(requests.len());
        // asked once for all of them: it costs a look at every interface
        let ssh = guard::Guard::of(caller, self.namespaces.addresses());
        for request in requests {
            let order = self.order(&request, caller).map_err(|status| status.message().to_owned());
            let order = order.and_then(|order| {
                let rows = match order.target {
                    Target::Address(_) | Target::Flow(_) | Target::Token(_) => Vec::new(),
                    _ => self.registry.preview(&order, &[]).sessions,
                };
                ssh.refusal(&order, &rows).map_or(Ok(order), Err)
            });
            match order {
                Ok(order) if !request.dry_run => orders.push(Order { bulk: true, ..order }),
                Ok(_) => bulk.done += 1,
                Err(why) => failed(&mut bulk, why),
            }
        }
        let by = who(caller);
        self.parts.insert(part, Part { left: orders.len(), replicated: 0, bulk, reply, by, numbers: None });
        for order in orders {
            let request = self.waits(Waiter::Part(part));
            self.handle(Event::Revoke { request: Some(request), order });
        }
        self.finish_part(part);
    }

    pub(super) fn part_answered(&mut self, number: u64, answer: Answer) {
        let has_others = self.cluster.is_some();
        let Some(part) = self.parts.get_mut(&number) else { return };
        part.left -= 1;
        match answer {
            // nothing of it is here, and the others are told
            Answer::Nothing(_) if has_others && part.replicated > 0 => part.bulk.done += 1,
            Answer::Receipt(receipt) => {
                let (first, _) = part.numbers.unwrap_or((receipt.number, receipt.number));
                part.numbers = Some((first.min(receipt.number), first.max(receipt.number)));
                if receipt.is_complete() {
                    part.bulk.done += 1;
                } else {
                    failed(&mut part.bulk, format!("{}: {}", receipt.target, receipt.notes.join("; ")));
                }
            }
            Answer::Nothing(why) | Answer::Refused(why) => failed(&mut part.bulk, why),
        }
        self.finish_part(number);
    }

    fn finish_part(&mut self, number: u64) {
        if self.parts.get(&number).is_none_or(|part| part.left > 0) {
            return;
        }
        let Some(mut part) = self.parts.remove(&number) else { return };
        // what was done here alone is not done
        if part.replicated > 0 && self.others_are_away() {
            let count = part.replicated.min(part.bulk.done);
            part.bulk.done -= count;
            part.bulk.failed += count;
            if part.bulk.errors.len() < MAX_ERRORS {
                let text = format!(
                    "{count} are in force here alone: etcd is away, and the other gateways are told later"
                );
                part.bulk.errors.push(text);
            }
        }
        if let Some((first, last)) = part.numbers {
            let (done, failed) = (part.bulk.done, part.bulk.failed);
            let text = format!("revocations {first} to {last}: {done} done, {failed} not");
            tracing::info!(kind = "revoked", by = part.by, "{text}");
            self.write_audit(Audit {
                at: super::now().wall,
                what: "bulk",
                number: first,
                target: format!("{} of a list", done + failed),
                by: part.by,
                reason: String::new(),
                complete: failed == 0,
                text,
            });
        }
        let _ = part.reply.send(Ok(Reply::Bulk(part.bulk)));
    }

    /// ocserv's own disconnect, and nothing else.
    fn call_disconnect(&mut self, request: api::DisconnectRequest, caller: Caller, reply: Answerer) {
        let api::DisconnectRequest { target, dry_run, reason } = request;
        let asked = api::RevokeRequest { target, reason, dry_run, ..Default::default() };
        let order = match self.order(&asked, caller) {
            Ok(order) => order,
            Err(status) => {
                let _ = reply.send(Err(status));
                return;
            }
        };
        if !matches!(order.target, Target::User(_) | Target::Id(_)) {
            let _ = reply.send(Err(Status::invalid_argument("disconnect takes a user or an id")));
            return;
        }
        if order.server.as_ref().is_some_and(|name| !self.servers.contains_key(name)) {
            let _ =
                reply.send(Err(Status::failed_precondition("there is no such server in the configuration")));
            return;
        }
        let rows = self.registry.preview(&order, &[]).sessions;
        if dry_run && rows.is_empty() {
            let _ = reply.send(Err(Status::not_found(format!("{}: no such session is known", order.target))));
            return;
        }
        if dry_run {
            let reply_with =
                api::DisconnectReply { sessions: rows.iter().map(row).collect(), dry_run, notes: Vec::new() };
            let _ = reply.send(Ok(Reply::Disconnect(reply_with)));
            return;
        }
        self.note("disconnect", format!("{}: by {}", order.target, who_and_why(caller, &order.reason)));
        let mut ids: BTreeMap<ServerName, Vec<i32>> = BTreeMap::new();
        for row in &rows {
            ids.entry(row.server.clone()).or_default().push(row.id);
        }
        for (server, ids) in ids {
            self.handle(Event::PlainDisconnect { server, ids });
        }
        let clients: Vec<_> = (self.servers.iter())
            .filter(|(name, _)| order.server.as_ref().is_none_or(|only| only == *name))
            .map(|(name, server)| (name.clone(), server.client.clone()))
            .collect();
        let inputs = self.inputs.clone();
        tokio::spawn(async move {
            let (mut notes, mut any) = (Vec::new(), false);
            for (name, client) in clients {
                let outcome = match &order.target {
                    Target::User(user) => client.disconnect_user(user).await,
                    Target::Id(id) => client.disconnect_id(*id).await,
                    _ => Ok(false),
                };
                match outcome {
                    Ok(done) => any |= done,
                    Err(error) => notes.push(format!("{name}: {error}")),
                }
            }
            let _ = inputs.send(Input::Disconnected { rows, notes, any, reply }).await;
        });
    }

    fn call_look(&mut self, look: api::GateLook, caller: Caller, reply: Answerer) {
        let Some(name) = self.server_of_gate(caller, look.id) else {
            let verdict = Verdict::Blind("none of the configured servers runs this script".into());
            let _ = reply.send(verdict_reply("", verdict, self.config.gate.when_blind));
            return;
        };
        let Some(client) = self.client(&name) else { return };
        let inputs = self.inputs.clone();
        tokio::spawn(async move {
            // the safe_id is not in the environment; ocserv answers in under a millisecond while the script runs
            let observed = client.id_info(look.id).await;
            let _ = inputs
                .send(Input::Looked { name, look, observed: observed.map_err(|e| e.to_string()), reply })
                .await;
        });
    }

    pub(super) fn looked(
        &mut self,
        name: ServerName,
        look: api::GateLook,
        told: Result<Option<Observed>, String>,
        reply: Answerer,
    ) {
        let mut observed = match told {
            Ok(Some(observed)) if observed.user == look.user => observed,
            // without its safe_id the gate is blind
            _ => Observed { id: look.id, user: look.user.clone(), ..Observed::default() },
        };
        if observed.vhost.is_empty() {
            observed.vhost.clone_from(&look.vhost);
        }
        if observed.device.is_none() {
            observed.device = Some(look.device).filter(|device| !device.is_empty());
        }
        let addresses: Vec<IpAddr> =
            look.addresses.iter().filter_map(|address| address.parse().ok()).collect();
        if !addresses.is_empty() {
            observed.addresses = addresses;
        }
        let sighting = self.sighting(&name, observed, true);
        let ask = self.next_ask;
        self.next_ask += 1;
        // where the other gateways have a say it is asked about once more, and only that look is the last one
        let last = look.last && self.cluster.is_none();
        let asked = AtGate { server: name.clone(), reply, sighting: sighting.clone(), last: look.last };
        self.asks.insert(ask, asked);
        self.handle(Event::GateAsked { ask, server: name, sighting, last });
    }

    /// The server whose script the gate is: the one whose main process is above it.
    fn server_of_gate(&self, caller: Caller, id: i32) -> Option<ServerName> {
        let mut pid = caller.pid;
        for _ in 0..16 {
            let Some(now) = pid else { break };
            if let Some((name, _)) =
                self.servers.iter().find(|(_, s)| s.main.is_some_and(|main| main.pid == now))
            {
                return Some(name.clone());
            }
            pid = crate::process::parent(now).ok().filter(|parent| *parent > 1);
        }
        // its pid is not visible here, or ocserv has only just come up: by the id, or the only one there is
        let by_id: Vec<&ServerName> =
            self.servers.keys().filter(|name| self.registry.session(name, id).is_some()).collect();
        match (by_id.as_slice(), self.servers.len()) {
            ([name], _) => Some((*name).clone()),
            (_, 1) => self.servers.keys().next().cloned(),
            _ => None,
        }
    }

    /// Asks every server for its cookies before the rest is done.
    fn fetch_cookies(&mut self, then: Then) {
        let clients: Vec<_> =
            self.servers.iter().map(|(name, server)| (name.clone(), server.client.clone())).collect();
        let inputs = self.inputs.clone();
        tokio::spawn(async move {
            let mut all = Vec::new();
            for (name, client) in clients {
                if let Ok(cookies) = client.cookies().await {
                    all.push((name, cookies.cookies));
                }
            }
            let _ = inputs.send(Input::Fetched(all, then)).await;
        });
    }

    pub(super) fn fetched(&mut self, cookies: &[(ServerName, Vec<Cookie>)], then: Then) {
        match then {
            Then::ShowSessions(reply) => {
                let sessions = self.registry.rows(cookies).iter().map(row).collect();
                let _ = reply.send(Ok(Reply::Sessions(sessions, Some(SessionsFrom::Web(None)))));
            }
            Then::Preview(order, reply) => {
                let web = self.registry.web_preview(&order, super::now());
                let rows = self.registry.preview(&order, cookies).sessions;
                let sessions: Vec<_> = rows.iter().map(row).chain(web.iter().map(web::row)).collect();
                let explicit =
                    matches!(order.target, Target::Address(_) | Target::Flow(_) | Target::Token(_));
                let answer = if sessions.is_empty() && !explicit {
                    Err(Status::not_found(format!("{}: no session and no cookie of it", order.target)))
                } else {
                    Ok(Reply::Receipt(Box::new(api::Receipt {
                        target: order.target.to_string(),
                        complete: true,
                        dry_run: true,
                        by: order.by,
                        reason: order.reason,
                        sessions,
                        notes: self.would_do(&order.target),
                        ..api::Receipt::default()
                    })))
                };
                let _ = reply.send(answer);
            }
        }
    }

    /// What a dry run of an explicit revocation has to tell; a session's tells whom it would touch.
    fn would_do(&self, target: &Target) -> Vec<String> {
        match target {
            Target::Address(_) => {
                vec!["packets from and to it would be dropped on the LAN side and on tunnel devices".into()]
            }
            Target::Flow(flow) => {
                let dropped = "its packets would be dropped in XDP, and its socket destroyed if there is one";
                let shown = self.namespaces.known().into_iter().filter_map(|netns| {
                    let token = self.dataplane.learned(netns, *flow)?;
                    Some(format!(
                        "it has shown last: token {token} (which `revoke token` takes; this does not)"
                    ))
                });
                std::iter::once(dropped.to_owned()).chain(shown).collect()
            }
            Target::Token(token) => {
                let shows = "packets that show it would be dropped in XDP, from wherever they come";
                let data =
                    "and OpenVPN's data on a flow that has shown it last, as far as that is remembered";
                match token.kind() {
                    TokenKind::Dtls => vec![shows.into()],
                    TokenKind::Openvpn => vec![shows.into(), data.into()],
                }
            }
            _ => Vec::new(),
        }
    }
}

fn configured_realms(config: &Config) -> impl Iterator<Item = &str> {
    let web = config.web.iter().flat_map(|web| web.realms.iter().map(String::as_str));
    let servers = config.ocserv.iter().flat_map(|server| {
        std::iter::once(&server.realm).chain(server.vhost_realms.values()).map(String::as_str)
    });
    servers.chain(web)
}

/// Those of which a name may be somebody, on this gateway or another one.
pub(super) fn realms_of(config: &Config) -> BTreeSet<String> {
    let named = config.realms.keys().map(String::as_str);
    configured_realms(config).chain(named).map(str::to_owned).collect()
}

/// Who asks, and why, for the log.
fn who_and_why(caller: Caller, reason: &str) -> String {
    let why: String = reason.chars().take(MAX_REASON).collect();
    if why.is_empty() { who(caller) } else { format!("{} ({})", who(caller), ocserv::printable(&why)) }
}

/// Who asks, for the record.
fn who(caller: Caller) -> String {
    let name = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(caller.uid))
        .ok()
        .flatten()
        .map(|user| user.name);
    name.unwrap_or_else(|| format!("uid {}", caller.uid))
}

fn failed(bulk: &mut api::BulkReceipt, why: String) {
    bulk.failed += 1;
    if bulk.errors.len() < MAX_ERRORS {
        bulk.errors.push(why);
    }
}

pub(super) fn receipt(answer: Answer, elapsed: Duration) -> Result<Reply, Status> {
    match answer {
        Answer::Receipt(receipt) => Ok(Reply::Receipt(Box::new(api::Receipt {
            number: receipt.number,
            target: receipt.target.clone(),
            complete: receipt.is_complete(),
            dry_run: false,
            by: receipt.by.clone(),
            reason: receipt.reason.clone(),
            at: receipt.at,
            elapsed_us: u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX),
            layers: receipt.layers.iter().map(layer).collect(),
            sessions: receipt.sessions.iter().map(row).chain(receipt.web.iter().map(web::row)).collect(),
            notes: receipt.notes,
            gateways: Vec::new(),
        }))),
        Answer::Nothing(text) => Err(Status::not_found(text)),
        Answer::Refused(text) => Err(Status::failed_precondition(text)),
    }
}

pub(super) fn disconnected(rows: Vec<SessionRow>, notes: Vec<String>, any: bool) -> Result<Reply, Status> {
    if any {
        let sessions = rows.iter().map(row).collect();
        return Ok(Reply::Disconnect(api::DisconnectReply { sessions, dry_run: false, notes }));
    }
    if notes.is_empty() {
        Err(Status::not_found("ocserv knows no such session"))
    } else {
        Err(Status::unavailable(notes.join("; ")))
    }
}

pub(super) fn verdict(server: &ServerName, verdict: Verdict, when_blind: WhenBlind) -> Result<Reply, Status> {
    verdict_reply(server.as_str(), verdict, when_blind)
}

fn verdict_reply(server: &str, verdict: Verdict, when_blind: WhenBlind) -> Result<Reply, Status> {
    let (admit, text) = match verdict {
        Verdict::Admit => (true, String::new()),
        Verdict::Refuse(why) => (false, why),
        Verdict::Blind(why) => {
            let admit = when_blind == WhenBlind::Admit;
            tracing::warn!(admit, "the gate is blind: {why}");
            (admit, format!("{why} (when-blind decides)"))
        }
    };
    Ok(Reply::Verdict(api::GateVerdict { admit, text, server: server.to_owned() }))
}
