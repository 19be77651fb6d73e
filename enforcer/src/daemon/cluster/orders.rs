//! What other gateways have decided, carried out here: it is in force once the registry has answered and the disk has it.

use std::collections::{BTreeMap, BTreeSet};

use crate::registry::cluster::{ClusterEvent, Errand};
use crate::registry::{Answer, Event, Layer, Number, Order, Receipt, Request, TakeBack, Target};
use crate::session::{Author, Decision, Origin, Over, Revision, SessionId};

use super::super::{Daemon, answers, now};

/// Clocks of two gateways may be wrong by so many seconds: a day, and some.
const CLOCKS_DIFFER: u64 = 2 * 86_400;

/// One record.
#[derive(Debug, Clone)]
pub(super) struct Task {
    pub errand: Errand,
    pub origin: Origin,
    pub over: Over,
    pub record: Decision,
    pub spare: BTreeSet<SessionId>,
}

/// One lift.
#[derive(Debug, Clone)]
pub(super) struct TakingBack {
    pub errand: Errand,
    pub author: Author,
    pub over: Over,
    pub up_to: Revision,
    pub by: String,
}

#[derive(Debug, Clone)]
enum Work {
    Order(Task),
    TakeBack(TakingBack),
}

/// Orders that came at once go to the registry at once.
#[derive(Debug, Default)]
pub(super) struct Batch(Vec<(Request, Order)>);

/// What is being carried out.
#[derive(Debug, Default)]
pub(super) struct CarriedOut {
    under_way: BTreeMap<Request, Work>,
    /// Done, but for the disk.
    unkept: BTreeMap<Number, Errand>,
    /// To be tried again.
    refused: Vec<Work>,
}

impl Daemon {
    pub(super) fn add_order(&mut self, batch: &mut Batch, task: Task) {
        // a lock whose time was over long ago, by whatever clock, is none
        let over_at = task.record.until.filter(|_| matches!(task.over, Over::Lock(_)));
        let is_over = over_at.is_some_and(|until| now().wall > until.saturating_add(CLOCKS_DIFFER));
        if is_over || self.registry.carries_out(task.origin, &task.over) {
            return self.tell_rules(ClusterEvent::InForce { errand: task.errand });
        }
        let order = self.order_of(&task);
        let request = self.waits(answers::Waiter::Cluster);
        if let Some(link) = &mut self.cluster {
            link.carried_out.under_way.insert(request, Work::Order(task));
        }
        batch.0.push((request, order));
    }

    fn order_of(&self, task: &Task) -> Order {
        let target = match &task.over {
            Over::User(who) => Target::Person(who.clone()),
            Over::Lock(who) => Target::Lock(who.clone()),
            Over::Session(safe_id) => Target::Session(*safe_id),
            Over::Web(key) => Target::Web(*key),
        };
        let record = &task.record;
        // its own time, and not by another host's clock, where it is told
        let left = record.lasts.or_else(|| record.until.map(|until| until.saturating_sub(now().wall)));
        let stands = left.filter(|_| matches!(task.over, Over::Lock(_))).map(std::time::Duration::from_secs);
        Order {
            target,
            server: None,
            stands,
            reason: record.reason.clone(),
            by: self.author_of(&task.origin.author, &record.by),
            origin: Some(task.origin),
            spare: task.spare.clone(),
            bulk: false,
        }
    }

    /// For people: who, and where.
    fn author_of(&self, author: &Author, by: &str) -> String {
        let by = crate::ocserv::printable(by);
        match author {
            Author::Gateway(id) => {
                let name = self.cluster.as_ref().and_then(|link| link.name_of(*id));
                format!("{by} at {}", name.unwrap_or_else(|| format!("gateway {id}")))
            }
            Author::Admin => format!("{by} (written to etcd)"),
        }
    }

    pub(super) fn carry_out_batch(&mut self, batch: Batch) {
        if !batch.0.is_empty() {
            self.handle(Event::RevokeMany { orders: batch.0 });
        }
    }

    pub(super) fn take_back(&mut self, work: TakingBack) {
        let TakingBack { author, over, up_to, by, .. } = work.clone();
        let by = self.author_of(&author, &by);
        let request = self.waits(answers::Waiter::Cluster);
        if let Some(link) = &mut self.cluster {
            link.carried_out.under_way.insert(request, Work::TakeBack(work));
        }
        self.handle(Event::TakeBack { request, lift: TakeBack { author, over, up_to, by } });
    }

    /// The registry has answered.
    pub(in crate::daemon) fn cluster_answered(&mut self, request: Request, answer: &Answer) {
        let Some(link) = &mut self.cluster else { return };
        let Some(work) = link.carried_out.under_way.remove(&request) else { return };
        let errand = work.errand();
        match answer {
            Answer::Refused(why) => {
                link.carried_out.refused.push(work);
                self.warn(format!(
                    "what another gateway has decided is not in force here: {why}; it is tried again"
                ));
            }
            Answer::Receipt(receipt) => {
                let is_kept = is_in_force(receipt);
                if !receipt.is_complete() {
                    let text =
                        format!("{}: {}: {}", receipt.number, receipt.target, receipt.notes.join("; "));
                    self.note("cluster", format!("carried out in part: {text}"));
                }
                if is_kept {
                    self.tell_rules(ClusterEvent::InForce { errand });
                } else if let Some(link) = &mut self.cluster {
                    link.carried_out.unkept.insert(receipt.number, errand);
                }
            }
            // nobody here has anything of it
            Answer::Nothing(_) => self.tell_rules(ClusterEvent::InForce { errand }),
        }
    }

    /// Those that the disk has by now.
    pub(super) fn keep_orders(&mut self) {
        let Some(link) = &mut self.cluster else { return };
        let at = now();
        let kept: Vec<(Number, Errand)> = (link.carried_out.unkept.iter())
            .filter(|(number, _)| {
                let receipt = self.registry.receipt_of(**number, at);
                self.registry.is_kept(**number) && receipt.is_none_or(|receipt| is_in_force(&receipt))
            })
            .map(|(number, errand)| (*number, *errand))
            .collect();
        for (number, errand) in kept {
            if let Some(link) = &mut self.cluster {
                link.carried_out.unkept.remove(&number);
            }
            self.tell_rules(ClusterEvent::InForce { errand });
        }
    }

    pub(super) fn retry_orders(&mut self) {
        let Some(link) = &mut self.cluster else { return };
        let mut batch = Batch::default();
        for work in std::mem::take(&mut link.carried_out.refused) {
            match work {
                Work::Order(task) => self.add_order(&mut batch, task),
                Work::TakeBack(work) => self.take_back(work),
            }
        }
        self.carry_out_batch(batch);
    }
}

/// R6: the others are told that it is in force here once the kernel drops what it means, and the disk has it. What else could
/// not be done (a worker that hangs, an ocserv that does not answer) is looked after here.
fn is_in_force(receipt: &Receipt) -> bool {
    let matters = |layer: Layer| matches!(layer, Layer::Packets | Layer::Disk);
    receipt.layers.iter().all(|layer| !matters(layer.layer) || layer.failed == 0)
}

impl Work {
    fn errand(&self) -> Errand {
        match self {
            Self::Order(task) => task.errand,
            Self::TakeBack(work) => work.errand,
        }
    }
}
