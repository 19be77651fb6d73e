//! `enforcer passwd`: the users of the web gateway.

use std::io::{IsTerminal as _, Read as _};
use std::path::PathBuf;

use anyhow::Context as _;
use serde::Serialize;
use zeroize::Zeroizing;

use super::output;
use crate::exit::Code;
use crate::web::users::{self, Change, Done, MAX_PASSWORD};

/// `enforcer passwd`. The letters are ocpasswd's.
#[derive(Debug, Clone, clap::Args)]
pub struct Passwd {
    /// As the user logs in
    pub name: String,
    /// The users file
    #[arg(short = 'c', long, value_name = "FILE", default_value = users::DEFAULT_FILE)]
    pub file: PathBuf,
    /// The user's groups, in place of those from before; with commas, or several times
    #[arg(short, long = "group", value_name = "NAME", value_delimiter = ',', conflicts_with = "other")]
    pub groups: Vec<String>,
    #[command(flatten)]
    pub other: Other,
}

#[derive(Debug, Clone, Default, clap::Args)]
#[group(id = "other", multiple = false)]
pub struct Other {
    /// Take the user out of the file
    #[arg(short, long)]
    pub delete: bool,
    /// Refuse the user every login; the password stays
    #[arg(short, long)]
    pub lock: bool,
    /// Let a locked user log in again
    #[arg(short, long)]
    pub unlock: bool,
}

/// What was done, as `--json` prints it.
#[derive(Serialize)]
struct Record {
    user: String,
    file: String,
    done: &'static str,
}

pub(super) fn run(asked: Passwd, json: bool) -> anyhow::Result<Code> {
    // before a password is asked for
    users::check_name(&asked.name)?;
    let change = match asked.other {
        Other { delete: true, .. } => Change::Delete,
        Other { lock: true, .. } => Change::Lock,
        Other { unlock: true, .. } => Change::Unlock,
        Other { .. } => {
            let hash = users::hash(&password(&asked.name)?)?;
            Change::Password { hash, groups: (!asked.groups.is_empty()).then_some(asked.groups) }
        }
    };
    let done = users::change(&asked.file, &asked.name, &change)?;
    let word = match done {
        Done::Added => "added",
        Done::Changed => "changed",
        Done::Deleted => "deleted",
        Done::Locked => "locked",
        Done::Unlocked => "unlocked",
        Done::Nothing => "unchanged",
        Done::Unknown => "unknown",
    };
    let file = asked.file.display().to_string();
    let record = Record { user: asked.name, file, done: word };
    output::print(json, &record, |Record { user, file, .. }| match (done, &change) {
        (Done::Unknown, _) => format!("There is no user {user} in {file}\n"),
        (Done::Nothing, Change::Lock) => format!("{user} was locked before\n"),
        (Done::Nothing, _) => format!("{user} was not locked\n"),
        _ => format!("{user}: {word} in {file}\n"),
    })?;
    Ok(if done == Done::Unknown { Code::Nothing } else { Code::Done })
}

/// Twice from a terminal, without echo; from anything else its first line.
fn password(name: &str) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    if !std::io::stdin().is_terminal() {
        return first_line();
    }
    let ask = |prompt: String| {
        let line = rpassword::prompt_password(prompt).context("cannot read the password")?;
        anyhow::Ok(Zeroizing::new(line.into_bytes()))
    };
    let first = ask(format!("New password for {name}: "))?;
    let second = ask("Once more: ".to_owned())?;
    anyhow::ensure!(first == second, "the two passwords differ: nothing was changed");
    Ok(first)
}

fn first_line() -> anyhow::Result<Zeroizing<Vec<u8>>> {
    // enough room from the start, so that nothing is left behind where it grew
    let mut line = Zeroizing::new(Vec::with_capacity(MAX_PASSWORD + 2));
    for byte in std::io::stdin().lock().bytes().take(MAX_PASSWORD + 2) {
        match byte.context("cannot read the password from standard input")? {
            b'\n' => break,
            byte => line.push(byte),
        }
    }
    if line.ends_with(b"\r") {
        line.pop();
    }
    anyhow::ensure!(!line.is_empty(), "no password on standard input: its first line is empty");
    Ok(line)
}
