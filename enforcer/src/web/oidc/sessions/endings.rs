//! The sessions that the provider has ended and that may still go on: until whoever ends sessions says that they are over,
//! and not only until the provider has been answered, since few providers say it twice.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tokio::sync::{Notify, watch};

use crate::session::WebKey;

/// How far such an end is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// Nobody has tried yet.
    Wanted,
    /// It was tried, and has to be tried again.
    Failed,
}

/// All of them: no more than there are sessions.
#[derive(Debug)]
pub(in crate::web::oidc) struct Endings {
    keys: RwLock<BTreeMap<WebKey, Ending>>,
    /// For the one who ends sessions: there is something new.
    wanted: Notify,
    /// For those who wait for him.
    changed: watch::Sender<()>,
}

impl Endings {
    /// With those that were left when the gateway ended.
    pub(in crate::web::oidc) fn new(left: impl IntoIterator<Item = WebKey>) -> Self {
        let keys = left.into_iter().map(|key| (key, Ending::Failed)).collect();
        Self { keys: RwLock::new(keys), wanted: Notify::new(), changed: watch::Sender::new(()) }
    }

    /// Also those that have failed before are tried anew.
    pub(in crate::web::oidc) fn want(&self, keys: &[WebKey]) {
        if keys.is_empty() {
            return;
        }
        self.write().extend(keys.iter().map(|key| (*key, Ending::Wanted)));
        self.wanted.notify_one();
    }

    pub(in crate::web::oidc) fn has(&self, key: &WebKey) -> bool {
        self.read().contains_key(key)
    }

    pub(in crate::web::oidc) fn all(&self) -> Vec<WebKey> {
        self.read().keys().copied().collect()
    }

    /// Those of these that have not failed before.
    pub(in crate::web::oidc) fn fresh(&self, keys: &[WebKey]) -> Vec<WebKey> {
        let all = self.read();
        keys.iter().filter(|key| all.get(key) == Some(&Ending::Wanted)).copied().collect()
    }

    pub(in crate::web::oidc) fn failed(&self, keys: &[WebKey]) {
        {
            let mut all = self.write();
            for key in keys {
                if let Some(ending) = all.get_mut(key) {
                    *ending = Ending::Failed;
                }
            }
        }
        self.changed.send_replace(());
    }

    /// It is over.
    pub(in crate::web::oidc) fn forget(&self, key: &WebKey) {
        if self.write().remove(key).is_some() {
            self.changed.send_replace(());
        }
    }

    /// Waits until there is something to be ended that was not there before.
    pub(in crate::web::oidc) async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// Waits until each of these has been ended, or tried. Whether all are over.
    pub(in crate::web::oidc) async fn settled(&self, keys: &[WebKey]) -> bool {
        let mut changed = self.changed.subscribe();
        loop {
            if self.fresh(keys).is_empty() {
                return !keys.iter().any(|key| self.has(key));
            }
            // the sender lives as long as `self`
            let _ = changed.changed().await;
        }
    }

    // whoever panicked did so between two whole changes

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<WebKey, Ending>> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<WebKey, Ending>> {
        self.keys.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn key(byte: u8) -> WebKey {
        WebKey::from_bytes([byte; 16])
    }

    /// R6: it is said to be done when all of it is over, and not to be when some of it could not be ended.
    #[tokio::test]
    async fn r6_who_waits_is_told_what_became_of_all() {
        let endings = Arc::new(Endings::new([key(9)]));
        assert!(endings.settled(&[]).await && endings.settled(&[key(1)]).await, "nothing of it goes on");
        assert!(!endings.settled(&[key(9)]).await, "left from before");
        let keys = [key(1), key(2)];
        endings.want(&keys);
        endings.wanted().await;
        let waiting = |endings: &Arc<Endings>| {
            let endings = Arc::clone(endings);
            tokio::spawn(async move { endings.settled(&keys).await })
        };
        let waits = waiting(&endings);
        tokio::task::yield_now().await;
        endings.forget(&key(1));
        tokio::task::yield_now().await;
        assert!(!waits.is_finished());
        endings.failed(&keys);
        assert!(!waits.await.unwrap());
        assert_eq!(endings.all(), [key(2), key(9)], "it is tried again");
        // also with the next word of the provider
        endings.want(&[key(2)]);
        let waits = waiting(&endings);
        tokio::task::yield_now().await;
        endings.forget(&key(2));
        assert!(waits.await.unwrap());
        assert!(!endings.has(&key(2)) && endings.has(&key(9)));
    }

    #[test]
    fn what_has_failed_before_is_not_fresh() {
        let endings = Endings::new([]);
        endings.want(&[key(1), key(2)]);
        assert_eq!(endings.fresh(&endings.all()), [key(1), key(2)]);
        endings.failed(&[key(1), key(3)]);
        assert_eq!(endings.fresh(&endings.all()), [key(2)]);
        assert_eq!(endings.all(), [key(1), key(2)], "and what is over does not come back");
    }
}
