//! Which sessions are in use, told to the daemon in batches.
//!
//! A session that was not used for a while is told of at once, since its time may be almost over; one that is used all the
//! time once in a while. So what the daemon knows is never older than that while, and a session that is used does not end
//! for its idle time as long as that is longer.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::control::{api, web_words};
use crate::session::WebKey;

use super::Shared;

/// How long those that are to be told of at once wait for each other.
const GATHER: Duration = Duration::from_millis(20);
/// How many are told of in one message.
const AT_ONCE: usize = web_words::MAX_USES;

/// When a session was used, in milliseconds after the link was started.
#[derive(Debug, Default)]
pub(super) struct Usage {
    last: AtomicU64,
    told: AtomicU64,
    /// It is among those that are to be told of.
    waits: AtomicBool,
}

pub(super) struct Used {
    started: Instant,
    every: u64,
    waiting: Mutex<Vec<(WebKey, Arc<Usage>)>>,
    soon: Notify,
}

impl Used {
    pub fn new(every: Duration) -> Self {
        Self {
            // a session that was never told of is told of at once
            started: Instant::now().checked_sub(every).unwrap_or_else(Instant::now),
            every: millis(every),
            waiting: Mutex::new(Vec::new()),
            soon: Notify::new(),
        }
    }

    fn now(&self) -> u64 {
        millis(self.started.elapsed())
    }

    /// It is used now.
    pub fn mark(&self, key: WebKey, usage: &Arc<Usage>) {
        let now = self.now();
        usage.last.store(now, Ordering::Relaxed);
        if usage.waits.swap(true, Ordering::AcqRel) {
            return;
        }
        self.waiting().push((key, Arc::clone(usage)));
        if now.saturating_sub(usage.told.load(Ordering::Relaxed)) >= self.every {
            self.soon.notify_one();
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<(WebKey, Arc<Usage>)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Tells the daemon, for as long as the link is there.
pub(super) async fn tell(shared: Arc<Shared>) {
    let used = &shared.used;
    loop {
        tokio::select! {
            () = used.soon.notified() => tokio::time::sleep(GATHER).await,
            () = tokio::time::sleep(shared.settings.seen_every) => {}
        }
        let waiting = std::mem::take(&mut *used.waiting());
        for some in waiting.chunks(AT_ONCE) {
            tell_some(&shared, some).await;
        }
    }
}

async fn tell_some(shared: &Shared, some: &[(WebKey, Arc<Usage>)]) {
    let used = &shared.used;
    for (_, usage) in some {
        // whoever is used from here on is told of once more
        usage.waits.store(false, Ordering::Release);
    }
    let now = used.now();
    let uses = some.iter().map(|(key, usage)| api::WebUse {
        key: key.as_bytes().to_vec(),
        ago_ms: now.saturating_sub(usage.last.load(Ordering::Relaxed)),
    });
    let request = api::WebSeen { uses: uses.collect() };
    let client = shared.client().clone();
    let told = match client {
        Some(mut client) => tokio::time::timeout(shared.settings.within, client.seen(request)).await,
        None => return again(shared, some),
    };
    match told {
        Ok(Ok(_)) => some.iter().for_each(|(_, usage)| usage.told.store(now, Ordering::Relaxed)),
        Ok(Err(_)) | Err(_) => again(shared, some),
    }
}

/// With the next message: of those that are alive.
fn again(shared: &Shared, some: &[(WebKey, Arc<Usage>)]) {
    let cache = shared.cache();
    let mut waiting = shared.used.waiting();
    for (key, usage) in some {
        if cache.knows(key) && !usage.waits.swap(true, Ordering::AcqRel) {
            waiting.push((*key, Arc::clone(usage)));
        }
    }
}
