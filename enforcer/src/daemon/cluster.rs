//! Other gateways: etcd's adapter, the rules between gateways and the registry, brought together. Nothing is decided here.

mod convert;
mod door;
mod orders;
mod receipts;
mod shows;
mod web;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::mpsc;

use crate::cluster::{self as etcd, Told};
use crate::config::Config;
use crate::registry::cluster::{Cluster, ClusterEffect, ClusterEvent, ClusterRules};
use crate::registry::{Event, Request};
use crate::session::{
    Admission, Author, GatewayId, KnownEtcd, Letter, LetterKey, Origin, Over, Revision, SessionId, Write,
};

use super::{Daemon, Input, now};

pub(super) use door::AtGate;

/// Transactions that may be on their way are far fewer, and so are lists that are asked for.
const ORDERS: usize = 1_024;
/// What etcd tells is read as fast as the loop goes; the adapter waits meanwhile.
const TOLD: usize = 256;
/// How often what has nobody with it is looked for: whether its cookie is still there.
const ABSENT_AGAIN: Duration = Duration::from_secs(30);
/// Who is in for so long has come by no door that would still tell of him.
const SETTLED: Duration = Duration::from_secs(5);
/// Of how many decisions it is remembered that they were lifted here alone.
const MOST_UNLIFTED: usize = 100_000;
/// How often what could not be carried out, or not be written, is tried again.
const RETRY_EVERY: Duration = Duration::from_secs(2);

/// What the loop has of the other gateways.
pub(super) struct Link {
    me: GatewayId,
    rules: Cluster,
    orders: mpsc::Sender<etcd::Order>,
    /// Until the runtime is there.
    begin: Option<(etcd::Settings, mpsc::Receiver<etcd::Order>)>,
    /// What the rules have not been told yet, since they are being told something.
    events: VecDeque<ClusterEvent>,
    is_busy: bool,
    door: door::Door,
    carried_out: orders::CarriedOut,
    receipts: receipts::Receipts,
    /// Sessions that have passed, and since when.
    admissions: BTreeMap<SessionId, Admitted>,
    /// What etcd does not have yet, and whether this gateway's disk has it.
    letters: BTreeMap<LetterKey, (Letter, Kept)>,
    retried: Duration,
    /// Where decisions stand that were lifted here, and not elsewhere, since another one about the same stands here.
    unlifted: BTreeMap<Over, Revision>,
    shows: shows::Shows,
}

/// Whether what the others are to be told is on this gateway's disk.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Kept {
    OnItsWay,
    Written,
    Failed(String),
}

/// A session that has passed the gate.
struct Admitted {
    admission: Admission,
    since: Duration,
    /// Since when nobody is there with it, and when its cookie was last asked for.
    absent: Option<(Duration, Duration)>,
}

/// What earlier runs left.
pub(super) struct Left {
    pub gateway: String,
    pub known: Option<KnownEtcd>,
    pub letters: Vec<Letter>,
    pub admissions: Vec<Admission>,
}

/// `None`: there are no other gateways.
///
/// # Errors
/// The settings are none.
pub(super) fn link(config: &Config, left: Left) -> anyhow::Result<Option<Link>> {
    let Some(cluster) = &config.cluster else { return Ok(None) };
    let me: GatewayId = left.gateway.parse().context("the gateway's id in the database")?;
    // one that was given up is none
    let left_known = left.known.filter(|known| known.cluster != 0);
    let known = left_known.map(|known| etcd::Known { cluster: known.cluster, revision: known.revision });
    let settings = cluster.settings(me, known).map_err(anyhow::Error::msg)?;
    let rules = ClusterRules {
        me,
        name: cluster.display_name(me),
        login_wait: cluster.login_wait,
        known: left_known.map_or(0, |known| known.revision),
    };
    let (orders, given) = mpsc::channel(ORDERS);
    let mut link = Link {
        me,
        rules: Cluster::new(rules, now()),
        orders,
        begin: Some((settings, given)),
        events: VecDeque::new(),
        is_busy: false,
        door: door::Door::default(),
        carried_out: orders::CarriedOut::default(),
        receipts: receipts::Receipts::default(),
        admissions: BTreeMap::new(),
        letters: BTreeMap::new(),
        retried: Duration::ZERO,
        unlifted: BTreeMap::new(),
        shows: shows::Shows::new(left_known.map(|known| known.cluster)),
    };
    let mut admissions = left.admissions;
    if left_known.is_none() {
        // the numbers of another order mean nothing in this one
        admissions.iter_mut().for_each(|admission| (admission.at, admission.claimed) = (None, false));
    }
    link.remember(config, left.letters, admissions);
    Ok(Some(link))
}

