//! What a receipt says of the other gateways, and how long its answer waits for them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tonic::Status;

use crate::control::{Reply, api};
use crate::registry::cluster::Delivery;
use crate::registry::{Answer, Number, Request};
use crate::session::{Decision, LetterKey, Over};

use super::super::{Answerer, Daemon, answers};
use super::{Kept, Link};

/// How long an answer waits where nobody has said how long: as long as the registry has for its own part.
const WAIT: Duration = Duration::from_secs(4);

/// What is known of a decision before it is answered.
struct Expected {
    number: Number,
    over: Vec<Over>,
    decision: Decision,
}

/// An answer that waits for the other gateways.
struct Held {
    number: Number,
    letters: Vec<LetterKey>,
    is_lift: bool,
    /// A lift of which the others are not told.
    no_room: bool,
    receipt: api::Receipt,
    /// What is answered where there are no other gateways.
    alone: Option<Status>,
    reply: Answerer,
    asked: Instant,
    /// Also for those that are away.
    for_all: bool,
    until: Instant,
}

#[derive(Default)]
pub(super) struct Receipts {
    /// How long those who asked want to wait.
    waits: BTreeMap<Request, Duration>,
    expected: BTreeMap<Request, Expected>,
    held: Vec<Held>,
    /// The numbers of the expected and the held.
    awaited: BTreeSet<Number>,
    /// Those of them that were seen to be in etcd.
    told: BTreeSet<Number>,
    /// Taken back here, and to be taken back by the others: their letters.
    lifted: BTreeMap<Request, Vec<LetterKey>>,
    /// Of these, more waits for etcd than there is room for.
    no_room: BTreeSet<Request>,
}

impl Receipts {
    pub(super) fn expect(&mut self, request: Request, number: Number, over: &[Over], decision: &Decision) {
        let expected = Expected { number, over: over.to_vec(), decision: decision.clone() };
        self.expected.insert(request, expected);
        self.awaited.insert(number);
    }

    /// It is in etcd.
    pub(super) fn told(&mut self, number: Number) {
        if self.awaited.contains(&number) {
            self.told.insert(number);
        }
    }

    pub(super) fn expect_lift(&mut self, request: Request, letters: Vec<LetterKey>) {
        self.lifted.entry(request).or_default().extend(letters);
    }

    pub(super) fn no_room(&mut self, request: Request) {
        self.no_room.insert(request);
    }

    fn forget(&mut self, number: Number) {
        self.awaited.remove(&number);
        self.told.remove(&number);
    }
}

impl Daemon {
    /// Before the request is given to the registry. `None`: as long as the others that are there may take.
    pub(in crate::daemon) fn will_wait(&mut self, request: Request, wait: Option<Duration>) {
        if let (Some(link), Some(wait)) = (&mut self.cluster, wait) {
            link.receipts.waits.insert(request, wait);
        }
    }

    /// The registry's answer waits for the other gateways, where they have to be told.
    pub(in crate::daemon) fn answer_or_hold(
        &mut self,
        request: Request,
        answer: Answer,
        reply: Answerer,
        asked: Instant,
    ) {
        let wait = self.cluster.as_mut().and_then(|link| link.receipts.waits.remove(&request));
        let until = asked + wait.unwrap_or(WAIT);
        if let Some(letters) = self.lift_of(request, &answer) {
            let answer = answers::receipt(answer, asked.elapsed());
            if let (Some(link), Ok(Reply::Receipt(receipt))) = (&mut self.cluster, answer) {
                let (number, for_all) = (receipt.number, wait.is_some());
                let no_room = link.receipts.no_room.remove(&request);
                link.receipts.held.push(Held {
                    number,
                    letters,
                    is_lift: true,
                    no_room,
                    receipt: *receipt,
                    alone: None,
                    reply,
                    asked,
                    for_all,
                    until,
                });
            }
            return self.settle_receipts();
        }
        let held = self.cluster.as_mut().and_then(|link| link.receipts.expected.remove(&request));
        let Some(Expected { number, over, decision }) = held else {
            let _ = reply.send(answers::receipt(answer, asked.elapsed()));
            return;
        };
        let nothing = match &answer {
            Answer::Nothing(text) => Some(text.clone()),
            _ => None,
        };
        let answer = answers::receipt(answer, asked.elapsed());
        let (receipt, alone) = match (answer, nothing) {
            (Ok(Reply::Receipt(receipt)), _) => (*receipt, None),
            // nothing of it is here; another gateway may have it
            (Err(status), Some(text)) => (of_nothing(number, &over, &decision, text), Some(status)),
            (answer, _) => {
                if let Some(link) = &mut self.cluster {
                    link.receipts.forget(number);
                }
                let _ = reply.send(answer);
                return;
            }
        };
        let letters = over.into_iter().map(LetterKey::Decided).collect();
        let held = Held {
            number,
            letters,
            is_lift: false,
            no_room: false,
            receipt,
            alone,
            reply,
            asked,
            for_all: wait.is_some(),
            until,
        };
        if let Some(link) = &mut self.cluster {
            link.receipts.held.push(held);
        }
        self.settle_receipts();
    }

    pub(in crate::daemon) fn letter_stored(&mut self, key: &LetterKey, outcome: Result<(), String>) {
        if let Err(why) = &outcome {
            self.warn(format!(
                "what the other gateways are to be told would be lost with this daemon: {why}"
            ));
        }
        if let Some(link) = &mut self.cluster
            && let Some((_, kept)) = link.letters.get_mut(key)
        {
            // one that failed is written again with the next tick
            *kept = outcome.map_or_else(Kept::Failed, |()| Kept::Written);
        }
        self.settle_receipts();
    }

