//! Orders: one after the other, those that may share a transaction together.

use std::collections::{HashSet, VecDeque};
use std::mem::{Discriminant, discriminant};

use etcd_client::proto::{PbKeyValue, PbResponseOp, PbTxnOpResponse};
use etcd_client::{Compare, CompareOp, KvClient, Txn as EtcdTxn, TxnOp};
use tokio::sync::mpsc;

use super::client::{Connection, revision_of};
use super::reading::Ended;
use super::trouble::{Fate, Trouble, within};
use super::words::{Change, Condition, Key, Now, Op, Txn};
use super::{Listing, MAX_OPS, MAX_TXN, Order, Outcome, Settings, Ticket, Told, record, state};
use crate::session::Revision;

/// What was taken from the channel, and not answered yet. It outlives the connection, and whatever is dropped with that:
/// nothing that was taken is ever between two of these.
#[derive(Default)]
pub(super) struct Writer {
    /// Sent: whoever breaks the connection now leaves open whether they were done.
    in_flight: Vec<Ticket>,
    /// What is known of others, and not told yet.
    answers: VecDeque<(Ticket, Outcome)>,
    /// Were refused together, and are tried one by one.
    again: VecDeque<Ready>,
    /// Taken, and for a later transaction.
    next: Option<Order>,
    /// The highest revision that was answered.
    pub reached: Revision,
}

/// A transaction as etcd takes it.
#[derive(Clone)]
struct Ready {
    ticket: Ticket,
    compares: Vec<Compare>,
    then: Vec<TxnOp>,
    otherwise: Vec<TxnOp>,
    /// The keys that are asked for in each of the two, with their places among the operations.
    gets: [Vec<(usize, Key)>; 2],
    /// In bytes, about.
    size: usize,
    /// The keys that it writes.
    keys: Vec<Vec<u8>>,
    /// `None`: it cannot share a transaction.
    kind: Option<Discriminant<Key>>,
}

impl Writer {
    /// Carries out orders until the connection breaks, or nobody gives any more.
    pub async fn carry_out(
        &mut self,
        connection: &Connection,
        settings: &Settings,
        orders: &mut mpsc::Receiver<Order>,
        told: &mpsc::Sender<Told>,
    ) -> Ended {
        let mut kv = connection.kv.clone();
        // the connection holds the sender
        let _ = connection.fence.subscribe().wait_for(|fence| *fence > 0).await;
        loop {
            if let Err(ended) = self.tell(told).await {
                return ended;
            }
            let done = if let Some(one) = self.again.pop_front() {
                self.commit(&mut kv, connection, settings, vec![one]).await
            } else {
                let order = match self.next.take() {
                    Some(order) => order,
                    None => match orders.recv().await {
                        Some(order) => order,
                        None => return Ended::Deaf,
                    },
                };
                match order {
                    Order::Commit { ticket, txn } => match prepare(settings, ticket, &txn) {
                        Ok(first) => {
                            let batch = self.gather(settings, first, orders);
                            self.commit(&mut kv, connection, settings, batch).await
                        }
                        Err(why) => {
                            self.answers.push_back((ticket, Outcome::Refused { why }));
                            Ok(())
                        }
                    },
                    Order::List { ticket, what } => {
                        self.list(&mut kv, connection, settings, ticket, &what).await
                    }
                    // the one that is connected is the right one
                    Order::Adopt { .. } => Ok(()),
                }
            };
            if let Err(trouble) = done {
                return trouble.into();
            }
        }
    }

    /// What is left when the connection broke: nobody waits for an answer for ever.
    pub async fn broken(&mut self, told: &mpsc::Sender<Told>, why: &str) -> Result<(), Ended> {
        let not_known =
            self.in_flight.drain(..).map(|ticket| (ticket, Outcome::NotKnown { why: why.into() }));
        self.answers.extend(not_known);
        let not_sent = |ticket| (ticket, Outcome::NotSent { why: why.into() });
        self.answers.extend(self.again.drain(..).map(|one| not_sent(one.ticket)));
        let next = self.next.take().and_then(|order| order.ticket());
        self.answers.extend(next.map(not_sent));
        self.tell(told).await
    }

