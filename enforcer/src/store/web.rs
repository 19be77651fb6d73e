//! The tables of web sessions: rows, their checksums, statements, and reading all of them. Pure where a row is judged, and
//! as strict as `row.rs`: a row that is not exactly what this module would have written is none.

use std::collections::BTreeMap;
use std::path::Path;

use rusqlite::{Connection, params};

use super::OpenError;
use super::row::{BadRow, Sum, bytes_of, hex, integer, natural, odd, text};
use super::trouble::{bad_row, reading};
use crate::session::{Process, WebDigest, WebKey, WebRecord, WebTokenRecord};

/// The longest wrapped secret, in bytes.
const MAX_BYTES: usize = 4_096;

const SESSIONS: &str =
    "SELECT key, gateway, generation, realm, username, since, seen, idle, lasts, until, peer, agent,
    tokens, sum FROM web_session NOT INDEXED ORDER BY key";
const TOKENS: &str = "SELECT key, digest, host, wrapped, sum FROM web_token NOT INDEXED ORDER BY key, digest";

/// One row of the table `web_session`.
struct SessionRow {
    key: String,
    gateway: String,
    /// In the order of [`SessionRow::NUMBERS`].
    numbers: [i64; 7],
    realm: String,
    username: String,
    peer: String,
    agent: String,
}

impl SessionRow {
    const NUMBERS: [&'static str; 7] = ["generation", "since", "seen", "idle", "lasts", "until", "tokens"];

    fn of(record: &WebRecord, gateway: &str, generation: u64) -> Result<Self, BadRow> {
        let own = |column, value: &str| text(column, value).map(|text| text.into_owned());
        let WebRecord { since, seen, idle, lasts, until, .. } = *record;
        let numbers = [generation, since, seen, idle, lasts, until, record.tokens.len() as u64];
        let mut stored = [0; 7];
        for ((place, value), column) in stored.iter_mut().zip(numbers).zip(Self::NUMBERS) {
            *place = integer(column, value)?;
        }
        Ok(Self {
            key: record.key.to_string(),
            gateway: own("gateway", gateway)?,
            numbers: stored,
            realm: own("realm", &record.realm)?,
            username: own("username", &record.user)?,
            peer: own("peer", &record.peer)?,
            agent: own("agent", &record.agent)?,
        })
    }

    fn right_sum(&self) -> i64 {
        let sum = Sum::of("web_session").text(&self.key).text(&self.gateway);
        let sum = self.numbers.iter().fold(sum, |sum, number| sum.number(*number));
        sum.text(&self.realm).text(&self.username).text(&self.peer).text(&self.agent).end()
    }

    fn record(self, sum: i64, tokens: Vec<WebTokenRecord>) -> Result<WebRecord, BadRow> {
        if sum != self.right_sum() {
            return Err(BadRow::Sum);
        }
        let mut numbers = [0; 7];
        for ((place, value), column) in numbers.iter_mut().zip(self.numbers).zip(Self::NUMBERS) {
            *place = natural(column, value)?;
        }
        let [_, since, seen, idle, lasts, until, count] = numbers;
        if count != tokens.len() as u64 || tokens.is_empty() {
            return Err(odd("tokens", &count.to_string(), "the count of its rows in web_token, at least 1"));
        }
        let Self { realm, username: user, peer, agent, .. } = self;
        let key = as_key(&self.key)?;
        Ok(WebRecord { key, realm, user, since, seen, idle, lasts, until, peer, agent, tokens })
    }
}

/// As it is written: lower case.
fn as_key(found: &str) -> Result<WebKey, BadRow> {
    let key = found.parse::<WebKey>().ok().filter(|key| key.to_string() == found);
    key.ok_or_else(|| odd("key", found, "32 hexadecimal digits"))
}

fn token_sum(key: &str, digest: &str, host: &str, wrapped: &str) -> i64 {
    Sum::of("web_token").text(key).text(digest).text(host).text(wrapped).end()
}

fn token_of(
    key: &str,
    digest: &str,
    host: String,
    wrapped: &str,
    sum: i64,
) -> Result<WebTokenRecord, BadRow> {
    if sum != token_sum(key, digest, &host, wrapped) {
        return Err(BadRow::Sum);
    }
    let meaning = digest.parse::<WebDigest>().ok().filter(|meaning| meaning.to_string() == digest);
    let digest = meaning.ok_or_else(|| odd("digest", digest, "64 hexadecimal digits"))?;
    let wrapped =
        bytes_of(wrapped).ok_or_else(|| odd("wrapped", "", "an even count of hexadecimal digits"))?;
    Ok(WebTokenRecord { digest, host, wrapped })
}

fn as_hex(column: &'static str, bytes: &[u8]) -> Result<String, BadRow> {
    if bytes.len() > MAX_BYTES {
        return Err(BadRow::TooLong { column, found: bytes.len() });
    }
    Ok(hex(bytes))
}

/// What one write of a web session is in rows; ready to be put.
pub(super) struct Rows {
    row: SessionRow,
    /// Digest, host, wrapped secret, sum.
    tokens: Vec<(String, String, String, i64)>,
}

/// The rows of a session. `gateway` and `generation`: whose change it is, and the how manieth.
pub(super) fn rows_of(record: &WebRecord, gateway: &str, generation: u64) -> Result<Rows, BadRow> {
    let row = SessionRow::of(record, gateway, generation)?;
    let tokens = record.tokens.iter().map(|token| {
        let (digest, host) = (token.digest.to_string(), text("host", &token.host)?.into_owned());
        let wrapped = as_hex("wrapped", &token.wrapped)?;
        let sum = token_sum(&row.key, &digest, &host, &wrapped);
        Ok((digest, host, wrapped, sum))
    });
    let tokens = tokens.collect::<Result<_, BadRow>>()?;
    Ok(Rows { row, tokens })
}

/// Adds or replaces a session and all its tokens.
pub(super) fn put(db: &Connection, rows: &Rows) -> rusqlite::Result<()> {
    let Rows { row, tokens } = rows;
    db.prepare_cached("DELETE FROM web_token WHERE key = ?1")?.execute([&row.key])?;
    let [generation, since, seen, idle, lasts, until, count] = row.numbers;
    db.prepare_cached(
        "INSERT INTO web_session (key, gateway, generation, realm, username, since, seen, idle, lasts, until, peer,
             agent, tokens, sum)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)
         ON CONFLICT (key) DO UPDATE SET gateway = ?2, generation = ?3, realm = ?4, username = ?5, since = ?6, seen = ?7,
             idle = ?8, lasts = ?9, until = ?10, peer = ?11, agent = ?12, tokens = ?13, sum = ?14",
    )?
    .execute(params![
        row.key,
        row.gateway,
        generation,
        row.realm,
        row.username,
        since,
        seen,
        idle,
        lasts,
        until,
        row.peer,
        row.agent,
        count,
        row.right_sum()
    ])?;
    let mut insert = db.prepare_cached(
        "INSERT INTO web_token (key, digest, host, wrapped, sum) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?;
    for (digest, host, wrapped, sum) in tokens {
        insert.execute(params![row.key, digest, host, wrapped, sum])?;
    }
    Ok(())
}

