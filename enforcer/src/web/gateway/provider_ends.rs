//! What the identity provider has ended is ended here, until it is: also when the daemon was away at that moment, and when
//! the provider has long gone away with its question. Few providers ask twice.

use std::time::Duration;

use futures::StreamExt as _;

use crate::session::WebKey;
use crate::web::link::{Cause, LinkError};
use crate::web::oidc::Oidc;
use crate::web::proxy::{Proxy, SessionKey};

use super::guard::{Door, Gateway};

/// How many sessions are ended at the same time.
const AT_ONCE: usize = 64;
/// How long it waits before it tries again what could not be ended.
const AGAIN: Duration = Duration::from_secs(1);

/// Ends what there is to end, for as long as the gateway runs.
pub(super) async fn end(proxy: Proxy<Door>) {
    let Some(gateway) = proxy.guard().gateway() else { return };
    let Some(oidc) = &gateway.oidc else { return };
    loop {
        let failed = gateway.end_for_provider(oidc).await;
        if failed.is_empty() {
            oidc.wanted().await;
            continue;
        }
        let keys: Vec<WebKey> = failed.iter().map(|(key, _)| *key).collect();
        let fresh = oidc.fresh(&keys);
        for (key, error) in failed.iter().filter(|(key, _)| fresh.contains(key)) {
            tracing::warn!(session = %key, "the identity provider has ended a session, and the daemon has not: {error}");
        }
        if !fresh.is_empty() {
            // the daemon does not tell of their end: what is open here is closed without it, and they are not let in
            let close = |key: WebKey| proxy.end(SessionKey(*key.as_bytes()));
            futures::stream::iter(fresh.clone())
                .map(close)
                .buffer_unordered(AT_ONCE)
                .for_each(|_| async {})
                .await;
            if let Err(error) = oidc.not_ended(fresh).await {
                tracing::error!(
                    "the end of a session would be forgotten at a restart of the gateway: {error}"
                );
            }
        }
        tokio::select! {
            () = oidc.wanted() => {}
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

impl Gateway {
    /// Those that could not be ended, and why.
    async fn end_for_provider(&self, oidc: &Oidc) -> Vec<(WebKey, LinkError)> {
        let tried = futures::stream::iter(oidc.to_end())
            .map(|key| async move { (key, self.link.end_key(&key, Cause::BackChannel).await) })
            .buffer_unordered(AT_ONCE);
        let mut tried = std::pin::pin!(tried);
        let mut failed = Vec::new();
        while let Some((key, ended)) = tried.next().await {
            match ended {
                Ok(()) | Err(LinkError::Gone) => {
                    tracing::info!(session = %key, "the identity provider has ended a session");
                    oidc.over(&key);
                }
                Err(error) => failed.push((key, error)),
            }
        }
        failed
    }
}
