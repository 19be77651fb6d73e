//! The sealing secrets of sessions that are alive, as long as they are: opened once with a token, used by every request.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use crate::session::WebKey;
use crate::web::seal::{SealError, Sealer, SealingSecret};
use crate::web::sealing::Recent;

/// What sealing needs of one session.
pub(super) struct Held {
    /// For the token of a further host.
    pub(super) secret: SealingSecret,
    pub(super) sealer: Sealer,
    pub(super) recent: Recent,
}

impl Held {
    pub(super) fn new(secret: SealingSecret) -> Result<Arc<Self>, SealError> {
        let sealer = Sealer::new(&secret)?;
        Ok(Arc::new(Self { secret, sealer, recent: Recent::default() }))
    }
}

/// Those of all sessions that were seen here, up to a bound. What does not fit is opened anew with the next request.
pub(super) struct Secrets {
    held: RwLock<HashMap<WebKey, Arc<Held>>>,
    most: usize,
}

impl Secrets {
    pub(super) fn new(most: usize) -> Self {
        Self { held: RwLock::default(), most: most.max(1) }
    }

    pub(super) fn get(&self, key: &WebKey) -> Option<Arc<Held>> {
        self.held.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    /// Two requests may have opened it at once: the first one's counts for both, since what it has sealed just now is
    /// noted there.
    pub(super) fn put(&self, key: WebKey, fresh: Arc<Held>) -> Arc<Held> {
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        if held.len() >= self.most
            && !held.contains_key(&key)
            && let Some(any) = held.keys().next().copied()
        {
            held.remove(&any);
        }
        Arc::clone(held.entry(key).or_insert(fresh))
    }

    /// The session is over.
    pub(super) fn forget(&self, key: &WebKey) {
        self.held.write().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held() -> Arc<Held> {
        Held::new(SealingSecret::new().unwrap()).unwrap()
    }

    #[test]
    fn r7_the_first_one_counts_and_there_is_an_end() {
        let secrets = Secrets::new(2);
        let key = |byte| WebKey::from_bytes([byte; 16]);
        let first = secrets.put(key(1), held());
        assert!(Arc::ptr_eq(&secrets.put(key(1), held()), &first));
        assert!(Arc::ptr_eq(&secrets.get(&key(1)).unwrap(), &first));
        secrets.put(key(2), held());
        secrets.put(key(3), held());
        let there = [1, 2, 3].into_iter().filter(|byte| secrets.get(&key(*byte)).is_some()).count();
        assert_eq!(there, 2);
        assert!(secrets.get(&key(3)).is_some());
        secrets.forget(&key(3));
        assert!(secrets.get(&key(3)).is_none());
    }
}