/// Takes a session away; its tokens go with it, by the foreign key.
pub(super) fn drop_session(db: &Connection, key: &WebKey) -> rusqlite::Result<()> {
    db.prepare_cached("DELETE FROM web_session WHERE key = ?1")?.execute([key.to_string()]).map(drop)
}

/// All sessions, in the order of their keys.
pub(super) fn sessions(db: &Connection, path: &Path) -> Result<Vec<WebRecord>, OpenError> {
    let sql = |error: rusqlite::Error| reading(path, &error);
    let mut tokens = tokens(db, path)?;
    let mut all = db.prepare(SESSIONS).map_err(sql)?;
    let mut all = all.query([]).map_err(sql)?;
    let mut sessions = Vec::new();
    while let Some(row) = all.next().map_err(sql)? {
        let key: String = row.get(0).map_err(sql)?;
        let read = || {
            let numbers =
                [row.get(2)?, row.get(5)?, row.get(6)?, row.get(7)?, row.get(8)?, row.get(9)?, row.get(12)?];
            let read = SessionRow {
                key: key.clone(),
                gateway: row.get(1)?,
                numbers,
                realm: row.get(3)?,
                username: row.get(4)?,
                peer: row.get(10)?,
                agent: row.get(11)?,
            };
            Ok::<_, rusqlite::Error>((read, row.get(13)?))
        };
        let (read, sum) = read().map_err(sql)?;
        let record = read.record(sum, tokens.remove(&key).unwrap_or_default());
        sessions.push(record.map_err(|why| bad_row(path, "web_session", &key, &why))?);
    }
    match tokens.into_keys().next() {
        None => Ok(sessions),
        Some(key) => Err(OpenError::Corrupt {
            path: path.to_owned(),
            what: format!("table web_token has rows of session {key}, which table web_session does not have"),
        }),
    }
}