impl Link {
    /// What an earlier run has not told, and whom it has let in.
    fn remember(&mut self, config: &Config, letters: Vec<Letter>, admissions: Vec<Admission>) {
        for letter in letters {
            self.letters.insert(letter.key(), (letter.clone(), Kept::Written));
            self.events.push_back(event_of(letter));
        }
        let since = now().mono;
        for admission in admissions {
            self.events.push_back(ClusterEvent::Remembered {
                who: admission.who.clone(),
                session: admission.session,
                at: admission.at,
                claimed: admission.claimed,
                limit: door::limit_of(config, &admission),
            });
            self.admissions.insert(admission.session, Admitted { admission, since, absent: None });
        }
    }
}

fn event_of(letter: Letter) -> ClusterEvent {
    match letter {
        Letter::Decided { over, decision } => {
            ClusterEvent::Decided { number: decision.number, over, record: decision }
        }
        Letter::Lifted { author, over, up_to, by, .. } => ClusterEvent::Lifted { author, over, up_to, by },
    }
}

impl Daemon {
    /// The adapter, once there is a runtime.
    pub(super) fn start_cluster(&mut self) {
        let Some(link) = &mut self.cluster else { return };
        if let Some((settings, given)) = link.begin.take() {
            let (tell, mut told) = mpsc::channel(TOLD);
            tokio::spawn(etcd::run(settings, given, tell));
            let inputs = self.inputs.clone();
            tokio::spawn(async move {
                while let Some(told) = told.recv().await {
                    if inputs.send(Input::Cluster(Box::new(told))).await.is_err() {
                        return;
                    }
                }
            });
        }
        self.cluster_go_on();
    }

    pub(super) fn cluster_told(&mut self, told: Told) {
        match told {
            Told::Up { known, endpoint, state } => {
                let Some(link) = &mut self.cluster else { return };
                let in_force = KnownEtcd { cluster: known.cluster, revision: link.rules.known() };
                let is_new = link.shows.up(known, endpoint.clone());
                if let Some(state) = &state {
                    link.shows.seen(state, now().wall);
                }
                let event = ClusterEvent::Up { revision: known.revision, state: state.map(convert::changes) };
                if is_new {
                    self.registry.write(Write::KnownEtcd(in_force));
                    self.save();
                }
                self.note("cluster", format!("etcd is there: {endpoint}, revision {}", known.revision));
                self.tell_rules(event);
                self.list_own_sessions();
            }
            Told::Changed { revision, changes } => {
                if let Some(link) = &mut self.cluster {
                    link.shows.seen(&changes, now().wall);
                }
                self.tell_rules(ClusterEvent::Changed { revision, changes: convert::changes(changes) });
            }
            Told::Down { why } => {
                let was_up = self.cluster.as_mut().is_some_and(|link| link.shows.down(&why));
                if was_up {
                    self.note("cluster", format!("etcd is away: {why}"));
                    self.tell_rules(ClusterEvent::Down);
                }
            }
            Told::Replaced { endpoint, was, is } => {
                let text = format!(
                    "{endpoint}: another etcd than the one that was known (cluster {:x} at revision {}; this is {:x} at \
                     {}): it is not used. If it is the right one: stop this daemon, `enforcer cluster adopt`, start it",
                    was.cluster, was.revision, is.cluster, is.revision
                );
                if let Some(link) = &mut self.cluster {
                    link.shows.replaced(&text);
                }
                self.note("cluster", text);
            }
            Told::Done { ticket, outcome } => match convert::outcome(outcome.clone()) {
                Some(outcome) if ticket < shows::LISTS => {
                    self.tell_rules(ClusterEvent::Done { ticket, outcome });
                }
                _ => self.cluster_listed(ticket, outcome),
            },
            Told::Malformed { key, revision, why, taken } => {
                if let Some(link) = &mut self.cluster {
                    link.shows.malformed += 1;
                }
                let what = if taken { "it is in force all the same" } else { "it is not in force" };
                self.note("cluster", format!("etcd, {key} at revision {revision}: {why}; {what}"));
            }
            Told::Untold { count } => {
                if let Some(link) = &mut self.cluster {
                    link.shows.malformed += count;
                }
                self.note("cluster", format!("etcd: {count} more that are no records of ours"));
            }
        }
    }

