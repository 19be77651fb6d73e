//! What people read: tables that fit a terminal, receipts, times.

use std::fmt::Write as _;
use std::io::IsTerminal as _;

use serde::Serialize;

use super::gateways;
use crate::control::api;

/// Prints a record as JSON, or as the text that `human` makes of it.
pub fn print<T: Serialize>(json: bool, record: &T, human: impl FnOnce(&T) -> String) -> anyhow::Result<()> {
    use std::io::Write as _;
    let text = if json { serde_json::to_string_pretty(record)? + "\n" } else { human(record) };
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if has_read_enough(&error) => Ok(()),
        other => Ok(other?),
    }
}

/// `| head` has.
pub fn has_read_enough(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::BrokenPipe
}

/// Names come from the network: what could steer a terminal is shown as an escape.
pub(super) fn safe(text: &str) -> String {
    text.chars()
        .flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] })
        .collect()
}

pub fn terminal_width() -> usize {
    if !std::io::stdout().is_terminal() {
        return usize::MAX;
    }
    std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok()).unwrap_or(120)
}

pub(super) fn table(head: &[&str], rows: &[Vec<String>], width: usize) -> String {
    let mut columns = Columns::new(head, width);
    columns.titles(rows) + &columns.lines(rows)
}

/// Columns as wide as they need to be; the widest one gives way where the terminal is too narrow. A table that comes in
/// parts keeps them, and widens them where a later part has to.
pub struct Columns {
    head: Vec<String>,
    width: usize,
    widths: Vec<usize>,
}

impl Columns {
    pub fn new(head: &[&str], width: usize) -> Self {
        Self {
            head: head.iter().map(|title| (*title).to_owned()).collect(),
            width,
            widths: head.iter().map(|title| length(title)).collect(),
        }
    }

    /// The line of titles; `rows`: the first ones below it.
    pub fn titles(&mut self, rows: &[Vec<String>]) -> String {
        self.widen(rows);
        self.line(&self.head)
    }

    pub fn lines(&mut self, rows: &[Vec<String>]) -> String {
        self.widen(rows);
        rows.iter().map(|row| self.line(row)).collect()
    }

    fn widen(&mut self, rows: &[Vec<String>]) {
        for row in rows {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(length(&safe(cell)));
            }
        }
        let room = |widths: &[usize]| widths.iter().sum::<usize>() + 2 * widths.len().saturating_sub(1);
        while room(&self.widths) > self.width {
            match self.widths.iter_mut().max() {
                Some(widest) if *widest > 8 => *widest -= 1,
                _ => break,
            }
        }
    }

    fn line(&self, row: &[String]) -> String {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&self.widths) {
            let cell = safe(cell);
            let short = if length(&cell) > *width {
                cell.chars().take(width.saturating_sub(1)).chain(['…']).collect()
            } else {
                cell
            };
            let _ = write!(line, "{short:<width$}  ");
        }
        line.truncate(line.trim_end().len());
        line.push('\n');
        line
    }
}

fn length(text: &str) -> usize {
    text.chars().count()
}

fn or_none(rows: Vec<Vec<String>>, head: &[&str], none: &str) -> String {
    if rows.is_empty() { format!("{none}\n") } else { table(head, &rows, terminal_width()) }
}

/// How long ago, for people.
pub(super) fn ago(since: u64) -> String {
    if since == 0 {
        return "-".into();
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    span(now.saturating_sub(since))
}

fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}min", seconds / 60),
        3_600..86_400 => format!("{}h {}min", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

pub(super) fn number(n: u64) -> String {
    if n == 0 { "-".into() } else { n.to_string() }
}

pub const SESSIONS: [&str; 9] =
    ["SERVER", "ID", "USER", "STATE", "CLIENT", "DEVICE", "ADDRESSES", "SINCE", "SESSION"];
pub const NO_SESSIONS: &str = "No sessions.";

pub fn sessions(list: &api::Sessions) -> String {
    or_none(list.sessions.iter().map(session).collect(), &SESSIONS, NO_SESSIONS)
}

/// A session's line in the table of [`SESSIONS`].
pub fn session(s: &api::SessionInfo) -> Vec<String> {
    vec![
        s.server.clone(),
        if s.id == 0 { "-".into() } else { s.id.to_string() },
        s.user.clone(),
        if s.revocation == 0 { s.state.clone() } else { format!("{}, revoked by {}", s.state, s.revocation) },
        s.client.clone(),
        s.device.clone(),
        // where it is: its tunnel addresses, or the web gateway's hosts
        if s.web.is_empty() { s.addresses.join(" ") } else { s.hosts.join(" ") },
        ago(s.since),
        if s.web.is_empty() { s.safe_id.clone() } else { s.web.clone() },
    ]
}

pub const USERS: [&str; 6] = ["USER", "SESSIONS", "REVOKED", "LOCKED", "SINCE", "SERVERS"];
pub const NO_USERS: &str = "Nobody is connected, and nobody is locked.";

/// A user's line in the table of [`USERS`].
pub fn user(u: &api::User) -> Vec<String> {
    vec![
        u.user.clone(),
        u.sessions.to_string(),
        number(u.revoked.into()),
        lock(u),
        ago(u.since),
        u.servers.join(" "),
    ]
}

fn lock(user: &api::User) -> String {
    let realm = if user.realm.is_empty() || user.realm == crate::session::DEFAULT_REALM {
        String::new()
    } else {
        format!(" (realm {})", user.realm)
    };
    match (user.lock, user.locked_until) {
        (0, _) => "-".into(),
        (number, 0) => format!("by {number}, until unlocked{realm}"),
        (number, until) => format!("by {number}, for {}{realm}", left(until)),
    }
}

/// How much longer, for people.
fn left(until: u64) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    span(until.saturating_sub(now))
}