/// By the keys of their sessions.
fn tokens(db: &Connection, path: &Path) -> Result<BTreeMap<String, Vec<WebTokenRecord>>, OpenError> {
    let sql = |error: rusqlite::Error| reading(path, &error);
    let mut all = db.prepare(TOKENS).map_err(sql)?;
    let mut all = all.query([]).map_err(sql)?;
    let mut tokens: BTreeMap<String, Vec<WebTokenRecord>> = BTreeMap::new();
    while let Some(row) = all.next().map_err(sql)? {
        let (key, digest): (String, String) = (row.get(0).map_err(sql)?, row.get(1).map_err(sql)?);
        let wrapped: String = row.get(3).map_err(sql)?;
        let (host, sum) = (row.get(2).map_err(sql)?, row.get(4).map_err(sql)?);
        let token = token_of(&key, &digest, host, &wrapped, sum);
        // the digest is not shown: it is as good as the token to whoever can ask the daemon
        let token = token.map_err(|why| bad_row(path, "web_token", &key, &why))?;
        tokens.entry(key).or_default().push(token);
    }
    Ok(tokens)
}

/// What the row of `meta` says where not all gateways can be seen.
const UNSEEN: &str = "unseen";

/// The gateways that run, as a row of `meta` has them: `PID:START`, in their order, with a blank between two.
pub(super) fn gateways_text(gateways: Option<&[Process]>) -> String {
    let one = |process: &Process| format!("{}:{}", process.pid, process.start);
    gateways.map_or(UNSEEN.to_owned(), |all| all.iter().map(one).collect::<Vec<_>>().join(" "))
}

pub(super) fn gateways_of(text: &str) -> Result<Option<Vec<Process>>, BadRow> {
    let one = |word: &str| {
        let (pid, start) = word.split_once(':')?;
        Some(Process { pid: pid.parse().ok()?, start: start.parse().ok()? })
    };
    let all: Option<Vec<Process>> = text.split_terminator(' ').map(one).collect();
    let gateways = if text == UNSEEN { Some(None) } else { all.map(Some) };
    // exactly as it is written
    let gateways = gateways.filter(|gateways| gateways_text(gateways.as_deref()) == text);
    gateways.ok_or_else(|| odd("value", text, "processes, PID:START each"))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    #[test]
    fn gateways_are_read_as_they_were_written() {
        let one = |pid, start| Process { pid, start };
        for (gateways, text) in [
            (None, "unseen"),
            (Some(vec![]), ""),
            (Some(vec![one(7, 4_711)]), "7:4711"),
            (Some(vec![one(7, 4_711), one(8, u64::MAX)]), "7:4711 8:18446744073709551615"),
        ] {
            assert_eq!(gateways_text(gateways.as_deref()), text);
            assert_eq!(gateways_of(text).unwrap(), gateways);
        }
        for bad in ["7", "7:", ":1", "7:1 ", " 7:1", "7:1  8:1", "07:1", "7:+1", "unseen 7:1", "7:1,8:1"] {
            assert!(gateways_of(bad).is_err(), "{bad:?}");
        }
    }

    pub fn record() -> WebRecord {
        let token = |byte| WebTokenRecord {
            digest: WebDigest::from_bytes([byte; 32]),
            host: format!("{byte}.example"),
            wrapped: vec![byte; 60],
        };
        WebRecord {
            key: WebKey::from_bytes([7; 16]),
            realm: "default".into(),
            user: "alice".into(),
            since: 1,
            seen: 2,
            idle: 3,
            lasts: 4,
            until: 5,
            peer: "192.0.2.1".into(),
            agent: "é 'x' \u{1}".into(),
            tokens: vec![token(1), token(2)],
        }
    }

    #[test]
    fn a_session_is_read_as_it_was_written_and_every_column_is_in_the_sum() {
        let record = record();
        let row = || SessionRow::of(&record, "g", 9).unwrap();
        let sum = row().right_sum();
        assert_eq!(row().record(sum, record.tokens.clone()).unwrap(), record);
        type Change = fn(&mut SessionRow);
        let changes: [Change; 6] = [
            |row| row.key = WebKey::from_bytes([8; 16]).to_string(),
            |row| row.gateway.push('x'),
            |row| row.realm.push('x'),
            |row| row.username.push('x'),
            |row| row.peer.push('x'),
            |row| row.agent.push('x'),
        ];
        for change in changes {
            let mut row = row();
            change(&mut row);
            assert_eq!(row.record(sum, record.tokens.clone()), Err(BadRow::Sum));
        }
        for index in 0..SessionRow::NUMBERS.len() {
            let mut row = row();
            row.numbers[index] += 1;
            assert_eq!(row.record(sum, record.tokens.clone()), Err(BadRow::Sum), "{index}");
        }
        for count in [0, 1] {
            let tokens = record.tokens[..count].to_vec();
            assert!(matches!(row().record(sum, tokens), Err(BadRow::Meaning { column: "tokens", .. })));
        }
        let huge = WebRecord { until: u64::MAX, ..record.clone() };
        assert!(matches!(rows_of(&huge, "g", 1), Err(BadRow::TooLarge { column: "until", .. })));
    }
}
