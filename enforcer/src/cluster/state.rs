//! All keys of a range as they were at one revision, page by page.

use etcd_client::proto::PbKeyValue;
use etcd_client::{GetOptions, KvClient};

use super::Settings;
use super::client::{revision, revision_of};
use super::keys::Prefix;
use super::record;
use super::trouble::{Trouble, is_compacted, is_too_large, raw_within};
use super::words::{Change, Key, Now};
use crate::session::Revision;

/// How many keys are asked for at once.
const PAGE: i64 = 1_000;
/// How often it is begun anew because etcd has compacted what was being read.
const TRIES: usize = 5;

/// From the first key to before the second.
pub(super) type Range = (Vec<u8>, Vec<u8>);

/// Something that is no record, or has a part that is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Odd {
    pub key: String,
    pub revision: Revision,
    pub why: String,
    /// It is in force all the same.
    pub taken: bool,
}

/// What was read.
#[derive(Debug, Default)]
pub(super) struct All {
    pub revision: Revision,
    /// In the order of their keys.
    pub entries: Vec<Change>,
}

/// Reads a range. `odd` is told what is no record of ours.
///
/// # Errors
/// etcd does not answer as it should, or has more than [`Settings::most`] keys there.
pub(super) async fn read(
    kv: &mut KvClient,
    settings: &Settings,
    cluster: u64,
    range: &Range,
    mut odd: impl FnMut(Odd),
) -> Result<All, Trouble> {
    for _ in 0..TRIES {
        if let Some(all) = attempt(kv, settings, cluster, range, &mut odd).await? {
            return Ok(all);
        }
    }
    Err(Trouble::broken("etcd is compacted faster than its state can be read: compact it less often"))
}

/// `None`: the revision was compacted meanwhile.
async fn attempt(
    kv: &mut KvClient,
    settings: &Settings,
    cluster: u64,
    (from, to): &Range,
    odd: &mut impl FnMut(Odd),
) -> Result<Option<All>, Trouble> {
    let mut all = All::default();
    let (mut from, mut page) = (from.clone(), PAGE);
    let mut keys_only = false;
    loop {
        let mut options = GetOptions::new().with_range(to.clone()).with_limit(page);
        if all.revision > 0 {
            options = options.with_revision(i64::try_from(all.revision).unwrap_or(i64::MAX));
        }
        if keys_only {
            options = options.with_keys_only();
        }
        let answer = match raw_within(settings.request_timeout, kv.get(from.clone(), Some(options))).await? {
            Ok(answer) => answer.0,
            Err(error) if is_compacted(&error) => return Ok(None),
            // a page of long values is asked for in smaller ones; a single one that is too long is left aside
            Err(error) if is_too_large(&error) && page > 1 => {
                page /= 10;
                continue;
            }
            Err(error) if is_too_large(&error) && !keys_only => {
                keys_only = true;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let at = revision_of(answer.header.as_ref(), cluster)?;
        if all.revision == 0 {
            all.revision = at;
        }
        if answer.more && answer.kvs.is_empty() {
            return Err(Trouble::broken("etcd has more keys and does not tell them"));
        }
        for found in answer.kvs {
            if found.key < from || found.key >= *to {
                return Err(Trouble::broken("etcd tells keys that were not asked for"));
            }
            from.clone_from(&found.key);
            // the next one at the earliest
            from.push(0);
            if all.entries.len() >= settings.most {
                return Err(Trouble::broken(too_many(settings)));
            }
            all.entries.extend(entry(&settings.prefix, found, keys_only, odd)?);
        }
        if !answer.more {
            return Ok(Some(all));
        }
        (keys_only, page) = (false, PAGE.min(page * 10));
    }
}

pub(super) fn too_many(settings: &Settings) -> String {
    format!(
        "there are more than {} keys below {}: remove what is old, or raise [cluster] max-records on every gateway",
        settings.most,
        settings.prefix.as_str()
    )
}

/// `None`: no key of ours. `too_large`: its value was not even fetched.
pub(super) fn entry(
    prefix: &Prefix,
    found: PbKeyValue,
    too_large: bool,
    odd: &mut impl FnMut(Odd),
) -> Result<Option<Change>, Trouble> {
    let at = revision(found.mod_revision)?;
    let Some(key) = key(prefix, &found.key, at, odd) else { return Ok(None) };
    let read = if too_large {
        Err("it is too large to be looked at".to_owned())
    } else {
        record::read(&key, &found.value).map_err(|error| error.to_string())
    };
    let mut tell = |why, taken| odd(Odd { key: shown(&found.key), revision: at, why, taken });
    let now = match read {
        Ok((value, strange)) => {
            if let Some(why) = strange {
                tell(why, true);
            }
            Now::Is(value)
        }
        Err(why) => {
            tell(why, false);
            Now::Unreadable
        }
    };
    Ok(Some(Change { key, now, revision: at, created: revision(found.create_revision)? }))
}

/// `None`: no key of ours, which is told.
pub(super) fn key(
    prefix: &Prefix,
    bytes: &[u8],
    revision: Revision,
    odd: &mut impl FnMut(Odd),
) -> Option<Key> {
    prefix
        .read(bytes)
        .map_err(|error| odd(Odd { key: shown(bytes), revision, why: error.to_string(), taken: false }))
        .ok()
}

/// Whatever bytes somebody has put there, before people.
fn shown(key: &[u8]) -> String {
    record::short(&key.escape_ascii().to_string())
}