    /// For the next [`Self::broken`]: etcd is away.
    pub fn put_back(&mut self, order: Order) {
        self.next = Some(order);
    }

    /// Tells what is known. Dropped meanwhile, it leaves the rest where it was.
    async fn tell(&mut self, told: &mpsc::Sender<Told>) -> Result<(), Ended> {
        while !self.answers.is_empty() {
            let room = told.reserve().await.map_err(|_| Ended::Deaf)?;
            if let Some((ticket, outcome)) = self.answers.pop_front() {
                room.send(Told::Done { ticket, outcome });
            }
        }
        Ok(())
    }

    /// The first, and those that wait behind it and may share its transaction.
    fn gather(
        &mut self,
        settings: &Settings,
        first: Ready,
        orders: &mut mpsc::Receiver<Order>,
    ) -> Vec<Ready> {
        let Some(kind) = first.kind else { return vec![first] };
        let mut keys: HashSet<Vec<u8>> = first.keys.iter().cloned().collect();
        let (mut count, mut size) = (first.then.len(), first.size);
        let mut batch = vec![first];
        while let Ok(order) = orders.try_recv() {
            let fits = match &order {
                Order::Commit { ticket, txn } => prepare(settings, *ticket, txn).ok().filter(|ready| {
                    ready.kind == Some(kind)
                        && count + ready.then.len() <= MAX_OPS
                        && size + ready.size <= MAX_TXN
                        && !ready.keys.iter().any(|key| keys.contains(key))
                }),
                _ => None,
            };
            let Some(ready) = fits else {
                self.next = Some(order);
                break;
            };
            count += ready.then.len();
            size += ready.size;
            keys.extend(ready.keys.iter().cloned());
            batch.push(ready);
        }
        batch
    }

    async fn commit(
        &mut self,
        kv: &mut KvClient,
        connection: &Connection,
        settings: &Settings,
        batch: Vec<Ready>,
    ) -> Result<(), Trouble> {
        self.in_flight = batch.iter().map(|one| one.ticket).collect();
        match self.send(kv, connection, settings, &batch).await {
            Ok(outcomes) => {
                self.in_flight.clear();
                self.answers.extend(outcomes);
                Ok(())
            }
            // one of them is refused, and the others are not to suffer for it
            Err(trouble) if trouble.fate == Fate::Refused && batch.len() > 1 => {
                self.in_flight.clear();
                self.again = batch.into();
                Ok(())
            }
            Err(trouble) => self.failed(trouble),
        }
    }

    /// Of what is in flight.
    fn failed(&mut self, trouble: Trouble) -> Result<(), Trouble> {
        let why = trouble.why.clone();
        let outcome = match trouble.fate {
            Fate::Refused => Outcome::Refused { why },
            Fate::NotDone => Outcome::NotSent { why },
            Fate::NotKnown => Outcome::NotKnown { why },
        };
        self.answers.extend(self.in_flight.drain(..).map(|ticket| (ticket, outcome.clone())));
        if trouble.fate == Fate::Refused { Ok(()) } else { Err(trouble) }
    }

