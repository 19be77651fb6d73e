//! How many requests are on their way at once: in all, and from one address.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::Register;

/// What comes from one address.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    /// Changed only where the list of connections is locked.
    pub(super) connections: AtomicUsize,
    pub(super) requests: AtomicUsize,
}

/// Room for one request, or for the tunnel that it became, until it is dropped.
#[derive(Debug)]
pub(in super::super) struct Room {
    register: Arc<Register>,
    crowd: Option<Arc<Crowd>>,
}

impl Register {
    /// Room for one more request from that address; from `None`, a trusted proxy, as many may come as there are.
    pub(super) fn room(self: &Arc<Self>, crowd: Option<&Arc<Crowd>>) -> Option<Room> {
        if !enter(&self.requests, self.limits.requests) {
            return None;
        }
        if let Some(crowd) = crowd
            && !enter(&crowd.requests, self.limits.requests_of_address)
        {
            self.requests.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(Room { register: Arc::clone(self), crowd: crowd.cloned() })
    }

    /// How many requests and tunnels are on their way.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.register.requests.fetch_sub(1, Ordering::Relaxed);
        if let Some(crowd) = &self.crowd {
            crowd.requests.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn enter(count: &AtomicUsize, most: usize) -> bool {
    let full = count.fetch_add(1, Ordering::Relaxed) >= most;
    if full {
        count.fetch_sub(1, Ordering::Relaxed);
    }
    !full
}
