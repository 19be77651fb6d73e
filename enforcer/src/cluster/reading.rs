//! What is told of etcd's state: all of it once, and then every change.

use std::time::Instant;

use etcd_client::proto::{PbEvent, PbWatchResponse};
use etcd_client::{EventType, GetOptions, WatchOptions, WatchStream};
use tokio::sync::mpsc;

use super::client::{Connection, revision, revision_of};
use super::reports::Reports;
use super::state::{self, Odd};
use super::trouble::{Trouble, is_compacted, raw_within, within};
use super::words::{Change, Now};
use super::{Known, Settings, Told};
use crate::session::Revision;

/// Why it does not go on.
pub(super) enum Ended {
    /// Nobody listens any more.
    Deaf,
    Broken(Trouble),
}

impl From<Trouble> for Ended {
    fn from(trouble: Trouble) -> Self {
        Self::Broken(trouble)
    }
}

/// Keeps over connections what was told.
pub(super) struct Reader {
    /// Everything up to it was told.
    pub read: Option<Revision>,
    /// Whether this connection was told of.
    pub up: bool,
    reports: Reports,
    /// Malformed records that are to be told.
    odd: Vec<Odd>,
}

impl Reader {
    pub fn new() -> Self {
        Self { read: None, up: false, reports: Reports::new(Instant::now()), odd: Vec::new() }
    }

    /// Tells the state where it has to, and changes until the connection breaks.
    pub async fn follow(
        &mut self,
        connection: &Connection,
        settings: &Settings,
        told: &mpsc::Sender<Told>,
    ) -> Ended {
        if let Some(read) = self.read {
            match is_forgotten(connection, settings, read).await {
                Ok(true) => self.read = None,
                Ok(false) => {}
                Err(trouble) => return trouble.into(),
            }
        }
        loop {
            let watched = match self.read {
                Some(read) => self.watch(connection, settings, told, read).await,
                None => self.whole(connection, settings, told).await,
            };
            if let Err(ended) = watched {
                return ended;
            }
        }
    }

    async fn whole(
        &mut self,
        connection: &Connection,
        settings: &Settings,
        told: &mpsc::Sender<Told>,
    ) -> Result<(), Ended> {
        let range = settings.prefix.watched();
        let (odd, reports) = (&mut self.odd, &mut self.reports);
        let tell = |one| {
            if reports.may(Instant::now()) {
                odd.push(one);
            }
        };
        let mut kv = connection.kv.clone();
        let all = state::read(&mut kv, settings, connection.known.cluster, &range, tell).await?;
        self.tell_odd(told).await?;
        let known = Known { cluster: connection.known.cluster, revision: all.revision };
        let up = Told::Up { known, endpoint: connection.endpoint.clone(), state: Some(all.entries) };
        self.up = true;
        say(told, up).await?;
        self.read = Some(all.revision);
        Ok(())
    }

    /// `Ok`: etcd has forgotten what came next, or there was too much of it at once, and the state has to be read anew.
    async fn watch(
        &mut self,
        connection: &Connection,
        settings: &Settings,
        told: &mpsc::Sender<Told>,
        from: Revision,
    ) -> Result<(), Ended> {
        let cluster = connection.known.cluster;
        let mut stream = begin(connection, settings, from).await?;
        let mut group = Group::default();
        loop {
            let message = stream.message().await.map_err(Trouble::from)?;
            let Some(message) = message else {
                return Err(Trouble::broken("etcd has ended the watch").into());
            };
            let PbWatchResponse {
                header,
                watch_id,
                created,
                canceled,
                compact_revision,
                cancel_reason,
                fragment,
                events,
            } = message.0;
            if canceled && compact_revision > 0 {
                self.read = None;
                return Ok(());
            }
            if canceled {
                let why = super::record::short(&cancel_reason);
                return Err(Trouble::broken(format!("etcd has ended the watch: {why}")).into());
            }
            let at = revision_of(header.as_ref(), cluster)?;
            if created {
                if !self.up {
                    let known = Known { cluster, revision: from };
                    self.up = true;
                    say(told, Told::Up { known, endpoint: connection.endpoint.clone(), state: None }).await?;
                }
                continue;
            }
            // of this watch alone: one for the whole stream (-1) may have overtaken events
            if events.is_empty() && watch_id >= 0 && group.revision == 0 {
                self.advance(told, at, Vec::new()).await?;
            }
            for event in events {
                let of = revision(event.kv.as_ref().map_or(-1, |kv| kv.mod_revision))?;
                // what was told before: the watch begins with it
                if of <= self.read.unwrap_or(from) {
                    continue;
                }
                if of < group.revision {
                    return Err(Trouble::broken("etcd tells changes out of their order").into());
                }
                if of > group.revision {
                    self.tell_group(told, &mut group).await?;
                    group.revision = of;
                }
                if group.changes.len() >= settings.most {
                    self.read = None;
                    return Ok(());
                }
                self.take(settings, event, &mut group)?;
            }
            if !fragment {
                self.tell_group(told, &mut group).await?;
            }
        }
    }

