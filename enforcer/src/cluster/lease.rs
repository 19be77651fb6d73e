//! `alive/<own>`, under a lease: there as long as this gateway is connected. Also how a dead connection is noticed, and
//! what keeps its orders from being done after it.
//!
//! An order that was sent and not answered may still lie on its way between etcd's members, for minutes, and be done when
//! everything behind it was done long ago. So every transaction asks that the sign of life was last written by the
//! connection that the transaction came by: once the next connection has shown its own, nothing comes of what the last one
//! has left.

use std::time::{SystemTime, UNIX_EPOCH};

use etcd_client::{LeaseClient, PutOptions};

use super::client::{Connection, revision_of};
use super::trouble::{Fate, Trouble, within};
use super::words::{Key, Value};
use super::{Settings, record};

/// How many renewals a lease outlives.
const TIMES: u32 = 3;

/// Keeps the lease, also that of an earlier connection (`lease`), until it cannot be.
pub(super) async fn keep(
    connection: &Connection,
    settings: &Settings,
    run: &str,
    lease: &mut Option<i64>,
) -> Trouble {
    let mut client = connection.lease.clone();
    loop {
        match attempt(connection, &mut client, settings, run, lease).await {
            // it has run out: a new one
            Ok(()) => *lease = None,
            Err(trouble) => return trouble,
        }
    }
}

/// `Ok`: the lease is over.
async fn attempt(
    connection: &Connection,
    client: &mut LeaseClient,
    settings: &Settings,
    run: &str,
    lease: &mut Option<i64>,
) -> Result<(), Trouble> {
    let time = settings.request_timeout;
    let id = match *lease {
        Some(id) => id,
        None => {
            let seconds = i64::try_from(settings.lease.as_secs()).unwrap_or(i64::MAX).max(1);
            within(time, client.grant(seconds, None)).await?.0.id
        }
    };
    *lease = Some(id);
    // renewed before it is shown: one of an earlier connection may be about to run out, and would take the sign of life
    // with it that orders have begun to ask for
    let (mut keeper, mut answers) = match within(time, client.keep_alive(id)).await {
        Err(trouble) if is_over(&trouble) => return Ok(()),
        begun => begun?,
    };
    // with each connection: nobody knows what became of it with the last one
    match show(connection, settings, run, id).await {
        Err(trouble) if is_over(&trouble) => return Ok(()),
        shown => shown?,
    }
    loop {
        tokio::time::sleep(settings.lease / TIMES).await;
        within(time, keeper.keep_alive()).await?;
        let answer = within(time, answers.message()).await?;
        match answer {
            Some(answer) if answer.0.ttl > 0 => {}
            Some(_) => return Ok(()),
            None => return Err(Trouble::broken("etcd has ended the renewal of the lease")),
        }
    }
}

/// etcd and its client say it in the same words.
fn is_over(trouble: &Trouble) -> bool {
    trouble.why.contains("lease not found")
}

async fn show(connection: &Connection, settings: &Settings, run: &str, lease: i64) -> Result<(), Trouble> {
    let unwritable = |why: String| Trouble { fate: Fate::NotDone, why };
    let key = Key::Alive(settings.gateway);
    let at = SystemTime::now().duration_since(UNIX_EPOCH).map(|since| since.as_secs()).unwrap_or_default();
    let value = record::write(&key, &Value::Alive { run: run.to_owned(), at })
        .map_err(|error| unwritable(error.to_string()))?;
    let key = settings.prefix.write(&key).map_err(|error| unwritable(error.to_string()))?;
    let mut kv = connection.kv.clone();
    let put = kv.put(key, value, Some(PutOptions::new().with_lease(lease)));
    let put = within(settings.request_timeout, put).await;
    let put = put.map_err(|trouble| Trouble { why: format!("its sign of life: {trouble}"), ..trouble })?;
    connection.fence.send_replace(revision_of(put.0.header.as_ref(), connection.known.cluster)?);
    Ok(())
}

/// So that others see at once that this gateway has gone. It goes by itself otherwise.
pub(super) async fn give_back(connection: &Connection, settings: &Settings, lease: Option<i64>) {
    if let Some(id) = lease {
        let mut client = connection.lease.clone();
        if let Err(trouble) = within(settings.request_timeout, client.revoke(id)).await {
            tracing::debug!("etcd keeps this gateway's lease until it runs out: {trouble}");
        }
    }
}