pub const REVOCATIONS: [&str; 9] =
    ["NUMBER", "TARGET", "STATE", "SINCE", "IN FORCE", "HITS", "LAST HIT", "BY", "REASON"];

/// A revocation's line in the table of [`REVOCATIONS`].
pub fn revocation(r: &api::RevocationInfo) -> Vec<String> {
    vec![
        r.number.to_string(),
        r.target.clone(),
        r.state.clone(),
        ago(r.at),
        number(r.entries),
        number(r.hits),
        last_hit(r),
        r.by.clone(),
        r.reason.clone(),
    ]
}

/// How long ago the last packet or login was stopped. `never` is said where all of them are known alone.
fn last_hit(r: &api::RevocationInfo) -> String {
    match (r.hits, r.last_hit) {
        (_, last @ 1..) => ago(last),
        // by gates, while the daemon did not run
        (1.., 0) => "unknown".into(),
        (0, 0) if r.hits_since <= r.at => "never".into(),
        (0, 0) => format!("none in {}", ago(r.hits_since)),
    }
}

pub fn count(count: &api::RevocationCount) -> String {
    format!("{} in force, {} listed\n", count.in_force, count.remembered)
}

pub fn events(list: &api::Events) -> String {
    let rows = (list.events.iter()).map(|e| vec![clock(e.at_ms), e.kind.clone(), e.text.clone()]).collect();
    or_none(rows, &["TIME (UTC)", "KIND", "WHAT"], "Nothing happened yet.")
}

/// Time of day in UTC.
fn clock(ms: u64) -> String {
    let seconds = ms / 1_000 % 86_400;
    format!("{:02}:{:02}:{:02}.{:03}", seconds / 3_600, seconds % 3_600 / 60, seconds % 60, ms % 1_000)
}

pub fn status(s: &api::Status) -> String {
    let mut text = format!(
        "enforcer {}, up {}; {} sessions, {} revocations and {} locks in force; pins below {}\n",
        s.version,
        span(s.uptime_seconds),
        s.sessions,
        s.revocations_in_force,
        s.locks_in_force,
        s.pin_path
    );
    if let Some(disk) = &s.disk {
        let _ = match (disk.unwritten, disk.error.as_str()) {
            (0, "") => writeln!(text, "state in {}: everything is written", safe(&disk.directory)),
            (n, "") => writeln!(text, "state in {}: {n} being written", safe(&disk.directory)),
            (n, why) => writeln!(
                text,
                "state in {}: {n} NOT WRITTEN, lost at a reboot: {}",
                safe(&disk.directory),
                safe(why)
            ),
        };
    }
    if let Some(web) = &s.web {
        let gateways = match web.gateways {
            0 => "NO gateway is connected".to_owned(),
            1 => "a gateway is connected".to_owned(),
            n => format!("{n} gateways are connected"),
        };
        let _ = match web.socket.as_str() {
            _ if !web.trouble.is_empty() => writeln!(
                text,
                "web: {} of {} sessions; NO gateway is served: {}",
                web.sessions,
                web.most,
                safe(&web.trouble)
            ),
            "" => writeln!(text, "web: {} sessions; not served any more", web.sessions),
            socket => writeln!(
                text,
                "web: {} of {} sessions; {gateways} on {}",
                web.sessions,
                web.most,
                safe(socket)
            ),
        };
        for away in &web.away {
            let _ = writeln!(text, "web: {} runs, and is NOT told of ends", safe(away));
        }
    }
    for warning in &s.warnings {
        let _ = writeln!(text, "WARNING: {}", safe(warning));
    }
    let servers = (s.servers.iter())
        .map(|s| {
            let pid = if s.main_pid == 0 { "-".into() } else { s.main_pid.to_string() };
            let terminate = if s.terminate { "yes" } else { "no" };
            vec![
                s.name.clone(),
                s.state.clone(),
                pid,
                s.feed.clone(),
                s.gate.clone(),
                terminate.into(),
                s.control_socket.clone(),
            ]
        })
        .collect();
    text.push('\n');
    text +=
        &or_none(servers, &["SERVER", "STATE", "PID", "FEED", "GATE", "TERMINATE", "SOCKET"], "No servers.");
    let interfaces = (s.interfaces.iter())
        .map(|i| vec![i.name.clone(), i.ifindex.to_string(), i.role.clone(), i.how.clone(), i.netns.clone()])
        .collect();
    text.push('\n');
    text += &or_none(interfaces, &["INTERFACE", "INDEX", "ROLE", "HOW", "NAMESPACE"], "No interfaces.");
    let tables =
        s.tables.iter().map(|t| vec![t.name.clone(), t.used.to_string(), t.capacity.to_string()]).collect();
    text.push('\n');
    text += &or_none(tables, &["TABLE", "USED", "CAPACITY"], "No tables.");
    let counters = (s.counters.iter())
        .map(|c| vec![c.reason.clone(), c.packets.to_string(), c.bytes.to_string()])
        .collect();
    text.push('\n');
    text += &or_none(counters, &["COUNTER", "PACKETS", "BYTES"], "No counters.");
    if let Some(api::Untold { suppressed, lost }) = s.untold {
        let _ = writeln!(
            text,
            "\nfirst drops that `show events` does not have: {suppressed} beyond so many a second, {lost} not read in time"
        );
    }
    text
}

