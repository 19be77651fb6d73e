//! From one connection to the next.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::sync::mpsc;

use super::client::{self, Connection};
use super::reading::{Ended, Reader};
use super::trouble::{Fate, Trouble};
use super::write::Writer;
use super::{Known, Order, Settings, Told, hex, lease};

/// The first and the longest pause after all endpoints were tried in vain.
const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(5)];

/// Keeps a connection to etcd, tells what is there and carries out orders, until nobody gives orders any more or nobody
/// listens. Both channels are bounded by whoever makes them; orders have to be given, and what is told to be read, at the
/// same time.
///
/// No order is carried out before the endpoint was found to be the etcd that is known. One that comes while etcd is away
/// is answered at once ([`super::Outcome::NotSent`]). Dropped, it leaves at most a lease behind, which runs out.
pub async fn run(settings: Settings, mut orders: mpsc::Receiver<Order>, told: mpsc::Sender<Told>) {
    let mut life = Life {
        known: settings.known,
        settings,
        reader: Reader::new(),
        writer: Writer::default(),
        lease: None,
        run: random_word(),
        adopted: None,
        replaced: None,
        down: BTreeMap::new(),
    };
    // whoever ends it has gone
    let _ = life.go_on(&mut orders, &told).await;
}

/// What outlives a connection.
struct Life {
    settings: Settings,
    known: Option<Known>,
    reader: Reader,
    writer: Writer,
    lease: Option<i64>,
    /// Tells this run from another one of the same gateway.
    run: String,
    /// The cluster that is to be taken though it is not the one that was known.
    adopted: Option<u64>,
    /// The etcd that was known, and the cluster that was found in its place and told of. It stays so until that one is
    /// adopted, however far its revision has come meanwhile.
    replaced: Option<(Known, u64)>,
    /// What was told last of each endpoint, since the connection was lost.
    down: BTreeMap<String, String>,
}

impl Life {
    /// Ends with [`Ended::Deaf`] alone.
    async fn go_on(
        &mut self,
        orders: &mut mpsc::Receiver<Order>,
        told: &mpsc::Sender<Told>,
    ) -> Result<(), Ended> {
        let (mut tried, mut pause) = (0, PAUSES[0]);
        let mut why = "etcd was not reached yet".to_owned();
        let mut place = 0;
        loop {
            let count = self.settings.endpoints.len().max(1);
            let endpoint = self.settings.endpoints.get(place % count).cloned().unwrap_or_default();
            place += 1;
            let settings = self.settings.clone();
            let connected = tokio::select! {
                connected = client::connect(&settings, &endpoint) => connected,
                gone = self.away(orders, told, &why) => return gone,
            };
            let failed = match connected {
                Ok(connection) => match self.is_known(&connection, told).await? {
                    Ok(()) => {
                        let begun = Instant::now();
                        let broken = self.connected(&connection, orders, told).await?;
                        if self.reader.up {
                            self.down.clear();
                        }
                        // one that was of use for a while is not held against it
                        if self.reader.up && begun.elapsed() >= settings.lease {
                            (tried, pause) = (0, PAUSES[0]);
                        }
                        broken
                    }
                    Err(trouble) => trouble,
                },
                Err(trouble) => trouble,
            };
            why = format!("{endpoint}: {failed}");
            self.writer.broken(told, &why).await?;
            if self.down.insert(endpoint, why.clone()).as_ref() != Some(&why) {
                say(told, Told::Down { why: why.clone() }).await?;
            }
            tried += 1;
            // the others are tried at once
            if tried % count == 0 {
                tokio::select! {
                    () = tokio::time::sleep(jittered(pause)) => {}
                    gone = self.away(orders, told, &why) => return gone,
                }
                pause = (pause * 2).min(PAUSES[1]);
            }
        }
    }

    /// One connection, to its end. `Ok`: why it broke.
    async fn connected(
        &mut self,
        connection: &Connection,
        orders: &mut mpsc::Receiver<Order>,
        told: &mpsc::Sender<Told>,
    ) -> Result<Trouble, Ended> {
        let (known, settings) = (connection.known, &self.settings);
        self.reader.up = false;
        let ended = tokio::select! {
            ended = self.reader.follow(connection, settings, told) => ended,
            ended = self.writer.carry_out(connection, settings, orders, told) => ended,
            trouble = lease::keep(connection, settings, &self.run, &mut self.lease) => Ended::Broken(trouble),
        };
        let reached = known.revision.max(self.reader.read.unwrap_or(0)).max(self.writer.reached);
        self.known = Some(Known { revision: reached, ..known });
        match ended {
            Ended::Broken(trouble) => Ok(trouble),
            Ended::Deaf => {
                lease::give_back(connection, &self.settings, self.lease).await;
                Err(Ended::Deaf)
            }
        }
    }

    /// Whether this is the etcd that was known. `Ok(Err)`: it is not to be used.
    async fn is_known(
        &mut self,
        connection: &Connection,
        told: &mpsc::Sender<Told>,
    ) -> Result<Result<(), Trouble>, Ended> {
        let is = connection.known;
        let Some(was) = self.known else { return Ok(Ok(())) };
        let told_of = self.replaced == Some((was, is.cluster));
        if is.cluster == was.cluster && is.revision >= was.revision && !told_of {
            return Ok(Ok(()));
        }
        if self.adopted == Some(is.cluster) {
            (self.adopted, self.known, self.replaced) = (None, None, None);
            // what was told of the other one means nothing here
            self.reader = Reader::new();
            self.writer.reached = 0;
            self.lease = None;
            return Ok(Ok(()));
        }
        let why = if is.cluster == was.cluster {
            format!("its revision went back from {}: it was restored from a backup", was.revision)
        } else {
            format!("it is another etcd: its cluster id is {:x}, and {:x} is known", is.cluster, was.cluster)
        };
        if !told_of {
            self.replaced = Some((was, is.cluster));
            say(told, Told::Replaced { endpoint: connection.endpoint.clone(), was, is }).await?;
        }
        Ok(Err(Trouble { fate: Fate::NotDone, why }))
    }

    /// Answers orders while etcd is away, until nobody gives any more.
    async fn away(
        &mut self,
        orders: &mut mpsc::Receiver<Order>,
        told: &mpsc::Sender<Told>,
        why: &str,
    ) -> Result<(), Ended> {
        loop {
            // whatever this was dropped with before
            self.writer.broken(told, why).await?;
            match orders.recv().await {
                Some(Order::Adopt { cluster }) => self.adopted = Some(cluster),
                Some(order) => self.writer.put_back(order),
                None => return Err(Ended::Deaf),
            }
        }
    }
}

/// Between a half and all of it, so that gateways that lost the same etcd do not come back at once.
fn jittered(pause: Duration) -> Duration {
    let mut byte = [0];
    match SystemRandom::new().fill(&mut byte) {
        Ok(()) => pause / 2 + pause * u32::from(byte[0]) / 512,
        Err(_) => pause,
    }
}

/// 32 hexadecimal digits.
fn random_word() -> String {
    let mut bytes = [0_u8; 16];
    match SystemRandom::new().fill(&mut bytes) {
        Ok(()) => hex::write(&bytes),
        // for people alone: who sees two of them wonders, and nothing else happens
        Err(_) => hex::write(&std::process::id().to_be_bytes()),
    }
}

async fn say(told: &mpsc::Sender<Told>, what: Told) -> Result<(), Ended> {
    told.send(what).await.map_err(|_| Ended::Deaf)
}
