//! One connection to one member of etcd.

use std::path::Path;
use std::time::Duration;

use etcd_client::proto::PbResponseHeader;
use etcd_client::{
    Certificate, Client, ConnectOptions, Identity, KvClient, LeaseClient, TlsOptions, WatchClient,
};

use tokio::sync::watch;

use super::trouble::{Fate, Trouble, within};
use super::words::Key;
use super::{Known, Settings, Tls, secret};
use crate::session::Revision;

/// No answer is longer, in bytes. etcd sends single records of 1.5 MiB at most, unless it is configured otherwise.
pub(super) const MAX_ANSWER: usize = 16 << 20;
/// etcd cuts off who pings more often than every 5 s.
const PING_EVERY: Duration = Duration::from_secs(10);

/// A member that has answered.
pub(super) struct Connection {
    pub endpoint: String,
    /// Which etcd it is, and how far it was when it was asked first.
    pub known: Known,
    pub kv: KvClient,
    pub watch: WatchClient,
    pub lease: LeaseClient,
    /// When this connection has shown its sign of life; 0: not yet. Every transaction asks for it: see [`super::lease`].
    pub fence: watch::Sender<Revision>,
    /// Holds the connection.
    _client: Client,
}

/// Connects, and asks one question that only a member with a leader answers.
///
/// # Errors
/// Why this endpoint is of no use at this moment.
pub(super) async fn connect(settings: &Settings, endpoint: &str) -> Result<Connection, Trouble> {
    let options = options(settings, endpoint)?;
    let connecting = Client::connect([endpoint], Some(options));
    let client = within(settings.connect_timeout + settings.request_timeout, connecting).await?;
    let mut kv = client.kv_client().max_decoding_message_size(MAX_ANSWER);
    let own = settings
        .prefix
        .write(&Key::Gateway(settings.gateway))
        .map_err(|error| Trouble { fate: Fate::NotDone, why: error.to_string() })?;
    let answer = within(settings.connect_timeout + settings.request_timeout, kv.get(own, None)).await?;
    let known = known(answer.0.header.as_ref())?;
    Ok(Connection {
        endpoint: endpoint.to_owned(),
        known,
        kv,
        watch: client.watch_client().max_decoding_message_size(MAX_ANSWER),
        lease: client.lease_client(),
        fence: watch::Sender::new(0),
        _client: client,
    })
}

/// Which etcd has answered.
pub(super) fn known(header: Option<&PbResponseHeader>) -> Result<Known, Trouble> {
    let header = header.ok_or_else(|| Trouble::broken("an answer that does not say which etcd it is of"))?;
    Ok(Known { cluster: header.cluster_id, revision: revision(header.revision)? })
}

/// The revision of an answer of the etcd that this connection was made to.
pub(super) fn revision_of(header: Option<&PbResponseHeader>, cluster: u64) -> Result<Revision, Trouble> {
    let known = known(header)?;
    if known.cluster != cluster {
        return Err(Trouble::broken("another etcd has answered than the one that was connected to"));
    }
    Ok(known.revision)
}

pub(super) fn revision(number: i64) -> Result<Revision, Trouble> {
    Revision::try_from(number).map_err(|_| Trouble::broken(format!("etcd tells of a revision {number}")))
}

fn options(settings: &Settings, endpoint: &str) -> Result<ConnectOptions, Trouble> {
    let unusable = |why: String| Trouble { fate: Fate::NotDone, why };
    let mut options = ConnectOptions::new()
        .with_connect_timeout(settings.connect_timeout)
        .with_timeout(settings.request_timeout)
        .with_keep_alive(PING_EVERY, settings.request_timeout)
        .with_require_leader(true)
        .with_auto_token_refresh(true);
    if let Some(user) = &settings.user {
        let password = secret::line(&user.password_file).map_err(unusable)?;
        options = options.with_user(&user.name, password);
    }
    if endpoint.starts_with("https://") {
        let tls = settings.tls.as_ref().ok_or_else(|| {
            unusable("https needs the certificate of an authority: set [cluster] ca".into())
        })?;
        options = options.with_tls(papers(tls).map_err(unusable)?);
    }
    Ok(options)
}

fn papers(tls: &Tls) -> Result<TlsOptions, String> {
    let mut options = TlsOptions::new().ca_certificate(Certificate::from_pem(public(&tls.ca)?));
    if let Some((certificate, key)) = &tls.own {
        options = options.identity(Identity::from_pem(public(certificate)?, secret::read(key)?));
    }
    Ok(options)
}

fn public(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("{}: cannot be read: {error}", path.display()))
}