    /// Answers whoever need not wait any longer.
    pub(super) fn settle_receipts(&mut self) {
        // in the middle of an event nobody knows yet what follows from it
        let is_due = |link: &&mut Box<Link>| !link.is_busy && !link.receipts.held.is_empty();
        let Some(link) = self.cluster.as_mut().filter(is_due) else { return };
        let others = link.rules.gateways().iter().filter(|row| !row.is_me).count() as u64;
        let mut still = Vec::new();
        for held in std::mem::take(&mut link.receipts.held) {
            let delivery = match held.is_lift {
                true => link.rules.delivery_of(&held.letters),
                false => link.rules.delivery(held.number),
            };
            // one that etcd has is none any more
            let kept: Vec<&Kept> =
                held.letters.iter().filter_map(|key| link.letters.get(key)).map(|(_, kept)| kept).collect();
            // a lift that is remembered no longer is everywhere
            let told = (held.is_lift && !held.no_room) || link.receipts.told.contains(&held.number);
            let is_durable = match &delivery {
                Some(Delivery { revision: Some(_), .. }) => true,
                None if told => true,
                _ => !kept.contains(&&Kept::OnItsWay),
            };
            let is_there = match &delivery {
                // everywhere for long; or there was no room for it, and nobody is told
                None => true,
                Some(delivery) if held.for_all => delivery.is_everywhere(),
                Some(delivery) => {
                    let away = link.rules.is_away();
                    away || (delivery.revision.is_some()
                        && delivery.gateways.iter().all(|(_, in_force, alive)| *in_force || !*alive))
                }
            };
            if (is_durable && is_there) || Instant::now() >= held.until {
                let failed = kept.iter().find_map(|kept| match kept {
                    Kept::Failed(why) => Some(why.clone()),
                    Kept::OnItsWay | Kept::Written => None,
                });
                link.receipts.forget(held.number);
                finish(held, delivery, told, others, failed);
            } else {
                still.push(held);
            }
        }
        // those that came meanwhile: there are none, nothing above calls back
        link.receipts.held = still;
    }

    /// What the others are told of it, where it is the answer to a lift that they have to know of.
    fn lift_of(&mut self, request: Request, answer: &Answer) -> Option<Vec<LetterKey>> {
        let receipts = &mut self.cluster.as_mut()?.receipts;
        let letters = receipts.lifted.remove(&request)?;
        if !matches!(answer, Answer::Receipt(_)) {
            receipts.no_room.remove(&request);
            return None;
        }
        Some(letters)
    }
}

fn of_nothing(number: Number, over: &[Over], decision: &Decision, text: String) -> api::Receipt {
    let target = match over.first() {
        Some(Over::User(who) | Over::Lock(who)) => who.to_string(),
        Some(Over::Session(safe_id)) => format!("session {safe_id}"),
        Some(Over::Web(key)) => format!("web session {key}"),
        None => String::new(),
    };
    api::Receipt {
        number,
        target,
        complete: true,
        by: decision.by.clone(),
        reason: decision.reason.clone(),
        at: decision.at,
        notes: vec![format!("on this gateway: {text}")],
        ..api::Receipt::default()
    }
}

/// `told`: it was seen to be in etcd. `others`: how many other gateways there are.
fn finish(held: Held, delivery: Option<Delivery>, told: bool, others: u64, unkept: Option<String>) {
    let Held { mut receipt, alone, reply, asked, is_lift, .. } = held;
    let what = if is_lift { "taken back" } else { "in force" };
    let gateways = delivery.as_ref().map(|delivery| delivery.gateways.as_slice()).unwrap_or_default();
    let in_etcd = delivery.as_ref().map_or(told, |delivery| delivery.revision.is_some());
    if let Some(status) = alone.filter(|_| others == 0 && in_etcd) {
        let _ = reply.send(Err(status));
        return;
    }
    let (done, failed) = match &delivery {
        // it is everywhere, and forgotten
        None if told => (others, 0),
        _ => {
            let done = gateways.iter().filter(|(_, in_force, _)| *in_force).count() as u64;
            // before etcd was ever there nobody knows how many there are
            (done, (gateways.len() as u64 - done).max(u64::from(!in_etcd)))
        }
    };
    let text = match (in_etcd, failed) {
        (false, _) if delivery.is_none() => {
            "the others are NOT told: too many decisions wait for etcd".to_owned()
        }
        (false, _) => "etcd is away: the others are told when it is there again".to_owned(),
        (true, 0) if done == 0 => "there are no others".to_owned(),
        (true, 0) => format!("{what} on all {done} others"),
        (true, failed) => {
            format!("{what} on {done} others, not yet on {failed}: they learn it when they are there")
        }
    };
    receipt.layers.push(api::Layer { layer: "gateways".into(), done, failed, guarded: 0, text });
    receipt.gateways = gateways.iter().map(|its| result(its, in_etcd)).collect();
    if let Some(why) = unkept.filter(|_| !in_etcd) {
        receipt
            .notes
            .push(format!("the others are not told of it if this daemon ends before etcd is back: {why}"));
    }
    receipt.complete &= failed == 0;
    receipt.elapsed_us = u64::try_from(asked.elapsed().as_micros()).unwrap_or(u64::MAX);
    let _ = reply.send(Ok(Reply::Receipt(Box::new(receipt))));
}

fn result((name, in_force, alive): &(String, bool, bool), in_etcd: bool) -> api::GatewayResult {
    let state = match (in_etcd, in_force, alive) {
        (false, ..) => "not in etcd yet",
        (true, true, _) => "in force",
        (true, false, true) => "alive, not yet",
        (true, false, false) => "away",
    };
    api::GatewayResult { name: name.clone(), state: state.into() }
}
