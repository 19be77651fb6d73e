//! A gateway with its origins and clients.

mod client;
mod gateway;
mod origin;
mod papers;

use std::future::Future;
use std::time::Duration;

pub use client::{Http2, Raw, get, shake};
pub use gateway::{Gateway, many_files};
pub use origin::{Origin, WebSockets};
pub use papers::Papers;

/// Longer than anything takes on a busy machine; only a failing test waits for it.
pub const BOUND: Duration = Duration::from_secs(30);

/// Waits for something that must come.
pub async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(BOUND, work).await.unwrap_or_else(|_| panic!("{what}: it does not come"))
}

/// Waits until something holds.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    soon(what, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}