    async fn send(
        &mut self,
        kv: &mut KvClient,
        connection: &Connection,
        settings: &Settings,
        batch: &[Ready],
    ) -> Result<Vec<(Ticket, Outcome)>, Trouble> {
        let all = |part: fn(&Ready) -> &Vec<TxnOp>| -> Vec<TxnOp> {
            batch.iter().flat_map(|one| part(one).iter().cloned()).collect()
        };
        let fence = i64::try_from(*connection.fence.borrow()).unwrap_or(i64::MAX);
        let alive = settings.prefix.write(&Key::Alive(settings.gateway));
        let alive = alive.map_err(|error| Trouble { fate: Fate::NotDone, why: error.to_string() })?;
        let mut compares = vec![Compare::mod_revision(alive.clone(), CompareOp::Equal, fence)];
        compares.extend(batch.iter().flat_map(|one| one.compares.iter().cloned()));
        let mut otherwise = all(|one| &one.otherwise);
        let last = otherwise.len();
        otherwise.push(TxnOp::get(alive, None));
        let txn = EtcdTxn::new().when(compares).and_then(all(|one| &one.then)).or_else(otherwise);
        let answer = within(settings.request_timeout, kv.txn(txn)).await?.0;
        let revision = revision_of(answer.header.as_ref(), connection.known.cluster)?;
        let held = answer.succeeded;
        if !held && written(&answer.responses, last)? != Some(fence) {
            let why =
                "its sign of life was written or removed by somebody else: is there another one with its id?";
            return Err(Trouble { fate: Fate::NotDone, why: why.into() });
        }
        let mut outcomes = Vec::with_capacity(batch.len());
        for one in batch {
            let mut got = Vec::new();
            // only one that is alone asks for anything
            for (place, key) in &one.gets[usize::from(!held)] {
                got.push(found(settings, key, range(&answer.responses, *place)?)?);
            }
            outcomes.push((one.ticket, Outcome::Done { held, revision, got }));
        }
        self.reached = self.reached.max(revision);
        Ok(outcomes)
    }

    async fn list(
        &mut self,
        kv: &mut KvClient,
        connection: &Connection,
        settings: &Settings,
        ticket: Ticket,
        what: &Listing,
    ) -> Result<(), Trouble> {
        let range = match what {
            Listing::Sessions(gateway) => Ok(settings.prefix.sessions(*gateway)),
            Listing::SessionsOf(gateway, who) => settings.prefix.sessions_of(*gateway, who),
            Listing::Owners => Ok(settings.prefix.owners()),
        };
        let range = match range {
            Ok(range) => range,
            Err(error) => {
                self.answers.push_back((ticket, Outcome::Refused { why: error.to_string() }));
                return Ok(());
            }
        };
        self.in_flight = vec![ticket];
        // one that cannot be read is in the list as such
        match state::read(kv, settings, connection.known.cluster, &range, |_| {}).await {
            Ok(all) => {
                self.in_flight.clear();
                let outcome = Outcome::Listed { revision: all.revision, found: all.entries };
                self.answers.push_back((ticket, outcome));
                Ok(())
            }
            Err(trouble) => self.failed(trouble),
        }
    }
}

/// What a transaction's operation at that place was answered.
fn range(responses: &[PbResponseOp], place: usize) -> Result<Option<&PbKeyValue>, Trouble> {
    match responses.get(place).and_then(|response| response.response.as_ref()) {
        Some(PbTxnOpResponse::ResponseRange(range)) => Ok(range.kvs.first()),
        _ => Err(Trouble::broken("etcd has not answered all of a transaction")),
    }
}

/// When what is asked for at that place was last written. `None`: it is not there.
fn written(responses: &[PbResponseOp], place: usize) -> Result<Option<i64>, Trouble> {
    Ok(range(responses, place)?.map(|kv| kv.mod_revision))
}

/// What a question within a transaction has found.
fn found(settings: &Settings, key: &Key, kv: Option<&PbKeyValue>) -> Result<Change, Trouble> {
    let gone = || Change { key: key.clone(), now: Now::Gone, revision: 0, created: 0 };
    match kv {
        Some(kv) => Ok(state::entry(&settings.prefix, kv.clone(), false, &mut |_| {})?.unwrap_or_else(gone)),
        None => Ok(gone()),
    }
}

