//! The tables, and the steps from each version of them to the next.

use rusqlite::Connection;

use super::OpenError;

/// `enfr`: what `file` and `PRAGMA application_id` show.
pub(super) const APPLICATION_ID: i32 = 0x656e_6672;

/// Step N makes version N + 1 out of version N. A step that was released is never changed: a new one is added.
pub(super) const STEPS: &[&str] = &[FIRST, SECOND, THIRD, FOURTH, FIFTH];

const FIRST: &str = r"
-- gateway, generation, next_number, wall, boot_id
CREATE TABLE meta (
  key TEXT NOT NULL PRIMARY KEY,
  value TEXT NOT NULL,
  sum INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- every revocation and lock that is in force
CREATE TABLE revocation (
  number INTEGER NOT NULL PRIMARY KEY,
  gateway TEXT NOT NULL,
  generation INTEGER NOT NULL,
  kind TEXT NOT NULL
    CHECK (kind IN ('user', 'id', 'session', 'address', 'flow', 'token', 'lock', 'adopted')),
  subject TEXT NOT NULL,
  realm TEXT CHECK ((realm IS NOT NULL) = (kind = 'lock')),
  server TEXT,
  reason TEXT NOT NULL,
  asked_by TEXT NOT NULL,
  at INTEGER NOT NULL,
  lasts INTEGER,
  until INTEGER,
  guards INTEGER NOT NULL,
  sum INTEGER NOT NULL
) STRICT;

-- what the gate refuses because of a revocation; by what the gate asks for, so that its question needs no index
CREATE TABLE guard (
  kind TEXT NOT NULL CHECK (kind IN ('safe_id', 'cutoff', 'lock')),
  id TEXT NOT NULL,
  number INTEGER NOT NULL REFERENCES revocation (number) ON DELETE CASCADE,
  position INTEGER NOT NULL,
  server TEXT,
  moment INTEGER NOT NULL,
  sum INTEGER NOT NULL,
  PRIMARY KEY (kind, id, number, position)
) STRICT, WITHOUT ROWID;
CREATE INDEX guard_number ON guard (number, position);

-- for people
CREATE VIEW lock AS
  SELECT number, realm, subject AS name, reason, asked_by, at, lasts, until, gateway, generation
  FROM revocation AS r
  WHERE kind = 'lock' AND EXISTS (SELECT 1 FROM guard AS g WHERE g.number = r.number AND g.kind = 'lock');

-- revocations that were taken back, as long as the kernel may still tell of them
CREATE TABLE lifted (
  number INTEGER NOT NULL PRIMARY KEY,
  gateway TEXT NOT NULL,
  generation INTEGER NOT NULL,
  at INTEGER NOT NULL,
  sum INTEGER NOT NULL
) STRICT;

-- sessions as they were last seen
CREATE TABLE session (
  key INTEGER NOT NULL PRIMARY KEY,
  generation INTEGER NOT NULL,
  server TEXT NOT NULL,
  id INTEGER NOT NULL,
  username TEXT NOT NULL,
  groupname TEXT NOT NULL,
  vhost TEXT NOT NULL,
  device TEXT,
  addresses TEXT NOT NULL,
  client TEXT NOT NULL,
  safe_id TEXT,
  since INTEGER NOT NULL,
  worker_pid INTEGER,
  worker_start INTEGER,
  sum INTEGER NOT NULL
) STRICT;

-- what was done; nothing is decided by it
CREATE TABLE audit (
  line INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
  at INTEGER NOT NULL,
  what TEXT NOT NULL,
  number INTEGER NOT NULL,
  target TEXT NOT NULL,
  asked_by TEXT NOT NULL,
  reason TEXT NOT NULL,
  complete INTEGER NOT NULL CHECK (complete IN (0, 1)),
  text TEXT NOT NULL
) STRICT;
CREATE INDEX audit_at ON audit (at);
";

const SECOND: &str = r"
-- every web session that is alive. Texts of bytes are hexadecimal, in lower case
CREATE TABLE web_session (
  key TEXT NOT NULL PRIMARY KEY,
  gateway TEXT NOT NULL,
  generation INTEGER NOT NULL,
  realm TEXT NOT NULL,
  username TEXT NOT NULL,
  since INTEGER NOT NULL,
  seen INTEGER NOT NULL,
  idle INTEGER NOT NULL,
  lasts INTEGER NOT NULL,
  until INTEGER NOT NULL,
  peer TEXT NOT NULL,
  agent TEXT NOT NULL,
  tokens INTEGER NOT NULL,
  sum INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- its tokens: SHA-256 of each, and the session's secret as it is wrapped for it; neither opens anything
CREATE TABLE web_token (
  digest TEXT NOT NULL PRIMARY KEY,
  key TEXT NOT NULL REFERENCES web_session (key) ON DELETE CASCADE,
  host TEXT NOT NULL,
  wrapped TEXT NOT NULL,
  sum INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX web_token_key ON web_token (key);

-- what the web gateway has to know for ever
CREATE TABLE web_learned (
  key TEXT NOT NULL PRIMARY KEY,
  value TEXT NOT NULL,
  sum INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
";

// the gateway keeps that itself, in a file of its own
const THIRD: &str = "DROP TABLE web_learned";

// Columns are added, and the table is not made anew: no row is touched, so that this needs no room and cannot stop half way,
// and no foreign key is followed. For the same reason they have no CHECK: it would be tried on every row, and a row
// that the disk changed would stop the step, where `enforcer check --repair` could do nothing; reading is as strict.
const FOURTH: &str = r"
-- meta also has known_etcd: an etcd's id, and up to which of its revisions everything is in force here

-- of kind user: the realm of the one person who is meant; NULL: everybody of that name
ALTER TABLE revocation ADD COLUMN user_realm TEXT;
-- which record of etcd it carries out: a gateway's id or admin, and the revision; NULL: it was decided here
ALTER TABLE revocation ADD COLUMN author TEXT;
ALTER TABLE revocation ADD COLUMN revision INTEGER;

-- what the other gateways have to be told and etcd does not have yet. Numbered by generation: in the order of writing, and
-- new ones at the end of the table
CREATE TABLE letter (
  generation INTEGER NOT NULL PRIMARY KEY,
  what TEXT NOT NULL CHECK (what IN ('decided', 'lifted')),
  author TEXT NOT NULL CHECK ((author = '') = (what = 'decided')),
  kind TEXT NOT NULL CHECK (kind IN ('user', 'session', 'web', 'lock')),
  realm TEXT NOT NULL CHECK (realm = '' OR kind IN ('user', 'lock')),
  subject TEXT NOT NULL,
  number INTEGER CHECK ((number IS NOT NULL) = (what = 'decided')),
  revision INTEGER CHECK (revision IS NULL OR what = 'lifted'),
  asked_by TEXT NOT NULL,
  reason TEXT CHECK ((reason IS NOT NULL) = (what = 'decided')),
  at INTEGER NOT NULL,
  lasts INTEGER CHECK (lasts IS NULL OR what = 'decided'),
  until INTEGER CHECK (until IS NULL OR what = 'decided'),
  sum INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX letter_key ON letter (what, author, kind, realm, subject);

-- VPN sessions that passed the gate where several gateways agree; revision: their place in etcd's order, NULL: etcd was away
CREATE TABLE admission (
  generation INTEGER NOT NULL PRIMARY KEY,
  session TEXT NOT NULL,
  server TEXT NOT NULL,
  realm TEXT NOT NULL,
  username TEXT NOT NULL,
  groupname TEXT NOT NULL,
  revision INTEGER,
  claimed INTEGER NOT NULL CHECK (claimed IN (0, 1)),
  sum INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX admission_session ON admission (session);
";

const FIFTH: &str = r"
-- meta also has audit_before: the last line of the audit log that was pruned, and its digest

-- the first line of the audit log that has a digest
CREATE TABLE audit_chain (first INTEGER NOT NULL) STRICT;
INSERT INTO audit_chain SELECT coalesce(max(seq), 0) + 1 FROM sqlite_sequence WHERE name = 'audit';

-- SHA-256 over this line and the digest of the one before it, in hexadecimal; NULL: it was written before there was that
ALTER TABLE audit ADD COLUMN chain TEXT;
";

/// The version that these steps lead to.
pub(super) fn version_of(steps: &[&str]) -> i64 {
    steps.len() as i64
}

/// The version of the file.
pub(super) fn version(db: &Connection) -> rusqlite::Result<i64> {
    db.query_row("PRAGMA user_version", [], |row| row.get(0))
}

pub(super) fn application(db: &Connection) -> rusqlite::Result<i32> {
    db.query_row("PRAGMA application_id", [], |row| row.get(0))
}

/// Takes the file from its version to the last one, each step in a transaction of its own: a step that fails
/// leaves the version before it, whole.
pub(super) fn migrate(db: &Connection, steps: &[&str]) -> rusqlite::Result<()> {
    let from = usize::try_from(version(db)?).unwrap_or(0);
    for (index, step) in steps.iter().enumerate().skip(from) {
        // as text, since a pragma takes no parameters; both are numbers of ours
        let head =
            if index == 0 { format!("PRAGMA application_id = {APPLICATION_ID};") } else { String::new() };
        let version = index + 1;
        let done = db.execute_batch(&format!(
            "BEGIN IMMEDIATE; {head} {step}; PRAGMA user_version = {version}; COMMIT"
        ));
        if let Err(error) = done {
            if !db.is_autocommit() {
                db.execute_batch("ROLLBACK")?;
            }
            return Err(error);
        }
    }
    Ok(())
}

/// Whether the tables, indexes and views are those that the steps make. A byte that changed here would make rows
/// invisible, or turn one table into another. What an administrator added beside them is let be, but for
/// triggers: they would change what a write means.
pub(super) fn compare(db: &Connection, steps: &[&str]) -> Result<Option<String>, OpenError> {
    let list = |db: &Connection| {
        let mut all = db.prepare("SELECT type, name, tbl_name, coalesce(sql, '') FROM sqlite_schema")?;
        let rows =
            all.query_map([], |row| Ok([row.get::<_, String>(0)?, row.get(1)?, row.get(2)?, row.get(3)?]))?;
        rows.collect::<rusqlite::Result<Vec<_>>>()
    };
    let ours = Connection::open_in_memory().and_then(|fresh| {
        migrate(&fresh, steps)?;
        list(&fresh)
    });
    let ours = ours.map_err(|why| OpenError::Internal { why: why.to_string() })?;
    let theirs = match list(db) {
        Ok(theirs) => theirs,
        Err(why) => return Ok(Some(format!("its list of tables cannot be read ({why})"))),
    };
    if let Some([kind, name, ..]) = ours.iter().find(|one| !theirs.contains(one)) {
        return Ok(Some(format!("its {kind} {name} is missing or is defined differently")));
    }
    let trigger = theirs.iter().find(|[kind, ..]| kind == "trigger");
    Ok(trigger.map(|[_, name, ..]| format!("it has a trigger {name:?}, which is none of ours")))
}