pub fn findings(list: &api::Findings) -> String {
    let mut text = String::new();
    for finding in &list.findings {
        let mark = match finding.level.as_str() {
            "ok" => "ok      ",
            "warning" => "WARNING ",
            _ => "ERROR   ",
        };
        let _ = writeln!(text, "{mark}{}", safe(&finding.what));
        if !finding.mend.is_empty() {
            let _ = writeln!(text, "        -> {}", safe(&finding.mend));
        }
    }
    text
}

pub fn disconnected(reply: &api::DisconnectReply) -> String {
    let mut text = match (reply.dry_run, reply.sessions.len()) {
        (true, n) => format!(
            "Would disconnect {n} session{}; the cookies stay valid.\n",
            if n == 1 { "" } else { "s" }
        ),
        (false, n) => {
            format!(
                "Disconnected {n} session{}; the cookies stay valid (-i revokes them).\n",
                if n == 1 { "" } else { "s" }
            )
        }
    };
    if !reply.sessions.is_empty() {
        text += &sessions(&api::Sessions { sessions: reply.sessions.clone() });
    }
    for note in &reply.notes {
        let _ = writeln!(text, "note: {}", safe(note));
    }
    text
}

pub fn receipt(r: &api::Receipt) -> String {
    let mut text = if r.dry_run {
        format!("Dry run: {}. Nothing was changed.\n", safe(&r.target))
    } else {
        let how = if r.complete { "done" } else { "done IN PART" };
        let what = if r.target.starts_with("lock of ") { "Lock" } else { "Revocation" };
        format!(
            "{what} {}: {}: {how} in {}.{:01} ms\n",
            r.number,
            safe(&r.target),
            r.elapsed_us / 1_000,
            r.elapsed_us % 1_000 / 100
        )
    };
    for layer in &r.layers {
        let mark = if layer.failed > 0 { "!" } else { " " };
        let _ = writeln!(text, " {mark} {:<8} {}", layer.layer, safe(&layer.text));
    }
    text += &gateways::results(&r.gateways);
    for note in &r.notes {
        let _ = writeln!(text, "   note: {}", safe(note));
    }
    if r.dry_run && !r.sessions.is_empty() {
        text += &sessions(&api::Sessions { sessions: r.sessions.clone() });
    }
    text
}

pub fn bulk(b: &api::BulkReceipt) -> String {
    let mut text = format!("{} revoked, {} not\n", b.done, b.failed);
    for error in &b.errors {
        let _ = writeln!(text, "  {}", safe(error));
    }
    if b.failed > b.errors.len() as u64 {
        let _ = writeln!(text, "  … and {} more", b.failed - b.errors.len() as u64);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// R6: "never" is said where it is known, and nowhere else.
    #[test]
    fn r6_the_last_hit_is_told_as_it_is_known() {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let last = |hits, last, hits_since| {
            let at = now - 7_200;
            last_hit(&api::RevocationInfo { at, hits, last_hit: last, hits_since, ..Default::default() })
        };
        assert_eq!(last(3, now - 120, now - 7_200), "2min");
        assert_eq!(last(0, 0, now - 7_200), "never");
        assert_eq!(last(0, 0, now - 600), "none in 10min", "the daemon runs for ten minutes");
        assert_eq!(last(3, 0, now - 7_200), "unknown");
    }

    #[test]
    fn a_table_fits_the_terminal_and_no_name_steers_it() {
        let rows = vec![vec!["a".repeat(100), "\x1b[2Jevil".into()]];
        let text = table(&["LONG", "NAME"], &rows, 60);
        assert!(text.lines().all(|line| line.chars().count() <= 60), "{text}");
        assert!(!text.contains('\x1b'));
    }
}