    /// One event after the other, and what follows from each before the next: what follows may bring about events.
    pub(super) fn tell_rules(&mut self, event: ClusterEvent) {
        if let Some(link) = &mut self.cluster {
            link.events.push_back(event);
            self.cluster_go_on();
        }
    }

    fn cluster_go_on(&mut self) {
        match &mut self.cluster {
            Some(link) if !link.is_busy => link.is_busy = true,
            _ => return,
        }
        while let Some(link) = &mut self.cluster
            && let Some(event) = link.events.pop_front()
        {
            tracing::debug!(?event);
            let effects = link.rules.handle(event, now());
            self.cluster_effects(effects);
        }
        if let Some(link) = &mut self.cluster {
            link.is_busy = false;
        }
        self.settle_receipts();
    }

    fn cluster_effects(&mut self, effects: Vec<ClusterEffect>) {
        let mut batch = orders::Batch::default();
        for effect in effects {
            tracing::debug!(?effect);
            // what came before is in force before anything else is looked at
            if !matches!(effect, ClusterEffect::Order { .. }) {
                self.carry_out_batch(std::mem::take(&mut batch));
            }
            match effect {
                ClusterEffect::Order { errand, author, over, record, revision, spare } => {
                    let origin = Origin { author, revision };
                    self.add_order(&mut batch, orders::Task { errand, origin, over, record, spare });
                }
                ClusterEffect::TakeBack { errand, author, over, up_to, by } => {
                    self.take_back(orders::TakingBack { errand, author, over, up_to, by });
                }
                ClusterEffect::Commit { ticket, txn } => {
                    let facts = convert::Facts { version: env!("CARGO_PKG_VERSION").into(), now: now().wall };
                    let order = etcd::Order::Commit { ticket, txn: convert::txn(txn, &facts) };
                    if let Some(link) = &self.cluster
                        && let Err(error) = link.orders.try_send(order)
                    {
                        // more than can be: it is heard as never answered, and begun anew with the next connection
                        tracing::error!("an order to etcd was lost: {error}");
                    }
                }
                ClusterEffect::Told { number, revision, .. } => {
                    let Some(link) = &mut self.cluster else { continue };
                    link.receipts.told(number);
                    let origin = Origin { author: Author::Gateway(link.me), revision };
                    self.handle(Event::Told { number, origin });
                }
                ClusterEffect::LetterTold { key } => {
                    if let Some(link) = &mut self.cluster {
                        link.letters.remove(&key);
                    }
                    self.registry.write(Write::LetterTold(key));
                    self.save();
                }
                ClusterEffect::Known { revision } => {
                    if let Some(cluster) = self.cluster.as_ref().and_then(|link| link.shows.cluster()) {
                        self.registry.write(Write::KnownEtcd(KnownEtcd { cluster, revision }));
                        self.save();
                    }
                }
                ClusterEffect::Look { knock, session } => self.ask_once_more(knock, session),
                ClusterEffect::Admit { ask } => self.cluster_admits(ask),
                ClusterEffect::Refuse { ask, why } => self.cluster_refuses(ask, why),
                ClusterEffect::End { session, why } => self.end_displaced(session, why),
                ClusterEffect::Passed { session, at, claimed } => self.passed(session, at, claimed),
                ClusterEffect::Note { text } => self.note("cluster", text),
            }
        }
        self.carry_out_batch(batch);
    }