/// An order that cannot be carried out is refused here already, with a sentence.
fn prepare(settings: &Settings, ticket: Ticket, txn: &Txn) -> Result<Ready, String> {
    // one condition and one question are the adapter's own
    let parts = [txn.only_if.len() + 1, txn.then.len(), txn.otherwise.len() + 1];
    if parts.iter().any(|count| *count > MAX_OPS) {
        return Err(format!(
            "a transaction has at most {MAX_OPS} operations, and one less of conditions and of what is done otherwise: split \
             it"
        ));
    }
    if txn.then.is_empty() && txn.otherwise.is_empty() {
        return Err("a transaction in which nothing is done".into());
    }
    let compares = txn.only_if.iter().map(|condition| compare(settings, condition));
    let compares = compares.collect::<Result<_, String>>()?;
    let (then, otherwise) = (encode(settings, &txn.then)?, encode(settings, &txn.otherwise)?);
    let size = then.size + otherwise.size;
    if size > MAX_TXN {
        return Err(format!("a transaction has at most {MAX_TXN} bytes: split it"));
    }
    let gets = [then.gets, otherwise.gets];
    let (keys, kind) = (then.keys, kind(txn));
    Ok(Ready { ticket, compares, then: then.ops, otherwise: otherwise.ops, gets, size, keys, kind })
}

fn compare(settings: &Settings, condition: &Condition) -> Result<Compare, String> {
    let (key, revision) = match condition {
        Condition::Absent(key) => (key, 0),
        Condition::Unchanged(key, revision) => (key, *revision),
    };
    let key = settings.prefix.write(key).map_err(|error| error.to_string())?;
    let revision = i64::try_from(revision).map_err(|_| format!("there is no revision {revision}"))?;
    // of what is not there it is 0
    Ok(Compare::mod_revision(key, CompareOp::Equal, revision))
}

/// One of the two lists of operations.
#[derive(Default)]
struct Encoded {
    ops: Vec<TxnOp>,
    gets: Vec<(usize, Key)>,
    size: usize,
    keys: Vec<Vec<u8>>,
}

fn encode(settings: &Settings, ops: &[Op]) -> Result<Encoded, String> {
    /// What an operation takes beside key and value, in bytes.
    const AROUND: usize = 16;
    let mut encoded = Encoded::default();
    for (place, op) in ops.iter().enumerate() {
        let key = settings.prefix.write(op.key()).map_err(|error| error.to_string())?;
        encoded.size += key.len() + AROUND;
        if !matches!(op, Op::Get(_)) {
            if !op.key().is_for(settings.gateway) {
                return Err(format!("{} is not this gateway's to write", String::from_utf8_lossy(&key)));
            }
            encoded.keys.push(key.clone());
        }
        encoded.ops.push(match op {
            Op::Put(of, value) => {
                let value = record::write(of, value)
                    .map_err(|error| format!("{}: {error}", String::from_utf8_lossy(&key)))?;
                encoded.size += value.len();
                TxnOp::put(key, value, None)
            }
            Op::Delete(_) => TxnOp::delete(key, None),
            Op::Get(of) => {
                encoded.gets.push((place, of.clone()));
                TxnOp::get(key, None)
            }
        });
    }
    Ok(encoded)
}

/// The kind of keys that it writes, where it does nothing else and only one kind.
fn kind(txn: &Txn) -> Option<Discriminant<Key>> {
    let plain = txn.only_if.is_empty() && txn.otherwise.is_empty();
    let kind = txn.then.first().map(|op| discriminant(op.key()))?;
    let same = txn.then.iter().all(|op| !matches!(op, Op::Get(_)) && discriminant(op.key()) == kind);
    (plain && same).then_some(kind)
}

impl Order {
    /// `None`: it is not answered.
    fn ticket(&self) -> Option<Ticket> {
        match self {
            Self::Commit { ticket, .. } | Self::List { ticket, .. } => Some(*ticket),
            Self::Adopt { .. } => None,
        }
    }
}