    fn take(&mut self, settings: &Settings, event: PbEvent, group: &mut Group) -> Result<(), Trouble> {
        let (odd, reports) = (&mut self.odd, &mut self.reports);
        let mut tell = |one| {
            if reports.may(Instant::now()) {
                odd.push(one);
            }
        };
        let Some(found) = event.kv else { return Ok(()) };
        let change = match EventType::try_from(event.r#type) {
            Ok(EventType::Put) => state::entry(&settings.prefix, found, false, &mut tell)?,
            Ok(EventType::Delete) => {
                let key = state::key(&settings.prefix, &found.key, group.revision, &mut tell);
                key.map(|key| Change { key, now: Now::Gone, revision: group.revision, created: 0 })
            }
            Err(_) => {
                return Err(Trouble::broken(format!("etcd tells of a change of kind {}", event.r#type)));
            }
        };
        group.changes.extend(change);
        Ok(())
    }

    async fn tell_group(&mut self, told: &mpsc::Sender<Told>, group: &mut Group) -> Result<(), Ended> {
        let Group { revision, changes } = std::mem::take(group);
        if revision == 0 {
            return Ok(());
        }
        self.tell_odd(told).await?;
        self.advance(told, revision, changes).await
    }

    async fn advance(
        &mut self,
        told: &mpsc::Sender<Told>,
        revision: Revision,
        changes: Vec<Change>,
    ) -> Result<(), Ended> {
        if self.read.is_some_and(|read| revision <= read) {
            return Ok(());
        }
        say(told, Told::Changed { revision, changes }).await?;
        self.read = Some(revision);
        Ok(())
    }

    async fn tell_odd(&mut self, told: &mpsc::Sender<Told>) -> Result<(), Ended> {
        for Odd { key, revision, why, taken } in std::mem::take(&mut self.odd) {
            say(told, Told::Malformed { key, revision, why, taken }).await?;
        }
        match self.reports.untold(Instant::now()) {
            Some(count) => say(told, Told::Untold { count }).await,
            None => Ok(()),
        }
    }
}

/// What one revision has changed.
#[derive(Default)]
struct Group {
    /// 0: none has begun.
    revision: Revision,
    changes: Vec<Change>,
}

/// Whether etcd has compacted what came after that revision. A watch learns of it too, but only after it has begun.
async fn is_forgotten(connection: &Connection, settings: &Settings, read: Revision) -> Result<bool, Trouble> {
    let (first, _) = settings.prefix.watched();
    let options = GetOptions::new().with_revision(i64::try_from(read).unwrap_or(i64::MAX));
    let mut kv = connection.kv.clone();
    match raw_within(settings.request_timeout, kv.get(first, Some(options))).await? {
        Ok(_) => Ok(false),
        Err(error) if is_compacted(&error) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// From what was read already: see the module's documentation.
async fn begin(connection: &Connection, settings: &Settings, from: Revision) -> Result<WatchStream, Trouble> {
    let (first, end) = settings.prefix.watched();
    let options = WatchOptions::new()
        .with_range(end)
        .with_start_revision(i64::try_from(from).unwrap_or(i64::MAX))
        .with_progress_notify()
        .with_fragment();
    within(settings.request_timeout, connection.watch.clone().watch(first, Some(options))).await
}

async fn say(told: &mpsc::Sender<Told>, what: Told) -> Result<(), Ended> {
    told.send(what).await.map_err(|_| Ended::Deaf)
}