    /// A decision of this gateway's: the rules tell the others.
    pub(super) fn decided(
        &mut self,
        number: u64,
        request: Option<Request>,
        over: Vec<Over>,
        decision: crate::session::Decision,
    ) {
        let waits = request.filter(|request| self.waits_alone(*request));
        let Some(link) = &mut self.cluster else { return };
        if let Some(request) = waits {
            link.receipts.expect(request, number, &over, &decision);
        }
        for over in &over {
            let letter = Letter::Decided { over: over.clone(), decision: decision.clone() };
            link.letters.insert(letter.key(), (letter, Kept::OnItsWay));
        }
        for over in over {
            self.tell_rules(ClusterEvent::Decided { number, over, record: decision.clone() });
        }
    }

    /// It was taken back here.
    pub(super) fn taken_back(
        &mut self,
        number: u64,
        request: Request,
        origin: Option<Origin>,
        over: Vec<Over>,
        by: String,
    ) {
        let Some(link) = &mut self.cluster else { return };
        let me = Author::Gateway(link.me);
        let author = origin.map_or(me, |origin| origin.author);
        let up_to = origin.map(|origin| origin.revision);
        // what was never told to anybody
        if up_to == Some(0) {
            return;
        }
        let mut letters = Vec::new();
        for over in over {
            let Some(link) = &mut self.cluster else { return };
            let mut up_to = up_to;
            if author == me {
                let untold = link.rules.untold_of(&over);
                if self.registry.stands_besides(number, &over, &untold, me) {
                    // without a place it is as after a restart: the others keep it
                    if link.unlifted.len() < MOST_UNLIFTED || link.unlifted.contains_key(&over) {
                        let lifted = link.unlifted.entry(over).or_default();
                        *lifted = up_to.map_or(*lifted, |up_to| up_to.max(*lifted));
                    }
                    self.note(
                        "cluster",
                        format!(
                            "revocation {number} is lifted on this gateway alone: another one of it stands here, and the \
                             other gateways keep both until that is lifted as well"
                        ),
                    );
                    continue;
                }
                // with those of which they were not told
                let before = link.unlifted.remove(&over);
                up_to = up_to.map(|up_to| before.map_or(up_to, |before| up_to.max(before)));
            }
            letters.push(Letter::Lifted { author, over, up_to, by: by.clone(), at: now().wall });
        }
        let Some(link) = self.cluster.as_mut().filter(|_| !letters.is_empty()) else { return };
        link.receipts.expect_lift(request, letters.iter().map(Letter::key).collect());
        for letter in letters {
            if let Some(link) = &mut self.cluster {
                if !link.rules.has_room(&letter.key()) {
                    link.receipts.no_room(request);
                }
                link.letters.insert(letter.key(), (letter.clone(), Kept::OnItsWay));
            }
            self.registry.write(Write::KeepLetter(letter.clone()));
            self.tell_rules(event_of(letter));
        }
        self.save();
    }

    pub(super) fn cluster_tick(&mut self) {
        let at = now().mono;
        let Some(link) = &mut self.cluster else { return };
        if at >= link.retried + RETRY_EVERY {
            link.retried = at;
            let mut any = false;
            for (letter, kept) in link.letters.values_mut() {
                if let Kept::Failed(_) = kept {
                    *kept = Kept::OnItsWay;
                    any = true;
                    self.registry.write(Write::KeepLetter(letter.clone()));
                }
            }
            if any {
                self.save();
            }
            self.retry_orders();
            self.register_the_unknown(at);
        }
        self.tell_rules(ClusterEvent::Tick);
        self.keep_orders();
        self.look_for_absent(at);
    }
}
